"""Loss surfaces: contours with trajectories and minima, several on one scale, and lines.

A surface is ``values[i, j]`` at ``(x[i], y[j])``, coordinates in lengths of the plane's two
directions. nan is *not yet computed*: a coarse grid inside a finer one is drawn as the coarse grid
it is, with its number of points, and a hole is hatched. Infinite is *diverged*: beyond the scale.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike

from densejax.plots import scales
from densejax.plots import style as page

MOST_DOTS = 30


@dataclasses.dataclass(frozen=True)
class SurfaceStyle:
    """What the pictures of one surface share.

    Attributes:
      log: whether colours, lines and heights follow the logarithm.
      levels: of the lines: about how many, or their values; None is about 12, of small panels 8.
      limits: lowest and highest value that is told apart; None is that of what is drawn, without
        long tails where the scale is logarithmic. The bar ends in an arrow where values lie beyond.
      label: of the bar, with its unit if there is one.
      x_label: of the first axis, such as "first component (71 % of the variance)".
      y_label: of the second axis.
    """

    log: bool = False
    levels: int | Sequence[float] | None = None
    limits: tuple[float | None, float | None] | None = None
    label: str = "loss"
    x_label: str = "first direction (its length = 1)"
    y_label: str = "second direction (its length = 1)"

    def scale(self, values: Iterable[ArrayLike], *, lines: int = 12) -> scales.Scale:
        """One scale for all values; ``lines`` where ``levels`` is None."""
        levels = lines if self.levels is None else self.levels
        return scales.scale(values, logarithmic=self.log, limits=self.limits, levels=levels)


PLAIN = SurfaceStyle()


def contour(
    x: ArrayLike,
    y: ArrayLike,
    values: ArrayLike,
    *,
    style: SurfaceStyle = PLAIN,
    trajectory: ArrayLike | None = None,
    losses: ArrayLike | None = None,
    residuals: ArrayLike | None = None,
    minima: Mapping[str, tuple[float, float]] | None = None,
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
      style: scale, levels and labels.
      trajectory: ``[t, 2]`` float, coordinates of iterates in their order.
      losses: ``[t]`` float, the true loss of each iterate.
      residuals: ``[t]`` float, how far each iterate lies off the plane, as a Euclidean distance.
      minima: coordinates by name.
      title: above the axes.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      ValueError: shapes do not match, no point is computed, a value is negative where the scale is
        logarithmic, or the name does not end in ``.png``.
    """
    part = scales.known(x, y, values)
    steps = checked_run(trajectory, losses, residuals)
    shown = [part.values] + ([steps[1]] if steps is not None and steps[1] is not None else [])
    colours = style.scale(shown)
    lines = len(title.splitlines()) + bool(part.note) + (steps is not None)
    figure, panels = page.sheet(
        1,
        columns=1,
        width=3.6,
        tall=page.proportion(part.x, part.y),
        margins=page.Margins(top=0.14 + 0.2 * lines, right=0.95),
    )
    axes = panels[0]
    _ground(axes, part, colours, style.x_label, style.y_label)
    rows = 0
    if steps is not None:
        rows = draw_run(axes, colours, *steps)
    for name, place in (minima or {}).items():
        _mark(axes, name, place)
    _notes(axes, title, part, rows)
    scales.bar(figure, panels, colours, style.label)
    return page.save(figure, path)


