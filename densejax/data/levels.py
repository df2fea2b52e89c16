"""A volume at several resolutions, for whoever looks at it rather than measures it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from densejax.data import ome_zarr
from densejax.data.formats import Box, LazyArray
from densejax.data.formats_chunked import is_remote
from densejax.data.volumes import Volume, open_volume

COARSEST = 64  # voxels along the longest axis below which nobody needs a coarser level


@dataclass(frozen=True)
class Level:
    """One resolution of a volume.

    Attributes:
        array: [z, y, x], with ``shape``, ``dtype`` and slicing that returns numpy.
        voxel_nm: voxel size in nm, (z, y, x).
        origin_nm: centre of the first voxel in nm, (z, y, x); that of the first voxel of an
            unshifted finest level is 0.
    """

    array: LazyArray
    voxel_nm: tuple[float, float, float]
    origin_nm: tuple[float, float, float] = (0.0, 0.0, 0.0)


def open_levels(path: str | Path, *, voxel_nm: Sequence[float] | None = None) -> list[Level]:
    """Open a volume at all its resolutions, the finest first.

    A local OME-Zarr image has those of its pyramid. Of any other volume, every second voxel is
    taken along y and x until voxels are as wide as deep, then along all axes.

    Args:
        path: file, folder or URL, as ``open_volume`` takes it.
        voxel_nm: voxel size in nm, (z, y, x), where the file states none.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: as ``open_volume``.
    """
    if is_image(path) and voxel_nm is None:
        scales = ome_zarr.read_attributes(path)["multiscales"][0]["datasets"]
        levels = [_stored(path, str(dataset["path"])) for dataset in scales]
        return sorted(levels, key=lambda level: math.prod(level.voxel_nm))
    return thinned(open_volume(path, voxel_nm=voxel_nm))


def is_image(path: str | Path) -> bool:
    """Whether an OME-Zarr image lies there, on a local disk."""
    if not str(path) or is_remote(str(path)):
        return False
    try:
        ome_zarr.read_attributes(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    return True


def thinned(volume: Volume) -> list[Level]:
    """A volume and its coarser levels, made by leaving voxels out where they are read."""
    levels = [Level(volume.array, volume.voxel_nm)]
    factors = np.ones(3, int)
    while max(levels[-1].array.shape) > COARSEST:
        sizes = np.array(volume.voxel_nm) * factors
        flat = sizes[0] > 1.5 * sizes[1:].min()
        grown = factors * ([1, 2, 2] if flat else [2, 2, 2])
        if (grown > volume.array.shape).any():
            break
        factors = grown
        levels.append(_thinned(volume, factors))
    return levels


def cut(level: Level, box: Box) -> Level:
    """A part of a level, which keeps its place in space."""
    start = [span.start for span in box]
    shape = tuple(span.stop - span.start for span in box)

    def read(inner: Box) -> np.ndarray:
        return level.array[
            tuple(
                slice(first + span.start, first + span.stop)
                for first, span in zip(start, inner, strict=True)
            )
        ]

    origin = np.array(level.origin_nm) + np.array(start) * level.voxel_nm
    return Level(LazyArray(shape, level.array.dtype, read), level.voxel_nm, _three(origin))


def _stored(path: str | Path, inner: str) -> Level:
    volume = open_volume(path, dataset=inner)
    origin = np.array(volume.offset or (0.0, 0.0, 0.0)) * volume.voxel_nm
    return Level(volume.array, volume.voxel_nm, _three(origin))


def _thinned(volume: Volume, factors: np.ndarray) -> Level:
    def read(box: Box) -> np.ndarray:
        return volume.array[
            tuple(
                slice(span.start * factor, (span.stop - 1) * factor + 1, factor)
                for span, factor in zip(box, factors.tolist(), strict=True)
            )
        ]

    shape = tuple(-(-size // int(f)) for size, f in zip(volume.array.shape, factors, strict=True))
    array = LazyArray(shape, volume.array.dtype, read)
    return Level(array, _three(np.array(volume.voxel_nm) * factors))


def _three(values: Any) -> tuple[float, float, float]:
    z, y, x = (float(value) for value in values)
    return z, y, x
