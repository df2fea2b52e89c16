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
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from absl import app, flags, logging

from densejax.data import points
from densejax.landscape import basins
from densejax.landscape.basins import radius
from densejax.models.mlp import MLP
from densejax.population import use_all_cores
from densejax.typing import Params
from experiments.benchmarks import measure, released_radii, torch_radii

# Imported, a script keeps its flags to itself: the names recur in others.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()
OUT = flags.DEFINE_string(
    "out", str(Path(__file__).parent / "results"), "folder of the report", flag_values=FLAGS
)
DIRECTIONS = flags.DEFINE_integer("directions", 3000, "radii", lower_bound=1, flag_values=FLAGS)
PEERS = flags.DEFINE_integer(
    "peers", 150, "directions of the loops in PyTorch", lower_bound=1, flag_values=FLAGS
)
ROUNDS = flags.DEFINE_integer(
    "rounds", 5, "interleaved rounds that count", lower_bound=1, flag_values=FLAGS
)
GROWTH = flags.DEFINE_float(
    "growth", radius.GROWTH, "resolution of the first crossing", flag_values=FLAGS
)

WIDTHS = (23, 16, 26, 32, 28, 31)
CUTOFF, RTOL, SPAN, FIRST = 0.1, radius.RTOL, 1.0, 1e-3
TRAINING_LOSS = 0.01
# Two libraries round a loss differently; where it is steep the radius hardly does.
TOLERANCE = 1e-4
GOAL = 100.0
OURS = "densejax"
SEARCH, BISECTION, GRID, LOADER = "same search", "bisection", "released grid", "grid, loader"
SEED = 0
COLUMNS = (
    *("contender", "directions timed", "losses a radius", "ms (cpu) for all", "over densejax"),
    *("us a loss", "largest difference"),
)


@dataclass(frozen=True)
class World:
    """A minimum of the swiss roll: its loss, parameters, inputs [b, 2] and labels [b]."""

    loss: Callable[[Params], jax.Array]
    params: Params
    inputs: np.ndarray
    labels: np.ndarray

    def net(self, device: str) -> torch_radii.Net:
        """The same for PyTorch."""
        layers = [self.params[name] for name in (*(f"linear{i}" for i in range(6)), "head")]

        def tensor(array: Any) -> torch.Tensor:
            return torch.tensor(np.asarray(array), device=device)

        return torch_radii.Net(
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


def peers(w: World, directions: int, growth: float) -> dict[str, Callable[[], Any]]:
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
    limits = torch_radii.Limits(CUTOFF, FIRST, growth, SPAN, RTOL)
    centre = float(w.loss(w.params))
    grid = released_radii.SWISS_ROLL_GRID.tolist()
    search = partial(torch_radii.same_search, limits=limits, centre=centre)
    on_grid = partial(torch_radii.nearest, grid=grid, cutoff=CUTOFF)
    lean, usual = net.loss_along, torch_radii.Loader(net).loss_along
    return {
        SEARCH: partial(torch_radii.run, lean, kernels, search),
        BISECTION: partial(
            torch_radii.run, lean, kernels, partial(torch_radii.bisected, limits=limits)
        ),
        GRID: partial(torch_radii.run, lean, kernels, on_grid),
        LOADER: partial(torch_radii.run, usual, kernels, on_grid),
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


def agreement(w: World, found: basins.Radii, calls: dict[str, Callable[[], Any]]) -> dict[str, Any]:
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
            grid, share = released_radii.SWISS_ROLL_GRID, 0.98
            count = len(values)
            on_grid = released_radii.ray_losses(
                key(), w.loss, w.params, grid, directions=count, progress=False
            )
            expected, _ = released_radii.grid_radii(on_grid, grid, cutoff=CUTOFF)
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
        row: dict[str, Any] = {
            **{"contender": name, "directions timed": timed[name]},
            **{"losses a radius": losses[name], "ms (cpu) for all": middle},
            "us a loss": 1e3 * middle["wall_ms"] / (losses[name] * total),
        }
        if name != OURS:
            row["over densejax"] = measure.ratio(seconds, name, OURS)
            row["largest difference"] = agreed["difference"][name]
        rows.append(row)
    return rows


def judged(rows: measure.Rows) -> measure.Rows:
    """One line for every loop: goal, at, found, met ('yes' or 'no')."""
    return [
        {
            "goal": f"at least {GOAL:g}x the loop",
            "at": row["contender"],
            "found": row["over densejax"],
            "met": "yes" if row["over densejax"]["median"] >= GOAL else "no",
        }
        for row in rows
        if "over densejax" in row
    ]


def run(*, directions: int, few: int, rounds: int, growth: float, out: Path) -> measure.Rows:
    """Compare, measure, and write the report."""
    where, on_cpu = measure.machine(), jax.default_backend() == "cpu"
    w = world()
    few = min(few, directions)
    start = time.perf_counter()
    found = ours(w, directions, growth)
    cold = time.perf_counter() - start
    calls = peers(w, few, growth)
    threads = best_threads(calls[SEARCH])
    agreed = agreement(w, found, calls)
    timed = {OURS: directions} | dict.fromkeys(calls, few)
    seconds = measure.interleaved(
        {OURS: lambda: ours(w, directions, growth).radius} | calls, rounds=rounds
    )
    scaled = {
        name: [
            (wall * directions / timed[name], cpu * directions / timed[name]) for wall, cpu in laps
        ]
        for name, laps in seconds.items()
    }
    rows = rows_of(scaled, found, agreed, timed)
    one = measure.floor(w.loss, w.params)
    gflop = one["gflop"] * found.evaluations
    ceilings = {"float32 GFLOP/s": measure.matmul_gflops(), "copy GB/s": measure.copy_gigabytes()}
    floor = 1e3 * gflop / ceilings["float32 GFLOP/s"]
    goals = judged(rows)
    lines = [
        measure.heading("Basin radii", where, ceilings),
        f"{found}.\n\nFirst call, compilation included: {cold:.2f} s. "
        f"Threads of PyTorch: {threads}. "
        f"Floor: {found.evaluations} losses of {1e3 * one['gflop']:.3g} MFLOP, {floor:.1f} ms at "
        "the ceiling of one large product.\n",
        measure.markdown(rows, COLUMNS),
        "\n" + measure.markdown(goals, ("goal", "at", "found", "met")),
    ]
    result = {
        **{"machine": where, "ceilings": ceilings, "rows": rows, "goals": goals},
        **{"seconds": seconds, "cold_seconds": cold, "torch_threads": threads},
        **{"floor_ms": floor, "gflop": gflop, "radii": str(found)},
    }
    name = "radii" if on_cpu else "radii_gpu"
    measure.write(out, name, result=result, text="\n".join(lines))
    return rows


def main(arguments: list[str]) -> None:
    """Measure what the flags name."""
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected argument {arguments[1]!r}; flags begin with --")
    logging.set_verbosity(logging.WARNING)
    use_all_cores()
    rows = run(
        directions=DIRECTIONS.value,
        few=PEERS.value,
        rounds=ROUNDS.value,
        growth=GROWTH.value,
        out=Path(OUT.value),
    )
    print(measure.markdown(rows, COLUMNS))


if __name__ == "__main__":
    app.run(main)
