"""Pictures with a class for every pixel: CamVid and Cityscapes in the folders they come in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from densejax.typing import UNLABELLED

CAMVID_CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
CAMVID_VOID = 11
CITYSCAPES_CLASSES = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)
# Numbers of the files' labels (labelIds), in the order of the classes; all others are void.
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


@dataclass(frozen=True)
class PictureSet:
    """n pictures of one size with their masks.

    Attributes:
      images: uint8 [n, y, x, 3].
      labels: int8 [n, y, x]; 0..c-1, -1 where void.
      names: n names of files, without their ending.
      groups: n names of sequences or cities, which neighbours in time or place share.
      class_names: c names.
    """

    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    groups: tuple[str, ...]
    class_names: tuple[str, ...]


def load_camvid(folder: str | Path) -> dict[str, PictureSet]:
    """Load CamVid as SegNet's tutorial has it: ``train``, ``val`` and ``test``.

    Masks are in ``trainannot`` and so on under the names of their pictures; 0 to 10 are classes, 11
    is void. The sequence is what a name has before its first ``_``, and of Seq05VD its letters.

    Raises:
      FileNotFoundError: a folder is missing.
      ValueError: names of pictures and masks differ, a mask has another size or a palette, or a
        label beyond the classes that is not void, or a class is nowhere in ``train``.
    """
    folder, codes = Path(folder), {code: code for code in range(len(CAMVID_CLASSES))}
    found = {}
    for part in ("train", "val", "test"):
        pictures, masks = folder / part, folder / f"{part}annot"
        names = _names(pictures, ".png")
        if names != (other := _names(masks, ".png")):
            odd = sorted(set(names) ^ set(other))
            raise ValueError(
                f"{pictures} and {masks}: {len(names)} pictures and {len(other)} masks; "
                f"{odd[0]}.png is in one of them only"
            )
        found[part] = _read(
            [pictures / f"{name}.png" for name in names],
            [masks / f"{name}.png" for name in names],
            groups=[name.split("_")[0] for name in names],
            codes=codes | {CAMVID_VOID: UNLABELLED},
            class_names=CAMVID_CLASSES,
        )
    check_classes_present(found["train"], f"{folder}/trainannot")
    return found


def load_cityscapes(folder: str | Path) -> dict[str, PictureSet]:
    """Load Cityscapes: ``leftImg8bit/{train,val}/CITY`` beside ``gtFine``, 19 classes.

    Raises:
      FileNotFoundError: a folder is missing.
      ValueError: as of ``load_camvid``.
    """
    folder = Path(folder)
    codes = dict.fromkeys(range(-1, 256), UNLABELLED)
    codes |= {code: c for c, code in enumerate(CITYSCAPES_IDS)}
    found = {}
    for part in ("train", "val"):
        root, truth = folder / "leftImg8bit" / part, folder / "gtFine" / part
        for needed in (root, truth):
            if not needed.is_dir():
                raise FileNotFoundError(f"{needed}: no such folder; expected that of Cityscapes")
        pictures, masks = [], []
        for city in sorted(p for p in root.iterdir() if p.is_dir()):
            for name in _names(city, "_leftImg8bit.png"):
                pictures.append(city / f"{name}_leftImg8bit.png")
                masks.append(truth / city.name / f"{name}_gtFine_labelIds.png")
        if missing := [path for path in masks if not path.is_file()]:
            raise ValueError(f"{missing[0]}: no such mask ({len(missing)} of {len(masks)} missing)")
        cities = [path.parent.name for path in pictures]
        found[part] = _read(
            pictures, masks, groups=cities, codes=codes, class_names=CITYSCAPES_CLASSES
        )
    check_classes_present(found["train"], str(folder / "gtFine" / "train"))
    return found


def check_classes_present(pictures: PictureSet, where: str) -> None:
    """Refuse a class that no mask shows: it could not be learnt.

    Raises:
      ValueError: which classes, and where.
    """
    shown = np.unique(pictures.labels)
    if absent := [n for c, n in enumerate(pictures.class_names) if c not in shown]:
        raise ValueError(f"{where}: no pixel of class {', '.join(absent)}")


def _names(folder: Path, ending: str) -> list[str]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    names = [p.name.removesuffix(ending) for p in folder.iterdir() if p.name.endswith(ending)]
    if not names:
        raise ValueError(f"{folder}: no file *{ending}")
    return sorted(names)


def _read(
    pictures: Sequence[Path],
    masks: Sequence[Path],
    *,
    groups: Sequence[str],
    codes: Mapping[int, int],
    class_names: Sequence[str],
) -> PictureSet:
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    table = np.full(256, -2, np.int8)
    for code, label in codes.items():
        if code >= 0:
            table[code] = label
    for picture, mask in zip(pictures, masks, strict=True):
        with Image.open(picture) as opened:
            image = np.asarray(opened.convert("RGB"))
        with Image.open(mask) as opened:
            if opened.mode not in ("L", "I;16", "I"):
                raise ValueError(
                    f"{mask}: a mask of mode {opened.mode}; expected one channel of class numbers "
                    "(mode L), no palette and no colours"
                )
            truth = np.asarray(opened)
        if truth.shape != image.shape[:2]:
            raise ValueError(
                f"{mask}: {truth.shape[1]} x {truth.shape[0]} pixels; {picture.name} has "
                f"{image.shape[1]} x {image.shape[0]}"
            )
        if images and image.shape != images[0].shape:
            raise ValueError(
                f"{picture}: {image.shape[1]} x {image.shape[0]} pixels; {pictures[0].name} has "
                f"{images[0].shape[1]} x {images[0].shape[0]}: units must have one size"
            )
        codes_seen = np.clip(truth, 0, 255)
        known = table[codes_seen]
        if (wrong := (known < UNLABELLED) | (truth != codes_seen)).any():
            raise ValueError(
                f"{mask}: label {truth[wrong].max()}; expected one of "
                f"{sorted(c for c in codes if c >= 0)[:20]}"
            )
        images.append(image)
        labels.append(known)
    names = tuple(path.name.split(".")[0].removesuffix("_leftImg8bit") for path in pictures)
    return PictureSet(np.stack(images), np.stack(labels), names, tuple(groups), tuple(class_names))
