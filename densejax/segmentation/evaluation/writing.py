"""The folder of an evaluation: what was compared, the report as JSON and as a page, the table."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from densejax.io import begin, read_json, write_json, write_text
from densejax.segmentation.evaluation.inputs import Inputs
from densejax.segmentation.evaluation.pictures import Picture, draw_pictures
from densejax.segmentation.evaluation.report import (
    Evaluation,
    describe_input,
    plain,
    report_numbers,
)
from densejax.training.provenance import provenance

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
    pictures = draw_pictures(evaluation, workdir / "pictures", image=inputs.image)
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
