"""How fast are densejax's query strategies, beside PyTorch?

Margin, MASE and BASE (50 000 x 512, 100 classes, 1000 picks), k-centre (20 000 x 128, 500 picks)
and BADGE (5000 x 512, 200 picks), against the algorithm as the published PyTorch code performs it
and against PyTorch given the same closed form, in one interleaved run:

    python -m experiments.benchmarks.selectors --minutes=40

Every case draws a pool with classes in it, and gives the contenders the same arrays in memory (on
the accelerator, where there is one): densejax, the two PyTorch peers where PyTorch can use the same
kind of device, and the one matrix product that no exact selector can do without.

Before timing, the picks are compared: the same set, or one that differs where float64 says that the
samples are as good. Runs on an accelerator too, where the time of the one
product that cannot be avoided is the measure. Writes ``selectors``. Pools that are larger than
memory: ``selector_scale``.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from densejax.active import scores
from densejax.active.pool import Pool
from densejax.active.strategies import badge, base, core_set
from densejax.cli import option
from experiments.benchmarks import measure, torch_selectors
from experiments.benchmarks.measure import OURS, Calls, Goal, Row

Call = Callable[[], Any]

SEED = 0
PUBLISHED, CLOSED, PRODUCT = "published", "closed form", "one product"
# Regret that rounding explains, of a typical value.
TOLERANCE = 1e-4
# The published form is slow: no more rounds of it than take this long, from 1 to 3.
PUBLISHED_SECONDS = 120.0
GOALS = (
    Goal(
        "at least 100x the published form",
        "published / densejax",
        least=100.0,
        # The published margin materialises nothing that the closed form avoids.
        of=lambda row: row["case"] != "margin",
    ),
    Goal("at least 1.2x PyTorch given the closed form", "closed form / densejax", least=1.2),
)
ON_ACCELERATOR = Goal("within 2x of the one product", "densejax / one product", most=2.0)
COLUMNS = (
    *("case", "n", "d", "c", "labelled", "b", "rounds", "published rounds"),
    *("densejax ms (cpu)", "published ms (cpu)", "closed form ms (cpu)", "one product ms (cpu)"),
    *("published / densejax", "closed form / densejax", "densejax / one product"),
    *("same set: published", "closed form", "largest regret", "GFLOP", "gigabytes", "floor ms"),
)


@dataclass(frozen=True)
class Config(measure.Timed):
    """Which queries are measured."""

    rounds: int = option(7, "interleaved rounds that count", fast=1)
    minutes: float = option(40.0, "start no case after so many")
    only: tuple[str, ...] = option((), "cases; all where empty", fast=("margin", "k_centre"))
    share: float = option(1.0, "of samples and picks, for a trial", fast=0.02)

    def __post_init__(self) -> None:
        super().__post_init__()
        measure.check_names(self.only, CASES)
        if not 0 < self.share <= 1:
            raise ValueError(f"--share={self.share}: expected above 0 and at most 1")


@dataclass(frozen=True)
class Sizes:
    """n, d, c, how many are labelled, and b."""

    samples: int
    features: int
    classes: int
    labelled: int
    budget: int


@dataclass(frozen=True)
class Case:
    """One query.

    Attributes:
      calls: contender to a call; all but ``PRODUCT`` return the picks, [b] int64 in order.
      regret: of picks, by how much they are worse than the best.
      floor: GFLOP and gigabytes of the product.
      checked: calls in place of those of ``calls`` when the picks are compared.
    """

    sizes: Sizes
    calls: Calls
    regret: Callable[[np.ndarray], float]
    floor: dict[str, float]
    checked: Calls = field(default_factory=dict)


@dataclass(frozen=True)
class World:
    """Arrays of a case on the host, and as each library wants them."""

    x: np.ndarray
    kernel: np.ndarray
    bias: np.ndarray
    labelled: np.ndarray

    @property
    def free(self) -> np.ndarray:
        """[n] bool."""
        return ~self.labelled

    @property
    def logits(self) -> np.ndarray:
        """[n, c] float32: what the head gives."""
        return self.x @ self.kernel + self.bias

    def pool(self, **more: Any) -> Pool:
        """The pool of densejax; arrays of an accelerator lie there."""
        arrays: dict[str, Any] = {"features": self.x} | more
        if jax.default_backend() != "cpu":
            arrays = jax.tree.map(jnp.asarray, arrays)
        return Pool(labelled=self.labelled, **arrays)

    def tensors(self, *arrays: np.ndarray) -> list[torch.Tensor] | None:
        """The peers' tensors; None where PyTorch does not see the accelerator."""
        if jax.default_backend() == "cpu":
            return [torch.from_numpy(array) for array in arrays]
        if not torch.cuda.is_available():
            return None
        return [torch.from_numpy(array).cuda() for array in arrays]


