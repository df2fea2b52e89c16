"""What does a user get for so much compute: densejax, a practitioner's MONAI script, a forest?

Every contender trains on the same sections of the VNC stack and is scored by one function on the
same test sections; budgets and figures are CPU seconds (user and system) of whole processes, start,
compilation and prediction included, except that MONAI's budget is for its training alone:

    python -m experiments.benchmarks.race --data_folder=DATA/vnc --members=8 --scratch=DIR
    python -m experiments.benchmarks.race --data_folder=DATA/vnc --members=1,2 --seconds=1450 \\
        --whole --scratch=DIR --name=race_1450

densejax is ``experiments.segment`` as a user starts it, with ``--minutes`` that make ``--seconds``
a member (with ``--whole``: for all members together) on the cores of this machine. MONAI
(``monai_unet.py``) runs on one core and thread in the interpreter ``--peer_python``, which has
PyTorch and MONAI; without one it is left out. Contenders take turns, one after another. Writes
``race.json``, ``race.md`` and ``race.png``, densejax' evaluation MIoU over CPU seconds.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from absl import app, flags, logging

from densejax import metrics
from densejax.plots.curves import learning_curves
from densejax.segmentation import sources
from densejax.training.folders import read_metrics
from experiments.benchmarks import measure

# Imported, a script keeps its flags to itself: the names recur in others.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()
OUT = flags.DEFINE_string(
    "out", str(Path(__file__).parent / "results"), "folder of the report", flag_values=FLAGS
)
NAME = flags.DEFINE_string("name", "race", "of the report's files", flag_values=FLAGS)
SCRATCH = flags.DEFINE_string("scratch", "race", "folder of the runs", flag_values=FLAGS)
DATA_FOLDER = flags.DEFINE_string("data_folder", "", "folder of the VNC set", flag_values=FLAGS)
SECONDS = flags.DEFINE_float(
    "seconds", 375.0, "CPU seconds of a member", lower_bound=30, flag_values=FLAGS
)
WHOLE = flags.DEFINE_bool(
    "whole", False, "--seconds are for all members of a run together", flag_values=FLAGS
)
MEMBERS = flags.DEFINE_list("members", ["8"], "members of each run of densejax", flag_values=FLAGS)
PEER_PYTHON = flags.DEFINE_string(
    "peer_python", "", "interpreter with PyTorch and MONAI", flag_values=FLAGS
)
PEER_SEEDS = flags.DEFINE_integer("peer_seeds", 1, "runs of MONAI", flag_values=FLAGS)
FLAGS_OF_RUN = flags.DEFINE_list(
    "flags", [], "more flags for experiments.segment, such as network=hybrid", flag_values=FLAGS
)

COLUMNS = ("contender", "CPU s", "wall s", "MIoU")


def miou_of(truth: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, Any]:
    """MIoU and the IoU of each class, over labelled voxels of the whole volume."""
    table = metrics.confusion_counts(truth, predicted.astype(np.int32), classes=classes)
    found = np.asarray(metrics.iou(table))
    return {"miou": float(found.mean()), "iou": [round(float(value), 4) for value in found]}


def timed(command: Sequence[str], *, one_core: bool = False) -> tuple[float, float]:
    """CPU and wall seconds of a command.

    Raises:
      RuntimeError: it failed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    pinned = measure.pinned(min(os.sched_getaffinity(0))) if one_core else []
    done = subprocess.run([*pinned, *command])
    wall = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with code {done.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def densejax_rows(
    scratch: Path, members: int, parts: sources.Parts
) -> tuple[list[dict[str, Any]], Path]:
    """One run of ``experiments.segment``: its members, its Top-k, and its forest."""
    cores = min(len(os.sched_getaffinity(0)), members)
    total = SECONDS.value * (1 if WHOLE.value else members)
    workdir = scratch / f"{NAME.value}_{members}"
    command = [
        *(sys.executable, "-m", "experiments.segment", "--data=vnc"),
        *(f"--data_folder={DATA_FOLDER.value}", f"--seeds=0:{members}"),
        *(f"--minutes={total / cores / 60:.3f}", f"--workdir={workdir}"),
        *(f"--{flag}" for flag in FLAGS_OF_RUN.value),
    ]
    cpu, wall = timed(command, one_core=members == 1)
    numbers = json.loads((workdir / "summary" / "summary.json").read_text())
    classes = len(parts.class_names)
    labels = tifffile.imread(workdir / "summary" / "test_labels.tif")
    common = {"CPU s": cpu, "wall s": wall, "members": members}
    rows = [
        common
        | {"contender": f"densejax, all {members} together", "run": workdir.name}
        | _scored(miou_of(parts.test.labels, labels, classes), parts)
    ]
    if members > 1:
        rows += [
            common | {"contender": f"densejax, {name} of {members}", "MIoU": numbers["test"][key]}
            for name, key in (
                ("median member", "median_single"),
                ("best member", "best_single"),
                (f"Top-{numbers['top_k']} (k by evaluation)", "top_k"),
            )
        ]
    if "random_forest" in numbers:
        forest = numbers["random_forest"]
        rows.append(
            {
                "contender": "random forest on filters",
                "wall s": forest["seconds"],
                "MIoU": forest["test"],
            }
        )
    return rows, workdir


def monai_row(scratch: Path, seed: int, parts: sources.Parts) -> dict[str, Any]:
    """One run of the practitioner's script."""
    split = scratch / "split.npz"
    if not split.exists():
        arrays = {
            f"{name}_{kind}": getattr(getattr(parts, name), kind)
            for name in ("train", "test")
            for kind in ("images", "labels")
        }
        np.savez(split, **arrays)
    out = scratch / f"{NAME.value}_monai_{seed}"
    script = str(Path(__file__).parent / "monai_unet.py")
    words = [f"--split={split}", f"--seconds={SECONDS.value}", f"--seed={seed}", f"--out={out}"]
    cpu, wall = timed([PEER_PYTHON.value, "-P", script, *words], one_core=True)
    found = np.load(out.with_suffix(".npy"))
    record = json.loads(out.with_suffix(".json").read_text())
    row = {"contender": f"MONAI 2-D DynUNet, seed {seed}", "CPU s": cpu, "wall s": wall}
    scored = _scored(miou_of(parts.test.labels, found, len(parts.class_names)), parts)
    return row | scored | {"steps": record["steps"], "training CPU s": record["training_cpu_s"]}


def _scored(score: dict[str, Any], parts: sources.Parts) -> dict[str, Any]:
    named = dict(zip(parts.class_names, score["iou"], strict=True))
    return {"MIoU": round(score["miou"], 4)} | named


def draw_curve(workdir: Path, cpu: float, members: int, path: Path) -> None:
    """Evaluation MIoU of each seed over the CPU seconds of a member."""
    tables = [
        {row["step"]: row["miou"] for row in read_metrics(file) if "miou" in row}
        for file in sorted(workdir.glob("seeds/*/metrics.jsonl"))
    ]
    steps = np.array(sorted(set().union(*tables)))
    scores = np.array([[table.get(step, np.nan) for step in steps] for table in tables], float)
    seconds = steps / steps[-1] * cpu / members
    learning_curves(
        seconds,
        scores,
        path=path,
        label="evaluation MIoU",
        step_label="CPU seconds of a member (steps, scaled to the whole run)",
    )


def run(argv: Sequence[str]) -> None:
    """Run the contenders in turn and write the report after each."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; flags begin with --")
    logging.set_verbosity(logging.WARNING)
    scratch, out = Path(SCRATCH.value), Path(OUT.value)
    scratch.mkdir(parents=True, exist_ok=True)
    config = sources.DataOptions(data="vnc", data_folder=DATA_FOLDER.value)
    parts = sources.load_parts(config)
    where, rows = measure.machine(), []
    columns = (*COLUMNS, *parts.class_names)
    for members in map(int, MEMBERS.value):
        found, workdir = densejax_rows(scratch, members, parts)
        rows += found
        _write(out, where, rows, columns)
        draw_curve(workdir, found[0]["CPU s"], members, out / f"{NAME.value}.png")
    for seed in range(PEER_SEEDS.value if PEER_PYTHON.value else 0):
        rows.append(monai_row(scratch, seed, parts))
        _write(out, where, rows, columns)


def _write(
    out: Path, where: dict[str, Any], rows: list[dict[str, Any]], columns: Sequence[str]
) -> None:
    # One forest is enough, however many runs had it.
    seen, kept = set(), []
    for row in rows:
        if row["contender"] not in seen:
            kept.append(row)
        seen.add(row["contender"])
    title = measure.heading("The race on the VNC stack", where, {})
    measure.write(
        out,
        NAME.value,
        result={"machine": where, "seconds": SECONDS.value, "whole": WHOLE.value, "rows": kept},
        text=f"{title}\n{measure.markdown(kept, columns)}",
    )


if __name__ == "__main__":
    app.run(run)
