"""Which pictures to classify: known sets by name, their standardisation, and their splits.

A split is one of the training set, or one for natural and poisoned training.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from densejax.data import vision
from densejax.data.image_folders import ImageFolder, open_imagenet
from densejax.data.images import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    standardise,
    to_unit,
)
from densejax.data.vision import gratings
from densejax.population import memory_limit
from densejax.typing import Array, Key

SETS = ("cifar10", "svhn", "mnist", "fashion_mnist", "imagenet", "tiny")

# Mean and deviation of each channel of the training pixels, in the unit interval.
MOMENTS = {
    "cifar10": (CIFAR10_MEAN, CIFAR10_STD),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "tiny": ((0.5,) * 3, (0.35,) * 3),
}
# The imbalanced part is the same in every run: encoders are trained on it beforehand.
IMBALANCE_SEED = 98
RECIPES = {"cifar10": "cifar", "tiny": "cifar", "imagenet": "imagenet"}
# By which the thesis' code standardises SVHN: deviations within a picture, averaged.
THESIS_SVHN_STD = (0.1200, 0.1231, 0.1052)


@dataclass(frozen=True)
class Source:
    """A training and a test set.

    Attributes:
      images: [n, ...], uint8 pictures [n, y, x, c] or float32 features [n, d].
      labels: [n] int32.
      test_images: [e, ...].
      test_labels: [e] int32.
      class_names: c names.
      mean: of each channel; empty for features.
      std: of each channel.
      recipe: of the augmentation, see ``data.images.augment``.
      files: names of the n pictures; empty where they have none.
      name: what messages call it.
    """

    images: Array
    labels: np.ndarray
    test_images: Array
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    recipe: str = "none"
    files: Sequence[str] = ()
    name: str = ""


def load_source(
    name: str,
    folder: str | Path,
    *,
    limit: int = 0,
    test_limit: int = 0,
    imbalance: float = 0.0,
    size: int = 224,
    seed: int = 0,
    verify: bool = False,
) -> Source:
    """Read a set into memory.

    Args:
      name: of ``SETS``; ``tiny`` is made here (``gratings``), the others are read in their official
        files, parts of CIFAR-10 too.
      folder: of the files.
      limit: training pictures drawn at random; 0 is all.
      test_limit: test pictures drawn at random; 0 is all.
      imbalance: size of the last class relative to the first, exponentially between; 0 leaves the
        training set as it is.
      size: of pictures of ``imagenet``, y and x, pixels.
      seed: of what the limits draw.
      verify: compare the files with their official checksums first, where a set has them
        (``tiny`` and ``imagenet`` have none); a part of a set has others.

    Raises:
      FileNotFoundError: the files are not there.
      ValueError: an unknown name, a file is damaged, a limit is out of range, or the pictures do
        not fit into half of a device's memory.
    """
    if name not in SETS:
        raise ValueError(f"data {name!r}: expected one of {', '.join(SETS)}")
    keys = jax.random.split(jax.random.key(seed))
    files: Sequence[str] = ()
    if name == "imagenet":
        train, test, files = _read_imagenet(keys[0], folder, size, limit, test_limit)
    elif name == "tiny":
        train, test = gratings(keys[0], limit or 600), gratings(keys[1], test_limit or 200)
    else:
        train, test = _official(name, folder, verify)
        train, test = _drawn(keys[0], train, limit), _drawn(keys[1], test, test_limit)
    if imbalance and files:
        raise ValueError(f"{train.name}: an imbalanced part is made of sets in one file only")
    if imbalance:
        key = jax.random.key(IMBALANCE_SEED)
        train = vision.exponentially_imbalanced(key, train, ratio=imbalance)
    mean, std = MOMENTS[name]
    return Source(
        train.images,
        train.labels,
        test.images,
        test.labels,
        train.class_names,
        mean,
        std,
        RECIPES.get(name, "none"),
        files,
        train.name,
    )


def _official(
    name: str, folder: str | Path, verify: bool
) -> tuple[vision.LabelledImages, vision.LabelledImages]:
    readers: dict[str, Any] = {
        "cifar10": vision.load_cifar10,
        "mnist": vision.load_mnist,
        "fashion_mnist": vision.load_fashion_mnist,
        "svhn": vision.load_svhn,
    }
    return readers[name](folder, verify=verify)


def _drawn(key: Key, data: vision.LabelledImages, limit: int) -> vision.LabelledImages:
    rows = _rows(key, len(data.labels), limit, data.name)
    return replace(data, images=data.images[rows], labels=data.labels[rows])


def _rows(key: Key, size: int, limit: int, name: str) -> np.ndarray:
    if not 0 <= limit <= size:
        raise ValueError(f"{name}: {limit} of {size} pictures; expected 0 (all) to {size}")
    if not limit:
        return np.arange(size)
    return np.sort(np.asarray(jax.random.permutation(key, size))[:limit])


def _read_imagenet(
    key: Key, folder: str | Path, size: int, limit: int, test_limit: int
) -> tuple[vision.LabelledImages, vision.LabelledImages, list[str]]:
    train, test = open_imagenet(folder, size=size)
    keys = jax.random.split(key)
    rows = [
        _rows(k, len(part.paths), n, part.name)
        for k, part, n in zip(keys, (train, test), (limit, test_limit), strict=True)
    ]
    needed = sum(map(len, rows)) * size * size * 3
    room = memory_limit(jax.local_devices()) // 2
    if needed > room:
        raise ValueError(
            f"{folder}: {sum(map(len, rows))} pictures of {size} pixels take {needed / 1e9:.0f} "
            f"GB; training draws its batches on the device, and half of its memory is "
            f"{room / 1e9:.0f} GB. Take fewer (--limit), smaller ones (--size), or train the head "
            "alone on features (--setting=C-II --data=features)"
        )
    read = [_read(part, chosen) for part, chosen in zip((train, test), rows, strict=True)]
    return read[0], read[1], [str(train.paths[row]) for row in rows[0]]


def _read(part: ImageFolder, rows: np.ndarray) -> vision.LabelledImages:
    images = np.stack([part.read(int(row)) for row in rows])
    return vision.LabelledImages(images, part.labels[rows], part.class_names, part.name)


def held_out_rows(key: Key, labels: Array, fraction: float, *, balanced: bool) -> np.ndarray:
    """Which samples are kept to choose the best parameters by.

    Args:
      key: a jax key.
      labels: [n] int32.
      fraction: of all samples, in (0, 1).
      balanced: as many of each class (as the released code does), as far as half of a class goes;
        or at random over all (as the thesis says).

    Returns:
      [n] bool, at least one true.

    Raises:
      ValueError: the fraction is outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise ValueError(f"validation {fraction}: expected more than 0, less than 1")
    labels = np.asarray(labels)
    number = max(1, round(fraction * len(labels)))
    order = np.asarray(jax.random.permutation(key, len(labels)))
    chosen = np.zeros(len(labels), bool)
    if not balanced:
        chosen[order[:number]] = True
        return chosen
    classes = int(labels.max()) + 1
    share, more = divmod(number, classes)
    for c in range(classes):
        rows = order[labels[order] == c]
        chosen[rows[: min(share + (c < more), (len(rows) + 1) // 2)]] = True
    return chosen


# ---- training, poison and test, all apart ----


@dataclass(frozen=True)
class PoisonSets:
    """What a ``PoisonTask`` of pictures learns from.

    Attributes:
      sets: ``inputs`` [n, y, x, c] uint8 and ``labels`` [n] int32, and the same of ``poison_...``
        and ``test_...``.
      classes: number of classes.
      mean: of each channel, of pictures in [0, 1].
      std: of each channel.
    """

    sets: dict[str, Array]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def prepare(self, images: Array) -> jax.Array:
        """Stored pictures as the network takes them: standardised, never augmented."""
        return standardise(to_unit(images), mean=self.mean, std=self.std)


def load_poison_sets(
    name: str,
    folder: str | Path,
    *,
    limit: int = 0,
    poison_limit: int = 0,
    test_limit: int = 0,
    seed: int = 0,
) -> PoisonSets:
    """Read a set of pictures in its official files and divide it.

    The poison is the extra set of SVHN (531,131 pictures), as in the thesis; of other sets it is
    half of the training pictures, as its code has it for CIFAR-10.

    Args:
      name: ``svhn``, or another set of ``sources.load_source``.
      folder: of the files.
      limit: training pictures, drawn at random; 0 is all.
      poison_limit: poison pictures, likewise.
      test_limit: test pictures, likewise.
      seed: of the division and of what the limits draw.

    Raises:
      FileNotFoundError: the files are not there.
      ValueError: as ``load_source``, or a limit is out of range.
    """
    source = load_source(name, folder)
    images, labels, std = np.asarray(source.images), source.labels, source.std
    keys = jax.random.split(jax.random.key(seed), 4)
    if name == "svhn":
        both, n = vision.load_svhn(folder, extra=True)[0], len(labels)
        poison, std = (both.images[n:], both.labels[n:]), THESIS_SVHN_STD
    else:
        order = np.asarray(jax.random.permutation(keys[3], len(labels)))
        mine, theirs = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
        poison = images[theirs], labels[theirs]
        images, labels = images[mine], labels[mine]
    parts = {
        "": (images, labels, limit),
        "poison_": (*poison, poison_limit),
        "test_": (source.test_images, source.test_labels, test_limit),
    }
    sets: dict[str, Array] = {}
    for key, (part, (x, y, most)) in zip(keys[:3], parts.items(), strict=True):
        if not 0 <= most <= len(y):
            raise ValueError(f"{part}limit is {most}; expected 0 (all) to {len(y)} pictures")
        rows = np.arange(len(y))
        if most:
            rows = np.sort(np.asarray(jax.random.permutation(key, len(y)))[:most])
        sets |= {f"{part}inputs": x[rows], f"{part}labels": y[rows]}
    return PoisonSets(sets, len(source.class_names), source.mean, std)
