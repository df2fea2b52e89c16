"""Pictures for natural and poisoned training: a training, a poison and a test set, all apart."""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from densejax.classification.sources import load_source
from densejax.data.images import standardise, to_unit
from densejax.data.vision import load_svhn
from densejax.typing import Array

# By which the thesis' code standardises SVHN: deviations within a picture, averaged.
THESIS_SVHN_STD = (0.1200, 0.1231, 0.1052)


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
        both, n = load_svhn(folder, extra=True)[0], len(labels)
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
