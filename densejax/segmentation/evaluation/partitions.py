"""Two labellings compared as partitions: which objects share which voxels, whatever their numbers.

Everything comes from one sparse contingency table, ``PairCounts``: how many voxels object i of the
truth shares with object j of the prediction. Tables of blocks are merged as whole numbers and
divided once, so that a volume gives the same score however it is cut. Only pairs that meet are
kept, and ids may be any unsigned 64-bit numbers: millions of objects are tens of megabytes.

Id 0 is the background, "no object". A negative id is not labelled, as is the largest unsigned
64-bit number (the CREMI challenge writes its -1 so); such voxels never count.

Sections that a boundary class, such as membranes, divides are compared so as well. Pixel error
hardly tells apart what a broken membrane separates: two cells merge through one gap of a voxel.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy import ndimage

BACKGROUND = 0
CREMI_UNLABELLED = np.uint64(2**64 - 1)
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
BOUNDARY_WORDS = ("membrane", "boundar")  # in the name of a class

# Runs of a block are grouped in pieces, so that noise (a run a voxel) needs little memory too.
_PIECE = 2**22


@dataclass(frozen=True)
class PairCounts:
    """A sparse contingency table, sorted by truth, then prediction; each pair occurs once.

    Attributes:
      truth: [p] uint64, ids of the truth.
      predicted: [p] uint64, ids of the prediction.
      voxels: [p] int64, at least 1.
    """

    truth: np.ndarray
    predicted: np.ndarray
    voxels: np.ndarray

    @property
    def total(self) -> int:
        """Voxels that were counted."""
        return int(self.voxels.sum())


class RandError(NamedTuple):
    """Adapted Rand error in 0..1 (0 is the same partition) and what it is made of."""

    error: float
    precision: float
    recall: float


class Variation(NamedTuple):
    """Variation of information in bits: what splits cost and what mergers cost."""

    split: float
    merge: float


class Matches(NamedTuple):
    """Objects that found a partner above a threshold on the intersection over union."""

    threshold: float
    matched: int
    missed: int
    invented: int
    precision: float
    recall: float
    average_precision: float
    mean_iou: float
    panoptic_quality: float


def count_pairs(truth: np.ndarray, predicted: np.ndarray) -> PairCounts:
    """Count the pairs of ids in a block.

    Neighbours along the last axis mostly have the same pair, so runs are counted and not voxels.

    Args:
      truth: ``[...]`` integer ids; 0 background, negative or 2**64 - 1 not labelled.
      predicted: ``[...]`` integer ids, the same shape.

    Returns:
      The block's table.

    Raises:
      ValueError: the shapes differ or a dtype is not an integer.
    """
    if truth.shape != predicted.shape:
        raise ValueError(
            f"truth has shape {truth.shape} and predicted has shape {predicted.shape}: "
            "expected the same shape"
        )
    for name, ids in (("truth", truth), ("predicted", predicted)):
        if ids.dtype.kind not in "iu":
            raise ValueError(f"{name} has dtype {ids.dtype}: expected integer ids")
    first, second = np.ravel(truth), np.ravel(predicted)
    pieces = [
        _count_runs(first[start : start + _PIECE], second[start : start + _PIECE])
        for start in range(0, first.size, _PIECE)
    ]
    return _merge_pairs(pieces)


def _merge_pairs(tables: Sequence[PairCounts]) -> PairCounts:
    """Add tables; none at all is the empty table."""
    if len(tables) == 1:
        return tables[0]
    if not tables:
        return PairCounts(np.zeros(0, np.uint64), np.zeros(0, np.uint64), np.zeros(0, np.int64))
    return _group(
        np.concatenate([table.truth for table in tables]),
        np.concatenate([table.predicted for table in tables]),
        np.concatenate([table.voxels for table in tables]),
    )


class PairMerger:
    """Adds the tables of many blocks; small ones wait until together they are worth a sort."""

    def __init__(self) -> None:
        self._merged = _merge_pairs([])
        self._waiting: list[PairCounts] = []

    def add(self, table: PairCounts) -> None:
        """One more block."""
        self._waiting.append(table)
        if sum(len(waiting.voxels) for waiting in self._waiting) > len(self._merged.voxels):
            self.merged()

    def merged(self) -> PairCounts:
        """The table of all blocks so far."""
        self._merged = _merge_pairs([self._merged, *self._waiting])
        self._waiting = []
        return self._merged


def foreground(table: PairCounts) -> PairCounts:
    """Drop the voxels that are background in the truth, whatever was predicted there."""
    keep = table.truth != BACKGROUND
    return PairCounts(table.truth[keep], table.predicted[keep], table.voxels[keep])


def object_sizes(table: PairCounts, side: Literal["truth", "predicted"]) -> dict[str, np.ndarray]:
    """Ids of one side, ascending, and the voxels of each, background included.

    Returns:
      ``ids`` [n] uint64 and ``voxels`` [n] int64.
    """
    ids, places = np.unique(getattr(table, side), return_inverse=True)
    return {"ids": ids, "voxels": _sums(places, table.voxels, len(ids))}


def adapted_rand(
    table: PairCounts, *, background: Literal["segment", "singletons"] = "segment"
) -> RandError:
    """Adapted Rand error: one minus the F-score of "these two voxels are of one object".

    Precision is the part of the prediction's pairs of voxels that the truth has too, recall the
    part of the truth's pairs that was predicted, over unordered pairs of different voxels
    (Arganda-Carreras et al. 2015, doi 10.3389/fnana.2015.00142). As in the SNEMI3D and CREMI
    challenges and ``skimage.metrics.adapted_rand_error``, only the truth's foreground counts.
    (scikit-image 0.26 returns what we call recall as precision, and the other way round.)

    Voxels of the truth's objects in which nothing was predicted are one object more
    (``segment``, as in scikit-image) or each an object of its own (``singletons``, as the
    challenges mean it; their own code also counts each voxel's pair with itself, which differs by
    less than one part in the mean size of an object).

    Args:
      table: of all blocks.
      background: what id 0 of the prediction is.

    Returns:
      Error, precision and recall; nan where the truth has no object. Where neither partition has a
      pair they agree, and the error is 0.
    """
    table = foreground(table)
    if not table.voxels.size:
        return RandError(math.nan, math.nan, math.nan)
    seen = table.predicted != BACKGROUND if background == "singletons" else slice(None)
    both = _pairs(table.voxels[seen])
    truth = _pairs(object_sizes(table, "truth")["voxels"])
    predicted_sizes = object_sizes(table, "predicted")
    found = predicted_sizes["ids"] != BACKGROUND if background == "singletons" else slice(None)
    predicted = _pairs(predicted_sizes["voxels"][found])
    if truth + predicted == 0:
        return RandError(0.0, 1.0, 1.0)
    return RandError(
        1 - 2 * both / (truth + predicted),
        both / predicted if predicted else math.nan,
        both / truth if truth else math.nan,
    )


def variation_of_information(table: PairCounts, *, only_foreground: bool = True) -> Variation:
    """Variation of information in bits; times ln 2 it is in nats (Meila 2007).

    ``split`` is H(prediction | truth), what it takes to say into which piece a voxel of a known
    true object went; ``merge`` is H(truth | prediction). Their sum is the variation. Equals
    ``skimage.metrics.variation_of_information(truth, prediction)``, with ``ignore_labels=(0,)``
    where only the foreground counts, as in CREMI. Id 0 of the prediction is an object like another.

    Args:
      table: of all blocks.
      only_foreground: drop the voxels that are background in the truth.

    Returns:
      Split and merge, 0 or more; nan where nothing was counted.
    """
    table = foreground(table) if only_foreground else table
    if not table.voxels.size:
        return Variation(math.nan, math.nan)
    joint = _weighted_logs(table.voxels)
    truth = _weighted_logs(object_sizes(table, "truth")["voxels"])
    predicted = _weighted_logs(object_sizes(table, "predicted")["voxels"])
    # Rounding may leave a partition that is exactly the same a little below zero.
    split, merge = ((side - joint) / table.total for side in (truth, predicted))
    return Variation(max(0.0, split), max(0.0, merge))


def match_objects(
    table: PairCounts, *, thresholds: Sequence[float] = THRESHOLDS
) -> tuple[Matches, ...]:
    """Match objects whose intersection over union is above a threshold of a half or more.

    Above a half no object has two partners, so nothing has to be assigned (Kirillov et al. 2019,
    arXiv:1801.00868). ``average_precision`` is matched / (matched + missed + invented), as StarDist
    and Cellpose call it; ``panoptic_quality`` is the sum of the matched overlaps divided by matched
    plus half of the others. Unlike the two scores above, objects in the truth's background count.

    Args:
      table: of all blocks, background included.
      thresholds: in 0.5..1.

    Returns:
      One for each threshold; ratios are nan where nothing could be divided by.

    Raises:
      ValueError: a threshold is below 0.5 or not below 1.
    """
    for threshold in thresholds:
        if not 0.5 <= threshold < 1:
            raise ValueError(f"threshold {threshold}: expected 0.5 or more and below 1")
    sizes = [object_sizes(table, side) for side in ("truth", "predicted")]  # type: ignore[arg-type]
    objects = [int(np.count_nonzero(side["ids"] != BACKGROUND)) for side in sizes]
    pairs = (table.truth != BACKGROUND) & (table.predicted != BACKGROUND)
    overlap = table.voxels[pairs]
    either = -overlap
    for side, ids in zip(sizes, (table.truth, table.predicted), strict=True):
        either = either + side["voxels"][np.searchsorted(side["ids"], ids[pairs])]
    found = []
    for threshold in thresholds:
        overlaps = (overlap / either)[overlap / either > threshold]
        found.append(_matches(threshold, overlaps, *objects))
    return tuple(found)


def _matches(threshold: float, overlaps: np.ndarray, truth: int, predicted: int) -> Matches:
    matched, total = len(overlaps), math.fsum(overlaps)
    missed, invented = truth - matched, predicted - matched
    return Matches(
        threshold,
        matched,
        missed,
        invented,
        precision=_ratio(matched, predicted),
        recall=_ratio(matched, truth),
        average_precision=_ratio(matched, matched + missed + invented),
        mean_iou=_ratio(total, matched),
        panoptic_quality=_ratio(total, matched + (missed + invented) / 2),
    )


def _count_runs(truth: np.ndarray, predicted: np.ndarray) -> PairCounts:
    """Count [n] ids of one piece by the runs in which neither changes."""
    changes = (truth[1:] != truth[:-1]) | (predicted[1:] != predicted[:-1])
    starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
    lengths = np.diff(starts, append=truth.size)
    truth, predicted = truth[starts], predicted[starts]
    counted = _labelled(truth) & _labelled(predicted)
    return _group(
        truth[counted].astype(np.uint64), predicted[counted].astype(np.uint64), lengths[counted]
    )


def _labelled(ids: np.ndarray) -> np.ndarray:
    if ids.dtype.kind == "i":
        return ids >= 0
    if ids.dtype.itemsize == 8:
        return ids != CREMI_UNLABELLED
    return np.ones(ids.shape, bool)


def _group(truth: np.ndarray, predicted: np.ndarray, voxels: np.ndarray) -> PairCounts:
    """Sort [n] pairs and add up those that are the same."""
    if not truth.size:
        return PairCounts(truth, predicted, voxels.astype(np.int64))
    if max(truth.max(), predicted.max()) < 2**32:
        # One sort of one number, several times faster than a sort by two.
        order = np.argsort((truth << np.uint64(32)) | predicted, kind="stable")
    else:
        order = np.lexsort((predicted, truth))
    truth, predicted, voxels = truth[order], predicted[order], voxels[order]
    new = (truth[1:] != truth[:-1]) | (predicted[1:] != predicted[:-1])
    starts = np.concatenate([[0], np.flatnonzero(new) + 1])
    return PairCounts(
        truth[starts], predicted[starts], np.add.reduceat(voxels, starts, dtype=np.int64)
    )


def _sums(places: np.ndarray, voxels: np.ndarray, count: int) -> np.ndarray:
    """Add ``voxels`` into ``count`` places, in whole numbers."""
    sums = np.zeros(count, np.int64)
    np.add.at(sums, places, voxels)
    return sums


def _by_size(sizes: np.ndarray) -> tuple[list[int], list[int]]:
    """The different sizes and how many have each: few, even of millions of objects."""
    values, counts = np.unique(sizes, return_counts=True)
    return values.tolist(), counts.tolist()


def _pairs(sizes: np.ndarray) -> int:
    """Unordered pairs of voxels within objects of these sizes; exact beyond 64 bits."""
    return sum(count * size * (size - 1) // 2 for size, count in zip(*_by_size(sizes), strict=True))


def _weighted_logs(sizes: np.ndarray) -> float:
    """Sum of n log2 n."""
    pairs = zip(*_by_size(sizes), strict=True)
    return math.fsum(count * size * math.log2(size) for size, count in pairs)


def _ratio(above: float, below: float) -> float:
    return above / below if below else math.nan


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
        index
        for index, name in enumerate(names)
        if any(word in name.lower() for word in BOUNDARY_WORDS)
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
    table = _merge_pairs(tables)
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
