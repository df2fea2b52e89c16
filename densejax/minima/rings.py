"""What a study of gaps leaves behind: basins of several runs side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from densejax.minima.boundaries import class_probabilities, plane_grid
from densejax.minima.reading import Basin, column, measure_basins, read_minima, stacked
from densejax.minima.report import (
    Finding,
    Summary,
    findings_table,
    judge,
    write_table,
)
from densejax.minima.statistics import by_seed, mean_interval, weighted_mean
from densejax.plots.basins import radius_histograms
from densejax.plots.boundaries import decision_boundaries

PANELS = 5


def summarise(
    folders: Mapping[str, Path],
    folder: Path,
    *,
    directions: int = 3000,
    cutoff: float = 0.1,
    seed: int = 0,
) -> Summary:
    """Measure the basins of runs whose members share their seeds, and compare them.

    Args:
      folders: of the runs, by name; the first is claimed to have the wider basins.
      folder: takes the files; made if absent.
      directions: of each basin; 0 measures none.
      cutoff: training loss at which a basin ends.
      seed: of the directions.

    Returns:
      The basins of all runs, findings and files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[str, list[Basin]] = {}
    files, failed = [], []
    for name, run in folders.items():
        problem, minima, lost = read_minima(run)
        failed += [f"{name}: {one}" for one in lost]
        groups[name] = [Basin(one) for one in minima]
        if directions:
            key = jax.random.key(seed)
            groups[name] = measure_basins(
                key, problem, minima, folder=run / "radii", directions=directions, cutoff=cutoff
            )
        short = name.split()[0]
        files.append(write_table(folder / f"minima_{short}.csv", groups[name]))
        x, y = plane_grid(span=1.05, points=400)
        some = minima[:PANELS]
        found = class_probabilities(problem.logits_of, stacked(some), x, y, stacked=True)
        panels = {f"seed {one.seed}": field for one, field in zip(some, found, strict=True)}
        points = np.asarray(problem.train.points)
        path = folder / f"boundaries_{short}.png"
        decision_boundaries(points, problem.train.labels, x, y, panels, title=name, path=path)
        files.append(path)
    findings = _find(groups)
    files += _draw(folder, groups)
    files.append(_write(folder / "findings.md", groups, findings, failed, cutoff, directions))
    print(f"{sum(map(len, groups.values()))} minima, {len(failed)} failed; see {folder}")
    every = [one for group in groups.values() for one in group]
    return Summary(tuple(every), tuple(findings), tuple(files), len(failed))


def _find(groups: Mapping[str, Sequence[Basin]]) -> list[Finding]:
    findings = []
    for name, group in groups.items():
        exact = mean_interval(column(group, "train_accuracy") == 1, column(group, "seed"))
        verdict = "seen" if exact.value == 1 else "not seen"
        claim = f"{name}: part of the minima that fit every point"
        findings.append(Finding(claim, "all", verdict, exact.text()))
    names = list(groups)
    for other in names[1:]:
        wide, narrow = (
            {one.minimum.seed: one.radius for one in groups[name]} for name in (names[0], other)
        )
        seeds = sorted(wide.keys() & narrow.keys())
        ratios = np.log([wide[s] / narrow[s] for s in seeds])
        ratio = by_seed(lambda columns, w: np.exp(weighted_mean(columns[0], w)), (ratios,), seeds)
        claim = f"{names[0]} has wider basins than {other}: ratio of mean radii, paired by seed"
        findings.append(judge(claim, ratio, side="above", level=1.0, published="wider (a picture)"))
    return findings


def _draw(folder: Path, groups: Mapping[str, Sequence[Basin]]) -> list[Path]:
    rows = {
        f"{name.split()[0]}, seed {one.minimum.seed}": (name, one.radii)
        for name, group in groups.items()
        for one in group
        if one.radii is not None
    }
    if not rows:
        return []
    path = folder / "radii.png"
    radius_histograms(
        {name: radii.radius for name, (_, radii) in rows.items()},
        groups=[group for group, _ in rows.values()],
        censored={name: radii.censored for name, (_, radii) in rows.items()},
        title="rings",
        path=path,
    )
    return [path]


def _write(
    path: Path,
    groups: Mapping[str, Sequence[Basin]],
    findings: Sequence[Finding],
    failed: Sequence[str],
    cutoff: float,
    directions: int,
) -> Path:
    digits = {"train_loss": 8, "radius": 4, "jensen": 0, "effective_samples": 1, "censored": 3}
    lines = [
        "# Minima of the rings",
        "",
        f"{directions} directions a minimum, cutoff {cutoff:g}; minima with a training loss above "
        "it have no basin. Intervals are 95 % percentile bootstrap over seeds, which are paired: a "
        "seed has the same initial parameters and directions at every gap.",
        "",
    ]
    if failed:
        lines += [f"Failed: {', '.join(failed)}.", ""]
    lines += [*findings_table(findings), ""]
    lines += ["| gap | minima | basins | " + " | ".join(digits) + " |"]
    lines += ["|---|---|---|" + "---|" * len(digits)]
    for gap, group in groups.items():
        cells = [
            mean_interval(column(group, name), column(group, "seed")).text(digits=places)
            for name, places in digits.items()
        ]
        basins = sum(one.radii is not None for one in group)
        lines.append(f"| {gap} | {len(group)} | {basins} | {' | '.join(cells)} |")
    path.write_text("\n".join(lines) + "\n")
    return path
