"""How fast is a training step of the hybrid network, against plain PyTorch on the same machine?

On a CPU: K densejax instances in one program (``Population`` and ``Programs``, the task that
``experiments.segment`` builds: its steps draw and augment their windows) against K PyTorch models
one after another, each given the same ready window. Both are float32 and compared before timing.

    python -m experiments.benchmarks.segmentation_step --minutes=60

On an accelerator, or with ``--variants``: K instances on one device by ``map`` and by ``vmap``, in
float32 (at the backend's own precision of products, TF32 where it has it) and in bfloat16; TFLOP/s
against the matrix products of the same dtype. Before timing, logits are compared with float32 at
highest precision: a wrong kernel shows here. Where PyTorch sees a GPU too, its model takes turns.
A variant that does not fit into memory is listed as such.

    XLA_PYTHON_CLIENT_PREALLOCATE=false python -m experiments.benchmarks.segmentation_step \\
        --widths=32 --windows=300 --instances=1,4

Interleaved rounds; medians of wall and process CPU time; ratios round by round. The cheapest
configurations come first, the report is written anew after each, and none starts that would outlast
``--minutes``. One step of width 32 on a window of 300 takes most of a minute on two cores:
everything takes hours, widths 8 and 16 up to window 128 minutes. Writes ``segmentation_step``, or
``gpu_step_WIDTH_WINDOW`` of the variants.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densejax.cli import option
from densejax.data.augment import training_arrays
from densejax.losses import weighted_cross_entropy
from densejax.population import Population, instance_key, memory_limit, use_all_cores
from densejax.training.task import Programs, empty_slot
from experiments import segment
from experiments.benchmarks import measure
from experiments.benchmarks.measure import Calls, Goal, Row

CLASSES, DEPTH = 7, 5
TWO_D_LOSS, LEARNING_RATE = 0.33, 1e-3
COMPILE_SECONDS = 60.0
ONE_INSTANCE = {64: 3.0, 128: 2.0, 300: 1.3}
FOUR_NARROW = {64: 6.0, 96: 6.0}
NARROW, MOST_OF_K = 8, 0.85
FASTER, SHARE = "torch / densejax", "K at once / K times one"


def _of(**wanted: int) -> Callable[[Row], bool]:
    return lambda row: all(row[column] == value for column, value in wanted.items())


GOALS = (
    *(
        Goal(
            f"one instance at least {least:g}x PyTorch at {window}",
            FASTER,
            least=least,
            of=_of(K=1, window=window),
        )
        for window, least in ONE_INSTANCE.items()
    ),
    *(
        Goal(
            f"four narrow instances at least {least:g}x four PyTorch runs",
            FASTER,
            least=least,
            of=_of(K=4, width=NARROW, window=window),
        )
        for window, least in FOUR_NARROW.items()
    ),
    Goal(
        f"K at once at most {MOST_OF_K:g} of K times one, on two cores",
        SHARE,
        most=MOST_OF_K,
        of=lambda row: row["K"] > 1 and row["devices"] == 2,
    ),
)
COLUMNS = (
    *("mode", "width", "window", "K", "devices", "torch ms (cpu)", "densejax ms (cpu)"),
    *("torch / densejax", "jit ms (cpu)", "K at once / K times one"),
    *("GFLOP", "GFLOP/s", "share of ceiling", "floor ms"),
)
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# Largest difference of logits from float32 at highest precision, of the largest logit.
TOLERANCE = {"float32": 2e-2, "bfloat16": 1e-1}
VARIANT_COLUMNS = (
    *("mode", "K", "variant", "ms (cpu)", "TFLOP/s", "share of ceiling"),
    *("float32 map / this", "torch / this"),
)


@dataclass(frozen=True)
class Config(measure.Timed):
    """Which steps are measured."""

    widths: tuple[int, ...] = option((8, 16, 32), "widths of the network", fast=(4,))
    windows: tuple[int, ...] = option(
        (64, 96, 128, 300), "y and x of a window", unit="voxels", fast=(64,)
    )
    instances: tuple[int, ...] = option((1, 2, 4, 8), "instances at once, K", fast=(1, 2))
    devices: int = option(0, "virtual CPU devices; 0 is one a core")
    variants: bool = option(
        False, "also on a CPU: map and vmap, float32 and bfloat16, in place of PyTorch's runs"
    )


class Bench:
    """One width and window: network, task, data, the slots of ``most`` instances, floors."""

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
        self.slots = fresh_slots(self.task, most)
        key, step = jax.random.wrap_key_data(self.slots[0]["state"]["key"]), jnp.int32(0)
        self.image, self.labels, _ = map(np.asarray, jax.jit(self.task.draw)(key, step, self.data))
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

    def compare_with_torch(self) -> dict[str, float]:
        """Relative errors of loss and logits; keeps the loss of the first step.

        Raises:
          ValueError: they are more than rounding makes.
        """
        import torch

        from experiments.benchmarks import torch_hybrid

        loss, (self.first_loss, *ours) = jax.jit(self.loss)(self.params(0), self.image, self.labels)
        x, labels = self._window()
        with torch.inference_mode():
            theirs = self._models(1)[0](x)
            expected = torch_hybrid.loss_of(theirs, labels, two_d_loss=TWO_D_LOSS).item()
        at = f"width {self.width}, window {self.window}: densejax beside PyTorch, "
        found = {"loss": measure.agreed(f"{at}loss", loss, expected, tolerance=1e-5)}
        for name, a, b in zip(("logits", "logits_2d"), ours, theirs, strict=True):
            there = b.numpy().transpose(0, 2, 3, 4, 1)
            found[name] = measure.agreed(at + name, a, there, tolerance=1e-3)
        return found

    def compare_dtypes(self) -> dict[str, float]:
        """Largest difference of each dtype's logits from float32 at highest precision.

        Raises:
          ValueError: one is above its tolerance.
        """
        image, params = self.image[None, ..., None], self.params(0)
        networks = {n: jax.jit(self.model.clone(dtype=d).apply) for n, d in DTYPES.items()}
        with jax.default_matmul_precision("highest"):
            exact = jax.jit(self.model.clone(dtype=jnp.float32).apply)(params, image)[0]
        return {
            n: measure.agreed(n, f(params, image)[0], exact, tolerance=TOLERANCE[n])
            for n, f in networks.items()
        }

    def peers(self, k: int, device: str = "cpu") -> Calls:
        """K PyTorch models one after another, by mode."""
        import torch

        from experiments.benchmarks import torch_hybrid

        x, labels = (tensor.to(device) for tensor in self._window())
        models = [model.to(device) for model in self._models(k)]
        adams = [torch.optim.Adam(model.parameters(), lr=LEARNING_RATE) for model in models]
        wait = torch.cuda.synchronize if device != "cpu" else lambda: None

        def forward() -> None:
            for model in models:
                torch_hybrid.forward(model, x)
            wait()

        def train() -> None:
            for model, adam in zip(models, adams, strict=True):
                torch_hybrid.train_step(model, adam, x, labels)
            wait()

        return {"forward": forward, "train": train}

    def _window(self) -> tuple[Any, Any]:
        """The window of instance 0's first step, as PyTorch wants it."""
        import torch

        labels = torch.tensor(self.labels[None].astype(np.int64))
        return torch.tensor(self.image[None, None]), labels

    def _models(self, k: int) -> list[Any]:
        from experiments.benchmarks import torch_hybrid

        fresh = [torch_hybrid.TorchHybrid(CLASSES, self.width) for _ in range(k)]
        return [torch_hybrid.load(m, self.params(i)["params"]) for i, m in enumerate(fresh)]


