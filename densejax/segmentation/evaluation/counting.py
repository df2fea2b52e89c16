"""All that an evaluation is asked to count, pass by pass; a killed one goes on where it was."""

from pathlib import Path
from typing import Any

from densejax.segmentation.evaluation.annotators import agreement
from densejax.segmentation.evaluation.inputs import Inputs
from densejax.segmentation.evaluation.report import Evaluation
from densejax.segmentation.evaluation.streaming import count_labels, count_objects
from densejax.segmentation.evaluation.thresholds import sweep_thresholds


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
