"""How large the objects of each class are: distributions over decades of volume."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from densejax.plots import style

BINS_A_DECADE = 8


def object_sizes(
    volumes: Mapping[str, ArrayLike],
    path: str | Path,
    *,
    colours: Sequence[str] | None = None,
    title: str = "",
) -> Path:
    """One row a class: a histogram of the objects' volumes on a logarithmic axis, and the median.

    Beside the median stands the diameter of the ball of that volume.

    Args:
      volumes: class name -> [n] volumes above 0, nm^3; n may differ, and is 1 or more.
      path: of the picture, ``.png``.
      colours: one for each class; by default those of series.
      title: of the picture.

    Returns:
      The path.

    Raises:
      ValueError: no class, a class without objects, or a volume that is not above 0.
    """
    values = {name: np.asarray(found, float).ravel() for name, found in volumes.items()}
    if not values:
        raise ValueError("no class has objects: there is nothing to draw")
    for name, found in values.items():
        if not found.size or not (found > 0).all():
            raise ValueError(f"{name}: expected volumes above 0 nm^3, found {found[:3]}")
    colours = colours or [style.series_colour(i) for i in range(len(values))]
    edges = _edges(np.concatenate(list(values.values())))
    figure = style.new_figure(4.8, 0.75 + 0.85 * len(values))
    rows = figure.subplots(len(values), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, found), colour in zip(rows, values.items(), colours, strict=True):
        _draw(axes, name, found, colour, edges)
    rows[-1].set_xlabel("volume (nm³)", fontsize=style.LABEL_SIZE, color=style.INK)
    if title:
        figure.suptitle(title, fontsize=style.TITLE_SIZE, color=style.INK, x=0.02, ha="left")
    return style.save(figure, path)


def _edges(pooled: np.ndarray) -> np.ndarray:
    low = np.floor(np.log10(pooled.min()) * BINS_A_DECADE)
    high = np.ceil(np.log10(pooled.max()) * BINS_A_DECADE)
    return 10 ** (np.arange(low, max(high, low + 1) + 1) / BINS_A_DECADE)


def _draw(axes: Axes, name: str, found: np.ndarray, colour: str, edges: np.ndarray) -> None:
    style.dress(axes)
    axes.set_xscale("log")
    axes.tick_params(which="minor", color=style.FAINT)
    axes.hist(
        found, bins=edges.tolist(), color=colour, alpha=0.75, edgecolor="white", linewidth=0.5
    )
    median = float(np.median(found))
    ball = (6 / np.pi * median) ** (1 / 3)
    axes.axvline(median, color=style.INK, linewidth=1.0, linestyle=(0, (3, 2)))
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.set_title(
        f"{name}: {found.size:,}, median {median:.3g} nm³ (a ball of {ball:.3g} nm)",
        fontsize=style.TICK_SIZE,
        color=style.INK,
        loc="left",
        pad=3,
    )
    axes.set_ylabel("objects", fontsize=style.TICK_SIZE, color=style.INK)
