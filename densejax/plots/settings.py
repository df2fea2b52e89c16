"""Settings: what a population's scores have to do with what was drawn for each member."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from densejax.plots import scales, style

COLUMNS = 5


def scores_over_settings(
    settings: Mapping[str, ArrayLike],
    scores: ArrayLike,
    path: str | Path,
    *,
    correlations: Mapping[str, float] | None = None,
    label: str = "score",
) -> Path:
    """The scores over each setting, a panel each; those over nearly a decade on a log axis.

    Args:
      settings: [n] float by name.
      scores: [n] float; members with a score that is not finite are left out.
      path: of the PNG.
      correlations: rank correlation with the scores, by name, written above a panel.
      label: of the vertical axes.

    Returns:
      The path.

    Raises:
      ValueError: there is no setting, the lengths differ, no score is finite, or the name does not
        end in ``.png``.
    """
    scores = np.asarray(scores, float)
    values = {name: np.asarray(v, float) for name, v in settings.items()}
    if not values or any(v.shape != scores.shape for v in values.values()):
        shapes = {name: v.shape for name, v in values.items()}
        raise ValueError(f"settings {shapes}, scores {scores.shape}: expected [n] each")
    seen = np.isfinite(scores)
    if not seen.any():
        raise ValueError("no score is finite: there is nothing to draw")
    rows = -(-len(values) // COLUMNS)
    figure = style.new_figure(1.9 * min(COLUMNS, len(values)) + 0.5, 2.0 * rows + 0.2)
    grid = figure.subplots(rows, min(COLUMNS, len(values)), sharey=True, squeeze=False)
    for axes in grid.flat[len(values) :]:
        axes.set_visible(False)
    for index, (axes, (name, column)) in enumerate(zip(grid.flat, values.items(), strict=False)):
        style.dress(axes, x=name, y=label if index % COLUMNS == 0 else "", grid="both")
        axes.margins(x=0.08, y=0.08)
        axes.plot(
            column[seen],
            scores[seen],
            linestyle="none",
            marker="o",
            markersize=4.5,
            color=style.SERIES_COLOURS[0],
            alpha=0.7,
            markeredgecolor="white",
            markeredgewidth=0.5,
        )
        if column.min() > 0 and column.max() / column.min() > 8:
            axes.set_xscale("log")
            scales.logarithmic_axis(axes.xaxis, most=3)
        else:
            whole = bool((column == np.round(column)).all())
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=whole))
        if correlations and np.isfinite(correlations.get(name, np.nan)):
            text = f"rank correlation {correlations[name]:+.2f}"
            axes.set_title(text, fontsize=style.TICK_SIZE, color=style.INK, loc="left")
    return style.save(figure, path)
