"""Selectors that cover the pool: ProbCover, MaxHerding and UHerding, all one greedy algorithm.

The labelled and selected samples S cover a sample j as well as the most similar of them does,
c_j = max_{s in S} k(s, j), and the next sample is the one that covers most beyond that:

    argmax_x  sum_j u_j [k(x, j) - c_j]_+                                                     (1)

With the indicator of a ball for k and u = 1 this is ProbCover, with a Gaussian for k MaxHerding,
with the model's uncertainty for u UHerding. A selected x changes c_j for those samples alone whose
most similar selected sample it becomes, and only these change the gains (1), by
u_j [k - c_j(before)]_+ - u_j [k - c_j(after)]_+. So nothing is computed anew and no n x n matrix is
stored: one pass over all pairs in the beginning, O(n^2 d), and one pick costs O(n q d) for the q
samples whose c_j it changes. Every sample changes once in ProbCover: O(n^2 d) altogether, whatever
the budget. In MaxHerding q is about n / |S|: O(n^2 d log(b + l)) instead of O(b n^2 d). The memory
is that of the features. Two ways bound the time for a large pool: ``targets`` sums over a random
subset of t samples j (n t instead of n^2), and ``partitioned`` splits the pool.

Similarities are rounded to 2^-20 and so are the terms of the sum, which is then a sum of integers:
exact, whatever its order. Gains do not drift with the updates, and equal gains are equal (the
lowest index wins). What is left is the rounding of one similarity to float32, which may depend on
the shape of the matrix product: about 1e-7, so that gains within about 1e-6 of each other may
change places between devices. ProbCover's counts are exact but for distances so near to the radius.
"""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from densejax.active.pool import Pool, Selection, check_budget
from densejax.active.scores import evaluate, margin
from densejax.active.strategies.distances import in_blocks, padded, resident, squared_distances
from densejax.typing import Array, Key

# The integer that stands for a similarity of one. A block's sum must stay below 2^31.
UNIT = 2**20
# Samples in a block of rows, and of targets; the smallest of the latter that holds what is left.
ROWS = 1024
TARGETS = (16, 128, 1024)


def probcover(
    key: Key,
    pool: Pool,
    budget: int,
    *,
    radius: float,
    normalize: bool = True,
    targets: int | None = None,
) -> Selection:
    """Cover as many samples as possible by balls around the selected ones, greedily.

    ProbCover of Yehuda, Dekel, Hacohen and Weinshall, "Active Learning Through a Covering Lens",
    2022 (arXiv 2205.11320), algorithm 1. Departures: a ball is closed, as in the paper (the
    released code has <); ties go to the lowest index; when all is covered the lowest available
    indices follow (the released code returns its first sample, labelled or not).

    Args:
      key: draws the targets, if ``targets`` is given.
      pool: with features. What is held out is neither selected nor covered.
      budget: number of samples.
      radius: of a ball, in the units of the (normalised) features, at least 0; see
        ``covering_radius``.
      normalize: whether features are divided by their length, as in the released code.
      targets: how many samples, drawn at random, are to be covered; all where None.

    Returns:
      The selection; scores are the numbers of newly covered samples (of the targets).

    Raises:
      ValueError: budget out of range, no or non-finite features, a negative radius.
    """
    if not radius >= 0:
        raise ValueError(f"radius {radius}: expected at least 0")
    return _cover(key, pool, budget, None, float(radius), "ball", normalize, targets)


def max_herding(
    key: Key,
    pool: Pool,
    budget: int,
    *,
    radius: float = 1.0,
    normalize: bool = True,
    targets: int | None = None,
) -> Selection:
    """Cover the samples as well as possible in a smooth sense, greedily.

    MaxHerding of Bae, Noh and Sutherland, "Generalized Coverage for More Robust Low-Budget Active
    Learning", 2024 (arXiv 2407.12212): k(x, y) = exp(-|x - y|^2 / radius^2). Departures:
    similarities are rounded to 2^-20 (see the module); ties go to the lowest index.

    Args:
      key: draws the targets, if ``targets`` is given.
      pool: with features. What is held out is neither selected nor covered.
      budget: number of samples.
      radius: of the Gaussian, in the units of the (normalised) features, positive.
      normalize: whether features are divided by their length, as in the paper.
      targets: how many samples, drawn at random, are to be covered; all where None.

    Returns:
      The selection; scores are the increases of sum_j c_j.

    Raises:
      ValueError: budget out of range, no or non-finite features, a radius that is not positive.
    """
    if not radius > 0:
        raise ValueError(f"radius {radius}: expected a positive number")
    return _cover(key, pool, budget, None, float(radius), "gaussian", normalize, targets)


