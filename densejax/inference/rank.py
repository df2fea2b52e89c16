"""Rank the members of a sweep by their evaluation score, and choose how many are combined."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from densejax import metrics

Choice = Literal["best", "largest"]
"""The size of an ensemble: best on evaluation, or the largest that is not clearly worse."""

RESAMPLES = 2000


def rank_members(scores: Sequence[float]) -> np.ndarray:
    """Positions of members from the best score to the worst, [k] int; ties to the lowest index.

    Members without a finite score come last.
    """
    values = np.asarray(scores, np.float64)
    return np.argsort(np.where(np.isfinite(values), -values, np.inf), kind="stable")


def choose_size(tables: np.ndarray, choice: Choice, *, seed: int = 0) -> int:
    """Choose how many of the ranked members are combined, by their counts on the evaluation volume.

    The best score picks a small ensemble by chance where the differences are of a few voxels of a
    rare class. ``largest`` takes the largest ensemble unless a smaller one is clearly better: of
    resampled blocks, the paired difference of MIoU to the best is above 0 in 95 % of the draws
    (one-sided percentile bootstrap, Efron 1979).

    Args:
      tables: ``[k, n, c, c]`` int, confusion counts of the first 1, 2, ... k members together on
        each of n blocks of the volume. Blocks are resampled as a whole: voxels of one object are
        not independent.
      choice: ``best`` or ``largest``.
      seed: of the resampling; the same seed chooses the same.

    Returns:
      The number of members, 1 to k; ties of ``best`` go to the fewest.

    Raises:
      ValueError: the tables are not ``[k, n, c, c]`` with at least one of each.
    """
    if tables.ndim != 4 or tables.shape[2] != tables.shape[3] or not tables.size:
        raise ValueError(f"tables have shape {tables.shape}: expected (k, n, c, c), none of them 0")
    sizes, blocks, classes, _ = tables.shape
    best = int(np.argmax(metrics.mean_iou(tables.sum(1))))
    if choice == "best":
        return best + 1
    drawn = np.random.default_rng(seed).multinomial(blocks, np.full(blocks, 1 / blocks), RESAMPLES)
    flat = tables.astype(np.float64).transpose(1, 0, 2, 3).reshape(blocks, -1)
    scores = np.asarray(
        metrics.mean_iou((drawn @ flat).reshape(RESAMPLES, sizes, classes, classes))
    )
    # A draw without a labelled voxel has no score, and so says nothing.
    lead = np.nanquantile(scores[:, best : best + 1] - scores, 0.05, axis=0)
    return int(np.flatnonzero(~(lead > 0))[-1]) + 1
