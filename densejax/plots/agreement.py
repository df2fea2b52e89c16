"""Labellings beside one another: scores by class, agreement, fractions, thresholds, sizes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from densejax.plots import style

BINS_A_DECADE = 8
_STRENGTHS = (0.9, 0.4)  # of the first and the second score's bars


def class_scores(
    scores: Mapping[str, ArrayLike],
    *,
    class_names: Sequence[str] | None = None,
    label: str = "score",
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """One or two scores of each class as bars in the class's colour, the second one paler.

    Args:
      scores: ``[c]`` float in 0..1 by name, such as IoU and Dice; nan for an absent class.
      class_names: c names; None is their numbers.
      label: of the vertical axis.
      title: above the axes.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      ValueError: there is no score or more than two, the shapes or names do not match, or the name
        does not end in ``.png``.
    """
    values = {name: np.asarray(v, float) for name, v in scores.items()}
    if not 1 <= len(values) <= 2:
        raise ValueError(f"scores has {len(values)} entries: expected one or two")
    classes = len(next(iter(values.values())))
    names = _same_length(values, class_names, classes)
    figure = style.new_figure(max(4.2, 1.3 + 0.86 * classes), 3.0)
    axes = figure.add_subplot()
    style.dress(axes, y=label)
    width = 0.72 / len(values)
    for place, (name, row) in enumerate(values.items()):
        for index, colour in enumerate(style.class_colours(classes)):
            x = index + (place - (len(values) - 1) / 2) * width
            _bar(axes, x, row[index], width, colour, _STRENGTHS[place])
        axes.bar(0, 0, color=style.FAINT, alpha=_STRENGTHS[place], label=name)
    style.legend(axes, title=title)
    axes.set_ylim(0, 1.12)
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.set_xlim(-0.6, classes - 0.4)
    style.name_ticks(axes, names)
    return style.save(figure, path)


def agreement_matrices(
    matrices: Mapping[str, ArrayLike],
    *,
    names: Sequence[str],
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """Who agrees with whom, one square a score (figure 4.9 of the thesis, Emam 2022).

    The scale of each square begins at its lowest score, so that differences show; the diagonal,
    which says nothing, is left grey.

    Args:
      matrices: ``[n, n]`` float by name of the score, at most 1; nan is left grey.
      names: of the n labellings.
      title: above the squares.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      ValueError: there is no matrix, one is not n by n, or the name does not end in ``.png``.
    """
    tables = {name: np.asarray(v, float) for name, v in matrices.items()}
    count = len(names)
    if not tables:
        raise ValueError("matrices is empty: expected at least one score")
    for name, table in tables.items():
        if table.shape != (count, count):
            raise ValueError(f"{name} has shape {table.shape}: expected ({count}, {count})")
    side, longest = 0.55 * count + 0.3, 0.06 * max(map(len, names))
    figure = style.new_figure(len(tables) * side + 0.7 + longest, side + 0.6 + longest)
    grid = figure.subplots(1, len(tables), squeeze=False)[0]
    for place, (axes, (name, table)) in enumerate(zip(grid, tables.items(), strict=True)):
        style.dress(axes, title=name, grid="")
        _square(axes, table)
        axes.set_xticks(range(count), names, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(count), names if place == 0 else [])
    style.heading(figure, title)
    return style.save(figure, path)


def volume_fractions(
    fractions: Mapping[str, ArrayLike],
    *,
    class_names: Sequence[str],
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """The part of the cell that each class takes, by labelling (figure 4.9 of the thesis).

    Args:
      fractions: ``[c]`` float in 0..1 by labelling; nan for none.
      class_names: c names.
      title: above the axes.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      ValueError: there is no labelling, lengths do not match, or the name does not end in ``.png``.
    """
    values = {name: np.asarray(v, float) for name, v in fractions.items()}
    if not values:
        raise ValueError("fractions is empty: expected at least one labelling")
    names = _same_length(values, class_names, len(class_names))
    figure = style.new_figure(max(4.2, 1.3 + 1.05 * len(names)), 3.0 + 0.1 * len(values))
    axes = figure.add_subplot()
    style.dress(axes, y="part of the cell's volume")
    width = 0.8 / len(values)
    for place, (name, row) in enumerate(values.items()):
        x = np.arange(len(names)) + (place - (len(values) - 1) / 2) * width
        shown = np.nan_to_num(row)
        axes.bar(x, shown, width * 0.94, color=style.series_colour(place), label=name)
        for at, part in zip(x, row, strict=True):
            if np.isfinite(part) and len(values) <= 4:
                text = f"{100 * part:#.2g}" if part < 0.0995 else f"{100 * part:.0f}"
                _above(axes, text, at, part)
    style.name_ticks(axes, names)
    style.percents(axes.yaxis)
    style.legend(axes, title=title, columns=4)
    return style.save(figure, path)


def threshold_curve(
    thresholds: ArrayLike,
    scores: Mapping[str, ArrayLike],
    *,
    best: tuple[float, float] | None = None,
    levels: Mapping[str, float] | None = None,
    label: str = "IoU",
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """Scores as functions of the threshold on a probability.

    Args:
      thresholds: ``[t]`` float in 0..1, ascending.
      scores: ``[t]`` float in 0..1 by name.
      best: threshold and score that a ring marks.
      levels: scores that no threshold decides, drawn as dashed lines, by name.
      label: of the vertical axis.
      title: above the axes.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      ValueError: lengths do not match, or the name does not end in ``.png``.
    """
    at = np.asarray(thresholds, float)
    figure = style.new_figure(4.6, 3.2)
    axes = figure.add_subplot()
    style.dress(axes, x="threshold on the probability of the cell", y=label, grid="both")
    for index, (name, values) in enumerate(scores.items()):
        row = np.asarray(values, float)
        if row.shape != at.shape:
            raise ValueError(f"{name} has shape {row.shape}: expected {at.shape} as thresholds")
        axes.plot(at, row, color=style.series_colour(index), linewidth=1.5, label=name)
    for index, (name, level) in enumerate((levels or {}).items()):
        colour = style.series_colour(len(scores) + index)
        axes.axhline(level, color=colour, linewidth=1.1, linestyle=(0, (4, 3)), label=name)
    if best is not None:
        words = f"best: {best[1]:.3f} at {best[0]:.2f}"
        axes.plot(*best, linestyle="", label=words, **style.ring(6, width=1.3))
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    style.legend(axes, title=title)
    return style.save(figure, path)


def object_sizes(
    volumes: Mapping[str, ArrayLike],
    *,
    colours: Sequence[str] | None = None,
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """One row a class: a histogram of the objects' volumes on a logarithmic axis, and the median.

    Beside the median stands the diameter of the ball of that volume.

    Args:
      volumes: class name -> [n] volumes above 0, nm^3; n may differ, and is 1 or more.
      colours: one for each class; by default those of series.
      title: of the picture.
      path: of a PNG to write.

    Returns:
      The figure.

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
    edges = _size_edges(np.concatenate(list(values.values())))
    figure = style.new_figure(4.8, 0.75 + 0.85 * len(values))
    rows = figure.subplots(len(values), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, found), colour in zip(rows, values.items(), colours, strict=True):
        _size_row(axes, name, found, colour, edges)
    rows[-1].set_xlabel("volume (nm³)", fontsize=style.LABEL_SIZE, color=style.INK)
    style.heading(figure, title)
    return style.save(figure, path)


