"""Scores: populations as histograms or dots, over settings, by class, and what was confused."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from densejax.plots import scales, style

COLUMNS = 5  # of panels of settings


def score_histogram(
    scores: Mapping[str, ArrayLike],
    *,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    label: str = "peak MIoU",
    title: str = "",
    bins: int | None = None,
    path: str | Path | None = None,
) -> Figure:
    """Histograms of populations over one another, and below each seed as a stroke.

    The picture of figure 4.12 (Emam 2022). Bins are the same for all; bars are parts of their own
    population, so that sweeps of different size compare. The dot is the median.

    Args:
      scores: ``[n]`` float a population, by name, in the order of the legend.
      intervals: low and high of the median, by name, drawn through the dot.
      label: of the horizontal axis, with its unit if there is one.
      title: above the axes.
      bins: how many; None is the rule of Freedman and Diaconis on all scores, at least
        twice the root of their number (the rule alone hides two peaks), and 8 to 40.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      ValueError: there is no population, one has no finite score, or the name does not end in
        ``.png``.
    """
    values = _finite(scores)
    edges = _edges(np.concatenate(list(values.values())), bins)
    figure = style.new_figure(5.2, 3.0 + 0.24 * len(values))
    upper, lower = figure.subplots(
        2, 1, sharex=True, gridspec_kw={"height_ratios": [2.3, 0.26 * len(values) + 0.1]}
    )
    style.dress(upper, y="part of the seeds")
    style.dress(lower, x=label, grid="")
    for index, (name, population) in enumerate(values.items()):
        colour = style.series_colour(index)
        weights = np.full(population.size, 1 / population.size)
        shared = {"bins": edges, "weights": weights}
        upper.hist(
            population,
            histtype="stepfilled",
            color=colour,
            alpha=0.22,
            label=f"{name}  (n = {population.size})",
            **shared,
        )
        upper.hist(population, histtype="step", color=colour, linewidth=1.4, **shared)
        _rug(lower, -index, population, colour, (intervals or {}).get(name))
    style.percents(upper.yaxis)
    upper.tick_params(axis="x", length=0, labelbottom=False)
    style.legend(upper, title=title, columns=2)
    lower.set_ylim(-len(values) + 0.4, 0.6)
    lower.set_yticks([])
    lower.spines["left"].set_visible(False)
    return style.save(figure, path)


def strips(
    scores: Mapping[str, ArrayLike],
    *,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    label: str = "accuracy",
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """Each seed of each population as a dot, the median and its interval below the dots.

    Args:
      scores: [n] float a population, by name, from top to bottom; not finite ones are left out.
      intervals: low and high of the median, by name.
      label: of the horizontal axis, with its unit if there is one.
      title: above the axes.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      ValueError: there is no population, one has no finite score, or the name does not end in
        ``.png``.
    """
    values = _finite(scores)
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
        axes.plot(np.median(population), below, **style.ring(4.2, marker="D"))
    axes.set_yticks(range(len(values)), list(values), fontsize=style.LABEL_SIZE)
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.04)
    return style.save(figure, path)


def scores_over_settings(
    settings: Mapping[str, ArrayLike],
    scores: ArrayLike,
    *,
    correlations: Mapping[str, float] | None = None,
    label: str = "score",
    path: str | Path | None = None,
) -> Figure:
    """The scores over each setting, a panel each; those over nearly a decade on a log axis.

    Args:
      settings: [n] float by name.
      scores: [n] float; members with a score that is not finite are left out.
      correlations: rank correlation with the scores, by name, written above a panel.
      label: of the vertical axes.
      path: of a PNG to write.

    Returns:
      The figure.

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
            scales.logarithmic_axis(axes.xaxis, most=3)
        else:
            whole = bool((column == np.round(column)).all())
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=whole))
        if correlations and np.isfinite(correlations.get(name, np.nan)):
            text = f"rank correlation {correlations[name]:+.2f}"
            axes.set_title(text, loc="left", **style.SMALL)
    return style.save(figure, path)


