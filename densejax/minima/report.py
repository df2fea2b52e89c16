"""What minima leave behind: a table, pictures, and findings with their verdicts."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from densejax.io import markdown, write_csv, write_text
from densejax.landscape.directions import random_plane
from densejax.landscape.surfaces import surface
from densejax.minima.point_nets import PointNet, class_probabilities, plane_grid
from densejax.minima.reading import (
    MEASURED,
    MEASURES,
    Basin,
    HasLoss,
    Minimum,
    PictureLoss,
    column,
    measure_basins,
    read_minima,
    stacked,
    value_of,
)
from densejax.plots.basins import radius_histograms, volume_curves, volume_scatter
from densejax.plots.boundaries import decision_boundaries
from densejax.plots.relief import surface_3d
from densejax.plots.scores import strips
from densejax.plots.surfaces import SurfaceStyle, contours
from densejax.stats import (
    Finding,
    Interval,
    by_seed,
    findings_table,
    judge,
    judge_all,
    mean_by_seed,
    spearman_by_seed,
    weighted_mean,
)
from densejax.typing import Key

PANELS = 5  # seeds whose boundaries are drawn of a run beside others
# Beyond so many times the cutoff a surface is cut off in pictures; its file has it all.
HIGHEST = 100.0


@dataclass(frozen=True)
class Summary:
    """What a report came to."""

    basins: tuple[Basin, ...]
    findings: tuple[Finding, ...]
    files: tuple[Path, ...]
    failed: int


def summarise(
    workdir: Path,
    folder: Path,
    *,
    title: str,
    published: Mapping[str, str],
    directions: int = 3000,
    cutoff: float = 0.1,
    panels: int = 10,
    span: float = 18.0,
    seed: int = 0,
    **options: Any,
) -> Summary:
    """Measure the basins of a run of points in the plane, write tables, pictures, findings.

    Args:
      workdir: folder of the run.
      folder: takes the files; made if absent.
      title: of the pictures.
      published: as in ``compare_shares``.
      directions: of each basin; 0 measures none.
      cutoff: training loss at which a basin ends.
      panels: seeds whose boundaries are drawn; 0 draws none.
      span: half the width of the pictures of boundaries.
      seed: of the directions.
      options: of ``radii_of_many``.

    Returns:
      The basins, findings and files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    problem, minima, failed = read_minima(workdir)
    search = {"directions": directions, "cutoff": cutoff, **options}
    basins = _measured(jax.random.key(seed), problem, minima, folder / "radii", search)
    findings = compare_shares(basins, published=published)
    files = [
        write_basins(folder / "minima.csv", basins),
        _write_findings(folder / "findings.md", title, basins, findings, failed, cutoff, options),
        *_draw_basins(folder, basins, title),
    ]
    if panels:
        files += _draw_boundaries(folder, problem, minima, seeds=panels, span=span, title=title)
    print(f"{len(basins)} minima, {len(failed)} instances failed; see {folder}")
    return Summary(tuple(basins), tuple(findings), tuple(files), len(failed))


