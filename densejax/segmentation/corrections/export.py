"""From a prediction to a folder of blocks that an annotator corrects, the most doubtful first."""

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from densejax.data.formats import LazyArray
from densejax.data.formats_chunked import is_remote
from densejax.data.volumes import Volume, open_volume
from densejax.ensembles.predict import Sizes
from densejax.io import publishing
from densejax.plots.style import class_colours
from densejax.segmentation.corrections import extra_labels as corrections
from densejax.segmentation.corrections.blocks import ScoredBlocks, choose_blocks, score_blocks
from densejax.segmentation.corrections.files import NOT_LOOKED_AT, write_stack

By = Literal["disagreement", "entropy", "random"]

README = """Blocks to correct, the most doubtful first: blocks.csv lists them.

block_0001_image.tif   what was imaged (open it in ImageJ, napari or any other tool)
block_0001_labels.tif  what was predicted: correct this file and save it in its place, as integers
                       of the same size

{classes}
  {nothing} = not looked at: never counts

Which voxels count when the folder is taken back (experiments.correct --collect=THIS_FOLDER):
- of a block named in done.txt (one name a line, such as block_0001): all but {nothing}
- of a block with block_0001_mask.tif beside it: those where the mask is not 0, but for {nothing}
- of any other block in which a label was changed: all but {nothing} (with --changed_only: the
  changed ones)
A block that is right as it is counts when it is named in done.txt. The folder may be taken back
as often as you like while you work; the files in predicted/ are for comparison, leave them alone.
"""


@dataclass(frozen=True)
class Predicted:
    """A prediction's folder, opened.

    Attributes:
      folder: OUT of ``experiments.predict``.
      about: its ``prediction.json``.
      labels: [z, y, x] uint8.
      doubt: [z, y, x] uint8, disagreement or entropy, 255 is one.
      image: the volume that was predicted, whole.
      offset: (z, y, x) of the prediction's first voxel in the volume.
    """

    folder: Path
    about: dict[str, Any]
    labels: LazyArray
    doubt: LazyArray
    image: Volume
    offset: Sizes


def open_predicted(folder: Path, *, by: By, image: str = "") -> Predicted:
    """Open what an export needs of a prediction.

    Args:
      folder: the prediction's.
      by: what blocks are ranked by.
      image: the volume, where it does not lie where the prediction found it.

    Raises:
      FileNotFoundError: there is no prediction in the folder, or the volume is not where it was.
      ValueError: the volume's shape or voxels are not the prediction's, or one network alone is to
        be ranked by disagreement.
    """
    path = folder / "prediction.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected the folder of a prediction")
    about = json.loads(path.read_text())
    if by == "disagreement" and len(about["members"]) < 2:
        raise ValueError(
            f"{path}: {len(about['members'])} member, which never disagrees with itself; use "
            "--by=entropy"
        )
    where = image or about["volume"]
    dataset = None if image else about.get("dataset") or None
    try:
        volume = open_volume(where, voxel_nm=about["voxel_nm"], dataset=dataset)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path}: the volume was predicted from {about['volume']}, and {error}; name it in "
            "--image"
        ) from error
    offset = tuple(int(o) for o in about["offset"])
    ends = [o + n for o, n in zip(offset, about["shape"], strict=True)]
    if any(end > size for end, size in zip(ends, volume.array.shape, strict=True)):
        raise ValueError(
            f"{where}: shape {volume.array.shape}; expected at least {tuple(ends)}, where the "
            f"prediction {folder} ends"
        )
    labels = _level(folder / "labels.zarr", about)
    doubt = labels if by == "random" else _level(folder / f"{by}.zarr", about)
    return Predicted(folder, about, labels, doubt, volume, (offset[0], offset[1], offset[2]))


def _level(path: Path, about: dict[str, Any]) -> LazyArray:
    array = open_volume(path, voxel_nm=about["voxel_nm"]).array
    if array.shape != tuple(about["shape"]):
        raise ValueError(f"{path}: shape {array.shape}; expected {tuple(about['shape'])}")
    return array


