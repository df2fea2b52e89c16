"""Rows of large arrays, in memory or in files: opened, checked, read a chunk ahead of their use.

An array may be of NumPy or JAX, a NumPy memory map, a TensorStore, or anything else whose slices of
rows are arrays. A thread reads the next chunk while the last one is computed with. The pages of a
memory map are given back once they are copied, so that a file larger than memory can be read.
"""

import mmap
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densejax.typing import Array

# Rows of an array of probabilities that are looked at before they are believed.
PROBED = 4096

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
            name: [_aligned((size, *array.shape[1:])) for _ in range(count)]
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


def _aligned(shape: Sequence[int]) -> np.ndarray:
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
        buffer = _aligned((size, *part.shape[1:]))
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


def open_array(path: str | Path, *, axes: Sequence[str], integer: bool = False) -> Any:
    """Open an array without reading it.

    Args:
      path: a ``.npy`` file, which is mapped, or the folder of a Zarr array (2 or 3).
      axes: names of the expected axes, such as ``("n", "d")``.
      integer: whether integers are expected; else floating numbers (or integers).

    Returns:
      A memory map or a TensorStore.

    Raises:
      FileNotFoundError: nothing is there.
      ValueError: the file is no such array or is cut short, or has other axes or another dtype.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    array = _open_zarr(path) if path.is_dir() else _open_npy(path)
    shape = tuple(array.shape)
    kind = _dtype(array).kind
    if len(shape) != len(axes):
        raise ValueError(f"{path}: found shape {shape}, expected [{', '.join(axes)}]")
    # Extension floats, such as bfloat16, have kind "V" or "f".
    if kind not in ("iu" if integer else "fiuV"):
        expected = "integers" if integer else "floating numbers"
        raise ValueError(f"{path}: found {_dtype(array)}, expected {expected}")
    return array


def _dtype(array: Any) -> np.dtype:
    return array.dtype if isinstance(array, np.ndarray) else array.dtype.numpy_dtype


def _open_npy(path: Path) -> np.memmap:
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            reader = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }.get(version, np.lib.format.read_array_header_2_0)
            shape, _, dtype = reader(file)
            needed = file.tell() + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    except ValueError as error:
        raise ValueError(f"{path}: expected a .npy file or a Zarr folder ({error})") from error
    if (size := path.stat().st_size) < needed:
        raise ValueError(
            f"{path}: cut short: found {size} bytes, expected {needed} for {dtype} {shape}"
        )
    if dtype.hasobject:
        raise ValueError(f"{path}: found Python objects, expected numbers")
    # A memory map of nothing can't be.
    return np.load(path, mmap_mode="r" if 0 not in shape else None, allow_pickle=False)


def _open_zarr(path: Path) -> Any:
    drivers = {".zarray": "zarr", "zarr.json": "zarr3"}
    driver = next((d for marker, d in drivers.items() if (path / marker).is_file()), None)
    if driver is None:
        raise ValueError(f"{path}: a folder without .zarray or zarr.json; expected a Zarr array")
    import tensorstore as ts

    spec = {"driver": driver, "kvstore": path.resolve().as_uri() + "/"}
    try:
        return ts.open(spec, read=True).result()
    except Exception as error:  # tensorstore raises its own kinds, by cause
        raise ValueError(f"{path}: cannot be opened as {driver} ({error})") from error


def open_head(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Kernel [d, c] and bias [c] (zero if absent) of a linear head in a ``.npz`` file.

    Raises:
      FileNotFoundError: nothing is there.
      ValueError: no such file, no ``kernel`` in it, shapes that do not agree, or values that are
        not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as stored:
            if isinstance(stored, np.ndarray):
                raise ValueError("it is a single array")
            arrays = {name: stored[name] for name in stored.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: expected a .npz file with kernel and bias ({error})") from error
    if "kernel" not in arrays:
        raise ValueError(
            f"{path}: found {', '.join(arrays) or 'nothing'}; expected kernel [d, c], bias [c]"
        )
    kernel = arrays["kernel"]
    if kernel.ndim != 2:
        raise ValueError(f"{path}: kernel of shape {kernel.shape}, expected [d, c]")
    bias = arrays.get("bias", np.zeros(kernel.shape[1], np.float32))
    if bias.shape != kernel.shape[1:]:
        raise ValueError(
            f"{path}: bias of shape {bias.shape}, expected [{kernel.shape[1]}] for a kernel "
            f"{kernel.shape}"
        )
    for name, array in (("kernel", kernel), ("bias", bias)):
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{path}: {name} of {array.dtype}, expected floating numbers")
        if bad := int((~np.isfinite(array)).sum()):
            raise ValueError(f"{path}: {bad} values of {name} are not finite")
    return kernel, bias


def open_members(path: str | Path, size: int) -> np.ndarray:
    """The mask of the rows that a ``.npy`` file of indices names: [l] integers -> [size] bool.

    Raises:
      FileNotFoundError: nothing is there.
      ValueError: no integers, an index outside the pool or twice the same.
    """
    array = open_array(path, axes=("l",), integer=True)
    return members(np.asarray(array), size, name=str(path))


def open_labels(path: str | Path, size: int, classes: int | None) -> np.ndarray:
    """Labels [size] int32, -1 where unknown.

    Args:
      path: a ``.npy`` file.
      size: n, the samples of the pool.
      classes: c; None where nothing says how many there are.

    Raises:
      FileNotFoundError: nothing is there.
      ValueError: another number of labels, or a label outside the classes.
    """
    labels = np.asarray(open_array(path, axes=("n",), integer=True)).astype(np.int64)
    if len(labels) != size:
        raise ValueError(f"{path}: found {len(labels)} labels, expected {size}, one a sample")
    outside = labels < -1
    if classes is not None:
        outside |= labels >= classes
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        most = "" if classes is None else f" to {classes - 1}"
        raise ValueError(
            f"{path}: {int(outside.sum())} labels outside the classes, the first is "
            f"{labels[first]} of sample {first}; expected -1 (unknown) or 0{most}"
        )
    return labels.astype(np.int32)


def check_probabilities(array: Any, name: str | Path) -> None:
    """Refuse what can't be probabilities, by the first rows: [n, ..., c].

    Raises:
      ValueError: as of ``check_distributions``.
    """
    total = min(PROBED, array.shape[0])
    for ids, chunk in read_chunks({str(name): array}, total, max(1, min(total, 256))):
        check_distributions(ids, np.asarray(chunk[str(name)])[: len(ids)], name)


def check_distributions(ids: np.ndarray, part: np.ndarray, name: str | Path) -> None:
    """Refuse rows that are no distributions over classes.

    Args:
      ids: [>= s] rows of the pool.
      part: [s, ..., c] floating; what is not finite is refused, with a count, where it is used.
      name: of the array or its file, for the message.

    Raises:
      ValueError: a value outside 0..1, or classes that do not sum to 1.
    """
    sums = part.sum(axis=-1)
    bad = np.isfinite(sums) & ((part < -1e-3).any(axis=-1) | (np.abs(sums - 1) > 1e-2))
    if bad.any():
        row = ids[np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))[0]]
        raise ValueError(
            f"{name}: row {row} is no distribution over classes (from {part.min():.4g} to "
            f"{part.max():.4g}, sum {sums[bad][0]:.4g}); expected probabilities, not logits"
        )


def count_not_finite(array: Any, path: str | Path) -> str:
    """A sentence on the rows that are not finite, in the whole file."""
    row_bytes = 4 * max(1, int(np.prod(array.shape[1:])))
    size = max(1, min(array.shape[0], 2**26 // row_bytes))
    count, first = 0, -1
    for ids, chunk in read_chunks({str(path): array}, array.shape[0], size):
        part = np.asarray(chunk[str(path)])[: len(ids)]
        rows = ids[~np.isfinite(part.reshape(len(part), -1)).all(axis=1)]
        first = int(rows[0]) if rows.size and first < 0 else first
        count += rows.size
    return (
        f"{path}: {count} of {array.shape[0]} rows hold values that are not finite, the first is "
        f"row {first}"
    )


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


def check_truth(labels: Array | None, available: Array, classes: int) -> None:
    """Refuse true labels that are missing or outside the classes.

    Args:
      labels: [n] int32, or [n, (z,) y, x], of which -1 is a pixel that doesn't count.
      available: [n] bool, the samples whose labels are needed.
      classes: c.

    Raises:
      ValueError: there are none, an available sample has none, or one is outside the classes.
    """
    if labels is None:
        raise ValueError("this selector needs the true labels of all samples (pool labels)")
    labels = np.asarray(labels)
    if labels.ndim == 1 and (missing := np.flatnonzero(available & (labels < 0))).size:
        raise ValueError(
            f"this selector needs the true labels of all samples: {missing.size} that may be "
            f"chosen have none, the first is {missing[0]}"
        )
    if labels.max(initial=-1) >= classes:
        sample = int(np.argwhere(labels >= classes)[0][0])
        raise ValueError(
            f"label {labels.max()}: expected fewer than {classes}, the classes; the first "
            f"outside them is in sample {sample}"
        )
