"""Volumes of which some chunks cannot be read: what can be is read, what cannot is listed."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from densejax.data.formats import Box

# Where a volume does not say what its chunks are, boxes this long are not divided further.
LEAST_EDGE = 32


class Patchy:
    """A volume that is sliced as any other; voxels that cannot be read are 0.

    Attributes:
      unread: boxes that could not be read so far, each with what was said of it.
    """

    def __init__(self, array: Any) -> None:
        """Wrap a volume [z, y, x] whose slicing raises ValueError or OSError."""
        self.array = array
        self.shape, self.dtype = array.shape, np.dtype(array.dtype)
        self.unread: list[tuple[Box, str]] = []

    def __getitem__(self, box: Box) -> np.ndarray:
        found = None
        for part, values in parts_of(self.array, box):
            if found is None and part == box and isinstance(values, np.ndarray):
                return values
            if found is None:
                found = np.zeros([s.stop - s.start for s in box], self.dtype)
            if isinstance(values, np.ndarray):
                place = [
                    slice(p.start - b.start, p.stop - b.start)
                    for p, b in zip(part, box, strict=True)
                ]
                found[tuple(place)] = values
            else:
                self.unread.append((part, str(values)))
        assert found is not None
        return found


def parts_of(array: Any, box: Box) -> Iterator[tuple[Box, np.ndarray | Exception]]:
    """Read a box, and where that fails its halves, down to chunks.

    Args:
      array: [z, y, x]; has ``chunks`` where they matter.
      box: three slices with a start and a stop.

    Yields:
      Boxes in a fixed order that cover the box, with their voxels or why they cannot be read.
    """
    try:
        yield box, np.asarray(array[box])
        return
    except (ValueError, OSError) as error:
        halves = _halves(box, getattr(array, "chunks", (1, 1, 1)))
        if not halves:
            yield box, error
    for half in halves:
        yield from parts_of(array, half)


def _halves(box: Box, chunks: tuple[int, ...]) -> list[Box]:
    """The box in two, cut between chunks along the axis with the most; none if it is in one."""
    steps = [chunk if chunk > 1 else LEAST_EDGE for chunk in chunks]
    # Chunks that the box meets along each axis, by the number of the first and of the last.
    ends = [(s.start // n, (s.stop - 1) // n) for s, n in zip(box, steps, strict=True)]
    axis = int(np.argmax([last - first for first, last in ends]))
    first, last = ends[axis]
    if first == last:
        return []
    cut = (first + last + 1) // 2 * steps[axis]
    low, high = list(box), list(box)
    low[axis], high[axis] = slice(box[axis].start, cut), slice(cut, box[axis].stop)
    return [(low[0], low[1], low[2]), (high[0], high[1], high[2])]
