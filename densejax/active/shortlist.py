"""The best few samples of each class, of values that stream by in chunks of rows.

A value for every sample and class does not fit in memory at scale (1.28 million samples and 1000
classes: 5 GB), and balanced selection needs only the best few of each class.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from densejax.active.pool import Pool, Score, Selection, chunks, scored

# Candidates that are gathered before they are sorted, at most: bounds the memory of a stream whose
# values only get better, of which nothing can be dropped unseen.
PENDING = 2**22

# Candidates of a class on a shortlist, for each that it is to pick and besides: others may take the
# best of them first. With too few the pool is read again, so this decides the time alone.
CANDIDATES, SPARE = 4, 32


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


class Shortlist:
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


def pick(score: Score, pool: Pool, turns: np.ndarray) -> Selection:
    """Classes take turns to pick the best sample that is left, by their own values.

    One pass over the pool keeps a shortlist of each class; only if others have taken all of it is
    the pool read again, for the picks that are left. Exact; ties go to the lowest index.

    Args:
      score: classwise.
      pool: has at least as many available samples as there are turns.
      turns: [b] int, the class of each pick.

    Returns:
      The picks in order, with the values of ``score`` for the class that picked.

    Raises:
      ValueError: an array is missing or not finite.
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
    shortlist = Shortlist(pool.classes, length)
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
