"""What every file format is turned into: one array that is read when it is sliced, axes Z, Y, X."""

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Box = tuple[slice, slice, slice]


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
