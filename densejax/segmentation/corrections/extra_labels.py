"""Corrected labels, kept: what annotators gave back of a volume, merged, with its whole history.

A corrections' folder belongs to one volume and one set of classes and lives as long as that volume
is being corrected:

    corrections.json   the volume, its shape, voxels and classes
    export_0001/       blocks given to an annotator (``correction_export``)
    collected/0001/    one taking back: ``collected.json``, and of each block the corrected voxels

Nothing in it is written over; a taking back appears by one rename. Where two corrections of a voxel
differ, the later counts. A block of an export that is taken back again replaces what that export
gave for it before: so a voxel that the annotator set back is no longer corrected.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from densejax.ensembles.predict import Sizes
from densejax.io import check_same, write_json
from densejax.segmentation.corrections.files import NOT_LOOKED_AT
from densejax.typing import UNLABELLED


@dataclass(frozen=True)
class Subject:
    """What is corrected.

    Attributes:
      volume: path or URL of the image volume.
      dataset: the array in it, or None.
      shape: (z, y, x) of the whole volume.
      voxel_nm: (z, y, x), nm.
      class_names: of the labels 0, 1, ...
    """

    volume: str
    dataset: str | None
    shape: Sizes
    voxel_nm: tuple[float, float, float]
    class_names: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON keeps them."""
        return json.loads(json.dumps(asdict(self)))


@dataclass(frozen=True)
class CorrectedBlock:
    """One block that came back.

    Attributes:
      path: its file, uint8 [z, y, x], 255 where not corrected.
      name: such as ``block_0001``, within its export.
      export: digest of the export's list.
      offset: (z, y, x) of its first voxel in the volume.
      shape: (z, y, x).
      digest: of its voxels.
      mean: of the volume's grey levels, as the prediction took it.
      deviation: of the grey levels.
    """

    path: Path
    name: str
    export: str
    offset: Sizes
    shape: Sizes
    digest: str
    mean: float
    deviation: float

    def read(self) -> np.ndarray:
        """Corrected labels, [z, y, x] int32, -1 where not corrected.

        Raises:
          ValueError: the file is not the one that was written.
        """
        stored = np.asarray(tifffile.imread(self.path)).reshape(self.shape)
        if digest_of(stored) != self.digest:
            raise ValueError(f"{self.path}: damaged; expected voxels of digest {self.digest[:12]}")
        return np.where(stored == NOT_LOOKED_AT, UNLABELLED, stored.astype(np.int32))


@dataclass(frozen=True)
class Corrections:
    """All corrections of a volume that count, in the order in which they came."""

    subject: Subject
    collections: tuple[str, ...]
    blocks: tuple[CorrectedBlock, ...]


def digest_of(stored: np.ndarray) -> str:
    """Digest of a block's voxels, uint8."""
    return hashlib.sha256(np.ascontiguousarray(stored, np.uint8).tobytes()).hexdigest()


def read_subject(source: Path) -> Subject:
    """The subject in ``corrections.json``, or in the ``blocks.json`` of an export.

    Raises:
      FileNotFoundError: there is no such file.
    """
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file; expected a folder of corrections")
    fields = json.loads(source.read_text())
    fields = fields.get("subject", fields)
    return Subject(
        **fields | {name: tuple(fields[name]) for name in ("shape", "voxel_nm", "class_names")}
    )


def check_subject(workdir: Path, subject: Subject) -> None:
    """Refuse corrections of another volume, or with other classes, in one folder.

    Raises:
      ValueError: a field differs; all such are named with both values.
    """
    path = workdir / "corrections.json"
    if path.exists():
        check_same(path, read_subject(path).as_json(), subject.as_json(), what="correction")


def start_corrections(workdir: Path, subject: Subject) -> None:
    """Begin or go on with a corrections' folder.

    Raises:
      ValueError: as `check_subject`.
    """
    check_subject(workdir, subject)
    path = workdir / "corrections.json"
    if not path.exists():
        write_json(path, subject.as_json())


