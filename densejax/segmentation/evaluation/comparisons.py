"""What is compared beyond one prediction and one truth: several annotators, thresholds.

People who label the same cell agree as little as their agreement says (figure 4.9 of the thesis); a
network that agrees with each of them about as well labels as one of them would.

Cell or not, by a threshold on the probability, is section 4.4.4: all classes but the background are
one, the cell, because the network compared with (CDeep3M) finds cells only. The published table
gives the MIoU of the two classes: 0.946 against CDeep3M's 0.935.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from densejax import metrics
from densejax.data import ome_zarr
from densejax.data.formats import Box
from densejax.segmentation.evaluation.streaming import NONE, LabelCounts, boxes_of, read_classes
from densejax.segmentation.label_blocks import Tables, run_blocks
from densejax.segmentation.label_volumes import Labelling, Region, open_labelling

LEVELS = 256  # a probability is a byte


@dataclass(frozen=True)
class Agreement:
    """How n labellings agree, two by two; each pair over the voxels that both have labelled.

    Attributes:
      names: of the labellings.
      scores: [n, n] float64 by name of the score: ``miou_all``, ``miou_organelles`` (where there
        are organelles), ``accuracy`` and ``adjusted_rand``; symmetric, 1 on the diagonal.
      class_iou: [n, n, c] float64, nan for a class that neither has.
      fractions: [n, c] float64, the part of the cell that each class takes.
      confusions: [n, n, c, c] int64, rows the first.
    """

    names: tuple[str, ...]
    scores: dict[str, np.ndarray]
    class_iou: np.ndarray
    fractions: np.ndarray
    confusions: np.ndarray

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Every two labellings, the earlier one first."""
        return list(itertools.combinations(range(len(self.names)), 2))


def agreement(counts: LabelCounts, *, organelles: Sequence[int] = ()) -> Agreement:
    """Derive every pair's scores from the counts.

    Args:
      counts: of two or more labellings.
      organelles: classes of MIoU(org); empty leaves that score out.
    """
    tables = counts.tables[..., :-1, :-1]
    scores = {
        "miou_all": metrics.mean_iou(tables),
        "accuracy": metrics.accuracy(tables),
        "adjusted_rand": metrics.adjusted_rand(tables),
    }
    if organelles:
        scores["miou_organelles"] = metrics.mean_iou(tables, classes=organelles)
    return Agreement(
        counts.names,
        {name: np.asarray(values, float) for name, values in scores.items()},
        np.asarray(metrics.iou(tables), float),
        np.array([counts.fractions(i) for i in range(len(counts.names))]),
        tables,
    )


def _parse_pairwise(entries: Sequence[str]) -> list[tuple[str, str]]:
    """Names and paths from ``name:path`` entries, in their order; each name once."""
    found: list[tuple[str, str]] = []
    for entry in entries:
        name, colon, path = entry.partition(":")
        if not colon or not name.strip() or not path.strip() or path.startswith("//"):
            raise ValueError(f"--pairwise: {entry!r}; expected name:path")
        if name in {"labels", "prediction", *(n for n, _ in found)}:
            raise ValueError(f"--pairwise: the name {name!r} is taken; expected another")
        found.append((name.strip(), path.strip()))
    return found


def open_annotators(
    entries: Sequence[str],
    *,
    known: Sequence[Labelling],
    voxel_nm: Sequence[float] | None = None,
    otherwise_nm: Sequence[float] | None = None,
    unlabelled: int | None = None,
    values: Sequence[int] = (),
) -> list[Labelling]:
    """Open the labellings of ``--pairwise`` that are not those already known.

    A known one that is named again keeps its place and gets the new name.

    Args:
      entries: ``name:path``; a path as ``open_labelling`` takes it.
      known: the truth and the prediction.
      voxel_nm: voxel size in nm, (z, y, x); overrules what a file states.
      otherwise_nm: voxel size in nm, (z, y, x), where a file states none.
      unlabelled: a value that does not count, in files that are no predictions.
      values: the value of each class in such files; empty where it is the class's number.

    Returns:
      The known ones, perhaps renamed, and the others behind them.

    Raises:
      FileNotFoundError: a path is not there.
      ValueError: as ``parse_pairwise`` and ``open_labelling``.
    """
    found = list(known)
    places = {_place(labelling.path): i for i, labelling in enumerate(known)}
    for name, path in _parse_pairwise(entries):
        voxels: dict[str, Any] = {"voxel_nm": voxel_nm, "otherwise_nm": otherwise_nm}
        labelling = open_labelling(path, name=name, **voxels)
        if labelling.prediction is None and labelling.unlabelled is None:
            labelling = open_labelling(
                path, name=name, **voxels, unlabelled=unlabelled, values=values
            )
        place = places.get(_place(labelling.path))
        if place is None:
            found.append(labelling)
        else:
            found[place] = replace(found[place], name=name)
    return found


