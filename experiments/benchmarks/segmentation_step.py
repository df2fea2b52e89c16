"""How fast is a training step of the hybrid network, against plain PyTorch on the same CPU?

K densejax instances in one program (``Population`` and ``Programs``, the task that
``experiments.segment`` builds: its steps draw and augment their windows) against K PyTorch models
one after another, each given the same ready window. Both are float32 and compared before timing.

    python -m experiments.benchmarks.segmentation_step --minutes=60

Interleaved rounds; medians of wall and process CPU time; ratios round by round. The cheapest
configurations come first, the report (``--out``) is written anew after each, and none starts that
would outlast ``--minutes``. One step of width 32 on a window of 300 takes most of a minute on two
cores: everything takes hours, widths 8 and 16 up to window 128 minutes.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags, logging

from densejax.data.augment import training_arrays
from densejax.losses import weighted_cross_entropy
from densejax.population import Mapped, Population, instance_key, memory_limit, use_all_cores
from densejax.training.task import Programs, empty_slot
from experiments import segment
from experiments.benchmarks import goals, measure, torch_hybrid

# Imported, a script keeps its flags to itself: the names recur in others.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()
WIDTHS = flags.DEFINE_list("widths", ["8", "16", "32"], "widths of the network", flag_values=FLAGS)
WINDOWS = flags.DEFINE_list(
    "windows", ["64", "96", "128", "300"], "y and x of a window, voxels", flag_values=FLAGS
)
INSTANCES = flags.DEFINE_list(
    "instances", ["1", "2", "4", "8"], "instances at once, K", flag_values=FLAGS
)
ROUNDS = flags.DEFINE_integer(
    "rounds", 5, "interleaved rounds that count", lower_bound=1, flag_values=FLAGS
)
DEVICES = flags.DEFINE_integer(
    "devices", 0, "virtual CPU devices; 0 is one a core", flag_values=FLAGS
)
MINUTES = flags.DEFINE_float(
    "minutes", 60.0, "start nothing that would end later than this", flag_values=FLAGS
)
OUT = flags.DEFINE_string(
    "out", str(Path(__file__).parent / "results"), "folder of the report", flag_values=FLAGS
)

CLASSES = 7
DEPTH = 5
TWO_D_LOSS = 0.33
LEARNING_RATE = 1e-3
COMPILE_SECONDS = 60.0
COLUMNS = (
    *("mode", "width", "window", "K", "devices", "torch ms (cpu)", "densejax ms (cpu)"),
    *("torch / densejax", "one: jit ms (cpu)", "K at once / K times one"),
    *("GFLOP", "GFLOP/s", "share of ceiling", "floor ms"),
)


class Bench:
    """One width and window: network, task, data, fresh slots, floor; parity is checked."""

    def __init__(self, width: int, window: int, *, most: int) -> None:
        self.width, self.window = width, window
        config = segment.Config(
            recipe="published",
            width=width,
            window=(DEPTH, window, window),
            logit_relu=True,
            two_d_loss=TWO_D_LOSS,
            learning_rate=LEARNING_RATE,
        )
        self.model, task = segment.build(config, CLASSES)
        # The loss that the peer computes: without the L2 penalty.
        self.task = dataclasses.replace(task, l2=None)
        rng = np.random.default_rng(0)
        volume = (DEPTH + 4, window + 32, window + 32)
        self.data = training_arrays(
            rng.standard_normal(volume, np.float32),
            rng.integers(0, CLASSES, volume).astype(np.int32),
            weights=np.ones(volume, np.float32),
        )
        fresh = jax.jit(lambda key: empty_slot(key, self.task, {}))
        keys = [jax.random.key_data(instance_key(jax.random.key(0), i)) for i in range(most)]
        self.slots = [jax.device_get(fresh(key)) for key in keys]
        draw = jax.jit(lambda slot: self.task.draw(*_at(slot), self.data))
        self.image, self.labels, _ = map(np.asarray, draw(self.slots[0]))
        self.parity = self._check()
        self.one: Engine | None = None

    def params(self, instance: int) -> Any:
        """The network's fresh variables of an instance."""
        return self.slots[instance]["state"]["params"]

    def loss(self, variables: Any, image: jax.Array, labels: jax.Array) -> Any:
        """The peer's loss; with the logits of both modules."""
        logits, out = self.model.apply(variables, image[None, ..., None])
        terms = [weighted_cross_entropy(p, labels[None]) for p in (logits, out["logits_2d"])]
        return terms[0] + TWO_D_LOSS * terms[1], (terms[0], logits, out["logits_2d"])

    def floor(self, mode: str) -> dict[str, float]:
        """GFLOP and gigabytes of one instance; training also moves Adam's seven arrays."""
        arguments = (self.params(0), self.image, self.labels)
        if mode == "forward":
            return measure.floor(
                lambda v, i, _: self.model.apply(v, i[None, ..., None])[0], *arguments
            )
        bound = measure.floor(jax.grad(self.loss, has_aux=True), *arguments)
        moved = 7 * sum(leaf.nbytes for leaf in jax.tree.leaves(self.params(0)))
        return bound | {"gigabytes": bound["gigabytes"] + moved / 1e9}

    def peer_window(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The window of instance 0's first step, as PyTorch wants it."""
        labels = torch.tensor(self.labels[None].astype(np.int64))
        return torch.tensor(self.image[None, None]), labels

    def peer(self, instance: int) -> torch_hybrid.TorchHybrid:
        """The PyTorch model with the parameters of an instance."""
        model = torch_hybrid.TorchHybrid(CLASSES, self.width)
        return torch_hybrid.load(model, self.params(instance)["params"])

    def _check(self) -> dict[str, float]:
        loss, (self.first_loss, *ours) = jax.jit(self.loss)(self.params(0), self.image, self.labels)
        x, labels = self.peer_window()
        with torch.inference_mode():
            theirs = self.peer(0)(x)
            expected = torch_hybrid.loss_of(theirs, labels, two_d_loss=TWO_D_LOSS).item()
        found = {"loss": abs(float(loss) - expected) / expected}
        for name, a, b in zip(("logits", "logits_2d"), ours, theirs, strict=True):
            reference = b.numpy().transpose(0, 2, 3, 4, 1)
            found[name] = float(np.abs(a - reference).max() / np.abs(reference).max())
        if not (found["loss"] < 1e-5 and max(found["logits"], found["logits_2d"]) < 1e-3):
            raise ValueError(
                f"width {self.width}, window {self.window}: densejax and PyTorch differ, "
                f"relative errors {found}; expected loss < 1e-5, logits < 1e-3"
            )
        return found


def _at(slot: Any) -> tuple[jax.Array, jax.Array]:
    return jax.random.wrap_key_data(slot["state"]["key"]), jnp.int32(0)


class Engine:
    """K instances as a sweep runs them; as many devices as their memory allows."""

    def __init__(self, bench: Bench, k: int) -> None:
        self.k, self.bench = k, bench
        devices = jax.local_devices()[:k]
        self._lay_out(devices)
        limit = 0.9 * memory_limit(devices)
        if self.advance.peak_bytes() > limit and len(devices) > 1:
            self._lay_out(devices[:1])
            limit = 0.9 * memory_limit(devices[:1])
        if self.advance.peak_bytes() > limit:
            raise MemoryError(
                f"needs {self.advance.peak_bytes() / 1e9:.1f} GB, has {limit / 1e9:.1f}"
            )
        stacked = jax.tree.map(lambda *rows: np.stack(rows), *bench.slots[:k])
        self.placed = self.population.place(stacked)
        self.ones = self.population.place(np.ones(k, np.int32))
        self.shared = self.population.replicate(bench.data)
        self.image = self.population.replicate(bench.image)

    def _lay_out(self, devices: list[jax.Device]) -> None:
        bench = self.bench
        self.population = Population(self.k, devices=devices)
        shapes = self.population.placed_shapes(jax.eval_shape(lambda: bench.slots[0]))
        steps = self.population.placed_shapes(jax.ShapeDtypeStruct((), np.int32))
        data = self.population.replicated_shapes(bench.data)
        self.advance: Mapped = Programs(bench.task, self.population).advance
        self.advance.compile(shapes, steps, data)
        self.apply = self.population.map(
            lambda params, image: bench.model.apply(params, image[None, ..., None])[0],
            shared=(1,),
            name="forward",
        )

    def step(self) -> Any:
        """One update of every instance."""
        self.placed, means = self.advance(self.placed, self.ones, self.shared)
        jax.block_until_ready(self.placed)
        return means

    def forward(self) -> Any:
        """Logits of every instance for one window."""
        return self.apply(self.placed["state"]["params"], self.image)

    def check_first_step(self) -> None:
        """The timed program computes the loss that was compared with PyTorch."""
        found = self.population.fetch(self.step()["loss"])[0]
        if not np.isclose(found, self.bench.first_loss, rtol=1e-4):
            raise ValueError(f"first step: loss {found}, expected {self.bench.first_loss}")


def contenders(bench: Bench, k: int) -> tuple[dict[str, dict[str, Callable[[], Any]]], Engine]:
    """What takes turns, by mode; K instances also against one, one also against plain jit."""
    engine = Engine(bench, k)
    x, labels = bench.peer_window()
    models = [bench.peer(i) for i in range(k)]
    adams = [torch.optim.Adam(model.parameters(), lr=LEARNING_RATE) for model in models]
    pairs = list(zip(models, adams, strict=True))
    forward: dict[str, Callable[[], Any]] = {
        "torch": lambda: [torch_hybrid.forward(model, x).shape for model in models],
        "densejax": engine.forward,
    }
    train: dict[str, Callable[[], Any]] = {
        "torch": lambda: [torch_hybrid.train_step(m, adam, x, labels) for m, adam in pairs],
        "densejax": engine.step,
    }
    if k > 1:
        one = bench.one = bench.one or Engine(bench, 1)
        return {
            "forward": forward | {"one": one.forward},
            "train": train | {"one": one.step},
        }, engine
    apply, step = jax.jit(bench.model.apply), jax.jit(bench.task.step)
    params, state = jax.device_put((bench.params(0), bench.slots[0]["state"]))
    image = jnp.asarray(bench.image)[None, ..., None]
    forward["jit"] = lambda: apply(params, image)[0]
    train["jit"] = lambda: step(state, bench.data)
    return {"forward": forward, "train": train}, engine


def measured(
    bench: Bench, k: int, *, rounds: int, ceilings: Mapping[str, float]
) -> tuple[measure.Rows, float]:
    """The rows of one configuration, and the seconds that one round of it took."""
    modes, engine = contenders(bench, k)
    rows, spent = [], 0.0
    for mode, calls in modes.items():
        if mode == "train":
            engine.check_first_step()
        seconds = measure.interleaved(calls, rounds=rounds)
        spent += sum(wall for laps in seconds.values() for wall, _ in laps) / rounds
        bound = bench.floor(mode)
        rate = k * bound["gflop"] / measure.medians(seconds["densejax"])["wall_ms"] * 1e3
        ceiling = max(ceilings["jax matmul GFLOP/s"], ceilings["torch matmul GFLOP/s"])
        arithmetic, traffic = bound["gflop"] / ceiling, bound["gigabytes"] / ceilings["copy GB/s"]
        row: dict[str, Any] = {
            **{"mode": mode, "width": bench.width, "window": bench.window, "K": k},
            "devices": len(engine.population.devices),
            "torch ms (cpu)": measure.medians(seconds["torch"]),
            "densejax ms (cpu)": measure.medians(seconds["densejax"]),
            "torch / densejax": measure.ratio(seconds, "torch", "densejax"),
            **{"GFLOP": k * bound["gflop"], "GFLOP/s": rate, "share of ceiling": rate / ceiling},
            "floor ms": 1e3 * k * max(arithmetic, traffic),
            **{"gigabytes": k * bound["gigabytes"], "parity": bench.parity, "seconds": seconds},
        }
        if k == 1:
            row["one: jit ms (cpu)"] = measure.medians(seconds["jit"])
        else:
            shares = measure.ratio(seconds, "densejax", "one")
            row["one ms (cpu)"] = measure.medians(seconds["one"])
            row["K at once / K times one"] = {name: v / k for name, v in shares.items()}
        rows.append(row)
    return rows, spent


def run(
    widths: list[int],
    windows: list[int],
    instances: list[int],
    *,
    rounds: int,
    minutes: float,
    out: Path,
) -> measure.Rows:
    """Measure every configuration that time allows, cheapest first; returns the rows."""
    end = time.monotonic() + 60 * minutes
    where, ceilings = measure.machine(), measured_ceilings()
    settings = [(w, n, k) for w in widths for n in windows for k in instances]
    work = {s: s[2] * s[0] ** 2 * s[1] ** 2 for s in settings}  # grows as GFLOP
    rows: measure.Rows = []
    left_out: list[str] = []
    bench, rate = None, 0.0
    for width, window, k in sorted(settings, key=lambda s: (s[0] ** 2 * s[1] ** 2, s[2])):
        name = f"width {width}, window {window}, K {k}"
        needed = COMPILE_SECONDS * bool(rate) + (rounds + 1) * rate * work[width, window, k]
        if time.monotonic() + needed > end:
            left_out.append(f"{name}: about {needed / 60:.0f} minutes, more than were left")
            continue
        try:
            if bench is None or (bench.width, bench.window) != (width, window):
                bench = Bench(width, window, most=max(instances))
            found, seconds = measured(bench, k, rounds=rounds, ceilings=ceilings)
        except MemoryError as error:
            left_out.append(f"{name}: {error}")
            continue
        rate = seconds / work[width, window, k]
        rows += found
        for row in found:
            print(f"{name}, {row['mode']}: torch / densejax {row['torch / densejax']}", flush=True)
        report(rows, left_out, where, ceilings, out=out)
    report(rows, left_out, where, ceilings, out=out)
    return rows


def measured_ceilings() -> dict[str, float]:
    """GFLOP/s of a matrix product in both libraries, GB/s of a copy."""
    a = torch.ones(2048, 2048)
    seconds = measure.best_seconds(lambda: (a @ a).shape)
    return {
        "jax matmul GFLOP/s": measure.matmul_gflops(),
        "torch matmul GFLOP/s": 2e-9 * 2048**3 / seconds,
        "copy GB/s": measure.copy_gigabytes(),
    }


def report(
    rows: measure.Rows, left_out: list[str], where: Any, ceilings: Mapping[str, float], *, out: Path
) -> None:
    """Write the rows, the goals and what was not measured."""
    reached = goals.judged(rows)
    parts = [
        measure.heading("Training step and forward pass against PyTorch", where, ceilings),
        f"PyTorch on {torch.get_num_threads()} threads. Medians; ratios: median (min to max).\n",
        measure.markdown(rows, COLUMNS),
        "\n## Goals\n",
        measure.markdown(reached, ("goal", "at", "found", "met")),
    ]
    if left_out:
        parts += ["\n## Not measured\n", *(f"- {line}" for line in left_out)]
    result = {
        **{"machine": where, "torch_threads": torch.get_num_threads(), "ceilings": ceilings},
        **{"rows": rows, "goals": reached, "not_measured": left_out},
    }
    name = f"segmentation_step_{DEVICES.value}_devices" if DEVICES.value else "segmentation_step"
    measure.write(out, name, result=result, text="\n".join(parts))


def main(arguments: list[str]) -> None:
    """Measure what the flags name."""
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected argument {arguments[1]!r}; flags begin with --")
    logging.set_verbosity(logging.WARNING)
    if DEVICES.value:
        jax.config.update("jax_num_cpu_devices", DEVICES.value)
    use_all_cores()
    if jax.default_backend() != "cpu":
        raise app.UsageError("this compares CPUs (JAX_PLATFORMS=cpu); for an accelerator: gpu_step")
    widths, windows, instances = (
        [int(value) for value in flag.value] for flag in (WIDTHS, WINDOWS, INSTANCES)
    )
    run(
        widths,
        windows,
        instances,
        rounds=ROUNDS.value,
        minutes=MINUTES.value,
        out=Path(OUT.value),
    )


if __name__ == "__main__":
    app.run(main)