def summarise_pictures(
    key: Key,
    loss: PictureLoss,
    minima: Sequence[Minimum],
    *,
    claims: Callable[[Sequence[Basin]], list[Finding]],
    folder: Path,
    title: str,
    failed: int = 0,
    points: int = 51,
    surface_span: float = 1.0,
    directions: int = 3000,
    cutoff: float = 0.1,
    **options: Any,
) -> Summary:
    """Draw surfaces of nets that learn pictures, measure basins, write tables and findings.

    Args:
      key: of the planes and directions, the same for all minima.
      loss: about them.
      minima: natural ones (poison 0) and poisoned ones.
      claims: judges what the experiment asks.
      folder: takes the files; surfaces and radii that are there already are not computed again.
      title: of the pictures.
      failed: members that left no minimum.
      points: of a surface along each axis; 0 draws none.
      surface_span: half of its axes, in lengths of its filter-normalised directions.
      directions: of each basin; 0 measures none.
      cutoff: loss at which a basin ends.
      options: of ``radii_of_many``.

    Returns:
      Basins, findings and files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plane_key, basin_key = jax.random.split(key)
    files = []
    if points:
        files += _draw_surfaces(
            plane_key,
            loss,
            minima,
            folder=folder,
            points=points,
            span=surface_span,
            title=title,
            cutoff=cutoff,
        )
    search = {"directions": directions, "cutoff": cutoff, **options}
    basins = _measured(basin_key, loss, minima, folder / "radii", search)
    findings = claims(basins)
    files += [write_basins(folder / "minima.csv", basins), folder / "findings.md"]
    lines = [f"# {title}", "", *findings_table(findings), "", *by_share(basins)]
    write_text(files[-1], "\n".join(lines) + "\n")
    print("\n".join(lines))
    files += _draw_basins(folder, basins, title) if basins else []
    return Summary(tuple(basins), tuple(findings), tuple(files), failed)


def summarise_runs(
    folders: Mapping[str, Path],
    folder: Path,
    *,
    claims: Callable[[Mapping[str, Sequence[Basin]]], list[Finding]],
    title: str,
    remark: str,
    span: float,
    directions: int = 3000,
    cutoff: float = 0.1,
    seed: int = 0,
) -> Summary:
    """Measure the basins of runs whose members share their seeds, and compare them.

    Args:
      folders: of the runs, by name.
      folder: takes the files; made if absent.
      claims: judges what the experiment asks of the basins by run.
      title: of the report.
      remark: on its intervals.
      span: half the width of the pictures of boundaries.
      directions: of each basin; 0 measures none.
      cutoff: training loss at which a basin ends.
      seed: of the directions.

    Returns:
      The basins of all runs, findings and files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[str, list[Basin]] = {}
    files, failed = [], []
    search = {"directions": directions, "cutoff": cutoff}
    for name, run in folders.items():
        problem, minima, lost = read_minima(run)
        failed += [f"{name}: {one}" for one in lost]
        groups[name] = _measured(jax.random.key(seed), problem, minima, run / "radii", search)
        short = name.split()[0]
        files.append(write_basins(folder / f"minima_{short}.csv", groups[name]))
        path = folder / f"boundaries_{short}.png"
        panels = {f"seed {one.seed}": one for one in minima[:PANELS]}
        files.append(_draw_panels(path, problem, panels, span, 400, name))
    findings = claims(groups)
    files += _draw_radii_of_runs(folder / "radii.png", groups, title=title)
    lines = [
        f"# Minima of the {title}",
        "",
        f"{directions} directions a minimum, cutoff {cutoff:g}; minima with a training loss above "
        f"it have no basin. {remark}",
        "",
    ]
    if failed:
        lines += [f"Failed: {', '.join(failed)}.", ""]
    lines += [*findings_table(findings), "", *by_run(groups)]
    files.append(folder / "findings.md")
    write_text(files[-1], "\n".join(lines) + "\n")
    print(f"{sum(map(len, groups.values()))} minima, {len(failed)} failed; see {folder}")
    every = [one for group in groups.values() for one in group]
    return Summary(tuple(every), tuple(findings), tuple(files), len(failed))


def _measured(
    key: Key, problem: HasLoss, minima: Sequence[Minimum], folder: Path, search: dict[str, Any]
) -> list[Basin]:
    """Basins by ``measure_basins``, or minima alone where no direction is asked for."""
    if not search["directions"]:
        return [Basin(one) for one in minima]
    return measure_basins(key, problem, minima, folder=folder, **search)


# ---- findings ----


