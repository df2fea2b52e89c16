"""How fast are basin radii, beside loops in PyTorch?

3000 radii of the thesis' swiss-roll network (2 -> 23 -> 16 -> 26 -> 32 -> 28 -> 31 -> 1, 3614
parameters, 200 points, sigmoid cross-entropy, cutoff 0.1), in one interleaved run:

    python -m experiments.benchmarks.radii

Contenders, all float32 on the same directions: densejax, which draws them too; and lean loops in
PyTorch over directions that are ready: the same search, loss by loss; the same bracket and plain
bisection; the 100-point grid of the released code; and that grid in the field's usual way, by a
module and a ``DataLoader``. Loops are linear in the directions, so they run on ``--peers`` of them
and their times are scaled. PyTorch has the threads that are fastest. Radii are compared before
anything is timed. Writes ``radii``.

The released code of Huang, Emam et al. 2020 evaluates a grid of distances and takes, as the radius,
the point where the loss is nearest to the threshold: not the first crossing, and with the grid's
spacing as its error, which in the logarithm of a volume is multiplied by the dimension. Its rule
(``ray_losses``, ``grid_radii``) is here for comparison; ``densejax.landscape.radii`` is what to
use. (The released code also leaves out rays whose loss at the centre is not the common one; here
the centre is computed once.)
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F
from jax import lax

from densejax.cli import option
from densejax.data import points
from densejax.landscape import basins
from densejax.landscape.basins import radius, rays
from densejax.landscape.basins.spheres import drawn
from densejax.landscape.objective import LossFunction
from densejax.models.mlp import MLP
from densejax.typing import Array, Key, Params, Tree
from experiments.benchmarks import measure
from experiments.benchmarks.measure import OURS, Calls, Goal, Row

WIDTHS = (23, 16, 26, 32, 28, 31)
CUTOFF, RTOL, SPAN, FIRST = 0.1, radius.RTOL, 1.0, 1e-3
TRAINING_LOSS = 0.01
# Two libraries round a loss differently; where it is steep the radius hardly does.
TOLERANCE = 1e-4
GOALS = (Goal("at least 100x the loop", "over densejax", least=100.0),)
SEARCH, BISECTION, GRID, LOADER = "same search", "bisection", "released grid", "grid, loader"
SEED = 0
BATCH = 128  # of the loader, as the released loops have it
# As released: 100 distances to 0.5 for the swiss roll, 12 to 0.75 for SVHN; one-sided.
SWISS_ROLL_GRID = 0.5 * np.linspace(0, 1, 100) ** 5
SVHN_GRID = 0.75 * np.linspace(0, 1, 12) ** 2

Rule = Literal["nearest", "first"]
Loss = Callable[[float], float]

COLUMNS = (
    *("contender", "directions timed", "losses a radius", "ms (cpu) for all", "over densejax"),
    *("us a loss", "largest difference"),
)


@dataclass(frozen=True)
class Config(measure.Timed):
    """How many radii."""

    directions: int = option(3000, "radii", fast=16)
    peers: int = option(150, "directions of the loops in PyTorch", fast=4)
    growth: float = option(radius.GROWTH, "resolution of the first crossing")


@dataclass(frozen=True)
class World:
    """A minimum of the swiss roll: its loss, parameters, inputs [b, 2] and labels [b]."""

    loss: Callable[[Params], jax.Array]
    params: Params
    inputs: np.ndarray
    labels: np.ndarray

    def net(self, device: str) -> "Net":
        """The same for PyTorch."""
        layers = [self.params[name] for name in (*(f"linear{i}" for i in range(6)), "head")]

        def tensor(array: Any) -> torch.Tensor:
            return torch.tensor(np.asarray(array), device=device)

        return Net(
            [tensor(layer["kernel"]) for layer in layers],
            [tensor(layer["bias"]) for layer in layers],
            tensor(self.inputs),
            tensor(self.labels.astype(np.float32)),
        )


def world() -> World:
    """Train a natural minimum: Adam at 0.01 until the loss is a tenth of the cutoff.

    Raises:
      ValueError: it does not get there.
    """
    network = MLP(1, widths=WIDTHS)
    data_key, init_key = jax.random.split(key())
    roll = points.swiss_roll(data_key, 100)
    x, labels = roll.points, roll.labels

    def loss(params: Params) -> jax.Array:
        logits = network.apply({"params": params}, x)[0][:, 0]
        return optax.sigmoid_binary_cross_entropy(logits, labels.astype(jnp.float32)).mean()

    optimiser = optax.adam(0.01)
    params = network.init(init_key, x)["params"]

    @jax.jit
    def epochs(params: Params, state: Any) -> Any:
        def epoch(carry: Any, _: Any) -> Any:
            params, state = carry
            updates, state = optimiser.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(epoch, (params, state), None, length=500)[0]

    state = optimiser.init(params)
    for _ in range(40):
        params, state = epochs(params, state)
        if float(loss(params)) < TRAINING_LOSS:
            host = jax.tree.map(np.asarray, params)
            return World(loss, host, np.asarray(x), np.asarray(labels))
    raise ValueError(f"the network's loss is {float(loss(params)):.3g} after 20000 epochs")


def key() -> jax.Array:
    """Of data and directions; not a constant, as the first array decides on the devices."""
    return jax.random.key(SEED)


def ours(w: World, directions: int, growth: float) -> basins.Radii:
    """densejax's radii."""
    return basins.radii(
        key(),
        w.loss,
        w.params,
        directions=directions,
        cutoff=CUTOFF,
        span=SPAN,
        first_step=FIRST,
        growth=growth,
        rtol=RTOL,
        progress=False,
    )