def _place(path: str) -> str:
    return str(Path(path).resolve())


@dataclass(frozen=True)
class ThresholdSweep:
    """How often a voxel outside or inside the true cell has which probability.

    Attributes:
      counts: [2, 256] int64, rows outside and inside the true cell, columns 255 times the
        probability of the cell.
    """

    counts: np.ndarray

    @property
    def thresholds(self) -> np.ndarray:
        """[256] float64 in 0..1; a voxel is cell where its probability is at least this."""
        return np.arange(LEVELS) / (LEVELS - 1)

    @property
    def tables(self) -> np.ndarray:
        """[256, 2, 2] int64, confusion counts at each threshold."""
        cell = self.counts[:, ::-1].cumsum(1)[:, ::-1]
        outside = self.counts.sum(1, keepdims=True) - cell
        return np.stack([outside, cell], -1).transpose(1, 0, 2)

    @property
    def best(self) -> int:
        """Index of the highest MIoU of the two classes, the lowest threshold of equals."""
        return int(np.nanargmax(metrics.mean_iou(self.tables)))


def cell_or_not(confusion: np.ndarray, *, background: int) -> np.ndarray:
    """Merge all classes but the background.

    Args:
      confusion: [c, c] int.
      background: its class.

    Returns:
      [2, 2] int64: background, cell.
    """
    merged = np.zeros((2, 2), np.int64)
    kinds = np.where(np.arange(len(confusion)) == background, 0, 1)
    np.add.at(merged, (kinds[:, None], kinds[None, :]), confusion)
    return merged


def sweep_thresholds(
    prediction: Labelling,
    truth: Labelling,
    region: Region,
    *,
    class_names: Sequence[str],
    background: int = 0,
    folder: Path | None = None,
    threads: int = 0,
    first_blocks: int = 0,
) -> ThresholdSweep:
    """Count the probabilities of a prediction's folder against the truth, in one pass.

    The probability of the cell is one minus the background's, so one channel is read.

    Args:
      prediction: of a folder with ``probabilities.zarr``.
      truth: laid over it.
      region: the box that they share.
      class_names: of the c classes.
      background: the class outside the cell.
      folder: where counted blocks are kept.
      threads: that read and count; 0 is one a core.
      first_blocks: count only so many blocks; 0 is all.

    Returns:
      The counts, over voxels that are labelled and predicted.

    Raises:
      FileNotFoundError: there are no probabilities.
      ValueError: their shape or dtype is not that of the classes and labels.
    """
    read = open_probabilities(prediction, classes=len(class_names))
    classes = len(class_names)
    boxes = boxes_of([truth, prediction], region)[: first_blocks or None]

    def work(box: Box) -> Tables:
        true = read_classes(truth, region, box, classes)
        labelled = read_classes(prediction, region, box, classes)
        outside = read[(background, *region.slices(box, prediction))].read().result()
        counted = (true != NONE) & (labelled != NONE)
        cell = true != background
        sides = [outside[counted & ~cell], outside[counted & cell]]
        # One minus the background's probability: the bytes in the other order.
        return {"counts": np.array([np.bincount(s, minlength=LEVELS)[::-1] for s in sides])}

    results = run_blocks(boxes, work, what="sweep thresholds", folder=folder, threads=threads)
    return ThresholdSweep(metrics.merge_counts(tables["counts"] for tables in results))


def open_probabilities(prediction: Labelling, *, classes: int) -> ts.TensorStore:
    """The probabilities of a prediction's folder, a tensorstore [c, z, y, x] of uint8.

    Raises:
      FileNotFoundError: there are none.
      ValueError: their shape or dtype is not that of the classes and labels.
    """
    path = None if prediction.folder is None else prediction.folder / "probabilities.zarr"
    if path is None or not path.is_dir():
        raise FileNotFoundError(
            f"{path or prediction.path}: no probabilities; --threshold_sweep needs the folder of a "
            "prediction that was asked to keep them"
        )
    store = ome_zarr.open_level(path)
    expected = (classes, *prediction.array.shape)
    if tuple(store.shape) != expected or store.dtype.numpy_dtype != np.uint8:
        raise ValueError(
            f"{path}: {tuple(store.shape)} {store.dtype.name}; expected {expected} uint8 as the "
            "classes and labels"
        )
    return store
