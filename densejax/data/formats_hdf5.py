"""HDF5 files as volumes."""

from pathlib import Path

import h5py
import numpy as np

from densejax.data.blocks import box_text
from densejax.data.formats import Box, LazyArray, Opened, check_dtype, voxel_size

# Attribute names and what one of their units is in nm: CREMI, funlib and Ilastik write these.
_ATTRIBUTES = {"voxel_nm": 1.0, "resolution": 1.0, "voxel_size": 1.0, "element_size_um": 1e3}


def open_hdf5(path: str | Path, *, dataset: str | None = None) -> Opened:
    """Open an HDF5 data set as a [z, y, x] array.

    The voxel size comes from the data set's attribute ``voxel_nm``, ``resolution``, ``voxel_size``
    (nm) or ``element_size_um``, each in the order Z, Y, X.

    Args:
        path: the file.
        dataset: the data set's name; by default the only 3-D one.

    Raises:
        ValueError: not an HDF5 file, no such data set, none or several that are 3-D.
    """
    path = Path(path)
    try:
        with h5py.File(path, "r") as file:
            found = _shapes(file)
            inner = _choose(found, dataset, path)
            name = f"{path}:{inner}"
            chosen = file[inner]
            shape, dtype = chosen.shape, check_dtype(chosen.dtype, name)
            voxel_nm = _voxel(chosen, name)
            chunks = chosen.chunks
    except OSError as error:
        raise ValueError(f"{path}: not a readable HDF5 file ({error})") from error
    array = LazyArray(shape, dtype, lambda box: _read(path, inner, box), chunks=chunks)
    return Opened(array, name, voxel_nm)


def _read(path: Path, inner: str, box: Box) -> np.ndarray:
    # Opened anew for each read, so that threads and forked processes share no handle.
    with h5py.File(path, "r") as file:
        try:
            return file[inner][box]
        except OSError as error:
            raise ValueError(
                f"{path}:{inner}: [{box_text(box)}] cannot be read ({error})"
            ) from error


def _shapes(file: h5py.File) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item.shape

    file.visititems(visit)
    return found


def _choose(found: dict[str, tuple[int, ...]], dataset: str | None, path: Path) -> str:
    listed = ", ".join(f"{name} {shape}" for name, shape in found.items()) or "nothing"
    if dataset is not None:
        inner = dataset.strip("/")
        if inner not in found:
            raise ValueError(f"{path}: no data set {dataset!r}; it holds {listed}")
        if len(found[inner]) != 3:
            raise ValueError(f"{path}:{inner} has shape {found[inner]}; expected (z, y, x)")
        return inner
    three = [name for name, shape in found.items() if len(shape) == 3]
    if len(three) != 1:
        raise ValueError(
            f"{path}: {len(three)} data sets are 3-D; choose one with dataset= (--dataset); "
            f"it holds {listed}"
        )
    return three[0]


def _voxel(dataset: h5py.Dataset, name: str) -> tuple[float, float, float] | None:
    for attribute, scale in _ATTRIBUTES.items():
        if attribute in dataset.attrs:
            values = np.asarray(dataset.attrs[attribute]).ravel()
            sizes = voxel_size(values, f"{name} attribute {attribute}")
            return sizes[0] * scale, sizes[1] * scale, sizes[2] * scale
    return None