def _same_length(
    values: Mapping[str, np.ndarray], class_names: Sequence[str] | None, classes: int
) -> list[str]:
    for name, row in values.items():
        if row.shape != (classes,):
            raise ValueError(f"{name} has shape {row.shape}: expected ({classes},)")
    return style.class_names(class_names, classes)


def _bar(axes: Axes, x: float, value: float, width: float, colour: str, alpha: float) -> None:
    """A bar with its score above; "none" for an absent class."""
    known = bool(np.isfinite(value))
    if known:
        axes.bar(x, value, width * 0.94, color=colour, alpha=alpha, linewidth=0)
    _above(axes, f"{value:.2f}" if known else "none", x, value if known else 0)


def _above(axes: Axes, text: str, x: float, y: float) -> None:
    """A number over a bar."""
    place: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "bottom"}
    size = style.TICK_SIZE - 1
    axes.annotate(text, (x, y), (0, 1.5), fontsize=size, color=style.INK, **place)


def _square(axes: Axes, table: np.ndarray) -> None:
    count = len(table)
    off = table[~np.eye(count, dtype=bool)]
    known = off[np.isfinite(off)]
    low = float(known.min()) if known.size else 0.0
    high = float(known.max()) if known.size else 1.0
    # A scale over less than a twentieth would paint noise as difference.
    limits = low - max(0.05, 0.35 * (high - low)), high + 0.02
    shown = np.where(np.eye(count, dtype=bool), np.nan, table)
    light = low + 0.5 * (high - low)
    style.table(axes, shown, "{:.3f}".format, limits=limits, light_above=light)


def _size_edges(pooled: np.ndarray) -> np.ndarray:
    low = np.floor(np.log10(pooled.min()) * BINS_A_DECADE)
    high = np.ceil(np.log10(pooled.max()) * BINS_A_DECADE)
    return 10 ** (np.arange(low, max(high, low + 1) + 1) / BINS_A_DECADE)


def _size_row(axes: Axes, name: str, found: np.ndarray, colour: str, edges: np.ndarray) -> None:
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
        loc="left",
        pad=3,
        **style.SMALL,
    )
    axes.set_ylabel("objects", **style.SMALL)
