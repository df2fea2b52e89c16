"""A pool's arrays from files, and a query to a file."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from densejax.active.pool import Selection, members
from densejax.active.reading import read_chunks
from densejax.io import write_csv

HEADER = ("index", "score")


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


def check_probabilities(array: Any, path: str | Path, *, rows: int = 4096) -> None:
    """Refuse what can't be probabilities, by the first rows: [n, ..., c].

    Raises:
      ValueError: a value outside 0..1, or classes that do not sum to 1.
    """
    total = min(rows, array.shape[0])
    for ids, chunk in read_chunks({str(path): array}, total, max(1, min(total, 256))):
        part = np.asarray(chunk[str(path)])[: len(ids)]
        sums = part.sum(axis=-1)
        # What is not finite is refused, with a count, where it is read.
        bad = (part < -1e-3).any(axis=-1) | (np.abs(sums - 1) > 1e-2)
        if bad.any():
            row = ids[np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))[0]]
            raise ValueError(
                f"{path}: row {row} is no distribution over classes (from {part.min():.4g} to "
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
    write_csv(path, HEADER, rows, durable=True, overwrite=overwrite)