def export_blocks(
    predicted: Predicted,
    workdir: Path,
    *,
    count: int,
    shape: Sizes,
    by: By,
    seed: int = 0,
    least_distance_nm: float = 0.0,
    progress: Callable[[Iterator[Any], int], Iterator[Any]] = lambda items, total: items,
) -> Path:
    """Write the most doubtful blocks that nobody has yet, with list, images and labels.

    Blocks that overlap one that is collected, or exported before into the same folder, are passed
    over. The folder appears by one rename, when it is whole.

    Args:
      predicted: the prediction.
      workdir: the corrections' folder.
      count: blocks to export; fewer where there are no more.
      shape: (z, y, x) of a block in voxels.
      by: ``disagreement``, ``entropy``, or ``random`` for a fair sample of the volume.
      seed: of the random order.
      least_distance_nm: between the centres of two blocks.
      progress: as ``score_blocks``.

    Returns:
      The export's folder, ``workdir/export_0001`` and on.

    Raises:
      ValueError: the corrections in the folder are of another volume or of other classes, a block
        is larger than the prediction, or no block is left.
    """
    if count < 1:
        raise ValueError(f"--export={count}; expected one block or more")
    if least_distance_nm < 0:
        raise ValueError(f"--distance_nm={least_distance_nm}; expected 0 or more")
    subject = _subject(predicted)
    corrections.check_subject(workdir, subject)
    blocks = score_blocks(
        predicted.doubt,
        predicted.labels,
        shape=shape,
        not_predicted=predicted.about["not_predicted"],
        progress=progress,
    )
    scores = blocks.scores
    if by == "random":
        order = np.random.default_rng(seed).random(len(scores))
        blocks = ScoredBlocks(blocks.corners, np.where(np.isnan(scores), np.nan, order), shape)
    taken = [
        ([o - p for o, p in zip(offset, predicted.offset, strict=True)], size)
        for offset, size in corrections.taken_boxes(workdir)
    ]
    chosen = choose_blocks(
        blocks,
        count=count,
        voxel_nm=subject.voxel_nm,
        taken=taken,
        least_distance_nm=least_distance_nm,
    )
    if not len(chosen):
        raise ValueError(
            f"{predicted.folder}: none of {len(scores)} blocks of {shape} voxels is left: "
            f"{int(np.isnan(scores).sum())} hold voxels that were not predicted, the rest overlap "
            f"the {len(taken)} blocks that are exported or collected, or lie too near them"
        )
    corrections.start_corrections(workdir, subject)
    corners = [tuple(int(c) for c in blocks.corners[index]) for index in chosen]
    doubts = [float("nan") if by == "random" else float(scores[index]) for index in chosen]
    folder = corrections.next_folder(workdir, "export")
    with publishing(folder, alone=True) as partial:
        rows = [
            _write_block(partial, f"block_{rank:04d}", predicted, subject, corner, shape)
            | {"rank": rank, "by": by, "score": None if by == "random" else doubt}
            for rank, (corner, doubt) in enumerate(zip(corners, doubts, strict=True), 1)
        ]
        _write_lists(partial, rows, predicted, subject)
    return folder


def _subject(predicted: Predicted) -> corrections.Subject:
    about = predicted.about
    path = predicted.image.path
    return corrections.Subject(
        volume=path if is_remote(path) else str(Path(path).absolute()),
        dataset=(about.get("dataset") or None) if path == str(about["volume"]) else None,
        shape=predicted.image.array.shape,
        voxel_nm=predicted.image.voxel_nm,
        class_names=tuple(about["class_names"]),
    )


def _write_block(
    folder: Path,
    name: str,
    predicted: Predicted,
    subject: corrections.Subject,
    corner: Sequence[int],
    shape: Sizes,
) -> dict[str, Any]:
    box = tuple(slice(c, c + n) for c, n in zip(corner, shape, strict=True))
    offset = [c + o for c, o in zip(corner, predicted.offset, strict=True)]
    whole = tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))
    labels = np.asarray(predicted.labels[box])
    common: dict[str, Any] = {"voxel_nm": subject.voxel_nm, "offset": offset}
    colours = class_colours(len(subject.class_names))
    write_stack(folder / f"{name}_image.tif", predicted.image.array[whole], **common)
    (folder / "predicted").mkdir(exist_ok=True)
    for place in (folder, folder / "predicted"):
        write_stack(place / f"{name}_labels.tif", labels, colours=colours, **common)
    counts = np.bincount(labels.ravel(), minlength=len(subject.class_names))
    return {
        "name": name,
        "offset": offset,
        "shape": list(shape),
        "centre_nm": [
            float((o + n / 2) * v) for o, n, v in zip(offset, shape, subject.voxel_nm, strict=True)
        ],
        "class_shares": [
            float(counts[label] / labels.size) for label in range(len(subject.class_names))
        ],
        "predicted": hashlib.sha256(labels.astype(np.uint8).tobytes()).hexdigest(),
    }


def _write_lists(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    predicted: Predicted,
    subject: corrections.Subject,
) -> None:
    """``blocks.json`` for the way back, ``blocks.csv`` and ``README.txt`` for the annotator."""
    about = predicted.about
    listed = {
        "subject": subject.as_json(),
        "prediction": str(predicted.folder.absolute()),
        "run": about["run"],
        "members": about["members"],
        "mean": about["mean"],
        "deviation": about["deviation"],
        "not_looked_at": NOT_LOOKED_AT,
        "blocks": list(rows),
    }
    (folder / "blocks.json").write_text(json.dumps(listed, indent=1) + "\n")
    with (folder / "blocks.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        header = ["rank", "name", "offset_z", "offset_y", "offset_x", "size_z", "size_y", "size_x"]
        header += [f"centre_{axis}_nm" for axis in "zyx"]
        writer.writerow([*header, f"mean_{rows[0]['by']}", *subject.class_names])
        for row in rows:
            score = "" if row["score"] is None else f"{row['score']:.6f}"
            centre = [f"{c:g}" for c in row["centre_nm"]]
            shares = [f"{share:.6f}" for share in row["class_shares"]]
            places = [*row["offset"], *row["shape"], *centre]
            writer.writerow([row["rank"], row["name"], *places, score, *shares])
    classes = "\n".join(f"  {i} = {name}" for i, name in enumerate(subject.class_names))
    (folder / "README.txt").write_text(README.format(classes=classes, nothing=NOT_LOOKED_AT))