def next_folder(workdir: Path, kind: str) -> Path:
    """``export_0001`` or ``collected/0001``, or the next that is not there."""
    prefix = workdir / "collected" if kind == "collected" else workdir / "export_"
    number = 1
    while True:
        name = f"{number:04d}"
        folder = prefix / name if kind == "collected" else Path(f"{prefix}{name}")
        if not folder.exists():
            return folder
        number += 1


def taken_boxes(workdir: Path) -> list[tuple[Sizes, Sizes]]:
    """Offset and shape of every block that was exported into the folder or collected in it."""
    exported = workdir.glob("export_*/blocks.json")
    collected = workdir.glob("collected/[0-9]*/collected.json")
    boxes = [
        (tuple(block["offset"]), tuple(block["shape"]))
        for path in [*sorted(exported), *sorted(collected)]
        for block in json.loads(path.read_text())["blocks"]
    ]
    return list(dict.fromkeys(boxes))


def read_corrections(workdir: Path, *, collections: Sequence[str] | None = None) -> Corrections:
    """The corrections in a folder.

    Args:
      workdir: the corrections' folder.
      collections: names of the takings back that count, such as ``0001``; None is all of them.

    Raises:
      FileNotFoundError: the folder holds no corrections, or one of ``collections`` is gone.
    """
    subject = read_subject(workdir / "corrections.json")
    found = sorted(path.parent.name for path in workdir.glob("collected/[0-9]*/collected.json"))
    names = found if collections is None else list(collections)
    gone = sorted(set(names) - set(found))
    if gone:
        raise FileNotFoundError(f"{workdir / 'collected'}: no {', '.join(gone)}; found {found}")
    counting: dict[tuple[str, str], CorrectedBlock] = {}
    for name in names:
        folder = workdir / "collected" / name
        for fields in json.loads((folder / "collected.json").read_text())["blocks"]:
            key = (fields["export"], fields["name"])
            counting.pop(key, None)  # so that a block taken back again comes last
            counting[key] = CorrectedBlock(
                path=folder / fields["file"],
                name=fields["name"],
                export=fields["export"],
                offset=tuple(fields["offset"]),
                shape=tuple(fields["shape"]),
                digest=fields["digest"],
                mean=fields["mean"],
                deviation=fields["deviation"],
            )
    return Corrections(subject, tuple(names), tuple(counting.values()))


def corrected_box(
    blocks: Sequence[CorrectedBlock], offset: Sequence[int], shape: Sequence[int]
) -> np.ndarray:
    """Corrected labels in a box of the volume; where corrections differ, the later counts.

    Args:
      blocks: in the order in which they came.
      offset: (z, y, x) of the box's first voxel.
      shape: (z, y, x) of the box.

    Returns:
      int32 [*shape], -1 where not corrected.
    """
    labels = np.full(tuple(shape), UNLABELLED, np.int32)
    for block in blocks:
        shared = _shared_box(offset, shape, block.offset, block.shape)
        if shared is not None:
            inside, part = shared
            newer = block.read()[part]
            labels[inside] = np.where(newer >= 0, newer, labels[inside])
    return labels


def labels_once(blocks: Sequence[CorrectedBlock]) -> list[np.ndarray]:
    """Each block's labels without the voxels that a later block corrects again.

    Returns:
      One int32 [z, y, x] a block, -1 where not corrected or corrected again.
    """
    labels = [block.read() for block in blocks]
    for place, block in enumerate(blocks):
        for later in range(place + 1, len(blocks)):
            shared = _shared_box(
                block.offset, block.shape, blocks[later].offset, blocks[later].shape
            )
            if shared is not None:
                inside, part = shared
                again = labels[later][part] >= 0
                labels[place][inside] = np.where(again, UNLABELLED, labels[place][inside])
    return labels


def _shared_box(
    offset: Sequence[int], shape: Sequence[int], other: Sequence[int], size: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """Where two boxes overlap, in voxels of the one and of the other; None where they don't."""
    inside, part = [], []
    for at, n, there, m in zip(offset, shape, other, size, strict=True):
        low, high = max(at, there), min(at + n, there + m)
        if low >= high:
            return None
        inside.append(slice(low - at, high - at))
        part.append(slice(low - there, high - there))
    return tuple(inside), tuple(part)
