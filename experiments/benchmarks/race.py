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
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from densejax import metrics
from densejax.cli import option
from densejax.plots.curves import learning_curves
from densejax.segmentation import sources
from densejax.training.folders import read_metrics
from experiments.benchmarks import measure
from experiments.benchmarks.measure import Row, Rows

COLUMNS = ("contender", "CPU s", "wall s", "MIoU")


@dataclass(frozen=True)
class Config(measure.Options):
    """Who runs, and for how long."""

    name: str = option("race", "of the report's files")
    scratch: str = option("race", "folder of the runs")
    data_folder: str = option("", "folder of the VNC set")
    seconds: float = option(375.0, "CPU seconds of a member", fast=150.0)
    whole: bool = option(False, "--seconds are for all members of a run together")
    members: tuple[int, ...] = option((8,), "members of each run of densejax", fast=(1,))
    peer_python: str = option(
        "", "interpreter with PyTorch and MONAI; without it MONAI is left out"
    )
    peer_seeds: int = option(1, "runs of MONAI")
    flags: tuple[str, ...] = option(
        (), "more flags for experiments.segment, such as network=hybrid", fast=("nobaseline",)
    )

    def __post_init__(self) -> None:
        if self.seconds < 30:
            raise ValueError(f"--seconds={self.seconds:g}: expected at least 30")


def miou_of(truth: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, Any]:
    """MIoU and the IoU of each class, over labelled voxels of the whole volume."""
    table = metrics.confusion_counts(truth, predicted.astype(np.int32), classes=classes)
    found = np.asarray(metrics.iou(table))
    return {"miou": float(found.mean()), "iou": [round(float(value), 4) for value in found]}


def densejax_rows(config: Config, members: int, parts: sources.Parts) -> tuple[Rows, Path]:
    """One run of ``experiments.segment``: its members, its Top-k, and its forest."""
    cores = sorted(os.sched_getaffinity(0))
    used = min(len(cores), members)
    total = config.seconds * (1 if config.whole else members)
    workdir = Path(config.scratch) / f"{config.name}_{members}"
    command = [
        *(sys.executable, "-m", "experiments.segment", "--data=vnc"),
        *(f"--data_folder={config.data_folder}", f"--seeds=0:{members}"),
        *(f"--minutes={total / used / 60:.3f}", f"--workdir={workdir}"),
        *(f"--{flag}" for flag in config.flags),
    ]
    cpu, wall = measure.timed(command, core=cores[0] if members == 1 else None)
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


def monai_row(config: Config, seed: int, parts: sources.Parts) -> Row:
    """One run of the practitioner's script."""
    scratch = Path(config.scratch)
    split = scratch / "split.npz"
    if not split.exists():
        arrays = {
            f"{name}_{kind}": getattr(getattr(parts, name), kind)
            for name in ("train", "test")
            for kind in ("images", "labels")
        }
        np.savez(split, **arrays)
    out = scratch / f"{config.name}_monai_{seed}"
    script = str(Path(__file__).parent / "monai_unet.py")
    words = [f"--split={split}", f"--seconds={config.seconds}", f"--seed={seed}", f"--out={out}"]
    command = [config.peer_python, "-P", script, *words]
    cpu, wall = measure.timed(command, core=min(os.sched_getaffinity(0)))
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


def run(config: Config) -> None:
    """Run the contenders in turn; the report grows by each."""
    Path(config.scratch).mkdir(parents=True, exist_ok=True)
    options = sources.DataOptions(data="vnc", data_folder=config.data_folder)
    parts = sources.load_parts(options)
    columns = (*COLUMNS, *parts.class_names)
    report = measure.Report(config.name, "The race on the VNC stack", columns, config)
    report.more = {"seconds": config.seconds, "whole": config.whole}
    for members in report.each(config.members, called="{} members".format):
        rows, workdir = densejax_rows(config, members, parts)
        # One forest is enough, however many runs had it.
        seen = {row["contender"] for row in report.rows}
        report.rows += [row for row in rows if row["contender"] not in seen]
        path = Path(config.out) / f"{config.name}.png"
        draw_curve(workdir, rows[0]["CPU s"], members, path)
    for seed in report.each(range(config.peer_seeds if config.peer_python else 0)):
        report.rows.append(monai_row(config, seed, parts))


if __name__ == "__main__":
    measure.main(Config, run, description=__doc__)
