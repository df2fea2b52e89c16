"""Labelled volumes: the published sets, a user's own files, and their division into parts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from densejax.data import label_values
from densejax.data.download import (
    PLATELET_FILES,
    PLATELET_FOLDER,
    PLATELET_MD5,
    PLATELET_URL,
    wrong_files,
)
from densejax.data.formats_images import list_sections, read_image
from densejax.data.volumes import Volume, check_pair, open_pair, open_volume
from densejax.typing import UNLABELLED

VNC_CLASSES = ("membrane", "glia/extracellular", "mitochondria", "synapse", "intracellular")
VNC_VOXEL_NM = (50.0, 4.6, 4.6)
VNC_MASKS = ("membranes", "mitochondria", "synapses")
_VNC_CODES = {0: 0, 32: 0, 64: 0, 96: 0, 128: 0, 159: 1, 191: 2, 223: 3, 255: 4}

PLATELET_CLASSES = (
    "background",
    "cell",
    "mitochondrion",
    "alpha granule",
    "canalicular vessel",
    "dense granule body",
    "dense granule core",
)
PLATELET_VOXEL_NM = (50.0, 10.0, 10.0)


@dataclass(frozen=True)
class LabelledVolume:
    """Images with their labels.

    Attributes:
        name: what messages call it.
        images: [z, y, x], uint8, uint16 or float32, raw grey levels unless standardised.
        labels: int32 [z, y, x]; 0..c-1, or -1 for not labelled.
        weights: float32 [z, y, x], error weights in [0, inf), or None.
        voxel_nm: voxel size in nm, (z, y, x).
        class_names: the c names, in the order of the labels.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    weights: np.ndarray | None
    voxel_nm: tuple[float, float, float]
    class_names: tuple[str, ...]


def load_vnc(folder: str | Path, *, classes: int = 5) -> LabelledVolume:
    """Load stack1 of the Drosophila ventral nerve cord (serial section TEM).

    Source: Gerhard, Funke, Martel, Cardona and Fetter 2013, doi 10.6084/m9.figshare.856713
    (CC BY-NC-SA 3.0). Sections are 45 to 50 nm thick and 50 is used; pixels are 4.6 nm.

    Args:
        folder: the set's folder, or its ``stack1``.
        classes: 5; the grey codes of membranes by direction (0, 32, 64, 96) and of membrane
            junctions (128) are one class.

    Returns:
        images uint8 [20, 1024, 1024] and labels int32 in the order of ``VNC_CLASSES``:
        0 membrane, 1 glia/extracellular, 2 mitochondria, 3 synapse, 4 intracellular.

    Raises:
        FileNotFoundError: a folder or its sections are missing.
        ValueError: ``classes`` is not 5, sections disagree, or a label has an unknown grey code.
    """
    if classes != len(VNC_CLASSES):
        raise ValueError(f"classes is {classes}; expected 5 (load_vnc_mask gives two classes)")
    stack = _vnc_stack(folder)
    images = _read_stack(stack / "raw")
    files = list_sections(stack / "labels")
    labels = np.stack([_decode_vnc(file) for file in files])
    _same_shape(images, labels, str(stack))
    return LabelledVolume("vnc", images, labels, None, VNC_VOXEL_NM, VNC_CLASSES)


def load_vnc_mask(folder: str | Path, mask: str) -> LabelledVolume:
    """Load stack1 of the ventral nerve cord with one of its binary masks.

    The mask files mix 1-bit pictures and 8-bit ones with a few grey pixels at edges; both are read
    as grey and cut at 128. The published membrane masks are wider than the membrane codes of
    ``load_vnc``: they cover the glia/extracellular class too.

    Args:
        folder: the set's folder, or its ``stack1``.
        mask: "membranes", "mitochondria" or "synapses".

    Returns:
        images uint8 [20, 1024, 1024] and labels int32, 0 background and 1 the object.

    Raises:
        FileNotFoundError: a folder or its sections are missing.
        ValueError: ``mask`` is not one of the three, or sections disagree.
    """
    if mask not in VNC_MASKS:
        raise ValueError(f"mask is {mask!r}; expected one of {', '.join(VNC_MASKS)}")
    stack = _vnc_stack(folder)
    images = _read_stack(stack / "raw")
    labels = (_read_stack(stack / mask) >= 128).astype(np.int32)
    _same_shape(images, labels, str(stack / mask))
    return LabelledVolume(f"vnc {mask}", images, labels, None, VNC_VOXEL_NM, ("background", mask))


