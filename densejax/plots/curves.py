"""Curves: how a population learns, and what an ensemble gains with its size."""

from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import ArrayLike

from densejax.plots import style


def learning_curves(
    steps: ArrayLike,
    scores: ArrayLike,
    path: str | Path,
    *,
    label: str = "MIoU",
    title: str = "",
    step_label: str = "training step",
) -> Path:
    """Every seed as a grey line, their median over it.

    Args:
      steps: ``[t]`` int, when the scores were taken.
      scores: ``[k, t]`` float; nan where a seed was not evaluated or had failed.
      path: of the PNG.
      label: of the vertical axis, with its unit if there is one.
      title: above the axes.
      step_label: of the horizontal axis.

    Returns:
      The path.

    Raises:
      ValueError: the shapes do not match, or the name does not end in ``.png``.
    """
    steps, scores = np.asarray(steps), np.asarray(scores, float)
    if steps.ndim != 1 or scores.ndim != 2 or scores.shape[1] != steps.size or not scores.size:
        raise ValueError(
            f"steps has shape {steps.shape} and scores {scores.shape}: expected [t] and [k, t]"
        )
    figure = style.new_figure(4.6, 3.0)
    axes = figure.add_subplot()
    style.dress(axes, x=step_label, y=label, title=title)
    # Lines of many seeds must stay apart from one another and yet be seen where there are few.
    alpha = float(np.clip(6 / len(scores), 0.2, 0.6))
    for index, line in enumerate(scores):
        seen = np.isfinite(line)
        name = f"one seed (of {len(scores)})" if index == 0 else None
        axes.plot(steps[seen], line[seen], color="#6B7280", alpha=alpha, linewidth=0.8, label=name)
    seen = np.isfinite(scores).any(axis=0)
    median = np.nanmedian(scores[:, seen], axis=0)
    axes.plot(steps[seen], median, color="white", linewidth=3.6, solid_capstyle="round")
    axes.plot(steps[seen], median, color=style.SERIES_COLOURS[0], linewidth=2.0, label="median")
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    legend = axes.legend(frameon=False, fontsize=style.TICK_SIZE, labelcolor=style.INK)
    for handle in legend.get_lines():
        handle.set_alpha(1)
    return style.save(figure, path)


def top_k_curve(
    sizes: ArrayLike,
    scores: ArrayLike,
    path: str | Path,
    *,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
    best_single: float | None = None,
    label: str = "MIoU",
    title: str = "",
    band_label: str = "range",
) -> Path:
    """Score of the ensemble of the best K members over K; its best size is marked.

    Args:
      sizes: ``[p]`` int, rising, each K.
      scores: ``[p]`` float, the score of each ensemble.
      path: of the PNG.
      low: ``[p]`` float, lower edge of a band, given with ``high``.
      high: ``[p]`` float, upper edge of the band.
      best_single: the score of the best member alone, a dashed line.
      label: of the vertical axis.
      title: above the axes.
      band_label: what the band shows.

    Returns:
      The path.

    Raises:
      ValueError: the shapes do not match, only one edge of the band is given, or the name does
        not end in ``.png``.
    """
    sizes, scores = np.asarray(sizes), np.asarray(scores, float)
    if (low is None) != (high is None):
        raise ValueError("only one of low and high is given: expected both or neither")
    for name, values in (("scores", scores), ("low", low), ("high", high)):
        if values is not None and (sizes.ndim != 1 or np.shape(values) != sizes.shape):
            raise ValueError(
                f"sizes has shape {sizes.shape} and {name} {np.shape(values)}: expected [p] both"
            )
    figure = style.new_figure(4.6, 3.3)
    axes = figure.add_subplot()
    style.dress(axes, x="members in the ensemble, best first (K)", y=label)
    colour = style.SERIES_COLOURS[0]
    if low is not None and high is not None:
        edges = (np.asarray(low, float), np.asarray(high, float))
        axes.fill_between(sizes, *edges, color=colour, alpha=0.16, linewidth=0, label=band_label)
    if best_single is not None:
        axes.axhline(
            best_single,
            color=style.FAINT,
            linestyle=(0, (4, 3)),
            linewidth=1.1,
            label="best single",
        )
    axes.plot(sizes, scores, color=colour, linewidth=1.8, marker="o", markersize=3.4, label="top K")
    best = int(np.nanargmax(scores))
    axes.plot(
        sizes[best],
        scores[best],
        marker="o",
        markersize=8,
        markerfacecolor="none",
        markeredgecolor=style.SERIES_COLOURS[1],
        markeredgewidth=1.6,
        linestyle="none",
        label=f"best: K = {sizes[best]}, {scores[best]:.3f}",
    )
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    axes.margins(x=0.03, y=0.12)
    style.legend_above(axes, title, columns=2)
    return style.save(figure, path)
