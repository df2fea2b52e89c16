"""Rounds of active learning: scores over labelled samples, and how many of each class they are."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from numpy.typing import ArrayLike

from densejax.plots import style

MARKERS = "osD^vPX"
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)))


def round_curves(
    labelled: ArrayLike,
    curves: Mapping[str, ArrayLike],
    path: str | Path,
    *,
    intervals: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    published: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    label: str = "test accuracy",
    x_label: str = "labelled samples",
    band_label: str = "95 % interval of the mean",
    title: str = "",
    logarithmic: bool = False,
) -> Path:
    """A score of each strategy over the number of labelled samples, with bands.

    Args:
      labelled: ``[t]`` int, rising.
      curves: ``[t]`` float a strategy, by name, in the order of the legend; nan and infinity leave
        a gap.
      path: of the PNG.
      intervals: low and high ``[t]`` of a strategy's score.
      published: curves of a paper, (labelled ``[s]``, scores ``[s]``) by name, faint; one that has
        the name of a strategy has its colour.
      label: of the vertical axis, with its unit if there is one.
      x_label: of the horizontal axis.
      band_label: what the bands show.
      title: above the axes.
      logarithmic: of the vertical axis.

    Returns:
      The path.

    Raises:
      ValueError: there is no curve, shapes do not match, or the name does not end in ``.png``.
    """
    x = np.asarray(labelled, float)
    values = {name: np.asarray(curve, float) for name, curve in curves.items()}
    wrong = [name for name, curve in values.items() if curve.shape != x.shape]
    if wrong or not values or x.ndim != 1:
        raise ValueError(f"labelled {x.shape} and curves of {wrong or 'nobody'}: expected [t] each")
    figure = style.new_figure(5.4, 3.7)
    axes = figure.add_subplot()
    style.dress(axes, x=x_label, y=label)
    for index, (name, curve) in enumerate(values.items()):
        colour = style.series_colour(index)
        if intervals and name in intervals:
            edges = np.asarray(intervals[name], float)
            axes.fill_between(x, edges[0], edges[1], color=colour, alpha=0.14, linewidth=0)
        axes.plot(
            x,
            np.where(np.isfinite(curve), curve, np.nan),
            color=colour,
            linewidth=1.6,
            linestyle=DASHES[index // len(style.SERIES_COLOURS) % len(DASHES)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=3.6,
            label=name,
        )
    for name, (places, scores) in (published or {}).items():
        known = list(values)
        colour = style.series_colour(known.index(name)) if name in known else style.FAINT
        axes.plot(
            np.asarray(places, float),
            np.asarray(scores, float),
            color=colour,
            linewidth=0.9,
            alpha=0.6,
            linestyle=(0, (4, 2)),
            label=f"{name}, published",
        )
    if intervals:
        axes.fill_between([], [], [], color=style.FAINT, alpha=0.3, linewidth=0, label=band_label)
    if not any(np.isfinite(curve).any() for curve in values.values()):
        axes.set_xlim(x[0] - 0.5, x[-1] + 0.5)
        axes.set_yticks([])
        middle, size = axes.transAxes, style.TITLE_SIZE
        axes.text(0.5, 0.5, "no finite value", transform=middle, ha="center", fontsize=size)
    elif logarithmic:
        axes.set_yscale("log")
        # Ratios between one and some dozens: powers of ten alone would leave an axis without a
        # number on it.
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.4g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.margins(x=0.02)
    style.legend_above(axes, title, columns=3)
    return style.save(figure, path)


def class_histograms(
    counts: Mapping[str, ArrayLike],
    path: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    label: str = "labelled samples",
    title: str = "",
) -> Path:
    """How many samples of each class each strategy has: figures 5.4 and 5.5 of the thesis.

    Args:
      counts: ``[c]`` float a strategy, by name, such as a mean over seeds.
      path: of the PNG.
      class_names: c names; None is their numbers, left out above 30 classes.
      label: of the vertical axes.
      title: above all.

    Returns:
      The path.

    Raises:
      ValueError: there is no strategy, the shapes or the names do not match, or the name does not
        end in ``.png``.
    """
    values = {name: np.asarray(one, float) for name, one in counts.items()}
    shapes = {one.shape for one in values.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise ValueError(f"counts have shapes {sorted(shapes)}: expected [c], the same for all")
    classes = next(iter(shapes))[0]
    names = style.class_names(class_names, classes)
    columns = min(3, len(values))
    rows = -(-len(values) // columns)
    figure = style.new_figure(0.8 + 2.3 * columns, 0.7 + 1.7 * rows)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for index, (axes, (name, one)) in enumerate(zip(panels, values.items(), strict=False)):
        style.dress(axes, y=label if index % columns == 0 else "", title=name)
        axes.bar(np.arange(classes), one, width=0.8, color=style.series_colour(index))
        axes.axhline(one.mean(), color=style.INK, linewidth=0.8, linestyle=(0, (3, 2)))
        if classes <= 30:
            axes.set_xticks(np.arange(classes), names, rotation=60, ha="right")
            axes.tick_params(axis="x", length=0, labelbottom=index >= len(values) - columns)
    for axes in panels[len(values) :]:
        axes.set_visible(False)
    if title:
        figure.suptitle(title, fontsize=style.TITLE_SIZE, color=style.INK, x=0.02, ha="left")
    return style.save(figure, path)
