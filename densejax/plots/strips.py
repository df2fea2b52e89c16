"""Strips: populations one below the other, each seed a dot."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from densejax.plots import style


def strips(
    scores: Mapping[str, ArrayLike],
    path: str | Path,
    *,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    label: str = "accuracy",
    title: str = "",
) -> Path:
    """Each seed of each population as a dot, the median and its interval below the dots.

    Args:
      scores: [n] float a population, by name, from top to bottom; not finite ones are left out.
      path: of the PNG.
      intervals: low and high of the median, by name.
      label: of the horizontal axis, with its unit if there is one.
      title: above the axes.

    Returns:
      The path.

    Raises:
      ValueError: there is no population, one has no finite score, or the name does not end in
        ``.png``.
    """
    values = {name: np.asarray(v, float).reshape(-1) for name, v in scores.items()}
    values = {name: v[np.isfinite(v)] for name, v in values.items()}
    empty = [name for name, v in values.items() if not v.size]
    if empty or not values:
        raise ValueError(f"scores of {empty or 'nobody'}: expected at least one finite score each")
    figure = style.new_figure(5.2, 0.9 + 0.34 * len(values))
    axes = figure.add_subplot()
    style.dress(axes, x=label, title=title, grid="x")
    for row, (name, population) in enumerate(values.items()):
        axes.plot(
            population,
            np.full(population.size, row - 0.14),
            linestyle="none",
            marker="o",
            markersize=4.2,
            color=style.SERIES_COLOURS[0],
            alpha=0.55,
            markeredgewidth=0,
        )
        below = row + 0.2
        if intervals and name in intervals:
            axes.hlines(below, *intervals[name], color=style.INK, linewidth=1.4)
        axes.plot(
            np.median(population),
            below,
            marker="D",
            markersize=4.2,
            markerfacecolor="white",
            markeredgecolor=style.INK,
            markeredgewidth=1.1,
        )
    axes.set_yticks(range(len(values)), list(values), fontsize=style.LABEL_SIZE)
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.04)
    return style.save(figure, path)
