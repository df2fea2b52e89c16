"""A volume of any format as one array with its voxel size, and checks before training starts."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from densejax.data.formats import LazyArray, Opened, voxel_size
from densejax.data.formats_chunked import is_remote, is_store, open_chunked
from densejax.data.formats_hdf5 import open_hdf5
from densejax.data.formats_images import PNG_SUFFIXES, TIFF_SUFFIXES, open_folder, open_tiff
from densejax.typing import UNLABELLED

HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf", ".he5")


@dataclass(frozen=True)
class Volume:
    """A 3-D image or label volume that is read where it is sliced.

    Attributes:
        array: [z, y, x], with ``shape``, ``dtype`` and slicing that returns numpy.
        voxel_nm: voxel size in nm, (z, y, x).
        path: the file, folder or URL, for messages.
    """

    array: LazyArray
    voxel_nm: tuple[float, float, float]
    path: str

    def read(self) -> np.ndarray:
        """Return the whole volume in memory, [z, y, x]."""
        return self.array[...]


def open_volume(
    path: str | Path,
    *,
    voxel_nm: Sequence[float] | None = None,
    dataset: str | None = None,
) -> Volume:
    """Open a volume without reading it; the format is seen from the path.

    A file: TIFF stack, or HDF5. A folder: Zarr 2 or 3, OME-Zarr, N5, Neuroglancer precomputed, or
    sections (one TIFF or PNG each, in numeric order). A URL (gs://, s3://, http://, https://): the
    chunked formats. Axes are Z, Y, X whatever the file's order is.

    Args:
        path: file, folder or URL.
        voxel_nm: voxel size in nm, (z, y, x). Needed where the file does not state it; otherwise
            it wins, with a warning if the file disagrees by more than 1 %.
        dataset: the array inside an HDF5 file or a Zarr or N5 group.

    Raises:
        FileNotFoundError: nothing is there, or a folder is empty.
        ConnectionError: a remote store does not answer.
        ValueError: unknown format, broken file, sections or pages that differ, unsupported dtype,
            a choice of ``dataset`` is needed, or the voxel size is neither stated nor given.
    """
    opened = _open(path, dataset)
    if 0 in opened.array.shape:
        raise ValueError(f"{opened.name}: shape {opened.array.shape}; expected at least one voxel")
    return Volume(opened.array, _settle_voxel(opened, voxel_nm), opened.name)


def check_pair(
    image: np.ndarray, labels: np.ndarray, *, classes: int, name: str = "volume"
) -> np.ndarray:
    """Check an image with its labels and count the classes.

    Args:
        image: [z, y, x], integer or float; it is looked at section by section.
        labels: [z, y, x], integer, 0..c-1 or -1 for not labelled, or bool for two classes.
        classes: c.
        name: what the messages call the pair.

    Returns:
        int64 [c], the labelled voxels of each class.

    Raises:
        ValueError: the shapes differ, labels are floats or out of range, or the image holds NaN or
            infinity or one value only.
    """
    if image.shape != labels.shape:
        raise ValueError(f"{name}: labels are {labels.shape}; expected the image's {image.shape}")
    if np.dtype(labels.dtype).kind not in "iub":
        raise ValueError(f"{name}: labels are {labels.dtype}; expected integers")
    counts = np.zeros(classes, np.int64)
    low, high = np.inf, -np.inf
    for z in range(image.shape[0]):
        section = np.asarray(image[z])
        if not np.isfinite(section).all():
            raise ValueError(f"{name}: section {z} of the image holds NaN or infinity")
        low, high = min(low, float(section.min())), max(high, float(section.max()))
        counts += _count_section(np.asarray(labels[z]), classes, f"{name}: section {z}")
    if low == high:
        raise ValueError(f"{name}: every voxel of the image is {low:g}; expected an image")
    return counts


def check_training_classes(counts: np.ndarray, names: Sequence[str]) -> None:
    """Check that each class occurs in training.

    Args:
        counts: [c], labelled voxels of each class, as ``check_pair`` returns.
        names: the c class names.

    Raises:
        ValueError: the lengths differ, or a class has no voxel; the message names it.
    """
    if len(counts) != len(names):
        raise ValueError(f"{len(counts)} classes were counted; expected {len(names)}: {names}")
    absent = [f"{i} {name}" for i, name in enumerate(names) if counts[i] == 0]
    if absent:
        raise ValueError(
            f"training labels have no voxel of class {', '.join(absent)}; expected every class"
        )


def _open(path: str | Path, dataset: str | None) -> Opened:
    if is_remote(str(path)):
        return open_chunked(path, dataset=dataset)
    place = Path(path)
    if not place.exists():
        raise FileNotFoundError(f"{place}: no such file or folder")
    if place.is_dir():
        # A group inside an N5 or Zarr container may carry no metadata file of its own.
        if is_store(place) or dataset is not None or place.suffix in (".zarr", ".n5"):
            return open_chunked(place, dataset=dataset)
        return open_folder(place)
    suffix = place.suffix.lower()
    if suffix in HDF5_SUFFIXES:
        return open_hdf5(place, dataset=dataset)
    if dataset is not None:
        raise ValueError(f"{place}: dataset={dataset!r} is for HDF5, Zarr and N5 only")
    if suffix in TIFF_SUFFIXES:
        return open_tiff(place)
    if suffix in PNG_SUFFIXES:
        raise ValueError(f"{place}: a single PNG; expected the folder of all sections")
    raise ValueError(f"{place}: unknown format {suffix!r}; expected TIFF, HDF5 or a folder")


def _settle_voxel(opened: Opened, given: Sequence[float] | None) -> tuple[float, float, float]:
    stated = opened.voxel_nm
    if given is None:
        if stated is None:
            raise ValueError(
                f"{opened.name}: the file states no voxel size; give it in nm as "
                "--voxel_nm=z,y,x (voxel_nm=(z, y, x) in Python)"
            )
        return voxel_size(stated, opened.name)
    sizes = voxel_size(given, opened.name)
    if stated is not None and not np.allclose(sizes, stated, rtol=0.01, atol=0):
        warnings.warn(
            f"{opened.name}: the file states voxels of {stated} nm (z, y, x); using the given "
            f"{sizes} nm",
            stacklevel=3,
        )
    return sizes


def _count_section(section: np.ndarray, classes: int, name: str) -> np.ndarray:
    wrong = (section < UNLABELLED) | (section >= classes)
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(
            f"{name}: label {int(section[place])} at (y, x) {place}; "
            f"expected 0..{classes - 1}, or {UNLABELLED} for not labelled"
        )
    return np.bincount(section[section != UNLABELLED].astype(np.int64), minlength=classes)
