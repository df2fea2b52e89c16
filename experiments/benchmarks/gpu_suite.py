"""Everything that only a machine with an accelerator can tell, in one run of at most ten minutes.

    python -m experiments.benchmarks.gpu_suite --data_folder=DATA/vnc --scratch=DIR
    python -m experiments.benchmarks.gpu_suite --small --scratch=DIR     a trial of minutes on a CPU

Each part is a process of its own with a limit of its own, and its result is in ``gpu_suite.json``
as soon as it is known: ``ok``, ``failed`` (with its last lines) or ``out of time``.

- ``ceiling``: TFLOP/s of a matrix product in float32, TF32 and bfloat16.
- ``steps``: a training step of the full-size hybrid and of the planned 2-D and 3-D networks, K
  instances by ``map`` and by ``vmap``, in float32 and bfloat16; and the largest difference of
  bfloat16 logits from float32 ones.
- ``vnc``: eight seeds on the VNC stack; seconds until the median reaches an evaluation MIoU of 0.6.
- ``selectors``: MASE and BASE on 1.28 million x 2048 features from disk.
- ``surface``: a plane of ResNet-20's loss.
- ``streaming``: voxels a second of a streamed prediction.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from densejax.cli import option
from densejax.data.augment import training_arrays
from densejax.data.sampling import class_table
from densejax.segmentation import recipes
from experiments import segment
from experiments.benchmarks import measure
from experiments.benchmarks.segmentation_step import Engine, fresh_slots

CLASSES = 5
LIMITS = {  # seconds
    "ceiling": 40,
    "steps": 210,
    "vnc": 150,
    "selectors": 80,
    "surface": 60,
    "streaming": 60,
}
REACHED = 0.6
VNC = ["--data=vnc", "--seeds=0:8", "--minutes=2"]
SMALL_POOL = ["--samples=20000", "--features=64", "--classes=20", "--budget=100"]


@dataclass(frozen=True)
class Config(measure.Options):
    """Which parts are run."""

    scratch: str = option("gpu_suite", "folder for volumes and runs")
    data_folder: str = option("", "folder of the VNC set")
    small: bool = option(False, "sizes for a trial on a CPU", fast=True)
    only: tuple[str, ...] = option((), "parts; all where empty", fast=("ceiling",))
    part: Literal["", "ceiling", "steps"] = option("", "what a child process measures")

    def __post_init__(self) -> None:
        measure.check_names(self.only, LIMITS)


def ceiling(small: bool) -> dict[str, Any]:
    """TFLOP/s of a square matrix product by precision."""
    size = 512 if small else 8192
    rates = {"bfloat16": measure.matmul_gflops(size=size, dtype=jnp.bfloat16) / 1000}
    for name, precision in (("float32", "highest"), ("tf32", "default")):
        with jax.default_matmul_precision(precision):
            rates[name] = measure.matmul_gflops(size=size) / 1000
    return {"size": size, "tflops": rates}


def steps(small: bool) -> dict[str, Any]:
    """Milliseconds a step and instance of three networks, by K, strategy and precision."""
    rows: list[dict[str, Any]] = []
    for name, config in _networks(small).items():
        data = _world(config.window or ())
        for precision in ("float32", "bfloat16"):
            chosen = replace(config, precision=precision)  # type: ignore[arg-type]
            for count, strategy in ((1, "map"), (4, "map"), (4, "vmap"), (16, "vmap")):
                if small and count > 1:
                    continue
                row: dict[str, Any] = {"network": name, "precision": precision, "K": count}
                row["strategy"] = strategy
                try:
                    row["ms"] = _step_ms(chosen, data, count, strategy)
                except Exception as error:  # out of memory is a result, too
                    row["failed"] = str(error).splitlines()[0][:200]
                rows.append(row)
                print(json.dumps(row), flush=True)
        rows.append({"network": name, "largest difference of logits": _parity(config, data)})
        print(json.dumps(rows[-1]), flush=True)
    return {"rows": rows}


def _networks(small: bool) -> dict[str, segment.Config]:
    common: dict[str, Any] = {"norm": "instance", "class_share": 0.5, "error_weights": "none"}
    common |= {"optimiser": "adamw", "schedule": "polynomial", "loss": "dice", "steps": 1000}
    common |= {"learning_rate": 3e-3, "reject_empty": 0.0, "recipe_version": 1}
    edge = 64 if small else 256
    two = segment.Config(
        network="planned_unet",
        dimensions="2d",
        width=8 if small else 32,
        window=(1, edge, edge),
        batch=2 if small else 8,
        strides=("1x2x2",) * 4,
        kernels=("1x3x3",) * 4,
        **common,
    )
    cube = replace(
        two,
        dimensions="3d",
        window=(8, 32, 32) if small else (16, 160, 160),
        batch=1 if small else 2,
        strides=("1x1x1", "1x2x2", "1x2x2", "2x2x2"),
        kernels=("1x3x3", "1x3x3", "3x3x3", "3x3x3"),
    )
    published = segment.Config(
        recipe="published", width=4 if small else 32, window=(5, 64, 64) if small else (5, 300, 300)
    )
    settled = {name: recipes.settle(c, None) for name, c in (("2d", two), ("3d", cube))}
    return {"hybrid": recipes.settle(published, None)} | settled


def _world(window: Sequence[int]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shape = [size + 4 for size in window]
    labels = rng.integers(0, CLASSES, shape).astype(np.int32)
    image = rng.standard_normal(shape).astype(np.float32)
    arrays = training_arrays(image, labels, weights=np.ones(shape, np.float32))
    return {n: np.asarray(a) for n, a in arrays.items()} | class_table(labels, CLASSES)


def _step_ms(config: segment.Config, data: Any, count: int, strategy: Any) -> float:
    _, task = segment.build(config, CLASSES)
    first = jax.local_devices()[:1]
    engine = Engine(task, fresh_slots(task, count), data, devices=first, strategy=strategy)
    engine.place(np.zeros(()))
    each, laps = 1 if jax.default_backend() == "cpu" else 10, []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(engine.step(each))
        laps.append(time.perf_counter() - start)
    return round(1000 * min(laps[1:]) / each / count, 3)


def _parity(config: segment.Config, data: Any) -> float:
    """Largest difference of bfloat16 logits from float32 at highest precision, of the largest."""
    networks = {
        p: segment.build(replace(config, precision=p), CLASSES)  # type: ignore[arg-type]
        for p in ("float32", "bfloat16")
    }
    params = networks["float32"][1].init_params(jax.random.key(0))
    z, y, x = config.window or ()
    image = jnp.asarray(data["image"])[None, :z, :y, :x, None]
    with jax.default_matmul_precision("highest"):
        exact = jax.jit(networks["float32"][1].network)(params, image)[0]
    found = jax.jit(networks["bfloat16"][1].network)(params, image)[0]
    return measure.agreed("bfloat16", found, exact, tolerance=np.inf)


def command_of(part: str, config: Config) -> list[str]:
    """The command of a part."""
    small, scratch = config.small, Path(config.scratch)
    module, words = f"experiments.benchmarks.{part}", [f"--out={scratch}"]
    if part in ("ceiling", "steps"):
        module = "experiments.benchmarks.gpu_suite"
        words = [f"--part={part}", *(["--small"] if small else [])]
    elif part == "vnc":
        module = "experiments.segment"
        words = [f"--workdir={scratch / 'vnc'}", "--nobaseline", "--strategy=auto"]
        words += ["--world=12,96,96", "--seeds=0:2", "--minutes=0.5"] if small else VNC
        words += [] if small else [f"--data_folder={config.data_folder}"]
    elif part == "selectors":
        module = "experiments.benchmarks.selector_scale"
        words += [f"--scratch={scratch}", *(SMALL_POOL if small else [])]
    elif part == "surface":
        module = "experiments.benchmarks.surfaces"
        words += ["--only=resnet20", "--cold=0"]
        words += ["--side=2", "--pictures=64"] if small else ["--side=16"]
    else:
        words += [f"--scratch={scratch / 'streaming'}", "--only=hybrid"]
        shape = ["--hybrid_shape=10,128,128", "--seconds=1"]
        words += shape if small else ["--hybrid_shape=100,2000,2000"]
    return ["-m", module, *words]


def attempt(part: str, config: Config) -> dict[str, Any]:
    """Run a part in a process of its own, within its limit."""
    start = time.perf_counter()
    # A trial on a CPU is for whether it works, not for how long it takes.
    limit = 600 if config.small else LIMITS[part]
    try:
        done = subprocess.run(
            [sys.executable, *command_of(part, config)],
            capture_output=True,
            text=True,
            timeout=limit,
        )
        said, status = done.stdout + done.stderr, "failed" if done.returncode else "ok"
    except subprocess.TimeoutExpired as ended:
        texts = (ended.stdout, ended.stderr)
        said = "".join(t.decode() if isinstance(t, bytes) else (t or "") for t in texts)
        status = "out of time"
    lines = said.strip().splitlines()
    found = {
        "status": status,
        "seconds": round(time.perf_counter() - start, 1),
        "said": lines[-12:],
    }
    if part == "vnc":
        found["seconds to MIoU"] = _seconds_to(Path(config.scratch) / "vnc", lines)
    return found


def _seconds_to(workdir: Path, lines: Sequence[str]) -> dict[str, Any]:
    """Steps after which the median member had the wanted score, by its rows of metrics."""
    tables = [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(workdir.glob("*/*/metrics.jsonl"))
    ]
    scores = [{row["step"]: row["miou"] for row in rows if "miou" in row} for rows in tables]
    for step in sorted(set().union(*scores)) if scores else ():
        at = [table[step] for table in scores if step in table]
        if np.median(at) >= REACHED:
            return {"step": step, "median": float(np.median(at)), "members": len(at)}
    return {"step": None, "rate": [line for line in lines if "steps/s" in line][-1:]}


def run(config: Config) -> None:
    """Run the parts one after another."""
    if config.part:
        print(json.dumps({"ceiling": ceiling, "steps": steps}[config.part](config.small)))
        return
    Path(config.scratch).mkdir(parents=True, exist_ok=True)
    name = "gpu_suite_small" if config.small else "gpu_suite"
    columns = ("part", "status", "seconds")
    report = measure.Report(name, "What an accelerator does", columns, config)
    for part in report.each(config.only or tuple(LIMITS)):
        found = attempt(part, config)
        report.rows.append({"part": part, **found})
        said = "\n".join(f"    {line}" for line in found["said"])
        report.notes.append(f"## {part}: {found['status']}, {found['seconds']} s\n\n{said}\n")
        report.more["parts"] = {row["part"]: row for row in report.rows}


if __name__ == "__main__":
    measure.main(Config, run, description=__doc__)
