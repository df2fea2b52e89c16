"""How fast is a plane of the loss, beside loops over its points in PyTorch?

51 x 51 points of the thesis' swiss-roll network (3614 parameters) on 200 and on 2000 points, and
points of the same plane of ResNet-20 on 2000 pictures of 32 pixels; loss and accuracy at each, in
one interleaved run:

    python -m experiments.benchmarks.surfaces

Contenders: densejax (``surface``; of ResNet-20 ``evaluate``); PyTorch's lean loop, with the full
batch in memory; of ResNet-20 also that loop in the batches and the layout that suit it best; and
the usual loop over a ``DataLoader`` with batches of 128. PyTorch has the number of threads that
is fastest for each. Then both *cold*: the first grid of a fresh process, compilation included,
imports and data not; where a lap has fewer points than the plane, its warm rate makes up the rest.
Results are compared before anything is timed. Writes ``surfaces``.

Weights are PyTorch's own draw and the plane is drawn on its state dict, so the filters are on the
first axis; both go into densejax's networks by transposition.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import torch

from densejax import trees
from densejax.cli import option
from densejax.data import points
from densejax.landscape.directions import Plane, first_axis, random_plane
from densejax.landscape.objective import LossFunction, over_batches
from densejax.landscape.surfaces import evaluate, surface
from densejax.landscape.surfaces.points import Evaluator
from densejax.models.convert import resnet_from_torch
from densejax.models.mlp import MLP
from densejax.models.resnet import resnet20
from densejax.typing import Params, Tree
from experiments.benchmarks import measure, torch_surfaces
from experiments.benchmarks.measure import OURS, Goal, Row

# 2 -> 23 -> 16 -> 26 -> 32 -> 28 -> 31 -> 1: the swiss-roll network of the thesis.
WIDTHS = (2, 23, 16, 26, 32, 28, 31, 1)
CLASSES, PICTURE = 10, 32
LEAN, TUNED, LOADER = "lean", "tuned", "loader"
BATCHES = (500, 125, 25)
# The whole plane, which a lap of a small network takes in full.
GRID = 51
SEED = 0

SWISSROLL = {"swissroll_200": 200, "swissroll_2000": 2000}
RESNET = "resnet20"
Name = Literal["swissroll_200", "swissroll_2000", "resnet20"]
CASES: tuple[Name, ...] = ("swissroll_200", "swissroll_2000", "resnet20")
# Relative, of the loss: what two libraries' rounding makes of it.
TOLERANCE = 1e-4
COLUMNS = (
    *("case", "n", "parameters", "points a lap", "rounds", "densejax ms (cpu)", "lean ms (cpu)"),
    *("tuned ms (cpu)", "loader ms (cpu)", "lean / densejax", "tuned / densejax"),
    *("loader / densejax", "cold: lean / densejax", "largest difference", "MFLOP a point"),
    *("floor ms", "settings"),
)


def _goal(column: str, least: float, of: Callable[[Row], bool] = lambda row: True) -> Goal:
    return Goal(f"{column} at least {least:g}", column, least=least, of=of)


def _small(row: Row) -> bool:
    return row["case"] != RESNET


GOALS = (
    _goal(f"{LEAN} / {OURS}", 9.0, _small),
    _goal(f"{LEAN} / {OURS}", 1.0, lambda row: not _small(row)),
    _goal(f"{TUNED} / {OURS}", 1.0),
    _goal(f"{LOADER} / {OURS}", 30.0, _small),
    _goal(f"cold: {LEAN} / {OURS}", 1.0),
)


@dataclass(frozen=True)
class Config(measure.Timed):
    """Which planes are measured."""

    only: tuple[Name, ...] = option((), "cases; all where empty", fast=("swissroll_200",))
    cold: int = option(3, "fresh processes a contender; 0 leaves them out", fast=1)
    side: int = option(4, "points of a lap of ResNet-20, along each axis", fast=2)
    pictures: int = option(2000, "of ResNet-20", fast=64)
    batch: int = option(0, "pictures that densejax reads at once; 0: the fastest")
    threads: int = option(1, "of PyTorch in a process that times a first grid")
    child: str = option("", "contender whose first grid this process is to time")


@dataclass
class Case:
    """One network on one plane.

    Attributes:
      loss_fn: densejax's.
      plane: densejax's.
      peer: PyTorch's, of the same weights, data and directions.
      coordinates: [p, 2] of a lap.
      whole: whether a lap is the whole plane.
      draw_seconds: what drawing the plane took, the first one of a process.
      settings: what was found fastest, by contender.
    """

    loss_fn: LossFunction
    plane: Plane
    peer: torch_surfaces.Peer
    coordinates: np.ndarray
    whole: bool
    draw_seconds: float
    settings: dict[str, Any]

    def ours(self) -> np.ndarray:
        """densejax's loss and accuracy at the coordinates, [p, 2]."""
        if self.whole:
            found = surface(self.loss_fn, self.plane, points=GRID, progress=False).values
        else:
            found = evaluate(self.loss_fn, self.plane, self.coordinates)
        return np.stack([found[name].ravel() for name in ("loss", "accuracy")], axis=1)

    def loop(self, contender: str) -> np.ndarray:
        """The same of a loop in PyTorch."""
        settings = dict(self.settings[contender])
        torch.set_num_threads(settings.pop("threads"))
        call = self.peer.loader if contender == LOADER else self.peer.lean
        return call(self._pairs(), **settings).numpy()

    def _pairs(self) -> list[tuple[float, float]]:
        return [(float(x), float(y)) for x, y in self.coordinates]

    def calls(self, contenders: Sequence[str]) -> dict[str, Callable[[], np.ndarray]]:
        """A call a contender."""
        return {
            name: self.ours if name == OURS else partial(self.loop, name) for name in contenders
        }

    def tune(self, contenders: Sequence[str]) -> None:
        """Find the number of threads, and of 'tuned' the batch and layout, that are fastest."""
        few = self._pairs()[: 1 if self.peer.inputs.ndim == 4 else 100]
        for name in contenders:
            if name == OURS:
                continue
            options: list[dict[str, Any]] = [{}]
            if name == TUNED:
                options = [
                    {"batch": b, "channels_last": last} for b in BATCHES for last in (False, True)
                ]
            self.settings[name] = self._fastest(name, few, options)

    def _fastest(
        self, name: str, few: list[tuple[float, float]], options: list[dict[str, Any]]
    ) -> dict[str, Any]:
        call = self.peer.loader if name == LOADER else self.peer.lean
        seconds = {}
        for threads in sorted({1, torch.get_num_threads()}):
            for place, chosen in enumerate(options):
                torch.set_num_threads(threads)
                run = partial(call, few, **chosen)
                seconds[threads, place] = measure.best_seconds(run, repeats=2)
        threads, place = min(seconds, key=lambda one: seconds[one])
        return {"threads": threads} | options[place]


