"""A labelled volume that is looked at: a prediction or a user's files, with its image."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

from densejax.data import ome_zarr
from densejax.data.label_values import check_values, relabelled
from densejax.data.levels import Level, cut, open_levels
from densejax.data.pyramid import build_pyramid
from densejax.data.synthetic import platelet_world
from densejax.data.volumes import open_pair, open_volume
from densejax.plots import style

LAYERS = ("entropy", "disagreement")
LOOK = 2**24  # voxels that may be read to choose what to look at


@dataclass(frozen=True)
class Subject:
    """A labelled volume that is looked at.

    Attributes:
      labels: levels of the labels, the finest first.
      class_names: names of the labels 0, 1, ...
      image: the image, of the finest labels' shape, or None.
      layers: entropy and disagreement, uint8 where 255 is one, by name.
      name: for headings.
      folder: of the prediction, or None.
      labels_path: where the labels lie.
      image_path: where the image lies; empty for none.
    """

    labels: list[Level]
    class_names: tuple[str, ...]
    image: Level | None = None
    layers: Mapping[str, Level] = field(default_factory=dict)
    name: str = ""
    folder: Path | None = None
    labels_path: str = ""
    image_path: str = ""

    @property
    def voxel_nm(self) -> tuple[float, float, float]:
        """Of the finest level, (z, y, x)."""
        return self.labels[0].voxel_nm

    @property
    def corners_nm(self) -> np.ndarray:
        """The volume's lowest and highest corner, [2, 3], half a voxel off the voxels' centres."""
        finest = self.labels[0]
        low = np.array(finest.origin_nm) - np.array(finest.voxel_nm) / 2
        return np.stack([low, low + np.array(finest.array.shape) * finest.voxel_nm])


def open_prediction(folder: Path, *, volume: str = "", dataset: str = "") -> Subject:
    """What ``experiments.predict`` left in a folder.

    Args:
      folder: with ``prediction.json`` and ``labels.zarr``.
      volume: the image, where it is no longer where the prediction read it.
      dataset: the array in ``volume``.

    Raises:
      FileNotFoundError: the folder is none of a prediction, or ``volume`` is given and not there.
      ValueError: the image does not hold the labels' part.
    """
    file = folder / "prediction.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: no such file; expected the folder of a prediction (python -m "
            "experiments.predict --workdir=...), or --labels and --image"
        )
    about: dict[str, Any] = json.loads(file.read_text())
    labels = open_levels(folder / "labels.zarr")
    offset, shape = about.get("offset", [0, 0, 0]), labels[0].array.shape
    image = None
    try:
        image = _open_image(
            volume or about["volume"],
            shape,
            voxel_nm=about["voxel_nm"],
            dataset=(dataset if volume else about.get("dataset")) or "",
            offset=offset,
        )
    except (OSError, ValueError) as error:
        if volume:
            raise
        print(f"without the image: {error} (--volume=... names it)", flush=True)
    layers = {
        name: open_levels(folder / f"{name}.zarr")[0]
        for name in LAYERS
        if (folder / f"{name}.zarr").is_dir()
    }
    names = tuple(about["class_names"])
    return Subject(
        labels,
        names,
        image,
        layers,
        _name(str(about["volume"])),
        folder,
        labels_path=str(folder / "labels.zarr"),
        image_path="" if image is None else str(volume or about["volume"]),
    )


def open_files(
    labels: str,
    *,
    image: str,
    voxel_nm: Sequence[float],
    class_names: Sequence[str],
    unlabelled: int | None = None,
    values: Sequence[int] = (),
) -> Subject:
    """A label volume of any format, and its image.

    Args:
      labels: path or URL.
      image: path or URL; empty for none.
      voxel_nm: (z, y, x), where the labels' file states none; may be empty.
      class_names: of the labels 0, 1, ...; empty numbers those that occur in a coarse look.
      unlabelled: a value that means not labelled.
      values: the value of each class in the file; empty where it is the class's number.

    Raises:
      FileNotFoundError: a volume is not there.
      ValueError: as ``open_pair``, the image does not hold all labels, or labels are no integers.
    """
    levels = open_levels(labels, voxel_nm=tuple(voxel_nm) or None)
    if levels[0].array.dtype.kind not in "iub":
        raise ValueError(f"{labels}: labels are {levels[0].array.dtype}; expected integers")
    check_values(values, unlabelled, classes=len(class_names) or None)
    levels = [
        replace(
            level,
            array=relabelled(level.array, values=values, unlabelled=unlabelled, name=labels),
        )
        for level in levels
    ]
    names = tuple(class_names)
    if not names:
        most = int(np.max(coarse_level(levels).array[...]))
        names = tuple(style.class_names(None, max(2, min(most + 1, 255))))
    shown = None
    if image:
        own, seen = open_pair(labels, image, voxel_nm=tuple(voxel_nm) or None)
        if own.array.shape != levels[0].array.shape:
            raise ValueError(
                f"{image}: by the positions that the files state it holds {own.array.shape} voxels "
                f"(z, y, x) of the labels' {levels[0].array.shape}; expected all of them"
            )
        shown = Level(seen.array, levels[0].voxel_nm)
    return Subject(levels, names, shown, name=_name(labels), labels_path=labels, image_path=image)


def _open_image(
    path: str,
    shape: Sequence[int],
    *,
    voxel_nm: Sequence[float],
    dataset: str = "",
    offset: Sequence[int] = (0, 0, 0),
) -> Level:
    """The part of an image that labels are of.

    Raises:
      FileNotFoundError: it is not there.
      ValueError: it does not hold that part.
    """
    volume = open_volume(path, voxel_nm=voxel_nm, dataset=dataset or None)
    ends = [int(start) + int(size) for start, size in zip(offset, shape, strict=True)]
    if any(end > size for end, size in zip(ends, volume.array.shape, strict=True)) or (
        not any(offset) and tuple(volume.array.shape) != tuple(shape)
    ):
        raise ValueError(
            f"{path}: shape {volume.array.shape}; expected the labels' {tuple(shape)} from "
            f"{tuple(int(start) for start in offset)} on"
        )
    z, y, x = (slice(int(a), b) for a, b in zip(offset, ends, strict=True))
    return cut(Level(volume.array, volume.voxel_nm), (z, y, x))


def write_demo(folder: Path, *, shape: tuple[int, int, int] = (24, 192, 192)) -> None:
    """A prediction's folder made from a synthetic world, wrong where smooth noise says so.

    Nothing is written where there is a prediction already.

    Args:
      folder: made if absent.
      shape: of the world, (z, y, x).
    """
    if (folder / "prediction.json").exists():
        return
    world = platelet_world(jax.random.key(0), shape=shape)
    rng = np.random.default_rng(0)
    doubt = np.abs(ndimage.gaussian_filter(rng.normal(size=shape), (0.6, 3, 3)))
    edges = ndimage.morphological_gradient(world.labels, size=(1, 3, 3)) > 0
    doubt = np.clip(
        ndimage.gaussian_filter(edges * 1.0, (0.4, 2, 2)) + doubt / doubt.max() / 2, 0, 1
    )
    shifted = np.roll(world.labels, (2, 2), axis=(1, 2))
    labels = np.where(doubt > 0.62, shifted, world.labels).astype(np.uint8)
    common: dict[str, Any] = {
        "shape": shape,
        "dtype": np.uint8,
        "chunks": (16, 64, 64),
        "voxel_nm": world.voxel_nm,
    }
    layers: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
        "synthetic_platelets": (world.images, {}),
        "labels": (labels, {"kind": "labels", "class_names": world.class_names}),
        "entropy": (np.rint(255 * doubt).astype(np.uint8), {}),
        "disagreement": (np.rint(255 * doubt**2).astype(np.uint8), {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, (array, options) in layers.items():
        path = folder / f"{name}.zarr"
        ome_zarr.create_image(path, **common, **options)
        ome_zarr.open_level(path, write=True)[...].write(array).result()
        build_pyramid(path)
    about = {
        "volume": str(folder / "synthetic_platelets.zarr"),
        "dataset": "",
        "shape": list(shape),
        "voxel_nm": list(world.voxel_nm),
        "offset": [0, 0, 0],
        "run": "",
        "members": [],
        "class_names": list(world.class_names),
        "not_predicted": 255,
    }
    (folder / "prediction.json").write_text(json.dumps(about, indent=1))


def chosen_classes(subject: Subject, asked: Sequence[str]) -> list[int]:
    """Numbers of the classes that are asked for by name or number; empty is all but the first.

    Raises:
      ValueError: there is no such class; the message lists those that there are.
    """
    names = [name.lower() for name in subject.class_names]
    numbers = []
    for entry in asked:
        text = entry.strip().lower()
        if text in names:
            numbers.append(names.index(text))
        elif text.isdecimal() and int(text) < len(names):
            numbers.append(int(text))
        else:
            known = ", ".join(f"{i} {name}" for i, name in enumerate(subject.class_names))
            raise ValueError(f"no class {entry.strip()!r}; there are {known}")
    return list(dict.fromkeys(numbers)) or list(range(1, len(names)))


def coarse_level(levels: Sequence[Level]) -> Level:
    """The finest level that may be read whole."""
    fitting = [level for level in levels if level.array.size <= LOOK]
    return fitting[0] if fitting else levels[-1]


def _name(path: str) -> str:
    """What a heading calls a volume."""
    return path.rstrip("/").rsplit("/", 1)[-1].partition(".")[0].replace("_", " ")


def informative_sections(counts: ArrayLike, *, number: int = 1) -> list[int]:
    """Sections, spread over the volume, that show much of every class but the first.

    One in each of ``number`` slabs of equal depth: the one that adds most to the sum over classes
    of the root of the share of its voxels that is shown, beside those chosen before.

    Args:
      counts: [n, c], voxels of each class in each section.
      number: of sections; fewer where there are fewer.

    Returns:
      Their indexes, rising.

    Raises:
      ValueError: there is no section, or ``number`` is below one.
    """
    counts = np.asarray(counts, float)
    if counts.ndim != 2 or not len(counts) or number < 1:
        raise ValueError(f"counts {counts.shape}, number {number}: expected [n, c] and at least 1")
    rest = counts[:, 1:] if counts.shape[1] > 1 else counts
    shares = rest / np.maximum(rest.sum(0), 1)
    shown, chosen = np.zeros(rest.shape[1]), []
    for slab in np.array_split(np.arange(len(counts)), min(number, len(counts))):
        gain = np.sqrt(shown + shares[slab]).sum(1)
        # In a tie, the section nearest to the slab's middle.
        gain -= 1e-9 * abs(slab - slab.mean())
        chosen.append(int(slab[np.argmax(gain)]))
        shown = shown + shares[chosen[-1]]
    return chosen


def counts_along(labels: ArrayLike, classes: int, axis: int) -> np.ndarray:
    """Voxels of each class in each section across an axis, [n, c] int64.

    Args:
      labels: [z, y, x] int; values outside 0..c-1 do not count.
      classes: c.
      axis: 0, 1 or 2 for sections across z, y or x.
    """
    planes = np.moveaxis(np.asarray(labels), axis, 0)
    known = [plane[(plane >= 0) & (plane < classes)].astype(np.int64) for plane in planes]
    return np.stack([np.bincount(values, minlength=classes) for values in known])