def fresh_slots(task: Any, count: int) -> list[Any]:
    """Slots of so many instances, before their first step, on the host."""
    fresh = jax.jit(lambda key: empty_slot(key, task, {}))
    keys = [jax.random.key_data(instance_key(jax.random.key(0), i)) for i in range(count)]
    return [jax.device_get(fresh(key)) for key in keys]


class Engine:
    """Instances of a task in one program, as a sweep runs them."""

    def __init__(
        self, task: Any, slots: list[Any], data: Any, *, devices: Any, strategy: Any = "map"
    ) -> None:
        self.population = Population(len(slots), devices=devices, strategy=strategy)
        self.advance = Programs(task, self.population).advance
        self.apply = self.population.map(
            lambda params, image: task.network(params, image)[0], shared=(1,), name="forward"
        )
        # Compiled before anything is placed, so that too large a program is known in time.
        shapes = self.population.placed_shapes(jax.eval_shape(lambda: slots[0]))
        steps = self.population.placed_shapes(jax.ShapeDtypeStruct((), np.int32))
        self.advance.compile(shapes, steps, self.population.replicated_shapes(data))
        self._slots, self._data = slots, data

    def fits(self) -> bool:
        """Whether the devices have the memory."""
        return self.advance.peak_bytes() <= 0.9 * memory_limit(self.population.devices)

    def place(self, image: Any) -> "Engine":
        """Put the slots, the data and a window on the devices."""
        self.placed = self.population.place(
            jax.tree.map(lambda *rows: np.stack(rows), *self._slots)
        )
        self.shared, self.image = map(self.population.replicate, (self._data, image))
        return self

    def step(self, steps: int = 1) -> Any:
        """So many updates of every instance."""
        number = self.population.place(np.full(len(self._slots), steps, np.int32))
        self.placed, means = self.advance(self.placed, number, self.shared)
        jax.block_until_ready(self.placed)
        return means

    def forward(self) -> Any:
        """Logits of every instance for one window."""
        return self.apply(self.placed["state"]["params"], self.image)


