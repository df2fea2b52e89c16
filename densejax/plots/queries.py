"""Queries: accuracy against labels, and what a setting of a query does."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator, NullLocator, StrMethodFormatter
from numpy.typing import ArrayLike

from densejax.plots import style

MARKERS = "osD^vPX"
RAMP = ("#C6DBEF", "#0B2C5A")  # of lines that are in order


def accuracy_against_labels(
    labelled: ArrayLike,
    curves: Mapping[str, ArrayLike],
    path: str | Path,
    *,
    reference: str = "random",
    ordered: bool = False,
    label: str = "test accuracy",
    title: str = "",
) -> Path:
    """One line a query with its interval, the reference dashed and grey.

    Args:
      labelled: ``[t]`` int, rising, labelled samples.
      curves: ``[3, t]`` float by name, in the order of the legend: middle, low, high.
      path: of the PNG.
      reference: which of the curves is the reference, if it is there.
      ordered: whether the others are in order, and are coloured from light to dark.
      label: of the vertical axis.
      title: above the axes.

    Returns:
      The path.

    Raises:
      ValueError: there is no curve, the shapes do not match, or the name does not end in ``.png``.
    """
    x = np.asarray(labelled)
    values = _bands(curves, x, "labelled")
    figure = style.new_figure(5.4, 3.5)
    axes = figure.add_subplot()
    style.dress(axes, x="labelled samples", y=label)
    others = [name for name in values if name != reference]
    for name, (middle, low, high) in values.items():
        index = others.index(name) if name != reference else 0
        colour = _colour(index, len(others), ordered) if name != reference else style.FAINT
        dashes = "-" if name != reference else (0, (4, 2))
        axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
        axes.plot(x, middle, color=colour, linestyle=dashes, linewidth=1.5, label=name)
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    style.legend_above(axes, title, columns=3)
    return style.save(figure, path)


def score_of_setting(
    settings: ArrayLike,
    scores: Mapping[str, ArrayLike],
    path: str | Path,
    *,
    levels: Mapping[str, float] | None = None,
    x_label: str = "",
    label: str = "",
    title: str = "",
) -> Path:
    """A score over a setting on a logarithmic axis, a point and its interval for each.

    Args:
      settings: ``[p]`` float, positive.
      scores: ``[3, p]`` float by name: middle, low, high; nan where there is none.
      path: of the PNG.
      levels: scores that have no such setting, by name: horizontal lines.
      x_label: of the horizontal axis.
      label: of the vertical axis.
      title: above the axes.

    Returns:
      The path.

    Raises:
      ValueError: there is no score, the shapes do not match, or the name does not end in ``.png``.
    """
    x = np.asarray(settings, float)
    values = _bands(scores, x, "settings")
    figure = style.new_figure(5.0, 3.3)
    axes = figure.add_subplot()
    style.dress(axes, x=x_label, y=label)
    for index, (name, height) in enumerate((levels or {}).items()):
        dashes = (0, (4 - 2 * (index % 2), 2))
        axes.axhline(height, color=style.FAINT, linestyle=dashes, linewidth=1.2, label=name)
    for index, (name, (middle, low, high)) in enumerate(values.items()):
        shift = 1.04 ** (index - (len(values) - 1) / 2)
        colour = style.series_colour(index)
        axes.vlines(x * shift, low, high, color=colour, linewidth=1.2)
        axes.plot(
            x * shift,
            middle,
            color=colour,
            linewidth=1.0,
            marker=MARKERS[index % len(MARKERS)],
            markersize=4.5,
            label=name,
        )
    axes.set_xscale("log")
    axes.set_xticks(x, [f"{value:g}" for value in x])
    axes.xaxis.set_minor_locator(NullLocator())
    style.legend_above(axes, title, columns=3)
    return style.save(figure, path)


def _bands(curves: Mapping[str, ArrayLike], x: np.ndarray, name: str) -> dict[str, np.ndarray]:
    values = {key: np.asarray(curve, float) for key, curve in curves.items()}
    wrong = {key: value.shape for key, value in values.items() if value.shape != (3, x.size)}
    if x.ndim != 1 or wrong or not values:
        raise ValueError(f"{name} has shape {x.shape} and curves {wrong}: expected [t] and [3, t]")
    return values


def _colour(index: int, count: int, ordered: bool) -> str | tuple[float, ...]:
    if not ordered:
        return style.series_colour(index)
    light, dark = (np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) / 255 for c in RAMP)
    share = index / max(count - 1, 1)
    return tuple(float(value) for value in light * (1 - share) + dark * share)
