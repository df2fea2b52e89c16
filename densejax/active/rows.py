"""Rows of a pool: sets of them, the best of them, and what is true of them."""

import numpy as np

from densejax.typing import Array


def members(indices: Array, size: int, *, name: str = "indices") -> np.ndarray:
    """The mask of a set of rows: [l] integers in [0, size) -> [size] bool.

    Raises:
      ValueError: an index is out of range, or twice the same; ``name`` is named.
    """
    indices = np.asarray(indices)
    if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(f"{name}: expected [l] integers, found {indices.dtype} {indices.shape}")
    outside = indices[(indices < 0) | (indices >= size)]
    if outside.size:
        raise ValueError(f"{name}: {outside[0]} is not a row of a pool of {size}")
    mask = np.zeros(size, bool)
    mask[indices] = True
    if mask.sum() < indices.size:
        values, counts = np.unique(indices, return_counts=True)
        raise ValueError(f"{name}: {values[counts > 1][0]} occurs more than once")
    return mask


def first(
    values: Array, available: Array, budget: int, *, largest_first: bool = True
) -> np.ndarray:
    """The ``budget`` best available samples, best first, ties by the lowest index.

    Args:
      values: [n] floating.
      available: [n] bool.
      budget: 0 to the number of available samples.
      largest_first: whether large is good.

    Returns:
      [budget] int64.
    """
    candidates = np.flatnonzero(np.asarray(available))
    ranked = np.asarray(values)[candidates]
    ranked = -ranked if largest_first else ranked
    if 0 < budget < candidates.size:
        # Only what is as good as the last of the budget need be sorted.
        edge = np.partition(ranked, budget - 1)[budget - 1]
        keep = ranked <= edge
        candidates, ranked = candidates[keep], ranked[keep]
    return candidates[np.argsort(ranked, kind="stable")[:budget]]


def check_truth(labels: Array | None, available: Array, classes: int) -> None:
    """Refuse true labels that are missing or outside the classes.

    Args:
      labels: [n] int32, or [n, (z,) y, x], of which -1 is a pixel that doesn't count.
      available: [n] bool, the samples whose labels are needed.
      classes: c.

    Raises:
      ValueError: there are none, an available sample has none, or one is outside the classes.
    """
    if labels is None:
        raise ValueError("this selector needs the true labels of all samples (pool labels)")
    labels = np.asarray(labels)
    if labels.ndim == 1 and (missing := np.flatnonzero(available & (labels < 0))).size:
        raise ValueError(
            f"this selector needs the true labels of all samples: {missing.size} that may be "
            f"chosen have none, the first is {missing[0]}"
        )
    if labels.max(initial=-1) >= classes:
        sample = int(np.argwhere(labels >= classes)[0][0])
        raise ValueError(
            f"label {labels.max()}: expected fewer than {classes}, the classes; the first "
            f"outside them is in sample {sample}"
        )
