"""What every file format is turned into: one array that is read when it is sliced, axes Z, Y, X.

Of a volume of which some chunks cannot be read, what can be is read and what cannot is listed.
"""

import operator
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

Box = tuple[slice, slice, slice]

# Where a volume does not say what its chunks are, boxes this long are not divided further.
LEAST_EDGE = 32


class LazyArray:
    """A [z, y, x] array in a file; slicing reads only the box asked for and returns numpy.

    Indexing takes what numpy's basic indexing takes (integers, slices with a positive step, an
    ellipsis). Reads share no state, so several threads may read at once.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: Any,
        read: Callable[[Box], np.ndarray],
        *,
        chunks: Sequence[int] | None = None,
    ):
        """Wrap ``read``, which gets three slices with step 1 and returns that box.

        ``chunks`` [z, y, x] is the least box that is read at no more cost than a part of it;
        without it every voxel is.
        """
        self.shape: tuple[int, int, int] = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.dtype = np.dtype(dtype).newbyteorder("=")
        self._read = read
        sizes = [
            max(1, min(int(c), s)) for c, s in zip(chunks or (1,) * 3, self.shape, strict=True)
        ]
        self.chunks: tuple[int, int, int] = (sizes[0], sizes[1], sizes[2])

    ndim = 3

    @property
    def size(self) -> int:
        """The number of voxels."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """The bytes the whole array takes in memory."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        parts = _full_index(index)
        box, after = [], []
        for part, size in zip(parts, self.shape, strict=True):
            low, high, rest = _span(part, size)
            box.append(slice(low, high))
            after.append(rest)
        found = self._read((box[0], box[1], box[2]))
        return np.ascontiguousarray(found, self.dtype)[tuple(after)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        found = self[...]
        return found if dtype is None else found.astype(dtype, copy=False)

    def __repr__(self) -> str:
        return f"LazyArray(shape={self.shape}, dtype={self.dtype})"


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


def _full_index(index: Any) -> list[Any]:
    """Return one integer or slice for each of the three axes."""
    parts = list(index) if isinstance(index, tuple) else [index]
    places = [i for i, part in enumerate(parts) if part is Ellipsis]
    if len(places) > 1:
        raise IndexError("only one ellipsis may stand in an index")
    at = places[0] if places else len(parts)
    rest = parts[at + 1 :] if places else []
    missing = 3 - at - len(rest)
    if missing < 0:
        raise IndexError(f"a volume has 3 axes, {at + len(rest)} indexes were given")
    return parts[:at] + [slice(None)] * missing + rest


def _span(part: Any, size: int) -> tuple[int, int, Any]:
    """Return the run of one axis to read, and the index to apply to what was read."""
    if isinstance(part, slice):
        low, high, step = part.indices(size)
        if step < 1:
            raise IndexError(f"a volume is sliced with a positive step, not {step}")
        return low, max(low, high), slice(None, None, step)
    place = operator.index(part)
    if not -size <= place < size:
        raise IndexError(f"index {place} is outside an axis of {size}")
    place %= size
    return place, place + 1, 0


def natural_key(name: str) -> tuple[Any, ...]:
    """Return a sort key under which ``s2`` comes before ``s10``."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p.lower()) for p in parts if p)


def check_dtype(dtype: Any, name: str) -> np.dtype:
    """Return ``dtype`` if voxels may have it: boolean, integer or float up to 64 bits.

    Raises:
        ValueError: any other dtype; the message begins with ``name``.
    """
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = np.dtype(object)
    if found.kind not in "buif" or found.itemsize > 8:
        raise ValueError(f"{name}: dtype {dtype} is not supported; expected bool, integer or float")
    return found


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
