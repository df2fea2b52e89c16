"""Coarse to fine: nested subsets of a grid."""

import numpy as np


def axis_levels(points: int) -> list[np.ndarray]:
    """Nested places on one axis: the ends and the middle, then the middles of what lies between.

    Args:
      points: of the axis, at least 1.

    Returns:
      Sorted int64 places, each array with those of the one before, the last with all.
    """
    places = np.unique([0, (points - 1) // 2, points - 1])
    found = [places]
    while len(places) < points:
        middles = (places[:-1] + places[1:]) // 2
        places = np.unique(np.concatenate([places, middles]))
        found.append(places)
    return found


def levels(rows: int, columns: int) -> list[np.ndarray]:
    """What each level of a grid adds to the one before.

    Args:
      rows: points along x.
      columns: points along y; the axis with fewer levels is complete in the last ones.

    Returns:
      [n, 2] int64 places (row, column) a level, row by row; together every place once.
    """
    across, down = axis_levels(rows), axis_levels(columns)
    count = max(len(across), len(down))
    known = np.zeros((rows, columns), bool)
    parts = []
    for level in range(count):
        wanted = np.zeros((rows, columns), bool)
        wanted[np.ix_(across[min(level, len(across) - 1)], down[min(level, len(down) - 1)])] = True
        parts.append(np.argwhere(wanted & ~known))
        known |= wanted
    return parts