def uncertainty_herding(
    key: Key,
    pool: Pool,
    budget: int,
    *,
    weights: Array | None = None,
    radius: float | None = None,
    normalize: bool = True,
    targets: int | None = None,
) -> Selection:
    """Cover the uncertain samples as well as possible, greedily.

    UHerding of Bae, Oliveira and Sutherland, "Uncertainty Herding: One Active Learning Method for
    All Label Budgets", 2024 (arXiv 2412.20644): (1) with a Gaussian k and the uncertainty u.
    Departures: probabilities are taken as they are given (the paper first calibrates them by a
    temperature, which minimises the calibration error of held-out labelled samples); similarities
    are rounded to 2^-20, and weights relative to the largest so too; ties go to the lowest index.

    Args:
      key: draws the targets, if ``targets`` is given.
      pool: with features, and probabilities (or logits or a head) where ``weights`` is None.
      budget: number of samples.
      weights: [n] floating, at least 0, u; one minus the difference of the two largest
        probabilities where None (the paper's margin).
      radius: of the Gaussian, in the units of the (normalised) features, positive; the smallest
        positive distance of two labelled samples where None, and 1 while there is none.
      normalize: whether features are divided by their length, as in the paper.
      targets: how many samples, drawn at random, are to be covered; all where None.

    Returns:
      The selection; scores are the increases of sum_j u_j c_j.

    Raises:
      ValueError: budget out of range, features or probabilities missing or not finite, a radius
        that is not positive, weights of another shape, negative or not finite.
    """
    if radius is not None and not radius > 0:
        raise ValueError(f"radius {radius}: expected a positive number")
    u = _doubts(pool) if weights is None else np.asarray(weights, np.float32)
    if u.shape != (pool.size,):
        raise ValueError(f"weights: expected [{pool.size}], found shape {u.shape}")
    wrong = np.flatnonzero(~(np.isfinite(u) & (u >= 0)))
    if wrong.size:
        raise ValueError(
            f"{wrong.size} weights are negative or not finite, the first is that of {wrong[0]}"
        )
    return _cover(key, pool, budget, u, radius, "gaussian", normalize, targets)


def covering_radius(
    pool: Pool, groups: Array, *, purity: float = 0.95, normalize: bool = True
) -> float:
    """The largest radius at which most balls hold samples of one group alone.

    The choice of delta of Yehuda et al. 2022, section 4.2, where the groups are those of k-means
    with as many clusters as classes. A ball around x is pure if it reaches no sample of another
    group, so that this is a quantile of the distances to the nearest sample of another group; it is
    found exactly, where the paper tries values.

    Args:
      pool: with features.
      groups: [n] int32, the group of each sample.
      purity: the share of balls that must be pure, in [0, 1].
      normalize: whether features are divided by their length.

    Returns:
      The radius, to one part in a million; its closed ball is pure for at least ``purity`` of the
      samples that are not held out. Infinite if there is but one group.

    Raises:
      ValueError: groups of another shape, purity out of range, no or non-finite features.
    """
    groups = np.asarray(groups)
    if groups.shape != (pool.size,):
        raise ValueError(f"groups: expected [{pool.size}], found shape {groups.shape}")
    if not 0 <= purity <= 1:
        raise ValueError(f"purity {purity}: expected 0 to 1")
    rows = _kept(pool)
    x = in_blocks(resident(pool, rows, normalize=normalize), ROWS)
    group = jnp.asarray(np.pad(groups[rows], (0, x.shape[0] * ROWS - len(rows)))).astype(jnp.int32)
    nearest = np.full(len(rows), np.inf, np.float32)
    for ids in _split(np.arange(len(rows))):
        y, own = _take(x, ids), group[ids]
        found = _nearest_other(x, group.reshape(-1, ROWS), y, own)
        nearest = np.minimum(nearest, np.asarray(found).reshape(-1)[: len(rows)])
    impure = int(np.floor((1 - purity) * len(rows) + 1e-9))
    # At most `impure` distances may lie within the closed ball.
    edge = np.sort(nearest)[min(impure, len(rows) - 1)]
    return float(np.sqrt(float(edge)) * (1 - 1e-6))