def peers(w: World, directions: int, growth: float) -> Calls:
    """The loops, by name; each returns radii and the number of losses."""
    device = "cpu" if jax.default_backend() == "cpu" or not torch.cuda.is_available() else "cuda"
    net = w.net(device)
    drawn = jax.jit(jax.vmap(lambda number: basins.direction(key(), w.params, number)))(
        jnp.arange(directions)
    )
    kernels = [
        torch.tensor(np.asarray(drawn[name]["kernel"]), device=device)
        for name in (*(f"linear{i}" for i in range(6)), "head")
    ]
    limits = Limits(CUTOFF, FIRST, growth, SPAN, RTOL)
    centre = float(w.loss(w.params))
    grid = SWISS_ROLL_GRID.tolist()
    search = partial(same_search, limits=limits, centre=centre)
    on_grid = partial(nearest, grid=grid, cutoff=CUTOFF)
    lean, usual = net.loss_along, Loader(net).loss_along
    bisection = partial(bisected, limits=limits)
    return {
        SEARCH: partial(radii_along, lean, kernels, search),
        BISECTION: partial(radii_along, lean, kernels, bisection),
        GRID: partial(radii_along, lean, kernels, on_grid),
        LOADER: partial(radii_along, usual, kernels, on_grid),
    }


def best_threads(call: Callable[[], Any]) -> int:
    """Threads with which PyTorch is fastest, of one and all; they stay set."""
    seconds = {}
    for threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        seconds[threads] = measure.best_seconds(call, repeats=2)
    best = min(seconds, key=lambda threads: seconds[threads])
    torch.set_num_threads(best)
    return best


def agreement(w: World, found: basins.Radii, calls: Calls) -> dict[str, Any]:
    """Largest relative difference from densejax, and losses a radius, of every loop.

    Of grids, the largest of 98 in 100: two points may be as near to the cutoff but for rounding.

    Raises:
      ValueError: a loop's radii are not densejax's.
    """
    result: dict[str, Any] = {"difference": {}, "losses": {}}
    for name, call in calls.items():
        values, losses = call()
        expected, share = found.radius[: len(values)], 1.0
        if name in (GRID, LOADER):
            grid, share = SWISS_ROLL_GRID, 0.98
            count = len(values)
            on_grid = ray_losses(key(), w.loss, w.params, grid, directions=count, progress=False)
            expected, _ = grid_radii(on_grid, grid, cutoff=CUTOFF)
        gap = float(np.quantile(np.abs(values / expected - 1), share))
        if not gap < TOLERANCE:
            raise ValueError(f"{name}: a radius differs from densejax's by {gap:.2g}")
        result["difference"][name], result["losses"][name] = gap, losses / len(values)
    return result


def rows_of(
    seconds: measure.Rounds, found: basins.Radii, agreed: dict[str, Any], timed: dict[str, int]
) -> measure.Rows:
    """A row a contender; ``seconds`` are scaled to all directions."""
    total = len(found.radius)
    losses = {OURS: found.evaluations / total} | agreed["losses"]
    rows: measure.Rows = []
    for name, laps in seconds.items():
        middle = measure.medians(laps)
        row: Row = {
            **{"contender": name, "case": name, "directions timed": timed[name]},
            **{"losses a radius": losses[name], "ms (cpu) for all": middle},
            "us a loss": 1e3 * middle["wall_ms"] / (losses[name] * total),
        }
        if name != OURS:
            row["over densejax"] = measure.ratio(seconds, name, OURS)
            row["largest difference"] = agreed["difference"][name]
        rows.append(row)
    return rows


