"""Selections that are balanced over classes: of any score or selector.

A value for every sample and class does not fit in memory at scale (1.28 million samples and 1000
classes: 5 GB), and balanced selection needs only the best few of each class, of values that stream
by in chunks of rows: a shortlist of each class.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from densejax.active.pool import Pool, Selection, Selector, check_budget, chunks
from densejax.active.rows import first
from densejax.active.scores import Score, evaluate, scored
from densejax.typing import Array, Key

Order = Literal["round_robin", "block"]
ClassOrder = Literal["index", "random"]

# Candidates that are gathered before they are sorted, at most: bounds the memory of a stream whose
# values only get better, of which nothing can be dropped unseen.
PENDING = 2**22

# Candidates of a class on a shortlist, for each that it is to pick and besides: others may take the
# best of them first. With too few the pool is read again, so this decides the time alone.
CANDIDATES, SPARE = 4, 32


def water_fill(counts: Array, budget: int) -> np.ndarray:
    """Shares of a budget among classes, as equal as their sizes allow.

    Every class gets the same, or all that it has; what is then left over, less than there are
    classes with more, goes to the largest of these, one each (the lowest class first where they are
    as large), as in the released code.

    Args:
      counts: [c] int, how many each class has.
      budget: 0 to their sum.

    Returns:
      [c] int64, summing to the budget, nowhere above ``counts``.

    Raises:
      ValueError: the budget is out of range.
    """
    counts = np.asarray(counts, np.int64)
    if not 0 <= budget <= counts.sum():
        raise ValueError(f"budget {budget}: expected 0 to {counts.sum()}, what the classes have")
    low, high = 0, int(counts.max(initial=0))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high) if np.minimum(counts, middle).sum() <= budget else (low, middle - 1)
        )
    shares = np.minimum(counts, low)
    left = budget - int(shares.sum())
    largest = np.argsort(-counts, kind="stable")[:left]
    shares[largest] += 1
    return shares


def balanced(
    inner: Score | Selector,
    *,
    order: Order = "round_robin",
    class_order: ClassOrder = "index",
) -> Selector:
    """Make a score or a selector choose as many samples for each class.

    A classwise score is served as BASE serves DCSDB: every class picks the best sample by its own
    column that no class has picked before, b // c times, and the first b % c classes once more. One
    pass over the pool keeps a shortlist of each class; only if others have taken all of it is the
    pool read again.

    Any other score or selector chooses among the samples of each predicted class apart, with
    shares by ``water_fill``; a selector is called once for each class, with the others held out.
    The prediction is the largest of the pool's logits, else its probabilities, else the logits that
    its head gives, else the mean of its passes.

    Args:
      inner: a score, or a selector ``(key, pool, budget) -> Selection``.
      order: ``round_robin``, classes pick one each in turn; or ``block``, one class after another.
      class_order: classes in order of their ``index``, or in ``random`` order.

    Returns:
      A selector. Its scores are those of ``inner``. It raises ValueError where ``inner`` does, and
      where the pool has nothing that predicts a class.

    Raises:
      ValueError: an option is unknown.
    """
    for name, value, known in (("order", order, Order), ("class_order", class_order, ClassOrder)):
        if value not in get_args(known):
            raise ValueError(f"{name}: expected one of {get_args(known)}, found {value!r}")

    def select(key: Key, pool: Pool, budget: int) -> Selection:
        budget = check_budget(pool, budget)
        if budget == 0:
            return Selection(np.zeros(0, np.int64), np.zeros(0, np.float32))
        classes = np.arange(pool.classes)
        if class_order == "random":
            classes = np.asarray(jax.random.permutation(jax.random.fold_in(key, 0), pool.classes))
        if isinstance(inner, Score) and inner.classwise:
            return _pick(inner, pool, _schedule(classes, budget, order))
        chosen = _by_prediction(jax.random.fold_in(key, 1), inner, pool, budget)
        return _merge([chosen[c] for c in classes], order)

    return select


def _schedule(classes: np.ndarray, budget: int, order: Order) -> np.ndarray:
    """The class of each pick: [budget]."""
    turns = np.resize(classes, budget)
    if order == "round_robin":
        return turns
    place = np.empty_like(classes)
    place[classes] = np.arange(len(classes))
    return turns[np.argsort(place[turns], kind="stable")]


def _by_prediction(key: Key, inner: Score | Selector, pool: Pool, budget: int) -> list[Selection]:
    """A selection within each predicted class."""
    rows = np.flatnonzero(pool.available)
    predicted = np.full(pool.size, -1, np.int32)
    predicted[rows] = evaluate(_prediction(pool), pool, rows=rows)
    counts = np.bincount(predicted[rows], minlength=pool.classes)
    shares = water_fill(counts, budget)
    if isinstance(inner, Score):
        values = np.zeros(pool.size, np.float32)
        values[rows] = evaluate(inner, pool, rows=rows)
        best = [
            first(values, predicted == c, int(share), largest_first=inner.largest_first)
            for c, share in enumerate(shares)
        ]
        return [Selection(indices, values[indices]) for indices in best]
    none = Selection(np.zeros(0, np.int64), np.zeros(0, np.float32))
    labelled = pool.is_labelled
    return [
        inner(
            jax.random.fold_in(key, c),
            replace(pool, held_out=~labelled & (predicted != c)),
            int(share),
        )
        if share
        else none
        for c, share in enumerate(shares)
    ]


def _largest(values: jax.Array) -> jax.Array:
    values = values.mean(axis=1) if values.ndim == 3 else values
    return jnp.argmax(values, axis=-1).astype(jnp.int32)


def _prediction(pool: Pool) -> Score:
    head = pool.features is not None and pool.kernel is not None
    there = {
        "logits": pool.logits is not None or (head and pool.probabilities is None),
        "probabilities": pool.probabilities is not None,
        "passes": pool.passes is not None,
    }
    name = next((name for name, present in there.items() if present), "logits")
    return Score("prediction", (name,), _largest)


def _merge(chosen: Sequence[Selection], order: Order) -> Selection:
    indices = np.concatenate([one.indices for one in chosen])
    scores = np.concatenate([one.scores for one in chosen])
    if order == "round_robin":
        turn = np.argsort(
            np.concatenate([np.arange(len(one.indices)) for one in chosen]), kind="stable"
        )
        indices, scores = indices[turn], scores[turn]
    return Selection(indices, scores)


@dataclass(frozen=True)
class BoundedScore(Score):
    """A classwise score, smallest first, that is dear to compute and has a cheap lower bound.

    Attributes:
      bound: as ``function``, [s, c] float32, nowhere above it.
      one: pure function of an int32, a class, and [s, ...] arrays of ``needs``, to [s] float32: the
        column of ``function``.
    """

    bound: Callable[..., jax.Array] | None = None
    one: Callable[..., jax.Array] | None = None


class _Shortlist:
    """The ``length`` smallest values of each class, by (value, row); exact, ties by lowest row.

    Args:
      classes: c.
      length: candidates of each class to keep, at least 1.
    """

    def __init__(self, classes: int, length: int) -> None:
        if length < 1:
            raise ValueError(f"a shortlist keeps at least 1 candidate a class, found {length}")
        self.classes = classes
        self.length = length
        self._seen = 0
        self._waiting = 0
        self._threshold = np.full(classes, np.nan, np.float32)
        # Sorted by class, value and row; then what has come since, in order of rows.
        self._parts = [_entries(np.zeros(0, int), np.zeros(0, np.float32), np.zeros(0, int))]

    def add(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Offer the values of further rows.

        Args:
          rows: [s] int64, ascending and above all that came before.
          values: [s, c] float32, not NaN.
        """
        start = 0
        limit = max(1, PENDING // self.classes)
        while start < len(rows):
            # After as many rows as have been seen, about as many candidates pass as are kept: so
            # blocks double, and only the first is sorted whole.
            stop = start + min(max(self._seen, 2 * self.length), limit)
            self._filter(rows[start:stop], values[start:stop])
            start = stop

    def _filter(self, rows: np.ndarray, values: np.ndarray) -> None:
        # Later rows lose ties, so a full list takes only what is smaller than its last; the
        # threshold of a list that is not full is NaN, to which nothing compares.
        flat = np.flatnonzero(~(values >= self._threshold))
        at, classes = np.divmod(flat, self.classes)
        self._parts.append(_entries(classes, values[at, classes], rows[at]))
        self._seen += len(rows)
        self._waiting += flat.size
        if self._waiting > self.classes * self.length or self._seen == len(rows):
            self._sort()

    def _sort(self) -> None:
        entries = np.concatenate(self._parts)
        # One integer that orders as (class, value): bits of floats order as integers do once those
        # of the negative are flipped. Equal ones stay in order of rows.
        bits = (entries["value"] + np.float32(0)).view(np.int32)  # -0 is 0
        bits = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits).astype(np.int64)
        keys = (entries["class"].astype(np.int64) << 32) + bits
        order = np.argsort(keys)
        ranked = keys[order]
        if (ranked[1:] == ranked[:-1]).any():  # rare, and a stable sort takes several times as long
            order = np.argsort(keys, kind="stable")
        entries = entries[order]
        starts = np.searchsorted(entries["class"], np.arange(self.classes + 1))
        place = np.arange(entries.size) - starts[entries["class"]]
        full = np.diff(starts) >= self.length
        last = np.minimum(starts[:-1] + self.length, entries.size) - 1
        self._threshold[full] = entries["value"][last[full]]
        self._parts = [entries[place < self.length]]
        self._waiting = 0

    @property
    def complete(self) -> bool:
        """Whether every row offered is in every list."""
        return self._seen <= self.length

    def lists(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each class: ([l] int64 rows, [l] float32 values), best first."""
        self._sort()
        entries = self._parts[0]
        starts = np.searchsorted(entries["class"], np.arange(self.classes + 1))
        return [
            (entries["row"][a:b].copy(), entries["value"][a:b].copy()) for a, b in pairwise(starts)
        ]


def _entries(classes: np.ndarray, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    kind = [("class", np.int32), ("value", np.float32), ("row", np.int64)]
    entries = np.empty(len(rows), kind)
    entries["class"], entries["value"], entries["row"] = classes, values, rows
    return entries


def _pick(score: Score, pool: Pool, turns: np.ndarray) -> Selection:
    """Classes take turns ([b] int) to pick the best sample that is left, by their own values.

    One pass over the pool keeps a shortlist of each class; only if others have taken all of it is
    the pool read again, for the picks that are left. Exact; ties go to the lowest index.
    """
    available = pool.available
    sign = -1 if score.largest_first else 1
    length = CANDIDATES * int(np.bincount(turns).max()) + SPARE
    indices: list[int] = []
    values: list[float] = []
    while len(indices) < len(turns):
        rows = np.flatnonzero(available)
        offered = _offer(score, pool, rows, length, sign)
        for turn in turns[len(indices) :]:
            found = offered[turn].take(available)
            if found is None:
                break
            indices.append(found[0])
            values.append(sign * found[1])
            available[found[0]] = False
        length *= 2
    return Selection(np.array(indices, np.int64), np.array(values, np.float32))


class _Offer:
    """One class's candidates, best first; beyond ``horizon`` there may be others as good."""

    def __init__(self, rows: np.ndarray, values: np.ndarray, horizon: tuple[float, int]) -> None:
        order = np.lexsort((rows, values))
        self.queue = list(zip(values[order].tolist(), rows[order].tolist(), strict=True))
        self.horizon = horizon
        self.next = 0

    def take(self, available: np.ndarray) -> tuple[int, float] | None:
        """(row, value) of the best that is available, None if that can't be told."""
        while self.next < len(self.queue):
            value, row = self.queue[self.next]
            if (value, row) > self.horizon:
                return None
            self.next += 1
            if available[row]:
                return row, value
        return None


def _offer(score: Score, pool: Pool, rows: np.ndarray, length: int, sign: int) -> list[_Offer]:
    """The best of ``rows`` for each class, by one pass over them."""
    streamed = score
    if isinstance(score, BoundedScore) and score.bound is not None:
        streamed = replace(score, function=score.bound)
    shortlist = _Shortlist(pool.classes, length)
    for ids, values in scored(streamed, pool, rows=rows):
        shortlist.add(ids, sign * values)
    lists = shortlist.lists()
    if shortlist.complete:
        horizons = [(np.inf, pool.size)] * len(lists)
    else:
        # What is on no list comes after its last, by the score or by its lower bound.
        horizons = [(float(v[-1]), int(r[-1])) for r, v in lists]
    if isinstance(score, BoundedScore):
        lists = _refine(score, pool, lists, length)
    return [_Offer(*best, horizon) for best, horizon in zip(lists, horizons, strict=True)]


@jax.jit
def _column(one: Partial, chosen: jax.Array, *arrays: jax.Array) -> jax.Array:
    return one(chosen, *arrays)


def _refine(
    score: BoundedScore, pool: Pool, lists: list[tuple[np.ndarray, np.ndarray]], length: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The scores of the candidates, whose bounds are known."""
    rows = np.unique(np.concatenate([rows for rows, _ in lists]))
    parts: list[list[np.ndarray]] = [[] for _ in score.needs]
    for ids, arrays in chunks(pool, score.needs, rows=rows):
        for part, name in zip(parts, score.needs, strict=True):
            part.append(np.asarray(arrays[name])[: len(ids)])
    read = [np.concatenate(part) for part in parts]
    one = score.one if isinstance(score.one, Partial) else Partial(score.one)
    refined = []
    for chosen, (candidates, bounds) in enumerate(lists):
        # Padded to one shape, so that one program serves all classes.
        places = np.searchsorted(rows, candidates)
        padded = np.pad(places, (0, length - len(places)), mode="edge")
        exact = _column(one, jnp.int32(chosen), *(array[padded] for array in read))
        refined.append((candidates, np.maximum(bounds, np.asarray(exact)[: len(places)])))
    return refined