def _cover(
    key: Key,
    pool: Pool,
    budget: int,
    weights: np.ndarray | None,
    radius: float | None,
    kernel: str,
    normalize: bool,
    targets: int | None,
) -> Selection:
    """Greedy maximisation of (1)."""
    budget = check_budget(pool, budget)
    if budget == 0:
        return Selection(np.zeros(0, np.int64), np.zeros(0, np.float32))
    rows = _kept(pool)
    weight = np.ones(len(rows), np.float32) if weights is None else weights[rows]
    weight, largest = _relative(weight * _targets(key, len(rows), targets))
    x = in_blocks(resident(pool, rows, normalize=normalize), ROWS)
    labelled = np.flatnonzero(pool.is_labelled[rows])
    radius = _labelled_radius(x, labelled) if radius is None else radius

    covered = np.zeros(len(rows), np.int32)
    for ids in _split(labelled):
        covered = np.maximum(covered, _similar(x, ids, radius, kernel)[: len(rows)])
    gains = np.zeros(len(rows), np.int64)
    full = np.full(len(rows), UNIT, np.int32)
    _add_change(gains, x, weight, covered, full, radius, kernel)

    free = pool.available[rows]
    chosen, scores = np.zeros(budget, np.int64), np.zeros(budget, np.float32)
    for t in range(budget):
        pick = int(np.argmax(np.where(free, gains, -1)))
        chosen[t], scores[t], free[pick] = rows[pick], gains[pick] / UNIT * largest, False
        after = np.maximum(covered, _similar(x, np.array([pick]), radius, kernel)[: len(rows)])
        change = np.zeros_like(gains)
        _add_change(change, x, weight, covered, after, radius, kernel)
        gains, covered = gains - change, after
    return Selection(chosen, scores)


def _kept(pool: Pool) -> np.ndarray:
    """[r] rows that count: all but those held out."""
    return np.flatnonzero(pool.available | pool.is_labelled)


def _doubts(pool: Pool) -> np.ndarray:
    """[n] float32, one minus the margin of probabilities; zero for what is held out."""
    out, rows = np.zeros(pool.size, np.float32), _kept(pool)
    # Probabilities that sum to a little more than one must not become a negative weight.
    out[rows] = np.clip(1 - evaluate(margin(), pool, rows=rows), 0, 1)
    return out


def _targets(key: Key, rows: int, targets: int | None) -> np.ndarray:
    """[rows] bool: the samples that are summed over."""
    if targets is None or targets >= rows:
        return np.ones(rows, bool)
    if targets < 1:
        raise ValueError(f"targets {targets}: expected at least 1")
    mask = np.zeros(rows, bool)
    mask[np.asarray(jax.random.permutation(key, rows))[:targets]] = True
    return mask


def _relative(weight: np.ndarray) -> tuple[np.ndarray, float]:
    largest = float(weight.max(initial=0))
    return (weight / largest if largest > 0 else weight).astype(np.float32), largest


def _split(ids: np.ndarray) -> Iterator[np.ndarray]:
    """[q] -> padded pieces of a few fixed sizes, so that few programs are compiled."""
    while ids.size:
        size = next((t for t in TARGETS if t >= ids.size), TARGETS[-1])
        yield padded(ids[:size], size)
        ids = ids[size:]


