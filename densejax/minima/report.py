"""What a population of minima leaves behind: a table, pictures, and each claim with its verdict."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from densejax.minima.drawing import draw_basins, draw_boundaries
from densejax.minima.reading import (
    MEASURED,
    MEASURES,
    Basin,
    column,
    measure_basins,
    read_minima,
    value_of,
)
from densejax.minima.statistics import (
    Interval,
    by_seed,
    mean_interval,
    spearman,
    weighted_mean,
)


@dataclass(frozen=True)
class Finding:
    """A claim and what is seen of it.

    Attributes:
      claim: in words.
      published: where and what; empty for an observation that no source foretells.
      verdict: ``seen``, ``not seen`` or ``not told apart``.
      found: the number behind it, with its interval.
    """

    claim: str
    published: str
    verdict: str
    found: str


@dataclass(frozen=True)
class Summary:
    """What a report came to."""

    basins: tuple[Basin, ...]
    findings: tuple[Finding, ...]
    files: tuple[Path, ...]
    failed: int


def judge(
    claim: str,
    found: Interval,
    *,
    side: Literal["above", "below"],
    level: float = 0.0,
    published: str = "",
    digits: int = 3,
) -> Finding:
    """A claim that a number lies above or below a level, by its 95 % interval.

    An interval that holds the level, or that cannot be computed, tells nothing apart.
    """
    sign = 1 if side == "above" else -1
    low, high = sorted((sign * (found.low - level), sign * (found.high - level)))
    verdict = "seen" if low > 0 else "not seen" if high < 0 else "not told apart"
    return Finding(claim, published, verdict, found.text(digits=digits))


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
    """Measure the basins of all minima of a run, write tables, pictures and findings.

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
    basins = [Basin(one) for one in minima]
    if directions:
        basins = measure_basins(
            jax.random.key(seed),
            problem,
            minima,
            folder=folder / "radii",
            directions=directions,
            cutoff=cutoff,
            **options,
        )
    findings = find(basins)
    files = [
        write_table(folder / "minima.csv", basins),
        _write_findings(folder / "findings.md", title, basins, findings, failed, cutoff, options),
        *draw_basins(folder, basins, title),
    ]
    if panels:
        files += draw_boundaries(folder, problem, minima, seeds=panels, span=span, title=title)
    print(f"{len(basins)} minima, {len(failed)} instances failed; see {folder}")
    return Summary(tuple(basins), tuple(findings), tuple(files), len(failed))


# ---- claims ----


def find(basins: Sequence[Basin]) -> list[Finding]:
    """The claims of the thesis' figures 3.3 to 3.5 that these minima can speak to."""
    seeds, poison = column(basins, "seed"), column(basins, "poison")
    fitted, test = column(basins, "train_accuracy"), column(basins, "test_accuracy")
    radius, volume = column(basins, "radius"), column(basins, "jensen")
    found: list[Finding] = []
    exact = mean_interval(fitted == 1, seeds)
    found.append(
        Finding(
            "part of the minima that fit every training point",
            "all",
            "seen" if exact.value == 1 else "not seen",
            exact.text(),
        )
    )
    most = poison == poison.max()
    if poison.max() > 0:
        worst = mean_interval(test[most], seeds[most])
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
        natural = mean_interval(test[poison == 0], seeds[poison == 0])
        found.append(
            judge("test accuracy of natural minima is above 0.9", natural, side="above", level=0.9)
        )
    where = "figures 3.3 to 3.5"
    pairs = [
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
            correlation = spearman(x, y, seeds)
            found.append(judge(claim, correlation, side=side, published=source))  # type: ignore[arg-type]
        for claim, values in (("radius", radius), ("volume (Jensen)", volume)):
            some = poison > 0
            correlation = spearman(test[some], values[some], seeds[some])
            claim = f"{claim} rises with test accuracy among poisoned minima alone"
            found.append(judge(claim, correlation, side="above"))
        if most.any() and (poison == 0).any() and poison.max() > 0:
            found.append(_gap(poison, volume, seeds))
    return found


def _gap(poison: np.ndarray, volume: np.ndarray, seeds: np.ndarray) -> Finding:
    def orders(columns: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
        share, nats = columns
        natural, bad = (weighted_mean(nats, weights * (share == one)) for one in (0, poison.max()))
        return (natural - bad) / math.log(10)

    gap = by_seed(orders, (poison, volume), seeds)
    claim = f"natural basins are larger than with {poison.max():g}, orders of magnitude (Jensen)"
    return judge(claim, gap, side="above", published="larger", digits=0)


# ---- files ----


def write_table(path: Path, basins: Sequence[Basin]) -> Path:
    """One row a minimum: its name, settings, measures, and what was measured of its basin."""
    settings = sorted({name for one in basins for name in one.minimum.settings})
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "seed", *settings, *MEASURES, *MEASURED])
        for one in basins:
            numbers = [one.minimum.settings.get(name, math.nan) for name in settings]
            numbers += [value_of(one, name) for name in (*MEASURES, *MEASURED)]
            cells = [f"{number:.8g}" for number in numbers]
            writer.writerow([one.minimum.name, one.minimum.seed, *cells])
    return path


def findings_table(findings: Sequence[Finding]) -> list[str]:
    """Lines of Markdown."""
    lines = ["| claim | published | verdict | found (95 %) |", "|---|---|---|---|"]
    return lines + [
        f"| {one.claim} | {one.published or 'no'} | {one.verdict} | {one.found} |"
        for one in findings
    ]


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
    path.write_text("\n".join(lines) + "\n")
    return path


def by_share(basins: Sequence[Basin]) -> list[str]:
    """Lines of Markdown, a row a share of poison: means and their intervals over seeds."""
    names = ("train_accuracy", "test_accuracy", "poison_accuracy", "radius", "jensen", "log_volume")
    lines = [
        "| poison | minima | train loss (median) | " + " | ".join(names) + " | effective samples, "
        "least, median | censored |",
        "|---|---|---|" + "---|" * (len(names) + 2),
    ]
    for share in sorted({one.minimum.poison for one in basins}):
        group = [one for one in basins if one.minimum.poison == share]
        seeds = column(group, "seed")
        cells = [
            mean_interval(column(group, name), seeds).text(
                digits=1 if name in ("jensen", "log_volume") else 4
            )
            for name in names
        ]
        samples = column(group, "effective_samples")
        samples = samples[np.isfinite(samples)]
        told = f"{samples.min():.1f}, {np.median(samples):.1f}" if samples.size else "none"
        censored = column(group, "censored")
        lost = f"{100 * censored[np.isfinite(censored)].mean():.1f} %" if samples.size else "none"
        loss = np.median(column(group, "train_loss"))
        lines.append(
            f"| {share:g} | {len(group)} | {loss:.2g} | {' | '.join(cells)} | {told} | {lost} |"
        )
    return lines
