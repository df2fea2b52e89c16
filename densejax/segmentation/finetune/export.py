"""From a prediction to a folder of blocks that an annotator corrects, the most doubtful first.

Blocks are those of a regular grid over the prediction, the last of each axis flush to its end. A
block's score is the mean over its voxels of the ensemble's disagreement (or entropy), summed as
whole numbers, so that equal blocks tie exactly and the first of them comes first. The prediction is
read once, a few blocks at a time, so memory does not grow with it.

Stacks open in ImageJ and Fiji with their voxel size and, for labels, the colours of the classes;
any other tool reads them as plain TIFF, one page a section. A label stack is uint8: the class
number, or 255 for *not looked at*.
"""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile

from densejax.data.formats import LazyArray
from densejax.data.formats_chunked import is_remote
from densejax.data.volumes import Volume, open_volume
from densejax.data.windows import Sizes, evaluation_corners
from densejax.plots.style import class_colours
from densejax.segmentation.finetune import corrections
from densejax.segmentation.finetune.corrections import NOT_LOOKED_AT

By = Literal["disagreement", "entropy", "random"]

NOT_PREDICTED = 255
# About the chunk of a stored prediction, read whole even where blocks are a single section thick.
_READ = (64, 512, 512)

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


def box_at(corner: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
    """The box of a shape that begins at a corner."""
    return tuple(slice(int(c), int(c) + n) for c, n in zip(corner, shape, strict=True))


@dataclass(frozen=True)
class ScoredBlocks:
    """The blocks of a prediction.

    Attributes:
      corners: [n, 3] int32, first voxel (z, y, x) of each block in the prediction, z slowest.
      scores: [n] float64 in 0..1, mean over the block; nan for a block that holds a voxel that was
        not predicted.
      shape: (z, y, x) of every block.
    """

    corners: np.ndarray
    scores: np.ndarray
    shape: Sizes


def score_blocks(
    doubt: Any,
    labels: Any,
    *,
    shape: Sizes,
    not_predicted: int = NOT_PREDICTED,
) -> ScoredBlocks:
    """Mean doubt of every block, streamed.

    Args:
      doubt: [z, y, x] uint8, 255 is one: disagreement or entropy; an array, or what
        ``volumes.open_volume`` gives.
      labels: [z, y, x], the predicted labels, to tell what was not predicted.
      shape: (z, y, x) of a block in voxels.
      not_predicted: label of a voxel that was not predicted.

    Raises:
      ValueError: the two volumes have not one shape, ``doubt`` is not uint8, or a block is larger
        than the prediction.
    """
    if tuple(doubt.shape) != tuple(labels.shape) or np.dtype(doubt.dtype) != np.uint8:
        raise ValueError(
            f"doubt is {np.dtype(doubt.dtype)} of shape {tuple(doubt.shape)}; expected uint8 of "
            f"the labels' shape {tuple(labels.shape)}"
        )
    if any(n > size for n, size in zip(shape, doubt.shape, strict=True)):
        raise ValueError(
            f"blocks of {tuple(shape)} do not fit into the prediction of {tuple(doubt.shape)}; "
            "expected a smaller --block=z,y,x"
        )
    corners = evaluation_corners(doubt.shape, shape, (0, 0, 0))
    axes = [np.unique(corners[:, axis]) for axis in range(3)]
    means = np.full([len(axis) for axis in axes], np.nan)
    together = [max(1, most // size) for size, most in zip(shape, _READ, strict=True)]
    runs = [
        [slice(i, min(i + n, len(axis))) for i in range(0, len(axis), n)]
        for axis, n in zip(axes, together, strict=True)
    ]
    for part in product(*runs):
        starts = [axis[run] for axis, run in zip(axes, part, strict=True)]
        first = [int(axis[0]) for axis in starts]
        extent = [
            int(axis[-1]) + n - low for axis, n, low in zip(starts, shape, first, strict=True)
        ]
        box = box_at(first, extent)
        values, missing = np.asarray(doubt[box]), np.asarray(labels[box]) == not_predicted
        for index in np.ndindex(*map(len, starts)):
            corner = [axis[i] - low for axis, i, low in zip(starts, index, first, strict=True)]
            block = box_at(corner, shape)
            if not missing[block].any():
                total = int(values[block].sum(dtype=np.int64))
                means[part][index] = total / (255 * np.prod(shape))
    return ScoredBlocks(corners, means.ravel(), shape)


def choose_blocks(
    blocks: ScoredBlocks,
    *,
    count: int,
    voxel_nm: Sequence[float],
    taken: Sequence[tuple[Sequence[int], Sequence[int]]] = (),
    least_distance_nm: float = 0.0,
) -> np.ndarray:
    """The blocks of highest score that overlap neither each other nor what is taken.

    Args:
      blocks: as `score_blocks` gives; those without a score are passed over.
      count: how many to choose at most.
      voxel_nm: (z, y, x), for distances.
      taken: corner and shape, in voxels of the prediction, of blocks that somebody has already.
      least_distance_nm: between the centres of two chosen blocks, and of a chosen and a taken one.

    Returns:
      [at most count] int, indexes into ``blocks``, best first; ties go to the lowest index.
    """
    scores = np.where(np.isnan(blocks.scores), -np.inf, blocks.scores)
    own, voxel = np.asarray(blocks.shape, float), np.asarray(voxel_nm, float)
    # Corners and shapes of what is taken, then of what is chosen.
    boxes = np.empty((len(taken) + max(0, count), 2, 3))
    boxes[: len(taken)] = np.reshape([[*box] for box in taken], (-1, 2, 3))
    chosen: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        if len(chosen) >= count or scores[index] == -np.inf:
            break
        corner = blocks.corners[index].astype(float)
        held = len(taken) + len(chosen)
        low, size = boxes[:held, 0], boxes[:held, 1]
        overlaps = np.all((corner < low + size) & (low < corner + own), axis=1)
        gaps = (corner + own / 2 - low - size / 2) * voxel
        near = np.linalg.norm(gaps, axis=1) < least_distance_nm
        if not (overlaps | near).any():
            boxes[held] = corner, own
            chosen.append(int(index))
    return np.array(chosen, int)


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


def export_blocks(
    predicted: Predicted,
    workdir: Path,
    *,
    count: int,
    shape: Sizes,
    by: By,
    seed: int = 0,
    least_distance_nm: float = 0.0,
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
    about, image = predicted.about, predicted.image
    subject = corrections.Subject(
        volume=image.path if is_remote(image.path) else str(Path(image.path).absolute()),
        dataset=(about.get("dataset") or None) if image.path == str(about["volume"]) else None,
        shape=image.array.shape,
        voxel_nm=image.voxel_nm,
        class_names=tuple(about["class_names"]),
    )
    corrections.check_subject(workdir, subject)
    blocks = score_blocks(
        predicted.doubt,
        predicted.labels,
        shape=shape,
        not_predicted=about["not_predicted"],
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
    with corrections.new_folder(workdir, "export_{:04d}") as (partial, folder):
        (partial / "predicted").mkdir()
        rows = [
            _write_block(partial, rank, predicted, subject, blocks.corners[index].tolist(), shape)
            | {"rank": rank, "by": by, "score": None if by == "random" else float(scores[index])}
            for rank, index in enumerate(chosen, 1)
        ]
        listed = {
            "subject": subject.as_json(),
            "prediction": str(predicted.folder.absolute()),
            **{name: about[name] for name in ("run", "members", "mean", "deviation")},
            "not_looked_at": NOT_LOOKED_AT,
            "blocks": rows,
        }
        (partial / "blocks.json").write_text(json.dumps(listed, indent=1) + "\n")
        _write_table(partial / "blocks.csv", rows, subject.class_names)
        classes = "\n".join(f"  {i} = {name}" for i, name in enumerate(subject.class_names))
        text = README.format(classes=classes, nothing=NOT_LOOKED_AT)
        (partial / "README.txt").write_text(text)
    return folder


def _level(path: Path, about: dict[str, Any]) -> LazyArray:
    array = open_volume(path, voxel_nm=about["voxel_nm"]).array
    if array.shape != tuple(about["shape"]):
        raise ValueError(f"{path}: shape {array.shape}; expected {tuple(about['shape'])}")
    return array


def _write_block(
    folder: Path,
    rank: int,
    predicted: Predicted,
    subject: corrections.Subject,
    corner: Sequence[int],
    shape: Sizes,
) -> dict[str, Any]:
    """Write the stacks of one block; its entry in ``blocks.json``."""
    name, classes = f"block_{rank:04d}", len(subject.class_names)
    offset = [c + o for c, o in zip(corner, predicted.offset, strict=True)]
    labels = np.asarray(predicted.labels[box_at(corner, shape)])
    common: dict[str, Any] = {"voxel_nm": subject.voxel_nm, "offset": offset}
    image = predicted.image.array[box_at(offset, shape)]
    _write_stack(folder / f"{name}_image.tif", image, **common)
    for place in (folder, folder / "predicted"):
        path = place / f"{name}_labels.tif"
        _write_stack(path, labels, colours=class_colours(classes), **common)
    counts = np.bincount(labels.ravel(), minlength=classes)[:classes]
    return {
        "name": name,
        "offset": offset,
        "shape": list(shape),
        "centre_nm": [
            float((o + n / 2) * v) for o, n, v in zip(offset, shape, subject.voxel_nm, strict=True)
        ],
        "class_shares": [float(count / labels.size) for count in counts],
        "predicted": corrections.digest_of(labels),
    }


def _write_stack(
    path: Path,
    array: np.ndarray,
    *,
    voxel_nm: Sequence[float],
    offset: Sequence[int],
    colours: Sequence[str] = (),
) -> None:
    """Write a block as ImageJ opens it: uint8, uint16 or float32, with the classes' colours."""
    if array.dtype == bool:
        array = array.astype(np.uint8)
    elif array.dtype not in (np.uint8, np.uint16, np.float32):
        array = array.astype(np.float32)
    z, y, x = voxel_nm
    info = corrections.PLACE.format(*(int(o) for o in offset))
    metadata: dict[str, Any] = {"axes": "ZYX", "spacing": z, "unit": "nm", "Info": f"{info}\n"}
    if colours:
        table = np.full((3, 256), 128, np.uint8)  # mid-grey beyond the classes
        for value, colour in enumerate(colours[:256]):
            table[:, value] = list(bytes.fromhex(colour[1:]))
        metadata |= {"LUTs": [table], "Ranges": (0.0, 255.0)}
    tifffile.imwrite(
        path,
        array,
        imagej=True,
        resolution=(1 / x, 1 / y),
        photometric="minisblack",
        metadata=metadata,
    )


def _write_table(path: Path, rows: Sequence[dict[str, Any]], class_names: Sequence[str]) -> None:
    """Write ``blocks.csv``, for the annotator."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        header = ["rank", "name", "offset_z", "offset_y", "offset_x", "size_z", "size_y", "size_x"]
        header += [f"centre_{axis}_nm" for axis in "zyx"]
        writer.writerow([*header, f"mean_{rows[0]['by']}", *class_names])
        for row in rows:
            score = "" if row["score"] is None else f"{row['score']:.6f}"
            centre = [f"{c:g}" for c in row["centre_nm"]]
            shares = [f"{share:.6f}" for share in row["class_shares"]]
            places = [*row["offset"], *row["shape"], *centre]
            writer.writerow([row["rank"], row["name"], *places, score, *shares])