def _take(x: jax.Array, ids: np.ndarray) -> jax.Array:
    """Rows of [g, s, d] blocks: [q] -> [q, d]."""
    return x[ids // x.shape[1], ids % x.shape[1]]


def _similar(x: jax.Array, ids: np.ndarray, radius: float, kernel: str) -> np.ndarray:
    """The similarity of each row with the most similar of a few: [g * s] int32 of UNIT."""
    y = _take(x, padded(ids, next(t for t in TARGETS if t >= ids.size)))
    return np.asarray(_closest(x, y, radius, kernel=kernel)).reshape(-1)


def _add_change(
    total: np.ndarray,
    x: jax.Array,
    weight: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    radius: float,
    kernel: str,
) -> None:
    """Adds to ``total`` by how much each row's gain (1) falls as c goes from before to after."""
    changed = np.flatnonzero((after > before) & (weight > 0))
    for ids in _split(changed):
        # A padding repeats a sample, which must not count twice.
        own = weight[ids] * (np.arange(ids.size) < changed.size)
        changed = changed[ids.size :]
        fall = _change(x, _take(x, ids), own, before[ids], after[ids], radius, kernel=kernel)
        total += np.asarray(fall).reshape(-1)[: total.size]


def _similarity(x: jax.Array, y: jax.Array, radius: jax.Array, kernel: str) -> jax.Array:
    """[s, q] int32 in 0 to UNIT."""
    squared = squared_distances(x, y)
    if kernel == "ball":
        return jnp.where(squared <= radius * radius, UNIT, 0).astype(jnp.int32)
    return jnp.round(UNIT * jnp.exp(-squared / (radius * radius))).astype(jnp.int32)


@partial(jax.jit, static_argnames="kernel")
def _closest(x: jax.Array, y: jax.Array, radius: jax.Array, *, kernel: str) -> jax.Array:
    """[g, s, d], [q, d] -> [g, s] int32."""
    return jax.lax.map(lambda rows: _similarity(rows, y, radius, kernel).max(axis=1), x)


@partial(jax.jit, static_argnames="kernel")
def _change(
    x: jax.Array,
    y: jax.Array,
    weight: jax.Array,
    before: jax.Array,
    after: jax.Array,
    radius: jax.Array,
    *,
    kernel: str,
) -> jax.Array:
    """[g, s, d] rows, [q, d] targets, [q] their weights and coverages -> [g, s] int32."""

    def block(rows: jax.Array) -> jax.Array:
        similarity = _similarity(rows, y, radius, kernel)

        def gain(covered: jax.Array) -> jax.Array:
            beyond = jnp.maximum(similarity - covered, 0).astype(jnp.float32)
            return jnp.round(weight * beyond).astype(jnp.int32)

        return jnp.sum(gain(before) - gain(after), axis=1)

    return jax.lax.map(block, x)


def _labelled_radius(x: jax.Array, labelled: np.ndarray) -> float:
    """The smallest positive distance of two labelled samples; 1 where there is none."""
    smallest = np.inf
    points = in_blocks(_take(x, labelled), min(ROWS, max(labelled.size, 1)))
    for ids in _split(labelled):
        smallest = min(smallest, float(_smallest_positive(points, _take(x, ids), labelled.size)))
    return float(np.sqrt(smallest)) if np.isfinite(smallest) else 1.0


@jax.jit
def _smallest_positive(x: jax.Array, y: jax.Array, count: int) -> jax.Array:
    def block(step: tuple[jax.Array, jax.Array]) -> jax.Array:
        rows, start = step
        squared = squared_distances(rows, y)
        real = start + jnp.arange(rows.shape[0])[:, None] < count
        return jnp.min(jnp.where(real & (squared > 0), squared, jnp.inf))

    return jax.lax.map(block, (x, jnp.arange(x.shape[0]) * x.shape[1])).min()


@jax.jit
def _nearest_other(x: jax.Array, group: jax.Array, y: jax.Array, own: jax.Array) -> jax.Array:
    """[g, s, d], [g, s], [q, d], [q] -> [g, s]: |x - y|^2 to the nearest of another group."""

    def block(step: tuple[jax.Array, jax.Array]) -> jax.Array:
        rows, theirs = step
        squared = squared_distances(rows, y)
        return jnp.min(jnp.where(theirs[:, None] != own, squared, jnp.inf), axis=1)

    return jax.lax.map(block, (x, group))
