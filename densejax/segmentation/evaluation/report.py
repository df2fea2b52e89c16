"""All that an evaluation counts, and every number of it with what it means in words, for JSON."""

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from densejax import metrics
from densejax.data.formats_chunked import is_remote
from densejax.data.geometry import IN_FILE
from densejax.segmentation.evaluation import partitions
from densejax.segmentation.evaluation.comparisons import (
    Agreement,
    ThresholdSweep,
    agreement,
    cell_or_not,
    sweep_thresholds,
)
from densejax.segmentation.evaluation.inputs import Inputs
from densejax.segmentation.evaluation.streaming import LabelCounts, count_labels, count_objects
from densejax.segmentation.label_volumes import Labelling, Region

HASHED_BYTES = 2**26  # a larger input is known by its size and date only

COUNTED = "Voxels count where the labels and the prediction both have a class."
CELL = "The cell is every class but the background."


@dataclass(frozen=True)
class Evaluation:
    """What was compared and what was counted.

    Attributes:
      labellings: the truth, the prediction, then others of ``--pairwise``.
      region: the box that they share.
      counts: of all labellings.
      class_names: c names.
      organelles: classes of MIoU(org), or empty.
      objects: voxels shared by true and predicted objects.
      agreement: of everybody with everybody, where asked for.
      sweep: of thresholds, where asked for.
      complete: whether every block was counted.
    """

    labellings: tuple[Labelling, ...]
    region: Region
    counts: LabelCounts
    class_names: tuple[str, ...]
    organelles: tuple[int, ...] = ()
    objects: partitions.PairCounts | None = None
    agreement: Agreement | None = None
    sweep: ThresholdSweep | None = None
    complete: bool = True

    @property
    def inner(self) -> tuple[int, ...]:
        """The organelles, or every class but the background where there are none."""
        others = [i for i in range(len(self.class_names)) if i != self.counts.background]
        return self.organelles or tuple(others)


def report_numbers(evaluation: Evaluation) -> dict[str, Any]:
    """Every number with its definition; what JSON cannot hold (nan) is None."""
    parts = {
        "complete": evaluation.complete,
        "region": _region(evaluation),
        "voxels": _voxels(evaluation),
        "scores": _scores(evaluation),
        "classes": _classes(evaluation),
        "confusion": _entry(
            evaluation.counts.confusion(),
            f"Voxels by class, rows the labels, columns the prediction. {COUNTED}",
        ),
        "fractions": _fractions(evaluation),
    }
    if evaluation.objects is not None:
        parts["objects"] = _objects(evaluation.objects)
    if evaluation.agreement is not None:
        parts["pairwise"] = _pairwise(evaluation, evaluation.agreement)
    if evaluation.sweep is not None:
        parts["threshold_sweep"] = _sweep(evaluation, evaluation.sweep)
    return plain(parts)


def describe_input(labelling: Labelling) -> dict[str, Any]:
    """Where a labelling comes from and what it is, enough to know it again."""
    return {
        "path": labelling.path,
        "shape": labelling.array.shape,
        "dtype": str(labelling.array.dtype),
        "voxel_nm": labelling.voxel_nm,
        "offset": labelling.offset,
        "not_labelled": labelling.unlabelled,
        "files": fingerprint(labelling.path),
        "prediction": labelling.prediction,
    }


def fingerprint(path: str) -> dict[str, Any] | None:
    """Number, bytes and newest date of the files below a path, and the hash of a small single file.

    Returns:
      None for a remote path.
    """
    if is_remote(path):
        return None
    place = Path(path.partition(IN_FILE)[0])
    count = size = newest = 0
    for file in [place] if place.is_file() else _files(place):
        stat = file.stat()
        count, size, newest = count + 1, size + stat.st_size, max(newest, stat.st_mtime_ns)
    date = datetime.fromtimestamp(newest / 1e9, UTC).isoformat()
    found: dict[str, Any] = {"count": count, "bytes": size, "newest": date}
    if place.is_file() and size <= HASHED_BYTES:
        found["sha256"] = hashlib.sha256(place.read_bytes()).hexdigest()
    return found


def _files(folder: Path) -> list[Path]:
    return [Path(root) / name for root, _, names in os.walk(folder) for name in names]


def _region(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "offset": evaluation.region.start,
        "shape": evaluation.region.shape,
        "voxel_nm": evaluation.labellings[0].voxel_nm,
        "definition": "The box that is compared, z, y, x: first voxel in the volume that was "
        "labelled, and voxels.",
    }


def _voxels(evaluation: Evaluation) -> dict[str, Any]:
    table = evaluation.counts.tables[0, 1]
    return {
        "all": _entry(table.sum(), "Voxels of the blocks that were read."),
        "counted": _entry(table[:-1, :-1].sum(), COUNTED),
        "not_labelled": _entry(table[-1].sum(), "Voxels without a true class."),
        "not_predicted": _entry(
            table[:-1, -1].sum(), "Voxels with a true class that were not predicted; left out."
        ),
    }


