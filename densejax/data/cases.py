"""The volumes that a command names: one, several, or a folder of cases as other tools lay them out.

nnU-Net: ``imagesTr`` and ``labelsTr`` train, ``imagesTs`` and ``labelsTs`` test; the image of a
case is ``CASE_0000.tif``, its labels ``CASE.tif``, and ``dataset.json`` names the classes. BiaPy:
``train/raw`` and ``train/label`` (or ``x`` and ``y``), beside them ``val`` and ``test`` alike.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tifffile

from densejax.data.formats import natural_key

_FILES = (".tif", ".tiff", ".h5", ".hdf5", ".hdf", ".he5", ".zarr", ".n5")
_TIFF = (".tif", ".tiff")
_STORES = (".zarr", ".n5")
_INSIDE = ("zarr.json", ".zarray", ".zgroup", ".zattrs", "attributes.json")  # of a store's folder
_CHANNEL = re.compile(r"_(\d{4})$")
_ROLE = re.compile(r"[._-]?(raw|images?|im|img|labels?|lb|gt|groundtruth|masks?|seg)$", re.I)
_BIAPY = (("raw", "label"), ("x", "y"))


@dataclass(frozen=True)
class Case:
    """The path of an image, and of the labels that belong to it."""

    image: str
    labels: str


@dataclass(frozen=True)
class Cases:
    """Cases by part, and what a layout says of their labels."""

    train: tuple[Case, ...]
    evaluation: tuple[Case, ...] = ()
    test: tuple[Case, ...] = ()
    class_names: tuple[str, ...] = ()
    unlabelled: int | None = None


def find_cases(image: str, labels: str, *, flags: tuple[str, str] = ("image", "labels")) -> Cases:
    """Read what a pair of flags names.

    Args:
      image: a path or URL, several with commas between them, a folder of volumes, or a folder in
        one of the layouts above, to which no ``labels`` belong.
      labels: the same, in the order of the images; in folders, files of the same names.
      flags: what messages call the two.

    Raises:
      FileNotFoundError: a folder is not there, or is empty.
      ValueError: images and labels do not pair, or a layout holds several channels.
    """
    if image and not labels and Path(image).is_dir():
        found = _layout(Path(image))
        if found is not None:
            return found
    if not (image and labels):
        raise ValueError(
            f"--{flags[0]} and --{flags[1]} belong together; found --{flags[0]}={image!r} "
            f"--{flags[1]}={labels!r} (a folder with imagesTr and labelsTr, or with train/raw and "
            f"train/label, needs no --{flags[1]})"
        )
    images, others = split_paths(image), split_paths(labels)
    if len(images) == len(others) == 1:
        return Cases(tuple(_folder_cases(images[0], others[0])))
    if len(images) != len(others):
        raise ValueError(
            f"--{flags[0]} names {len(images)} volumes and --{flags[1]} {len(others)}: "
            f"{', '.join(images)}; {', '.join(others)}. Expected as many, in the same order"
        )
    return Cases(tuple(Case(*pair) for pair in zip(images, others, strict=True)))


def split_paths(text: str) -> list[str]:
    """Paths with commas between them; a path that exists as it stands is one."""
    if "," not in text or Path(text).exists():
        return [text]
    return [part.strip() for part in text.split(",") if part.strip()]


def _layout(root: Path) -> Cases | None:
    if (root / "imagesTr").is_dir():
        return _nnunet(root)
    parts = {name: _biapy(root / name) for name in ("train", "val", "test")}
    if parts["train"]:
        return Cases(parts["train"], parts["val"], parts["test"])
    return None


def _nnunet(root: Path) -> Cases:
    if not (root / "labelsTr").is_dir():
        raise FileNotFoundError(f"{root}: imagesTr without labelsTr; expected both")
    train = tuple(_folder_cases(str(root / "imagesTr"), str(root / "labelsTr")))
    test: tuple[Case, ...] = ()
    if (root / "imagesTs").is_dir() and (root / "labelsTs").is_dir():
        test = tuple(_folder_cases(str(root / "imagesTs"), str(root / "labelsTs")))
    path = root / "dataset.json"
    if not path.is_file():
        return Cases(train, test=test)
    try:
        stated = json.loads(path.read_text())
        labels = {str(name): value for name, value in stated.get("labels", {}).items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: expected nnU-Net's description in JSON ({error})") from error
    ignored = labels.pop("ignore", None)
    numbers = [value for value in labels.values() if isinstance(value, int)]
    if sorted(numbers) != list(range(len(labels))):
        return Cases(train, test=test)  # regions, or version 1, which maps numbers to names
    names = tuple(sorted(labels, key=lambda name: labels[name]))
    return Cases(train, test=test, class_names=names, unlabelled=ignored)


def _biapy(folder: Path) -> tuple[Case, ...]:
    for raw, label in _BIAPY:
        if (folder / raw).is_dir() and (folder / label).is_dir():
            return tuple(_folder_cases(str(folder / raw), str(folder / label)))
    return ()


def _folder_cases(image: str, labels: str) -> list[Case]:
    """The cases of two folders of volumes; two single volumes, or stacks of sections, are one."""
    images, others = _volumes(Path(image)), _volumes(Path(labels))
    if not images and not others:
        return [Case(image, labels)]
    if not images or not others:
        one, other = (image, labels) if images else (labels, image)
        raise ValueError(
            f"{one} is a folder of {len(images or others)} volumes and {other} is not; expected "
            "two folders of volumes, or two volumes"
        )
    return _paired(Path(image), _one_channel(Path(image), images), Path(labels), others)


def _volumes(folder: Path) -> list[Path]:
    """The volumes in a folder, in natural order; none where it is a volume itself."""
    if not folder.is_dir() or folder.suffix.lower() in _STORES:
        return []
    if any((folder / name).exists() for name in _INSIDE):
        return []
    found = [path for path in folder.iterdir() if path.suffix.lower() in _FILES]
    found = sorted(found, key=lambda path: natural_key(path.name))
    flat = [path for path in found if path.suffix.lower() in _TIFF]
    if flat and len(flat) == len(found) and not _is_stack(flat[0]):
        return []  # sections of one volume
    return found


def _is_stack(path: Path) -> bool:
    try:
        with tifffile.TiffFile(path) as tif:
            return len(tif.series[0].shape) > 2 if tif.series else False
    except (tifffile.TiffFileError, OSError, IndexError):
        return False  # its reader says what is wrong


def _one_channel(folder: Path, images: Sequence[Path]) -> list[Path]:
    """The images, where none is a further channel of another one's case."""
    channels: dict[str, list[str]] = {}
    for path in images:
        match = _CHANNEL.search(_stem(path))
        if match:
            channels.setdefault(_stem(path)[: match.start()], []).append(match[1])
    case = next((case for case, found in channels.items() if len(found) > 1), None)
    if case is not None:
        raise ValueError(
            f"{folder}: case {case} has the channels {', '.join(channels[case])}; networks see "
            f"one. Name the images of one channel by --image, such as --image={folder}/{case}_"
            f"{channels[case][0]}{images[0].suffix},... with --labels in the same order, or move "
            "the others away"
        )
    return list(images)