def world(sizes: Sizes, *, seed: int = 0) -> World:
    """Features about the means of their classes, and a head that is unsure of many.

    Axis j has the variance 1 / (1 + j), up to a factor: features of networks have few large
    components too, and how far apart picks lie decides how often k-centre reads its pool.
    """
    rng = np.random.default_rng(seed)
    n, d, c = sizes.samples, sizes.features, sizes.classes
    means = rng.standard_normal((c, d), np.float32)
    x = rng.standard_normal((n, d), np.float32)
    x += np.float32(4 / d**0.5) * means[rng.integers(0, c, n)]
    axes = (1 + np.arange(d, dtype=np.float32)) ** -0.5
    x *= axes / np.sqrt((axes**2).mean())
    kernel = (means + rng.standard_normal((c, d), np.float32)).T * np.float32(1.5 / d**0.5)
    labelled = np.zeros(n, bool)
    labelled[rng.choice(n, sizes.labelled, replace=False)] = True
    bias = rng.standard_normal(c).astype(np.float32)
    return World(x, np.ascontiguousarray(kernel), bias, labelled)


def _peers(tensors: list[torch.Tensor] | None, **functions: Callable[..., Any]) -> Calls:
    """Calls of the peers on tensors, by names with spaces for underscores."""
    if tensors is None:
        return {}

    def call(function: Callable[..., Any]) -> Any:
        with torch.no_grad():
            return function(*tensors)

    return {name.replace("_", " "): partial(call, f) for name, f in functions.items()}


@jax.jit
def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


@jax.jit
def _both(h: jax.Array, hs: jax.Array, g: jax.Array, gs: jax.Array) -> jax.Array:
    return _product(h, hs) * _product(g, gs)


def _unavoidable(function: Callable[..., Any], *arrays: Any) -> tuple[Call, dict[str, float]]:
    """The product as a contender, and its floor."""
    placed = [jnp.asarray(array) for array in arrays]
    return (lambda: function(*placed)), measure.floor(function, *placed)


