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
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from densejax.data.augment import training_arrays
from densejax.data.sampling import class_table
from densejax.population import Population, instance_key
from densejax.segmentation import recipes
from densejax.training.task import Programs, empty_slot
from experiments import segment
from experiments.benchmarks import measure

# Imported, a script keeps its flags to itself: the names recur in others.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()
OUT = flags.DEFINE_string(
    "out", str(Path(__file__).parent / "results"), "folder of the report", flag_values=FLAGS
)
SCRATCH = flags.DEFINE_string(
    "scratch", "gpu_suite", "folder for volumes and runs", flag_values=FLAGS
)
DATA_FOLDER = flags.DEFINE_string("data_folder", "", "folder of the VNC set", flag_values=FLAGS)
SMALL = flags.DEFINE_bool("small", False, "sizes for a trial on a CPU", flag_values=FLAGS)
ONLY = flags.DEFINE_list("only", [], "parts; all where empty", flag_values=FLAGS)
PART = flags.DEFINE_string("part", "", "what a child process measures", flag_values=FLAGS)

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
    population = Population(count, devices=jax.local_devices()[:1], strategy=strategy)
    advance = Programs(task, population).advance
    fresh = jax.jit(lambda key: empty_slot(key, task, {}))
    keys = [jax.random.key_data(instance_key(jax.random.key(0), i)) for i in range(count)]
    slots = [jax.device_get(fresh(key)) for key in keys]
    placed = population.place(jax.tree.map(lambda *rows: np.stack(rows), *slots))
    shared, laps = population.replicate(data), []
    each = 1 if jax.default_backend() == "cpu" else 10
    number = population.place(np.full(count, each, np.int32))
    for _ in range(3):
        start = time.perf_counter()
        placed, means = advance(placed, number, shared)
        jax.block_until_ready((placed, means))
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
        exact = np.asarray(jax.jit(networks["float32"][1].network)(params, image)[0])
    found = np.asarray(jax.jit(networks["bfloat16"][1].network)(params, image)[0])
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def command_of(part: str, small: bool, scratch: Path) -> list[str]:
    """The command of a part."""
    module = f"experiments.benchmarks.{part}"
    if part in ("ceiling", "steps"):
        own = [f"--part={part}", *(["--small"] if small else [])]
        return ["-m", "experiments.benchmarks.gpu_suite", *own]
    if part == "vnc":
        words = ["--seeds=0:8", f"--workdir={scratch / 'vnc'}", "--nobaseline"]
        words += ["--strategy=auto", "--minutes=2"]
        data = ["--data=vnc", f"--data_folder={DATA_FOLDER.value}"]
        if small:
            data, words[0] = ["--world=12,96,96"], "--seeds=0:2"
        return ["-m", "experiments.segment", *data, *words]
    report = f"--out={scratch}"
    if part == "selectors":
        size = ["--samples=20000", "--features=64", "--budget=100"] if small else []
        return ["-m", module, "--scale", f"--scratch={scratch}", report, *size]
    if part == "surface":
        size = ["--side=2", "--pictures=64"] if small else ["--side=16"]
        return [
            "-m",
            "experiments.benchmarks.surfaces",
            "--only=resnet20",
            "--cold=0",
            report,
            *size,
        ]
    size = ["--nothing_shape=40,128,128", "--nothing_window=8,64,64"] if small else []
    shape = "10,128,128" if small else "100,2000,2000"
    return [
        *("-m", module, f"--scratch={scratch / 'streaming'}", report, "--only=hybrid"),
        *(f"--hybrid_shape={shape}", *size),
    ]


def attempt(part: str, small: bool, scratch: Path) -> dict[str, Any]:
    """Run a part in a process of its own, within its limit."""
    start = time.perf_counter()
    # A trial on a CPU is for whether it works, not for how long it takes.
    limit = 600 if small else LIMITS[part]
    try:
        done = subprocess.run(
            [sys.executable, *command_of(part, small, scratch)],
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
        found["seconds to MIoU"] = _seconds_to(scratch / "vnc", lines)
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


def run(argv: Sequence[str]) -> None:
    """Run the parts one after another."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; flags begin with --")
    logging.set_verbosity(logging.WARNING)
    own: dict[str, Callable[[bool], dict[str, Any]]] = {"ceiling": ceiling, "steps": steps}
    if PART.value:
        print(json.dumps(own[PART.value](SMALL.value)))
        return
    unknown = set(ONLY.value) - set(LIMITS)
    if unknown:
        raise app.UsageError(f"--only={','.join(unknown)}: expected of {', '.join(LIMITS)}")
    scratch, name = Path(SCRATCH.value), "gpu_suite_small" if SMALL.value else "gpu_suite"
    scratch.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"machine": measure.machine(), "parts": {}}
    for part in ONLY.value or LIMITS:
        result["parts"][part] = attempt(part, SMALL.value, scratch)
        found = result["parts"][part]
        print(f"{part}: {found['status']} in {found['seconds']:.0f} s", flush=True)
        text = "\n\n".join(
            f"## {key}: {value['status']}, {value['seconds']} s\n\n"
            + "\n".join(f"    {line}" for line in value["said"])
            for key, value in result["parts"].items()
        )
        title = measure.heading("What an accelerator does", result["machine"], {})
        measure.write(Path(OUT.value), name, result=result, text=f"{title}\n{text}")


if __name__ == "__main__":
    app.run(run)
