"""Core-set: greedy k-centre in the space of the features."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from densejax.active.pool import Pool, Selection, check_budget
from densejax.active.strategies.greedy import (
    Law,
    Rows,
    Shards,
    State,
    about_mean,
    as_selection,
    dot,
    first_available,
    pick_greedily,
    random_start,
)
from densejax.typing import Key

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
    features about the picks' mean, the distance to it from their difference; so a distance is that
    of the exact nearest, unless two picks are closer to each other than about 1e-3 of the norms
    about that mean, when it may be that of the second.

    Work is O(n (l + b) d), as matrix products; memory the features where they fit (2 GiB on a CPU,
    60 % of an accelerator), else a few chunks, and the pool is read anew at each pass: one for up
    to 512 picks, more often where picks lie so close that they soon change the order.

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
        return Selection(np.zeros(0, np.int64), np.zeros(0, np.float32))
    shards = Shards(pool, ("features",), _points, devices=devices)
    labelled = np.flatnonzero(pool.is_labelled)
    if labelled.size:
        picks = pick_greedily(_FURTHEST, shards, budget, references=labelled, front=front)
        return as_selection(*picks)
    first = _start(start, key, shards)
    rest = pick_greedily(_FURTHEST, shards, budget - 1, references=np.array([first]), front=front)
    return as_selection(*rest, first=first, score=np.inf)


def _points(arrays: dict[str, jax.Array]) -> Rows:
    return {"x": arrays["features"]}


def _furthest_apply(
    rows: Rows, state: State, picks: Rows, times: jax.Array, live: jax.Array
) -> State:
    x, centres = rows["x"], picks["x"]
    if centres.shape[0] == 1:
        nearest = centres
    else:
        # About the centres' mean, so that the expanded square loses no digits to a common offset;
        # the square of x does not change which is nearest.
        about, offset = about_mean(centres)
        products = jnp.sum(about**2, axis=1) - 2 * dot(x - offset, about)
        nearest = centres[jnp.argmin(jnp.where(live, products, jnp.inf), axis=1)]
    return state._replace(near=jnp.minimum(state.near, jnp.sum((x - nearest) ** 2, axis=1)))


def _furthest_rank(state: State) -> jax.Array:
    return -state.near


_FURTHEST = Law(_furthest_rank, _furthest_apply)


def _start(start: str, key: jax.Array, shards: Shards) -> int:
    """The first pick of a core-set without labels."""
    if start == "random":
        return random_start(key, shards)
    if start == "one_centre":
        return _start_centre(shards)
    if start == "largest_norm":
        norms = shards.measure(lambda rows: jnp.sum(rows["x"] ** 2, axis=1))
        return first_available(shards, -norms)
    free = shards.pool.available
    total = np.float64(0)
    for ids, rows in shards.passes():
        x = np.asarray(rows["x"])[: len(ids)][free[ids]]
        total = total + x.sum(axis=0, dtype=np.float64)
    mean = jnp.asarray(total / free.sum(), jnp.float32)
    return first_available(shards, shards.measure(lambda rows: _square_to(rows["x"], mean)))


def _start_centre(shards: Shards) -> int:
    free = shards.pool.available
    ids = np.flatnonzero(free)
    size = min(512, ids.size)
    radii = []
    for _, block in shards.rows(ids, size=size):
        radius = np.full(size, -np.inf, np.float32)
        for part, rows in shards.passes():
            here = np.zeros(rows["x"].shape[0], bool)
            here[: len(part)] = free[part]
            radius = np.maximum(radius, _radius(block["x"], rows["x"], here))
        radii.append(radius)
    return int(ids[np.argmin(np.concatenate(radii)[: ids.size])])


@jax.jit
def _square_to(x: jax.Array, point: jax.Array) -> jax.Array:
    return jnp.sum((x - point) ** 2, axis=1)


@jax.jit
def _radius(block: jax.Array, x: jax.Array, here: jax.Array) -> jax.Array:
    """The largest squared distance of each row of the block from those of x that are here."""
    products = jnp.sum(x**2, axis=1) - 2 * dot(block, x)
    return jnp.where(here, products, -jnp.inf).max(axis=1) + jnp.sum(block**2, axis=1)
