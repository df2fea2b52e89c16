"""Error weights of a labelled volume, made once on the host before training.

A voxel's cross-entropy is multiplied by W = 0.01 + W_cb + W_ep (Emam 2021, ch. 4; Guay et al.
2021): rare classes count more (class balance), and so do the borders of cells and organelles (edge
preservation). The thesis states one algorithm for the borders and the released code holds another;
both are here. Voxels that are not labelled (-1) are no source of a border and weigh 0.
"""

from collections.abc import Callable, Sequence

import numpy as np
import scipy

FLOOR = 0.01

BORDERS = (
    ((0,), (1,)),
    ((1,), (0,)),
    ((1,), (2, 3, 4, 5, 6)),
    ((2, 3, 4, 5, 6), (1,)),
)
"""Source and target classes of the platelet volume: background and cell, cell and organelles, both
ways. There is no border between background and organelles."""

Borders = Sequence[tuple[Sequence[int], Sequence[int]]]


def _check_labels(labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 3 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels are {labels.dtype} of shape {labels.shape}; expected integers [z, y, x]"
        )
    return labels


def borders_between(
    background: Sequence[int], cell: Sequence[int], organelles: Sequence[int]
) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """Source and target classes of the published borders, for other classes than the platelet's.

    Args:
      background: class labels.
      cell: class labels.
      organelles: class labels; may be empty, as may any group.

    Returns:
      Pairs (source, target): background to cell and back, cell to organelles and back, leaving
      out pairs with an empty group.
    """
    b, c, o = tuple(background), tuple(cell), tuple(organelles)
    return tuple((s, t) for s, t in ((b, c), (c, b), (c, o), (o, c)) if s and t)


def class_balance(labels: np.ndarray, classes: int) -> np.ndarray:
    """Weight of every voxel by the rarity of its class, W_cb: 1 for the rarest class.

    Args:
      labels: int [z, y, x], 0 ... classes - 1, or -1 where not labelled.
      classes: number of classes.

    Returns:
      float32 [z, y, x]: (voxels of the rarest class present) / (voxels of this class), 0 where
      not labelled.

    Raises:
      ValueError: if labels are not integers [z, y, x], or a label is out of range.

    Source: Emam 2021, ch. 4: proportional to 1 / N_class over the whole volume, largest 1.
    Departure: a class may be absent, where the released code expects each to be there.
    """
    labels = _check_labels(labels)
    if labels.size and not -1 <= labels.min() <= labels.max() < classes:
        raise ValueError(
            f"labels range over {labels.min()} ... {labels.max()}; expected -1 ... {classes - 1}"
        )
    counts = np.bincount(labels[labels >= 0].ravel(), minlength=classes).astype(np.float64)
    present = counts > 0
    weights = np.zeros(classes + 1)  # the last entry is that of -1
    if present.any():
        weights[:-1][present] = counts[present].min() / counts[present]
    return weights[labels].astype(np.float32)


def edge_preservation(
    labels: np.ndarray,
    *,
    borders: Borders = BORDERS,
    sigma: float = 6.0,
    scale: float = 0.882,
    threshold: float = 0.25,
    mode: str = "reflect",
) -> np.ndarray:
    """Weight of every voxel by its nearness to a border, W_ep, by the formula of the thesis.

    In each section, for each border, ``scale * (1[label in source] * Gaussian(sigma))`` at the
    voxels of the target; their sum W, once for all borders, becomes
    ``ReLU(W - threshold) * max W / (max W - threshold)``, so that its largest value stays.

    Args:
      labels: int [z, y, x], -1 where not labelled.
      borders: pairs of (source, target) classes; see `borders_between`.
      sigma: standard deviation of the Gaussian in voxels, cut off at 4 sigma.
      scale: factor c.
      threshold: alpha, below which a weight becomes 0.
      mode: how `scipy.ndimage.gaussian_filter` goes on beyond a section's edge.

    Returns:
      float32 [z, y, x], 0 or more, 0 where not labelled.

    Raises:
      ValueError: if labels are not integers [z, y, x].

    Source: Emam 2021, ch. 4. What the thesis leaves open: the edge mode (here reflect) and whether
    max W is of the section or of the volume (here of the volume, so that a section with weak
    borders is not raised to the others' weights).
    """
    labels = _check_labels(labels)
    total = np.zeros(labels.shape, np.float64)
    for z, section in enumerate(labels):
        for source, target in borders:
            inside = np.isin(section, source)
            if inside.any():
                spread = scipy.ndimage.gaussian_filter(inside.astype(np.float64), sigma, mode=mode)
                total[z] += np.where(np.isin(section, target), scale * spread, 0.0)
    highest = total.max(initial=0.0)
    if highest <= threshold:
        return np.zeros(labels.shape, np.float32)
    total = np.maximum(total - threshold, 0.0) * (highest / (highest - threshold))
    return total.astype(np.float32)


