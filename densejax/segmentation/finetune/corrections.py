"""Corrected labels of a volume: taken back from annotators, checked, kept, and merged.

A corrections' folder belongs to one volume and one set of classes and lives as long as that volume
is being corrected:

    corrections.json   the volume, its shape, voxels and classes
    export_0001/       blocks given to an annotator (``export.py``)
    collected/0001/    one taking back: ``collected.json``, and of each block the corrected voxels

Nothing in it is written over; a taking back appears by one rename. Where two corrections of a voxel
differ, the later counts. A block of an export that is taken back again replaces what that export
gave for it before: so a voxel that the annotator set back is no longer corrected.

Which voxels of a block count: with a mask beside the labels, those where it is not 0; of a block
that ``done.txt`` names, or in which a label was changed, all; nothing of a block that nobody
touched. A voxel that holds 255 never counts. With ``changed_only`` no label that the annotator left
as it was counts, unless a mask or ``done.txt`` says so: but changed voxels are those that the
ensemble had wrong, and one that trains on with them alone unlearns what it had right.
"""

import hashlib
import itertools
import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from densejax.data.formats_images import open_tiff
from densejax.data.windows import Sizes
from densejax.io import check_same, publishing, write_json
from densejax.typing import UNLABELLED

NOT_LOOKED_AT = 255
# In ImageJ's *Info* of a stack, so that two blocks that were mixed up are noticed.
PLACE = "densejax block at z,y,x = {},{},{}"
_PLACE = re.compile(PLACE.format(*[r"(\d+)"] * 3))


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


@dataclass(frozen=True)
class Returned:
    """One block as it came back.

    Attributes:
      name: such as ``block_0001``.
      offset: (z, y, x) of its first voxel in the volume.
      labels: [z, y, x] int32, -1 where not corrected; None for a block that is not there.
      rule: which voxels count: ``mask``, ``done``, ``whole block``, ``changed``,
        ``untouched`` or ``missing``.
      changed: voxels whose label is not the predicted one.
    """

    name: str
    offset: Sizes
    labels: np.ndarray | None
    rule: str
    changed: int = 0

    @property
    def corrected(self) -> int:
        """Voxels that count."""
        return 0 if self.labels is None else int(np.sum(self.labels >= 0))


@dataclass(frozen=True)
class Collected:
    """What a taking back came to.

    Attributes:
      blocks: all blocks of the export.
      known: names of those that are no different from what was taken back before.
      again: voxels that had been corrected before, by block name.
      conflicts: those of them that had another label, by block name.
      folder: where it is kept; None where nothing was new.
    """

    blocks: tuple[Returned, ...]
    known: tuple[str, ...]
    again: dict[str, int]
    conflicts: dict[str, int]
    folder: Path | None


def digest_of(stored: np.ndarray) -> str:
    """Digest of a block's voxels, uint8."""
    return hashlib.sha256(np.ascontiguousarray(stored, np.uint8).tobytes()).hexdigest()


def check_subject(workdir: Path, subject: Subject) -> None:
    """Refuse corrections of another volume, or with other classes, in one folder.

    Raises:
      ValueError: a field differs; all such are named with both values.
    """
    path = workdir / "corrections.json"
    if path.exists():
        check_same(path, _read_subject(path).as_json(), subject.as_json(), what="correction")


def start_corrections(workdir: Path, subject: Subject) -> None:
    """Begin or go on with a corrections' folder.

    Raises:
      ValueError: as `check_subject`.
    """
    check_subject(workdir, subject)
    path = workdir / "corrections.json"
    if not path.exists():
        write_json(path, subject.as_json())


