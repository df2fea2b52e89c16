"""The queries that ``experiments.benchmarks.selectors`` measures: pools, contenders, checks.

Every case draws a pool with classes in it, and gives the contenders the same arrays in memory (on
the accelerator, where there is one): densejax, the two PyTorch peers where PyTorch can use the same
kind of device, and the one matrix product that no exact selector can do without.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from densejax.active import scores
from densejax.active.pool import Pool
from densejax.active.strategies import badge, base, core_set
from experiments.benchmarks import measure, selector_replay, torch_selectors

Call = Callable[[], Any]

PUBLISHED, CLOSED, PRODUCT = "published", "closed form", "one product"


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
      regret: of picks, by how much they are worse than the best (``selector_replay``).
      floor: GFLOP and gigabytes of the product.
      checked: calls in place of those of ``calls`` when the picks are compared.
    """

    sizes: Sizes
    calls: dict[str, Call]
    regret: Callable[[np.ndarray], float]
    floor: dict[str, float]
    checked: dict[str, Call] = field(default_factory=dict)


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


SEED = 0


def _peers(tensors: list[torch.Tensor] | None, **functions: Callable[..., Any]) -> dict[str, Call]:
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
    calls = {"densejax": lambda: select(jax.random.key(SEED), pool, sizes.budget).indices}
    calls |= _peers(tensors, **{k: bound(f) for k, f in peers.items()}) | {PRODUCT: product}
    return Case(sizes, calls, partial(_score_regret, name, w), floor)


def _score_regret(name: str, w: World, picks: np.ndarray) -> float:
    if name == "margin":
        values = selector_replay.margins(w.x, w.kernel, w.bias)
        return selector_replay.ranking(values, picks, w.free)
    distance = selector_replay.boundaries(w.x, w.kernel, w.bias)
    if name == "mase":
        return selector_replay.ranking(distance.min(axis=1), picks, w.free)
    return selector_replay.blocks(distance, picks, w.free)


def k_centre_case(sizes: Sizes) -> Case:
    """Core-set from labelled samples."""
    w = world(sizes)
    pool, b = w.pool(), sizes.budget
    product, floor = _unavoidable(_product, w.x, w.x[: sizes.labelled + b].T)
    calls: dict[str, Call] = {
        "densejax": lambda: core_set.core_set(jax.random.key(SEED), pool, b).indices
    }
    calls |= _peers(
        w.tensors(w.x, w.free),
        published=lambda x, free: torch_selectors.k_centre_published(x, free, b),
        closed_form=lambda x, free: torch_selectors.k_centre_closed(x, free, b),
    )
    regret = partial(selector_replay.furthest, w.x, free=w.free)
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
    calls: dict[str, Call] = {"densejax": lambda: select(jax.random.key(SEED), pool, b).indices}
    tensors = w.tensors(w.x, logits, w.free)
    calls |= _peers(tensors, published=published(True), closed_form=closed)
    regret = partial(
        selector_replay.clocks, w.x, logits, free=w.free, draws=draws, relative=relative
    )
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


def agreement(case: Case, *, tolerance: float) -> dict[str, Any]:
    """Let every contender query once and compare.

    Returns:
      ``set``: contender to the share of its picks that densejax has too; ``order``: in the same
      place; ``regret`` of each (``selector_replay``); ``seconds`` of this first query.

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
    ours = found["densejax"]
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
