"""Which sections of a labelled volume to look at."""

import numpy as np
from numpy.typing import ArrayLike


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
