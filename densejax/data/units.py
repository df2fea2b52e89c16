"""Units of labelling for segmentation: whole pictures, fixed crops, or windows of a volume."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from densejax.typing import UNLABELLED, Array, Key


@dataclass(frozen=True)
class Units:
    """n units of one size, each labelled as a whole.

    Attributes:
      images: uint8 [n, z, y, x, c].
      labels: int8 or int32 [n, z, y, x]; 0..c-1, -1 where void.
      source: int32 [n], the picture or section that a unit is of.
      offset: int32 [n, 3], z, y, x of its corner there.
      group: n names, of the sequence or volume.
      names: n names, each once.
      source_shape: (sources, z, y, x), of all that units are cut from.
      class_names: c names.

    Raises:
      ValueError: lengths do not agree, or a label is outside the classes.
    """

    images: np.ndarray
    labels: np.ndarray
    source: np.ndarray
    offset: np.ndarray
    group: tuple[str, ...]
    names: tuple[str, ...]
    source_shape: tuple[int, int, int, int]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        lengths = {
            name: len(getattr(self, name))
            for name in ("images", "labels", "source", "offset", "group", "names")
        }
        if len(set(lengths.values())) > 1 or self.images.shape[:4] != self.labels.shape:
            raise ValueError(
                f"units: images {self.images.shape}, labels {self.labels.shape} and {lengths} "
                "entries do not agree"
            )
        _check_labels(self.labels, len(self.class_names), "units")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def pixels(self) -> int:
        """Pixels of a unit."""
        return int(np.prod(self.labels.shape[1:]))

    def counts(self, rows: Array) -> np.ndarray:
        """[r, c] int64, labelled pixels of each class in each of some units."""
        classes = len(self.class_names)
        labels = self.labels[np.asarray(rows, np.int64)].reshape(len(rows), self.pixels)
        found = [np.bincount(one[one >= 0].astype(np.int64), minlength=classes) for one in labels]
        return np.stack(found) if found else np.zeros((0, classes), np.int64)

    def distinct_pixels(self, rows: Array) -> int:
        """Pixels of the sources that a set of units covers, each counted once."""
        rows = np.asarray(rows, np.int64)
        z, y, x = self.labels.shape[1:]
        total = 0
        for source in np.unique(self.source[rows]):
            covered = np.zeros(self.source_shape[1:], bool)
            for a, b, c in self.offset[rows[self.source[rows] == source]]:
                covered[a : a + z, b : b + y, c : c + x] = True
            total += int(covered.sum())
        return total

    def boundary_length(self, rows: Array) -> int:
        """Borders between neighbouring pixels of y and x with different classes, of some units.

        In pixel edges: what a person who outlines every object draws; twice where units overlap.
        """
        labels = self.labels[np.asarray(rows, np.int64)]
        total = 0
        for axis in (2, 3):
            first = np.take(labels, range(labels.shape[axis] - 1), axis=axis)
            second = np.take(labels, range(1, labels.shape[axis]), axis=axis)
            known = (first >= 0) & (second >= 0)
            total += int(((first != second) & known).sum())
        return total

    def checksum(self) -> str:
        """SHA-256 of images and labels and where they are from."""
        found = hashlib.sha256()
        for array in (self.images, self.labels, self.source, self.offset):
            found.update(f"{array.shape}{array.dtype}".encode())
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()


def _check_labels(labels: np.ndarray, classes: int, what: str) -> None:
    if labels.size and (labels.min() < UNLABELLED or labels.max() >= classes):
        raise ValueError(
            f"{what}: labels {labels.min()} to {labels.max()}; expected 0 to {classes - 1}, or -1 "
            "for void"
        )


def whole_pictures(
    images: Array,
    labels: Array,
    *,
    names: Sequence[str],
    groups: Sequence[str],
    class_names: Sequence[str],
) -> Units:
    """Every picture is a unit.

    Args:
      images: uint8 [n, y, x, c].
      labels: int [n, y, x], -1 where void.
      names: n names of pictures.
      groups: n names of their sequences.
      class_names: c names.
    """
    number = len(images)
    return Units(
        np.asarray(images)[:, None],
        np.asarray(labels)[:, None],
        np.arange(number, dtype=np.int32),
        np.zeros((number, 3), np.int32),
        tuple(groups),
        tuple(names),
        (number, 1, *np.shape(labels)[1:]),
        tuple(class_names),
    )


def random_crops(key: Key, units: Units, size: int) -> Units:
    """One fixed crop of each picture, drawn once; the rest is thrown away (Chen 2020, 1.3.3).

    Args:
      key: a jax key.
      units: whole pictures.
      size: of the crops along y and x, pixels.

    Raises:
      ValueError: a crop is larger than the pictures.
    """
    y, x = units.labels.shape[2:]
    _check_size(size, (y, x), "crop", "the pictures")
    draws = [
        np.asarray(
            jax.random.randint(jax.random.fold_in(key, axis), (len(units),), 0, n - size + 1)
        )
        for axis, n in enumerate((y, x))
    ]
    where = [(int(a), int(b)) for a, b in zip(*draws, strict=True)]
    cut = [(slice(None), slice(a, a + size), slice(b, b + size)) for a, b in where]
    return Units(
        np.stack([units.images[n][place] for n, place in enumerate(cut)]),
        np.stack([units.labels[n][place] for n, place in enumerate(cut)]),
        units.source,
        np.array([(0, a, b) for a, b in where], np.int32),
        units.group,
        units.names,
        units.source_shape,
        units.class_names,
    )


def windows(
    key: Key,
    images: Array,
    labels: Array,
    *,
    size: int,
    count: int | None,
    class_names: Sequence[str],
    group: str = "volume",
) -> Units:
    """Windows of the sections of a volume: drawn anywhere, so that they overlap, or a grid.

    Args:
      key: a jax key.
      images: uint8 [z, y, x].
      labels: int [z, y, x], -1 where void.
      size: along y and x, pixels.
      count: windows to draw, each place once; None is the grid of those that touch nowhere, what
        is left over at the far edges belongs to none.
      class_names: c names.
      group: name of the volume.

    Raises:
      ValueError: a window is larger than a section, or more are asked for than there are places.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    sections, y, x = labels.shape
    _check_size(size, (y, x), "window", "the sections")
    if count is None:
        corners = np.stack(
            np.meshgrid(
                np.arange(sections),
                np.arange(0, y - size + 1, size),
                np.arange(0, x - size + 1, size),
                indexing="ij",
            ),
            axis=-1,
        ).reshape(-1, 3)
    else:
        shape = (sections, y - size + 1, x - size + 1)
        places = int(np.prod(shape))
        if not 1 <= count <= places:
            raise ValueError(f"{count} windows of {size} pixels; expected 1 to {places} places")
        chosen = np.asarray(jax.random.choice(key, places, (count,), replace=False))
        corners = np.stack(np.unravel_index(np.sort(chosen), shape), axis=-1)
    cuts = [(z, slice(a, a + size), slice(b, b + size)) for z, a, b in corners.tolist()]
    return Units(
        np.stack([images[cut] for cut in cuts])[:, None, ..., None],
        np.stack([labels[cut] for cut in cuts])[:, None],
        corners[:, 0].astype(np.int32),
        np.stack([np.zeros(len(corners)), *corners[:, 1:].T], axis=-1).astype(np.int32),
        (group,) * len(corners),
        tuple(f"z{z:03d}_y{a:04d}_x{b:04d}" for z, a, b in corners.tolist()),
        (sections, 1, y, x),
        tuple(class_names),
    )


