"""Take back what an annotator corrected: which voxels count, checked before anything is kept.

The rule, block by block: with a mask beside the labels, the voxels where it is not 0; of a block
that ``done.txt`` names, or in which a label was changed, all; nothing of a block that nobody
touched. A voxel that holds 255 never counts. With ``changed_only`` no label that the annotator left
as it was counts, unless a mask or ``done.txt`` says so: but changed voxels are those that the
ensemble had wrong, and one that trains on with them alone unlearns what it had right.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from densejax.ensembles.predict import Sizes
from densejax.io import publishing
from densejax.segmentation.corrections import extra_labels as corrections
from densejax.segmentation.corrections.files import NOT_LOOKED_AT, read_integers, read_labels
from densejax.typing import UNLABELLED

SUFFIXES = (".tif", ".tiff")


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


def read_returned(
    folder: Path, *, classes: int, shape: Sequence[int], changed_only: bool = False
) -> list[Returned]:
    """Read and check all blocks of an export that came back.

    Args:
      folder: the export's, or a copy of it.
      classes: number of classes, c.
      shape: (z, y, x) of the volume.
      changed_only: whether only the changed voxels of a changed block count.

    Returns:
      One entry a block of the list, in its order.

    Raises:
      FileNotFoundError: ``blocks.json`` or the copy of a predicted block is missing.
      ValueError: a file has another shape or offset, no integers or a label out of range; a name in
        ``done.txt`` is unknown; a block does not lie in the volume; or no voxel is corrected at
        all. The message names the file, what was found and what was expected.
    """
    path = folder / "blocks.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected the folder of an export")
    listed = json.loads(path.read_text())["blocks"]
    for block in listed:
        ends = [o + n for o, n in zip(block["offset"], block["shape"], strict=True)]
        if min(block["offset"]) < 0 or any(e > n for e, n in zip(ends, shape, strict=True)):
            raise ValueError(
                f"{path}: {block['name']} of shape {tuple(block['shape'])} at offset "
                f"{tuple(block['offset'])}; expected a block inside the volume of {tuple(shape)}"
            )
    done = _done(folder, [block["name"] for block in listed])
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


def _done(folder: Path, names: Sequence[str]) -> set[str]:
    path = folder / "done.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    found = {line.strip() for line in lines if line.strip()}
    unknown = sorted(found - set(names))
    if unknown:
        raise ValueError(f"{path}: {', '.join(unknown)}; expected names from {names[0]} on")
    return found


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
    labels = read_labels(path, classes=classes, **place)
    predicted = _predicted(folder, block)
    changed = (labels >= 0) & (labels != predicted)
    if mask is not None:
        counts, rule = read_integers(mask, **place) != 0, "mask"
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
    return next((folder / f"{stem}{s}" for s in SUFFIXES if (folder / f"{stem}{s}").exists()), None)


def _predicted(folder: Path, block: dict[str, Any]) -> np.ndarray:
    path = folder / "predicted" / f"{block['name']}_labels.tif"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; what was changed is told by it")
    stored = read_integers(path, shape=tuple(block["shape"]), offset=block["offset"])
    if corrections.digest_of(stored) != block["predicted"]:
        raise ValueError(f"{path}: not the predicted labels any more; expected those exported")
    return stored.astype(np.int32)


def collect_blocks(folder: Path, workdir: Path, *, changed_only: bool = False) -> Collected:
    """Take an export back into the corrections' folder; nothing there is written over.

    Args:
      folder: the export's, or a copy of it.
      workdir: the corrections' folder; begun if it is not there.
      changed_only: whether only the changed voxels of a changed block count.

    Returns:
      What came of it. A block that is the same as when it was taken back last is not kept twice.

    Raises:
      FileNotFoundError: as `read_returned`.
      ValueError: as `read_returned`, or the export is of another volume or has other classes.
    """
    path = folder / "blocks.json"
    subject = corrections.read_subject(path)
    corrections.check_subject(workdir, subject)
    returned = read_returned(
        folder,
        classes=len(subject.class_names),
        shape=subject.shape,
        changed_only=changed_only,
    )
    corrections.start_corrections(workdir, subject)
    export = hashlib.sha256(path.read_bytes()).hexdigest()
    before = corrections.read_corrections(workdir).blocks
    digests = {block.name: block.digest for block in before if block.export == export}
    known: list[str] = []
    fresh: list[tuple[Returned, np.ndarray]] = []
    for block in returned:
        # A block that is as predicted again must still replace what its export gave before.
        if block.labels is None or not (block.corrected or block.name in digests):
            continue
        stored = np.where(block.labels < 0, NOT_LOOKED_AT, block.labels).astype(np.uint8)
        if digests.get(block.name) == corrections.digest_of(stored):
            known.append(block.name)
        else:
            fresh.append((block, stored))
    again, conflicts = _compare(before, [block for block, _ in fresh])
    kept = None
    if fresh:
        rows = {
            block.name: {"export": export}
            | {"again": again[block.name], "conflicts": conflicts[block.name]}
            for block, _ in fresh
        }
        kept = _keep_all(workdir, folder, fresh, rows)
    return Collected(tuple(returned), tuple(known), again, conflicts, kept)


def _compare(
    before: Sequence[corrections.CorrectedBlock], fresh: Sequence[Returned]
) -> tuple[dict[str, int], dict[str, int]]:
    """Voxels of each block that were corrected before, and those of them with another label."""
    again, conflicts = {}, {}
    for block in fresh:
        assert block.labels is not None
        earlier = corrections.corrected_box(before, block.offset, block.labels.shape)
        both = (earlier >= 0) & (block.labels >= 0)
        again[block.name] = int(both.sum())
        conflicts[block.name] = int(np.sum(both & (earlier != block.labels)))
    return again, conflicts


def _keep_all(
    workdir: Path,
    source: Path,
    fresh: Sequence[tuple[Returned, np.ndarray]],
    rows: dict[str, dict[str, Any]],
) -> Path:
    about = json.loads((source / "blocks.json").read_text())
    kept = corrections.next_folder(workdir, "collected")
    with publishing(kept, alone=True) as partial:
        listed = {
            "from": str(source.absolute()),
            "taken_back": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "blocks": [
                _keep(partial, block, stored, about) | rows[block.name] for block, stored in fresh
            ],
        }
        (partial / "collected.json").write_text(json.dumps(listed, indent=1) + "\n")
    return kept


def _keep(
    folder: Path, block: Returned, stored: np.ndarray, about: dict[str, Any]
) -> dict[str, Any]:
    file = f"{block.name}.tif"
    tifffile.imwrite(folder / file, stored, compression="zlib", photometric="minisblack")
    return {
        "name": block.name,
        "file": file,
        "offset": list(block.offset),
        "shape": list(stored.shape),
        "rule": block.rule,
        "corrected": block.corrected,
        "changed": block.changed,
        "digest": corrections.digest_of(stored),
        "mean": about["mean"],
        "deviation": about["deviation"],
    }
