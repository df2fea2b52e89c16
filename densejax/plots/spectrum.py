"""The spectrum of a Hessian: the density of its eigenvalues, with those that stand out marked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from densejax.plots import style

FLOOR = 1e-5
"""The least part of its peak at which a density is drawn."""
_MARK: dict[str, Any] = {"linestyle": "none", "marker": "v", "markersize": 4.5, "color": style.INK}


def spectral_densities(
    densities: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    errors: Mapping[str, ArrayLike] | None = None,
    eigenvalues: Mapping[str, ArrayLike] | None = None,
    floor: float = FLOOR,
    title: str = "",
    label: str = "eigenvalue of the Hessian",
    path: str | Path | None = None,
) -> Figure:
    """Density over eigenvalue, a panel a network below one another, on one logarithmic scale.

    As Ghorbani, Krishnan and Xiao 2019 draw it: most eigenvalues are near 0, and the few that are
    far from it are seen on a logarithmic axis alone.

    Args:
      densities: grid ``[p]`` and density ``[p]`` per unit of eigenvalue, by the network's name.
      errors: standard errors ``[p]`` of a network's density, drawn as a band of twice that.
      eigenvalues: single ones ``[m]`` of a network, such as the converged top, marked at the foot.
      floor: the least part of the highest peak that is drawn, above 0.
      title: above the axes.
      label: of the horizontal axis.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      ValueError: there is no density, shapes do not match, nothing is positive, or the name does
        not end in ``.png``.
    """
    curves = {name: _pair(name, *pair) for name, pair in densities.items()}
    peak = max((float(curve.max()) for _, curve in curves.values()), default=0.0)
    if not peak > 0 or not floor > 0:
        raise ValueError(f"{len(curves)} densities of peak {peak}, floor {floor}: expected above 0")
    height = 2.6 if len(curves) == 1 else 1.55 * len(curves)
    figure = style.new_figure(5.4, 0.6 + height)
    panels = figure.subplots(len(curves), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for index, (axes, (name, (grid, curve))) in enumerate(zip(panels, curves.items(), strict=True)):
        last = index == len(curves) - 1
        style.dress(axes, x=label if last else "", y="density per unit")
        colour = style.series_colour(index)
        low = np.maximum(curve, floor * peak)
        axes.fill_between(grid, floor * peak, low, color=colour, alpha=0.16, linewidth=0)
        seen = np.where(curve >= floor * peak, curve, np.nan)
        axes.plot(grid, seen, color=colour, linewidth=1.5)
        if errors and name in errors:
            _band(axes, grid, curve, errors[name], floor * peak, colour)
        if eigenvalues and name in eigenvalues:
            _marks(axes, eigenvalues[name], floor * peak)
        axes.axvline(0, color=style.FAINT, linewidth=0.7, linestyle=(0, (3, 2)), zorder=0)
        axes.set_yscale("log")
        axes.tick_params(axis="y", which="minor", length=1.5, width=0.5, color=style.FAINT)
        axes.set_ylim(floor * peak, 3 * peak)
        axes.xaxis.set_major_locator(MaxNLocator(7))
        if len(curves) > 1 or name:
            axes.text(
                0.985,
                0.93,
                name,
                transform=axes.transAxes,
                ha="right",
                va="top",
                fontsize=style.LABEL_SIZE,
                color=colour,
                fontweight="bold",
            )
    drawn = [grid[curve >= floor * peak] for grid, curve in curves.values()]
    panels[0].set_xlim(*_limits(np.concatenate(drawn)))
    if errors:
        style.swatch(panels[0], "two standard errors")
    if eigenvalues:
        panels[0].plot([], [], **_MARK, label="single eigenvalues")
    style.legend(panels[0], title=title)
    return style.save(figure, path)


def _pair(name: str, grid: ArrayLike, curve: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    pair = np.asarray(grid, float), np.asarray(curve, float)
    if pair[0].ndim != 1 or pair[0].shape != pair[1].shape or not pair[0].size:
        raise ValueError(
            f"{name or 'density'}: grid {pair[0].shape} and density {pair[1].shape}: expected [p]"
        )
    return pair


def _limits(places: np.ndarray) -> tuple[float, float]:
    """What shows all places, and 0, with a margin."""
    low, high = min(0.0, float(places.min())), max(0.0, float(places.max()))
    margin = 0.03 * (high - low)
    return low - margin, high + margin


def _band(
    axes: Axes, grid: np.ndarray, curve: np.ndarray, errors: ArrayLike, least: float, colour: str
) -> None:
    spread = 2 * np.asarray(errors, float)
    if spread.shape != curve.shape:
        raise ValueError(f"errors {spread.shape} of a density {curve.shape}: expected the same")
    low, high = np.maximum(curve - spread, least), np.maximum(curve + spread, least)
    axes.fill_between(grid, low, high, color=colour, alpha=0.3, linewidth=0)


def _marks(axes: Axes, values: ArrayLike, foot: float) -> None:
    places = np.asarray(values, float).ravel()
    # On the foot of a logarithmic axis half of a marker would be cut off.
    axes.plot(places, np.full(places.size, 1.6 * foot), **_MARK, clip_on=False, zorder=4)