def diffuse(
    source: np.ndarray, *, steps: int = 50, rate: float = 0.2, decay: float = 0.98
) -> np.ndarray:
    """Let a substance diffuse out of source voxels that are kept at 1, in a periodic section.

    Each step is ``u <- max(0, decay * (u + rate * K * u))``, with the kernel K of -1 at the centre,
    1/6 at the four neighbours and 1/12 at the diagonals; then the sources are set to 1 again.

    Args:
      source: bool [y, x].
      steps: number of steps.
      rate: diffusion per step.
      decay: factor per step.

    Returns:
      float64 [y, x], in 0 ... 1.

    Source: the released code of Emam 2021, ch. 4, which steps in Fourier space.
    """
    source = np.asarray(source, bool)
    kernel = np.array([[1, 2, 1], [2, -12, 2], [1, 2, 1]]) / 12
    u = source.astype(np.float64)
    for _ in range(steps):
        u = decay * (u + rate * scipy.ndimage.convolve(u, kernel, mode="wrap"))
        u = np.maximum(u, 0.0)
        u[source] = 1.0
    return u


def diffusive_edge_weights(
    labels: np.ndarray,
    *,
    borders: Borders = BORDERS,
    threshold: float = 0.2,
    maximum: float = 25.0,
    steps: int = 50,
    rate: float = 0.2,
    decay: float = 0.98,
) -> np.ndarray:
    """Weight of every voxel by its nearness to a border, by the diffusion of the released code.

    For each border and section the source classes diffuse (`diffuse`), `threshold` is taken off
    and what is left above 0 is kept at the target's voxels; each border is scaled to `maximum`
    over the volume and the borders are summed. It reaches 2 voxels, where the thesis's formula
    reaches 4.

    Args:
      labels: int [z, y, x], -1 where not labelled.
      borders: pairs of (source, target) classes; see `borders_between`.
      threshold: taken off each border's concentration.
      maximum: largest weight of each border.
      steps: see `diffuse`.
      rate: see `diffuse`.
      decay: see `diffuse`.

    Returns:
      float32 [z, y, x], 0 or more, 0 where not labelled.

    Raises:
      ValueError: if labels are not integers [z, y, x].

    Source: ``diffusive_edge_weights`` of the released code of Emam 2021, ch. 4.
    """
    labels = _check_labels(labels)
    total = np.zeros(labels.shape, np.float64)
    for source, target in borders:
        term = np.zeros(labels.shape, np.float64)
        for z, section in enumerate(labels):
            inside = np.isin(section, source)
            if inside.any():
                spread = diffuse(inside, steps=steps, rate=rate, decay=decay)
                term[z] = np.maximum(spread - threshold, 0.0) * np.isin(section, target)
        highest = term.max(initial=0.0)
        if highest > 0:
            total += term * (maximum / highest)
    return total.astype(np.float32)


def error_weights(
    labels: np.ndarray,
    classes: int,
    *,
    borders: Borders = BORDERS,
    edges: Callable[..., np.ndarray] = edge_preservation,
    floor: float = FLOOR,
) -> np.ndarray:
    """Error weight of every voxel: floor + class balance + edges.

    Args:
      labels: int [z, y, x], 0 ... classes - 1, or -1 where not labelled.
      classes: number of classes.
      borders: pairs of (source, target) classes; see `borders_between`.
      edges: `edge_preservation` (the thesis) or `diffusive_edge_weights` (the released code), or
        any function of labels and ``borders=``.
      floor: added to every labelled voxel.

    Returns:
      float32 [z, y, x], at least `floor` where labelled, 0 where not.

    Raises:
      ValueError: if labels are not integers [z, y, x], or a label is out of range.

    Source: Emam 2021, ch. 4, W = 0.01 + W_cb + W_ep.
    """
    balance = class_balance(labels, classes)
    weights = np.float32(floor) + balance + edges(labels, borders=borders)
    return np.where(np.asarray(labels) >= 0, weights, 0).astype(np.float32)
