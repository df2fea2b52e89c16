"""What is each part of the planned recipe worth on the VNC stack?

Every row is ``experiments.segment`` with one thing changed, the same seeds and the same steps, so
that a row's difference to the whole recipe is taken seed by seed:

    python -m experiments.benchmarks.ablation --data_folder=DATA/vnc --scratch=DIR

Runs are pinned to one core each, ``--jobs`` of them side by side; one that has ended is not run
again. Writes ``ablation.json`` and ``ablation.md``: test MIoU of the members, the mean difference
with its 95 % interval (paired t), all members together, CPU seconds a member with everything.
"""

import csv
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from densejax.cli import option
from densejax.data.augment import PLANNED
from experiments.benchmarks import measure

WHOLE = "the whole recipe"
INTENSITY = {
    f"augmentation.{name}": "0"
    for name in ("brightness", "contrast", "gamma", "low_resolution", "blur", "noise")
}
GEOMETRY = {"augmentation.resampling": "0", "augmentation.quarter_turns": "false"}
# Of what augmentation.PLANNED has.
HALF = {
    f"augmentation.{name}": str(getattr(PLANNED, name) / 2)
    for name in (*(flag.split(".")[1] for flag in INTENSITY), "resampling")
}
CHANGES: dict[str, dict[str, str]] = {
    WHOLE: {},
    "no norm": {"norm": "none"},
    "no Dice": {"loss": "cross_entropy"},
    "windows of 64 x 64, as many voxels": {"window": "1,64,64", "batch": "32"},
    "no sampling by class": {"class_share": "0"},
    "flips and turns alone": INTENSITY | {"augmentation.resampling": "0"},
    "flips, turns and resampling alone": INTENSITY,
    "flips, turns and grey levels alone": {"augmentation.resampling": "0"},
    "augmentation at half its strength": HALF,
    "no augmentation": INTENSITY | GEOMETRY | {"augmentation.reflections": ""},
    "full resolution (stem 1, width 8)": {"stem": "1"},
    "half resolution (stem 2, width 16)": {"stem": "2"},
    "weights averaged (0.99)": {"average": "0.99"},
    "one view in prediction": {"views": "one"},
}
COLUMNS = ("recipe", "members", "difference", "95 %", "p", "together", "CPU s")


@dataclass(frozen=True)
class Config(measure.Options):
    """Which rows are run, and where."""

    scratch: str = option("ablation", "folder of the runs")
    data_folder: str = option("", "folder of the VNC set")
    seeds: int = option(5, "members of each run", fast=2)
    steps: int = option(500, "of each member", fast=10)
    jobs: int = option(2, "runs side by side")
    only: tuple[str, ...] = option((), "rows, by their beginnings; default: all", fast=("one",))

    def __post_init__(self) -> None:
        if self.seeds < 2 or self.steps < 10 or self.jobs < 1:
            raise ValueError("expected at least --seeds=2, --steps=10 and --jobs=1")


def folder_of(name: str, config: Config) -> Path:
    """Of a row's run; prediction alone differs where it trains nothing of its own."""
    trained = WHOLE if set(CHANGES[name]) == {"views"} else name
    return Path(config.scratch) / "".join(c if c.isalnum() else "_" for c in trained)


def run_one(name: str, config: Config, core: int) -> dict[str, Any]:
    """Train and score one row, on one core; as it was, where that is done.

    Raises:
      RuntimeError: the run failed.
    """
    workdir = folder_of(name, config)
    record = workdir.with_name(f"{workdir.name}_{len(CHANGES[name])}.json")
    if record.exists():
        return json.loads(record.read_text())
    command = [
        *(sys.executable, "-m", "experiments.segment", "--data=vnc", "--baseline=false"),
        *(f"--data_folder={config.data_folder}", f"--seeds=0:{config.seeds}"),
        *(f"--steps={config.steps}", f"--workdir={workdir}"),
        *(f"--{flag}={value}" for flag, value in CHANGES[name].items()),
    ]
    cpu, wall = measure.timed(command, core=core, log=workdir.with_suffix(".log"))
    numbers = json.loads((workdir / "summary" / "summary.json").read_text())
    with (workdir / "summary" / "top_k.csv").open() as file:
        alone = {row["member"]: float(row["test_alone"]) for row in csv.DictReader(file)}
    found = {
        "members": [alone[member] for member in sorted(alone)],
        "together": numbers["test"]["all"],
        "cpu_s": cpu / config.seeds,
        "wall_s": wall,
    }
    record.write_text(json.dumps(found))
    return found


def table(found: dict[str, dict[str, Any]]) -> measure.Rows:
    """Rows of the report; differences are of the same seeds."""
    rows = []
    base = np.array(found[WHOLE]["members"])
    for name, row in found.items():
        scores = np.array(row["members"])
        cells = {
            "recipe": name,
            "members": f"{np.median(scores):.3f} ({scores.min():.3f} to {scores.max():.3f})",
            "together": f"{row['together']:.3f}",
            "CPU s": f"{row['cpu_s']:.0f}" if name != "one view in prediction" else "",
        }
        if name != WHOLE:
            test = stats.ttest_rel(scores, base)
            low, high = test.confidence_interval(0.95)
            cells |= {
                "difference": f"{np.mean(scores - base):+.3f}",
                "95 %": f"{low:+.3f} to {high:+.3f}",
                "p": f"{test.pvalue:.2g}",
            }
        rows.append(cells)
    return rows


def run(config: Config) -> None:
    """Run what is asked for; the report grows by each row."""
    chosen = [
        name
        for name in CHANGES
        if name == WHOLE or not config.only or name.startswith(tuple(config.only))
    ]
    Path(config.scratch).mkdir(parents=True, exist_ok=True)
    report = measure.Report("ablation", "The planned recipe without its parts", COLUMNS, config)
    text = f"{config.steps} steps of {config.seeds} seeds each; test MIoU.\n"
    report.notes, report.more = [text], {"steps": config.steps, "changes": CHANGES}
    found: dict[str, Any] = {}
    cores = sorted(os.sched_getaffinity(0))[: config.jobs]
    # What predicts only goes last: its members are then trained.
    own = [n for n in chosen if n == WHOLE or folder_of(n, config) != folder_of(WHOLE, config)]
    for names in (own, [name for name in chosen if name not in own]):
        for name, row in _side_by_side(names, config, cores):
            found[name] = row
            if WHOLE in found:
                report.more["runs"] = {n: found[n] for n in chosen if n in found}
                report.rows = table(report.more["runs"])
                report.write()


def _side_by_side(
    names: Sequence[str], config: Config, cores: Sequence[int]
) -> Iterator[tuple[str, Any]]:
    free = list(cores)

    def one(name: str) -> dict[str, Any]:
        core = free.pop()
        try:
            return run_one(name, config, core)
        finally:
            free.append(core)

    with ThreadPoolExecutor(len(cores)) as pool:
        yield from zip(names, pool.map(one, names), strict=True)


if __name__ == "__main__":
    measure.main(Config, run, description=__doc__)
