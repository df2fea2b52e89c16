"""One block of labels that fits in memory: its runs, connected components, and what lies where.

A run is a stretch of one value along x. There are far fewer runs than voxels, so whatever sums over
the voxels of many objects (volumes, boxes, centroids, means of a map) is done over runs.

``connected-components-3d`` labels all classes at once and is used where it is installed (it is
LGPL, so an extra: ``pip install 'densejax[instances]'``); otherwise SciPy labels class by class.
Both number components the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from densejax.data.formats import Box
from densejax.segmentation.label_blocks import Tables

Connectivity = Literal[6, 18, 26]
Library = Literal["auto", "cc3d", "scipy"]

CONNECTIVITIES = (6, 18, 26)
FAR = np.iinfo(np.int64).max  # beyond any voxel: where a box begins that holds none


@dataclass(frozen=True)
class Runs:
    """The runs of a block, in the order of memory; together they cover it.

    Attributes:
      values: [r], the value of each run.
      starts: [r] int64, its first voxel in the block's flat order.
      lengths: [r] int64, voxels.
      shape: (z, y, x) of the block.
    """

    values: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    shape: tuple[int, ...]

    def corners(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The first voxel of each run: z, y and x, [r] int64 each."""
        rows, x = np.divmod(self.starts, self.shape[2])
        z, y = np.divmod(rows, self.shape[1])
        return z, y, x

    def select(self, chosen: np.ndarray) -> "Runs":
        """The runs where ``chosen`` [r] is true."""
        return Runs(
            self.values[chosen], self.starts[chosen], self.lengths[chosen], shape=self.shape
        )

    def sums(self, image: np.ndarray) -> np.ndarray:
        """Sums of an image over each run.

        Args:
          image: [z, y, x] unsigned integers, of the block's shape.

        Returns:
          [r] int64.
        """
        total = np.zeros(len(self.starts), np.int64)
        if len(self.starts):
            # Between the end of a run and the start of the next lies what is not asked for.
            ends = self.starts + self.lengths
            places = np.stack([self.starts, ends], axis=1).reshape(-1)
            flat = image.reshape(-1)
            if places[-1] == flat.size:
                places = places[:-1]
            total[:] = np.add.reduceat(flat, places, dtype=np.int64)[::2]
        return total


def find_runs(block: np.ndarray) -> Runs:
    """Return all runs of a block [z, y, x]; none goes on from one row into the next."""
    block = np.ascontiguousarray(block)
    begins = np.empty(block.shape, bool)
    begins[..., :1] = True
    np.not_equal(block[..., 1:], block[..., :-1], out=begins[..., 1:])
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=block.size)
    return Runs(block.reshape(-1)[starts], starts, lengths, block.shape)


@dataclass(frozen=True)
class Selection:
    """Which labels are searched for components.

    Attributes:
      classes: labels from 0 on, or None for every label above 0.
      not_counted: labels that never count, such as that of voxels which were not predicted.
    """

    classes: tuple[int, ...] | None = None
    not_counted: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.classes is not None and (not self.classes or min(self.classes) < 0):
            raise ValueError(f"classes {self.classes}: expected one or more, from 0 on")

    def of(self, labels: np.ndarray) -> np.ndarray:
        """Labels + 1 where they are searched and 0 elsewhere, as unsigned integers.

        Args:
          labels: [z, y, x] integer or boolean.
        """
        if labels.dtype.itemsize == 1:
            values = np.arange(256).astype(np.uint8).view(labels.dtype)
            values = values.astype(np.int64)
            table = np.where(self._chosen(values), values + 1, 0)
            return _narrowest(table)[labels.view(np.uint8)]
        wide = labels.astype(np.int64)
        return np.where(self._chosen(wide), wide + 1, 0).astype(np.uint64)

    def _chosen(self, values: np.ndarray) -> np.ndarray:
        chosen = values > 0 if self.classes is None else np.isin(values, self.classes)
        return chosen & ~np.isin(values, self.not_counted) if self.not_counted else chosen


def _library_used(library: Library) -> Literal["cc3d", "scipy"]:
    """The library that ``library`` comes to here."""
    if library == "scipy":
        return "scipy"
    try:
        import cc3d  # noqa: F401
    except ImportError as error:
        if library == "auto":
            return "scipy"
        raise ModuleNotFoundError(
            "cc3d is not installed: pip install 'densejax[instances]'"
        ) from error
    return "cc3d"