@contextmanager
def new_folder(workdir: Path, pattern: str) -> Iterator[tuple[Path, Path]]:
    """A folder to write in, and its place by the next free number, which it takes when it is whole.

    Args:
      workdir: the corrections' folder.
      pattern: of the name, such as ``export_{:04d}``; what a kill left there is cleared away.
    """
    places = (workdir / pattern.format(number) for number in itertools.count(1))
    folder = next(place for place in places if not place.exists())
    with publishing(folder, alone=True) as partial:
        yield partial, folder


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
    subject = _read_subject(workdir / "corrections.json")
    found = sorted(path.parent.name for path in workdir.glob("collected/[0-9]*/collected.json"))
    names = found if collections is None else list(collections)
    gone = sorted(set(names) - set(found))
    if gone:
        raise FileNotFoundError(f"{workdir / 'collected'}: no {', '.join(gone)}; found {found}")
    counting: dict[tuple[str, str], CorrectedBlock] = {}
    for name in names:
        folder = workdir / "collected" / name
        for block in json.loads((folder / "collected.json").read_text())["blocks"]:
            key = (block["export"], block["name"])
            counting.pop(key, None)  # so that a block taken back again comes last
            counting[key] = CorrectedBlock(
                path=folder / block["file"],
                offset=tuple(block["offset"]),
                shape=tuple(block["shape"]),
                **{n: block[n] for n in ("name", "export", "digest", "mean", "deviation")},
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
    for (i, block), (j, later) in itertools.combinations(enumerate(blocks), 2):
        shared = _shared_box(block.offset, block.shape, later.offset, later.shape)
        if shared is not None:
            inside, part = shared
            labels[i][inside] = np.where(labels[j][part] >= 0, UNLABELLED, labels[i][inside])
    return labels


def collect_blocks(folder: Path, workdir: Path, *, changed_only: bool = False) -> Collected:
    """Take an export back into the corrections' folder; nothing there is written over.

    Args:
      folder: the export's, or a copy of it.
      workdir: the corrections' folder; begun if it is not there.
      changed_only: whether only the changed voxels of a changed block count.

    Returns:
      What came of it. A block that is the same as when it was taken back last is not kept twice.

    Raises:
      FileNotFoundError: ``blocks.json`` or the copy of a predicted block is missing.
      ValueError: the export is of another volume or has other classes; a file has another shape or
        offset, no integers or a label out of range; a name in ``done.txt`` is unknown; a block does
        not lie in the volume; or no voxel is corrected at all. The message names the file, what was
        found and what was expected.
    """
    path = folder / "blocks.json"
    subject = _read_subject(path)
    check_subject(workdir, subject)
    about = json.loads(path.read_text())
    returned = _read_returned(folder, about["blocks"], subject, changed_only)
    start_corrections(workdir, subject)
    export = hashlib.sha256(path.read_bytes()).hexdigest()
    before = read_corrections(workdir).blocks
    digests = {block.name: block.digest for block in before if block.export == export}
    known: list[str] = []
    fresh: dict[str, np.ndarray] = {}
    rows: list[dict[str, Any]] = []
    for block in returned:
        # A block that is as predicted again must still replace what its export gave before.
        if block.labels is None or not (block.corrected or block.name in digests):
            continue
        stored = np.where(block.labels < 0, NOT_LOOKED_AT, block.labels).astype(np.uint8)
        digest = digest_of(stored)
        if digests.get(block.name) == digest:
            known.append(block.name)
            continue
        earlier = corrected_box(before, block.offset, stored.shape)
        both = (earlier >= 0) & (block.labels >= 0)
        fresh[f"{block.name}.tif"] = stored
        rows.append(
            {
                "name": block.name,
                "file": f"{block.name}.tif",
                "offset": list(block.offset),
                "shape": list(stored.shape),
                "rule": block.rule,
                "corrected": block.corrected,
                "changed": block.changed,
                "digest": digest,
                "mean": about["mean"],
                "deviation": about["deviation"],
                "export": export,
                "again": int(both.sum()),
                "conflicts": int(np.sum(both & (earlier != block.labels))),
            }
        )
    kept = None
    if fresh:
        with new_folder(workdir, "collected/{:04d}") as (partial, kept):
            for file, stored in fresh.items():
                tifffile.imwrite(
                    partial / file, stored, compression="zlib", photometric="minisblack"
                )
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            listed = {"from": str(folder.absolute()), "taken_back": now, "blocks": rows}
            (partial / "collected.json").write_text(json.dumps(listed, indent=1) + "\n")
    again, conflicts = ({row["name"]: row[n] for row in rows} for n in ("again", "conflicts"))
    return Collected(tuple(returned), tuple(known), again, conflicts, kept)


def _read_subject(source: Path) -> Subject:
    """The subject in ``corrections.json``, or in the ``blocks.json`` of an export."""
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file; expected a folder of corrections")
    fields = json.loads(source.read_text())
    fields = fields.get("subject", fields)
    return Subject(
        **fields | {name: tuple(fields[name]) for name in ("shape", "voxel_nm", "class_names")}
    )


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


def _read_returned(
    folder: Path, listed: Sequence[dict[str, Any]], subject: Subject, changed_only: bool
) -> list[Returned]:
    """Read and check all blocks of an export that came back, in the order of its list."""
    for block in listed:
        ends = [o + n for o, n in zip(block["offset"], block["shape"], strict=True)]
        if min(block["offset"]) < 0 or any(e > n for e, n in zip(ends, subject.shape, strict=True)):
            raise ValueError(
                f"{folder / 'blocks.json'}: {block['name']} of shape {tuple(block['shape'])} at "
                f"offset {tuple(block['offset'])}; expected a block inside the volume of "
                f"{subject.shape}"
            )
    path, names = folder / "done.txt", [block["name"] for block in listed]
    lines = path.read_text().splitlines() if path.exists() else []
    done = {line.strip() for line in lines if line.strip()}
    unknown = sorted(done - set(names))
    if unknown:
        raise ValueError(f"{path}: {', '.join(unknown)}; expected names from {names[0]} on")
    classes = len(subject.class_names)
    returned = [_read_block(folder, block, classes, done, changed_only) for block in listed]
    if not any(block.corrected for block in returned):
        missing = sum(block.labels is None for block in returned)
        raise ValueError(
            f"{folder}: no corrected voxel in {len(returned)} blocks ({missing} have no labels "
            "file, the rest are as predicted): expected at least one label that was changed, a "
            "mask that is not 0, or the names of blocks that are right as they are in "
            f"{folder / 'done.txt'}"
        )
    return returned


def _read_block(
    folder: Path, block: dict[str, Any], classes: int, done: set[str], changed_only: bool
) -> Returned:
    name, offset = block["name"], tuple(block["offset"])
    place: dict[str, Any] = {"shape": tuple(block["shape"]), "offset": offset}
    path, mask = _stack(folder, f"{name}_labels"), _stack(folder, f"{name}_mask")
    if path is None:
        if mask is not None or name in done:
            raise FileNotFoundError(f"{folder / name}_labels.tif: no such file, but a mask or done")
        return Returned(name, offset, None, "missing")
    labels = _read_labels(path, classes=classes, **place)
    copy = folder / "predicted" / f"{name}_labels.tif"
    if not copy.is_file():
        raise FileNotFoundError(f"{copy}: no such file; what was changed is told by it")
    predicted = _read_integers(copy, **place)
    if digest_of(predicted) != block["predicted"]:
        raise ValueError(f"{copy}: not the predicted labels any more; expected those exported")
    changed = (labels >= 0) & (labels != predicted.astype(np.int32))
    if mask is not None:
        counts, rule = _read_integers(mask, **place) != 0, "mask"
    elif name in done:
        counts, rule = np.ones(labels.shape, bool), "done"
    elif not changed.any():
        counts, rule = changed, "untouched"
    elif changed_only:
        counts, rule = changed, "changed"
    else:
        counts, rule = np.ones(labels.shape, bool), "whole block"
    kept = np.where(counts, labels, UNLABELLED).astype(np.int32)
    return Returned(name, offset, kept, rule, int(changed.sum()))


def _stack(folder: Path, stem: str) -> Path | None:
    paths = (folder / f"{stem}{suffix}" for suffix in (".tif", ".tiff"))
    return next((path for path in paths if path.exists()), None)


def _read_labels(path: Path, *, shape: Sizes, offset: Sequence[int], classes: int) -> np.ndarray:
    """Labels that an annotator gives back, int32 in 0..c-1; 255 and -1 are -1."""
    found = _read_integers(path, shape=shape, offset=offset)
    labels = np.where(found == NOT_LOOKED_AT, UNLABELLED, found.astype(np.int64))
    wrong = (labels < UNLABELLED) | (labels >= classes)
    if wrong.any():
        z, y, x = (int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(
            f"{path}: label {int(labels[z, y, x])} at (z, y, x) {(z, y, x)}, and {int(wrong.sum())}"
            f" such voxels in all; expected 0..{classes - 1}, or {NOT_LOOKED_AT} for not looked at"
        )
    return labels.astype(np.int32)


def _read_integers(path: Path, *, shape: Sizes, offset: Sequence[int]) -> np.ndarray:
    """A stack of integers or booleans; its place is compared where the file states one."""
    found = open_tiff(path).array
    if found.shape != tuple(shape):
        raise ValueError(f"{path}: shape {found.shape}; expected the block's {tuple(shape)}")
    if found.dtype.kind not in "iub":
        raise ValueError(
            f"{path}: voxels are {found.dtype}; expected integers (in ImageJ: Image > Type > "
            "8-bit, without scaling)"
        )
    with tifffile.TiffFile(path) as tif:
        info = (tif.imagej_metadata or {}).get("Info", "") if tif.is_imagej else ""
    match = _PLACE.search(str(info))
    stated = None if match is None else tuple(int(text) for text in match.groups())
    if stated is not None and stated != tuple(offset):
        raise ValueError(
            f"{path}: the block at {stated} (z, y, x) is in this file; expected that at "
            f"{tuple(int(o) for o in offset)}"
        )
    return found[...]
