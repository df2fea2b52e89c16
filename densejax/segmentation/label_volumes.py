"""Label volumes to be compared: opened, named, and laid over one another before a voxel is read.

Positions are voxels (z, y, x) from the origin that the volume which was labelled states, else from
its first voxel. A prediction's folder says where it lies, and so does any file that states a
position; for another file the caller does, or it is the same box as another one of its shape.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from densejax.data import label_values, ngff, ome_zarr
from densejax.data.formats import Box, LazyArray
from densejax.data.formats_chunked import is_remote
from densejax.data.geometry import IN_FILE, size_text
from densejax.data.volumes import open_volume

Position = tuple[int, int, int]


@dataclass(frozen=True)
class Labelling:
    """One labelling of a volume, by an annotator or by networks.

    Attributes:
      name: what tables and messages call it.
      array: [z, y, x] integers, read where it is sliced.
      voxel_nm: voxel size in nm, (z, y, x).
      path: where it lies, with ``::array`` behind it where the file holds several.
      offset: position of its first voxel, or None where nobody has said so.
      stated: the file says so, not the caller.
      unlabelled: a value that means not labelled, or not predicted, besides all below zero.
      class_names: names of the values 0, 1, ...; empty where nothing states them.
      prediction: ``prediction.json`` of a prediction's folder, else empty.
    """

    name: str
    array: LazyArray
    voxel_nm: tuple[float, float, float]
    path: str
    offset: Position | None = None
    unlabelled: int | None = None
    class_names: tuple[str, ...] = ()
    prediction: dict[str, Any] | None = None
    stated: bool = False

    @property
    def folder(self) -> Path | None:
        """The prediction's folder, for a labelling that is one."""
        return Path(self.path).parent if self.prediction is not None else None


@dataclass(frozen=True)
class Region:
    """The box in which labellings are compared, and where it lies in each of them.

    Attributes:
      start: position of its first voxel.
      shape: (z, y, x), voxels.
    """

    start: Position
    shape: Position

    def slices(self, box: Box, labelling: Labelling) -> Box:
        """Where a box of the region lies in the array of a labelling."""
        assert labelling.offset is not None
        moves = [s - o for s, o in zip(self.start, labelling.offset, strict=True)]
        z, y, x = (slice(b.start + m, b.stop + m) for b, m in zip(box, moves, strict=True))
        return z, y, x


def open_labelling(
    path: str | Path,
    *,
    name: str,
    voxel_nm: Sequence[float] | None = None,
    otherwise_nm: Sequence[float] | None = None,
    offset: Sequence[int] | None = None,
    unlabelled: int | None = None,
    values: Sequence[int] = (),
) -> Labelling:
    """Open a label volume of any format, or a prediction by its folder.

    Args:
      path: what ``open_volume`` reads, with ``::array`` behind it where the file holds several; or
        a folder with ``prediction.json``, whose ``labels.zarr`` is opened.
      name: what messages call it.
      voxel_nm: voxel size in nm, (z, y, x); overrules what the file states.
      otherwise_nm: voxel size in nm, (z, y, x), where the file states none.
      offset: position of its first voxel; overrules what the file states.
      unlabelled: a value that does not count; overrules what the file states.
      values: the value of each class in the file, in the order of the names; empty where it is the
        class's number.

    Raises:
      FileNotFoundError: nothing is there.
      ValueError: as ``open_volume`` and ``label_values.check_values``, the labels are no integers,
        or ``prediction.json`` is broken.
    """
    place, _, dataset = str(path).partition(IN_FILE)
    prediction = _read_prediction(place)
    if prediction is not None:
        place = str(_prediction_folder(place) / "labels.zarr")
        if not Path(place).is_dir():
            raise FileNotFoundError(f"{place}: no such folder; the prediction has not begun")
    volume = open_volume(
        place, voxel_nm=voxel_nm, otherwise_nm=otherwise_nm, dataset=dataset or None
    )
    if volume.array.dtype.kind not in "iub":
        raise ValueError(
            f"{name} {volume.path}: labels are {volume.array.dtype}; expected integers"
        )
    stated = _stated(place) | (prediction or {})
    if unlabelled is None:
        unlabelled = stated.get("not_predicted")
    own = None if volume.offset is None else [round(o) for o in volume.offset]
    if prediction is not None and "offset" in prediction:
        first = prediction.get("volume_offset") or (0, 0, 0)
        own = [int(a) + int(b) for a, b in zip(prediction["offset"], first, strict=True)]
    by_file = offset is None and own is not None
    offset = own if offset is None else offset
    label_values.check_values(values, unlabelled)
    array = label_values.relabelled(
        volume.array,
        values=values,
        unlabelled=unlabelled if values else None,
        name=f"{name} {volume.path}",
    )
    return Labelling(
        name,
        array,
        volume.voxel_nm,
        place + (IN_FILE + dataset if dataset else ""),
        offset=None if offset is None else (int(offset[0]), int(offset[1]), int(offset[2])),
        unlabelled=None if values else unlabelled,
        class_names=tuple(stated.get("class_names") or ()),
        prediction=prediction,
        stated=by_file,
    )


