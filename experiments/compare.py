"""Do these sweeps differ, and is any of them two populations in one?

Question: the peak score of a network varies from seed to seed. Is the difference between two
networks larger than that, and do the seeds of one network fall into a good and a bad group (which
the thesis asks in figure 4.12 and leaves open)?

Data: folders of finished runs, each with ``seeds/*/metrics.jsonl``.

Command::

    python -m experiments.compare runs/hybrid runs/unet --score=miou --workdir=compare

Result: a table of the runs (median with its bootstrap interval, quartiles, best, one Gaussian
against two by BIC), a table of the pairs (Mann-Whitney p, adjusted by Holm, and effect size), both
printed and written as ``runs.csv``, ``pairs.csv`` and ``comparison.json``, and ``histogram.png``.
A few seconds. Exit status 0; 2 where the arguments or a run are not usable.
"""

import dataclasses
import itertools
import json
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from densejax import stats
from densejax.cli import main, option
from densejax.io import write_csv, write_json
from densejax.plots import scores as pictures

OUTPUTS = ("runs.csv", "pairs.csv", "comparison.json", "histogram.png")
FAST_RESAMPLES = 200


@dataclasses.dataclass(frozen=True)
class Config:
    """What to compare. Each field is a flag, but for ``runs``, which are the arguments."""

    runs: tuple[str, ...] = option((), "folders of runs", positional=True)
    score: str = option("miou", "name in metrics.jsonl")
    peak: str = option("max", "best of a seed: max or min")
    until: int = option(0, "count rows up to this step alone: runs of other lengths at one; 0: all")
    confidence: float = option(0.95, "of intervals, in 0..1")
    resamples: int = option(
        10_000,
        "bootstrap populations",
        fast=lambda config: min(config.resamples, FAST_RESAMPLES),
    )
    seed: int = option(0, "of the bootstrap and the fits")
    unfinished: bool = option(False, "also count seeds that are still training")
    overwrite: bool = option(False, "replace an older comparison in the workdir")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The peak score of each seed of one run, and how many seeds gave none."""

    name: str
    scores: dict[str, float]
    failed: int
    unfinished: int


def read_sweep(folder: Path, config: Config, *, name: str) -> Sweep:
    """Read the peak scores of one run.

    A seed with a FAILED file, or whose score was never finite, is failed. One without a DONE file
    is unfinished, and left out unless asked for.

    Raises:
      FileNotFoundError: the folder is not there, or is not that of a run.
      ValueError: no seed is left, a seed has no row with the score, or a file is broken.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected the folder of a run")
    if not (folder / "seeds").is_dir():
        raise FileNotFoundError(f"{folder}: not a run; expected a folder seeds/ in it")
    better = max if config.peak == "max" else min
    peaks: dict[str, float] = {}
    failed = unfinished = 0
    for seed in sorted(p for p in (folder / "seeds").iterdir() if p.is_dir()):
        if (seed / "FAILED").exists():
            failed += 1
            continue
        if not (seed / "DONE").exists() and not config.unfinished:
            unfinished += 1
            continue
        values = _scores(seed / "metrics.jsonl", config.score, until=config.until)
        finite = [v for v in values if math.isfinite(v)]
        if finite:
            peaks[seed.name] = better(finite)
        else:
            failed += 1
    if not peaks:
        raise ValueError(
            f"{folder}: no seed finished ({failed} failed, {unfinished} unfinished); expected at "
            "least one (--unfinished counts those still training)"
        )
    return Sweep(name, peaks, failed, unfinished)


def _scores(file: Path, score: str, *, until: int) -> list[float]:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; expected one for each finished seed")
    rows = list(_rows(file))
    scored = [row for row in rows if score in row]
    values = [row[score] for row in scored if not until or row["step"] <= until]
    if scored and not values:
        raise ValueError(
            f"{file}: no {score!r} up to step {until}; the first is at step {scored[0]['step']}"
        )
    if not values:
        names = sorted({key for row in rows for key in row if _is_number(row[key])} - {"step"})
        raise ValueError(f"{file}: no row has the score {score!r}; it has {', '.join(names)}")
    # A score that is not a number of JSON's was written as null where it was not finite.
    return [float(v) if _is_number(v) else math.nan for v in values]


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    lines = file.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            if number == len(lines):  # a run killed while it wrote leaves half a last line
                return
            raise ValueError(f"{file}, line {number}: not JSON: {line[:60]!r}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{file}, line {number}: {line[:60]!r}; expected a JSON object")
        yield row


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def names_of(folders: Sequence[Path]) -> list[str]:
    """The last part of each path, or as many more as it takes to tell them apart.

    Raises:
      ValueError: a folder is given twice.
    """
    paths = [folder.resolve() for folder in folders]
    for path in paths:
        if paths.count(path) > 1:
            raise ValueError(f"{path}: given twice; expected different runs")
    for depth in range(1, max(len(p.parts) for p in paths) + 1):
        names = ["/".join(p.parts[-depth:]) for p in paths]
        if len(set(names)) == len(names):
            break
    return names