def _paired(
    image: Path, images: Sequence[Path], labels: Path, others: Sequence[Path]
) -> list[Case]:
    """Pair volumes by their names, or by the numbers in them where the names differ."""
    for key in (_name, _role_free, _numbers):
        mine, theirs = ({key(path): path for path in paths} for paths in (images, others))
        whole = len(mine) == len(images) and len(theirs) == len(others)
        if whole and set(mine) == set(theirs) and "" not in mine:
            return [Case(str(path), str(theirs[name])) for name, path in mine.items()]
    mine, theirs = ({_role_free(path): path for path in paths} for paths in (images, others))
    if len(images) == len(others) == 1:
        return [Case(str(images[0]), str(others[0]))]
    alone = [mine[name].name for name in mine if name not in theirs]
    bare = [theirs[name].name for name in theirs if name not in mine]
    raise ValueError(
        f"{image} holds {len(images)} volumes and {labels} {len(others)}, and their names do not "
        f"pair: without labels {', '.join(alone[:5]) or 'none'}; without an image "
        f"{', '.join(bare[:5]) or 'none'}. Expected the same names or numbers in both, or the "
        "volumes one by one, --image=A,B --labels=C,D"
    )


def _stem(path: Path) -> str:
    return path.name[: -len(path.suffix)].removesuffix(".ome")


def _name(path: Path) -> str:
    return _CHANNEL.sub("", _stem(path)) if path.parent.name.startswith("images") else _stem(path)


def _role_free(path: Path) -> str:
    return _ROLE.sub("", _name(path))


def _numbers(path: Path) -> str:
    return ".".join(str(int(text)) for text in re.findall(r"\d+", _name(path)))