def engine_of(bench: Bench, k: int) -> Engine:
    """K instances on as many devices as their memory allows.

    Raises:
      MemoryError: they do not fit on one.
    """
    devices = jax.local_devices()[:k]
    for several in (devices, devices[:1]):
        engine = Engine(bench.task, bench.slots[:k], bench.data, devices=several)
        if engine.fits():
            return engine.place(bench.image[None, ..., None])
    needed = engine.advance.peak_bytes() / 1e9
    raise MemoryError(f"needs {needed:.1f} GB, has {0.9 * memory_limit(several) / 1e9:.1f}")


def cpu_rows(bench: Bench, k: int, *, rounds: int, ceilings: Mapping[str, float]) -> measure.Rows:
    """Both modes of one configuration: against PyTorch, and one instance or plain jit."""
    engine, peers, parity = engine_of(bench, k), bench.peers(k), bench.compare_with_torch()
    first = engine.population.fetch(engine.step()["loss"])[0]
    if not np.isclose(first, bench.first_loss, rtol=1e-4):
        raise ValueError(f"first step: loss {first}, expected {bench.first_loss}")
    if k > 1:
        bench.one = bench.one or engine_of(bench, 1)
        beside, name = {"forward": bench.one.forward, "train": bench.one.step}, "one"
    else:
        beside, name = _plain_jit(bench), "jit"
    rows: measure.Rows = []
    for mode, ours in {"forward": engine.forward, "train": engine.step}.items():
        calls = {"torch": peers[mode], measure.OURS: ours, name: beside[mode]}
        found, bound = measure.compared(calls, rounds=rounds), bench.floor(mode)
        bound = {column: k * value for column, value in bound.items()}
        rate = bound["gflop"] / found["densejax ms (cpu)"]["wall_ms"] * 1e3
        ceiling = max(ceilings["jax matmul GFLOP/s"], ceilings["torch matmul GFLOP/s"])
        row: Row = {"mode": mode, "width": bench.width, "window": bench.window, "K": k}
        row |= found | {"devices": len(engine.population.devices), "GFLOP": bound["gflop"]}
        row |= {"GFLOP/s": rate, "share of ceiling": rate / ceiling, "parity": parity}
        row |= {"floor ms": measure.floor_ms(bound, ceilings), "gigabytes": bound["gigabytes"]}
        if k > 1:
            shares = measure.ratio(found["seconds"], measure.OURS, "one")
            row[SHARE] = {end: value / k for end, value in shares.items()}
        rows.append(row)
    return rows


def _plain_jit(bench: Bench) -> Calls:
    apply, step = jax.jit(bench.model.apply), jax.jit(bench.task.step)
    params, state = jax.device_put((bench.params(0), bench.slots[0]["state"]))
    image = jnp.asarray(bench.image)[None, ..., None]
    return {"forward": lambda: apply(params, image)[0], "train": lambda: step(state, bench.data)}


def compare(config: Config) -> None:
    """Measure every configuration that time allows on a CPU, cheapest first."""
    import torch

    a = torch.ones(2048, 2048)
    product = 2e-9 * 2048**3 / measure.best_seconds(lambda: (a @ a).shape)
    ceilings = {"jax matmul GFLOP/s": measure.matmul_gflops(), "torch matmul GFLOP/s": product}
    ceilings["copy GB/s"] = measure.copy_gigabytes()
    report = measure.Report(
        f"segmentation_step_{config.devices}_devices" if config.devices else "segmentation_step",
        "Training step and forward pass against PyTorch",
        COLUMNS,
        config,
        ceilings=ceilings,
        goals=GOALS,
        at=lambda row: "{mode}, width {width}, window {window}, K {K}".format(**row),
    )
    threads = torch.get_num_threads()
    text = f"PyTorch on {threads} threads. Medians; ratios: median (min to max).\n"
    report.notes, report.more = [text], {"torch_threads": threads}
    settings = [(w, n, k) for w in config.widths for n in config.windows for k in config.instances]
    rate = 0.0

    def work(setting: tuple[int, int, int]) -> float:  # grows as GFLOP
        width, window, k = setting
        return float(k * width**2 * window**2)

    def needs(setting: tuple[int, int, int]) -> float:
        return COMPILE_SECONDS * bool(rate) + (config.rounds + 1) * rate * work(setting)

    def called(setting: tuple[int, int, int]) -> str:
        return "width {}, window {}, K {}".format(*setting)

    bench: Bench | None = None
    settings.sort(key=lambda s: (s[0] ** 2 * s[1] ** 2, s[2]))
    for width, window, k in report.each(settings, called=called, needs=needs):
        try:
            if bench is None or (bench.width, bench.window) != (width, window):
                bench = Bench(width, window, most=max(config.instances))
            rows = cpu_rows(bench, k, rounds=config.rounds, ceilings=ceilings)
        except MemoryError as error:
            report.left_out.append(f"{called((width, window, k))}: {error}")
            continue
        report.rows += rows
        laps = [lap for row in rows for laps in row["seconds"].values() for lap in laps]
        rate = sum(wall for wall, _ in laps) / config.rounds / work((width, window, k))


