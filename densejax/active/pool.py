"""A pool of samples and a selection from it: what every selector takes and returns.

A selector is ``selector(key, pool, budget, *, ...) -> Selection``. It is pure: the same key, pool
and budget give the same selection, ties go to the lowest index, and a sample that is labelled or
held out is never selected, nor is any sample twice. The pool's arrays may be of NumPy or JAX, or on
disk (a NumPy memory map, a TensorStore): they are read in chunks of rows, so that neither the
memory of the host nor that of the device need hold them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from densejax.typing import UNLABELLED, Array, Key

# Bytes of one chunk of rows: large enough for full speed of a matrix product, small enough that a
# few of them (read ahead, on the device, results) are nothing beside any machine's memory.
CHUNK_BYTES = 64 * 2**20


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

    def __call__(self, key: Key, pool: "Pool", budget: int) -> Selection: ...


@dataclass(frozen=True)
class Pool:
    """n samples, what is known of them, and which of them may be chosen.

    A selector says which of the arrays it needs; the rest may be None. ``logits`` are computed from
    ``features`` and the head where they are not given, ``probabilities`` from the logits.

    Attributes:
      features: [n, d] floating.
      logits: [n, c] floating.
      probabilities: [n, c] floating, each row sums to 1.
      passes: [n, m, c] floating, probabilities of m stochastic passes or members.
      kernel: [d, c] floating, the linear head on the features.
      bias: [c] floating, the head's bias; zero where None.
      labels: [n] int32, -1 where unknown. Only what a selector documents is looked at: most use the
        labels of labelled samples alone.
      labelled: [n] bool, samples that have been labelled; none where None.
      held_out: [n] bool, samples that must never be chosen (evaluation); none where None.

    Raises:
      ValueError: shapes do not agree, a sample is labelled and held out, or nothing is given.
    """

    features: Any = None
    logits: Any = None
    probabilities: Any = None
    passes: Any = None
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
        ranks = {"features": 2, "logits": 2, "probabilities": 2, "passes": 3, "kernel": 2}
        for name, rank in ranks.items():
            array = getattr(self, name)
            if array is not None and len(array.shape) != rank:
                raise ValueError(f"pool {name}: expected {rank} axes, found shape {array.shape}")
        self._check_head()
        if self.labelled is not None and self.held_out is not None:
            both = np.flatnonzero(np.asarray(self.labelled) & np.asarray(self.held_out))
            if both.size:
                raise ValueError(
                    f"{both.size} samples are labelled and held out, the first is {both[0]}"
                )

    def _rows(self) -> dict[str, Any]:
        names = ("features", "logits", "probabilities", "passes", "labels", "labelled", "held_out")
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
            if array is not None and array.shape[1] != c:
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


def members(indices: Array, size: int, *, name: str = "indices") -> np.ndarray:
    """The mask of a set of rows: [l] integers in [0, size) -> [size] bool.

    Raises:
      ValueError: an index is out of range, or twice the same; ``name`` is named.
    """
    indices = np.asarray(indices)
    if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(f"{name}: expected [l] integers, found {indices.dtype} {indices.shape}")
    outside = indices[(indices < 0) | (indices >= size)]
    if outside.size:
        raise ValueError(f"{name}: {outside[0]} is not a row of a pool of {size}")
    mask = np.zeros(size, bool)
    mask[indices] = True
    if mask.sum() < indices.size:
        values, counts = np.unique(indices, return_counts=True)
        raise ValueError(f"{name}: {values[counts > 1][0]} occurs more than once")
    return mask


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
    """Read the pool in chunks of one shape.

    Args:
      pool: the pool.
      needs: of ``features``, ``logits``, ``probabilities`` and ``passes``.
      rows: [r] ascending rows to read; all where None.
      size: rows of a chunk; chosen by ``CHUNK_BYTES`` where None.

    Yields:
      ([s] int64 rows, {name: [size, ...] float32 on the device}); the last chunk is padded by
      repeats of its last row beyond the s real ones, so that one compiled program serves all.

    Raises:
      ValueError: an array is missing, or holds a value that is not finite (count and first row).
    """
    sources = {name: _sources(pool, name) for name in needs}
    arrays = {name: getattr(pool, name) for stored in sources.values() for name in stored}
    total = pool.size if rows is None else len(rows)
    if size is None:
        row_bytes = sum(4 * int(np.prod(a.shape[1:])) for a in arrays.values())
        size = max(1, CHUNK_BYTES // max(row_bytes, 1))
    size = max(1, min(size, total))
    for start in range(0, total, size):
        ids = np.arange(start, min(start + size, total))
        if rows is not None:
            ids = np.asarray(rows)[ids]
        read = {name: _read(array, ids, size, name) for name, array in arrays.items()}
        yield ids, {name: _derive(pool, name, read) for name in needs}


def _sources(pool: Pool, name: str) -> tuple[str, ...]:
    """The stored arrays from which ``name`` is read or computed."""
    if getattr(pool, name) is not None:
        return (name,)
    if name == "logits" and pool.features is not None and pool.kernel is not None:
        return ("features",)
    if name == "probabilities" and (pool.logits is not None or pool.kernel is not None):
        return _sources(pool, "logits")
    ways = {
        "logits": "logits, or features and the kernel of a linear head",
        "probabilities": "probabilities, logits, or features and the kernel of a linear head",
    }
    raise ValueError(f"this selector needs the pool's {ways.get(name, name)}")


def _read(array: Any, ids: np.ndarray, size: int, name: str) -> jax.Array:
    if isinstance(array, (np.ndarray, jax.Array)):
        whole = ids.size and ids[-1] - ids[0] + 1 == ids.size
        part = array[ids[0] : ids[-1] + 1] if whole else array[ids]
    else:
        part = array[ids].read().result()
    part = np.asarray(part, np.float32)
    if not np.isfinite(part).all():
        bad = ~np.isfinite(part).all(axis=tuple(range(1, part.ndim)))
        raise ValueError(
            f"pool {name}: {int(bad.sum())} rows of {ids[0]} to {ids[-1]} hold values that are not "
            f"finite, the first is row {ids[np.flatnonzero(bad)[0]]}"
        )
    if len(part) < size:
        part = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
    return jnp.asarray(part)


def _derive(pool: Pool, name: str, read: dict[str, jax.Array]) -> jax.Array:
    if name in read:
        return read[name]
    if name == "logits":
        assert pool.kernel is not None
        bias = jnp.zeros(pool.kernel.shape[1]) if pool.bias is None else jnp.asarray(pool.bias)
        return _head(read["features"], jnp.asarray(pool.kernel), bias)
    return jax.nn.softmax(_derive(pool, "logits", read), axis=-1)


@jax.jit
def _head(features: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    # Rankings hang on small differences of logits: full float32 on every backend.
    return jnp.matmul(features, kernel, precision=jax.lax.Precision.HIGHEST) + bias


@dataclass(frozen=True)
class Score:
    """A value of each sample alone, whatever the budget and whatever else is chosen.

    Attributes:
      name: what it is called in tables.
      needs: the arrays of the pool that ``function`` takes, in its order.
      function: pure function of [s, ...] arrays, one argument each of ``needs``, to [s] float32
        (or [s, c] if ``classwise``: a value for every class).
      largest_first: whether the largest values are queried first, or the smallest.
      classwise: whether there is a value for every class.
    """

    name: str
    needs: tuple[str, ...]
    function: Callable[..., jax.Array]
    largest_first: bool = True
    classwise: bool = False


def evaluate(score: Score, pool: Pool, *, rows: Array | None = None) -> np.ndarray:
    """A score of all samples, one pass over the pool.

    Args:
      score: what to compute.
      pool: the pool; ``score.needs`` must be there.
      rows: [r] ascending rows to score; all n where None.

    Returns:
      [n] float32 ([n, c] if classwise), or [r] and [r, c].

    Raises:
      ValueError: an array is missing or not finite.
    """
    function = jax.jit(score.function)
    parts = []
    for ids, arrays in chunks(pool, score.needs, rows=rows):
        values = function(*(arrays[name] for name in score.needs))
        parts.append(np.asarray(values)[: len(ids)])
    if not parts:
        return np.zeros((0, pool.classes) if score.classwise else (0,), np.float32)
    return np.concatenate(parts)


def first(
    values: Array, available: Array, budget: int, *, largest_first: bool = True
) -> np.ndarray:
    """The ``budget`` best available samples, best first, ties by the lowest index.

    Args:
      values: [n] floating.
      available: [n] bool.
      budget: 0 to the number of available samples.
      largest_first: whether large is good.

    Returns:
      [budget] int64.
    """
    candidates = np.flatnonzero(np.asarray(available))
    ranked = np.asarray(values)[candidates]
    ranked = -ranked if largest_first else ranked
    if 0 < budget < candidates.size:
        # Only what is as good as the last of the budget need be sorted.
        edge = np.partition(ranked, budget - 1)[budget - 1]
        keep = ranked <= edge
        candidates, ranked = candidates[keep], ranked[keep]
    return candidates[np.argsort(ranked, kind="stable")[:budget]]