def describe(sweep: Sweep, config: Config) -> dict[str, Any]:
    """One row of the table of runs; what needs two scores is None where there is one."""
    values = list(sweep.scores.values())
    summary = stats.five_numbers(values)
    interval = stats.bootstrap_median(
        values, seed=config.seed, resamples=config.resamples, confidence=config.confidence
    )
    two = stats.bimodality(values, seed=config.seed) if len(values) > 1 else None
    return {
        "run": sweep.name,
        "seeds": summary.count,
        "failed": sweep.failed,
        "unfinished": sweep.unfinished,
        "median": summary.median,
        "median_low": interval.low,
        "median_high": interval.high,
        "lower_quartile": summary.lower_quartile,
        "upper_quartile": summary.upper_quartile,
        "minimum": summary.minimum,
        "maximum": summary.maximum,
        "delta_bic": two.delta_bic if two else None,
        "modes": two.modes if two else None,
        "bimodal": two.bimodal if two else None,
        "lower_mean": two.means[0] if two else None,
        "upper_mean": two.means[1] if two else None,
        "upper_weight": two.weights[1] if two else None,
    }


def compare_pairs(sweeps: Sequence[Sweep]) -> list[dict[str, Any]]:
    """One row for each two runs: the test of Mann and Whitney and the size of the effect."""
    rows = []
    for a, b in itertools.combinations(sweeps, 2):
        first, second = list(a.scores.values()), list(b.scores.values())
        test = stats.mann_whitney(first, second)
        rows.append({"a": a.name, "b": b.name, **dataclasses.asdict(test)})
    for row, p in zip(rows, stats.holm([r["p_value"] for r in rows]), strict=True):
        row["p_holm"] = float(p)
    return rows


def run(config: Config, workdir: Path) -> dict[str, Any]:
    """Compare the runs; print and write the tables and the picture; return the tables.

    Raises:
      FileExistsError, FileNotFoundError, ValueError: as ``compare_runs``.
    """
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        result = compare_runs(config, workdir)
    print(as_text(result))
    for note in dict.fromkeys(str(n.message) for n in notes):
        print(f"note: {note}", file=sys.stderr)
    print(f"\nwritten to {workdir}/: {', '.join(OUTPUTS)}")
    return result


def compare_runs(config: Config, workdir: Path) -> dict[str, Any]:
    """Compare the runs, write the tables and the picture, and return the tables.

    Raises:
      FileExistsError: the workdir holds a comparison and ``overwrite`` is off.
      FileNotFoundError, ValueError: as ``read_sweep``; there are fewer than two runs; or an option
        is out of range.
    """
    if len(config.runs) < 2:
        raise ValueError(f"{len(config.runs)} runs given: expected two or more folders of runs")
    if config.peak not in ("max", "min"):
        raise ValueError(f"peak is {config.peak!r}: expected max or min")
    old = [workdir / name for name in OUTPUTS if (workdir / name).exists()]
    if old and not config.overwrite:
        raise FileExistsError(f"{old[0]} exists; give --overwrite or another --workdir")
    folders = [Path(r) for r in config.runs]
    sweeps = [
        read_sweep(folder, config, name=name)
        for folder, name in zip(folders, names_of(folders), strict=True)
    ]
    result: dict[str, Any] = {
        "config": dataclasses.asdict(config),
        "runs": [describe(sweep, config) for sweep in sweeps],
        "pairs": compare_pairs(sweeps),
        "scores": {sweep.name: sweep.scores for sweep in sweeps},
    }
    workdir.mkdir(parents=True, exist_ok=True)
    for table in ("runs", "pairs"):
        rows = result[table]
        write_csv(workdir / f"{table}.csv", rows[0], [row.values() for row in rows])
    write_json(workdir / "comparison.json", result, indent=2)
    shown = config.score.replace("_", " ").replace("miou", "MIoU")
    pictures.score_histogram(
        {sweep.name: list(sweep.scores.values()) for sweep in sweeps},
        path=workdir / "histogram.png",
        intervals={row["run"]: (row["median_low"], row["median_high"]) for row in result["runs"]},
        label=f"{'peak' if config.peak == 'max' else 'lowest'} {shown} of a seed",
    )
    return result


def as_text(result: dict[str, Any]) -> str:
    """Both tables, aligned, for a terminal."""
    percent = f"{100 * result['config']['confidence']:g}%"
    head = ["run", "seeds", "failed", "unfinished", "median", percent, "quartiles", "best"]
    best = result["config"]["peak"] + "imum"
    runs = [[*head, "ΔBIC", "peaks", "bimodal"]]
    for r in result["runs"]:
        counts = [str(r[key]) for key in ("seeds", "failed", "unfinished")]
        interval = f"{r['median_low']:.4f}..{r['median_high']:.4f}"
        quartiles = f"{r['lower_quartile']:.4f}..{r['upper_quartile']:.4f}"
        delta = ["-"] * 3
        if r["delta_bic"] is not None:
            delta = [f"{r['delta_bic']:+.1f}", str(r["modes"]), "yes" if r["bimodal"] else "no"]
        figures = [f"{r['median']:.4f}", interval, quartiles, f"{r[best]:.4f}"]
        runs.append([r["run"], *counts, *figures, *delta])
    pairs = [["a", "b", "U", "p", "p (Holm)", "P(a > b)", "rank-biserial"]]
    for p in result["pairs"]:
        tests = [f"{p['u']:g}", f"{p['p_value']:.3g}", f"{p['p_holm']:.3g}"]
        effect = [f"{p['common_language']:.3f}", f"{p['rank_biserial']:+.3f}"]
        pairs.append([p["a"], p["b"], *tests, *effect])
    return f"{_aligned(runs, 1)}\n\n{_aligned(pairs, 2)}"


def _aligned(rows: list[list[str]], names: int) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(c.ljust(w) if i < names else c.rjust(w) for i, (c, w) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    )
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    main(Config, run, description=__doc__, workdir="compare", trains=False)