def compare_shares(basins: Sequence[Basin], *, published: Mapping[str, str]) -> list[Finding]:
    """Judge how scores and basins of minima go with the share of poison.

    Args:
      basins: of natural (poison 0) and poisoned minima.
      published: what a paper reports of the most poisoned's test ``accuracy``, of the ``order`` of
        basins by poison and by test accuracy, and of the ``gap`` between natural and most poisoned
        ones; a key that is absent is an observation of ours.

    Returns:
      The findings that these minima can speak to.
    """
    seeds, poison = column(basins, "seed"), column(basins, "poison")
    fitted, test = column(basins, "train_accuracy"), column(basins, "test_accuracy")
    radius, volume = column(basins, "radius"), column(basins, "jensen")
    exact = mean_by_seed(fitted == 1, seeds)
    found = [judge_all("part of the minima that fit every training point", exact)]
    most = poison == poison.max()
    if poison.max() > 0:
        worst = mean_by_seed(test[most], seeds[most])
        found.append(
            judge(
                f"test accuracy with {poison.max():g} of poison is below chance",
                worst,
                side="below",
                level=0.5,
                published=published.get("accuracy", ""),
            )
        )
    if (poison == 0).any():
        natural = mean_by_seed(test[poison == 0], seeds[poison == 0])
        found.append(
            judge("test accuracy of natural minima is above 0.9", natural, side="above", level=0.9)
        )
    where = published.get("order", "")
    pairs: list[tuple[str, np.ndarray, np.ndarray, Literal["above", "below"], str]] = [
        ("radius falls with poison", poison, radius, "below", where),
        ("volume (Jensen) falls with poison", poison, volume, "below", where),
        ("radius rises with test accuracy", test, radius, "above", where),
        ("volume (Jensen) rises with test accuracy", test, volume, "above", where),
    ]
    if np.isfinite(radius).sum() > 2:
        loss = column(basins, "train_loss")
        pairs.append(
            ("radius falls with the training loss that is left", loss, radius, "below", "")
        )
        for claim, x, y, side, source in pairs:
            correlation = spearman_by_seed(x, y, seeds)
            found.append(judge(claim, correlation, side=side, published=source))
        for claim, values in (("radius", radius), ("volume (Jensen)", volume)):
            some = poison > 0
            correlation = spearman_by_seed(test[some], values[some], seeds[some])
            claim = f"{claim} rises with test accuracy among poisoned minima alone"
            found.append(judge(claim, correlation, side="above"))
        if most.any() and (poison == 0).any() and poison.max() > 0:
            gap = difference_of_shares(basins, "jensen", unit=math.log(10))
            claim = f"natural basins are larger than with {poison.max():g}, "
            claim += "orders of magnitude (Jensen)"
            found.append(
                judge(claim, gap, side="above", published=published.get("gap", ""), digits=0)
            )
    return found


