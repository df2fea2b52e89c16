"""The pictures of an evaluation: scores by class, confusion, a cut, agreement, fractions."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from densejax import metrics
from densejax.data.formats import Box
from densejax.plots import agreement as drawn
from densejax.plots.scores import confusion_matrix
from densejax.plots.slices import orthoslices
from densejax.segmentation.evaluation.report import Evaluation
from densejax.segmentation.evaluation.streaming import NONE, read_classes
from densejax.segmentation.evaluation.thresholds import cell_or_not
from densejax.segmentation.label_volumes import Labelling
from densejax.typing import UNLABELLED

SHOWN = (64, 640, 640)  # voxels of the cut at most, z, y, x
MOST_MATRICES = 6


@dataclass(frozen=True)
class Picture:
    """A PNG, the section of the page that it belongs to, and what it shows."""

    path: Path
    section: str
    caption: str


def draw_pictures(
    evaluation: Evaluation, folder: Path, *, image: Labelling | None = None
) -> list[Picture]:
    """Draw everything that was counted.

    Args:
      evaluation: what was compared.
      folder: where the PNGs go.
      image: grey levels that cover the region, laid over the labellings.

    Returns:
      The pictures in the order of the page.
    """
    return [
        *_scores(evaluation, folder),
        _cut(evaluation, folder, image),
        *_fractions(evaluation, folder),
        *_pairwise(evaluation, folder),
        *_sweep(evaluation, folder),
    ]


def _scores(evaluation: Evaluation, folder: Path) -> list[Picture]:
    table, names = evaluation.counts.confusion(), evaluation.class_names
    paths = folder / "classes.png", folder / "confusion.png"
    scores = {"IoU": metrics.iou(table), "Dice": metrics.dice(table)}
    drawn.class_scores(scores, class_names=names, path=paths[0])
    normalised = np.asarray(metrics.normalised_confusion(table))
    confusion_matrix(normalised, class_names=names, path=paths[1])
    return [
        Picture(paths[0], "classes", "Intersection over union and Dice coefficient of each class."),
        Picture(
            paths[1],
            "classes",
            "What each true class was called, as parts of its row; the diagonal is the recall.",
        ),
    ]


def _cut(evaluation: Evaluation, folder: Path, image: Labelling | None) -> Picture:
    """Both labellings, and the prediction where it is wrong, in the fullest block."""
    truth, prediction = evaluation.labellings[:2]
    region, classes = evaluation.region, len(evaluation.class_names)
    box = _most_telling(evaluation, read_classes(truth, region, evaluation.counts.fullest, classes))
    true, called = (
        _with_unlabelled(read_classes(labelling, region, box, classes))
        for labelling in (truth, prediction)
    )
    wrong = np.where((true >= 0) & (true != called), called, UNLABELLED)
    shown = np.isin(true, evaluation.inner)
    shown = shown if shown.any() else true >= 0
    grey = None if image is None else image.array[region.slices(box, image)]
    orthoslices(
        grey,
        {truth.name: true, prediction.name: called, f"{prediction.name}, where wrong": wrong},
        path=folder / "cut.png",
        voxel_nm=truth.voxel_nm,
        class_names=evaluation.class_names,
        z=int(shown.sum((1, 2)).argmax()),
        y=int(shown.sum((0, 2)).argmax()),
        white="not labelled, or right",
    )
    first = ", ".join(str(s.start + r) for s, r in zip(box, region.start, strict=True))
    return Picture(
        folder / "cut.png",
        "cut",
        f"Cuts through {' x '.join(map(str, true.shape))} voxels from (z, y, x) = ({first}), where "
        "the labels are fullest. White has no label, or is right in the last column.",
    )


def _most_telling(evaluation: Evaluation, true: np.ndarray) -> Box:
    """At most ``SHOWN`` voxels about the middle of the labels of the fullest block."""
    block, shape = evaluation.counts.fullest, evaluation.region.shape
    seen = (true != NONE) & (true != evaluation.counts.background)
    seen = seen if seen.any() else true != NONE
    sides = []
    for axis, (side, most) in enumerate(zip(block, SHOWN, strict=True)):
        along = seen.sum(tuple(a for a in range(3) if a != axis))
        middle = side.start + round(float(np.average(np.arange(len(along)), weights=along)))
        size = min(most, shape[axis])
        start = min(max(0, middle - size // 2), shape[axis] - size)
        sides.append(slice(start, start + size))
    return sides[0], sides[1], sides[2]


def _with_unlabelled(found: np.ndarray) -> np.ndarray:
    return np.where(found == NONE, UNLABELLED, found.astype(np.int32))


def _fractions(evaluation: Evaluation, folder: Path) -> list[Picture]:
    counts = evaluation.counts
    rows = {name: counts.fractions(i) for i, name in enumerate(counts.names)}
    if not any(np.isfinite(row).any() for row in rows.values()):
        return []
    kept = list(evaluation.inner)
    path = folder / "fractions.png"
    drawn.volume_fractions(
        {name: row[kept] for name, row in rows.items()},
        path=path,
        class_names=[evaluation.class_names[k] for k in kept],
    )
    return [Picture(path, "fractions", "Part of the cell's volume that each class takes, in %.")]


def _pairwise(evaluation: Evaluation, folder: Path) -> list[Picture]:
    found = evaluation.agreement
    if found is None:
        return []
    titles = {
        "miou_organelles": "MIoU(org)",
        "miou_all": "MIoU(all)",
        "accuracy": "same class",
        "adjusted_rand": "adjusted Rand",
    }
    path = folder / "agreement.png"
    drawn.agreement_matrices(
        {title: found.scores[name] for name, title in titles.items() if name in found.scores},
        names=found.names,
        path=path,
    )
    pictures = [Picture(path, "pairwise", "How each two labellings agree.")]
    for i, j in found.pairs[:MOST_MATRICES]:
        path = folder / f"confusion_{i}_{j}.png"
        confusion_matrix(
            np.asarray(metrics.normalised_confusion(found.confusions[i, j])),
            path=path,
            class_names=evaluation.class_names,
            sides=(f"class by {found.names[i]}", f"class by {found.names[j]}"),
        )
        words = f"Each class by {found.names[i]} (a row), and what it is by {found.names[j]}."
        pictures.append(Picture(path, "pairwise", words))
    return pictures


def _sweep(evaluation: Evaluation, folder: Path) -> list[Picture]:
    sweep = evaluation.sweep
    if sweep is None:
        return []
    scores, miou = metrics.iou(sweep.tables), np.asarray(metrics.mean_iou(sweep.tables))
    merged = cell_or_not(evaluation.counts.confusion(), background=evaluation.counts.background)
    path = folder / "thresholds.png"
    drawn.threshold_curve(
        sweep.thresholds,
        {"mean of both": miou, "cell": scores[:, 1], "background": scores[:, 0]},
        path=path,
        best=(float(sweep.thresholds[sweep.best]), float(miou[sweep.best])),
        levels={"most probable class": float(metrics.mean_iou(merged))},
    )
    return [Picture(path, "threshold_sweep", "Cell or not, by a threshold on its probability.")]
