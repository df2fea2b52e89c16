"""How much a network doubts: scores of a sample, of an image's pixels, of stochastic passes.

A ``Score`` is made by a function of its name (``margin()``), and made a selector by ``ranked``:
``ranked(margin())(key, pool, budget)``. The *expert query* of Chen 2020 (3.2.2) is any of them on a
pool whose arrays come from a network trained on all data; his inverse query is ``inverse(score)``.

Where the sources disagree on a name: Roels & Saeys 2019 call ``mean_entropy`` BALD; ``bald`` is the
mutual information. Entropies are in nats, and ``0 log 0`` is 0.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from densejax.active.pool import (
    Head,
    Pool,
    Selection,
    Selector,
    arrays_of,
    check_budget,
    checked_chunks,
    chunk_rows,
    head_of,
    prepare,
    refuse,
)
from densejax.active.rows import check_truth, first, sharing
from densejax.typing import Array, Key

# Bytes of a chunk of which each sample's score is computed on a CPU: what stays in its cache
# between the matrix product and what follows.
CACHE_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Score:
    """A value of each sample alone, whatever the budget and whatever else is chosen.

    Attributes:
      name: what it is called in tables.
      needs: the arrays of the pool that ``function`` takes, in its order.
      function: pure function of [s, ...] arrays, one argument each of ``needs``, to [s] float32
        (or [s, c] if ``classwise``: a value for every class). Compiled once: give the same function
        again, not a new one of the same text; arrays that it needs besides, as a
        ``jax.tree_util.Partial``.
      largest_first: whether the largest values are queried first, or the smallest.
      classwise: whether there is a value for every class.
    """

    name: str
    needs: tuple[str, ...]
    function: Callable[..., jax.Array]
    largest_first: bool = True
    classwise: bool = False


@partial(jax.jit, static_argnames="needs")
def _score(
    read: dict[str, jax.Array], head: Head | None, function: Partial, *, needs: tuple[str, ...]
) -> tuple[jax.Array, jax.Array]:
    derived, finite = prepare(read, head, needs=needs)
    return function(*((read | derived)[name] for name in needs)), finite


def evaluate(
    score: Score,
    pool: Pool,
    *,
    rows: Array | None = None,
    size: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> np.ndarray:
    """A score of all samples, one pass over the pool; arguments and errors as of ``scored``.

    Returns:
      [n] float32 ([n, c] if classwise), or [r] and [r, c].
    """
    parts = [values for _, values in scored(score, pool, rows=rows, size=size, devices=devices)]
    if not parts:
        return np.zeros((0, pool.classes) if score.classwise else (0,), np.float32)
    return np.concatenate(parts)


def scored(
    score: Score,
    pool: Pool,
    *,
    rows: Array | None = None,
    size: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A score of all samples, a chunk at a time: what ``evaluate`` puts together.

    Args:
      score: what to compute.
      pool: the pool; ``score.needs`` must be there.
      rows: [r] ascending rows to score; all n where None.
      size: rows of a chunk; what the cache of a CPU holds, or ``CHUNK_BYTES``, where None.
      devices: which share the chunks in turn. Where None: all accelerators; or one device of the
        CPU, whose programs use all cores; arrays that are on an accelerator stay there. The
        values do not depend on it.

    Yields:
      ([s] int64 rows, [s] float32 or [s, c]), rows ascending.

    Raises:
      ValueError: an array is missing or not finite, or the score needs labels and a sample that
        may be chosen has none, or one outside the classes.
    """
    needs = tuple(score.needs)
    if "labels" in needs:
        check_truth(pool.labels, pool.available, pool.classes)
    arrays = arrays_of(pool, needs)
    total = pool.size if rows is None else len(rows)
    if not total:
        return
    devices = sharing(arrays, devices)
    if size is None:
        size = chunk_rows(pool, needs, total, device=devices[0], on_host=CACHE_BYTES)
    size = max(1, min(size, total))
    function = score.function if isinstance(score.function, Partial) else Partial(score.function)
    fixed = head_of(pool, arrays, needs), function
    placed = [jax.device_put(fixed, device) for device in devices]
    waiting: deque[tuple[Any, ...]] = deque()

    def collect() -> tuple[np.ndarray, np.ndarray]:
        ids, read, values, finite = waiting.popleft()
        found = np.asarray(values)[: len(ids)]
        # Finite arrays too may overflow on the way to a score; a distance may be infinite.
        if not bool(finite) or np.isnan(found.min()):
            refuse(ids, read | {score.name: values})
        return ids, found

    for number, (ids, host) in enumerate(
        checked_chunks(arrays, total, size, rows=rows, buffers=len(devices) + 3)
    ):
        place = number % len(devices)
        read = {name: jax.device_put(part, devices[place]) for name, part in host.items()}
        waiting.append((ids, read, *_score(read, *placed[place], needs=needs)))
        if len(waiting) > len(devices):
            yield collect()
    while waiting:
        yield collect()


