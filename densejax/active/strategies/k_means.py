"""K-means: the clustering that several selectors stand on, and the selector that is nothing else.

Lloyd's algorithm is written here, though scikit-learn has it, for two reasons: a selection must be
the same bits each time, and scikit-learn adds the partial sums of its threads in the order in which
they finish; and features that lie on an accelerator should be clustered there.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from densejax.active.pool import Pool, Selection, check_budget, chunks, refuse_overflow
from densejax.typing import Array, Key

# Bytes of the distances of one block of rows to all centres.
BLOCK_BYTES = 32 * 2**20


def cluster(
    key: Key, features: Array, k: int, *, weights: Array | None = None, iterations: int = 100
) -> tuple[jax.Array, jax.Array]:
    """K-means by Lloyd's algorithm from a k-means++ start, one compiled program.

    Each centre of the start is the best of 2 + log k draws (greedy k-means++, as scikit-learn).
    Lloyd's steps end when no sample changes its cluster. A cluster that loses all its samples
    restarts at the sample furthest from its centre (the second furthest for the second, ...).
    Distances are taken in float32 about the mean of all samples; of equal ones the lowest centre
    wins. The distances of a block of rows to the centres are all that is held beside the features.

    Args:
      key: a jax key; the draws of the start.
      features: [n, d] floating, finite.
      k: number of clusters, 1 to n. Fewer distinct samples than k leave clusters empty.
      weights: [n] floating, not negative, the multiplicity of each sample; ones where None.
      iterations: at most so many steps of Lloyd.

    Returns:
      centres [k, d] float32 and assignment [n] int32, the nearest centre of each sample.

    Raises:
      ValueError: shapes do not agree, k is not in 1 to n, a value is not finite, weights are
        negative or all zero, iterations are negative.

    Sources: Lloyd 1982; Arthur & Vassilvitskii 2007 (k-means++).
    """
    features = jnp.asarray(features, jnp.float32)
    _check(features, k, iterations)
    n = features.shape[0]
    if weights is None:
        weights = jnp.ones(n, jnp.float32)
    weights = jnp.asarray(weights, jnp.float32)
    if weights.shape != (n,):
        raise ValueError(f"weights: expected [{n}], one a sample, found shape {weights.shape}")
    least, total = float(weights.min()), float(weights.sum())
    if not (least >= 0 and 0 < total < math.inf):
        raise ValueError(f"weights: expected >= 0, finite, not all 0; found {least}, sum {total}")
    blocks = -(-n * k * 4 // BLOCK_BYTES)
    rows = -(-n // blocks)
    centres, assignment = _lloyd(key, features, weights, iterations, k=k, rows=rows)
    return centres, assignment


def _check(features: jax.Array, k: int, iterations: int) -> None:
    if features.ndim != 2:
        raise ValueError(f"features: expected [n, d], found shape {features.shape}")
    if not 1 <= k <= features.shape[0]:
        raise ValueError(f"k {k}: expected 1 to {features.shape[0]}, the number of samples")
    if iterations < 0:
        raise ValueError(f"iterations {iterations}: expected 0 or more")
    finite = np.asarray(jnp.isfinite(features).all(axis=1))
    if not finite.all():
        raise ValueError(
            f"features: {int((~finite).sum())} rows hold values that are not finite, the first is "
            f"row {int(np.flatnonzero(~finite)[0])}"
        )


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


class _State(NamedTuple):
    """One step of Lloyd: centres [k, d], the assignment [blocks, rows] to the centres before."""

    centres: jax.Array
    assignment: jax.Array
    moved: jax.Array
    step: jax.Array


@partial(jax.jit, static_argnames=("k", "rows"))
def _lloyd(
    key: jax.Array, features: jax.Array, weights: jax.Array, iterations: int, *, k: int, rows: int
) -> tuple[jax.Array, jax.Array]:
    n, d = features.shape
    # About the mean, so that the expanded square loses no digits to a common offset.
    mean = features.mean(axis=0)
    x = features - mean
    start = _plus_plus(key, x, weights, k)
    pad = -n % rows
    x = jnp.pad(x, ((0, pad), (0, 0))).reshape(-1, rows, d)
    w = jnp.pad(weights, (0, pad)).reshape(-1, rows)

    def body(state: _State) -> _State:
        assignment, distances, sums, counts = _expect(x, w, state.centres)
        means = sums / jnp.where(counts > 0, counts, 1)[:, None]
        centres = jnp.where((counts > 0)[:, None], means, state.centres)
        centres = jax.lax.cond(
            (counts > 0).all(),
            lambda: centres,
            lambda: _refill(x, jnp.where(w > 0, distances, -1), centres, counts),
        )
        moved = (assignment != state.assignment).any()
        return _State(centres, assignment, moved, state.step + 1)

    state = _State(start, jnp.full(w.shape, -1, jnp.int32), jnp.bool_(True), jnp.int32(0))
    state = jax.lax.while_loop(lambda s: s.moved & (s.step < iterations), body, state)
    assignment, *_ = _expect(x, w, state.centres)
    return state.centres + mean, assignment.reshape(-1)[:n]


def _expect(
    x: jax.Array, w: jax.Array, centres: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Nearest centres and their squared distances [blocks, rows]; sums [k, d]; counts [k]."""
    k = centres.shape[0]
    norms = jnp.sum(centres**2, axis=1)

    def block(
        carry: tuple[jax.Array, jax.Array], xw: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        sums, counts = carry
        xb, wb = xw
        distances = norms - 2 * _dot(xb, centres.T)
        nearest = jnp.argmin(distances, axis=1).astype(jnp.int32)
        least = jnp.maximum(distances.min(axis=1) + jnp.sum(xb**2, axis=1), 0)
        # Adding rows in place is cheapest on a CPU; elsewhere it has no fixed order (atomics), and
        # a product with the indicator has.
        added, number = jax.lax.platform_dependent(
            xb,
            wb,
            nearest,
            cpu=lambda a, b, i: (
                jax.ops.segment_sum(a * b[:, None], i, k),
                jax.ops.segment_sum(b, i, k),
            ),
            default=lambda a, b, i: _indicated(a, b, i, k),
        )
        return (sums + added, counts + number), (nearest, least)

    zero = (jnp.zeros_like(centres), jnp.zeros(k))
    (sums, counts), (nearest, least) = jax.lax.scan(block, zero, (x, w))
    return nearest, least, sums, counts


def _indicated(
    x: jax.Array, w: jax.Array, nearest: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
    indicator = jnp.where(jnp.arange(k)[:, None] == nearest, w, 0)
    return _dot(indicator, x), indicator.sum(axis=1)


def _refill(x: jax.Array, distances: jax.Array, centres: jax.Array, counts: jax.Array) -> jax.Array:
    """The e-th empty cluster goes to the e-th furthest sample, unless that lies on its centre."""
    k, d = centres.shape
    flat, furthest = distances.reshape(-1), x.reshape(-1, d)
    values, places = jax.lax.top_k(flat, min(k, flat.size))
    empty = counts <= 0
    rank = jnp.clip(jnp.cumsum(empty) - 1, 0, values.size - 1)
    take = empty & (values[rank] > 0)
    return jnp.where(take[:, None], furthest[places[rank]], centres)


def _plus_plus(key: jax.Array, x: jax.Array, w: jax.Array, k: int) -> jax.Array:
    """Greedy k-means++: [k, d], each the draw of several that lowers the potential most."""
    trials = 2 + int(math.log(k))
    norms = jnp.sum(x**2, axis=1)

    def draw(key: jax.Array, mass: jax.Array, number: int) -> jax.Array:
        total = jnp.cumsum(mass)
        u = jax.random.uniform(key, (number,)) * total[-1]
        return jnp.minimum(jnp.searchsorted(total, u, side="right"), mass.size - 1)

    def distances(i: jax.Array) -> jax.Array:
        return jnp.maximum(norms[:, None] + norms[i] - 2 * _dot(x, x[i].T), 0)

    def pick(nearest: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        i = draw(key, w * nearest, trials)
        after = jnp.minimum(nearest[:, None], distances(i).at[i, jnp.arange(trials)].set(0))
        best = jnp.argmin(w @ after)
        return after[:, best], i[best]

    keys = jax.random.split(key, k)
    first = draw(keys[0], w, 1)
    nearest = distances(first)[:, 0].at[first].set(0)
    _, rest = jax.lax.scan(pick, nearest, keys[1:])
    return x[jnp.concatenate([first, rest])]


def k_means(key: Key, pool: Pool, budget: int, *, iterations: int = 100) -> Selection:
    """The samples nearest to the centres of ``budget`` clusters of the available samples.

    The available features are clustered in memory (``partitioned`` serves pools that are larger).
    A sample that is the nearest of two centres goes to the closer one (to the lower of two equally
    close), and the other centre takes the nearest of the samples left.

    Args:
      key: a jax key; the start of the clustering.
      pool: features are needed; labels are not looked at.
      budget: number of samples.
      iterations: at most so many steps of Lloyd.

    Returns:
      the query, one sample a centre in the order of the centres; scores are the Euclidean distances
      from the centres (small: typical).

    Raises:
      ValueError: the pool has no finite features, or cannot serve the budget.

    Source: Roels & Saeys 2019, k-means with k = batch on the encoder's features.
    """
    budget = check_budget(pool, budget)
    rows = np.flatnonzero(pool.available)
    if budget == 0:
        return Selection(np.zeros(0, np.int64), np.zeros(0, np.float32))
    parts = []
    for ids, read in chunks(pool, ("features",), rows=rows):
        refuse_overflow(ids, read["features"])
        parts.append(read["features"][: len(ids)])
    features = jnp.concatenate(parts)
    centres, _ = cluster(key, features, budget, iterations=iterations)
    chosen, distances = _representatives(features, centres)
    return Selection(rows[chosen].astype(np.int64), distances)


def _representatives(features: jax.Array, centres: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """The nearest sample of each centre, each once: [k] positions and [k] float32 distances."""
    (n, _), k = features.shape, centres.shape[0]
    chosen = np.full(k, -1, np.int64)
    distances = np.zeros(k, np.float32)
    taken = np.zeros(n, bool)
    size = max(1, min(k, BLOCK_BYTES // (4 * n)))
    waiting = np.arange(k)
    while waiting.size:
        near, far = np.zeros(waiting.size, np.int64), np.zeros(waiting.size, np.float32)
        for start in range(0, waiting.size, size):
            part = waiting[start : start + size]
            # One shape, so one program: the last block repeats its last centre.
            filled = np.concatenate([part, np.repeat(part[-1:], size - part.size)])
            i, values = _nearest_free(features, centres[filled], taken)
            near[start : start + part.size] = np.asarray(i)[: part.size]
            far[start : start + part.size] = np.asarray(values)[: part.size]
        order = np.lexsort((waiting, far, near))
        won = order[np.r_[True, np.diff(near[order]) > 0]]
        chosen[waiting[won]], distances[waiting[won]] = near[won], far[won]
        taken[near[won]] = True
        waiting = np.delete(waiting, won)
    return chosen, distances


@jax.jit
def _nearest_free(
    features: jax.Array, centres: jax.Array, taken: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The nearest sample that is not taken: [q] int32 and its distance [q]."""

    def one(centre: jax.Array) -> tuple[jax.Array, jax.Array]:
        distances = jnp.where(taken, jnp.inf, jnp.sum((features - centre) ** 2, axis=1))
        i = jnp.argmin(distances)
        return i, jnp.sqrt(distances[i])

    return jax.lax.map(one, centres)
