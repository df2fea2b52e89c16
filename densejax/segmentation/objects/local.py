"""Connected components of one block that fits in memory, numbered the same by every library.

``connected-components-3d`` labels all classes at once and is used where it is installed (it is
LGPL, so an extra: ``pip install 'densejax[instances]'``); otherwise SciPy labels class by class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from densejax.segmentation.objects.runs import find_runs

Connectivity = Literal[6, 18, 26]
Library = Literal["auto", "cc3d", "scipy"]

CONNECTIVITIES = (6, 18, 26)


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


def library_used(library: Library) -> Literal["cc3d", "scipy"]:
    """The library that ``library`` comes to here.

    Raises:
      ImportError: ``cc3d`` is asked for and not installed.
    """
    if library == "scipy":
        return "scipy"
    try:
        import cc3d  # noqa: F401
    except ImportError as error:
        if library == "auto":
            return "scipy"
        raise ImportError("cc3d is not installed: pip install 'densejax[instances]'") from error
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
    if library_used(library) == "cc3d":
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
