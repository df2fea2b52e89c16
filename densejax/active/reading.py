"""Rows of large arrays, a chunk at a time: read ahead of their use, from memory or from disk.

An array may be of NumPy or JAX, a NumPy memory map, a TensorStore, or anything else whose slices of
rows are arrays. A thread reads the next chunk while the last one is computed with. The pages of a
memory map are given back once they are copied, so that a file larger than memory can be read.
"""

import mmap
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densejax.typing import Array

# A host buffer at such an address can be used by the CPU's compiled programs without a copy.
ALIGNMENT = 64


def read_chunks(
    arrays: Mapping[str, Any],
    total: int,
    size: int,
    *,
    rows: Array | None = None,
    buffers: int = 0,
) -> Iterator[tuple[np.ndarray, dict[str, Array]]]:
    """Rows of several arrays in chunks of one size, read ahead by a thread.

    Args:
      arrays: of n rows each, by name.
      total: number of rows to read: n, or r where ``rows`` is given.
      size: rows of a chunk, at least 1.
      rows: [r] ascending rows to read; all where None.
      buffers: how many chunks' memory is used over and over; each its own where 0. The caller must
        be done with a chunk when it asks for the one ``buffers - 1`` after it.

    Yields:
      ([s] int64 rows, {name: [size, ...] float32}); the last chunk is padded beyond its s rows by
      repeats of the last. On the host, but for arrays that are on an accelerator.

    Raises:
      ValueError: the store can't be read; the array is named.
    """
    starts = range(0, total, size)
    sources = {name: _source(array) for name, array in arrays.items()}
    rings: dict[str, list[np.ndarray]] = {}
    if buffers:
        count = min(buffers, len(starts))
        rings = {
            name: [aligned((size, *array.shape[1:])) for _ in range(count)]
            for name, array in sources.items()
            if not isinstance(array, jax.Array)
        }

    def read(number: int) -> tuple[np.ndarray, dict[str, Array]]:
        start = starts[number]
        ids = np.arange(start, min(start + size, total), dtype=np.int64)
        if rows is not None:
            ids = np.asarray(rows, np.int64)[ids]
        chunk = {}
        for name, array in sources.items():
            buffer = rings[name][number % len(rings[name])] if name in rings else None
            try:
                chunk[name] = _read(array, ids, size, buffer)
            except (ValueError, OSError) as error:
                raise ValueError(
                    f"pool {name}: rows {ids[0]} to {ids[-1]} cannot be read ({error})"
                ) from error
        return ids, chunk

    if len(starts) == 1:
        yield read(0)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="densejax-read") as reader:
        ahead = reader.submit(read, 0) if starts else None
        for number in range(len(starts)):
            assert ahead is not None
            chunk = ahead.result()
            ahead = reader.submit(read, number + 1) if number + 1 < len(starts) else None
            yield chunk


def aligned(shape: Sequence[int]) -> np.ndarray:
    """An uninitialised float32 array that compiled programs of the CPU can read in place."""
    size = 4 * int(np.prod(shape))
    memory = np.empty(size + ALIGNMENT, np.uint8)
    shift = -memory.ctypes.data % ALIGNMENT
    return memory[shift : shift + size].view(np.float32).reshape(shape)


def _source(array: Any) -> Any:
    """Arrays of the CPU's own devices as views of their memory, without a copy."""
    if not isinstance(array, jax.Array):
        return array
    devices = array.devices()
    alone = len(devices) == 1 and next(iter(devices)).platform != "cpu"
    return array if alone else np.asarray(array)


@jax.jit
def _take(array: jax.Array, ids: jax.Array) -> jax.Array:
    return jnp.take(array, ids, axis=0).astype(jnp.float32)


def _read(array: Any, ids: np.ndarray, size: int, buffer: np.ndarray | None) -> Array:
    short = size - len(ids)
    if isinstance(array, jax.Array):
        return _take(array, np.pad(ids, (0, short), mode="edge"))
    contiguous = ids[-1] - ids[0] + 1 == len(ids)
    # Rows of a memory map are taken of the slice that spans them, whose pages can be given back.
    sliced = contiguous or isinstance(array, np.memmap)
    part = array[int(ids[0]) : int(ids[-1]) + 1] if sliced else array[ids]
    if hasattr(part, "read"):  # a TensorStore's slice is read when asked to
        part = part.read().result()
    mapped = part if isinstance(part, np.memmap) else None
    part = part if contiguous or not sliced else part[ids - ids[0]]
    if buffer is None:
        if mapped is None and not short:
            return np.ascontiguousarray(part, np.float32)
        buffer = aligned((size, *part.shape[1:]))
    buffer[: len(ids)] = part
    buffer[len(ids) :] = buffer[len(ids) - 1]
    if mapped is not None:
        _give_back(mapped)
    return buffer


def _give_back(part: np.memmap) -> None:
    """Drop the pages of a slice of a memory map from the process: the file still has them."""
    memory = getattr(part, "_mmap", None)
    if not isinstance(memory, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return
    # Pages of a private map ("c") may hold what the file does not; a slice with strides covers
    # more than its own bytes.
    if part.mode not in ("r", "r+", "w+") or not part.flags.c_contiguous:
        return
    base = np.frombuffer(memory, np.uint8).ctypes.data
    first = (part.ctypes.data - base) // mmap.PAGESIZE * mmap.PAGESIZE
    memory.madvise(mmap.MADV_DONTNEED, first, part.ctypes.data - base + part.nbytes - first)


def take_rows(array: Any, rows: np.ndarray) -> Array:
    """Some rows of an array in memory or on disk, read into memory in the array's own dtype.

    Args:
      array: [n, ...] of any kind that ``read_chunks`` reads.
      rows: [r] integers, ascending.

    Returns:
      [r, ...], where the array is: of NumPy, or of JAX.
    """
    if isinstance(array, jax.Array):
        return jnp.take(array, rows, axis=0)
    part = array[rows]
    if hasattr(part, "read"):
        part = part.read().result()
    if isinstance(array, np.memmap):
        _give_back(array)
    return np.array(part, copy=None)


def sharing(
    arrays: Mapping[str, Any], devices: Sequence[jax.Device] | None
) -> Sequence[jax.Device]:
    """The devices that take chunks in turn.

    Args:
      arrays: what is read; what is on an accelerator is used there.
      devices: those asked for; where None, all accelerators, or one device of the CPU: its programs
        use all cores, and two devices of one CPU would only wait for each other.
    """
    if devices is not None:
        return devices
    for array in arrays.values():
        if isinstance(array, jax.Array) and len(array.devices()) == 1:
            return tuple(array.devices())
    local = jax.local_devices()
    return local[:1] if local[0].platform == "cpu" else local