def _scores(evaluation: Evaluation) -> dict[str, Any]:
    table, names = evaluation.counts.confusion(), evaluation.class_names
    background = evaluation.counts.background
    inside = metrics.without_truth(table, classes=[background])
    inner = ", ".join(names[i] for i in evaluation.inner)
    found = {
        "miou_all": _entry(
            metrics.mean_iou(table),
            "MIoU(all): mean over all classes of the intersection over union; a class that neither "
            "side has is left out.",
        ),
        "accuracy": _entry(metrics.accuracy(table), "Part of the voxels with the right class."),
        "adjusted_rand": _entry(
            metrics.adjusted_rand(table),
            "Adjusted Rand index (Hubert and Arabie 1985) of the division of the voxels into "
            "classes: of semantic labels, not of separate objects. 1 is the same, 0 is chance.",
        ),
        "test_score": _entry(
            metrics.mean_iou(inside, classes=evaluation.inner),
            f"The published test score: MIoU over {inner}, without the voxels whose true class is "
            f"{names[background]}. What is found outside the labelled cell is free; what is missed "
            "inside is not.",
        ),
    }
    if evaluation.organelles:
        found["miou_organelles"] = _entry(
            metrics.mean_iou(table, classes=evaluation.organelles),
            f"MIoU(org): mean over {inner}; the whole table decides each union.",
        )
    return found


def _classes(evaluation: Evaluation) -> dict[str, Any]:
    table = evaluation.counts.confusion()
    columns = {
        "iou": (metrics.iou(table), "Intersection over union."),
        "dice": (metrics.dice(table), "Twice the intersection over the sum of both (F1)."),
        "precision": (
            np.diagonal(metrics.normalised_confusion(table.T)),
            "Part of what was called so that is so.",
        ),
        "recall": (
            np.diagonal(metrics.normalised_confusion(table)),
            "Part of what is so that was called so.",
        ),
        "labelled": (table.sum(1), "Voxels in the labels."),
        "predicted": (table.sum(0), "Voxels in the prediction."),
    }
    return {
        "names": evaluation.class_names,
        **{name: _entry(values, words) for name, (values, words) in columns.items()},
    }


def _fractions(evaluation: Evaluation) -> dict[str, Any]:
    counts = evaluation.counts
    distance = counts.cell_mask_nm
    first = counts.names[0]
    where = f"within {distance:g} nm of that cell" if distance else "inside that cell"
    return _entry(
        {
            name: {
                evaluation.class_names[k]: counts.fractions(i)[k]
                for k in range(len(evaluation.class_names))
                if k != counts.background
            }
            for i, name in enumerate(counts.names)
        },
        f"Voxels of a class over voxels of the cell. {CELL} For {first} it is all of its own "
        f"labels; for the others it is what they do not call background {where}, whether or not "
        f"{first} has a label there.",
    ) | {"cell_mask_nm": distance}


def _objects(table: partitions.PairCounts) -> dict[str, Any]:
    segment = partitions.adapted_rand(table)
    single = partitions.adapted_rand(table, background="singletons")
    inside = partitions.variation_of_information(table)
    whole = partitions.variation_of_information(table, only_foreground=False)
    sides = [partitions.object_sizes(table, side)["ids"] for side in ("truth", "predicted")]  # type: ignore[arg-type]
    true, predicted = (int(np.count_nonzero(ids)) for ids in sides)
    only = "in the voxels of true objects"
    return {
        "voxels": _entry(table.total, "Voxels that are labelled in the true instances."),
        "true_objects": _entry(true, "Objects in the truth."),
        "predicted_objects": _entry(predicted, "Objects in the prediction."),
        "rand_error": _entry(
            segment.error,
            f"Adapted Rand error {only}: one minus the F-score of pairs of voxels that are of one "
            "object. What was not predicted is one object (scikit-image).",
        ),
        "rand_precision": _entry(segment.precision, "Pairs predicted together that belong so."),
        "rand_recall": _entry(segment.recall, "Pairs that belong together, predicted so."),
        "rand_error_singletons": _entry(
            single.error,
            "The same, but each voxel that was not predicted is an object of its own (SNEMI3D, "
            "CREMI).",
        ),
        "split_bits": _entry(
            inside.split, f"Variation of information by splits, {only}: H(prediction | truth)."
        ),
        "merge_bits": _entry(
            inside.merge, f"Variation of information by mergers, {only}: H(truth | prediction)."
        ),
        "split_bits_everywhere": _entry(whole.split, "Splits, the background an object too."),
        "merge_bits_everywhere": _entry(whole.merge, "Mergers, the background an object too."),
        "matches": _entry(
            [match._asdict() for match in partitions.match_objects(table)],
            "Objects whose intersection over union is above the threshold are matched. Average "
            "precision is matched / (matched + missed + invented); panoptic quality is the sum of "
            "matched overlaps / (matched + half of the others).",
        ),
    }