def difference_of_shares(basins: Sequence[Basin], name: str, *, unit: float = 1.0) -> Interval:
    """Compute the mean of natural minus that of the most poisoned minima, in units of ``unit``."""
    poison = column(basins, "poison")

    def gap(columns: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
        shares, values = columns
        natural, bad = (weighted_mean(values, weights * (shares == s)) for s in (0, poison.max()))
        return (natural - bad) / unit

    return by_seed(gap, (poison, column(basins, name)), column(basins, "seed"))


# ---- files ----


def write_basins(path: Path, basins: Sequence[Basin]) -> Path:
    """Write one row a minimum: its name, settings, measures, and what was measured of its basin."""
    settings = sorted({name for one in basins for name in one.minimum.settings})
    rows = []
    for one in basins:
        numbers = [float(one.minimum.settings.get(name, math.nan)) for name in settings]
        numbers += [value_of(one, name) for name in (*MEASURES, *MEASURED)]
        rows.append([one.minimum.name, one.minimum.seed, *numbers])
    return write_csv(path, ["name", "seed", *settings, *MEASURES, *MEASURED], rows, form=".8g")


def _write_findings(
    path: Path,
    title: str,
    basins: Sequence[Basin],
    findings: Sequence[Finding],
    failed: Sequence[str],
    cutoff: float,
    options: dict[str, Any],
) -> Path:
    measured = [one for one in basins if one.radii is not None]
    lines = [f"# Minima of the {title}", ""]
    lines += [
        f"{len(basins)} minima, {len(measured)} of them with a training loss below the cutoff "
        f"{cutoff:g} and so a basin; {len(failed)} instances failed"
        + (f" ({', '.join(failed)})." if failed else "."),
        "",
        "Correlations are Spearman's; intervals are 95 % percentile bootstrap over seeds. Seen and "
        "not seen say on which side the whole interval lies. A correlation over all shares of "
        "poison says that both numbers follow the share; one within the poisoned is nearer to the "
        "question.",
        "",
    ]
    if measured and measured[0].radii is not None:
        radii = measured[0].radii
        told = ", ".join(f"{name} {value}" for name, value in options.items())
        lines += [
            f"{len(radii.radius)} directions a minimum{f' ({told})' if told else ''}, span "
            f"{radii.span:g}, effective dimension {radii.dimension}. Volumes are compared by their "
            "Jensen bound, n times the mean log radius: where the effective samples are few, the "
            "estimate is its largest radius.",
            "",
        ]
    lines += [*findings_table(findings), "", *by_share(basins)]
    write_text(path, "\n".join(lines) + "\n")
    return path


def by_share(basins: Sequence[Basin]) -> list[str]:
    """Return lines of Markdown, a row a share of poison: means and their intervals over seeds."""
    names = ("train_accuracy", "test_accuracy", "poison_accuracy", "radius", "jensen", "log_volume")
    head = ["poison", "minima", "train loss (median)", *names]
    rows = []
    for share in sorted({one.minimum.poison for one in basins}):
        group = [one for one in basins if one.minimum.poison == share]
        samples = column(group, "effective_samples")
        samples = samples[np.isfinite(samples)]
        told = f"{samples.min():.1f}, {np.median(samples):.1f}" if samples.size else "none"
        censored = column(group, "censored")
        lost = f"{100 * censored[np.isfinite(censored)].mean():.1f} %" if samples.size else "none"
        loss = np.median(column(group, "train_loss"))
        digits = {name: 1 if name in ("jensen", "log_volume") else 4 for name in names}
        rows.append([f"{share:g}", len(group), f"{loss:.2g}", *_means(group, digits), told, lost])
    return markdown([*head, "effective samples, least, median", "censored"], rows)


def by_run(groups: Mapping[str, Sequence[Basin]]) -> list[str]:
    """Return lines of Markdown, a row a run: means and their intervals over seeds."""
    digits = {"train_loss": 8, "radius": 4, "jensen": 0, "effective_samples": 1, "censored": 3}
    rows = []
    for name, group in groups.items():
        basins = sum(one.radii is not None for one in group)
        rows.append([name, len(group), basins, *_means(group, digits)])
    return markdown(["gap", "minima", "basins", *digits], rows)


def _means(group: Sequence[Basin], digits: Mapping[str, int]) -> list[str]:
    seeds = column(group, "seed")
    return [mean_by_seed(column(group, n), seeds).text(digits=d) for n, d in digits.items()]


# ---- pictures ----


def _draw_basins(folder: Path, basins: Sequence[Basin], title: str) -> list[Path]:
    """Test accuracy a share; radii and volumes over test accuracy and over poison."""
    shares = column(basins, "poison")
    test = column(basins, "test_accuracy")
    by_name = {_share_name(s): test[shares == s] for s in sorted(set(shares.tolist()))}
    files = [folder / "test_accuracy.png"]
    strips(by_name, label="test accuracy (median)", title=title, path=files[0])
    deep = [one for one in basins if one.radii is not None and one.volume is not None]
    if len(deep) < 2:
        return files
    groups = ["natural" if one.minimum.poison == 0 else "poisoned" for one in deep]
    seeds, error = column(deep, "seed"), 1.96 * column(deep, "jensen_error")
    heights = {
        "radius": (column(deep, "radius"), None, "mean basin radius (filter norms)"),
        "volume": (column(deep, "jensen"), error, "log-volume, Jensen bound (nats)"),
    }
    for name, (y, spread, label) in heights.items():
        for x_name, x_label in (("test_accuracy", "test accuracy"), ("poison", "share of poison")):
            x = column(deep, x_name)
            ends = {} if spread is None else {"low": y - spread, "high": y + spread}
            note = f"Spearman {spearman_by_seed(x, y, seeds).text(digits=2)}"
            files.append(folder / f"{name}_over_{x_name}.png")
            volume_scatter(
                x, y, groups=groups, x_label=x_label, label=label, title=title,
                note=note, logarithmic=name == "radius", path=files[-1], **ends,
            )  # fmt: skip
    first = {one.minimum.poison: one for one in reversed(deep)}
    rows = {_share_name(share): one for share, one in sorted(first.items())}
    radii = {name: one.radii for name, one in rows.items() if one.radii is not None}
    files += [folder / "radii.png", folder / "volume_over_directions.png"]
    radius_histograms(
        {name: one.radius for name, one in radii.items()},
        groups=["natural" if name == "natural" else "poisoned" for name in radii],
        censored={name: one.censored for name, one in radii.items()},
        title=f"{title}: radii of the first seed",
        logarithmic=True,
        path=files[-2],
    )
    ends_of = {name: rows[name].volume for name in (next(iter(rows)), list(rows)[-1])}
    volume_curves(
        {
            name: (one.curve.sizes, one.curve.estimate, one.curve.low, one.curve.high)
            for name, one in ends_of.items()
            if one is not None
        },
        title=title,
        path=files[-1],
    )
    return files


def _share_name(share: float) -> str:
    return "natural" if share == 0 else f"poison {share:g}"


def _draw_boundaries(
    folder: Path,
    problem: PointNet,
    minima: Sequence[Minimum],
    *,
    seeds: int,
    span: float,
    title: str,
) -> list[Path]:
    """Boundaries of the first seed at every share, and of some seeds at the least and the most."""
    shares = sorted({one.poison for one in minima})
    first = min(one.seed for one in minima)
    sets = {"boundaries": [one for one in minima if one.seed == first]}
    for share in dict.fromkeys((shares[0], shares[-1])):
        name = f"boundaries_{_share_name(share).replace(' ', '_')}"
        sets[name] = [one for one in minima if one.poison == share][:seeds]
    files = []
    for name, some in sets.items():
        panels = {
            f"{_share_name(one.poison) if name == 'boundaries' else f'seed {one.seed}'}, "
            f"test {100 * one.measures['test_accuracy']:.1f} %": one
            for one in some
        }
        files.append(_draw_panels(folder / f"{name}.png", problem, panels, span, 500, title))
    return files


def _draw_panels(
    path: Path,
    problem: PointNet,
    panels: Mapping[str, Minimum],
    span: float,
    places: int,
    title: str,
) -> Path:
    """Boundaries by the title of their panel, on a grid of so many places along each axis."""
    x, y = plane_grid(span=span, points=places)
    some = stacked(list(panels.values()))
    fields = class_probabilities(problem.logits_of, some, x, y, stacked=True)
    points, labels = np.asarray(problem.train.points), problem.train.labels
    drawn = dict(zip(panels, fields, strict=True))
    decision_boundaries(points, labels, x, y, drawn, title=title, path=path)
    return path


def _draw_surfaces(
    key: Key,
    loss: PictureLoss,
    minima: Sequence[Minimum],
    *,
    folder: Path,
    points: int,
    span: float,
    title: str,
    cutoff: float,
) -> list[Path]:
    """Draw contours of all shares of poison on one logarithmic scale, and the relief of each.

    On a random plane through the first minimum of each share, by the same numbers for all; kept in
    ``surfaces/<name>.npz``, which are resumed.
    """
    first = {one.poison: one for one in reversed(minima)}
    kept = folder / "surfaces"
    kept.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for share, one in sorted(first.items()):
        plane, file = random_plane(key, one.variables), kept / f"{one.name}.npz"
        drawn[_share_name(share)] = surface(
            loss.measures, plane, points=points, span=span, file=file
        )
    if not drawn:
        return []
    grid = next(iter(drawn.values()))
    values = {name: one.values["loss"] for name, one in drawn.items()}
    least = min(float(np.nanmin(loss)) for loss in values.values())
    limits = (max(least, 1e-6), HIGHEST * cutoff)
    style = SurfaceStyle(log=True, limits=limits, label="training loss")
    files = [folder / "surfaces.png"]
    contours(grid.x, grid.y, values, style=style, title=title, path=files[0])
    for name, losses in values.items():
        files.append(folder / f"surface_{name.replace(' ', '_')}.png")
        heading = f"{title}: {name}"
        surface_3d(grid.x, grid.y, losses, style=style, title=heading, path=files[-1])
    return files


def _draw_radii_of_runs(
    path: Path, groups: Mapping[str, Sequence[Basin]], *, title: str
) -> list[Path]:
    """Histograms of the radii of every minimum that has a basin, by run."""
    rows = {
        f"{name.split()[0]}, seed {one.minimum.seed}": (name, one.radii)
        for name, group in groups.items()
        for one in group
        if one.radii is not None
    }
    if not rows:
        return []
    radius_histograms(
        {name: radii.radius for name, (_, radii) in rows.items()},
        groups=[group for group, _ in rows.values()],
        censored={name: radii.censored for name, (_, radii) in rows.items()},
        title=title,
        path=path,
    )
    return [path]
