"""The folder of an evaluation: its inputs, the report as JSON and as a page, its pictures."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from densejax import metrics
from densejax.data.formats import Box
from densejax.io import begin, read_json, write_json, write_text
from densejax.plots import agreement as drawn
from densejax.plots.scores import confusion_matrix
from densejax.plots.slices import orthoslices
from densejax.segmentation.evaluation.comparisons import cell_or_not
from densejax.segmentation.evaluation.inputs import Inputs
from densejax.segmentation.evaluation.report import (
    Evaluation,
    describe_input,
    plain,
    report_numbers,
)
from densejax.segmentation.evaluation.streaming import NONE, read_classes
from densejax.segmentation.label_volumes import Labelling
from densejax.training.provenance import provenance
from densejax.typing import UNLABELLED

TITLES = {
    "miou_all": "MIoU(all)",
    "miou_organelles": "MIoU(org)",
    "test_score": "Test score",
    "accuracy": "Accuracy",
    "adjusted_rand": "Adjusted Rand",
}
OBJECT_TITLES = {
    "rand_error": "Adapted Rand error",
    "rand_precision": "Rand precision",
    "rand_recall": "Rand recall",
    "rand_error_singletons": "Adapted Rand error, singletons",
    "split_bits": "Variation, splits (bits)",
    "merge_bits": "Variation, mergers (bits)",
    "split_bits_everywhere": "Variation everywhere, splits (bits)",
    "merge_bits_everywhere": "Variation everywhere, mergers (bits)",
    "true_objects": "True objects",
    "predicted_objects": "Predicted objects",
}
SHOWN = (64, 640, 640)  # voxels of the cut at most, z, y, x
MOST_MATRICES = 6


@dataclass(frozen=True)
class Picture:
    """A PNG, the section of the page that it belongs to, and what it shows."""

    path: Path
    section: str
    caption: str


def _draw_pictures(
    evaluation: Evaluation, folder: Path, *, image: Labelling | None = None
) -> list[Picture]:
    """Draw everything that was counted, in the order of the page."""
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


def remember_inputs(inputs: Inputs, workdir: Path) -> None:
    """Write down what is compared, or check that it is what an earlier start compared.

    Raises:
      ValueError: an input has changed since.
    """
    begin(workdir / "inputs.json", _described(inputs), what="evaluation")


def finished_report(workdir: Path) -> dict[str, Any] | None:
    """The report of an evaluation that has ended, or None."""
    path = workdir / "report.json"
    return read_json(path) if path.exists() else None


def write_report(evaluation: Evaluation, inputs: Inputs, workdir: Path) -> dict[str, Any]:
    """Draw, then write ``report.html`` and, last, ``report.json``.

    Args:
      evaluation: what was counted.
      inputs: what was compared.
      workdir: the folder; pictures go to ``pictures/`` in it.

    Returns:
      The report, as ``report.json`` holds it.
    """
    report = report_numbers(evaluation) | {"notes": list(inputs.notes)}
    report |= {"inputs": _described(inputs), "provenance": plain(provenance())}
    pictures = _draw_pictures(evaluation, workdir / "pictures", image=inputs.image)
    report["pictures"] = {
        str(picture.path.relative_to(workdir)): picture.caption for picture in pictures
    }
    write_text(workdir / "report.html", _page(report, pictures))
    write_json(workdir / "report.json", report)
    return report


def print_inputs(inputs: Inputs) -> None:
    """What is about to be compared."""
    for labelling in inputs.everything:
        shape = " x ".join(map(str, labelling.array.shape))
        voxel = " x ".join(f"{size:g}" for size in labelling.voxel_nm)
        where = ",".join(map(str, labelling.offset or ()))
        print(
            f"{labelling.name:<16}{shape} {labelling.array.dtype} at {where}, voxels {voxel} nm "
            f"(z, y, x), {labelling.path}"
        )
    shape = " x ".join(map(str, inputs.region.shape))
    print(f"{'compared':<16}{shape} voxels from {','.join(map(str, inputs.region.start))}")
    print(f"{'classes':<16}{', '.join(f'{i} {n}' for i, n in enumerate(inputs.class_names))}")
    for note in inputs.notes:
        print(f"warning: {note}")


def print_report(report: Mapping[str, Any]) -> None:
    """The table on the command line."""
    classes, names = report["classes"], report["classes"]["names"]
    width = 2 + max(16, *map(len, names))
    columns = ("iou", "dice", "precision", "recall", "labelled", "predicted")
    print(f"\n{'class':<{width}}" + "".join(f"{column:>14}" for column in columns))
    for i, name in enumerate(names):
        cells = "".join(f"{_cell(classes[column]['value'][i]):>14}" for column in columns)
        print(f"{name:<{width}}{cells}")
    print()
    for name, title in TITLES.items():
        if name in report["scores"]:
            print(f"{title:<{width}}{_cell(report['scores'][name]['value']):>14}")
    _print_fractions(report["fractions"]["value"], width)
    for name, entry in report.get("objects", {}).items():
        if name != "matches":
            print(f"{name.replace('_', ' '):<26}{_cell(entry['value']):>14}")
    _print_pairwise(report.get("pairwise"), width)
    if "threshold_sweep" in report:
        sweep = report["threshold_sweep"]
        best, merged = sweep["best"]["value"], sweep["labels"]["value"]
        print(
            f"\ncell or not, MIoU: {_cell(best['miou'])} at the best threshold "
            f"{best['threshold']:.3f}, {_cell(merged['miou'])} by the most probable class"
        )
    missing = report["voxels"]["not_predicted"]["value"]
    if missing:
        print(f"\nwarning: {missing:,} labelled voxels were not predicted and count nowhere")
    if not report["complete"]:
        print("\nwarning: only the first blocks were counted (--first_blocks)")


def _print_fractions(fractions: Mapping[str, Mapping[str, Any]], width: int) -> None:
    labellers = list(fractions)
    print(f"\n{'part of the cell, %':<{width + 4}}" + "".join(f"{n:>14}" for n in labellers))
    for name in fractions[labellers[0]]:
        parts = [fractions[labeller][name] for labeller in labellers]
        cells = "".join(f"{'none' if p is None else f'{100 * p:.3f}':>14}" for p in parts)
        print(f"{name:<{width + 4}}{cells}")
    print()


def _print_pairwise(found: Mapping[str, Any] | None, width: int) -> None:
    if found is None:
        return
    for name, entry in found["scores"].items():
        print(f"\n{TITLES[name]:<{width}}" + "".join(f"{n:>14}" for n in found["names"]))
        for labeller, row in zip(found["names"], entry["value"], strict=True):
            print(f"{labeller:<{width}}" + "".join(f"{_cell(value):>14}" for value in row))


def _cell(value: float | None) -> str:
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _page(report: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """A report as HTML that needs no other file."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {
        "number": _cell,
        "percent": lambda value: "none" if value is None else f"{100 * value:.3g} %",
        "general": lambda value: f"{value:g}",
        "column": lambda name: {"iou": "IoU", "dice": "Dice"}.get(name, name),
        "text": _text,
        "png": lambda picture: base64.b64encode(picture.path.read_bytes()).decode(),
    }
    template = environment.from_string(Path(__file__).with_name("page.html").read_text())
    return template.render(
        report=report, pictures=pictures, titles=TITLES, object_titles=OBJECT_TITLES
    )


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {_text(entry)}" for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(entry) for entry in value)
    return "none" if value is None else str(value)


def _described(inputs: Inputs) -> dict[str, Any]:
    return {one.name: plain(describe_input(one)) for one in inputs.everything}