def swissroll(samples: int, *, side: int = GRID) -> Case:
    """The swiss-roll network with its draw of PyTorch on so many points, the whole plane a lap."""
    torch.manual_seed(0)
    model = torch_surfaces.mlp(WIDTHS).eval()
    roll = points.swiss_roll(jax.random.key(SEED), samples // 2)
    x, labels = jnp.asarray(roll.points), jnp.asarray(roll.labels)
    net = MLP(1, widths=WIDTHS[1:-1])

    def loss(params: Params) -> dict[str, jax.Array]:
        z = net.apply({"params": params}, x)[0][:, 0]
        # Sigmoid cross-entropy.
        losses = jnp.logaddexp(0, z) - labels * z
        return {"loss": losses.mean(), "accuracy": ((z > 0) == (labels > 0)).mean()}

    def tree(state: dict[str, np.ndarray]) -> Tree:
        layers = [f"linear{i}" for i in range(len(WIDTHS) - 2)] + ["head"]
        return {
            layer: {
                "kernel": jnp.asarray(state[f"{2 * i}.weight"].T),
                "bias": jnp.asarray(state[f"{2 * i}.bias"]),
            }
            for i, layer in enumerate(layers)
        }

    return _case(loss, model, tree, np.asarray(x), np.asarray(labels), side, whole=side == GRID)


def resnet(samples: int, *, side: int, batch: int) -> Case:
    """ResNet-20 on so many pictures of noise, moments frozen; a lap is a coarse plane.

    Args:
      samples: pictures.
      side: points of a lap along each axis.
      batch: pictures that densejax reads at once; PyTorch's lean loop reads all.
    """
    torch.manual_seed(0)
    model = torch_surfaces.ResNet20(CLASSES).eval()
    rng = np.random.default_rng(0)
    pictures = rng.normal(size=(samples, PICTURE, PICTURE, 3)).astype(np.float32)
    labels = rng.integers(0, CLASSES, samples)
    net = resnet20(CLASSES)
    blank = jnp.zeros((1, PICTURE, PICTURE, 3))
    shapes = jax.eval_shape(net.init, jax.random.key(SEED), blank)
    buffers = {name: value.numpy() for name, value in model.named_buffers()}

    def variables(state: dict[str, np.ndarray]) -> Tree:
        return resnet_from_torch(state | buffers, shapes)

    moments = variables(_state(model))["batch_stats"]

    def loss(params: Params, batch: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
        x, y = batch
        logits, _ = net.apply({"params": params, "batch_stats": moments}, x)
        true = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1)
        return {"loss": -true.mean(), "accuracy": (logits.argmax(axis=1) == y).mean()}

    data = (jnp.asarray(pictures), jnp.asarray(labels))
    case = _case(
        over_batches(loss, data, size=min(batch, samples)),
        model,
        lambda state: variables(state)["params"],
        pictures.transpose(0, 3, 1, 2).copy(),
        labels,
        side,
        whole=False,
    )
    case.settings[OURS] = {"batch": batch}
    return case


def _case(
    loss_fn: LossFunction,
    model: torch.nn.Module,
    tree: Callable[[dict[str, np.ndarray]], Tree],
    inputs: np.ndarray,
    labels: np.ndarray,
    side: int,
    *,
    whole: bool,
) -> Case:
    state = _state(model)
    start = time.perf_counter()
    drawn = random_plane(jax.random.key(1), state, axes=first_axis(state))
    draw_seconds = time.perf_counter() - start
    first, second = (
        {name: np.asarray(value) for name, value in direction.items()}
        for direction in (drawn.first, drawn.second)
    )
    plane = Plane(*(tree(part) for part in (state, first, second)))
    axis = np.linspace(-1, 1, side)
    coordinates = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    device = "cpu" if jax.default_backend() == "cpu" or not torch.cuda.is_available() else "cuda"

    def on_device(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        return {name: torch.tensor(value, device=device) for name, value in arrays.items()}

    peer = torch_surfaces.Peer(
        model.to(device),
        torch.tensor(inputs, device=device),
        torch.tensor(labels, dtype=torch.int64, device=device),
        on_device(first),
        on_device(second),
    )
    every: dict[str, Any] = {
        name: {"threads": torch.get_num_threads()} for name in (LEAN, TUNED, LOADER)
    }
    return Case(loss_fn, plane, peer, coordinates, whole, draw_seconds, every | {OURS: {}})


def _state(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: p.detach().cpu().numpy().copy() for name, p in model.named_parameters()}


def contenders(name: str) -> tuple[str, ...]:
    """Who takes part in a case."""
    return (OURS, LEAN, TUNED, LOADER) if name == RESNET else (OURS, LEAN, LOADER)


def case_of(name: str, config: Config) -> Case:
    """A case by its name; a batch of 0 is densejax's fastest."""
    if name in SWISSROLL:
        return swissroll(SWISSROLL[name])
    pictures, side = config.pictures, config.side
    if config.batch:
        return resnet(pictures, side=side, batch=config.batch)
    seconds = {}
    for size in BATCHES:
        case = resnet(pictures, side=2, batch=size)
        seconds[size] = measure.best_seconds(case.ours, repeats=1)
    return resnet(pictures, side=side, batch=min(seconds, key=lambda size: seconds[size]))


def agreement(case: Case, names: Sequence[str]) -> float:
    """Largest relative difference of a loop's losses from densejax's.

    Raises:
      ValueError: it is more than rounding makes, or accuracies differ by more than a sample.
    """
    ours, largest = case.ours(), 0.0
    one = 1.001 / len(case.peer.labels)
    for name, call in case.calls([n for n in names if n != OURS]).items():
        theirs = call()
        gap = np.abs(theirs[:, 0] / ours[:, 0] - 1).max()
        # A sample between two classes may go to either.
        if not gap < TOLERANCE or np.quantile(np.abs(theirs - ours)[:, 1], 0.99) > one:
            raise ValueError(f"{name}: a loss differs from densejax's by {gap:.2g}")
        largest = max(largest, float(gap))
    return largest


def row_of(name: str, config: Config, ceilings: Mapping[str, float]) -> Row:
    """Compare and measure one case."""
    case, names = case_of(name, config), contenders(name)
    case.tune(names)
    found = agreement(case, names)
    count = len(case.coordinates)
    one = measure.floor(case.loss_fn, case.plane.centre)
    least = one["gflop"] / ceilings["float32 GFLOP/s"]
    case.settings[OURS]["chunk"] = Evaluator(case.loss_fn, case.plane).chunk
    row: Row = {
        **{"case": name, "n": len(case.peer.labels), "parameters": trees.count(case.plane.centre)},
        **{"points a lap": count, "rounds": config.rounds, "largest difference": found},
        **{"MFLOP a point": 1e3 * one["gflop"], "floor ms": 1e3 * least * count},
        "settings": {key: value for key, value in case.settings.items() if key in names},
        **measure.compared(case.calls(names), rounds=config.rounds),
    }
    return row | (_cold(name, case, row["seconds"], config) if config.cold else {})


def _cold(name: str, case: Case, seconds: measure.Rounds, config: Config) -> Row:
    """First grids of fresh processes, in turn; what a lap lacks of the plane at the warm rate."""
    more = GRID**2 / len(case.coordinates) - 1
    laps: measure.Rounds = {OURS: [], LEAN: []}
    draws = []
    for _ in range(config.cold):
        for who in laps:
            told = first_grid(name, who, case.settings, config)
            warm = measure.medians(seconds[who])
            wall = told["wall"] + more * warm["wall_ms"] / 1e3
            laps[who].append((wall, told["cpu"] + more * warm["cpu_ms"] / 1e3))
            if who == OURS:
                draws.append(told["draw"])
    return {
        "cold": {"seconds of the whole plane": laps, "seconds of the first draw": draws},
        f"cold: {LEAN} / {OURS}": measure.ratio(laps, LEAN, OURS),
    }


def first_grid(
    name: str, contender: str, settings: Mapping[str, Any], config: Config
) -> dict[str, float]:
    """Seconds of a fresh process' first grid: wall, cpu, and of drawing the plane."""
    return measure.apart(
        "surfaces",
        *(f"--child={contender}", f"--only={name}", f"--side={config.side}"),
        *(f"--pictures={config.pictures}", f"--batch={settings[OURS].get('batch', 0)}"),
        f"--threads={settings.get(contender, {}).get('threads', 1)}",
    )


def child(name: str, config: Config) -> None:
    """Time this process' first grid and print it."""
    # Backend and client are up, as after the training that led to the minimum.
    jax.block_until_ready(jax.numpy.zeros(1) + 1)
    case = case_of(name, config)
    case.settings[LEAN] = {"threads": config.threads}
    call = case.calls([config.child])[config.child]
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    print(json.dumps(seconds | {"draw": case.draw_seconds}))


def run(config: Config) -> None:
    """Measure the cases."""
    names = config.only or CASES
    if config.child:
        child(names[0], config)
        return
    ceilings = measure.ceilings()
    file, title = measure.here("surfaces"), "Planes of the loss"
    report = measure.Report(file, title, COLUMNS, config, ceilings=ceilings, goals=GOALS)
    for name in report.each(names):
        report.rows.append(row_of(name, config, ceilings))


if __name__ == "__main__":
    measure.main(Config, run, description=__doc__, all_cores=True)
