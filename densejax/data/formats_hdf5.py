"""HDF5 files as volumes."""

import importlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from densejax.data.blocks import box_text
from densejax.data.geometry import IN_FILE, Geometry, Opened, from_attributes

# Filters that h5py alone lacks, by their registered number; hdf5plugin brings all of them.
_FILTERS = {
    305: "lzo", 307: "bzip2", 32000: "lzf", 32001: "blosc", 32004: "lz4", 32008: "bitshuffle",
    32013: "zfp", 32015: "zstd", 32017: "sz", 32018: "fcidecomp", 32026: "blosc2",
    32028: "sperr", 4: "szip",
}  # fmt: skip


def open_hdf5(path: str | Path, *, dataset: str | None = None) -> Opened:
    """Open an HDF5 data set; links are followed.

    Axes, voxel size and position come from ``axistags``, the labels of dimensions and the
    attributes that ``geometry.from_attributes`` reads.

    Args:
        path: the file.
        dataset: the data set's name; by default the only one with three axes longer than 1.

    Raises:
        ValueError: not an HDF5 file, no such data set, none or several that fit, a filter that is
            not installed, or voxels that are in another file that is not there.
    """
    path = Path(path)
    try:
        with h5py.File(path, "r") as file:
            inner = _choose(file, dataset, path)
            name = f"{path}{IN_FILE}{inner}"
            chosen = file[inner]
            _check_filters(chosen, name)
            _check_sources(chosen, path, name)
            geometry = _geometry(chosen, name)
            shape, dtype, chunks = chosen.shape, chosen.dtype, chosen.chunks
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path}: not a readable HDF5 file ({error})") from error
    return Opened(name, shape, dtype, lambda box: _read(path, inner, box), geometry, chunks)


def _read(path: Path, inner: str, box: tuple[slice, ...]) -> np.ndarray:
    # Opened anew for each read, so that threads and forked processes share no handle.
    with h5py.File(path, "r") as file:
        try:
            return file[inner][box]
        except OSError as error:
            raise ValueError(
                f"{path}{IN_FILE}{inner}: [{box_text(box)}] cannot be read ({error})"
            ) from error


def _data_sets(
    group: h5py.Group, above: tuple[h5py.Group, ...] = (), prefix: str = ""
) -> Iterator[tuple[str, h5py.Dataset]]:
    """All data sets below a group, through links of every kind; those that lead nowhere are not."""
    above = (*above, group)
    for key in group:
        try:
            item = group[key]
        except (KeyError, OSError):
            continue
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            yield f"{prefix}{key}", item
        elif isinstance(item, h5py.Group) and item not in above:
            yield from _data_sets(item, above, f"{prefix}{key}/")


def _choose(file: h5py.File, dataset: str | None, path: Path) -> str:
    found = dict(_data_sets(file))
    listed = ", ".join(f"{name} {item.shape}" for name, item in found.items()) or "nothing"
    if dataset is not None:
        inner = dataset.strip("/")
        try:
            held = file[inner]
        except (KeyError, OSError, ValueError):
            held = None
        if not isinstance(held, h5py.Dataset):
            link = file.get(inner, getlink=True) if inner else None
            leads = getattr(link, "path", None)
            where = "" if leads is None else f" (a link to {leads}, which is not there)"
            raise ValueError(f"{path}: no data set {dataset!r}{where}; it holds {listed}")
        return inner
    # A data set may have several names.
    fitting: dict[str, h5py.Dataset] = {}
    for name, item in found.items():
        if _fits(item, name) and item not in fitting.values():
            fitting[name] = item
    large = [name for name, item in found.items() if len(item.shape) >= 3]
    if not fitting and len(large) == 1:
        return large[0]  # what does not fit is said of it by name
    if len(fitting) != 1:
        raise ValueError(
            f"{path}: {len(fitting)} data sets are 3-D; choose one as {path}{IN_FILE}NAME; it "
            f"holds {listed}"
        )
    return next(iter(fitting))


def _geometry(dataset: h5py.Dataset, name: str) -> Geometry:
    # A scale of a dimension, as netCDF and xarray write it, names it too.
    labels = [
        dim.label or (str(dim[0].name).rpartition("/")[2] if len(dim) else None)
        for dim in dataset.dims
    ]
    axes = labels if any(labels) else None
    return from_attributes(dict(dataset.attrs), dataset.shape, name=name, axes=axes)


def _fits(dataset: h5py.Dataset, name: str) -> bool:
    """Whether it is Z, Y, X once axes of length 1 are dropped."""
    try:
        axes = _geometry(dataset, name).axes
    except ValueError:
        return False
    extra = [n for a, n in zip(axes, dataset.shape, strict=True) if a not in ("z", "y", "x")]
    return len(axes) - len(extra) == 3 and set(extra) <= {1}


def _check_filters(dataset: h5py.Dataset, name: str) -> None:
    plan = dataset.id.get_create_plist()
    for i in range(plan.get_nfilters()):
        code, _, _, said = plan.get_filter(i)
        if h5py.h5z.filter_avail(code):
            continue
        try:
            importlib.import_module("hdf5plugin")  # registers its filters
        except ImportError:
            pass
        if not h5py.h5z.filter_avail(code):
            known = _FILTERS.get(code) or said.decode(errors="replace") or "an unknown filter"
            raise ValueError(
                f"{name}: compressed with {known} (filter {code}), which h5py alone lacks: pip "
                "install hdf5plugin"
            )


def _check_sources(dataset: h5py.Dataset, path: Path, name: str) -> None:
    """Voxels that lie nowhere would be read as the fill value."""
    others = (
        [source.file_name for source in dataset.virtual_sources()] if dataset.is_virtual else []
    )
    others += [file for file, _, _ in dataset.external or ()]
    # A name with % stands for many.
    lost = [o for o in others if o != "." and "%" not in o and not (path.parent / o).is_file()]
    if lost:
        raise ValueError(f"{name}: its voxels lie in {lost[0]}, which is not there")
    if dataset.chunks is not None:
        grid = [-(-n // c) for n, c in zip(dataset.shape, dataset.chunks, strict=True)]
        wanted, there = math.prod(grid), dataset.id.get_num_chunks()
    elif dataset.is_virtual or dataset.external or not dataset.size:
        return
    else:
        wanted, there = 1, int(dataset.id.get_storage_size() > 0)
    if wanted and not there:
        raise ValueError(
            f"{name}: nothing was written into it, so that every voxel would be read as "
            f"{dataset.fillvalue}"
        )
    if there < wanted:
        warnings.warn(
            f"{name}: {wanted - there} of {wanted} chunks are not there and are read as "
            f"{dataset.fillvalue}",
            stacklevel=4,
        )