def ranked(score: Score) -> Selector:
    """The selector that takes the first of the samples ordered by a score, ties by lowest index.

    Args:
      score: one value a sample.

    Returns:
      ``selector(key, pool, budget)``, which draws nothing from its key.

    Raises:
      ValueError: the score is classwise.
    """
    if score.classwise:
        raise ValueError(f"score {score.name} has a value for every class; it orders no samples")

    def select(key: Key, pool: Pool, budget: int) -> Selection:
        del key
        if not check_budget(pool, budget):
            return Selection(np.zeros(0, np.int64), np.zeros(0, np.float32))
        values = evaluate(score, pool)
        chosen = first(values, pool.available, budget, largest_first=score.largest_first)
        return Selection(chosen, values[chosen])

    return select


def column(name: str, *, largest_first: bool = True) -> Selector:
    """The selector that ranks by a column that the pool has already (``Pool.columns``).

    Args:
      name: of the column.
      largest_first: whether the largest values are queried first, or the smallest.

    Returns:
      ``selector(key, pool, budget)``, ties by lowest index. When used it raises a ValueError where
      the pool has no such column.
    """

    def select(key: Key, pool: Pool, budget: int) -> Selection:
        del key
        check_budget(pool, budget)
        if name not in (pool.columns or {}):
            raise ValueError(f"the pool has no column {name!r}, only {list(pool.columns or {})}")
        values = np.asarray((pool.columns or {})[name], np.float32)
        chosen = first(values, pool.available, budget, largest_first=largest_first)
        return Selection(chosen, values[chosen])

    return select


def inverse(score: Score) -> Score:
    """The same values with the least uncertain sample first (Chen 2020, "inverse entropy")."""
    largest_first = not score.largest_first
    return dataclasses.replace(score, name=f"inverse {score.name}", largest_first=largest_first)


# ---- of one distribution over classes ----


