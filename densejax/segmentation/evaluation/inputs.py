"""What an evaluation is asked to compare: everything opened and checked before a voxel is read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from densejax.data.label_values import check_values
from densejax.data.volumes import open_volume
from densejax.segmentation.evaluation.comparisons import open_annotators, open_probabilities
from densejax.segmentation.label_volumes import (
    Labelling,
    Position,
    Region,
    lay_over,
    open_labelling,
    settle_classes,
)


@dataclass(frozen=True)
class Inputs:
    """Volumes laid over one another.

    Attributes:
      labellings: the truth, the prediction, then others of ``--pairwise``.
      region: the box that all share.
      class_names: c names.
      organelles: classes of MIoU(org), or empty.
      objects: predicted and true instances, where both are there.
      image: grey levels for the picture, where they are there.
      notes: what the reader of the report has to know.
    """

    labellings: tuple[Labelling, ...]
    region: Region
    class_names: tuple[str, ...]
    organelles: tuple[int, ...]
    objects: tuple[Labelling, Labelling] | None
    image: Labelling | None
    notes: tuple[str, ...]

    @property
    def everything(self) -> tuple[Labelling, ...]:
        """All that is counted."""
        return (*self.labellings, *(self.objects or ()))


def open_inputs(config: Any) -> Inputs:
    """Open what a configuration of ``experiments.evaluate`` names.

    Args:
      config: has ``prediction``, ``labels``, ``instances``, ``instance_labels``, ``image``,
        ``class_names``, ``organelles``, ``background``, ``voxel_nm``, ``labels_offset``,
        ``unlabelled``, ``label_values``, ``not_predicted``, ``cell_mask_nm``, ``pairwise`` and
        ``threshold_sweep``.

    Raises:
      FileNotFoundError: a path is not there.
      ValueError: volumes do not fit over one another, labels are no integers, class names or
        numbers do not fit, or flags contradict one another.
    """
    if not config.cell_mask_nm >= 0:
        raise ValueError(f"--cell_mask_nm is {config.cell_mask_nm}; expected 0 nm or more")
    prediction = open_labelling(
        config.prediction,
        name="prediction",
        voxel_nm=config.voxel_nm or None,
        unlabelled=config.not_predicted,
    )
    voxel_nm = config.voxel_nm or prediction.voxel_nm
    labels = open_labelling(
        config.labels,
        name="labels",
        voxel_nm=config.voxel_nm or None,
        otherwise_nm=voxel_nm,
        offset=_offset(config.labels_offset),
        unlabelled=config.unlabelled,
        values=config.label_values,
    )
    labellings = open_annotators(
        config.pairwise,
        known=[labels, prediction],
        voxel_nm=config.voxel_nm or None,
        otherwise_nm=voxel_nm,
        unlabelled=config.unlabelled,
        values=config.label_values,
    )
    objects = _open_objects(config, prediction, voxel_nm)
    image, notes = _open_image(config, prediction, labellings)
    labels, prediction, *others = labellings
    placed, region = lay_over([prediction, labels, *others, *objects, *image])
    prediction, labels, *rest = placed
    names = settle_classes(labellings, config.class_names)
    check_values(config.label_values, config.unlabelled, classes=len(names))
    organelles = config.organelles or (prediction.prediction or {}).get("organelles") or ()
    _check_classes(organelles, len(names), "--organelles")
    _check_classes((config.background,), len(names), "--background")
    if config.threshold_sweep:
        open_probabilities(prediction, classes=len(names))
    seen, rest = rest[: len(others)], rest[len(others) :]
    return Inputs(
        labellings=(labels, prediction, *seen),
        region=region,
        class_names=names,
        organelles=tuple(int(k) for k in organelles),
        objects=(rest[0], rest[1]) if objects else None,
        image=rest[-1] if image else None,
        notes=tuple(notes),
    )


def _open_objects(
    config: Any, prediction: Labelling, voxel_nm: Sequence[float]
) -> tuple[Labelling, ...]:
    """Predicted and true instances, or nothing where no true ones are given."""
    if not config.instance_labels:
        if config.instances:
            raise ValueError(
                f"--instances={config.instances} needs --instance_labels, the true instances to "
                "compare with"
            )
        return ()
    path = config.instances
    if not path:
        beside = None if prediction.folder is None else prediction.folder / "instances.zarr"
        if beside is None or not beside.is_dir():
            raise ValueError(
                f"--instance_labels needs --instances: {beside or prediction.path} has none "
                "(python -m experiments.instances makes them)"
            )
        path = str(beside)
    predicted = open_labelling(
        path, name="instances", voxel_nm=config.voxel_nm or None, otherwise_nm=voxel_nm
    )
    true = open_labelling(
        config.instance_labels,
        name="instance_labels",
        voxel_nm=config.voxel_nm or None,
        otherwise_nm=voxel_nm,
        offset=_offset(config.labels_offset),
    )
    return predicted, true


def _open_image(
    config: Any, prediction: Labelling, labellings: Sequence[Labelling]
) -> tuple[list[Labelling], list[str]]:
    """The image as a list of one or none, and a note where the prediction's own is not found."""
    stated = prediction.prediction or {}
    path = config.image or stated.get("volume")
    if not path:
        return [], []
    try:
        dataset = None if config.image else stated.get("dataset") or None
        volume = open_volume(path, voxel_nm=prediction.voxel_nm, dataset=dataset)
    except (OSError, ValueError) as error:
        if config.image:
            raise
        return [], [f"Without the image, which could not be opened: {error}"]
    offset: Position | None = (0, 0, 0)
    if volume.offset is not None and (config.image or "volume_offset" in stated):
        z, y, x = (round(o) for o in volume.offset)
        offset = z, y, x
    elif config.image and any(one.array.shape == volume.array.shape for one in labellings):
        offset = None
    image = Labelling("image", volume.array, volume.voxel_nm, str(path))
    return [replace(image, offset=offset)], []


def _offset(values: Sequence[int]) -> tuple[int, int, int] | None:
    if not values:
        return None
    if len(values) != 3:
        raise ValueError(f"--labels_offset takes three numbers z,y,x; found {tuple(values)}")
    return int(values[0]), int(values[1]), int(values[2])


def _check_classes(numbers: Sequence[int], classes: int, flag: str) -> None:
    wrong = [k for k in numbers if not 0 <= k < classes]
    if wrong:
        raise ValueError(f"{flag} has {wrong}; expected classes in 0..{classes - 1}")
