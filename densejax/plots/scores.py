"""Scores: populations as histograms or dots, classes one by one, and what was taken for what."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike

from densejax.plots import style


def score_histogram(
    scores: Mapping[str, ArrayLike],
    path: str | Path,
    *,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    label: str = "peak MIoU",
    title: str = "",
    bins: int | None = None,
) -> Path:
    """Histograms of populations over one another, and below each seed as a stroke.

    The picture of figure 4.12 (Emam 2022). Bins are the same for all; bars are parts of their own
    population, so that sweeps of different size compare. The dot is the median.

    Args:
      scores: ``[n]`` float a population, by name, in the order of the legend.
      path: of the PNG.
      intervals: low and high of the median, by name, drawn through the dot.
      label: of the horizontal axis, with its unit if there is one.
      title: above the axes.
      bins: how many; None is the rule of Freedman and Diaconis on all scores, at least
        twice the root of their number (the rule alone hides two peaks), and 8 to 40.

    Returns:
      The path.

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
    upper.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    upper.tick_params(axis="x", length=0, labelbottom=False)
    style.legend_above(upper, title, columns=2)
    lower.set_ylim(-len(values) + 0.4, 0.6)
    lower.set_yticks([])
    lower.spines["left"].set_visible(False)
    return style.save(figure, path)


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
    axes.plot(
        np.median(population),
        row,
        marker="o",
        markersize=5.5,
        markerfacecolor="white",
        markeredgecolor=style.INK,
        markeredgewidth=1.3,
        zorder=5,
    )


def class_iou(
    members: ArrayLike,
    path: str | Path,
    *,
    ensemble: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    label: str = "IoU",
    title: str = "",
) -> Path:
    """Each class as a bar (median of the members), its members as dots, the ensemble as a diamond.

    Args:
      members: ``[k, c]`` float in 0..1; nan for a class that a member never met.
      path: of the PNG.
      ensemble: ``[c]`` float in 0..1.
      class_names: c names; None is their numbers.
      label: of the vertical axis.
      title: above the axes.

    Returns:
      The path.

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
    # Dots spread evenly across the bar in the order of the members: no chance in a picture.
    spread = np.linspace(-0.24, 0.24, count) if count > 1 else np.zeros(1)
    for index, colour in enumerate(style.class_colours(classes)):
        seen = np.isfinite(members[:, index])
        if seen.any():
            median = np.median(members[seen, index])
            axes.bar(index, median, width=0.68, color=colour, alpha=0.32, linewidth=0)
            axes.hlines(median, index - 0.34, index + 0.34, color=style.INK, linewidth=1.3)
        axes.scatter(
            index + spread[seen],
            members[seen, index],
            s=9,
            color=colour,
            edgecolors=style.INK,
            linewidths=0.35,
            zorder=3,
        )
    axes.plot([], [], color=style.INK, linewidth=1.3, label=f"median of {count} members")
    axes.scatter(
        [], [], s=9, color=style.FAINT, edgecolors=style.INK, linewidths=0.35, label="member"
    )
    if ensemble is not None:
        axes.scatter(
            np.arange(classes),
            np.asarray(ensemble, float),
            marker="D",
            s=34,
            color="white",
            edgecolors=style.INK,
            linewidths=1.3,
            zorder=4,
            label="ensemble",
        )
    axes.set_ylim(0, 1.02)
    axes.set_xlim(-0.6, classes - 0.4)
    axes.set_xticks(range(classes), _wrapped(names))
    axes.tick_params(axis="x", length=0)
    style.legend_above(axes, title)
    return style.save(figure, path)


def confusion_matrix(
    normalised: ArrayLike,
    path: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    sides: tuple[str, str] = ("true class", "predicted class"),
    title: str = "",
) -> Path:
    """What each true class was called, as parts of its row.

    Args:
      normalised: ``[c, c]`` float in 0..1, rows truth; nan rows (class not in the truth) stay grey.
      path: of the PNG.
      class_names: c names; None is their numbers.
      sides: what rows and columns are.
      title: above the axes.

    Returns:
      The path.

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
    axes.set_facecolor(style.GRID)
    image = axes.imshow(np.ma.masked_invalid(table), cmap="Blues", vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(table):
        if np.isfinite(value):
            axes.text(
                column,
                row,
                _short(value),
                ha="center",
                va="center",
                fontsize=style.TICK_SIZE - 0.5,
                color="white" if value > 0.55 else style.INK,
                fontweight="bold" if row == column else "normal",
            )
    axes.set_xticks(range(classes), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(classes), names)
    axes.set_xticks(np.arange(classes + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(image, ax=axes, fraction=0.045, pad=0.03, ticks=[0, 0.5, 1])
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    bar.ax.tick_params(labelsize=style.TICK_SIZE, length=0, labelcolor=style.INK)
    bar.set_label(
        f"part of the {sides[0]} (cells in %)", fontsize=style.LABEL_SIZE, color=style.INK
    )
    bar.outline.set_visible(False)  # type: ignore[operator]
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


def _wrapped(names: Sequence[str]) -> list[str]:
    return [name.replace(" ", "\n") for name in names]
