"""Loss surfaces: contours with trajectories and minima, several on one scale, lines, and relief.

A surface is ``values[i, j]`` at ``(x[i], y[j])``, coordinates in lengths of the plane's two
directions. nan is *not yet computed*: a coarse grid inside a finer one is drawn as the coarse grid
it is, with its number of points, and a hole is hatched. Infinite is *diverged*: beyond the scale.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from densejax.plots import relief, scales, sheets, style, trajectories

X_LABEL, Y_LABEL = "first direction", "second direction"
Limits = tuple[float | None, float | None]


def contour(
    x: ArrayLike,
    y: ArrayLike,
    values: ArrayLike,
    *,
    log: bool = False,
    levels: int | Sequence[float] = 12,
    limits: Limits | None = None,
    trajectory: ArrayLike | None = None,
    losses: ArrayLike | None = None,
    residuals: ArrayLike | None = None,
    minima: Mapping[str, tuple[float, float]] | None = None,
    label: str = "loss",
    x_label: str = X_LABEL,
    y_label: str = Y_LABEL,
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """A surface from above, with a trajectory and minima on it.

    An iterate off the plane has another loss than the plane below it. So its dot has the colour of
    its own loss, on the same scale, and grows with its distance from the plane.

    Args:
      x: ``[p]`` float, rising.
      y: ``[q]`` float, rising.
      values: ``[p, q]`` float; nan is not yet computed.
      log: whether colours and lines follow the logarithm.
      levels: of the lines: about how many, or their values.
      limits: lowest and highest value of the colours; None is that of the values and losses.
      trajectory: ``[t, 2]`` float, coordinates of iterates in their order.
      losses: ``[t]`` float, the true loss of each iterate.
      residuals: ``[t]`` float, how far each iterate lies off the plane, as a Euclidean distance.
      minima: coordinates by name.
      label: of the bar.
      x_label: of the horizontal axis, such as "first component (71 % of the variance)".
      y_label: of the vertical axis.
      title: above the axes.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      ValueError: shapes do not match, no point is computed, a value is negative where the scale is
        logarithmic, or the name does not end in ``.png``.
    """
    part = scales.known(x, y, values)
    steps = trajectories.checked(trajectory, losses, residuals)
    shown = [part.values] + ([steps[1]] if steps is not None and steps[1] is not None else [])
    colours = scales.scale(shown, logarithmic=log, limits=limits, levels=levels)
    lines = len(title.splitlines()) + bool(part.note) + (steps is not None)
    figure, panels = sheets.sheet(
        1,
        columns=1,
        width=3.6,
        tall=sheets.proportion(part.x, part.y),
        margins=sheets.Margins(top=0.14 + 0.2 * lines, right=0.95),
    )
    axes = panels[0]
    _ground(axes, part, colours, x_label, y_label)
    rows = 0
    if steps is not None:
        rows = trajectories.draw(axes, colours, *steps)
    for name, place in (minima or {}).items():
        trajectories.mark(axes, name, place)
    _notes(axes, title, part, rows)
    scales.bar(figure, panels, colours, label)
    if path is not None:
        style.save(figure, path)
    return figure


def contours(
    x: ArrayLike,
    y: ArrayLike,
    surfaces: Mapping[str, ArrayLike],
    *,
    log: bool = False,
    levels: int | Sequence[float] = 8,
    limits: Limits | None = None,
    minima: Mapping[str, tuple[float, float]] | None = None,
    columns: int = 4,
    label: str = "loss",
    x_label: str = X_LABEL,
    y_label: str = Y_LABEL,
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """Several surfaces side by side, such as seeds, on one scale of colours.

    Args:
      x: ``[p]`` float, rising.
      y: ``[q]`` float, rising.
      surfaces: ``[p, q]`` float by the title of each panel; nan is not yet computed.
      log: whether colours and lines follow the logarithm.
      levels: of the lines: about how many, or their values; the same in all panels.
      limits: lowest and highest value of the colours; None is that of all surfaces.
      minima: coordinates by name, the same in all panels.
      columns: most panels in a row.
      label: of the bar.
      x_label: of the horizontal axes.
      y_label: of the vertical axes.
      title: above all.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      ValueError: there is no surface, shapes do not match, no point is computed, a value is
        negative where the scale is logarithmic, or the name does not end in ``.png``.
    """
    if not surfaces:
        raise ValueError("surfaces is empty: expected at least one")
    parts = {name: scales.known(x, y, values, name=name) for name, values in surfaces.items()}
    every = [part.values for part in parts.values()]
    colours = scales.scale(every, logarithmic=log, limits=limits, levels=levels)
    noted = any(part.note for part in parts.values())
    figure, panels = sheets.sheet(
        len(parts),
        columns=columns,
        width=1.75,
        tall=sheets.proportion(np.asarray(x, float), np.asarray(y, float)),
        margins=sheets.Margins(
            top=0.32 + 0.26 * bool(title) + 0.15 * noted,
            right=0.95,
            across=0.2,
            down=0.34 + 0.15 * noted,
        ),
    )
    for index, (axes, (name, part)) in enumerate(zip(panels, parts.items(), strict=True)):
        first, last = sheets.outer(panels, index)
        _ground(axes, part, colours, x_label if last else "", y_label if first else "")
        axes.tick_params(labelbottom=last, labelleft=first)
        sheets.few_ticks(axes, most=3)
        for minimum, place in (minima or {}).items():
            trajectories.mark(axes, minimum, place)
        _notes(axes, name, part, 0)
    scales.bar(figure, panels, colours, label)
    if title:
        sheets.heading(figure, title)
    if path is not None:
        style.save(figure, path)
    return figure


def surface_3d(
    x: ArrayLike,
    y: ArrayLike,
    values: ArrayLike,
    *,
    log: bool = False,
    levels: int | Sequence[float] = 12,
    limits: Limits | None = None,
    trajectory: ArrayLike | None = None,
    losses: ArrayLike | None = None,
    minima: Mapping[str, tuple[float, float, float]] | None = None,
    view: tuple[float, float] | None = None,
    light: tuple[float, float] = (48.0, -82.0),
    label: str = "loss",
    x_label: str = X_LABEL,
    y_label: str = Y_LABEL,
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """A surface in relief, lit from one side, its lines on the floor below.

    Between grid points the relief is bilinear: what is seen is what was computed. Values above the
    upper limit are cut off at it, which the bar tells by an arrow. Cells with a missing corner are
    left out. A trajectory and minima are drawn over the relief also where it would hide them.

    Args:
      x: ``[p]`` float, rising.
      y: ``[q]`` float, rising.
      values: ``[p, q]`` float; nan is not yet computed.
      log: whether heights and colours follow the logarithm.
      levels: of the lines: about how many, or their values.
      limits: lowest and highest value drawn; None is that of the values.
      trajectory: ``[t, 2]`` float, coordinates of iterates in their order, drawn at their losses.
      losses: ``[t]`` float, the true loss of each iterate; needed with a trajectory.
      minima: coordinates and loss by name.
      view: elevation and azimuth of the eye in degrees; None looks over the lowest corner.
      light: elevation of the light, and its azimuth from the eye's, in degrees.
      label: of the bar and of the vertical axis.
      x_label: of the first axis.
      y_label: of the second axis.
      title: above the picture.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      ValueError: as `contour`, or a trajectory is given without losses.
    """
    part = scales.known(x, y, values)
    steps = trajectories.checked(trajectory, losses, None)
    if steps is not None and steps[1] is None:
        raise ValueError("trajectory is given without losses: expected the height of each iterate")
    colours = scales.scale([part.values], logarithmic=log, limits=limits, levels=levels)
    figure = style.new_figure(5.6, 4.5, constrained=False)
    axes = relief.draw(figure, part, colours, view=view, light=light, labels=(x_label, y_label))
    if steps is not None and steps[1] is not None:
        relief.draw_line(axes, steps[0], steps[1], colours)
    for name, place in (minima or {}).items():
        relief.mark(axes, name, place, colours)
    scales.bar(figure, [], colours, label, box=(0.865, 0.24, 0.022, 0.5))
    heading = "\n".join(line for line in (title, part.note) if line)
    if heading:
        sheets.heading(figure, heading)
    if path is not None:
        style.save(figure, path)
    return figure


def line_profiles(
    places: ArrayLike,
    losses: Mapping[str, ArrayLike],
    *,
    accuracies: Mapping[str, ArrayLike] | None = None,
    log: bool = False,
    marks: Mapping[str, float] | None = None,
    band: Literal["quartiles", "range"] = "quartiles",
    label: str = "loss",
    accuracy_label: str = "accuracy",
    x_label: str = "along the direction",
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """Loss along lines, many seeds or directions as a median and a band; accuracy below it.

    Args:
      places: ``[p]`` float, rising.
      losses: ``[k, p]`` (or ``[p]``) float by name; nan and infinite leave a gap.
      accuracies: ``[k, p]`` (or ``[p]``) float by the same names, on axes of their own.
      log: of the axis of the loss.
      marks: places by name, vertical lines, such as minima.
      band: from the first to the third quartile, or from the lowest to the highest.
      label: of the axis of the loss.
      accuracy_label: of the axis of the accuracy.
      x_label: of the horizontal axis.
      title: above the axes.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      ValueError: there is no line, or shapes do not match, or the name does not end in ``.png``.
    """
    where = np.asarray(places, float)
    rooms = [(label, _lines(losses, where, "losses"))]
    if accuracies is not None:
        rooms.append((accuracy_label, _lines(accuracies, where, "accuracies")))
    figure = style.new_figure(4.8, 3.2 + 1.6 * (len(rooms) - 1))
    panels = figure.subplots(
        len(rooms), 1, sharex=True, squeeze=False, height_ratios=[1.5, 1.0][: len(rooms)]
    ).ravel()
    names = list(losses)
    for axes, (name, lines) in zip(panels, rooms, strict=True):
        style.dress(axes, y=name, x=x_label if axes is panels[-1] else "")
        for line, population in lines.items():
            colour = style.series_colour(names.index(line) if line in names else len(names))
            _band(axes, where, population, colour, line, band)
        for place in (marks or {}).values():
            axes.axvline(place, color=style.FAINT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    if log:
        panels[0].set_yscale("log")
        panels[0].tick_params(which="minor", color=style.FAINT, width=0.5)
    for name, place in (marks or {}).items():
        panels[0].annotate(
            name,
            (place, 0.985),
            xycoords=("data", "axes fraction"),
            xytext=(3, 0),
            textcoords="offset points",
            va="top",
            fontsize=style.TICK_SIZE,
            color=style.INK,
        )
    panels[0].margins(x=0.02)
    if marks:
        panels[0].margins(y=0.14)
    if any(len(population) > 1 for population in rooms[0][1].values()):
        panels[0].fill_between([], [], [], color=style.FAINT, alpha=0.35, linewidth=0, label=band)
    style.legend_above(panels[0], title, columns=2)
    if path is not None:
        style.save(figure, path)
    return figure


def _ground(
    axes: Axes, part: scales.Known, colours: scales.Scale, x_label: str, y_label: str
) -> None:
    style.dress(axes, x=x_label, y=y_label, grid="")
    for spine in axes.spines.values():
        spine.set_visible(False)
    scales.paint(axes, part, colours)
    for set_limits, places in ((axes.set_xlim, part.x), (axes.set_ylim, part.y)):
        ends = places if part.complete else scales.edges(places)
        set_limits(ends[0], ends[-1])
    sheets.few_ticks(axes)


def _notes(axes: Axes, title: str, part: scales.Known, rows: int) -> None:
    note = part.note if part.complete else f"{part.note}; hatched: not yet"
    text = f"{title}\n{note}" if title and note else title or note
    if text:
        axes.set_title(
            text, fontsize=style.TITLE_SIZE, color=style.INK, loc="left", pad=6 + 12 * rows
        )


def _lines(lines: Mapping[str, ArrayLike], places: np.ndarray, what: str) -> dict[str, np.ndarray]:
    found = {name: np.atleast_2d(np.asarray(line, float)) for name, line in lines.items()}
    wrong = {n: v.shape for n, v in found.items() if v.ndim != 2 or v.shape[1] != places.size}
    if places.ndim != 1 or wrong or not found:
        raise ValueError(
            f"places has shape {places.shape} and {what} {wrong or 'are none'}:"
            " expected [p] and [k, p]"
        )
    return {name: np.where(np.isfinite(line), line, np.nan) for name, line in found.items()}


def _band(
    axes: Axes, places: np.ndarray, population: np.ndarray, colour: str, name: str, band: str
) -> None:
    seen = np.isfinite(population).any(axis=0)
    spread = (25, 50, 75) if band == "quartiles" else (0, 50, 100)
    low, middle, high = np.full((3, places.size), np.nan)
    low[seen], middle[seen], high[seen] = np.nanpercentile(population[:, seen], spread, axis=0)
    count = len(population)
    if count > 1:
        axes.fill_between(places, low, high, color=colour, alpha=0.2, linewidth=0)
        name = f"{name} (median of {count})"
    axes.plot(places, middle, color=colour, linewidth=1.7, label=name)
