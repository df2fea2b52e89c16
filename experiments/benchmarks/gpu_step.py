"""How fast is the published network on an accelerator: map or vmap, float32 or bfloat16?

The hybrid network at full size (width 32, windows of 5x300x300), K instances on one device: the
training step that ``experiments.segment`` builds, and the forward pass. ``map`` against ``vmap``
and float32 (at the backend's own precision of products, TF32 where it has it) against bfloat16, in
one interleaved run; TFLOP/s against the matrix products of the same dtype. Before timing, logits
are compared with float32 at highest precision: a wrong kernel shows here. Where PyTorch sees a GPU
too, its model takes turns, K one after another.

    XLA_PYTHON_CLIENT_PREALLOCATE=false python -m experiments.benchmarks.gpu_step --instances=1,4

Minutes, most of them compilation. A variant that does not fit into memory is listed as such.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from densejax.data.augment import training_arrays
from densejax.models.hybrid import Hybrid2D3D
from densejax.population import Population, instance_key
from densejax.training.task import Programs, empty_slot
from experiments import segment
from experiments.benchmarks import measure

# Imported, a script keeps its flags to itself: the names recur in others.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()
WIDTH = flags.DEFINE_integer("width", 32, "width of the network", flag_values=FLAGS)
WINDOW = flags.DEFINE_integer("window", 300, "y and x of a window, voxels", flag_values=FLAGS)
INSTANCES = flags.DEFINE_list("instances", ["1", "4"], "instances at once, K", flag_values=FLAGS)
ROUNDS = flags.DEFINE_integer(
    "rounds", 5, "interleaved rounds that count", lower_bound=1, flag_values=FLAGS
)
OUT = flags.DEFINE_string(
    "out", str(Path(__file__).parent / "results"), "folder of the report", flag_values=FLAGS
)

CLASSES = 7
DEPTH = 5
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# Largest difference of logits from float32 at highest precision, of the largest logit.
TOLERANCE = {"float32": 2e-2, "bfloat16": 1e-1}
COLUMNS = (
    *("mode", "K", "variant", "ms (cpu)", "TFLOP/s", "share of ceiling"),
    *("float32 map / this", "torch / this"),
)
Calls = dict[str, Callable[[], Any]]


def network(width: int, dtype: str) -> Hybrid2D3D:
    """The network of ``experiments.segment``, computing in a dtype."""
    return Hybrid2D3D(classes=CLASSES, width=width, dtype=DTYPES[dtype])


def world(window: int) -> dict[str, Any]:
    """Arrays of a volume of noise from which steps draw."""
    rng = np.random.default_rng(0)
    volume = (DEPTH + 4, window + 32, window + 32)
    labels = rng.integers(0, CLASSES, volume).astype(np.int32)
    image = rng.standard_normal(volume, np.float32)
    return training_arrays(image, labels, weights=np.ones(volume, np.float32))


def parity(width: int, params: Any, image: jax.Array) -> dict[str, float]:
    """Largest difference of each dtype's logits from float32 at highest precision, relative.

    Raises:
      ValueError: if one is above its tolerance.
    """
    with jax.default_matmul_precision("highest"):
        exact = np.asarray(jax.jit(network(width, "float32").apply)(params, image)[0])
    errors = {}
    for dtype in DTYPES:
        logits = np.asarray(jax.jit(network(width, dtype).apply)(params, image)[0])
        errors[dtype] = float(np.abs(logits - exact).max() / np.abs(exact).max())
        if not errors[dtype] <= TOLERANCE[dtype]:
            raise ValueError(
                f"{dtype} logits differ from float32 at highest precision by {errors[dtype]:.2g} "
                f"of the largest; expected at most {TOLERANCE[dtype]}"
            )
    return errors


def variant(task: Any, slots: list[Any], data: Any, image: jax.Array, strategy: Any) -> Calls:
    """Forward and train of one strategy and dtype, on the first device; both have run once."""
    population = Population(len(slots), devices=jax.local_devices()[:1], strategy=strategy)
    advance = Programs(task, population).advance
    placed = population.place(jax.tree.map(lambda *rows: np.stack(rows), *slots))
    ones = population.place(np.ones(len(slots), np.int32))
    shared, window = population.replicate(data), population.replicate(image)
    apply = population.map(lambda params, x: task.network(params, x)[0], shared=(1,), name="apply")

    def train() -> Any:
        nonlocal placed
        placed, means = advance(placed, ones, shared)
        jax.block_until_ready(placed)
        return means

    calls = {"forward": lambda: apply(placed["state"]["params"], window), "train": train}
    for call in calls.values():
        jax.block_until_ready(call())
    return calls


def peer(width: int, slots: list[Any], image: jax.Array, classes: int) -> Calls | None:
    """K PyTorch models one after another; None where PyTorch sees no GPU."""
    try:
        import torch

        from experiments.benchmarks import torch_hybrid
    except ModuleNotFoundError:
        return None
    if not torch.cuda.is_available():
        return None
    x = torch.tensor(np.asarray(image)).permute(0, 4, 1, 2, 3).cuda()
    output = network(width, "float32").output_window(image.shape[1:4])
    labels = torch.randint(0, classes, (1, *output), device="cuda")
    fresh = [torch_hybrid.TorchHybrid(classes, width) for _ in slots]
    trees = [slot["state"]["params"]["params"] for slot in slots]
    models = [torch_hybrid.load(m, p).cuda() for m, p in zip(fresh, trees, strict=True)]
    pairs = [(model, torch.optim.Adam(model.parameters())) for model in models]

    def forward() -> None:
        for model in models:
            torch_hybrid.forward(model, x)
        torch.cuda.synchronize()

    def train() -> None:
        for model, adam in pairs:
            torch_hybrid.train_step(model, adam, x, labels)
        torch.cuda.synchronize()

    return {"forward": forward, "train": train}


def contenders(
    task: Any, width: int, slots: list[Any], data: Any, image: jax.Array
) -> tuple[dict[str, Calls], list[str]]:
    """Every variant that fits, by name, and why others do not."""
    found: dict[str, Calls] = {}
    left_out: list[str] = []
    for dtype in DTYPES:
        typed = dataclasses.replace(task, network=network(width, dtype).apply)
        for strategy in ("map", "vmap") if len(slots) > 1 else ("map",):
            name = f"{dtype} {strategy}"
            try:
                found[name] = variant(typed, slots, data, image, strategy)
            except jax.errors.JaxRuntimeError as error:
                left_out.append(f"K {len(slots)}, {name}: {str(error).splitlines()[0]}")
    theirs = peer(width, slots, image, task.classes)
    return found | ({"torch": theirs} if theirs else {}), left_out


def rows_of(
    calls: dict[str, Calls],
    mode: str,
    k: int,
    *,
    rounds: int,
    tflop: float,
    ceilings: dict[str, float],
) -> measure.Rows:
    """One row a variant, of one mode and K."""
    seconds = measure.interleaved({name: c[mode] for name, c in calls.items()}, rounds=rounds)
    rows: measure.Rows = []
    for name, laps in seconds.items():
        middle = measure.medians(laps)
        rate = k * tflop / middle["wall_ms"] * 1e3
        row: dict[str, Any] = {"mode": mode, "K": k, "variant": name, "ms (cpu)": middle}
        row |= {"TFLOP/s": rate, "seconds": laps}
        row["share of ceiling"] = rate / ceilings.get(name.split()[0], ceilings["float32"])
        for reference in ("float32 map", "torch"):
            if reference in seconds:
                label = f"{reference} / this"
                row[label] = measure.ratio(seconds, reference, name)
        rows.append(row)
    return rows


def run(width: int, window: int, instances: list[int], *, rounds: int, out: Path) -> measure.Rows:
    """Measure every K; the report grows by each."""
    config = segment.Config(
        recipe="published", width=width, window=(DEPTH, window, window), logit_relu=True
    )
    model, task = segment.build(config, CLASSES)
    data = world(window)
    image = data["image"][None, :DEPTH, :window, :window, None]
    fresh = jax.jit(lambda key: empty_slot(key, task, {}))
    keys = [jax.random.key_data(instance_key(jax.random.key(0), i)) for i in range(max(instances))]
    slots = [jax.device_get(fresh(key)) for key in keys]
    params = slots[0]["state"]["params"]
    where, errors = measure.machine(), parity(width, params, image)
    ceilings = {n: measure.matmul_gflops(size=8192, dtype=d) / 1e3 for n, d in DTYPES.items()}
    gradient = jax.grad(lambda p: sum(jnp.sum(v) for v in jax.tree.leaves(model.apply(p, image))))
    flop = {
        "forward": measure.floor(model.apply, params, image)["gflop"] / 1e3,
        "train": measure.floor(gradient, params)["gflop"] / 1e3,
    }
    rows: measure.Rows = []
    left_out: list[str] = []
    for k in instances:
        calls, reasons = contenders(task, width, slots[:k], data, image)
        left_out += reasons
        for mode, tflop in flop.items():
            rows += rows_of(calls, mode, k, rounds=rounds, tflop=tflop, ceilings=ceilings)
        title = f"The hybrid network on an accelerator, width {width}, window {window}"
        named = {f"{name} TFLOP/s": value for name, value in ceilings.items()}
        parts = [
            measure.heading(title, where, named),
            f"TFLOP of one instance: {flop}.",
            f"Logits against float32 at highest precision, largest difference: {errors}.",
            "\n" + measure.markdown(rows, COLUMNS),
            *(f"\nNot measured: {line}" for line in left_out),
        ]
        result: dict[str, Any] = {
            "machine": where,
            "ceilings": ceilings,
            "parity": errors,
            "tflop": flop,
        }
        result |= {"rows": rows, "not_measured": left_out}
        measure.write(out, f"gpu_step_{width}_{window}", result=result, text="\n".join(parts))
    return rows


def main(arguments: list[str]) -> None:
    """Measure what the flags name."""
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected argument {arguments[1]!r}; flags begin with --")
    logging.set_verbosity(logging.WARNING)
    if jax.default_backend() == "cpu":
        raise app.UsageError("jax finds no accelerator here; for a CPU: segmentation_step")
    instances = [int(value) for value in INSTANCES.value]
    run(WIDTH.value, WINDOW.value, instances, rounds=ROUNDS.value, out=Path(OUT.value))


if __name__ == "__main__":
    app.run(main)