def _largest_two(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest and the second largest of the last axis, equal where the largest occurs twice.

    By two maxima: ``lax.top_k`` takes several times as long on a CPU.
    """
    largest = values.max(axis=-1, keepdims=True)
    at = values == largest
    second = jnp.where(at, -jnp.inf, values).max(axis=-1)
    return largest[..., 0], jnp.where(at.sum(axis=-1) > 1, largest[..., 0], second)


def gap(values: jax.Array) -> jax.Array:
    """Largest minus second largest: [..., c] -> [...]; of one class alone, its value."""
    if values.shape[-1] == 1:
        return values[..., 0]
    largest, second = _largest_two(values)
    return largest - second


def _largest(values: jax.Array) -> jax.Array:
    """[..., c] -> [...]."""
    return values.max(axis=-1)


def _doubt(probabilities: jax.Array) -> jax.Array:
    """1 - max P: [..., c] -> [...] in 0..1 - 1/c."""
    return 1 - probabilities.max(axis=-1)


def _closeness(probabilities: jax.Array) -> jax.Array:
    """1 - (P1 - P2), of the two largest: [..., c] -> [...] in 0..1."""
    return 1 - gap(probabilities)


def entropy_of(probabilities: jax.Array, *, axis: int = -1) -> jax.Array:
    """-sum P log P over an axis: [..., c] -> [...] in 0..log c, in nats."""
    positive = probabilities > 0
    logs = jnp.log(jnp.where(positive, probabilities, 1))
    return -(probabilities * logs).sum(axis=axis)


def _choose(of: str, name: str) -> tuple[str, str]:
    if of not in ("probabilities", "logits"):
        raise ValueError(f"{name} of {of!r}: expected probabilities or logits")
    return (name if of == "probabilities" else f"{name} (logits)", of)


@cache
def confidence(*, of: Literal["probabilities", "logits"] = "probabilities") -> Score:
    """The largest probability, smallest first.

    Args:
      of: ``probabilities``, as the released code of the thesis ranks (which fails before it gets
        there), or ``logits``, as the thesis writes; the rankings differ.

    Raises:
      ValueError: ``of`` is neither.
    """
    name, needs = _choose(of, "confidence")
    return Score(name, (needs,), _largest, largest_first=False)


@cache
def margin(*, of: Literal["probabilities", "logits"] = "probabilities") -> Score:
    """The largest minus the second largest, smallest first.

    Args:
      of: ``probabilities``, as the released code of the thesis ranks, or ``logits``, as the thesis
        writes; the rankings differ.

    Raises:
      ValueError: ``of`` is neither.
    """
    name, needs = _choose(of, "margin")
    return Score(name, (needs,), gap, largest_first=False)


@cache
def least_confidence() -> Score:
    """1 - max P, largest first: the order of ``confidence``."""
    return Score("least confidence", ("probabilities",), _doubt)


@cache
def max_softmax() -> Score:
    """1 - max P, largest first: what Chen 2020 calls least confidence."""
    return Score("max softmax", ("probabilities",), _doubt)


@cache
def entropy() -> Score:
    """Entropy of the probabilities in nats, largest first."""
    return Score("entropy", ("probabilities",), entropy_of)


# ---- of stochastic passes, or of the members of an ensemble ----


def _mutual_information(passes: jax.Array) -> jax.Array:
    """Entropy of the mean minus mean of the entropies: [s, m, ..., c] -> [s, ...] from 0, in nats.

    What is below 0 by rounding is 0.
    """
    return jnp.maximum(entropy_of(passes.mean(axis=1)) - entropy_of(passes).mean(axis=1), 0)


def _entropy_of_mean(passes: jax.Array) -> jax.Array:
    """[s, m, ..., c] -> [s, ...] in 0..log c, in nats."""
    return entropy_of(passes.mean(axis=1))


def _entropy_of_votes(passes: jax.Array) -> jax.Array:
    """Entropy of how many passes are for which class: [s, m, ..., c] -> [s, ...], in nats.

    A pass with equal largest probabilities is for the lowest of their classes.
    """
    votes = jax.nn.one_hot(jnp.argmax(passes, axis=-1), passes.shape[-1], dtype=passes.dtype)
    return entropy_of(votes.mean(axis=1))


@cache
def bald() -> Score:
    """Mutual information of class and parameters (Houlsby et al. 2011), largest first."""
    return Score("bald", ("passes",), _mutual_information)


@cache
def mean_entropy() -> Score:
    """Entropy of the mean of the passes, largest first: "BALD" of Roels & Saeys 2019."""
    return Score("mean entropy", ("passes",), _entropy_of_mean)


@cache
def vote_entropy() -> Score:
    """Entropy of the votes of the passes (Dagan & Engelson 1995), largest first."""
    return Score("vote entropy", ("passes",), _entropy_of_votes)


# ---- of the truth ----


def _error(probabilities: jax.Array, labels: jax.Array) -> jax.Array:
    classes = jnp.arange(probabilities.shape[-1])
    true = jnp.where(labels[..., None] == classes, probabilities, 0).sum(axis=-1)
    return 1 - true


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    classes = jnp.arange(logits.shape[-1])
    true = jnp.where(labels[..., None] == classes, logits, 0).sum(axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - true


@cache
def most_incorrect(*, of: Literal["probabilities", "logits"] = "probabilities") -> Score:
    """Oracle error query (Chen 2020): what the network has most wrong, by the true labels.

    Needs the labels of all samples that may be chosen; it bounds what a query could gain.

    Args:
      of: 1 - P of the true class from ``probabilities``, or the cross entropy from ``logits``: the
        same order, but the latter still tells apart where P of the true class rounds to 0.

    Raises:
      ValueError: ``of`` is neither.
    """
    name, needs = _choose(of, "most incorrect")
    return Score(name, (needs, "labels"), _error if of == "probabilities" else _cross_entropy)


# ---- of the pixels of an image ----

# name: (the array of the pool, value of a pixel, large where in doubt).
MEASURES: dict[str, tuple[str, Callable[..., jax.Array]]] = {
    "entropy": ("probabilities", entropy_of),
    "max_softmax": ("probabilities", _doubt),
    "margin": ("probabilities", _closeness),
    "bald": ("passes", _mutual_information),
    "mean_entropy": ("passes", _entropy_of_mean),
    "vote_entropy": ("passes", _entropy_of_votes),
    "error": ("probabilities", _error),
}

# Chen 2020, 2.2.2; of the margin also 0.8.
THRESHOLDS = {"entropy": float(np.log(2)), "max_softmax": 0.5, "margin": 0.9}


def largest_value(measure: str, classes: int) -> float:
    """The largest value that a measure of ``MEASURES`` can take with so many classes."""
    if measure in ("margin", "error"):
        return 1.0
    return 1 - 1 / classes if measure == "max_softmax" else float(np.log(classes))


@cache
def over_pixels(
    measure: str,
    *,
    aggregation: Literal["average", "count"] = "average",
    threshold: float | None = None,
    relative: bool = False,
    masked: bool = False,
) -> Score:
    """One value an image from a value a pixel (Chen 2020, 1.3.2), largest first.

    Pixels that are labelled -1 (``error``) or masked out count nowhere; an image without any other
    has value 0. Roels & Saeys 2019 add the pixels up: the order of ``average`` where all images
    have as many that count; their least confidence is ``max_softmax``.

    Args:
      measure: of ``MEASURES``; ``error`` also needs the pool's labels [n, (z,) y, x].
      aggregation: the mean over the pixels, or the fraction of them above the threshold.
      threshold: for ``count``; Chen's own (``THRESHOLDS``) where None. With two classes no pixel
        ever exceeds his for the entropy or max softmax: give one, such as ``pixel_quantile``'s.
      relative: whether the threshold is a fraction of the measure's largest possible value.
      masked: whether the pool's ``mask`` says which pixels count.

    Raises:
      ValueError: an unknown measure or aggregation, a count without a threshold or a threshold
        without a count. When used: the threshold is one that no pixel can exceed.
    """
    if measure not in MEASURES:
        raise ValueError(f"measure {measure!r}: expected one of {', '.join(MEASURES)}")
    if aggregation not in ("average", "count"):
        raise ValueError(f"aggregation {aggregation!r}: expected average or count")
    if aggregation == "average" and threshold is not None:
        raise ValueError(f"threshold {threshold}: expected only with a count")
    if aggregation == "count" and threshold is None:
        if measure not in THRESHOLDS:
            raise ValueError(f"a count of {measure} needs a threshold; Chen gives none")
        threshold = THRESHOLDS[measure]

    def function(array: jax.Array, *extra: jax.Array) -> jax.Array:
        return _over_pixels(measure, threshold, relative, array, *extra)

    needs = (MEASURES[measure][0], *_extra(measure, masked))
    return Score(f"{aggregation} {measure}", needs, function)


def _extra(measure: str, masked: bool) -> tuple[str, ...]:
    return (("labels",) if measure == "error" else ()) + (("mask",) if masked else ())


def _pixels(
    measure: str, array: jax.Array, extra: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    """[s, pixels] values and weights, 0 where a pixel does not count."""
    function = MEASURES[measure][1]
    if measure == "error":
        labels, *rest = extra
        values, weights = function(array, labels), (labels >= 0).astype(jnp.float32)
    else:
        values, rest = function(array), list(extra)
        weights = jnp.ones_like(values)
    for mask in rest:
        weights = weights * (mask > 0)
    return values.reshape(len(values), -1), weights.reshape(len(values), -1)


def _over_pixels(
    measure: str, threshold: float | None, relative: bool, array: jax.Array, *extra: jax.Array
) -> jax.Array:
    values, weights = _pixels(measure, array, extra)
    if threshold is not None:
        most = largest_value(measure, array.shape[-1])
        level = threshold * most if relative else threshold
        if level >= most - 1e-6:
            raise ValueError(
                f"no {measure} of {array.shape[-1]} classes exceeds {level:.4g} (at most "
                f"{most:.4g}): give a lower threshold"
            )
        values = (values > level).astype(jnp.float32)
    return (values * weights).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1)


def pixel_quantile(
    measure: str, pool: Pool, quantile: float, *, masked: bool = False, bins: int = 4096
) -> float:
    """A quantile of a measure over all pixels of the images that may be chosen.

    A threshold for ``over_pixels``: it is exceeded by some pixels and not by others, whatever the
    number of classes. From a histogram, so to within one of its bins.

    Args:
      measure: of ``MEASURES``.
      pool: images.
      quantile: in 0..1; the fraction of the pixels at or below the threshold.
      masked: as in ``over_pixels``.
      bins: of the histogram between 0 and the measure's largest possible value.

    Raises:
      ValueError: an unknown measure, a quantile outside 0..1, or no pixel counts.
    """
    if measure not in MEASURES:
        raise ValueError(f"measure {measure!r}: expected one of {', '.join(MEASURES)}")
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile {quantile}: expected 0 to 1")
    most = largest_value(measure, pool.classes)
    needs = (MEASURES[measure][0], *_extra(measure, masked))
    score = Score("histogram", needs, _histogram(measure, most, bins))
    counts = np.zeros(bins, np.int64)
    rows = np.flatnonzero(pool.available)
    # Few rows at a time, as each of them has a histogram.
    for start in range(0, len(rows), 1024):
        part = evaluate(score, pool, rows=rows[start : start + 1024])
        counts += part.astype(np.int64).sum(axis=0)
    if not counts.sum():
        raise ValueError(f"no pixel of the {len(rows)} images counts")
    edge = int(np.searchsorted(np.cumsum(counts), quantile * counts.sum()))
    return most * (min(edge, bins - 1) + 1) / bins


@cache
def _histogram(measure: str, most: float, bins: int) -> Callable[..., jax.Array]:
    def histogram(array: jax.Array, *extra: jax.Array) -> jax.Array:
        values, weights = _pixels(measure, array, extra)
        # A bin holds its upper edge, so that "above the threshold" is above all of its bin.
        place = jnp.clip(jnp.ceil(values / most * bins) - 1, 0, bins - 1).astype(jnp.int32)
        rows = jnp.arange(len(place))[:, None]
        return jnp.zeros((len(place), bins), jnp.float32).at[rows, place].add(weights)

    return histogram