def run(config: Config) -> None:
    """Compare and measure."""
    w, few = world(), min(config.peers, config.directions)
    start = time.perf_counter()
    found = ours(w, config.directions, config.growth)
    cold = time.perf_counter() - start
    calls = peers(w, few, config.growth)
    threads = best_threads(calls[SEARCH])
    agreed = agreement(w, found, calls)
    ceilings = measure.ceilings()
    report = measure.Report(
        measure.here("radii"), "Basin radii", COLUMNS, config, ceilings=ceilings, goals=GOALS
    )
    one = 1e3 * measure.floor(w.loss, w.params)["gflop"]
    floor = one * found.evaluations / ceilings["float32 GFLOP/s"]
    report.notes = [
        f"{found}.\n\nFirst call, compilation included: {cold:.2f} s. "
        f"Threads of PyTorch: {threads}. Floor: {found.evaluations} losses of {one:.3g} MFLOP, "
        f"{floor:.1f} ms at the ceiling of one large product.\n"
    ]
    report.more = {"cold_seconds": cold, "torch_threads": threads, "floor_ms": floor}
    report.more |= {"gflop": one * found.evaluations / 1e3, "radii": str(found)}
    for _ in report.each([f"{config.directions} radii"]):
        mine = {OURS: lambda: ours(w, config.directions, config.growth).radius}
        seconds = measure.interleaved(mine | calls, rounds=config.rounds)
        report.more["seconds"] = seconds
        timed = {OURS: config.directions} | dict.fromkeys(calls, few)
        scaled = {
            name: [(wall * scale, cpu * scale) for wall, cpu in laps]
            for name, laps in seconds.items()
            for scale in [config.directions / timed[name]]
        }
        report.rows += rows_of(scaled, found, agreed, timed)


# ---- the released rule ----


def ray_losses(
    key: Key, loss_fn: LossFunction, params: Params, grid: Array, *, directions: int, **options: Any
) -> np.ndarray:
    """Losses [k, p] float32 at the distances ``grid`` [p] along k random rays.

    The rays are those of ``landscape.radii`` by the same key; ``options`` are of ``rays.run``.
    """
    draw, operand = drawn(key, geometry="spheres", normalise="filter", biases="zero", axes=None)
    return rays.run(
        _on_grid,
        draw,
        loss_fn,
        jax.tree.map(lambda leaf: np.asarray(leaf)[None], params),
        own=None,
        operand=operand | {"grid": np.asarray(grid, np.float32)},
        directions=directions,
        **options,
    )[0]


def grid_radii(
    losses: Array, grid: Array, *, cutoff: float = 0.1, rule: Rule = "nearest"
) -> tuple[np.ndarray, np.ndarray]:
    """Radii on a grid.

    Args:
      losses: [k, p] along rays.
      grid: [p], distances, rising.
      cutoff: of the loss. The released code has 1.0, the thesis says 0.1.
      rule: "nearest", the distance whose loss is nearest to the cutoff, the smaller of two as
        near, as released; or "first", the first whose loss is not below it.

    Returns:
      radius: [k] float64. "nearest" may be 0; "first" is the last distance where all are below.
      censored: [k] bool, whether all losses are below the cutoff.

    Raises:
      ValueError: the shapes or the rule are not as above, or the grid does not rise.
    """
    values, distances = np.asarray(losses, np.float64), np.asarray(grid, np.float64)
    if distances.ndim != 1 or values.ndim != 2 or values.shape[1] != distances.size:
        raise ValueError(
            f"losses have shape {list(values.shape)} and the grid {list(distances.shape)}: "
            "expected [k, p] and [p]"
        )
    if np.any(np.diff(distances) <= 0):
        raise ValueError("the grid does not rise")
    above = ~(np.isfinite(values) & (values < cutoff))
    censored = np.logical_not(above.any(axis=1))
    if rule == "nearest":
        gap = np.where(np.isfinite(values), np.abs(values - cutoff), np.inf)
        return distances[gap.argmin(axis=1)], censored
    if rule != "first":
        raise ValueError(f"rule {rule!r}: expected nearest or first")
    return distances[np.where(censored, -1, above.argmax(axis=1))], censored


def _on_grid(losses: Any, own: Tree, live: jax.Array, operand: Tree) -> jax.Array:
    """The search of ``rays.run`` that looks everywhere: [c, p]."""
    del own
    zeros = jnp.zeros(live.shape, jnp.float32)
    return lax.map(lambda distance: losses(zeros + distance), operand["grid"]).T


# ---- loops over directions, and in them over distances, in PyTorch ----


@dataclass(frozen=True)
class Net:
    """A minimum and its data, as one writes it: full batch in memory, no module, no gradient.

    Attributes:
      kernels: [in, out] float32 each.
      biases: [out] float32 each.
      inputs: [b, 2] float32.
      labels: [b] float32, 0 or 1.
    """

    kernels: list[torch.Tensor]
    biases: list[torch.Tensor]
    inputs: torch.Tensor
    labels: torch.Tensor

    def loss_along(self, direction: list[torch.Tensor]) -> Loss:
        """Sigmoid cross-entropy at a distance along a direction of the kernels."""

        def loss(distance: float) -> float:
            y = self.inputs
            for i, (w, d, b) in enumerate(zip(self.kernels, direction, self.biases, strict=True)):
                y = torch.addmm(b, y, torch.add(w, d, alpha=distance))
                y = torch.relu(y) if i + 1 < len(self.kernels) else y
            return F.binary_cross_entropy_with_logits(y[:, 0], self.labels).item()

        return loss