def _pairwise(evaluation: Evaluation, found: Agreement) -> dict[str, Any]:
    inner = ", ".join(evaluation.class_names[i] for i in evaluation.organelles)
    words = {
        "miou_all": "MIoU(all) of each two.",
        "miou_organelles": f"MIoU(org) of each two, over {inner}.",
        "accuracy": "Part of the voxels on which each two agree.",
        "adjusted_rand": "Adjusted Rand index of the semantic labels of each two.",
    }
    return {
        "names": found.names,
        "scores": {name: _entry(v, words[name]) for name, v in found.scores.items()},
        "class_iou": _entry(
            found.class_iou, "Intersection over union of each two, by class (innermost)."
        ),
        "confusions": [
            {
                "rows": found.names[i],
                "columns": found.names[j],
                "value": found.confusions[i, j],
                "definition": "Voxels by class that both have labelled.",
            }
            for i, j in found.pairs
        ],
    }


def _sweep(evaluation: Evaluation, sweep: ThresholdSweep) -> dict[str, Any]:
    tables = sweep.tables
    scores = metrics.iou(tables)
    merged = cell_or_not(evaluation.counts.confusion(), background=evaluation.counts.background)
    best = sweep.best
    return {
        "thresholds": _entry(
            sweep.thresholds, f"A voxel is cell where its probability is at least this. {CELL}"
        ),
        "miou": _entry(metrics.mean_iou(tables), "Mean IoU of background and cell."),
        "iou_cell": _entry(scores[:, 1], "IoU of the cell."),
        "iou_background": _entry(scores[:, 0], "IoU of the background."),
        "precision": _entry(_ratio(tables[:, 1, 1], tables[:, :, 1].sum(1)), "Of the cell."),
        "recall": _entry(_ratio(tables[:, 1, 1], tables[:, 1].sum(1)), "Of the cell."),
        "best": _entry(
            {"threshold": sweep.thresholds[best], "miou": metrics.mean_iou(tables)[best]},
            "The threshold with the highest mean IoU on these very labels, so no fair score for "
            "another method to be held against; a threshold from other labels is.",
        ),
        "labels": _entry(
            {"miou": metrics.mean_iou(merged), "iou_cell": metrics.iou(merged)[1]},
            "The same of the labels themselves (the most probable class), merged to cell or not.",
        ),
        "voxels": _entry(sweep.counts.sum(), COUNTED),
    }


def _entry(value: Any, definition: str) -> dict[str, Any]:
    return {"value": value, "definition": definition}


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.where(below > 0, above / np.maximum(below, 1), np.nan)


def plain(value: Any) -> Any:
    """Arrays as lists, numbers as Python's, nan and infinity as None."""
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def count_inputs(inputs: Inputs, config: Any, blocks: Path) -> Evaluation:
    """Count labels, and objects and thresholds where they are asked for.

    Args:
      inputs: volumes laid over one another.
      config: has ``background``, ``cell_mask_nm``, ``pairwise``, ``threshold_sweep``, ``threads``
        and ``first_blocks``.
      blocks: folder that keeps what each block came to.

    Returns:
      The counts.

    Raises:
      ValueError: a label is out of range, or no voxel is labelled.
    """
    truth, prediction = inputs.labellings[:2]
    common: dict[str, Any] = {"threads": config.threads, "first_blocks": config.first_blocks}
    counts = count_labels(
        inputs.labellings,
        inputs.region,
        classes=len(inputs.class_names),
        background=config.background,
        cell_mask_nm=config.cell_mask_nm,
        folder=blocks / "labels",
        **common,
    )
    objects = sweep = None
    if inputs.objects is not None:
        partly = bool(counts.tables[0, 1, :, -1].any())
        objects = count_objects(
            *inputs.objects,
            inputs.region,
            outside=prediction if partly else None,
            folder=blocks / "objects",
            **common,
        )
    if config.threshold_sweep:
        sweep = sweep_thresholds(
            prediction,
            truth,
            inputs.region,
            class_names=inputs.class_names,
            background=config.background,
            folder=blocks / "thresholds",
            **common,
        )
    return Evaluation(
        labellings=inputs.labellings,
        region=inputs.region,
        counts=counts,
        class_names=inputs.class_names,
        organelles=inputs.organelles,
        objects=objects,
        agreement=agreement(counts, organelles=inputs.organelles) if config.pairwise else None,
        sweep=sweep,
        complete=not config.first_blocks,
    )