def label_block(
    codes: np.ndarray, *, connectivity: Connectivity = 26, library: Library = "auto"
) -> tuple[np.ndarray, np.ndarray]:
    """Label the connected components of every code of a block.

    Args:
      codes: [z, y, x] unsigned integers; 0 is no component, and voxels of different codes are never
        connected.
      connectivity: neighbours of a voxel: 6 by faces, 18 by edges too, 26 by corners too.
      library: which one does it; the result is the same.

    Returns:
      Components [z, y, x] uint32, 0 or 1..n in the order of their first voxels (z slowest), and
      the code of each component, [n].

    Raises:
      ValueError: another connectivity.
    """
    if connectivity not in CONNECTIVITIES:
        raise ValueError(f"connectivity {connectivity}: expected one of {CONNECTIVITIES}")
    if not codes.any():
        return np.zeros(codes.shape, np.uint32), np.zeros(0, codes.dtype)
    if _library_used(library) == "cc3d":
        found, count = _by_cc3d(codes, connectivity)
    else:
        found, count = _by_scipy(codes, connectivity)
    runs = find_runs(found)
    first = np.zeros(count + 1, np.int64)
    # Of several values for one place, the last that is written stays: here, the first run.
    first[runs.values[::-1]] = runs.starts[::-1]
    order = np.argsort(first[1:], kind="stable")
    if (order[1:] < order[:-1]).any():
        rank = np.zeros(count + 1, np.uint32)
        rank[1 + order] = np.arange(1, count + 1)
        found = rank[found]
    return found, codes.reshape(-1)[first[1:][order]]


def _by_cc3d(codes: np.ndarray, connectivity: Connectivity) -> tuple[np.ndarray, int]:
    import cc3d

    found, count = cc3d.connected_components(
        codes, connectivity=connectivity, return_N=True, out_dtype=np.uint32
    )
    return np.ascontiguousarray(found), int(count)


def _by_scipy(codes: np.ndarray, connectivity: int) -> tuple[np.ndarray, int]:
    structure = ndimage.generate_binary_structure(3, {6: 1, 18: 2, 26: 3}[connectivity])
    found = np.zeros(codes.shape, np.uint32)
    count = 0
    for code in _values(codes):
        inside = codes == code
        labels, more = ndimage.label(inside, structure)
        np.add(labels, count, out=found, where=inside, casting="unsafe")
        count += more
    return found, count


def _values(codes: np.ndarray) -> Sequence[int]:
    """The codes above 0 that occur."""
    return [code for code in np.unique(find_runs(codes).values).tolist() if code]


def _narrowest(table: np.ndarray) -> np.ndarray:
    return table.astype(np.min_scalar_type(int(table.max())))


def run_extents(runs: Runs, of: np.ndarray, count: int, box: Box) -> Tables:
    """Voxels and bounding box of each of several objects in a block.

    Args:
      runs: of the block.
      of: [r], the object 0..count - 1 of each run.
      count: n, objects; one without a run has an empty box, from ``FAR`` to 0.
      box: of the block in the volume.

    Returns:
      ``voxels`` [n], ``low`` and ``high`` [n, 3] (one beyond the last voxel), int64.
    """
    z, y, x = (local + side.start for local, side in zip(runs.corners(), box, strict=True))
    voxels = np.zeros(count, np.int64)
    np.add.at(voxels, of, runs.lengths)
    low, high = np.full((count, 3), FAR), np.zeros((count, 3), np.int64)
    for axis, (start, stop) in enumerate(((z, z + 1), (y, y + 1), (x, x + runs.lengths))):
        np.minimum.at(low[:, axis], of, start)
        np.maximum.at(high[:, axis], of, stop)
    return {"voxels": voxels, "low": low, "high": high}


def first_voxels(
    runs: Runs, of: np.ndarray, count: int, box: Box, shape: Sequence[int]
) -> np.ndarray:
    """The first voxel of each of several objects of a block, in the flat order of the volume.

    Args:
      runs: of the block.
      of: [r], the object 0..count - 1 of each run.
      count: n, objects; one without a run has ``FAR``.
      box: of the block in the volume.
      shape: (z, y, x) of the volume.

    Returns:
      [n] int64.
    """
    z, y, x = (local + side.start for local, side in zip(runs.corners(), box, strict=True))
    first = np.full(count, FAR)
    np.minimum.at(first, of, (z * shape[1] + y) * shape[2] + x)
    return first


def merge_parts(root: np.ndarray, parts: Tables) -> Tables:
    """Put parts together.

    Args:
      root: [m], the whole 0..n - 1 that each part belongs to.
      parts: ``classes``, ``voxels``, ``first``, [m], ``low`` and ``high``, [m, 3], of the parts.

    Returns:
      The same of the wholes, [n] and [n, 3].
    """
    count = int(root.max(initial=-1)) + 1
    whole: Tables = {
        "classes": np.zeros(count, np.int64),
        "voxels": np.zeros(count, np.int64),
        "first": np.full(count, FAR),
        "low": np.full((count, 3), FAR),
        "high": np.zeros((count, 3), np.int64),
    }
    whole["classes"][root] = parts["classes"]
    np.add.at(whole["voxels"], root, parts["voxels"])
    np.minimum.at(whole["first"], root, parts["first"])
    for axis in range(3):
        np.minimum.at(whole["low"][:, axis], root, parts["low"][:, axis])
        np.maximum.at(whole["high"][:, axis], root, parts["high"][:, axis])
    return whole


def touches_border(low: np.ndarray, high: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Which boxes reach the border of the volume, along an axis with several voxels.

    Args:
      low: [n, 3], first voxels.
      high: [n, 3], one beyond the last.
      shape: (z, y, x) of the volume.

    Returns:
      [n] bool.
    """
    several = np.array(shape) > 1
    return (((low == 0) | (high == np.array(shape))) & several).any(1)
