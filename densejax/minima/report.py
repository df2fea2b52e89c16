"""What minima leave behind: a table, pictures, and claims with their verdicts."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from densejax.io import markdown, write_csv, write_text
from densejax.minima.drawing import (
    draw_basins,
    draw_boundaries,
    draw_radii_of_runs,
    draw_seeds,
    draw_surfaces,
)
from densejax.minima.image_nets import PictureLoss
from densejax.minima.reading import (
    MEASURED,
    MEASURES,
    Basin,
    HasLoss,
    Minimum,
    column,
    measure_basins,
    read_minima,
    value_of,
)
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
    findings = find(basins)
    files = [
        write_basins(folder / "minima.csv", basins),
        _write_findings(folder / "findings.md", title, basins, findings, failed, cutoff, options),
        *draw_basins(folder, basins, title),
    ]
    if panels:
        files += draw_boundaries(folder, problem, minima, seeds=panels, span=span, title=title)
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
        files += draw_surfaces(
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
    files += draw_basins(folder, basins, title) if basins else []
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
        files.append(draw_seeds(path, problem, minima, span=span, title=name))
    findings = claims(groups)
    files += draw_radii_of_runs(folder / "radii.png", groups, title=title)
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


# ---- claims ----


def find(basins: Sequence[Basin]) -> list[Finding]:
    """Judge the claims of the thesis' figures 3.3 to 3.5 that these minima can speak to."""
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
                published="7 % (8 % in the released code's README)",
            )
        )
    if (poison == 0).any():
        natural = mean_by_seed(test[poison == 0], seeds[poison == 0])
        found.append(
            judge("test accuracy of natural minima is above 0.9", natural, side="above", level=0.9)
        )
    where = "figures 3.3 to 3.5"
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
            found.append(judge(claim, gap, side="above", published="larger", digits=0))
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
