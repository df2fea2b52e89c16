"""A pool of samples and a selection from it: what every selector takes and returns.

A selector is ``selector(key, pool, budget, *, ...) -> Selection``. It is pure: the same key, pool
and budget give the same selection, ties go to the lowest index, and a sample that is labelled or
held out is never selected, nor is any sample twice. The pool's arrays may be of NumPy or JAX, or on
disk (a NumPy memory map, a TensorStore): they are read in chunks of rows, so that neither the
memory of the host nor that of the device need hold them.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.tree_util import Partial

from densejax.active.deriving import Head, linear_head, prepare, refuse, stored
from densejax.active.reading import read_chunks, sharing
from densejax.active.rows import check_truth
from densejax.active.rows import first as first
from densejax.active.rows import members as members
from densejax.typing import UNLABELLED, Array, Key

# Bytes of one chunk of rows: large enough for full speed of a matrix product, small enough that a
# few of them (read ahead, on the device, results) are nothing beside any machine's memory.
CHUNK_BYTES = 64 * 2**20

# Bytes of a chunk on a CPU: memory of this size is used again, where more of it would be returned
# to the system and cleared for each chunk anew, which takes longer than to read it.
HOST_BYTES = 16 * 2**20

# Bytes of a chunk of which each sample's score is computed on a CPU: what stays in its cache
# between the matrix product and what follows.
CACHE_BYTES = 4 * 2**20


# What ``chunks`` reads; the logits and probabilities may be computed instead.
READABLE = ("features", "logits", "probabilities", "passes", "images", "mask", "labels")


class Selection(NamedTuple):
    """What to label next.

    Attributes:
      indices: [b] int64, rows of the pool, in the order of the query, each once.
      scores: [b] float32, the value by which each was chosen; its meaning is the selector's.
    """

    indices: np.ndarray
    scores: np.ndarray


class Selector(Protocol):
    """Any function with this signature; options are keyword-only."""

    def __call__(self, key: Key, pool: "Pool", budget: int) -> Selection:
        """Choose ``budget`` samples."""
        ...


@dataclass(frozen=True)
class Pool:
    """n samples, what is known of them, and which of them may be chosen.

    A selector says which of the arrays it needs; the rest may be None. ``logits`` are computed from
    ``features`` and the head where they are not given, ``probabilities`` from the logits.

    Attributes:
      features: [n, d] floating.
      logits: [n, c] floating; of images [n, (z,) y, x, c].
      probabilities: [n, c] floating, each row sums to 1; of images [n, (z,) y, x, c].
      passes: [n, m, c] floating, probabilities of m stochastic passes or members; of images
        [n, m, (z,) y, x, c].
      images: [n, ...], what the network takes, where a score needs the network itself.
      mask: [n, (z,) y, x], 1 where a pixel of an image counts, 0 where it doesn't.
      kernel: [d, c] floating, the linear head on the features.
      bias: [c] floating, the head's bias; zero where None.
      labels: [n] int32, -1 where unknown. Only what a selector documents is looked at: most use the
        labels of labelled samples alone. A score of every pixel's error takes [n, (z,) y, x].
      labelled: [n] bool, samples that have been labelled; none where None.
      held_out: [n] bool, samples that must never be chosen (evaluation); none where None.

    Raises:
      ValueError: shapes do not agree, a sample is labelled and held out, or nothing is given.
    """

    features: Any = None
    logits: Any = None
    probabilities: Any = None
    passes: Any = None
    images: Any = None
    mask: Any = None
    kernel: Array | None = None
    bias: Array | None = None
    labels: Array | None = None
    labelled: Array | None = None
    held_out: Array | None = None

    def __post_init__(self) -> None:
        sizes = {name: array.shape[0] for name, array in self._rows().items()}
        if not sizes:
            raise ValueError("a pool needs features, logits, probabilities, passes or labels")
        if len(set(sizes.values())) > 1:
            raise ValueError(f"the arrays of a pool must have one length, found {sizes}")
        for name, rank in {"features": 2, "kernel": 2}.items():
            array = getattr(self, name)
            if array is not None and len(array.shape) != rank:
                raise ValueError(f"pool {name}: expected {rank} axes, found shape {array.shape}")
        for name, rank in {"logits": 2, "probabilities": 2, "passes": 3}.items():
            array = getattr(self, name)
            if array is not None and len(array.shape) < rank:
                raise ValueError(
                    f"pool {name}: expected {rank} axes or more, found shape {array.shape}"
                )
        self._check_head()
        if self.labelled is not None and self.held_out is not None:
            both = np.flatnonzero(np.asarray(self.labelled) & np.asarray(self.held_out))
            if both.size:
                raise ValueError(
                    f"{both.size} samples are labelled and held out, the first is {both[0]}"
                )

    def _rows(self) -> dict[str, Any]:
        names = (*READABLE, "labelled", "held_out")
        return {name: a for name in names if (a := getattr(self, name)) is not None}

    def _check_head(self) -> None:
        if self.kernel is None:
            return
        d, c = self.kernel.shape
        if self.features is not None and self.features.shape[1] != d:
            raise ValueError(
                f"pool features {tuple(self.features.shape)} do not fit the head's kernel {(d, c)}"
            )
        if self.bias is not None and self.bias.shape != (c,):
            raise ValueError(f"the head's bias must be [{c}], found {self.bias.shape}")
        for name in ("logits", "probabilities"):
            array = getattr(self, name)
            if array is not None and array.shape[-1] != c:
                raise ValueError(f"pool {name} {tuple(array.shape)}, but the head has {c} classes")

    @property
    def size(self) -> int:
        """n."""
        return next(iter(self._rows().values())).shape[0]

    @property
    def classes(self) -> int:
        """c, of whichever array knows it.

        Raises:
          ValueError: no array has a class axis.
        """
        for name in ("logits", "probabilities", "passes", "kernel"):
            if (array := getattr(self, name)) is not None:
                return int(array.shape[-1])
        raise ValueError("the pool has no logits, probabilities, passes or head: classes unknown")

    @property
    def is_labelled(self) -> np.ndarray:
        """[n] bool."""
        if self.labelled is None:
            return np.zeros(self.size, bool)
        return np.asarray(self.labelled, bool)

    @property
    def available(self) -> np.ndarray:
        """[n] bool: neither labelled nor held out."""
        free = ~self.is_labelled
        return free if self.held_out is None else free & ~np.asarray(self.held_out, bool)


def check_budget(pool: Pool, budget: int) -> int:
    """The budget, if the pool can serve it.

    Raises:
      ValueError: negative, or larger than the number of available samples.
    """
    available = int(pool.available.sum())
    if not 0 <= budget <= available:
        raise ValueError(
            f"budget {budget}: expected 0 to {available}, the samples that are neither labelled "
            f"nor held out (of {pool.size})"
        )
    return int(budget)


def known_labels(pool: Pool) -> np.ndarray:
    """Labels of the labelled samples: [n] int32, -1 for every other.

    Raises:
      ValueError: the pool has no labels, a labelled sample has none, or one is outside the classes.
    """
    if pool.labels is None:
        raise ValueError("this selector needs the labels of the labelled samples (pool labels)")
    labels = np.where(pool.is_labelled, np.asarray(pool.labels), UNLABELLED).astype(np.int32)
    missing = np.flatnonzero(pool.is_labelled & (labels < 0))
    if missing.size:
        raise ValueError(
            f"{missing.size} labelled samples have no label, the first is {missing[0]}"
        )
    if labels.max(initial=-1) >= pool.classes:
        first = int(np.flatnonzero(labels >= pool.classes)[0])
        raise ValueError(
            f"label {labels[first]} of sample {first} is outside the {pool.classes} classes"
        )
    return labels


def chunks(
    pool: Pool, needs: Sequence[str], *, rows: Array | None = None, size: int | None = None
) -> Iterator[tuple[np.ndarray, dict[str, jax.Array]]]:
    """Read the pool in chunks of one shape, ahead of their use.

    Args:
      pool: the pool.
      needs: of ``READABLE``.
      rows: [r] ascending rows to read; all where None.
      size: rows of a chunk; chosen by ``CHUNK_BYTES`` (of a CPU, ``HOST_BYTES``) where
        None.

    Yields:
      ([s] int64 rows, {name: [size, ...] float32 on the device}); the last chunk is padded by
      repeats of its last row beyond the s real ones, so that one compiled program serves all.

    Raises:
      ValueError: an array is missing, or holds a value that is not finite (count and first row).
    """
    arrays = _arrays(pool, needs)
    head = _head(pool, arrays, needs)
    total = pool.size if rows is None else len(rows)
    if size is None:
        size = _chunk_rows(pool, needs, total, _limit(jax.local_devices()[0], HOST_BYTES))
    size = max(1, min(size, total))
    waiting: tuple[np.ndarray, dict, dict, jax.Array] | None = None
    for ids, host in read_chunks(arrays, total, size, rows=rows):
        read = {name: jax.device_put(part) for name, part in host.items()}
        # The values of this chunk are on their way while the caller works with the one before.
        derived, finite = prepare(read, head, needs=tuple(needs))
        if waiting is not None:
            yield _checked(*waiting, needs=needs)
        waiting = ids, read, derived, finite
    if waiting is not None:
        yield _checked(*waiting, needs=needs)


def _checked(
    ids: np.ndarray, read: dict, derived: dict, finite: jax.Array, *, needs: Sequence[str]
) -> tuple[np.ndarray, dict[str, jax.Array]]:
    known = read | derived
    if not bool(finite):
        refuse(ids, known)
    return ids, {name: known[name] for name in needs}


def _arrays(pool: Pool, needs: Sequence[str]) -> dict[str, Any]:
    """The arrays to read."""
    present = [name for name in (*READABLE, "kernel") if getattr(pool, name) is not None]
    return {name: getattr(pool, name) for name in stored(present, needs)}


def _head(pool: Pool, arrays: dict[str, Any], needs: Sequence[str]) -> Head | None:
    """The head, if something is computed by it."""
    if pool.kernel is None or "features" not in arrays or not set(needs) - set(arrays):
        return None
    return linear_head(pool.kernel, pool.bias)


def _limit(device: jax.Device, on_host: int) -> int:
    return min(CHUNK_BYTES, on_host) if device.platform == "cpu" else CHUNK_BYTES


def _chunk_rows(pool: Pool, needs: Sequence[str], total: int, limit: int) -> int:
    """Rows of a chunk whose arrays, stored and derived, are about ``limit`` bytes."""
    arrays = _arrays(pool, needs)
    floats = sum(int(np.prod(array.shape[1:])) for array in arrays.values())
    if derived := sum(name not in arrays for name in needs):
        logits = (pool.classes,) if pool.logits is None else pool.logits.shape[1:]
        floats += derived * int(np.prod(logits))
    rows = max(1, limit // max(4 * floats, 1))
    # Whole multiples of what matrix products are cut into.
    return min(total, rows if rows < 64 else rows // 64 * 64)


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
    arrays = _arrays(pool, needs)
    total = pool.size if rows is None else len(rows)
    if not total:
        return
    devices = sharing(arrays, devices)
    limit = _limit(devices[0], CACHE_BYTES)
    size = _chunk_rows(pool, needs, total, limit) if size is None else max(1, min(size, total))
    function = score.function if isinstance(score.function, Partial) else Partial(score.function)
    fixed = _head(pool, arrays, needs), function
    placed = [jax.device_put(fixed, device) for device in devices]
    waiting: deque[tuple[Any, ...]] = deque()

    def collect() -> tuple[np.ndarray, np.ndarray]:
        ids, read, values, finite = waiting.popleft()
        if not bool(finite):
            refuse(ids, read | {score.name: values})
        return ids, np.asarray(values)[: len(ids)]

    for number, (ids, host) in enumerate(
        read_chunks(arrays, total, size, rows=rows, buffers=len(devices) + 3)
    ):
        place = number % len(devices)
        read = {name: jax.device_put(part, devices[place]) for name, part in host.items()}
        waiting.append((ids, read, *_score(read, *placed[place], needs=needs)))
        if len(waiting) > len(devices):
            yield collect()
    while waiting:
        yield collect()
