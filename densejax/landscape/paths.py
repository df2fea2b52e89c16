"""Paths between minima: the loss along them, and paths that are bent until it is low.

A curve is given by control points, the first and the last of which are the minima: straight between
neighbours (a segment where there are but two, a chain where there are more), or the Bezier curve of
all. ``curve.at(t)`` is a tree of parameters, so whatever measures a point measures it; the ends are
the minima exactly.

Units of a network may be permuted without changing its function, and two minima that differ by
that alone have a barrier between them: none is aligned here. Batch norm's running moments are
meaningless between minima: give a loss that computes them anew at each point (Garipov et al. 2018,
appendix A.2), and to train the curve one that uses the moments of its batch.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from math import comb
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from densejax import trees
from densejax.landscape.compiled import compiled, hoisted, remembered
from densejax.landscape.filters import check_alike, is_float, split, warn_of_moments
from densejax.landscape.objective import LossFunction, loss_of, measures_of
from densejax.population import Population, Strategy, instance_key
from densejax.typing import Array, Key, Params, Tree

Kind = Literal["bezier", "chain"]


@partial(jax.tree_util.register_dataclass, data_fields=["points"], meta_fields=["kind"])
@dataclasses.dataclass(frozen=True)
class Curve:
    """A path through parameter space; a pytree itself.

    Attributes:
      points: tree of [m, ...], the m control points, at least 2; the first and last are its ends.
      kind: 'chain', straight from point to point in equal parts of t, or 'bezier', the curve of
        degree m - 1, which passes through no others than its ends.
    """

    points: Tree
    kind: Kind = "chain"

    def at(self, t: Array | float) -> Params:
        """The parameters at t in 0..1, in the dtypes of the points; exactly the ends at 0 and 1.

        Leaves that are not floating are the first point's.
        """
        count = len(split(self.points)[0][0])
        weights = _weights(self.kind, count, t)

        def mix(leaf: Array) -> jax.Array:
            if not is_float(leaf):
                return jnp.asarray(leaf)[0]
            wide = jnp.asarray(leaf, jnp.promote_types(jnp.result_type(leaf), jnp.float32))
            # Element by element: as a matrix product an accelerator would round the parameters.
            along = weights.reshape(count, *[1] * (wide.ndim - 1)).astype(wide.dtype)
            return (along * wide).sum(axis=0).astype(jnp.result_type(leaf))

        return jax.tree.map(mix, self.points)


@dataclasses.dataclass(frozen=True)
class Profile:
    """What was measured along a path.

    Attributes:
      t: [p] float64, rising from 0 to 1.
      values: [p] float64 each, by name; 'loss' is one.
    """

    t: np.ndarray
    values: dict[str, np.ndarray]

    def rise(self, *, name: str = "loss") -> np.ndarray:
        """[p]: a measure minus the straight line between its values at the two ends."""
        values = self.values[name]
        return values - ((1 - self.t) * values[0] + self.t * values[-1])

    @property
    def barrier(self) -> float:
        """The largest rise of the loss, 0 or more; nan where a loss on the way is.

        As Entezari, Sedghi, Saukh and Neyshabur 2022 define it (definition 2.1); Frankle et al.
        2020 subtract the mean of the ends instead, the same where these are equal.
        """
        return float(self.rise().max())

    @property
    def highest(self) -> float:
        """The t of the largest rise, the first where there are several."""
        return float(self.t[np.argmax(self.rise())])


def segment(first: Params, second: Params) -> Curve:
    """The straight path between two trees of parameters.

    Raises:
      ValueError: the trees differ; the first differing leaf is named.
    """
    _check_ends(first, second)
    return Curve(jax.tree.map(lambda a, b: jnp.stack([jnp.asarray(a), b]), first, second))


def profile(loss_fn: LossFunction, curve: Curve, *, points: int = 101, chunk: int = 1) -> Profile:
    """Measure points of a curve, evenly spaced in t and with both ends.

    Args:
      loss_fn: of parameters; returns a scalar or ``{name: scalar}`` with ``loss`` in it.
      curve: any.
      points: p, at least 2.
      chunk: points side by side; one after another where 1.

    Returns:
      The profile; its ``barrier`` is the largest rise over the line between the ends' losses.

    Raises:
      ValueError: fewer than 2 points, or the loss is not a scalar.
    """
    if points < 2 or chunk < 1:
        raise ValueError(f"points={points}, chunk={chunk}: expected at least 2 and at least 1")
    t = np.linspace(0, 1, points)
    values = _along(loss_fn, chunk)(curve, jnp.asarray(t, jnp.float32))
    return Profile(t, {name: np.asarray(value, np.float64) for name, value in values.items()})


def linear_barrier(
    loss_fn: LossFunction, first: Params, second: Params, *, points: int = 101, chunk: int = 1
) -> Profile:
    """The profile of the straight path between two minima, whose ``barrier`` is the linear one.

    Args:
      loss_fn: as in ``profile``.
      first: tree of arrays.
      second: tree of the same structure and shapes.
      points: as in ``profile``.
      chunk: as in ``profile``.

    Returns:
      The profile.

    Raises:
      ValueError: as in ``segment`` and ``profile``.
    """
    return profile(loss_fn, segment(first, second), points=points, chunk=chunk)


def linear_barriers(
    loss_fn: LossFunction, minima: Tree, *, points: int = 25, chunk: int = 1
) -> np.ndarray:
    """The linear barrier of every pair of several minima.

    Args:
      loss_fn: as in ``profile``.
      minima: tree of [k, ...].
      points: as in ``profile``, k (k - 1) / 2 times.
      chunk: as in ``profile``.

    Returns:
      [k, k] float64, symmetric, 0 on the diagonal.

    Raises:
      ValueError: as in ``profile``.
    """
    k = len(jax.tree.leaves(minima)[0])
    barriers = np.zeros((k, k))
    for i in range(k):
        for j in range(i + 1, k):
            pair = jax.tree.map(lambda leaf, ends=[i, j]: leaf[np.array(ends)], minima)
            barriers[i, j] = profile(loss_fn, Curve(pair), points=points, chunk=chunk).barrier
            barriers[j, i] = barriers[i, j]
    return barriers


def train_curve(
    key: Key,
    loss_fn: LossFunction,
    first: Params,
    second: Params,
    *,
    kind: Kind = "bezier",
    bends: int = 1,
    steps: int = 1000,
    samples: int = 1,
    optimiser: optax.GradientTransformation | None = None,
    batch_loss: Callable[[Key, Params], Any] | None = None,
    noise: float = 0.01,
) -> tuple[Curve, jax.Array]:
    """Bend a curve between two minima until the loss along it is low. Pure.

    Garipov, Izmailov, Podoprikhin, Vetrov and Wilson 2018, "Loss Surfaces, Mode Connectivity, and
    Fast Ensembling of DNNs" (section 3): the mean of the loss over t, uniform in 0..1, is minimised
    by the gradient at a random t a step. The ends stay as they are. Departures: Adam where they use
    SGD with momentum, a penalty on the parameters only if the loss has one; the bends start on the
    segment a little to the side, as on it the gradient may vanish by symmetry.

    Args:
      key: of the start, of every t, and of ``batch_loss``.
      loss_fn: as in ``profile``.
      first: tree of arrays, the end at t = 0.
      second: tree of the same structure and shapes, the end at t = 1.
      kind: 'bezier' or 'chain'.
      bends: control points beside the ends: 1 is Garipov et al.'s quadratic curve or chain of two.
      steps: updates.
      samples: values of t a step.
      optimiser: of the bends; None is Adam from 0.01 to 0 along a cosine.
      batch_loss: a random estimate of the loss (of a batch drawn by its key) to train on; None is
        ``loss_fn``.
      noise: Euclidean length of the random start of each bend, as a share of the ends' distance.

    Returns:
      The curve and the loss of each step [steps] float32. Warns of running moments.

    Raises:
      ValueError: as in ``segment``; an unknown kind, or a number below 1.
    """
    _check_ends(first, second)
    warn_of_moments(first)
    if kind not in ("bezier", "chain") or min(bends, steps, samples) < 1:
        raise ValueError(
            f"kind={kind!r}, bends={bends}, steps={steps}, samples={samples}: expected bezier or "
            "chain, and at least 1 each"
        )
    adam = optax.adam(optax.cosine_decay_schedule(0.01, steps))
    descent = adam if optimiser is None else optimiser
    sampled = batch_loss or (lambda _, params: loss_fn(params))
    start, key = jax.random.split(key)
    straight = segment(first, second)
    ends, join = split(straight.points)

    def curve_of(middle: list[jax.Array]) -> Curve:
        pairs = zip(ends, middle, strict=True)
        bent = join([jnp.concatenate([end[:1], bend, end[1:]]) for end, bend in pairs])
        return Curve(bent, kind)

    def loss_at(middle: list[jax.Array], key: Key) -> jax.Array:
        place, rest = jax.random.split(key)
        point = curve_of(middle).at(jax.random.uniform(place))
        return loss_of(partial(sampled, rest))(point).astype(jnp.float32)

    def step(state: tuple, index: jax.Array) -> tuple[tuple, jax.Array]:
        middle, memory = state
        keys = jax.random.split(jax.random.fold_in(key, index), samples)
        losses, slopes = lax.map(lambda one: jax.value_and_grad(loss_at)(middle, one), keys)
        slope = jax.tree.map(lambda leaf: leaf.mean(axis=0), slopes)
        updates, memory = descent.update(slope, memory, middle)
        return (optax.apply_updates(middle, updates), memory), losses.mean()

    middle = _first_bends(start, straight, bends, noise)
    (middle, _), losses = lax.scan(step, (middle, descent.init(middle)), jnp.arange(steps))
    return curve_of(middle), losses


def bezier(
    key: Key, loss_fn: LossFunction, first: Params, second: Params, **options: Any
) -> tuple[Curve, np.ndarray]:
    """``train_curve``, compiled: unless told otherwise a quadratic Bezier curve of two minima.

    Args:
      key: as in ``train_curve``.
      loss_fn: as in ``profile``.
      first: tree of arrays.
      second: tree of the same structure and shapes.
      **options: of ``train_curve``.

    Returns:
      The curve and the loss of each step [steps].

    Raises:
      ValueError: as in ``train_curve``.
    """

    def train(key: Key, first: Params, second: Params) -> tuple[Curve, jax.Array]:
        return train_curve(key, loss_fn, first, second, **options)

    curve, losses = compiled(train)(key, first, second)
    return curve, np.asarray(losses)


def train_curves(
    key: Key,
    loss_fn: LossFunction,
    firsts: Tree,
    seconds: Tree,
    *,
    strategy: Strategy = "map",
    devices: Sequence[jax.Device] | None = None,
    **options: Any,
) -> tuple[Curve, np.ndarray]:
    """``train_curve`` of many pairs of minima at once, as instances over the devices.

    Args:
      key: pair number i trains by ``fold_in(key, i)``.
      loss_fn: as in ``profile``.
      firsts: tree of [k, ...].
      seconds: tree of the same structure and shapes.
      strategy: on a device one after another, side by side, or the faster (``instances``).
      devices: all local ones by default.
      **options: of ``train_curve``.

    Returns:
      The curves, with points [k, m, ...] (``jax.tree.map(lambda leaf: leaf[i], curves)`` is one),
      and losses [k, steps].

    Raises:
      ValueError: as in ``train_curve``.
    """
    _check_ends(firsts, seconds)
    k = len(jax.tree.leaves(firsts)[0])
    population = Population(k, devices=devices, strategy=strategy)

    def train(identity: jax.Array, first: Params, second: Params) -> tuple[Curve, jax.Array]:
        return train_curve(instance_key(key, identity), loss_fn, first, second, **options)

    places = np.arange(k, dtype=np.int32)
    pair = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), (places, firsts, seconds))
    arrays, run = hoisted(train, *pair)
    placed = [population.place(tree) for tree in (places, firsts, seconds)]
    trained = population.map(run, shared=(0,), name="train_curve")
    return population.fetch(trained(population.replicate(arrays), *placed))


def _weights(kind: Kind, count: int, t: Array | float) -> jax.Array:
    """[m] float32: how much of each control point there is at t; they sum to 1."""
    t = jnp.asarray(t, jnp.float32)
    places = np.arange(count)
    if kind == "chain":
        return jnp.maximum(1 - jnp.abs(t * (count - 1) - places), 0)
    chosen = np.array([comb(count - 1, int(i)) for i in places], np.float32)
    return jnp.asarray(chosen) * t**places * (1 - t) ** places[::-1]


def _first_bends(key: Key, straight: Curve, bends: int, noise: float) -> list[jax.Array]:
    """[bends, ...] a floating leaf: evenly on the segment, each off it by a share of its length."""
    ends, _ = split(straight.points)
    distance = trees.norm([leaf[1] - leaf[0] for leaf in ends])

    def bend(index: jax.Array) -> list[jax.Array]:
        on_line, _ = split(straight.at((index + 1) / (bends + 1)))
        aside = trees.random_like(jax.random.fold_in(key, index), on_line)
        return trees.axpy(noise * distance / trees.norm(aside), aside, on_line)

    return jax.vmap(bend)(jnp.arange(bends))


def _check_ends(first: Params, second: Params) -> None:
    check_alike(first, second, names=("the first minimum", "the second minimum"))


@remembered
def _along(loss_fn: LossFunction, chunk: int) -> Callable[[Curve, jax.Array], dict[str, jax.Array]]:
    """Program that measures a curve at t [p]."""
    measures = measures_of(loss_fn)

    def along(curve: Curve, t: jax.Array) -> dict[str, jax.Array]:
        some = None if chunk == 1 else chunk
        with jax.default_matmul_precision("highest"):
            return lax.map(lambda one: measures(curve.at(one)), t, batch_size=some)

    return compiled(along)