def variants_of(bench: Bench, k: int, left_out: list[str]) -> dict[str, Calls]:
    """Every variant that fits on the first device, by name; each has run once."""
    found: dict[str, Calls] = {}
    for dtype, kind in DTYPES.items():
        typed = dataclasses.replace(bench.task, network=bench.model.clone(dtype=kind).apply)
        for strategy in ("map", "vmap") if k > 1 else ("map",):
            name = f"{dtype} {strategy}"
            try:
                first = jax.local_devices()[:1]
                engine = Engine(
                    typed, bench.slots[:k], bench.data, devices=first, strategy=strategy
                ).place(bench.image[None, ..., None])
                calls = {"forward": engine.forward, "train": engine.step}
                jax.block_until_ready([call() for call in calls.values()])
                found[name] = calls
            except jax.errors.JaxRuntimeError as error:
                left_out.append(f"K {k}, {name}: {str(error).splitlines()[0]}")
    return found | _torch_on_gpu(bench, k)


def _torch_on_gpu(bench: Bench, k: int) -> dict[str, Calls]:
    """PyTorch's models, where it is installed and sees a GPU."""
    try:
        import torch
    except ModuleNotFoundError:
        return {}
    return {"torch": bench.peers(k, "cuda")} if torch.cuda.is_available() else {}


def compare_variants(config: Config) -> None:
    """Measure every width, window and K on the first device; a report each width and window."""
    edge = 8192 if jax.default_backend() != "cpu" else 512
    ceilings = {n: measure.matmul_gflops(size=edge, dtype=d) / 1e3 for n, d in DTYPES.items()}
    named = {f"{name} TFLOP/s": value for name, value in ceilings.items()}
    for width, window in ((w, n) for w in config.widths for n in config.windows):
        bench = Bench(width, window, most=max(config.instances))
        tflop = {mode: bench.floor(mode)["gflop"] / 1e3 for mode in ("forward", "train")}
        title = f"The hybrid network on an accelerator, width {width}, window {window}"
        file = f"gpu_step_{width}_{window}"
        report = measure.Report(file, title, VARIANT_COLUMNS, config, ceilings=named)
        parity = bench.compare_dtypes()
        text = "Logits against float32 at highest precision, largest difference"
        report.notes = [f"TFLOP of one instance: {tflop}.", f"{text}: {parity}.\n"]
        report.more = {"parity": parity, "tflop": tflop}
        for k in report.each(config.instances, called="K {}".format):
            calls = variants_of(bench, k, report.left_out)
            for mode in tflop:
                seconds = measure.interleaved(
                    {name: c[mode] for name, c in calls.items()}, rounds=config.rounds
                )
                for name, laps in seconds.items():
                    middle = measure.medians(laps)
                    rate = k * tflop[mode] / middle["wall_ms"] * 1e3
                    share = rate / ceilings.get(name.split()[0], ceilings["float32"])
                    row: Row = {"mode": mode, "K": k, "variant": name, "ms (cpu)": middle}
                    row |= {"TFLOP/s": rate, "share of ceiling": share, "seconds": laps}
                    for reference in ("float32 map", "torch"):
                        if reference in seconds:
                            row[f"{reference} / this"] = measure.ratio(seconds, reference, name)
                    report.rows.append(row)


def run(config: Config) -> None:
    """Measure what the flags name, as suits the devices."""
    if config.devices:
        jax.config.update("jax_num_cpu_devices", config.devices)
    use_all_cores()
    measured: Callable[[Config], None] = compare
    if config.variants or jax.default_backend() != "cpu":
        measured = compare_variants
    measured(config)


if __name__ == "__main__":
    measure.main(Config, run, description=__doc__)
