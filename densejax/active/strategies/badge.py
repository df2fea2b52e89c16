"""BADGE: k-means++ draws among the gradients of the head at the predicted class."""

from collections.abc import Callable, Sequence
from functools import partial

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

# Squared distances below this share of the norms they are the difference of are rounding.
RESOLUTION = 1e-6
# Released pooling of BADGE's embedding: at most so many class bins, and so many bins in all.
POOLED_CLASSES = 16
POOLED_SIZE = 512


def badge(
    key: Key,
    pool: Pool,
    budget: int,
    *,
    relative_to_labelled: bool = False,
    first: str = "largest_norm",
    pooled: bool = False,
    front: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Selection:
    """BADGE: k-means++ draws among the gradients of the head at the predicted class.

    The embedding of a sample is the outer product of g, the softmax less the indicator of its
    largest entry, and the features h; it is never formed. With A and B the squared distances of two
    samples in g and in h, P and Q the sums and p and q the differences of their squared norms, the
    squared distance is (A Q + B P - A B + p q) / 2, in which nearly equal samples lose no digits to
    the norms. Each pick is drawn with probability in proportion to the squared distance from the
    nearest pick (or labelled sample).

    The draws are a race of clocks, one exponential variable a sample for the whole query: a sample
    is due when the integral of its rate, its squared distance, reaches its variable. By the lack of
    memory of the exponential, which clock is due first, whatever was due before, has exactly the
    probability wanted; and as rates only fall, a pass over the pool serves many picks (``greedy``).
    Samples without any distance left are never due and come last, by lowest index. A and B below
    1e-6 of the norms count as 0.

    Args:
      key: a jax key; the draws.
      pool: features, and logits (or a head, or probabilities) are needed; labels are not looked at.
      budget: number of samples.
      relative_to_labelled: whether distances count from the labelled samples too, as in the
        released code of the thesis; otherwise from picks alone, as Ash et al.
      first: the first pick, where there are no labelled samples to be relative to:
        ``"largest_norm"`` (Ash et al.'s code) or ``"random"`` (k-means++).
      pooled: whether the embedding is averaged to min(c, 16) by 512 // min(c, 16) bins, as the
        released code of the thesis does when partitioned. Pooling is separable, so g and h are
        pooled alone.
      front: samples that compete between two passes; chosen by n where None. Speed alone.
      devices: share the pool among these; the default device where None.

    Returns:
      the query in order of the picks; scores are Euclidean distances of embeddings from the nearest
      pick (or labelled sample) when drawn, of a largest first pick its norm, of a random one inf.

    Raises:
      ValueError: an array is missing or not finite, the budget cannot be served, unknown ``first``.

    Source: Ash et al. 2020. Unlike the released code the embedding does not depend on the batch in
    which its gradient was taken, and no sample is drawn twice.
    """
    budget = check_budget(pool, budget)
    if first not in ("largest_norm", "random"):
        raise ValueError(f"first {first!r}: expected largest_norm or random")
    if budget == 0:
        return Selection(np.zeros(0, np.int64), np.zeros(0, np.float32))
    shards = Shards(pool, ("features", _output(pool)), _embedding(pool, pooled), devices=devices)
    key_first, key_draws = jax.random.split(key)
    draws = np.asarray(_exponential(key_draws, pool.size))
    labelled = np.flatnonzero(pool.is_labelled)
    if relative_to_labelled and labelled.size:
        picks = pick_greedily(_DRAWN, shards, budget, references=labelled, draws=draws, front=front)
        return as_selection(*picks)
    if first == "random":
        start, score = random_start(key_first, shards), np.inf
    else:
        squares = shards.measure(_embedding_square)
        start = first_available(shards, -squares)
        score = float(np.sqrt(squares[start]))
    references = np.array([start])
    picks = pick_greedily(
        _DRAWN, shards, budget - 1, references=references, draws=draws, front=front
    )
    return as_selection(*picks, first=start, score=score)


def _output(pool: Pool) -> str:
    return "logits" if pool.logits is not None or pool.kernel is not None else "probabilities"


def _embedding(pool: Pool, pooled: bool) -> Callable[[dict[str, jax.Array]], Rows]:
    """The function of a chunk's arrays to the factors of its embeddings."""
    output = _output(pool)
    if not pooled:
        return partial(_factors, bins=None, output=output)
    if pool.features is None:
        raise ValueError("this selector needs the pool's features")
    classes = min(pool.classes, POOLED_CLASSES)
    bins = _bins(pool.classes, classes), _bins(pool.features.shape[1], POOLED_SIZE // classes)
    return partial(_factors, bins=bins, output=output)


def _bins(size: int, bins: int) -> jax.Array:
    """Adaptive average pooling as a matrix [size, bins]: bin i averages what it overlaps."""
    at = np.arange(bins)
    start, end = at * size // bins, -(-(at + 1) * size // bins)
    inside = (np.arange(size)[:, None] >= start) & (np.arange(size)[:, None] < end)
    return jnp.asarray(inside / (end - start), jnp.float32)


@partial(jax.jit, static_argnames="output")
def _factors(
    arrays: dict[str, jax.Array],
    *,
    bins: tuple[jax.Array, jax.Array] | None,
    output: str,
) -> Rows:
    """g [s, c], h [s, d] and their squared norms gg and hh [s]."""
    values, h = arrays[output], arrays["features"]
    p = jax.nn.softmax(values, axis=1) if output == "logits" else values
    predicted = jnp.argmax(values, axis=1)[:, None] == jnp.arange(p.shape[1])
    others = jnp.where(predicted, 0, p)
    # The sum of the others, not 1 less the largest, which would round to 0 when it is certain.
    g = jnp.where(predicted, -others.sum(axis=1, keepdims=True), others)
    if bins is not None:
        g, h = dot(g, bins[0].T), dot(h, bins[1].T)
    return {"g": g, "h": h, "gg": jnp.sum(g**2, axis=1), "hh": jnp.sum(h**2, axis=1)}


def _gap(a: jax.Array, b: jax.Array) -> jax.Array:
    """Squared distances of rows, [s, q]; 0 where it is rounding."""
    norms = jnp.sum(a**2, axis=1)[:, None] + jnp.sum(b**2, axis=1)
    squares = norms - 2 * dot(a, b)
    return jnp.where(squares > RESOLUTION * norms, squares, 0)


def _embedding_gap(rows: Rows, picks: Rows) -> jax.Array:
    """Squared distances of embeddings, [s, q]."""
    about, offset = about_mean(picks["h"])
    a = _gap(rows["g"], picks["g"])
    b = _gap(rows["h"] - offset, about)
    gi, gj, hi, hj = rows["gg"][:, None], picks["gg"], rows["hh"][:, None], picks["hh"]
    square = a * (hi + hj) + b * (gi + gj) - a * b + (gi - gj) * (hi - hj)
    return jnp.where((a == 0) & (b == 0), 0, jnp.maximum(square / 2, 0))


def _drawn_apply(rows: Rows, state: State, picks: Rows, times: jax.Array, live: jax.Array) -> State:
    def one(state: State, pick: tuple[jax.Array, ...]) -> tuple[State, None]:
        square, time, is_live = pick
        closer = is_live & (square < state.near)
        # What is left of the wait stretches as the rate falls.
        stretch = state.near / jnp.where(square > 0, square, 1)
        due = jnp.where(square > 0, time + (state.due - time) * stretch, jnp.inf)
        due = jnp.where(closer & jnp.isfinite(state.due), due, state.due)
        return State(jnp.where(closer, square, state.near), due), None

    return jax.lax.scan(one, state, (_embedding_gap(rows, picks).T, times, live))[0]


def _drawn_rank(state: State) -> jax.Array:
    return state.due


_DRAWN = Law(_drawn_rank, _drawn_apply)


@jax.jit
def _embedding_square(rows: Rows) -> jax.Array:
    return rows["gg"] * rows["hh"]


@partial(jax.jit, static_argnums=1)
def _exponential(key: jax.Array, n: int) -> jax.Array:
    """[n] exponential draws whose smallest are as fine as their size, not as 1.

    A uniform float32 is a multiple of 2^-23; the smallest of a million draws would tie.
    """
    coarse, fine = jax.random.split(key)
    whole = jax.random.randint(coarse, (n,), 0, 2**23).astype(jnp.float32)
    uniform = (whole + jax.random.uniform(fine, (n,))) * 2.0**-23
    return -jnp.log1p(-jnp.clip(uniform, 2.0**-60, 1 - 2.0**-24))
