"""Features on disk as what there is to learn from: linear evaluation without the encoder."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from densejax.active.rows import count_not_finite, open_array, open_labels, take_rows
from densejax.classification.sources import Source

PARTS = ("train", "test")


def open_features(
    folder: str | Path, *, limit: int = 0, test_limit: int = 0, seed: int = 0
) -> Source:
    """Read ``<part>_features.npy`` [n, d] and ``<part>_labels.npy`` [n] of ``train`` and ``test``.

    Pictures are not augmented then, as they are where a linear head is trained on an encoder: the
    features are not equivalent to it, only like it.

    Args:
      folder: of the four files.
      limit: training samples drawn at random; 0 is all.
      test_limit: test samples drawn at random; 0 is all.
      seed: of what the limits draw.

    Returns:
      float32 features in memory; classes are 0 to the largest label.

    Raises:
      FileNotFoundError: a file is not there.
      ValueError: a file is cut short or no such array, lengths or widths do not agree, a label is
        negative, a value is not finite (how many rows, and the first), or a limit is out of range.
    """
    folder = Path(folder)
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for number, (part, most) in enumerate(zip(PARTS, (limit, test_limit), strict=True)):
        path = folder / f"{part}_features.npy"
        array: Any = open_array(path, axes=("n", "d"))
        size = array.shape[0]
        labels = open_labels(folder / f"{part}_labels.npy", size, None)
        if (labels < 0).any():
            first = int(np.flatnonzero(labels < 0)[0])
            raise ValueError(f"{folder / f'{part}_labels.npy'}: sample {first} has no label")
        if not 0 <= most <= size:
            raise ValueError(f"{path}: {most} of {size} samples; expected 0 (all) to {size}")
        rows = np.arange(size)
        if most:
            key = jax.random.fold_in(jax.random.key(seed), number)
            rows = np.sort(np.asarray(jax.random.permutation(key, size))[:most])
        features = np.asarray(take_rows(array, rows), np.float32)
        if not np.isfinite(features).all():
            raise ValueError(count_not_finite(array, path))
        found[part] = features, labels[rows]
    (train, labels), (test, test_labels) = (found[part] for part in PARTS)
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"{folder}: features of {train.shape[1]} (train) and {test.shape[1]}")
    classes = int(max(labels.max(), test_labels.max())) + 1
    names = tuple(str(c) for c in range(classes))
    return Source(train, labels, test, test_labels, names, name=f"features of {folder.name}")