def load_platelets(
    folder: str | Path,
    *,
    weights: bool = True,
    check_md5: bool = False,
    voxel_nm: Sequence[float] = PLATELET_VOXEL_NM,
) -> tuple[LabelledVolume, LabelledVolume, LabelledVolume]:
    """Load the platelet set (serial block-face SEM): train, evaluation and test volumes.

    Source: Guay et al., Scientific Reports 2021, doi 10.1038/s41598-021-81590-0. Two points on
    which its descriptions disagree: voxels are 50x10x10 nm in the thesis and the default here, but
    "approximately 40x10x10" on the set's page; and classes 3 and 4 are named in the order of the
    published code (alpha granule, canalicular vessel), which the thesis swaps.

    The test volume has no class 0: its 0 means not labelled and becomes -1.

    Args:
        folder: ``platelet_data`` or the folder that holds it, with ``{train,eval,test}-images.tif``
            and ``-labels.tif``, and ``train-error-weights.tif``.
        weights: read the error weights of the training volume; otherwise they are None.
        check_md5: compare each file with the published checksum first.
        voxel_nm: voxel size in nm, (z, y, x).

    Returns:
        Three volumes, images uint16 as stored, labels int32 in the order of ``PLATELET_CLASSES``,
        weights float32 or None. Published sizes: 50x800x800, 24x800x800, 121x609x400.

    Raises:
        FileNotFoundError: files are missing; the message lists them with URL and checksum.
        ValueError: a checksum differs, a file is broken, shapes or label values do not fit.
    """
    folder = Path(folder)
    if (folder / PLATELET_FOLDER).is_dir():
        folder = folder / PLATELET_FOLDER
    wanted = {f: m for f, m in PLATELET_FILES.items() if weights or "weights" not in f}
    missing = [file for file in wanted if not (folder / file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder}: {', '.join(missing)} missing; they are in {PLATELET_URL} "
            f"(md5 {PLATELET_MD5}), see densejax.data.download.fetch_platelets"
        )
    wrong = wrong_files(folder, wanted) if check_md5 else []
    if wrong:
        raise ValueError(f"{folder}: {'; '.join(wrong)}")
    parts = []
    for part in ("train", "eval", "test"):
        volume = load_files(
            folder / f"{part}-images.tif",
            folder / f"{part}-labels.tif",
            class_names=PLATELET_CLASSES,
            voxel_nm=voxel_nm,
            weights=folder / "train-error-weights.tif" if weights and part == "train" else None,
            unlabelled=0 if part == "test" else None,
            name=f"platelets {part}",
        )
        parts.append(volume)
    return parts[0], parts[1], parts[2]


def load_files(
    images: str | Path,
    labels: str | Path,
    *,
    class_names: Sequence[str],
    voxel_nm: Sequence[float] | None = None,
    weights: str | Path | None = None,
    unlabelled: int | None = None,
    values: Sequence[int] = (),
    images_dataset: str | None = None,
    labels_dataset: str | None = None,
    name: str | None = None,
) -> LabelledVolume:
    """Load and check images and labels of any format that ``volumes.open_volume`` reads.

    Args:
        images: image volume [z, y, x]; its dtype is kept.
        labels: label volume [z, y, x] of integers, 0..c-1 or -1 for not labelled; bool is two
            classes.
        class_names: the c names, in label order.
        voxel_nm: voxel size in nm, (z, y, x); needed where the image file does not state it.
        weights: error weights [z, y, x], 0 or more.
        unlabelled: a value in the label file that means not labelled (often 0 or 255).
        values: the value of each class in the label file, in the order of the names, such as
            (0, 255); empty where it is the class's number.
        images_dataset: the array inside an HDF5 file or group of images.
        labels_dataset: the same for labels.
        name: what messages call the volume; by default the image path.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: as ``open_volume``, ``check_pair`` and ``label_values.as_classes``; or weights
            that are negative, not finite or of another shape.
    """
    image, label = open_pair(
        images,
        labels,
        voxel_nm=voxel_nm,
        image_dataset=images_dataset,
        labels_dataset=labels_dataset,
    )
    name = image.path if name is None else name
    label_values.check_values(values, unlabelled, classes=len(class_names))
    stored = label.read()
    found = label_values.as_classes(
        stored, values=values, unlabelled=unlabelled, name=f"{name} ({label.path})"
    )
    pixels = image.read()
    try:
        check_pair(pixels, found, classes=len(class_names), name=f"{name} ({label.path})")
    except ValueError as error:
        advice = label_values.advice(stored, class_names, unlabelled=unlabelled)
        if not advice or values:
            raise
        raise ValueError(f"{error}. {advice}") from error
    return LabelledVolume(
        name,
        pixels,
        found.astype(np.int32),
        None if weights is None else _read_weights(weights, image),
        image.voxel_nm,
        tuple(class_names),
    )


