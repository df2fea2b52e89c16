"""Paths: measures along lines and curves between minima, barriers, and runs beside a plane."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from densejax.plots import scales, style

DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
MOST_CELLS = 20
"""Minima up to which every barrier is written into its cell."""


def path_profiles(
    panels: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]],
    *,
    ends: tuple[str, str] = ("first minimum", "second minimum"),
    barriers: bool = True,
    logarithmic: bool = False,
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """Measures along paths between two minima: a panel a measure, a line a path.

    Args:
      panels: by the measure's name, with its unit (such as loss, test accuracy): t ``[p]`` in 0..1
        and values ``[p]``, by the path's name. A path has one colour in all panels; nan and
        infinity leave a gap.
      ends: what is at t = 0 and t = 1.
      barriers: whether the legend tells the largest rise of each path, in the first panel, over
        the straight line between its ends.
      logarithmic: of the first panel's vertical axis.
      title: above the axes.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      ValueError: there is no path, shapes do not match, or the name does not end in ``.png``.
    """
    names = list(dict.fromkeys(name for paths in panels.values() for name in paths))
    if not names:
        raise ValueError(f"{len(panels)} panels without a path: expected at least one")
    figure = style.new_figure(0.6 + 3.6 * len(panels), 3.3)
    drawn = figure.subplots(1, len(panels), squeeze=False)[0]
    for index, (axes, (label, paths)) in enumerate(zip(drawn, panels.items(), strict=True)):
        style.dress(axes, y=label)
        for name, pair in paths.items():
            t, values = (np.asarray(one, float) for one in pair)
            if t.ndim != 1 or t.shape != values.shape or t.size < 2:
                raise ValueError(
                    f"{label} of {name}: t {t.shape} and values {values.shape}: expected [p] both"
                )
            place = names.index(name)
            seen = np.where(np.isfinite(values), values, np.nan)
            axes.plot(
                t,
                seen,
                color=style.series_colour(place),
                linewidth=1.7,
                linestyle=DASHES[place // len(style.SERIES_COLOURS) % len(DASHES)],
                label=name + (_barrier(t, values) if barriers and not index else ""),
            )
            axes.plot(t[[0, -1]], seen[[0, -1]], "o", color=style.INK, markersize=4, zorder=4)
        axes.set_xticks([0, 0.5, 1], [f"{ends[0]}\nt = 0", "t = 0.5", f"{ends[1]}\nt = 1"])
        if logarithmic and not index:
            axes.set_yscale("log")  # before the margins, which are of the logarithms
        axes.margins(x=0.05, y=0.08)
        if logarithmic and not index:
            scales.logarithmic_axis(axes.yaxis)
    # Names with barriers are long: side by side they would push the panels apart.
    columns = 1 if len(names) < 4 else 2
    style.legend(drawn[0], title=title, columns=columns)
    return style.save(figure, path)


def _barrier(t: np.ndarray, values: np.ndarray) -> str:
    """The largest rise over the line between the ends, in words."""
    line = values[0] + (values[-1] - values[0]) * (t - t[0]) / (t[-1] - t[0])
    return f" (barrier {_short(float((values - line).max()))})"


def _short(value: float) -> str:
    """A number in two digits, zeros at the end included."""
    return f"{value:#.2g}".rstrip(".")


def barrier_matrix(
    barriers: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    label: str = "barrier of the loss",
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """The barrier between every two of several minima, the diagonal left out.

    Args:
      barriers: ``[k, k]`` float, 0 or more; nan cells stay grey.
      names: of the k minima; None is their numbers.
      label: of the colour scale, with its unit if there is one.
      title: above the axes.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      ValueError: the table is not square, the names do not match, or the name does not end in
        ``.png``.
    """
    table = np.array(barriers, float)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or len(table) < 2:
        raise ValueError(f"barriers has shape {table.shape}: expected [k, k], k at least 2")
    k = len(table)
    if names is not None and len(names) != k:
        raise ValueError(f"names has {len(names)} names: expected one for each of {k} minima")
    shown_names = list(names) if names is not None else [str(i) for i in range(k)]
    np.fill_diagonal(table, np.nan)
    cell = 0.46 if k <= MOST_CELLS else 9 / k
    figure = style.new_figure(1.9 + cell * k, 1.2 + cell * k)
    axes = figure.add_subplot()
    style.dress(axes, title=title, grid="")
    top = float(np.nanmax(table)) if np.isfinite(table).any() else 0.0
    text = _short if k <= MOST_CELLS else None
    image = style.table(axes, table, text, limits=(0, top or 1), light_above=0.55 * top)
    if k <= MOST_CELLS or names is not None:
        turned = 40 if any(len(name) > 3 for name in shown_names) else 0
        align = "right" if turned else "center"
        axes.set_xticks(range(k), shown_names, rotation=turned, ha=align, rotation_mode="anchor")
        axes.set_yticks(range(k), shown_names)
    style.colour_bar(figure, image, label, ax=axes)
    return style.save(figure, path)


def trajectory_losses(
    losses: ArrayLike,
    plane_losses: ArrayLike,
    residual: ArrayLike,
    *,
    steps: ArrayLike | None = None,
    label: str = "loss",
    step_label: str = "iterate",
    logarithmic: bool = True,
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """What a plane tells of a run and what it hides: losses above, distance from it below.

    Args:
      losses: ``[t]`` float, the true losses of the iterates.
      plane_losses: ``[t]`` float, of their nearest points on the plane.
      residual: ``[t]`` float, their Euclidean distances from it.
      steps: ``[t]``, rising, when the iterates were kept; None is their numbers.
      label: of the upper vertical axis, with its unit if there is one.
      step_label: of the horizontal axis.
      logarithmic: of the upper vertical axis.
      title: above the axes.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      ValueError: shapes do not match, or the name does not end in ``.png``.
    """
    true, plane, away = (np.asarray(one, float) for one in (losses, plane_losses, residual))
    when = np.arange(true.size) if steps is None else np.asarray(steps)
    if not when.shape == true.shape == plane.shape == away.shape or true.ndim != 1 or not true.size:
        raise ValueError(
            f"steps {when.shape}, losses {true.shape}, plane_losses {plane.shape} and residual "
            f"{away.shape}: expected [t] each"
        )
    figure = style.new_figure(5.0, 4.0)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 1])
    style.dress(above, y=label)
    style.dress(below, x=step_label, y="distance\nfrom the plane")
    colour, other = style.SERIES_COLOURS[0], style.SERIES_COLOURS[1]
    above.plot(when, true, color=colour, linewidth=1.7, label="iterate")
    above.plot(
        when,
        plane,
        color=other,
        linewidth=1.4,
        linestyle=(0, (4, 2)),
        label="its nearest point on the plane",
    )
    below.fill_between(when, 0, away, color=style.FAINT, alpha=0.25, linewidth=0)
    below.plot(when, away, color=style.FAINT, linewidth=1.4)
    below.set_ylim(bottom=0)
    if logarithmic:
        scales.logarithmic_axis(above.yaxis)
    style.whole_ticks(below.xaxis)
    above.margins(x=0.02)
    style.legend(above, title=title, columns=2)
    return style.save(figure, path)