def _check_size(size: int, shape: tuple[int, int], what: str, of: str) -> None:
    if not 1 <= size <= min(shape):
        raise ValueError(
            f"a {what} of {size} pixels (--size): {of} are {shape[0]} x {shape[1]}; expected 1 to "
            f"{min(shape)}"
        )


def binned(images: Array, labels: Array, factor: int, *, classes: int) -> tuple[Array, Array]:
    """A volume at a coarser grid of y and x.

    Args:
      images: uint8 [z, y, x]; means of factor x factor pixels, rounded half up.
      labels: int [z, y, x]; the class of most of the pixels (void included), the lowest of equals.
      factor: pixels to one; a rest at the far edges is left out.
      classes: c.

    Raises:
      ValueError: the factor is below 1 or above the size.
    """
    if not 1 <= factor <= min(np.shape(labels)[1:]):
        raise ValueError(
            f"binning by {factor} of {np.shape(labels)}; expected 1 to {min(np.shape(labels)[1:])}"
        )
    if factor == 1:
        return images, labels

    def blocks(array: Array) -> np.ndarray:
        z, y, x = array.shape
        cut = np.asarray(array)[:, : y // factor * factor, : x // factor * factor]
        return cut.reshape(z, y // factor, factor, x // factor, factor)

    mean = np.floor(blocks(images).mean(axis=(2, 4)) + 0.5).astype(np.uint8)
    parts = blocks(labels)
    votes = np.stack([(parts == c).sum(axis=(2, 4)) for c in range(-1, classes)], axis=-1)
    # Void is the last resort among equals: classes first, in their order.
    votes = np.concatenate([votes[..., 1:], votes[..., :1]], axis=-1)
    winner = votes.argmax(axis=-1)
    return mean, np.where(winner == classes, UNLABELLED, winner).astype(np.int32)


def halves(images: Array, labels: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """A volume divided halfway along y: train above, test below (Roels & Saeys 2019)."""
    middle = labels.shape[1] // 2
    if middle < 1:
        raise ValueError(f"a volume of shape {labels.shape} has no halves along y")
    return (images[:, :middle], labels[:, :middle]), (images[:, middle:], labels[:, middle:])
