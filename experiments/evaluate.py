"""How good is a labelling of a whole volume, and do people agree more than the networks do?

Compares a prediction, or any label volume, with true labels: intersection over union and Dice of
each class, MIoU(all) and MIoU(org), confusion, adjusted Rand, the published test score, the volume
fractions of the organelles in the cell; of objects the adapted Rand error, the variation of
information and the matches. One pass over the voxels in blocks, in a bounded memory.

Data: a folder of ``experiments.predict`` or a label volume of any format, and labels.

    python -m experiments.evaluate --prediction=OUT --labels=truth.tif --workdir=OUT/evaluation
    python -m experiments.evaluate --prediction=p.zarr --labels=truth.h5::labels \\
        --class_names=background,cell,mitochondrion --organelles=2 --voxel_nm=50,10,10 --workdir=E

``--pairwise=second:second.tif,unet:UNET`` compares all with each other (thesis, figure 4.9);
``--threshold_sweep`` asks for cell or not at every threshold (section 4.4.4);
``--instance_labels`` compares objects. Killed and run again it goes on.

Result: a table, ``report.json`` with every number and its definition, and ``report.html``, one page
with all pictures in it. On two cores over a hundred Mvoxel/s. Published, platelets: MIoU(org)
0.595 on the evaluation and 0.446 on the test volume; between two people 0.571.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densejax.cli import main, option, start_folder
from densejax.segmentation.evaluation.inputs import open_inputs
from densejax.segmentation.evaluation.report import count_inputs
from densejax.segmentation.evaluation.writing import (
    finished_report,
    print_inputs,
    print_report,
    remember_inputs,
    write_report,
)

# Settings that change no number.
VARYING = ("threads",)


@dataclass(frozen=True)
class Config:
    """Everything that decides a result."""

    prediction: str = option("", "folder of experiments.predict, or a label volume [file::array]")
    labels: str = option("", "true labels: a volume of any format [file::array]")
    instances: str = option(
        "", "predicted instance segmentation; default: the prediction's instances.zarr"
    )
    instance_labels: str = option(
        "", "true instance segmentation, 0 for no object; without it none is compared"
    )
    image: str = option("", "grey levels for the picture; default: the prediction's volume")
    class_names: tuple[str, ...] = option((), "names of the classes; default: the prediction's")
    organelles: tuple[int, ...] = option(
        (), "classes of MIoU(org) and of volume fractions; default: the prediction's"
    )
    background: int = option(0, "the class outside the cell")
    voxel_nm: tuple[float, ...] = option(
        (), "voxel size z,y,x; where the files state none", unit="nm"
    )
    labels_offset: tuple[int, ...] = option(
        (), "where the labels begin in the volume, z,y,x; where they do not say so", unit="voxels"
    )
    unlabelled: int | None = option(
        None, "value of --labels and --pairwise that means not labelled, besides -1"
    )
    label_values: tuple[int, ...] = option(
        (), "values of the classes in --labels and --pairwise, such as 0,255; default: 0,1,..."
    )
    not_predicted: int | None = option(
        None, "value of --prediction that means not predicted; default: as the prediction says"
    )
    cell_mask_nm: float = option(
        0.0, "how far around the true cell the prediction's volume fractions reach", unit="nm"
    )
    pairwise: tuple[str, ...] = option(
        (), "others to compare with all, name:path; a path of the two above renames it"
    )
    threshold_sweep: bool = option(
        False, "cell or not, at every threshold on the prediction's probabilities"
    )
    threads: int = option(0, "that read and count; 0 is one a core")
    first_blocks: int = option(0, "count only so many blocks, for a first look; 0 is all", fast=1)


@dataclass(frozen=True)
class Result:
    """The report, as in report.json, and the files that were written."""

    report: dict[str, Any]
    files: tuple[Path, ...]
    failed: int = 0


def run(config: Config, workdir: Path) -> Result:
    """Compare, and leave the report in the folder."""
    if not config.prediction or not config.labels:
        raise ValueError(
            f"--prediction and --labels are needed; found --prediction={config.prediction!r} "
            f"--labels={config.labels!r}"
        )
    inputs = open_inputs(config)
    start_folder(config, workdir, ignore=VARYING)
    remember_inputs(inputs, workdir)
    print_inputs(inputs)
    report = finished_report(workdir)
    if report is None:
        report = write_report(count_inputs(inputs, config, workdir / "blocks"), inputs, workdir)
    shutil.rmtree(workdir / "blocks", ignore_errors=True)
    print_report(report)
    files = tuple(workdir / name for name in ("report.json", "report.html"))
    print("\nfiles", *files, sep="\n  ")
    return Result(report, files)


if __name__ == "__main__":
    main(Config, run, description=__doc__)
