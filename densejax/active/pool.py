"""A pool of samples and a selection from it: what every selector takes and returns.

A selector is ``selector(key, pool, budget, *, ...) -> Selection``. It is pure: the same key, pool
and budget give the same selection, ties go to the lowest index, and a sample that is labelled or
held out is never selected, nor is any sample twice. The pool's arrays may be of NumPy or JAX, or on
disk (a NumPy memory map, a TensorStore): they are read in chunks of rows, so that neither the
memory of the host nor that of the device need hold them.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from densejax.active.rows import (
    PROBED,
    check_distributions,
    check_probabilities,
    open_array,
    open_head,
    open_labels,
    open_members,
    read_chunks,
)
from densejax.io import write_csv
from densejax.typing import Array, Key

Head: TypeAlias = tuple[jax.Array, jax.Array]

# Bytes of one chunk of rows: large enough for full speed of a matrix product, small enough that a
# few of them (read ahead, on the device, results) are nothing beside any machine's memory.
CHUNK_BYTES = 64 * 2**20

# Bytes of a chunk on a CPU: memory of this size is used again, where more of it would be returned
# to the system and cleared for each chunk anew, which takes longer than to read it.
HOST_BYTES = 16 * 2**20


# Arrays that come from files, and their axes.
AXES = {
    "features": ("n", "d"),
    "logits": ("n", "c"),
    "probabilities": ("n", "c"),
    "passes": ("n", "m", "c"),
}
FILES = (*AXES, "weights", "labels", "labelled", "held_out")

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
      columns: scores [n] by name that somebody has computed already (``scores.column``).

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
    columns: Mapping[str, Array] | None = None

    def __post_init__(self) -> None:
        sizes = {name: array.shape[0] for name, array in self._rows().items()}
        sizes |= {f"column {n}": len(a) for n, a in (self.columns or {}).items()}
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
        self._check_classes()
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

    def _check_classes(self) -> None:
        for name in ("logits", "probabilities", "passes", "kernel"):
            if (array := getattr(self, name)) is not None:
                _at_least_two(int(array.shape[-1]), f"pool {name} {tuple(array.shape)}")

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


def _at_least_two(count: int, what: str) -> None:
    """Refuse a class axis of fewer than two classes, of which no score can tell anything."""
    if count < 2:
        raise ValueError(
            f"{what}: found {count} class{'es' * (count != 1)}, expected 2 or more. The one logit "
            "z of a sigmoid is the two logits -z/2 and z/2"
        )


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
    arrays = arrays_of(pool, needs)
    head = head_of(pool, arrays, needs)
    total = pool.size if rows is None else len(rows)
    if size is None:
        size = chunk_rows(pool, needs, total, device=jax.local_devices()[0], on_host=HOST_BYTES)
    size = max(1, min(size, total))
    waiting: tuple[np.ndarray, dict, dict, jax.Array] | None = None
    for ids, host in checked_chunks(arrays, total, size, rows=rows):
        read = {name: jax.device_put(part) for name, part in host.items()}
        # The values of this chunk are on their way while the caller works with the one before.
        derived, finite = prepare(read, head, needs=tuple(needs))
        if waiting is not None:
            yield _checked(*waiting, needs=needs)
        waiting = ids, read, derived, finite
    if waiting is not None:
        yield _checked(*waiting, needs=needs)


def checked_chunks(
    arrays: Mapping[str, Any], total: int, size: int, *, rows: Array | None = None, buffers: int = 0
) -> Iterator[tuple[np.ndarray, dict[str, Array]]]:
    """``read_chunks`` of a pool's arrays, the first rows of which must be what they should be.

    Raises:
      ValueError: as of ``read_chunks``, or probabilities or passes are no distributions.
    """
    seen = 0
    for ids, host in read_chunks(arrays, total, size, rows=rows, buffers=buffers):
        if seen < PROBED:
            for name in ("probabilities", "passes"):
                if name in host:
                    part = host[name][: min(len(ids), PROBED - seen)]
                    check_distributions(ids, np.asarray(part), f"pool {name}")
        seen += len(ids)
        yield ids, host


def _checked(
    ids: np.ndarray, read: dict, derived: dict, finite: jax.Array, *, needs: Sequence[str]
) -> tuple[np.ndarray, dict[str, jax.Array]]:
    known = read | derived
    if not bool(finite):
        refuse(ids, known)
    return ids, {name: known[name] for name in needs}


def arrays_of(pool: Pool, needs: Sequence[str]) -> dict[str, Any]:
    """The arrays to read, by name, from which ``needs`` are read or computed."""
    present = [name for name in (*READABLE, "kernel") if getattr(pool, name) is not None]
    return {name: getattr(pool, name) for name in _stored(present, needs)}


def head_of(pool: Pool, arrays: dict[str, Any], needs: Sequence[str]) -> Head | None:
    """The head, if something is computed by it."""
    if pool.kernel is None or "features" not in arrays or not set(needs) - set(arrays):
        return None
    return linear_head(pool.kernel, pool.bias)


def chunk_rows(
    pool: Pool, needs: Sequence[str], total: int, *, device: jax.Device, on_host: int
) -> int:
    """Rows of a chunk, stored and derived: ``CHUNK_BYTES``; on a CPU at most ``on_host`` bytes."""
    limit = min(CHUNK_BYTES, on_host) if device.platform == "cpu" else CHUNK_BYTES
    arrays = arrays_of(pool, needs)
    floats = sum(int(np.prod(array.shape[1:])) for array in arrays.values())
    if derived := sum(name not in arrays for name in needs):
        logits = (pool.classes,) if pool.logits is None else pool.logits.shape[1:]
        floats += derived * int(np.prod(logits))
    rows = max(1, limit // max(4 * floats, 1))
    # Whole multiples of what matrix products are cut into.
    return min(total, rows if rows < 64 else rows // 64 * 64)


def _stored(present: Collection[str], needs: Sequence[str]) -> tuple[str, ...]:
    """The arrays from which ``needs`` are read or computed, each once."""
    return tuple(dict.fromkeys(_source(present, name) for name in needs))


def _source(present: Collection[str], name: str) -> str:
    if name in present:
        return name
    if name == "logits" and {"features", "kernel"} <= set(present):
        return "features"
    if name == "probabilities" and ("logits" in present or "kernel" in present):
        return _source(present, "logits")
    ways = {
        "logits": "logits, or features and the kernel of a linear head",
        "probabilities": "probabilities, logits, or features and the kernel of a linear head",
    }
    raise ValueError(f"this selector needs the pool's {ways.get(name, name)}")


def linear_head(kernel: Array, bias: Array | None) -> Head:
    """A head as float32 arrays.

    Args:
      kernel: [d, c] floating.
      bias: [c] floating; zero where None.

    Raises:
      ValueError: a value is not finite.
    """
    kernel = np.asarray(kernel, np.float32)
    bias = np.asarray(np.zeros(kernel.shape[1]) if bias is None else bias, np.float32)
    for name, array in (("kernel", kernel), ("bias", bias)):
        if not np.isfinite(array).all():
            count = int((~np.isfinite(array)).sum())
            raise ValueError(f"the head's {name} holds {count} values that are not finite")
    return jnp.asarray(kernel), jnp.asarray(bias)


def _derive(name: str, read: dict[str, jax.Array], head: Head | None) -> jax.Array:
    if name in read:
        return read[name]
    if name == "logits":
        assert head is not None
        # Rankings hang on small differences of logits: full float32 on every backend.
        return jnp.matmul(read["features"], head[0], precision=jax.lax.Precision.HIGHEST) + head[1]
    return jax.nn.softmax(_derive("logits", read, head), axis=-1)


def _finite(read: dict[str, jax.Array], logits: jax.Array | None) -> jax.Array:
    """False if any value read is not finite; may be False without cause, never True.

    A feature that is not finite leaves none of its row's logits finite, and a sum none of its
    column: far cheaper than to look at every value.
    """
    flags = []
    for name, array in read.items():
        if name == "features" and logits is not None:
            flags.append(jnp.isfinite(logits[:, 0]).all())
        else:
            flags.append(jnp.isfinite(array.sum(axis=0)).all())
    return jnp.stack(flags).all()


@partial(jax.jit, static_argnames="needs")
def prepare(
    read: dict[str, jax.Array], head: Head | None, *, needs: tuple[str, ...]
) -> tuple[dict[str, jax.Array], jax.Array]:
    """What is computed of a chunk, by name, and whether all that was read is finite.

    Args:
      read: [s, ...] float32 arrays by name.
      head: kernel [d, c] and bias [c], if there is one.
      needs: names of what is wanted.

    Returns:
      (those of ``needs`` that were not read, bool: False if a value read is not finite, or, rarely,
      where finite values overflow: ``refuse`` looks closer).
    """
    logits = _logits(read, head, needs)
    known = read if logits is None else read | {"logits": logits}
    derived = {name: _derive(name, known, head) for name in needs if name not in read}
    return derived, _finite(read, logits)


def _logits(
    read: dict[str, jax.Array], head: Head | None, needs: tuple[str, ...]
) -> jax.Array | None:
    """The logits, if something of ``needs`` is computed from them by the head."""
    by_head = [n for n in needs if n in ("logits", "probabilities") and n not in read]
    if not by_head or head is None or "features" not in read:
        return None
    return _derive("logits", read, head)


class NotFiniteError(ValueError):
    """An array of the pool is not finite; ``overflow`` where its squares alone are not.

    Attributes:
      array: its name.
    """

    def __init__(self, message: str, array: str, *, overflow: bool = False) -> None:
        super().__init__(message)
        self.array, self.overflow = array, overflow


def refuse(ids: np.ndarray, read: dict[str, Array]) -> None:
    """Say which values are not finite, if any are.

    Args:
      ids: [s] rows of the pool.
      read: [>= s, ...] arrays by name.

    Raises:
      NotFiniteError: count and first row.
    """
    for name, array in read.items():
        bad = ~np.isfinite(np.asarray(array)[: len(ids)])
        bad = bad.any(axis=tuple(range(1, bad.ndim)))
        if bad.any():
            raise NotFiniteError(
                f"pool {name}: {int(bad.sum())} rows of {ids[0]} to {ids[-1]} hold values that are "
                f"not finite, the first is row {ids[np.flatnonzero(bad)[0]]}",
                name,
            )


def refuse_overflow(ids: np.ndarray, features: Array) -> None:
    """Refuse features of which squared distances overflow: no order of samples comes of those.

    Args:
      ids: [s] rows of the pool.
      features: [>= s, d] float32, finite.

    Raises:
      NotFiniteError: a row's squares are too large, with count and first row.
    """
    squares = np.asarray(_squares(jnp.asarray(features)))[: len(ids)]
    bad = ~np.isfinite(squares)
    if bad.any():
        raise NotFiniteError(
            f"pool features: {int(bad.sum())} rows of {ids[0]} to {ids[-1]} are so large that "
            "squared distances of them are not finite in float32, the first is row "
            f"{ids[np.flatnonzero(bad)[0]]}; scale the features, by their standard deviation or so",
            "features",
            overflow=True,
        )


@jax.jit
def _squares(features: jax.Array) -> jax.Array:
    # Room for what distances are made of: sums of a few squares, times those of probabilities.
    return 64 * jnp.square(features).sum(axis=1)


def open_pool(paths: Mapping[str, str]) -> Pool:
    """The pool of the files, none of them read but for indices, labels and the head.

    Args:
      paths: of ``FILES``, by name; one that is empty or absent is not given.

    Raises:
      FileNotFoundError: a file is not there.
      ValueError: a file is not what it should be, or the files do not agree.
    """
    given = {name: path for name in FILES if (path := paths.get(name, ""))}
    if not set(given) & {*AXES, "labels"}:
        raise ValueError(f"a pool needs a file of {', '.join(AXES)} or labels; found {given}")
    arrays = {
        name: open_array(given[name], axes=axes) for name, axes in AXES.items() if name in given
    }
    sizes = {given[name]: array.shape[0] for name, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{path} has {size}" for path, size in sizes.items())
        raise ValueError(f"the files of a pool must have as many rows: {found}")
    kernel, bias = open_head(given["weights"]) if "weights" in given else (None, None)
    _check_widths(given, arrays, kernel)
    size = next(iter(sizes.values())) if sizes else None
    if size is None:
        size = open_array(given["labels"], axes=("n",), integer=True).shape[0]
    classes = {int(a.shape[-1]) for name, a in arrays.items() if name != "features"}
    classes |= set() if kernel is None else {kernel.shape[1]}
    for name in ("probabilities", "passes"):
        if name in arrays:
            check_probabilities(arrays[name], given[name])
    labels = None
    if "labels" in given:
        labels = open_labels(given["labels"], size, next(iter(classes), None))
    members = {
        name: open_members(given[name], size) for name in ("labelled", "held_out") if name in given
    }
    return Pool(
        **arrays,
        kernel=kernel,
        bias=bias,
        labels=labels,
        labelled=members.get("labelled"),
        held_out=members.get("held_out"),
    )


def _check_widths(
    given: Mapping[str, str], arrays: Mapping[str, Any], kernel: np.ndarray | None
) -> None:
    if kernel is not None and "features" in arrays and arrays["features"].shape[1] != len(kernel):
        shape = tuple(arrays["features"].shape)
        turned = " (is it [c, d]?)" if kernel.shape[1] == shape[1] else ""
        raise ValueError(
            f"{given['features']} {shape} and the kernel {kernel.shape} of {given['weights']} do "
            f"not fit: expected [n, d] and [d, c]{turned}"
        )
    classes = {given[name]: int(a.shape[-1]) for name, a in arrays.items() if name != "features"}
    if kernel is not None:
        classes[given["weights"]] = kernel.shape[1]
    for path, count in classes.items():
        _at_least_two(count, path)
    if len(set(classes.values())) > 1:
        found = ", ".join(f"{path} has {count}" for path, count in classes.items())
        raise ValueError(f"the files of a pool must have as many classes: {found}")


def memory_estimate(pool: Pool, *, partitions: int = 1) -> int:
    """About how many bytes a query takes beyond the program: chunks on their way, parts, values.

    Args:
      pool: of files.
      partitions: random parts of it, one of which is in memory; 1 is none.
    """
    arrays = [getattr(pool, name) for name in AXES if getattr(pool, name) is not None]
    stored = sum(4 * int(np.prod(array.shape, dtype=np.int64)) for array in arrays)
    part = stored // partitions if partitions > 1 else 0
    return min(8 * CHUNK_BYTES, 2 * stored) + part + 32 * pool.size


def check_writable(path: str | Path, *, overwrite: bool = False) -> None:
    """Refuse a file that could not be written later on.

    Raises:
      FileExistsError: it is there and may not be replaced.
      FileNotFoundError: its folder is not there.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; give --overwrite or another --out")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path}: no such folder as {path.absolute().parent}")


def write_query(selection: Selection, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a selection as CSV with the header ``index,score``, in its order; whole or not at all.

    Args:
      selection: what to write.
      path: the file.
      overwrite: whether an older file is replaced.

    Raises:
      FileExistsError, FileNotFoundError: as of ``check_writable``.
    """
    check_writable(path, overwrite=overwrite)
    rows = (
        (int(index), f"{float(score):.9g}")
        for index, score in zip(selection.indices, selection.scores, strict=True)
    )
    write_csv(path, ("index", "score"), rows, durable=True, overwrite=overwrite)