def score_case(name: str, sizes: Sizes) -> Case:
    """Margin, MASE or BASE: from features and a linear head.

    Args:
      name: ``margin``, ``mase`` or ``base``.
      sizes: of the pool.
    """
    w = world(sizes)
    pool = w.pool(kernel=w.kernel, bias=w.bias)
    selectors: dict[str, Callable[..., Any]] = {
        "margin": scores.ranked(scores.margin()),
        "mase": base.mase,
        "base": partial(base.base, order="block"),
    }
    select = selectors[name]
    peers = {
        PUBLISHED: getattr(torch_selectors, f"{name}_published"),
        CLOSED: getattr(torch_selectors, f"{name}_closed"),
    }

    def bound(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *tensors: function(*tensors, sizes.budget)

    tensors = w.tensors(w.x, w.kernel, w.bias, w.free)
    product, floor = _unavoidable(_product, w.x, w.kernel)
    calls = {OURS: lambda: select(jax.random.key(SEED), pool, sizes.budget).indices}
    calls |= _peers(tensors, **{k: bound(f) for k, f in peers.items()}) | {PRODUCT: product}
    return Case(sizes, calls, partial(_score_regret, name, w), floor)


def _score_regret(name: str, w: World, picks: np.ndarray) -> float:
    if name == "margin":
        values = _margins(w.x, w.kernel, w.bias)
        return _ranking(values, picks, w.free)
    distance = _boundaries(w.x, w.kernel, w.bias)
    if name == "mase":
        return _ranking(distance.min(axis=1), picks, w.free)
    return _blocks(distance, picks, w.free)


def k_centre_case(sizes: Sizes) -> Case:
    """Core-set from labelled samples."""
    w = world(sizes)
    pool, b = w.pool(), sizes.budget
    product, floor = _unavoidable(_product, w.x, w.x[: sizes.labelled + b].T)
    calls: Calls = {OURS: lambda: core_set.core_set(jax.random.key(SEED), pool, b).indices}
    calls |= _peers(
        w.tensors(w.x, w.free),
        published=lambda x, free: torch_selectors.k_centre_published(x, free, b),
        closed_form=lambda x, free: torch_selectors.k_centre_closed(x, free, b),
    )
    regret = partial(_furthest, w.x, free=w.free)
    return Case(sizes, calls | {PRODUCT: product}, regret, floor)


def badge_case(sizes: Sizes, *, relative: bool) -> Case:
    """BADGE from features and logits.

    The published form draws with ``np.random.choice`` when it is timed, by densejax's clocks when
    the picks are compared; the closed form always by the clocks.
    """
    w = world(sizes)
    logits = w.logits
    pool, b = w.pool(logits=logits), sizes.budget
    draws = np.asarray(badge._exponential(jax.random.split(jax.random.key(SEED))[1], sizes.samples))

    def clocks(x: torch.Tensor) -> torch_selectors.Clocks:
        return torch_selectors.Clocks(torch.tensor(draws, device=x.device))

    def published(timed: bool) -> Callable[..., Any]:
        def run(x: torch.Tensor, z: torch.Tensor, free: torch.Tensor) -> np.ndarray:
            draw = torch_selectors.numpy_choice(0) if timed else clocks(x)
            with torch.enable_grad():
                return torch_selectors.badge_published(x, z, free, b, relative=relative, draw=draw)

        return run

    def closed(x: torch.Tensor, z: torch.Tensor, free: torch.Tensor) -> np.ndarray:
        return torch_selectors.badge_closed(x, z, free, b, relative=relative, draw=clocks(x))

    references = b + relative * sizes.labelled
    g = jax.nn.softmax(jnp.asarray(logits))
    product, floor = _unavoidable(_both, w.x, w.x[:references].T, g, g[:references].T)
    select = partial(badge.badge, relative_to_labelled=relative)
    calls: Calls = {OURS: lambda: select(jax.random.key(SEED), pool, b).indices}
    tensors = w.tensors(w.x, logits, w.free)
    calls |= _peers(tensors, published=published(True), closed_form=closed)
    regret = partial(_clock_regret, w.x, logits, free=w.free, draws=draws, relative=relative)
    checked = _peers(tensors, published=published(False))
    return Case(sizes, calls | {PRODUCT: product}, regret, floor, checked)


HEADED = Sizes(samples=50_000, features=512, classes=100, labelled=1000, budget=1000)
SPREAD = Sizes(samples=20_000, features=128, classes=100, labelled=100, budget=500)
DRAWN = Sizes(samples=5000, features=512, classes=10, labelled=500, budget=200)

CASES: dict[str, tuple[Sizes, Callable[[Sizes], Case]]] = {
    "margin": (HEADED, partial(score_case, "margin")),
    "mase": (HEADED, partial(score_case, "mase")),
    "base": (HEADED, partial(score_case, "base")),
    "k_centre": (SPREAD, k_centre_case),
    "badge": (DRAWN, partial(badge_case, relative=False)),
    "badge_labelled": (DRAWN, partial(badge_case, relative=True)),
}


# ---- the check: queries replayed in float64, pick by pick ----
#
# Two programs that round differently may order two samples differently that are all but equal, and
# a greedy selection then goes on differently. So each query is followed pick by pick, and the value
# of every pick is compared with the best that was there, given the query's own earlier picks. The
# *regret* is by how much it was worse; that of an exact selector is 0.


def _ranking(values: np.ndarray, picks: np.ndarray, free: np.ndarray) -> float:
    """Largest regret of picks that take the smallest values in order, of the median value."""
    left = np.where(free, values, np.inf)
    worst = 0.0
    for pick in picks:
        worst = max(worst, left[pick] - left.min())
        left[pick] = np.inf
    return float(worst / np.median(values))


def _margins(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """[n] float64: largest less second largest probability."""
    p = _softmax(_logits(x, kernel, bias))
    p.partition(p.shape[1] - 2, axis=1)
    return p[:, -1] - p[:, -2]


def _boundaries(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """[n, c] float64: distance to the boundary with each class; of the predicted one, the least."""
    z = _logits(x, kernel, bias)
    rows = np.asarray(kernel, np.float64).T
    table = np.stack([np.linalg.norm(rows - row, axis=1) for row in rows])
    np.fill_diagonal(table, 1)
    predicted = z.argmax(axis=1)
    at = np.arange(len(z)), predicted
    distance = (z[at][:, None] - z) / table[predicted]
    distance[at] = np.inf
    distance[at] = distance.min(axis=1)
    return distance


def _blocks(distance: np.ndarray, picks: np.ndarray, free: np.ndarray) -> float:
    """Largest regret of picks class after class (BASE as released), of each class's median."""
    classes, free, worst = distance.shape[1], free.copy(), 0.0
    shares = [len(picks) // classes + (c < len(picks) % classes) for c in range(classes)]
    for c, part in enumerate(np.split(picks, np.cumsum(shares)[:-1])):
        if len(part):
            worst = max(worst, _ranking(distance[:, c], part, free))
            free[part] = False
    return worst


def _furthest(x: np.ndarray, picks: np.ndarray, free: np.ndarray) -> float:
    """Largest regret of greedy k-centre, in squared distance, of the best."""
    x = x.astype(np.float64)
    squares = (x**2).sum(axis=1)
    near = _nearest(x, squares, np.flatnonzero(~free))
    near[~free], worst = -np.inf, 0.0
    for pick in picks:
        worst = max(worst, (near.max() - near[pick]) / near.max())
        near = np.minimum(near, ((x - x[pick]) ** 2).sum(axis=1))
        near[pick] = -np.inf
    return float(worst)


def _nearest(x: np.ndarray, squares: np.ndarray, references: np.ndarray) -> np.ndarray:
    near = np.full(len(x), np.inf)
    for part in np.array_split(references, -(-len(references) // 256)):
        products = squares[part] - 2 * (x @ x[part].T)
        near = np.minimum(near, squares + products.min(axis=1))
    return near


def _clock_regret(
    x: np.ndarray,
    logits: np.ndarray,
    picks: np.ndarray,
    free: np.ndarray,
    *,
    draws: np.ndarray,
    relative: bool,
) -> float:
    """Largest regret of BADGE's draws by clocks, in the time at which they are due."""
    x, left = x.astype(np.float64), draws.astype(np.float64)
    g = _softmax(logits.astype(np.float64))
    g[np.arange(len(g)), logits.argmax(axis=1)] -= 1
    squares = (g**2).sum(axis=1) * (x**2).sum(axis=1)
    near = np.where(free, np.inf, 0)

    def closer(near: np.ndarray, pick: int) -> np.ndarray:
        between = squares + squares[pick] - 2 * (x @ x[pick]) * (g @ g[pick])
        near = np.minimum(near, between.clip(min=0))
        near[pick] = 0
        return near

    worst, now = 0.0, 0.0
    if relative:
        for one in np.flatnonzero(~free):
            near = closer(near, int(one))
    else:
        largest = np.where(free, squares, -1)
        worst = float((largest.max() - largest[picks[0]]) / largest.max())
        near, picks = closer(near, int(picks[0])), picks[1:]
    for pick in picks:
        with np.errstate(divide="ignore", invalid="ignore"):
            wait = np.where(near > 0, left / near, np.inf)
        step = wait[pick]
        worst = max(worst, (step - wait.min()) / (now + step))
        left, now = left - near * step, now + step
        near = closer(near, int(pick))
    return float(worst)


def _logits(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) @ np.asarray(kernel, np.float64) + bias


def _softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def agreement(case: Case, *, tolerance: float) -> dict[str, Any]:
    """Let every contender query once and compare.

    Returns:
      ``set``: contender to the share of its picks that densejax has too; ``order``: in the same
      place; ``regret`` of each; ``seconds`` of this first query.

    Raises:
      ValueError: a query that the algorithm cannot make but by rounding: repeated picks, picks that
        are not free, or a regret above the tolerance.
    """
    found: dict[str, np.ndarray] = {}
    result: dict[str, Any] = {"set": {}, "order": {}, "regret": {}, "seconds": {}}
    for name, call in (case.calls | case.checked).items():
        if name != PRODUCT:
            start = time.perf_counter()
            found[name] = np.asarray(call())
            result["seconds"][name] = time.perf_counter() - start
    ours = found[OURS]
    for name, picks in found.items():
        if len(picks) != case.sizes.budget or len(np.unique(picks)) != len(picks):
            raise ValueError(f"{name} picked {len(np.unique(picks))} of {case.sizes.budget}")
        regret = case.regret(picks)
        if not regret <= tolerance:
            raise ValueError(f"{name}: a pick is worse than the best by {regret:.2g}")
        result["set"][name] = float(np.isin(picks, ours).mean())
        result["order"][name] = float((picks == ours).mean())
        result["regret"][name] = regret
    return result


def row_of(name: str, config: Config, ceilings: Mapping[str, float]) -> Row:
    """Compare and measure one case.

    Raises:
      ValueError: a contender's query is not one the algorithm can make.
    """
    sizes, make = CASES[name]
    if config.share < 1:
        sizes = replace(
            sizes,
            samples=max(200, int(config.share * sizes.samples)),
            labelled=max(10, int(config.share * sizes.labelled)),
            budget=max(10, int(config.share * sizes.budget)),
        )
    case = make(sizes)
    found = agreement(case, tolerance=TOLERANCE)
    quick = {who: call for who, call in case.calls.items() if who != PUBLISHED}
    row: Row = {
        **{"case": name, "n": sizes.samples, "d": sizes.features, "c": sizes.classes},
        **{"labelled": sizes.labelled, "b": sizes.budget, "rounds": config.rounds},
        **{"agreement": found, "largest regret": max(found["regret"].values())},
        **{"GFLOP": case.floor["gflop"], "gigabytes": case.floor["gigabytes"]},
        "floor ms": measure.floor_ms(case.floor, ceilings),
        **measure.compared(quick, rounds=config.rounds),
    }
    row["densejax / one product"] = measure.ratio(row["seconds"], OURS, PRODUCT)
    if CLOSED in quick:
        row["closed form"] = found["set"][CLOSED]
    if PUBLISHED in case.calls:
        rounds = int(min(3, max(1, PUBLISHED_SECONDS // found["seconds"][PUBLISHED])))
        pair = {who: case.calls[who] for who in (PUBLISHED, OURS)}
        slow = measure.compared(pair, rounds=rounds)
        row |= {"published rounds": rounds, "published seconds": slow["seconds"]}
        row |= {name: slow[name] for name in ("published ms (cpu)", "published / densejax")}
        row["same set: published"] = found["set"][PUBLISHED]
    return row


def run(config: Config) -> None:
    """Measure the cases."""
    ceilings = measure.ceilings()
    report = measure.Report(
        measure.here("selectors"),
        "Query strategies",
        COLUMNS,
        config,
        ceilings=ceilings,
        goals=GOALS if jax.default_backend() == "cpu" else (*GOALS, ON_ACCELERATOR),
    )
    for name in report.each(config.only or tuple(CASES)):
        report.rows.append(row_of(name, config, ceilings))


if __name__ == "__main__":
    measure.main(Config, run, description=__doc__)
