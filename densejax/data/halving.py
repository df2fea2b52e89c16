"""Arrays at half their resolution: labels by majority, intensities by mean.

A cell is the two voxels of each halved axis (eight, four or two voxels together); at the end of an
axis of odd length it has one layer only. Voxels outside the array never count.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np


def halve_labels(
    labels: np.ndarray, steps: Sequence[int], *, not_counted: int | None = None
) -> np.ndarray:
    """The most frequent label of each cell; the lowest of those that tie.

    Args:
        labels: boolean or integer, any number of axes.
        steps: 2 for an axis to halve and 1 for another, one for each axis.
        not_counted: a label without a vote, such as that of voxels which were not predicted; a
            cell gets it where no voxel has another.

    Returns:
        As ``labels``; a halved axis of n has (n + 1) // 2.
    """
    voxels = _cells(labels, steps)
    shape = voxels[0].shape
    flat = [part.reshape(-1) for part in voxels]
    found = flat[0].copy()
    differs = np.zeros(found.shape, bool)
    for part in flat[1:]:
        differs |= part != found
    # Objects are larger than voxels: few cells hold more than one label.
    mixed = np.flatnonzero(differs)
    if mixed.size:
        found[mixed] = _majority([part[mixed] for part in flat], not_counted)
    return found.reshape(shape)


def halve_mean(values: np.ndarray, steps: Sequence[int]) -> np.ndarray:
    """The mean of each cell; of integers, rounded to the nearest, a half to the even number.

    Args:
        values: integer or float, any number of axes.
        steps: 2 for an axis to halve and 1 for another, one for each axis.

    Returns:
        As ``values``; a halved axis of n has (n + 1) // 2.
    """
    voxels = _cells(values, steps)
    bits = int(math.log2(len(voxels)))
    dtype = values.dtype
    if dtype.kind == "f":
        total = np.zeros(voxels[0].shape, np.float64)
        for part in voxels:
            total += part
        return (total / len(voxels)).astype(dtype)
    if dtype.itemsize == 8:
        return _mean_of_wide(voxels, bits)
    # Eight of the widest value fit into twice the bytes.
    sums = np.zeros(voxels[0].shape, np.dtype(f"{dtype.kind}{2 * dtype.itemsize}"))
    for part in voxels:
        sums += part
    return _round_shift(sums, bits).astype(dtype)


def _cells(array: np.ndarray, steps: Sequence[int]) -> list[np.ndarray]:
    """Return the cells' first voxels, their second ones, and so on, each as an array."""
    if len(steps) != array.ndim or not set(steps) <= {1, 2}:
        raise ValueError(f"steps {tuple(steps)}: expected 1 or 2 for each of {array.ndim} axes")
    odd = [(0, (-size) % step) for size, step in zip(array.shape, steps, strict=True)]
    if any(after for _, after in odd):
        # To repeat the last layer doubles the votes and the weights of all voxels of a cell alike.
        array = np.pad(array, odd, mode="edge")
    starts = itertools.product(*(range(step) for step in steps))
    return [
        np.ascontiguousarray(
            array[tuple(slice(a, None, step) for a, step in zip(start, steps, strict=True))]
        )
        for start in starts
    ]


def _majority(voxels: list[np.ndarray], not_counted: int | None) -> np.ndarray:
    """Return the most frequent of several values, place by place, the lowest of those that tie."""
    best = voxels[0].copy()
    most = np.zeros(best.shape, np.int8)
    for value in voxels:
        votes = np.zeros(best.shape, np.int8)
        for other in voxels:
            votes += other == value
        if not_counted is not None:
            votes[value == not_counted] = 0
        better = (votes > most) | ((votes == most) & (value < best))
        best[better], most[better] = value[better], votes[better]
    return best


def _round_shift(sums: np.ndarray, bits: int) -> np.ndarray:
    """Divide by 2 ** bits, to the nearest, a half to the even number."""
    if bits == 0:
        return sums
    half, one = sums.dtype.type((1 << (bits - 1)) - 1), sums.dtype.type(1)
    shift = sums.dtype.type(bits)
    return (sums + half + ((sums >> shift) & one)) >> shift


def _mean_of_wide(voxels: list[np.ndarray], bits: int) -> np.ndarray:
    """Return the mean of 64-bit integers, whose sum would not fit: quotients and rests apart."""
    kind = voxels[0].dtype.type
    quotients, rests = np.zeros_like(voxels[0]), np.zeros_like(voxels[0])
    for part in voxels:
        quotients += part >> kind(bits)
        rests += part & kind((1 << bits) - 1)
    # The parity of the result's quotient decides a half, so it goes into the sum first.
    quotients += rests >> kind(bits)
    rests = (rests & kind((1 << bits) - 1)) + ((quotients & kind(1)) << kind(bits))
    return quotients - (quotients & kind(1)) + _round_shift(rests, bits)
