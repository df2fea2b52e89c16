"""How well sections are divided by a boundary class, such as membranes, by Rand and information.

Pixel error hardly tells apart what a broken membrane separates: two cells merge through one gap of
a voxel. So the regions that the boundary leaves are compared as partitions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from densejax.segmentation.evaluation.partitions import (
    adapted_rand,
    count_pairs,
    merge_pairs,
    variation_of_information,
)

WORDS = ("membrane", "boundar")


class BoundaryScores(NamedTuple):
    """Scores of the regions between boundaries.

    Attributes:
      rand: F-score of pairs of voxels, restricted to the truth's foreground, 0 to 1.
      split: bits of variation of information by objects that are divided.
      merge: bits by objects that are merged.
      pixel_error: share of the labelled voxels on the wrong side.
    """

    rand: float
    split: float
    merge: float
    pixel_error: float


def boundary_class(names: Sequence[str]) -> int | None:
    """The one class whose name speaks of membranes or boundaries, if there is one."""
    found = [
        index for index, name in enumerate(names) if any(word in name.lower() for word in WORDS)
    ]
    return found[0] if len(found) == 1 else None


def boundary_scores(truth: np.ndarray, predicted: np.ndarray, boundary: int) -> BoundaryScores:
    """Compare the regions that a boundary class leaves in each section.

    A region is a connected component (by edges) of voxels of other classes. Objects of different
    sections are different. The foreground-restricted Rand score of ISBI 2012 (Arganda-Carreras et
    al. 2015, doi 10.3389/fnana.2015.00142), at the labels as they are, without a search for the
    best threshold; boundary voxels of the prediction are one more region of their section.

    Args:
      truth: int [z, y, x], -1 where not labelled: neither boundary nor region.
      predicted: int [z, y, x], classes.
      boundary: the class.

    Returns:
      The scores over all sections; nan where the truth has no region.

    Raises:
      ValueError: the shapes differ.
    """
    if truth.shape != predicted.shape:
        raise ValueError(
            f"truth has shape {truth.shape} and predicted has shape {predicted.shape}: "
            "expected the same shape"
        )
    tables, used = [], 0
    for true_plane, predicted_plane in zip(truth, predicted, strict=True):
        regions, count = ndimage.label((true_plane != boundary) & (true_plane >= 0))
        found, pieces = ndimage.label(predicted_plane != boundary)
        # Ids go on from section to section, and the prediction's boundary is an id of its own.
        regions = np.where(regions > 0, regions.astype(np.int64) + used, 0)
        regions[true_plane < 0] = -1
        found = found.astype(np.int64) + used
        used += max(int(count), int(pieces)) + 1
        tables.append(count_pairs(regions, found + 1))
    table = merge_pairs(tables)
    rand = adapted_rand(table)
    variation = variation_of_information(table)
    known = truth >= 0
    wrong = ((truth == boundary) != (predicted == boundary)) & known
    return BoundaryScores(
        rand=1 - rand.error,
        split=variation.split,
        merge=variation.merge,
        pixel_error=float(wrong.sum() / max(known.sum(), 1)),
    )
