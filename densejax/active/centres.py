"""Selectors that spread a query in a feature space: core-set (greedy k-centre) and BADGE."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from densejax.active.greedy import Law, Rows, Shards, State, pick_greedily
from densejax.active.pool import Pool, Selection, check_budget, chunks
from densejax.typing import Key

# Squared distances below this share of the norms they are the difference of are rounding.
RESOLUTION = 1e-6
# Released pooling of BADGE's embedding: at most so many class bins, and so many bins in all.
POOLED_CLASSES = 16
POOLED_SIZE = 512

STARTS = ("nearest_mean", "one_centre", "largest_norm", "random")


def core_set(
    key: Key,
    pool: Pool,
    budget: int,
    *,
    start: str = "nearest_mean",
    front: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Selection:
    """Greedy k-centre, furthest first: each pick is the furthest from all labelled and picked.

    The running minimum of squared distances is all that is kept a sample; a pass over the pool
    serves many picks (``greedy``). Which pick is nearest to a sample comes from a matrix product of
    features about their mean, the distance to it from their difference; so a distance is that of
    the exact nearest, unless two picks are closer to each other than about 1e-3 of the sample's
    norm about the mean, when it may be that of the second.

    Work is O(n (l + b) d); memory the features where they fit (2 GiB on a CPU, 60 % of an
    accelerator), else a few chunks, and the pool is read anew at each pass. Exact k-centre of a
    pool far beyond memory takes many reads: ``partitioned`` is the cheap approximation.

    Args:
      key: a jax key; used by ``start="random"`` alone.
      pool: features are needed; labels are not looked at.
      budget: number of samples.
      start: the first pick where nothing is labelled. ``"nearest_mean"``: the sample nearest to the
        mean of the available, O(n). ``"one_centre"``: the sample whose furthest is nearest (the
        released code); O(n^2 d), minutes beyond 10^5 samples. ``"largest_norm"``, ``"random"``.
        Greedy k-centre is within twice the best radius from any of them.
      front: samples that compete between two passes; chosen by n where None. Speed alone.
      devices: share the pool among these; the default device where None.

    Returns:
      the query in order of the picks; scores are Euclidean distances to the nearest labelled or
      picked sample, which never grow; infinity for a first pick without labels.

    Raises:
      ValueError: the pool has no finite features, cannot serve the budget, or an unknown start.

    Source: Sener & Savarese 2018, without the mixed-integer refinement, as the thesis. Unlike the
    released code a duplicate of a labelled sample never stands for it, and no [n, n] matrix exists.
    """
    budget = check_budget(pool, budget)
    if start not in STARTS:
        raise ValueError(f"start {start!r}: expected one of {', '.join(STARTS)}")
    if budget == 0:
        return _nothing()
    offset = next(c["features"] for _, c in chunks(pool, ("features",))).mean(axis=0)
    shards = Shards(pool, ("features",), partial(_centred, offset=offset), devices=devices)
    labelled = np.flatnonzero(pool.is_labelled)
    if labelled.size:
        return _selection(
            *pick_greedily(_FURTHEST, shards, budget, references=labelled, front=front)
        )
    first = _START[start](key, shards, offset)
    rest = pick_greedily(_FURTHEST, shards, budget - 1, references=np.array([first]), front=front)
    return _selection(*rest, first=first, score=np.inf)


def _nothing() -> Selection:
    return Selection(np.zeros(0, np.int64), np.zeros(0, np.float32))


def _selection(
    indices: np.ndarray, squares: np.ndarray, *, first: int | None = None, score: float = 0
) -> Selection:
    scores = np.sqrt(squares)
    if first is not None:
        indices, scores = np.r_[first, indices], np.r_[score, scores]
    return Selection(indices.astype(np.int64), scores.astype(np.float32))


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)


@jax.jit
def _centred(arrays: dict[str, jax.Array], *, offset: jax.Array) -> Rows:
    return {"x": arrays["features"] - offset}


def _furthest_apply(
    rows: Rows, state: State, picks: Rows, times: jax.Array, live: jax.Array
) -> State:
    x, centres = rows["x"], picks["x"]
    if centres.shape[0] == 1:
        nearest = centres
    else:
        # A constant of the row does not change which is nearest.
        products = jnp.sum(centres**2, axis=1) - 2 * _dot(x, centres)
        nearest = centres[jnp.argmin(jnp.where(live, products, jnp.inf), axis=1)]
    return state._replace(near=jnp.minimum(state.near, jnp.sum((x - nearest) ** 2, axis=1)))


def _furthest_rank(state: State) -> jax.Array:
    return -state.near


_FURTHEST = Law(_furthest_rank, _furthest_apply)


def _available(shards: Shards, values: np.ndarray) -> int:
    """The available row of the smallest value."""
    return int(np.argmin(np.where(shards.pool.available, values, np.inf)))


def _start_random(key: jax.Array, shards: Shards, offset: jax.Array) -> int:
    ids = np.flatnonzero(shards.pool.available)
    return int(ids[int(jax.random.randint(key, (), 0, ids.size))])


def _start_largest(key: jax.Array, shards: Shards, offset: jax.Array) -> int:
    values = shards.measure(lambda rows: _square_to(rows["x"], -offset))
    return _available(shards, -values)


def _start_mean(key: jax.Array, shards: Shards, offset: jax.Array) -> int:
    free = shards.pool.available
    total = np.zeros(offset.shape, np.float64)
    for ids, rows in shards.passes():
        total += np.asarray(rows["x"])[: len(ids)][free[ids]].sum(axis=0, dtype=np.float64)
    mean = jnp.asarray(total / free.sum(), jnp.float32)
    return _available(shards, shards.measure(lambda rows: _square_to(rows["x"], mean)))


def _start_centre(key: jax.Array, shards: Shards, offset: jax.Array) -> int:
    free = shards.pool.available
    ids = np.flatnonzero(free)
    size = min(512, ids.size)
    radii = []
    for block in shards.rows(ids, size=size):
        radius = np.zeros(size, np.float32)
        for part, rows in shards.passes():
            here = np.zeros(rows["x"].shape[0], bool)
            here[: len(part)] = free[part]
            radius = np.maximum(radius, _radius(block["x"], rows["x"], here))
        radii.append(radius)
    return int(ids[np.argmin(np.concatenate(radii)[: ids.size])])


_START = {
    "nearest_mean": _start_mean,
    "one_centre": _start_centre,
    "largest_norm": _start_largest,
    "random": _start_random,
}


@jax.jit
def _square_to(x: jax.Array, point: jax.Array) -> jax.Array:
    return jnp.sum((x - point) ** 2, axis=1)


@jax.jit
def _radius(block: jax.Array, x: jax.Array, here: jax.Array) -> jax.Array:
    """The largest squared distance of each row of the block from those of x that are here."""
    products = jnp.sum(x**2, axis=1) - 2 * _dot(block, x)
    return jnp.where(here, products, -jnp.inf).max(axis=1) + jnp.sum(block**2, axis=1)