def split_sections(
    volume: LabelledVolume,
    *,
    train: int,
    evaluation: int,
    test: int,
    gap: int,
    absent: Sequence[str] = (),
) -> tuple[LabelledVolume, ...]:
    """Cut a volume into three slabs of whole sections, first to last: train, evaluation, test.

    ``gap`` sections between neighbouring slabs are left out, because adjacent sections show nearly
    the same objects and would let a test leak into training. Sections beyond the last slab are
    not used. The slabs are views.

    Args:
        volume: images, labels [z, y, x].
        train: sections in the first slab.
        evaluation: sections in the second.
        test: sections in the third.
        gap: sections dropped between two slabs, 0 or more.
        absent: names of slabs that are not cut, and that no gap is left for.

    Returns:
        The slabs, without those that are absent.

    Raises:
        ValueError: a slab has no section, the gap is negative, or there are too few sections.
    """
    sizes = {"train": train, "evaluation": evaluation, "test": test}
    sizes = {part: size for part, size in sizes.items() if part not in absent}
    for part, size in sizes.items():
        if size < 1:
            raise ValueError(
                f"{volume.name}: {part} has {size} sections; expected 1 or more of the stack's "
                f"{len(volume.images)} (--sections=train,evaluation,test,gap)"
            )
    if gap < 0:
        raise ValueError(f"{volume.name}: gap is {gap}; expected 0 or more")
    needed, depth = sum(sizes.values()) + (len(sizes) - 1) * gap, volume.images.shape[0]
    if needed > depth:
        raise ValueError(
            f"{volume.name}: the split takes {needed} sections, there are {depth} "
            "(--sections=train,evaluation,test,gap)"
        )
    start, slabs = 0, []
    for part, size in sizes.items():
        slabs.append(_slab(volume, part, slice(start, start + size)))
        start += size + gap
    return tuple(slabs)


def standardise(images: np.ndarray) -> np.ndarray:
    """Return ``images`` [z, y, x] as float32 with mean 0 and standard deviation 1 over the whole.

    The moments are taken in float64. Each volume is standardised by its own, as in the published
    pipeline.

    Raises:
        ValueError: a value is not finite, or all are equal.
    """
    mean = float(np.mean(images, dtype=np.float64))
    std = float(np.std(images, dtype=np.float64))
    if not (np.isfinite(mean) and np.isfinite(std)):
        raise ValueError("images: a value is NaN or infinite; expected finite grey levels")
    if std == 0:
        raise ValueError(f"images: every voxel is {mean:g}; expected more than one grey level")
    return ((images.astype(np.float32) - np.float32(mean)) / np.float32(std)).astype(np.float32)


def _slab(volume: LabelledVolume, part: str, where: slice) -> LabelledVolume:
    return replace(
        volume,
        name=f"{volume.name} {part}",
        images=volume.images[where],
        labels=volume.labels[where],
        weights=None if volume.weights is None else volume.weights[where],
    )


def _read_weights(path: str | Path, image: Volume) -> np.ndarray:
    """Return error weights, float32 [z, y, x]."""
    found = open_volume(path, voxel_nm=image.voxel_nm).read()
    if found.shape != image.array.shape:
        raise ValueError(f"{path}: weights are {found.shape}; expected {image.array.shape}")
    if not (np.isfinite(found).all() and found.min() >= 0):
        raise ValueError(f"{path}: a weight is negative, NaN or infinite; expected 0 or more")
    return found.astype(np.float32)


def _vnc_stack(folder: str | Path) -> Path:
    folder = Path(folder)
    stack = folder / "stack1" if (folder / "stack1").is_dir() else folder
    if not (stack / "raw").is_dir():
        raise FileNotFoundError(f"{folder}: no stack1/raw; expected the folder of the VNC set")
    return stack


def _read_stack(folder: Path) -> np.ndarray:
    """Read uint8 sections [z, y, x], whatever mixture of 1 and 8 bits they are stored in."""
    files = list_sections(folder)
    sections = [read_image(file) for file in files]
    for file, section in zip(files, sections, strict=True):
        if section.shape != sections[0].shape or section.dtype != np.uint8:
            raise ValueError(
                f"{file}: {section.shape} {section.dtype}; expected {sections[0].shape} uint8"
            )
    return np.stack(sections)


def _decode_vnc(path: Path) -> np.ndarray:
    """Return the classes, int32 [y, x], of one section of grey codes."""
    grey = read_image(path)
    if grey.dtype != np.uint8:
        raise ValueError(f"{path}: dtype {grey.dtype}; expected uint8 grey codes")
    table = np.full(256, UNLABELLED, np.int32)
    for code, label in _VNC_CODES.items():
        table[code] = label
    labels = table[grey]
    if (labels == UNLABELLED).any():
        code = int(grey[labels == UNLABELLED][0])
        raise ValueError(f"{path}: grey code {code}; expected one of {sorted(_VNC_CODES)}")
    return labels


def _same_shape(images: np.ndarray, labels: np.ndarray, name: str) -> None:
    if images.shape != labels.shape:
        raise ValueError(
            f"{name}: labels are {labels.shape}; expected {images.shape} as the images"
        )
