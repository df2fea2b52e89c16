"""Trajectories and minima on a surface that is seen from above."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike

from densejax.plots import scales, style

MOST_DOTS = 30


def checked(
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


def draw(
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
    axes.plot(*path.T, color=style.INK, linewidth=1.0, solid_capstyle="round", zorder=4)
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
    axes.scatter(x, y, s=sizes, edgecolors=style.INK, linewidths=0.6, zorder=6, **faces)
    return _legend(axes, losses is not None, farthest) if legend else 0


def mark(axes: Axes, name: str, place: tuple[float, float]) -> None:
    """A star with a name that stays inside the axes."""
    axes.plot(
        *place,
        marker="*",
        markersize=11,
        markerfacecolor="white",
        markeredgecolor=style.INK,
        markeredgewidth=0.9,
        linestyle="none",
        zorder=7,
    )
    right, up = axes.transAxes.inverted().transform(axes.transData.transform(place))
    axes.annotate(
        name,
        place,
        xytext=(7 if right < 0.65 else -7, 6 if up < 0.85 else -6),
        textcoords="offset points",
        ha="left" if right < 0.65 else "right",
        va="bottom" if up < 0.85 else "top",
        fontsize=style.TICK_SIZE + 0.5,
        color=style.INK,
        path_effects=[withStroke(linewidth=2.2, foreground="white")],
        zorder=8,
    )


def _legend(axes: Axes, coloured: bool, farthest: float) -> int:
    dot: dict[str, Any] = {"marker": "o", "markeredgecolor": style.INK, "markeredgewidth": 0.6}
    face = scales.palette()(0.45) if coloured else "white"
    name = "iterate, coloured by its own loss" if coloured else "iterate"
    handles = [
        Line2D(
            [],
            [],
            color=style.INK,
            linewidth=1.0,
            markersize=4,
            markerfacecolor=face,
            label=name,
            **dot,
        )
    ]
    if farthest > 0:
        handles.append(
            Line2D(
                [],
                [],
                linestyle="none",
                markersize=8.4,
                markerfacecolor=face,
                label=f"off the plane by {scales.short(float(f'{farthest:.2g}'))}",
                **dot,
            )
        )
    axes.legend(
        handles=handles,
        frameon=False,
        fontsize=style.TICK_SIZE,
        labelcolor=style.INK,
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=2,
        borderaxespad=0.2,
        handlelength=1.6,
    )
    return 1