def _finite(scores: Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
    """The finite scores of each population; none is empty."""
    values = {name: np.asarray(v, float).reshape(-1) for name, v in scores.items()}
    values = {name: v[np.isfinite(v)] for name, v in values.items()}
    empty = [name for name, v in values.items() if not v.size]
    if empty or not values:
        raise ValueError(f"scores of {empty or 'nobody'}: expected at least one finite score each")
    return values


def _edges(pooled: np.ndarray, bins: int | None) -> np.ndarray:
    low, high = float(pooled.min()), float(pooled.max())
    if high - low <= 1e-12 * max(1.0, abs(high)):
        low, high = low - 0.01, high + 0.01
    if bins is None:
        fewest = int(np.clip(2 * np.sqrt(pooled.size), 8, 24))
        bins = int(np.clip(len(np.histogram_bin_edges(pooled, "fd")) - 1, fewest, 40))
    return np.linspace(low, high, bins + 1)


def _rug(
    axes: Axes,
    row: int,
    population: np.ndarray,
    colour: str,
    interval: tuple[float, float] | None,
) -> None:
    axes.vlines(population, row - 0.32, row + 0.32, color=colour, alpha=0.45, linewidth=0.8)
    if interval is not None:
        axes.hlines(row, *interval, color="white", linewidth=4.2, zorder=3)
        axes.hlines(row, *interval, color=style.INK, linewidth=1.6, zorder=4)
    axes.plot(np.median(population), row, **style.ring(5.5, width=1.3), zorder=5)


def class_iou(
    members: ArrayLike,
    *,
    ensemble: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    label: str = "IoU",
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """Each class as a bar (median of the members), its members as dots, the ensemble as a diamond.

    Args:
      members: ``[k, c]`` float in 0..1; nan for a class that a member never met.
      ensemble: ``[c]`` float in 0..1.
      class_names: c names; None is their numbers.
      label: of the vertical axis.
      title: above the axes.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      ValueError: the shapes or the names do not match, or the name does not end in ``.png``.
    """
    members = np.asarray(members, float)
    if members.ndim != 2 or not members.size:
        raise ValueError(f"members has shape {members.shape}: expected [k, c]")
    count, classes = members.shape
    if ensemble is not None and np.shape(ensemble) != (classes,):
        raise ValueError(f"ensemble has shape {np.shape(ensemble)}: expected ({classes},)")
    names = style.class_names(class_names, classes)
    figure = style.new_figure(max(4.2, 1.3 + 0.72 * classes), 3.2)
    axes = figure.add_subplot()
    style.dress(axes, y=label)
    dot: dict[str, Any] = {"s": 9, "edgecolors": style.INK, "linewidths": 0.35}
    # Dots spread evenly across the bar in the order of the members: no chance in a picture.
    spread = np.linspace(-0.24, 0.24, count) if count > 1 else np.zeros(1)
    for index, colour in enumerate(style.class_colours(classes)):
        seen = np.isfinite(members[:, index])
        if seen.any():
            median = np.median(members[seen, index])
            axes.bar(index, median, width=0.68, color=colour, alpha=0.32, linewidth=0)
            axes.hlines(median, index - 0.34, index + 0.34, color=style.INK, linewidth=1.3)
        places = index + spread[seen]
        axes.scatter(places, members[seen, index], color=colour, zorder=3, **dot)
    axes.plot([], [], color=style.INK, linewidth=1.3, label=f"median of {count} members")
    axes.scatter([], [], color=style.FAINT, label="member", **dot)
    if ensemble is not None:
        look = style.ring(5.8, marker="D", width=1.3) | {"linestyle": "none", "zorder": 4}
        axes.plot(np.arange(classes), np.asarray(ensemble, float), label="ensemble", **look)
    axes.set_ylim(0, 1.02)
    axes.set_xlim(-0.6, classes - 0.4)
    style.name_ticks(axes, names)
    style.legend(axes, title=title)
    return style.save(figure, path)


def confusion_matrix(
    normalised: ArrayLike,
    *,
    class_names: Sequence[str] | None = None,
    sides: tuple[str, str] = ("true class", "predicted class"),
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """What each true class was called, as parts of its row.

    Args:
      normalised: ``[c, c]`` float in 0..1, rows truth; nan rows (class not in the truth) stay grey.
      class_names: c names; None is their numbers.
      sides: what rows and columns are.
      title: above the axes.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      ValueError: the table is not square, the names do not match, or the name does not end in
        ``.png``.
    """
    table = np.asarray(normalised, float)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or not table.size:
        raise ValueError(f"normalised has shape {table.shape}: expected [c, c]")
    classes = len(table)
    names = style.class_names(class_names, classes)
    longest = max(map(len, names))
    figure = style.new_figure(1.6 + 0.062 * longest + 0.5 * classes, 1.7 + 0.46 * classes)
    axes = figure.add_subplot()
    style.dress(axes, x=sides[1], y=sides[0], title=title, grid="")
    image = style.table(axes, table, _short, limits=(0, 1), light_above=0.55)
    for text in axes.texts:
        if text.get_position()[0] == text.get_position()[1]:
            text.set_fontweight("bold")
    axes.set_xticks(range(classes), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(classes), names)
    bar = style.colour_bar(figure, image, f"part of the {sides[0]} (cells in %)", ax=axes)
    bar.set_ticks([0, 0.5, 1], labels=["0%", "50%", "100%"])
    return style.save(figure, path)


def _short(part: float) -> str:
    """A part as a percentage that is short yet tells a little from none."""
    if part == 0:
        return "0"
    if part < 0.001:
        return "<0.1"
    if 0.9995 <= part < 1:
        return ">99.9"
    return f"{100 * part:.1f}" if part < 0.0995 or 0.995 < part < 1 else f"{100 * part:.0f}"