@dataclass(frozen=True)
class Limits:
    """Of a search: see ``densejax.landscape.basins.radii``."""

    cutoff: float
    first_step: float
    growth: float
    span: float
    rtol: float


def bisected(loss: Loss, limits: Limits) -> tuple[float, int]:
    """Radius by a geometric bracket and bisection, and how many losses it took."""
    low, high, count = 0.0, limits.first_step, 1
    while loss(high) < limits.cutoff:
        if high >= limits.span:
            return limits.span, count
        low, high = high, min(high * limits.growth, limits.span)
        count += 1
    while high - low > limits.rtol * high:
        middle = (low + high) / 2
        low, high = (middle, high) if loss(middle) < limits.cutoff else (low, middle)
        count += 1
    return (low + high) / 2, count


def same_search(loss: Loss, limits: Limits, centre: float) -> tuple[float, int]:
    """Radius by densejax's own search (``basins/bisection.py``), and how many losses it took."""
    low, at_low, high, count = 0.0, centre, limits.first_step, 1
    at_high = loss(high)
    while at_high < limits.cutoff:
        if high >= limits.span:
            return limits.span, count
        low, at_low, high = high, at_high, min(high * limits.growth, limits.span)
        at_high, count = loss(high), count + 1
    if low == 0:
        raise ValueError(f"the loss crosses within the first step {limits.first_step:g}")
    first, tolerance = high - low, limits.rtol * low
    allowed = tolerance / 2 * 2 ** (np.ceil(np.log2(first / tolerance)) + 1)
    while high - low > tolerance:
        width, middle = high - low, (low + high) / 2
        point = low + width * (limits.cutoff - at_low) / (at_high - at_low)
        towards = float(np.sign(middle - point))
        truncation = max(0.2 * width**2 / first, tolerance / 2)
        point = point + towards * truncation if truncation <= abs(middle - point) else middle
        reach = max(allowed - width / 2, 0.0)
        point = point if abs(point - middle) <= reach else middle - towards * reach
        value, allowed, count = loss(point), allowed / 2, count + 1
        if value < limits.cutoff:
            low, at_low = point, value
        else:
            high, at_high = point, value
    return low + (high - low) * (limits.cutoff - at_low) / (at_high - at_low), count


def nearest(loss: Loss, grid: list[float], cutoff: float) -> tuple[float, int]:
    """Radius as released: the grid's point whose loss is nearest to the cutoff."""
    values = [abs(loss(distance) - cutoff) for distance in grid]
    return grid[int(np.argmin(values))], len(grid)


class Loader:
    """The field's habit: a module and a ``DataLoader``, its weights set at every distance."""

    def __init__(self, net: Net) -> None:
        self._net = net
        layers: list[torch.nn.Module] = []
        for w, b in zip(net.kernels, net.biases, strict=True):
            layer = torch.nn.Linear(w.shape[0], w.shape[1], device=w.device)
            layer.bias.data.copy_(b)
            layers += [layer, torch.nn.ReLU()]
        self._module = torch.nn.Sequential(*layers[:-1])
        data = torch.utils.data.TensorDataset(net.inputs, net.labels)
        self._data = torch.utils.data.DataLoader(data, batch_size=BATCH)

    def loss_along(self, direction: list[torch.Tensor]) -> Loss:
        """As ``Net.loss_along``."""
        linear = [layer for layer in self._module if isinstance(layer, torch.nn.Linear)]

        def loss(distance: float) -> float:
            for layer, w, d in zip(linear, self._net.kernels, direction, strict=True):
                layer.weight.data = (w + distance * d).T
            total = 0.0
            for inputs, labels in self._data:
                logits = self._module(inputs)[:, 0]
                mean = F.binary_cross_entropy_with_logits(logits, labels)
                total += mean.item() * len(labels)
            return total / len(self._net.labels)

        return loss


def radii_along(
    loss_along: Callable[[list[torch.Tensor]], Loss],
    directions: list[torch.Tensor],
    radius: Callable[[Loss], tuple[float, int]],
) -> tuple[np.ndarray, int]:
    """Radii [k] along stacked directions of the kernels, [k, in, out] each, and losses taken."""
    found, total = [], 0
    with torch.inference_mode():
        for one in zip(*(stacked.unbind() for stacked in directions), strict=True):
            value, count = radius(loss_along(list(one)))
            found.append(value)
            total += count
    return np.array(found), total


if __name__ == "__main__":
    measure.main(Config, run, description=__doc__, all_cores=True)
