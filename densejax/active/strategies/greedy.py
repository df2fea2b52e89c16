"""Greedy selection against a distance, with few passes over the pool and the result of many.

Core-set and BADGE pick one sample after another, and each pick can only make the other samples
worse: it lowers their distance to the nearest pick. So the order before some picks bounds the order
after them. A pass over the pool ranks all samples; the best of them, the *front*, race among
themselves with exact updates, and as long as the winner beats the best sample outside the front (as
it was ranked before), it is the winner over the whole pool. When it does not, all picks since the
last pass are applied to the pool together, in one matrix product, and a new front is taken. This is
exact, reads the pool once for many picks instead of once a pick, and so also serves a pool that is
read from disk at each pass. (Minoux 1978 calls it accelerated, or lazy, greedy.)
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from densejax.active.pool import CHUNK_BYTES, Pool, Selection, chunks, refuse_overflow

# A pool whose rows take at most this stays in the memory of a CPU between passes.
RESIDENT_BYTES = 2 * 2**30
# Of an accelerator's memory, the part that may hold rows between passes.
RESIDENT_SHARE = 0.6
# Picks that are applied to the pool together: one of these shapes, so few programs are compiled.
BATCHES = (8, 32, 128, 512)
# Rows of a chunk at most, so that its distances to a batch are no more than a chunk is.
CHUNK_ROWS = 2**15

Rows = dict[str, jax.Array]


class State(NamedTuple):
    """What is known of each row of a chunk.

    Attributes:
      near: [s] float32, squared distance to the nearest reference or pick.
      due: [s] float32, the time at which a row that is drawn at random is due (see ``badge``).
    """

    near: jax.Array
    due: jax.Array


@dataclass(frozen=True)
class Law:
    """How picks act on rows; pure functions at module level, since it is a compile-time constant.

    Attributes:
      rank: state -> [s]; the smallest is picked, ties by the lowest index.
      apply: (rows, state, picks, times [q], live [q]) -> state after the q picks in their order,
        those that are not live left out.
    """

    rank: Callable[[State], jax.Array]
    apply: Callable[[Rows, State, Rows, jax.Array, jax.Array], State]


class Shards:
    """The rows of a pool, prepared once and kept, or prepared at each pass if they are too large.

    Args:
      pool: the pool.
      needs: arrays that ``prepare`` takes.
      prepare: compiled function of the arrays of a chunk to the rows of a law.
      devices: the chunks are dealt to these; the default device where None.
    """

    def __init__(
        self,
        pool: Pool,
        needs: Sequence[str],
        prepare: Callable[[dict[str, jax.Array]], Rows],
        *,
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        self.pool, self.needs, self.prepare = pool, tuple(needs), prepare
        self.devices = tuple(devices or [])
        self._kept: list[tuple[np.ndarray, Rows]] | None = None

    def _limit(self) -> float:
        devices = self.devices or (jax.local_devices()[0],)
        if devices[0].platform == "cpu":
            return RESIDENT_BYTES
        stats = devices[0].memory_stats() or {}
        return len(devices) * RESIDENT_SHARE * stats.get("bytes_limit", RESIDENT_BYTES)

    def _read(self) -> Iterator[tuple[np.ndarray, Rows]]:
        present = [a for name in self.needs if (a := getattr(self.pool, name)) is not None]
        width = sum(int(np.prod(a.shape[1:])) for a in present)
        # Every device has a share, also of a pool that would be one chunk.
        share = -(-self.pool.size // max(1, len(self.devices)))
        size = max(1, min(share, CHUNK_ROWS, CHUNK_BYTES // (4 * max(width, 1))))
        for i, (ids, arrays) in enumerate(chunks(self.pool, self.needs, size=size)):
            refuse_overflow(ids, arrays["features"])
            if self.devices:
                arrays = jax.device_put(arrays, self.devices[i % len(self.devices)])
            yield ids, self.prepare(arrays)

    def passes(self) -> Iterator[tuple[np.ndarray, Rows]]:
        """One pass: ([s] rows of the pool, what was prepared of them, padded to one shape)."""
        if self._kept is not None:
            yield from self._kept
            return
        kept, used, limit = [], 0, self._limit()
        for ids, rows in self._read():
            used += sum(a.nbytes for a in rows.values())
            if used <= limit:
                kept.append((ids, rows))
            else:
                kept.clear()
            yield ids, rows
        if used <= limit:
            self._kept = kept

    def rows(self, ids: np.ndarray, *, size: int) -> Iterator[tuple[np.ndarray, Rows]]:
        """Given ascending rows of the pool, at most ``size`` at once, padded as ``chunks`` does."""
        for part, arrays in chunks(self.pool, self.needs, rows=ids, size=size):
            yield part, self.prepare(arrays)

    def measure(self, value: Callable[[Rows], jax.Array]) -> np.ndarray:
        """A number of each row: [n]."""
        return np.concatenate([np.asarray(value(rows))[: len(i)] for i, rows in self.passes()])


def pick_greedily(
    law: Law,
    shards: Shards,
    budget: int,
    *,
    references: np.ndarray,
    draws: np.ndarray | None = None,
    front: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Pick available rows one after another, each the first in rank after all before it.

    Args:
      law: how rows rank and what a pick does to them.
      shards: the rows.
      budget: number of picks, at most the available rows that are not references.
      references: [l] int64 ascending, at least one: rows that count as picked before.
      draws: [n] float32 > 0, exponential draws for a law that ranks by time; None otherwise.
      front: rows that race between two passes; chosen by the size of the pool where None. It has
        no influence on the result beyond rounding.

    Returns:
      [budget] int64 rows and [budget] float32 squared distances at which they were picked.
    """
    n = shards.pool.size
    free = shards.pool.available.copy()
    free[references] = False
    front = min(n, max(256, min(n // 32, 2048)) if front is None else front)
    states = _states(law, shards, references, draws)
    picked: list[np.ndarray] = []
    scores: list[np.ndarray] = []
    left = budget
    while left:
        near, due = (_whole(shards, [s[i] for s in states]) for i in range(2))
        ranks = np.asarray(law.rank(State(jnp.asarray(near), jnp.asarray(due))))
        ids, bound = _front(ranks, free, front)
        _, rows = next(shards.rows(ids, size=front))
        state = State(jnp.asarray(near[ids]), jnp.asarray(due[ids]))
        race = _race(law, rows, state, free[ids], ids.astype(np.int32), *bound, left)
        count = int(race.picks_made)
        picked.append(ids[np.asarray(race.places)[:count]])
        scores.append(np.asarray(race.near)[:count])
        free[picked[-1]] = False
        left -= count
        if left:
            states = _update(law, shards, states, race, count)
    if not picked:
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    return np.concatenate(picked), np.concatenate(scores)


def _states(
    law: Law, shards: Shards, references: np.ndarray, draws: np.ndarray | None
) -> list[State]:
    """The state of each chunk after the references."""
    batch = next((b for b in BATCHES if b >= len(references)), BATCHES[-1])
    blocks = []
    for ids, rows in shards.rows(references, size=batch):
        block = jax.tree.map(lambda a: _padded(a, batch), rows)
        blocks.append((block, jnp.zeros(batch), jnp.arange(batch) < len(ids)))
    states = []
    for ids, rows in shards.passes():
        length = next(iter(rows.values())).shape[0]
        state = State(jnp.full(length, jnp.inf), jnp.full(length, jnp.inf))
        for block in blocks:
            state = _apply(law, rows, *_beside(rows, (state, *block)))
        if draws is not None:
            padded = np.ones(length, np.float32)
            padded[: len(ids)] = draws[ids]
            state = State(state.near, _due(_beside(rows, jnp.asarray(padded)), state.near))
        states.append(state)
    return states


def _padded(a: jax.Array, size: int) -> jax.Array:
    """Repeats of the last row up to a size for which a program is there."""
    return jnp.concatenate([a, jnp.repeat(a[-1:], size - a.shape[0], axis=0)])


def _update(
    law: Law, shards: Shards, states: list[State], race: "_Race", count: int
) -> list[State]:
    batch = next(b for b in BATCHES if b >= count)
    picks, times = jax.tree.map(lambda a: a[:batch], (race.picks, race.times))
    live = jnp.arange(batch) < count
    return [
        _apply(law, rows, *_beside(rows, (state, picks, times, live)))
        for state, (_, rows) in zip(states, shards.passes(), strict=True)
    ]


def _beside(rows: Rows, tree: Any) -> Any:
    """The tree on the device of the rows."""
    return jax.device_put(tree, next(iter(rows.values())).sharding)


def _whole(shards: Shards, parts: list[jax.Array]) -> np.ndarray:
    """Chunks of padded values joined to [n]; only the last chunk is padded."""
    return np.concatenate([np.asarray(part) for part in parts])[: shards.pool.size]


def _front(
    ranks: np.ndarray, free: np.ndarray, front: int
) -> tuple[np.ndarray, tuple[np.float32, np.int32]]:
    """The first free rows by (rank, index), and the (rank, index) of the best that is left out.

    Returns:
      [front] int64 ascending (rows that are not free fill it up where too few are) and the bound.
    """
    candidates = np.flatnonzero(free)
    if candidates.size <= front:
        fill = np.flatnonzero(~free)[: front - candidates.size]
        ids = np.sort(np.concatenate([candidates, fill]))
        return ids, (np.float32(np.inf), np.int32(free.size))
    values = ranks[candidates]
    edge = np.partition(values, front)[front]
    less, equal = candidates[values < edge], candidates[values == edge]
    room = front - less.size
    return np.sort(np.concatenate([less, equal[:room]])), (edge, np.int32(equal[room]))


class _Race(NamedTuple):
    """The picks of one race: their places in the front, when, at what distance, and their rows."""

    picks_made: jax.Array
    places: jax.Array
    times: jax.Array
    near: jax.Array
    picks: Rows


@partial(jax.jit, static_argnames="law")
def _race(
    law: Law,
    rows: Rows,
    state: State,
    free: jax.Array,
    ids: jax.Array,
    bound: jax.Array,
    bound_id: jax.Array,
    wanted: jax.Array,
) -> _Race:
    limit = BATCHES[-1]

    def best(state: State, free: jax.Array) -> tuple[jax.Array, jax.Array]:
        ranks = jnp.where(free, law.rank(state), jnp.inf)
        place = jnp.argmin(ranks)
        # A free row may rank at infinity too: then the first free one.
        place = jnp.where(jnp.isposinf(ranks[place]), jnp.argmax(free), place)
        return place, ranks[place]

    def goes_on(carry: tuple) -> jax.Array:
        state, free, count, *_ = carry
        place, rank = best(state, free)
        beats = (rank < bound) | ((rank == bound) & (ids[place] < bound_id))
        return free.any() & (count < jnp.minimum(limit, wanted)) & (beats | (count == 0))

    def pick(carry: tuple) -> tuple:
        state, free, count, places, times, near = carry
        place, _ = best(state, free)
        time = state.due[place]
        places, times = places.at[count].set(place), times.at[count].set(time)
        near = near.at[count].set(state.near[place])
        one = jax.tree.map(lambda a: a[place][None], rows)
        state = law.apply(rows, state, one, time[None], jnp.ones(1, bool))
        return state, free.at[place].set(False), count + 1, places, times, near

    empty = jnp.zeros(limit)
    start = (state, free, jnp.int32(0), jnp.zeros(limit, jnp.int32), empty, empty)
    _, _, count, places, times, near = jax.lax.while_loop(goes_on, pick, start)
    return _Race(count, places, times, near, jax.tree.map(lambda a: a[places], rows))


@partial(jax.jit, static_argnames="law")
def _apply(
    law: Law, rows: Rows, state: State, picks: Rows, times: jax.Array, live: jax.Array
) -> State:
    return law.apply(rows, state, picks, times, live)


@jax.jit
def _due(draws: jax.Array, near: jax.Array) -> jax.Array:
    """When a row is due that is drawn at the rate ``near`` from time 0: never at rate 0."""
    return jnp.where(near > 0, draws / jnp.where(near > 0, near, 1), jnp.inf)


def as_selection(
    indices: np.ndarray, squares: np.ndarray, *, first: int | None = None, score: float = 0
) -> Selection:
    """Picks and the roots of their squared distances; a ``first`` pick has a score of its own."""
    scores = np.sqrt(squares)
    if first is not None:
        indices, scores = np.r_[first, indices], np.r_[score, scores]
    return Selection(indices.astype(np.int64), scores.astype(np.float32))


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """[s, d], [q, d] -> [s, q], at full float32 precision."""
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)


def about_mean(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows about their mean, and the mean."""
    mean = x.mean(axis=0)
    return x - mean, mean


def first_available(shards: Shards, values: np.ndarray) -> int:
    """The available row of the smallest value."""
    return int(np.argmin(np.where(shards.pool.available, values, np.inf)))


def random_start(key: jax.Array, shards: Shards) -> int:
    """Any available row."""
    ids = np.flatnonzero(shards.pool.available)
    return int(ids[int(jax.random.randint(key, (), 0, ids.size))])
