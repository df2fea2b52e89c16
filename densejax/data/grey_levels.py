"""Mean and deviation of the grey levels of a volume of any size, read piece by piece."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from densejax.data.blocks import cut_blocks
from densejax.data.formats import Box, parts_of

PIECE_VOXELS = 2**22


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of some grey levels."""

    count: int
    mean: float
    squares: float

    @property
    def deviation(self) -> float:
        """Standard deviation over the voxels, not an estimate of a wider population's."""
        return math.sqrt(self.squares / self.count)


def pieces(array: Any, part: Sequence[tuple[int, int]], *, voxels: int = PIECE_VOXELS) -> list[Box]:
    """Boxes that cover a part of a volume, cut along the chunks in which it is stored.

    Args:
      array: the volume; has ``chunks`` where they matter.
      part: (low, high) along z, y and x.
      voxels: of a box, about.
    """
    step = getattr(array, "chunks", (1, 1, 1))
    first = [low // s * s for (low, _), s in zip(part, step, strict=True)]
    extent = [high - f for (_, high), f in zip(part, first, strict=True)]
    boxes = []
    for box in cut_blocks(extent, step, voxels=voxels):
        z, y, x = (
            slice(max(low, s.start + f), s.stop + f)
            for (low, _), s, f in zip(part, box, first, strict=True)
        )
        boxes.append((z, y, x))
    return boxes


def volume_moments(
    array: Any,
    boxes: Sequence[Box],
    *,
    threads: int = 4,
    on_error: Callable[[Box, Exception], None] | None = None,
    progress: Callable[[int], None] = lambda voxels: None,
) -> Moments:
    """Moments of the boxes of a volume, each read once.

    Exact for integers of up to 16 bits, whose sums are kept as integers; for others in float64,
    merged in the order of the boxes, so that the same volume always gives the same numbers. Source
    of the merging: Chan, Golub and LeVeque (1983), doi 10.1080/00031305.1983.10483115.

    Args:
      array: [z, y, x], sliced and read by several threads at once.
      boxes: what to read.
      threads: how many read.
      on_error: told of each chunk that cannot be read, which is then left out; None raises the
        error.
      progress: told the voxels of each box that is read.

    Raises:
      ValueError: a value is not finite, every value is the same, or nothing could be read.
    """
    small = np.dtype(array.dtype).kind in "bui" and np.dtype(array.dtype).itemsize <= 2
    measure = _integers if small else _floats
    parts: list[Any] = []

    def one(box: Box) -> Any:
        if on_error is None:
            found = np.asarray(array[box])
            progress(found.size)
            return measure(found, box)
        read = []
        for part, values in parts_of(array, box):
            if isinstance(values, np.ndarray):
                progress(values.size)
                read.append(measure(values, part))
            else:
                on_error(part, values)
        return _merge(read, small) if read else None

    with ThreadPoolExecutor(threads) as pool:
        # A batch at a time, so that an error does not wait for the whole volume.
        for first in range(0, len(boxes), 4 * threads):
            batch = boxes[first : first + 4 * threads]
            parts += [part for part in pool.map(one, batch) if part is not None]
            parts = [_merge(parts, small)] if parts else []
    if not parts:
        raise ValueError("no part of the volume could be read; expected at least one")
    return _checked(parts[0], small)


def _integers(found: np.ndarray, box: Box) -> tuple[int, int, int]:
    """Count, sum and sum of squares, exact."""
    del box
    flat = found.ravel()
    if flat.dtype.itemsize == 1:
        values = np.arange(256, dtype=np.uint8).view(flat.dtype).astype(np.int64)
        # A count of each of 256 values is exact and reads the voxels once.
        counts = np.bincount(flat.view(np.uint8), minlength=256).astype(np.int64)
        return flat.size, int(counts @ values), int(counts @ values**2)
    wide = flat.astype(np.int64)
    return flat.size, int(wide.sum()), int(wide @ wide)


def _floats(found: np.ndarray, box: Box) -> tuple[int, float, float]:
    """Count, mean and sum of squared deviations."""
    wide = found.astype(np.float64)
    mean = float(wide.mean())
    if not math.isfinite(mean):
        place = ",".join(f"{s.start}:{s.stop}" for s in box)
        raise ValueError(f"voxels {place}: a grey level is NaN or infinite; expected finite ones")
    wide -= mean
    return wide.size, mean, float(np.sum(wide * wide))


def _merge(parts: Sequence[Any], small: bool) -> Any:
    if small:
        return tuple(sum(values) for values in zip(*parts, strict=True))
    count, mean, squares = parts[0]
    for more, other, spread in parts[1:]:
        total = count + more
        step = other - mean
        squares += spread + step * step * (count * more / total)
        mean += step * more / total
        count = total
    return count, mean, squares


def _checked(part: Any, small: bool) -> Moments:
    count, first, second = part
    if small:
        # n sum x^2 - (sum x)^2 is exact; in floating point it would cancel.
        moments = Moments(count, first / count, (count * second - first * first) / count)
    else:
        moments = Moments(count, first, second)
    if moments.squares <= 0:
        raise ValueError(
            f"every voxel of the volume is {moments.mean:g}; expected more than one grey level"
        )
    return moments
