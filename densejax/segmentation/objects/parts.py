"""Parts of objects as tables: how large they are and where they lie, by block and put together."""

from collections.abc import Sequence

import numpy as np

from densejax.data.formats import Box
from densejax.segmentation.label_blocks import Tables
from densejax.segmentation.objects.runs import Runs

FAR = np.iinfo(np.int64).max  # beyond any voxel: where a box begins that holds none


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
