"""Which blocks of a prediction an annotator should look at first: ranked by what is in doubt there.

Blocks are those of a regular grid over the prediction, the last of each axis flush to its end. A
block's score is the mean over its voxels of the ensemble's disagreement (or entropy), summed as
whole numbers, so that equal blocks tie exactly and the first of them comes first. The prediction is
read once, a few blocks at a time, so memory does not grow with it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from densejax.data.windows import evaluation_corners
from densejax.ensembles.predict import Sizes

NOT_PREDICTED = 255
# About the chunk of a stored prediction, read whole even where blocks are a single section thick.
_READ = (64, 512, 512)


@dataclass(frozen=True)
class ScoredBlocks:
    """The blocks of a prediction.

    Attributes:
      corners: [n, 3] int32, first voxel (z, y, x) of each block in the prediction, z slowest.
      scores: [n] float64 in 0..1, mean over the block; nan for a block that holds a voxel that was
        not predicted.
      shape: (z, y, x) of every block.
    """

    corners: np.ndarray
    scores: np.ndarray
    shape: Sizes


def score_blocks(
    doubt: Any,
    labels: Any,
    *,
    shape: Sizes,
    not_predicted: int = NOT_PREDICTED,
    progress: Callable[[Iterator[Any], int], Iterator[Any]] = lambda items, total: items,
) -> ScoredBlocks:
    """Mean doubt of every block, streamed.

    Args:
      doubt: [z, y, x] uint8, 255 is one: disagreement or entropy; an array, or what
        ``volumes.open_volume`` gives.
      labels: [z, y, x], the predicted labels, to tell what was not predicted.
      shape: (z, y, x) of a block in voxels.
      not_predicted: label of a voxel that was not predicted.
      progress: wraps the iterator of parts that are read, given their number.

    Returns:
      The blocks with their scores.

    Raises:
      ValueError: the two volumes have not one shape, ``doubt`` is not uint8, or a block is larger
        than the prediction.
    """
    if tuple(doubt.shape) != tuple(labels.shape) or np.dtype(doubt.dtype) != np.uint8:
        raise ValueError(
            f"doubt is {np.dtype(doubt.dtype)} of shape {tuple(doubt.shape)}; expected uint8 of "
            f"the labels' shape {tuple(labels.shape)}"
        )
    corners = evaluation_corners(doubt.shape, shape, (0, 0, 0))
    axes = [np.unique(corners[:, axis]) for axis in range(3)]
    means = np.full([len(axis) for axis in axes], np.nan)
    runs = [_runs(axis, size, most) for axis, size, most in zip(axes, shape, _READ, strict=True)]
    parts = list(product(*runs))
    for part in progress(iter(parts), len(parts)):
        means[part] = _means_of_part(doubt, labels, axes, part, shape, not_predicted)
    return ScoredBlocks(corners, means.ravel(), shape)


def _runs(starts: np.ndarray, size: int, most: int) -> list[slice]:
    """Neighbouring blocks of one axis that are read together."""
    together = max(1, most // size)
    return [slice(i, min(i + together, len(starts))) for i in range(0, len(starts), together)]


def _means_of_part(
    doubt: Any,
    labels: Any,
    axes: Sequence[np.ndarray],
    part: tuple[slice, ...],
    shape: Sizes,
    not_predicted: int,
) -> np.ndarray:
    starts = [axis[run] for axis, run in zip(axes, part, strict=True)]
    box = tuple(
        slice(int(axis[0]), int(axis[-1]) + size) for axis, size in zip(starts, shape, strict=True)
    )
    values, missing = np.asarray(doubt[box]), np.asarray(labels[box]) == not_predicted
    means = np.empty([len(axis) for axis in starts])
    for index in np.ndindex(*means.shape):
        block = tuple(
            slice(int(axis[i] - axis[0]), int(axis[i] - axis[0]) + size)
            for axis, i, size in zip(starts, index, shape, strict=True)
        )
        total = int(values[block].sum(dtype=np.int64))
        means[index] = np.nan if missing[block].any() else total / (255 * np.prod(shape))
    return means


def choose_blocks(
    blocks: ScoredBlocks,
    *,
    count: int,
    voxel_nm: Sequence[float],
    taken: Sequence[tuple[Sequence[int], Sequence[int]]] = (),
    least_distance_nm: float = 0.0,
) -> np.ndarray:
    """The blocks of highest score that overlap neither each other nor what is taken.

    Args:
      blocks: as `score_blocks` gives; those without a score are passed over.
      count: how many to choose at most.
      voxel_nm: (z, y, x), for distances.
      taken: corner and shape, in voxels of the prediction, of blocks that somebody has already.
      least_distance_nm: between the centres of two chosen blocks, and of a chosen and a taken one.

    Returns:
      [at most count] int, indexes into ``blocks``, best first; ties go to the lowest index.
    """
    scores = np.where(np.isnan(blocks.scores), -np.inf, blocks.scores)
    own, voxel = np.asarray(blocks.shape, float), np.asarray(voxel_nm, float)
    # Corners and shapes of what is taken, then of what is chosen.
    boxes = np.empty((len(taken) + max(0, count), 2, 3))
    boxes[: len(taken)] = np.reshape([[*box] for box in taken], (-1, 2, 3))
    chosen: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        if len(chosen) >= count or scores[index] == -np.inf:
            break
        corner = blocks.corners[index].astype(float)
        held = len(taken) + len(chosen)
        low, size = boxes[:held, 0], boxes[:held, 1]
        overlaps = np.all((corner < low + size) & (low < corner + own), axis=1)
        gaps = (corner + own / 2 - low - size / 2) * voxel
        near = np.linalg.norm(gaps, axis=1) < least_distance_nm
        if not (overlaps | near).any():
            boxes[held] = corner, own
            chosen.append(int(index))
    return np.array(chosen, int)