def contours(
    x: ArrayLike,
    y: ArrayLike,
    surfaces: Mapping[str, ArrayLike],
    *,
    style: SurfaceStyle = PLAIN,
    minima: Mapping[str, tuple[float, float]] | None = None,
    columns: int = 4,
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """Several surfaces side by side, such as seeds, on one scale of colours.

    Args:
      x: ``[p]`` float, rising.
      y: ``[q]`` float, rising.
      surfaces: ``[p, q]`` float by the title of each panel; nan is not yet computed.
      style: scale, levels and labels.
      minima: coordinates by name, the same in all panels.
      columns: most panels in a row.
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
    colours = style.scale(every, lines=8)
    noted = any(part.note for part in parts.values())
    figure, panels = page.sheet(
        len(parts),
        columns=columns,
        width=1.75,
        tall=page.proportion(np.asarray(x, float), np.asarray(y, float)),
        margins=page.Margins(
            top=0.32 + 0.26 * bool(title) + 0.15 * noted,
            right=0.95,
            across=0.2,
            down=0.34 + 0.15 * noted,
        ),
    )
    for index, (axes, (name, part)) in enumerate(zip(panels, parts.items(), strict=True)):
        first, last = page.outer(panels, index)
        _ground(axes, part, colours, "", "")
        axes.tick_params(labelbottom=last, labelleft=first)
        page.few_ticks(axes, most=3)
        for minimum, place in (minima or {}).items():
            _mark(axes, minimum, place)
        _notes(axes, name, part, 0)
    scales.bar(figure, panels, colours, style.label)
    page.shared_labels(figure, panels, style.x_label, style.y_label)
    page.heading(figure, title)
    return page.save(figure, path)


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
    x_label: str = "along the direction (its length = 1)",
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
    figure = page.new_figure(4.8, 3.2 + 1.6 * (len(rooms) - 1))
    panels = figure.subplots(
        len(rooms), 1, sharex=True, squeeze=False, height_ratios=[1.5, 1.0][: len(rooms)]
    ).ravel()
    names = list(losses)
    for axes, (name, lines) in zip(panels, rooms, strict=True):
        page.dress(axes, y=name, x=x_label if axes is panels[-1] else "")
        for line, population in lines.items():
            colour = page.series_colour(names.index(line) if line in names else len(names))
            _band(axes, where, population, colour, line, band)
        for place in (marks or {}).values():
            axes.axvline(place, color=page.FAINT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    for name, place in (marks or {}).items():
        panels[0].annotate(
            name,
            (place, 0.985),
            xycoords=("data", "axes fraction"),
            xytext=(3, 0),
            textcoords="offset points",
            va="top",
            **page.SMALL,
        )
    panels[0].margins(x=0.02)
    if log:
        panels[0].set_yscale("log")  # before the margins, which are of the logarithms
    if marks:
        panels[0].margins(y=0.14)
    if log:
        scales.logarithmic_axis(panels[0].yaxis)
    if any(len(population) > 1 for population in rooms[0][1].values()):
        page.swatch(panels[0], band)
    page.legend(panels[0], title=title, columns=2)
    return page.save(figure, path)


def _ground(
    axes: Axes, part: scales.Known, colours: scales.Scale, x_label: str, y_label: str
) -> None:
    page.dress(axes, x=x_label, y=y_label, grid="")
    for spine in axes.spines.values():
        spine.set_visible(False)
    scales.paint(axes, part, colours)
    for set_limits, places in ((axes.set_xlim, part.x), (axes.set_ylim, part.y)):
        ends = places if part.complete else scales.edges(places)
        set_limits(ends[0], ends[-1])
    page.few_ticks(axes)


def _notes(axes: Axes, title: str, part: scales.Known, rows: int) -> None:
    note = part.note if part.complete else f"{part.note}; hatched: not yet"
    text = f"{title}\n{note}" if title and note else title or note
    if text:
        axes.set_title(text, **page.LEFT, pad=6 + 12 * rows)


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


def checked_run(
    trajectory: ArrayLike | None, losses: ArrayLike | None, residuals: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None] | None:
    """Check a trajectory: ``[t, 2]`` coordinates, ``[t]`` losses, ``[t]`` residuals, or None.

    Raises:
      ValueError: the shapes do not match, or losses are given without a trajectory.
    """
    if trajectory is None:
        if losses is not None or residuals is not None:
            raise ValueError("losses or residuals are given without a trajectory")
        return None
    places = np.asarray(trajectory, float)
    if places.ndim != 2 or places.shape[1] != 2 or not len(places):
        raise ValueError(f"trajectory has shape {places.shape}: expected [t, 2]")
    for name, values in (("losses", losses), ("residuals", residuals)):
        if values is not None and np.shape(values) != (len(places),):
            raise ValueError(f"{name} has shape {np.shape(values)}: expected ({len(places)},)")
    as_floats = (None if v is None else np.asarray(v, float) for v in (losses, residuals))
    return (places, *as_floats)  # type: ignore[return-value]


def draw_run(
    axes: Axes,
    colours: scales.Scale,
    places: np.ndarray,
    losses: np.ndarray | None,
    residuals: np.ndarray | None,
    *,
    count: int | None = None,
    legend: bool = True,
) -> int:
    """Draw the first ``count`` (None: all) of ``[t]`` checked iterates; rows of the legend."""
    count = len(places) if count is None else count
    path = places[:count]
    axes.plot(*path.T, color="white", linewidth=2.4, solid_capstyle="round", zorder=3)
    axes.plot(*path.T, color=page.INK, linewidth=1.0, solid_capstyle="round", zorder=4)
    picked = np.unique(np.linspace(0, len(places) - 1, MOST_DOTS).round().astype(int))
    picked = np.union1d(picked[picked < count], [count - 1])
    farthest = 0.0 if residuals is None else float(np.nanmax(residuals))
    sizes = np.full(len(picked), 15.0)
    if residuals is not None and farthest > 0:
        sizes = 8 + 62 * residuals[picked] / farthest
    faces: dict[str, Any] = {"color": "white"}
    if losses is not None:
        heights = colours.heights(losses[picked])
        faces = {"c": heights, "cmap": scales.palette(), "norm": colours.norm}
    x, y = path[picked].T
    axes.scatter(x, y, s=sizes, edgecolors="white", linewidths=1.5, zorder=5, **faces)
    axes.scatter(x, y, s=sizes, edgecolors=page.INK, linewidths=0.6, zorder=6, **faces)
    return _run_legend(axes, losses is not None, farthest) if legend else 0


def _mark(axes: Axes, name: str, place: tuple[float, float]) -> None:
    """A star with a name that stays inside the axes."""
    axes.plot(*place, **page.ring(11, marker="*", width=0.9), linestyle="none", zorder=7)
    right, up = axes.transAxes.inverted().transform(axes.transData.transform(place))
    axes.annotate(
        name,
        place,
        xytext=(7 if right < 0.65 else -7, 6 if up < 0.85 else -6),
        textcoords="offset points",
        ha="left" if right < 0.65 else "right",
        va="bottom" if up < 0.85 else "top",
        fontsize=page.TICK_SIZE + 0.5,
        color=page.INK,
        path_effects=[withStroke(linewidth=2.2, foreground="white")],
        zorder=8,
    )


def _run_legend(axes: Axes, coloured: bool, farthest: float) -> int:
    face = scales.palette()(0.45) if coloured else "white"
    dot = page.ring(4, width=0.6) | {"markerfacecolor": face}
    name = "iterate, coloured by its own loss" if coloured else "iterate"
    handles = [Line2D([], [], color=page.INK, linewidth=1.0, label=name, **dot)]
    if farthest > 0:
        off = f"off the plane by {scales.short(float(f'{farthest:.2g}'))}"
        dot["markersize"] = 8.4
        handles.append(Line2D([], [], linestyle="none", label=off, **dot))
    return page.legend(axes, handles=handles, columns=2)
