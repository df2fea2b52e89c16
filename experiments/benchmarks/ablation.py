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
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging
from scipy import stats

from densejax.data.augment import PLANNED
from experiments.benchmarks import measure

# Imported, a script keeps its flags to itself: the names recur in others.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()
OUT = flags.DEFINE_string(
    "out", str(Path(__file__).parent / "results"), "folder of the report", flag_values=FLAGS
)
SCRATCH = flags.DEFINE_string("scratch", "ablation", "folder of the runs", flag_values=FLAGS)
DATA_FOLDER = flags.DEFINE_string("data_folder", "", "folder of the VNC set", flag_values=FLAGS)
SEEDS = flags.DEFINE_integer("seeds", 5, "members of each run", lower_bound=2, flag_values=FLAGS)
STEPS = flags.DEFINE_integer("steps", 500, "of each member", lower_bound=10, flag_values=FLAGS)
JOBS = flags.DEFINE_integer("jobs", 2, "runs side by side", lower_bound=1, flag_values=FLAGS)
ONLY = flags.DEFINE_list("only", [], "rows, by their beginnings; default: all", flag_values=FLAGS)

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


def folder_of(name: str) -> Path:
    """Of a row's run; prediction alone differs where it trains nothing of its own."""
    trained = WHOLE if set(CHANGES[name]) == {"views"} else name
    return Path(SCRATCH.value) / "".join(c if c.isalnum() else "_" for c in trained)


def run_one(name: str, core: int) -> dict[str, Any]:
    """Train and score one row, on one core.

    Raises:
      RuntimeError: the run failed.
    """
    workdir = folder_of(name)
    record = workdir.with_name(f"{workdir.name}_{len(CHANGES[name])}.json")
    if record.exists():
        return json.loads(record.read_text())
    command = [
        *measure.pinned(core),
        *(sys.executable, "-m", "experiments.segment", "--data=vnc", "--baseline=false"),
        *(f"--data_folder={DATA_FOLDER.value}", f"--seeds=0:{SEEDS.value}"),
        *(f"--steps={STEPS.value}", f"--workdir={workdir}"),
        *(f"--{flag}={value}" for flag, value in CHANGES[name].items()),
    ]
    start = time.perf_counter()
    with workdir.with_suffix(".log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{name} failed; see {log.name}")
    numbers = json.loads((workdir / "summary" / "summary.json").read_text())
    with (workdir / "summary" / "top_k.csv").open() as file:
        alone = {row["member"]: float(row["test_alone"]) for row in csv.DictReader(file)}
    found = {
        "members": [alone[member] for member in sorted(alone)],
        "together": numbers["test"]["all"],
        "cpu_s": (used.ru_utime + used.ru_stime) / SEEDS.value,
        "wall_s": time.perf_counter() - start,
    }
    record.write_text(json.dumps(found))
    return found


def table(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
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


def run(argv: Sequence[str]) -> None:
    """Run what is asked for and write the report."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; flags begin with --")
    logging.set_verbosity(logging.WARNING)
    chosen = [
        name
        for name in CHANGES
        if name == WHOLE or not ONLY.value or any(name.startswith(only) for only in ONLY.value)
    ]
    Path(SCRATCH.value).mkdir(parents=True, exist_ok=True)
    where, found = measure.machine(), {}
    cores = sorted(os.sched_getaffinity(0))[: JOBS.value]
    # What predicts only goes last: its members are then trained.
    trained = [name for name in chosen if folder_of(name) != folder_of(WHOLE) or name == WHOLE]
    for names in (trained, [name for name in chosen if name not in trained]):
        for name, row in _side_by_side(names, cores):
            found[name] = row
            if WHOLE in found:
                ordered = {name: found[name] for name in chosen if name in found}
                _write(where, table(ordered), ordered)


def _side_by_side(names: Sequence[str], cores: Sequence[int]) -> Iterator[tuple[str, Any]]:
    free = list(cores)

    def one(name: str) -> dict[str, Any]:
        core = free.pop()
        try:
            return run_one(name, core)
        finally:
            free.append(core)

    with ThreadPoolExecutor(len(cores)) as pool:
        yield from zip(names, pool.map(one, names), strict=True)


def _write(where: dict[str, Any], rows: list[dict[str, Any]], found: dict[str, Any]) -> None:
    title = measure.heading("The planned recipe without its parts", where, {})
    settings = f"{STEPS.value} steps of {SEEDS.value} seeds each; test MIoU.\n"
    measure.write(
        Path(OUT.value),
        "ablation",
        result={"machine": where, "steps": STEPS.value, "runs": found, "changes": CHANGES},
        text="\n".join([title, settings, measure.markdown(rows, COLUMNS)]),
    )


if __name__ == "__main__":
    app.run(run)