def lay_over(labellings: Sequence[Labelling]) -> tuple[list[Labelling], Region]:
    """Find the box that all labellings cover.

    A labelling without a position takes that of the first one of its shape that has one. The first
    two must overlap where their files state both positions; otherwise one must lie within the
    other. The rest must cover what those two share.

    Args:
      labellings: two or more; usually the prediction, then the truth.

    Returns:
      The labellings, each with its position, and the box.

    Raises:
      ValueError: voxels differ, shapes differ and no position is known, or one lies partly outside
        another; the message names both with shape and position.
    """
    for labelling in labellings[1:]:
        if not np.allclose(labelling.voxel_nm, labellings[0].voxel_nm, rtol=0.01, atol=0):
            raise ValueError(
                f"{_described(labelling)} with voxels of {size_text(labelling.voxel_nm)}, "
                f"{_described(labellings[0])} with {size_text(labellings[0].voxel_nm)} (z, y, x); "
                f"expected the same: name the level that fits behind {IN_FILE}, or give "
                "--voxel_nm for all"
            )
    placed = _place(labellings)
    boxes = [_box(labelling) for labelling in placed]
    low = np.maximum(boxes[0][0], boxes[1][0])
    high = np.minimum(boxes[0][1], boxes[1][1])
    sizes = [np.array(labelling.array.shape) for labelling in placed]
    within = any(np.array_equal(high - low, size) for size in sizes[:2])
    if not within and not (placed[0].stated and placed[1].stated and (high > low).all()):
        raise ValueError(
            f"{_described(placed[0])} and {_described(placed[1])}: expected one of them within "
            "the other, or positions in both files that overlap (--labels_offset gives that of the "
            "labels)"
        )
    for labelling, (first, last) in zip(placed, boxes, strict=True):
        if (first > low).any() or (last < high).any():
            raise ValueError(
                f"{_described(labelling)} does not cover what is compared: {_sizes(high - low)} "
                f"from {_sizes(low, ',')}"
            )
    return placed, Region(_triple(low), _triple(high - low))


def settle_classes(
    labellings: Sequence[Labelling], given: Sequence[str], *, flag: str = "--class_names"
) -> tuple[str, ...]:
    """The names of the classes: those given, else those that a labelling states.

    Raises:
      ValueError: nobody states any, there are fewer than two or more than 254, or a labelling
        states another number of them.
    """
    stated = [labelling for labelling in labellings if labelling.class_names]
    names = tuple(given) or (stated[0].class_names if stated else ())
    if not 2 <= len(names) <= 254:
        raise ValueError(
            f"{len(names)} class names; expected 2 to 254, such as {flag}=background,cell,"
            "mitochondrion (nothing that is compared states them)"
        )
    for labelling in stated:
        if len(labelling.class_names) != len(names):
            raise ValueError(
                f"{labelling.name} {labelling.path} has {len(labelling.class_names)} classes "
                f"({', '.join(labelling.class_names)}); {flag} names {len(names)}: "
                f"{', '.join(names)}"
            )
    return names


def _place(labellings: Sequence[Labelling]) -> list[Labelling]:
    known = [labelling for labelling in labellings if labelling.offset is not None]
    if not known:
        known = [replace(labellings[0], offset=(0, 0, 0))]
    placed = []
    for labelling in labellings:
        if labelling.offset is None:
            like = [k for k in known if k.array.shape == labelling.array.shape]
            if not like:
                raise ValueError(
                    f"{_described(labelling)} and {_described(known[0])}: shapes differ, and "
                    f"nothing says where {labelling.name} lies (--labels_offset=z,y,x gives the "
                    "position of the labels)"
                )
            labelling = replace(labelling, offset=like[0].offset)
        placed.append(labelling)
    return placed


def _box(labelling: Labelling) -> tuple[np.ndarray, np.ndarray]:
    low = np.array(labelling.offset)
    return low, low + labelling.array.shape


def _described(labelling: Labelling) -> str:
    where = "" if labelling.offset is None else f" at offset {_sizes(labelling.offset, ',')}"
    return f"{labelling.name} {labelling.path} is {_sizes(labelling.array.shape)}{where}"


def _sizes(values: Any, between: str = " x ") -> str:
    return between.join(str(int(value)) for value in values)


def _triple(values: np.ndarray) -> Position:
    return int(values[0]), int(values[1]), int(values[2])


def _prediction_folder(place: str) -> Path:
    return Path(place).parent if Path(place).name == "labels.zarr" else Path(place)


def _read_prediction(place: str) -> dict[str, Any] | None:
    """``prediction.json`` of a prediction's folder, or of the folder that a labels.zarr is in."""
    if is_remote(place):
        return None
    file = _prediction_folder(place) / "prediction.json"
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file}: expected a dictionary, found {type(found).__name__}")
    return found


def _stated(place: str) -> dict[str, Any]:
    """What an OME-Zarr image of ours says of itself: class names, the value that does not count."""
    if is_remote(place) or not Path(place).is_dir():
        return {}
    try:
        return dict(ome_zarr.read_attributes(place).get(ngff.OURS, {}))
    except (FileNotFoundError, ValueError):  # an array without a group says nothing
        return {}
