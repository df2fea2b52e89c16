"""The files that an annotator opens, corrects and gives back: a TIFF stack a block.

Stacks open in ImageJ and Fiji with their voxel size and, for labels, the colours of the classes;
any other tool reads them as plain TIFF, one page a section. A label stack is uint8: the class
number, or 255 for *not looked at*. Its place in the volume travels in ImageJ's *Info*, so that two
blocks that were mixed up are noticed where the annotator's tool keeps it.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile

from densejax.data.formats_images import open_tiff
from densejax.ensembles.predict import Sizes
from densejax.typing import UNLABELLED

NOT_LOOKED_AT = 255
_PLACE = re.compile(r"densejax block at z,y,x = (\d+),(\d+),(\d+)")


def write_stack(
    path: Path,
    array: np.ndarray,
    *,
    voxel_nm: Sequence[float],
    offset: Sequence[int],
    colours: Sequence[str] = (),
) -> None:
    """Write one block as a TIFF that ImageJ opens as a stack with its voxel size.

    Args:
      path: the file.
      array: [z, y, x]; uint8, uint16 and float32 are kept, booleans become uint8 and all else
        float32, because ImageJ has no other voxels.
      voxel_nm: (z, y, x), nm.
      offset: (z, y, x) of the block's first voxel in the volume.
      colours: ``#RRGGBB`` of the values 0, 1, ...; values beyond are shown grey.
    """
    if array.dtype == bool:
        array = array.astype(np.uint8)
    elif array.dtype not in (np.uint8, np.uint16, np.float32):
        array = array.astype(np.float32)
    z, y, x = voxel_nm
    metadata = {
        "axes": "ZYX",
        "spacing": z,
        "unit": "nm",
        "Info": "densejax block at z,y,x = {},{},{}\n".format(*(int(o) for o in offset)),
    }
    if colours:
        metadata |= {"LUTs": [_palette(colours)], "Ranges": (0.0, 255.0)}
    tifffile.imwrite(
        path,
        array,
        imagej=True,
        resolution=(1 / x, 1 / y),
        photometric="minisblack",
        metadata=metadata,
    )


def read_labels(path: Path, *, shape: Sizes, offset: Sequence[int], classes: int) -> np.ndarray:
    """Read a label stack that an annotator gives back.

    Args:
      path: the file.
      shape: (z, y, x) that it must have.
      offset: (z, y, x) of its first voxel in the volume; compared where the file states one.
      classes: number of classes, c.

    Returns:
      [z, y, x] int32 in 0..c-1, -1 where not looked at (255 or -1 in the file).

    Raises:
      ValueError: not a TIFF stack, another shape or offset, no integers, or a label out of range;
        the message names the file, what was found and what was expected.
    """
    found = read_integers(path, shape=shape, offset=offset)
    labels = np.where(found == NOT_LOOKED_AT, UNLABELLED, found.astype(np.int64))
    wrong = (labels < UNLABELLED) | (labels >= classes)
    if wrong.any():
        z, y, x = (int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(
            f"{path}: label {int(labels[z, y, x])} at (z, y, x) {(z, y, x)}, and {int(wrong.sum())}"
            f" such voxels in all; expected 0..{classes - 1}, or {NOT_LOOKED_AT} for not looked at"
        )
    return labels.astype(np.int32)


def read_integers(path: Path, *, shape: Sizes, offset: Sequence[int]) -> np.ndarray:
    """Read a stack of integers or booleans of a known shape and place, [z, y, x].

    Raises:
      ValueError: as `read_labels`.
    """
    found = open_tiff(path).array
    if found.shape != tuple(shape):
        raise ValueError(f"{path}: shape {found.shape}; expected the block's {tuple(shape)}")
    if found.dtype.kind not in "iub":
        raise ValueError(
            f"{path}: voxels are {found.dtype}; expected integers (in ImageJ: Image > Type > "
            "8-bit, without scaling)"
        )
    stated = stated_offset(path)
    if stated is not None and stated != tuple(offset):
        raise ValueError(
            f"{path}: the block at {stated} (z, y, x) is in this file; expected that at "
            f"{tuple(int(o) for o in offset)}"
        )
    return found[...]


def stated_offset(path: Path) -> Sizes | None:
    """Place of a block in its volume, (z, y, x), as its TIFF states it, or None."""
    with tifffile.TiffFile(path) as tif:
        info = (tif.imagej_metadata or {}).get("Info", "") if tif.is_imagej else ""
    match = _PLACE.search(str(info))
    return None if match is None else (int(match[1]), int(match[2]), int(match[3]))


def _palette(colours: Sequence[str]) -> np.ndarray:
    """ImageJ's look-up table, uint8 [3, 256]; mid-grey beyond the classes."""
    table = np.full((3, 256), 128, np.uint8)
    for value, colour in enumerate(colours[:256]):
        table[:, value] = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return table
