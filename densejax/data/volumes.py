"""A volume of any format as one array with its voxel size, and checks before training starts."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from densejax.data.formats import Box, LazyArray
from densejax.data.formats_chunked import is_remote, is_store, open_chunked
from densejax.data.formats_hdf5 import open_hdf5
from densejax.data.formats_images import (
    PNG_SUFFIXES,
    TIFF_SUFFIXES,
    has_sections,
    open_folder,
    open_tiff,
)
from densejax.data.geometry import IN_FILE, Opened, Voxel, present, settle_voxel, size_text
from densejax.typing import UNLABELLED

HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf", ".he5")

_SELECTED = re.compile(r"([a-z]\w*)=(\d+)")
_said: set[str] = set()  # levels that a line has told of


@dataclass(frozen=True)
class Volume:
    """A 3-D image or label volume that is read where it is sliced.

    Attributes:
        array: [z, y, x], with ``shape``, ``dtype`` and slicing that returns numpy.
        voxel_nm: voxel size in nm, (z, y, x).
        path: the file, folder or URL, with ``::array`` behind it, for messages; opens it again.
        offset: position of the first voxel, (z, y, x) in voxels of this array, where it is stated.
        sections: number of each section, where each is a file with a number.
        stated: whether ``voxel_nm`` stands in the file, whatever was given.
    """

    array: LazyArray
    voxel_nm: Voxel
    path: str
    offset: Voxel | None = None
    sections: tuple[int, ...] | None = None
    stated: bool = False

    def read(self) -> np.ndarray:
        """Return the whole volume in memory, [z, y, x]."""
        return self.array[...]


def open_volume(
    path: str | Path,
    *,
    voxel_nm: Sequence[float] | None = None,
    otherwise_nm: Sequence[float] | None = None,
    dataset: str | None = None,
) -> Volume:
    """Open a volume without reading it; the format is seen from the path.

    A file: TIFF stack, or HDF5. A folder: Zarr 2 or 3, OME-Zarr, N5, Neuroglancer precomputed, or
    sections (one TIFF or PNG each, in numeric order). A URL (gs://, s3://, http://, https://): the
    chunked formats. Axes are Z, Y, X whatever the file's order is. Of a pyramid, the finest level
    is opened and a line on standard error says which.

    Args:
        path: file, folder or URL; behind ``::`` the array in an HDF5 file, a Zarr or N5 group, the
            key of a precomputed scale or the number of an image in a TIFF; behind another one an
            index along an axis other than Z, Y and X: ``a.h5::raw::c=0``.
        voxel_nm: voxel size in nm, (z, y, x). Needed where the file does not state it; otherwise
            it wins, with a warning if the file disagrees by more than 1 %.
        otherwise_nm: voxel size in nm, (z, y, x), where none is given and the file states none.
        dataset: the array in the file, as behind ``::``.

    Raises:
        FileNotFoundError: nothing is there, or a folder is empty.
        ConnectionError: a remote store does not answer.
        ValueError: unknown format, broken file, sections or pages that differ, axes that are not Z,
            Y and X, unsupported dtype, several arrays or images and none named, or a voxel size
            that is neither stated nor given, or below 0.1 nm or above 100 um.
    """
    place, inner, select = _split(str(path))
    if dataset and inner:
        raise ValueError(f"{path}: names an array, and dataset={dataset!r} names one, too")
    opened = _open(place, dataset or inner)
    array = present(opened, select=select)
    if 0 in array.shape:
        raise ValueError(f"{opened.name}: shape {array.shape}; expected at least one voxel")
    geometry = opened.geometry
    sizes = settle_voxel(geometry, voxel_nm, opened.name, otherwise=otherwise_nm)
    offset: Voxel | None = None
    if geometry.offset_nm is not None:
        # A position is in the file's own voxels, whatever somebody says of their size.
        own = geometry.voxel_nm or sizes
        z, y, x = (round(o / v, 6) for o, v in zip(geometry.offset_nm, own, strict=True))
        offset = (z, y, x)
    line = f"{opened.name}: {geometry.level} is opened, the finest: {size_text(sizes)} (z, y, x)"
    if geometry.level and line not in _said:
        _said.add(line)
        print(line, file=sys.stderr, flush=True)
    stated = geometry.voxel_nm is not None
    return Volume(array, sizes, opened.name, offset, geometry.sections, stated)


def open_pair(
    image: str | Path,
    labels: str | Path,
    *,
    voxel_nm: Sequence[float] | None = None,
    image_dataset: str | None = None,
    labels_dataset: str | None = None,
) -> tuple[Volume, Volume]:
    """Open an image and its labels, laid over one another by their stated positions.

    Where both state a position, what both cover is returned. Where one does and the shapes are
    equal, they are the same box; where it lies within the other one, which is then the whole volume
    from 0, 0, 0 on, that part. Two folders of sections must have the same numbers. Nothing is read.

    Args:
        image: as ``open_volume`` takes it.
        labels: likewise; its voxels are the image's where it states none.
        voxel_nm: voxel size in nm, (z, y, x), of both.
        image_dataset: the array in the image's file.
        labels_dataset: the array in the labels' file.

    Raises:
        FileNotFoundError: as ``open_volume``.
        ValueError: as ``open_volume``; voxels, section numbers or shapes differ, or positions do
            not overlap or lie between voxels.
    """
    first = open_volume(image, voxel_nm=voxel_nm, dataset=image_dataset)
    second = open_volume(
        labels, voxel_nm=voxel_nm, otherwise_nm=first.voxel_nm, dataset=labels_dataset
    )
    _check_alike(first, second)
    sizes = [volume.array.shape for volume in (first, second)]
    neither = first.offset is None and second.offset is None
    if neither and sizes[0] != sizes[1]:
        raise ValueError(
            f"{second.path}: shape {sizes[1]}; expected {sizes[0]} as {first.path}, or "
            "positions in both files"
        )
    if neither or (sizes[0] == sizes[1] and None in (first.offset, second.offset)):
        return first, second
    _check_whole(first, second)
    zero = (0.0, 0.0, 0.0)
    starts = [np.array(volume.offset or zero) for volume in (first, second)]
    moved = starts[1] - starts[0]
    whole = np.rint(moved).astype(int)
    where = (
        f"{first.path} is {sizes[0]} from {_numbers(starts[0])}, {second.path} is {sizes[1]} from "
        f"{_numbers(starts[1])} (z, y, x in voxels)"
    )
    if np.abs(moved - whole).max() > 0.1:
        raise ValueError(f"{where}; expected positions that differ by whole voxels")
    low = np.maximum(whole, 0)
    high = np.minimum(whole + sizes[1], sizes[0])
    if (high <= low).any():
        raise ValueError(f"{where}; expected volumes that overlap")
    if sizes[0] == sizes[1] == tuple(high - low):
        return first, second
    print(f"{where}; taking the {tuple((high - low).tolist())} that both cover", file=sys.stderr)
    return _cut(first, low, high), _cut(second, low - whole, high - whole)


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


def _check_alike(image: Volume, labels: Volume) -> None:
    """Refuse a pair that its files say are no pair."""
    if (
        image.stated
        and labels.stated
        and not np.allclose(image.voxel_nm, labels.voxel_nm, rtol=0.01, atol=0)
    ):
        raise ValueError(
            f"{labels.path} has voxels of {size_text(labels.voxel_nm)} (z, y, x), {image.path} of "
            f"{size_text(image.voxel_nm)}; expected the same: name the level that fits behind "
            f"{IN_FILE}, or give --voxel_nm for both"
        )
    if image.sections is None or labels.sections is None or image.sections == labels.sections:
        return
    parts = []
    for one, other in ((image, labels), (labels, image)):
        lost = sorted(set(other.sections or ()) - set(one.sections or ()))
        if lost:
            shown = ", ".join(str(n) for n in lost[:8]) + (", ..." if len(lost) > 8 else "")
            parts.append(f"{one.path} has no section {shown}")
    raise ValueError(
        f"{'; '.join(parts) or f'{image.path} and {labels.path} are in another order'}; expected "
        "sections of the same numbers in both folders (a section without labels is one that is "
        "all unlabelled)"
    )


def _check_whole(first: Volume, second: Volume) -> None:
    """Refuse a pair of which only one has a position, unless it is a part of the other."""
    for part, whole in ((first, second), (second, first)):
        if whole.offset is not None or part.offset is None:
            continue
        ends = np.array(part.offset) + part.array.shape
        # Zero is also what is left behind by those who do not think of it.
        if min(part.offset) < 0 or not any(part.offset) or (ends > whole.array.shape).any():
            raise ValueError(
                f"{part.path} is {part.array.shape} from {_numbers(part.offset)} (z, y, x in "
                f"voxels), {whole.path} is {whole.array.shape} and states no position; expected "
                "the same shape, positions in both files, or a part of the one without"
            )


def _cut(volume: Volume, low: np.ndarray, high: np.ndarray) -> Volume:
    start = [int(n) for n in low]

    def read(box: Box) -> np.ndarray:
        z, y, x = (slice(s.start + a, s.stop + a) for s, a in zip(box, start, strict=True))
        return volume.array[z, y, x]

    whole = volume.array
    part = LazyArray(tuple(int(n) for n in high - low), whole.dtype, read, chunks=whole.chunks)
    z, y, x = (o + a for o, a in zip(volume.offset or (0.0, 0.0, 0.0), start, strict=True))
    sections = volume.sections and volume.sections[start[0] : start[0] + part.shape[0]]
    return replace(volume, array=part, offset=(z, y, x), sections=sections)


def _numbers(values: Sequence[float] | np.ndarray) -> str:
    return ",".join(f"{float(value):g}" for value in values)


def _split(path: str) -> tuple[str, str | None, dict[str, int]]:
    """A path, the array in it, and what is selected of other axes."""
    host, bracket, rest = path.rpartition("]") if is_remote(path) else ("", "", path)
    place, *inner = rest.split(IN_FILE)  # which stands in an address such as http://[::1], too
    select = {}
    while inner and (match := _SELECTED.fullmatch(inner[-1])):
        select[match[1]] = int(match[2])
        inner.pop()
    return host + bracket + place, IN_FILE.join(inner) or None, select


def _open(path: str | Path, dataset: str | None) -> Opened:
    if is_remote(str(path)):
        return open_chunked(path, dataset=dataset)
    place = Path(path)
    if not place.exists():
        for file in place.parents:
            if file.is_file():
                raise FileNotFoundError(
                    f"{place}: {file} is a file; an array in it is written "
                    f"{file}{IN_FILE}{place.relative_to(file)}"
                )
        raise FileNotFoundError(f"{place}: no such file or folder")
    if place.is_dir():
        # A group inside an N5 or Zarr container may carry no metadata file of its own.
        if is_store(place, sections=has_sections(place)) or dataset is not None:
            return open_chunked(place, dataset=dataset)
        return open_chunked(place) if place.suffix in (".zarr", ".n5") else open_folder(place)
    suffix = place.suffix.lower()
    if suffix in HDF5_SUFFIXES:
        return open_hdf5(place, dataset=dataset)
    if suffix in TIFF_SUFFIXES:
        return open_tiff(place, dataset=dataset)
    if dataset is not None:
        raise ValueError(f"{place}: {dataset!r} is an array in HDF5, Zarr, N5 and TIFF only")
    if suffix in PNG_SUFFIXES:
        raise ValueError(f"{place}: a single PNG; expected the folder of all sections")
    raise ValueError(f"{place}: unknown format {suffix!r}; expected TIFF, HDF5 or a folder")


def _count_section(section: np.ndarray, classes: int, name: str) -> np.ndarray:
    wrong = (section < UNLABELLED) | (section >= classes)
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(
            f"{name}: label {int(section[place])} at (y, x) {place}; "
            f"expected 0..{classes - 1}, or {UNLABELLED} for not labelled"
        )
    return np.bincount(section[section != UNLABELLED].astype(np.int64), minlength=classes)
