"""Basins (radii, volumes, directions) and the density of the eigenvalues of a Hessian."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import ArrayLike

from densejax.plots import scales, style

ROW = 0.3  # inches a minimum
FLOOR = 1e-5
"""The least part of its peak at which a density is drawn."""
_MARK: dict[str, Any] = {"linestyle": "none", "marker": "v", "markersize": 4.5, "color": style.INK}


def radius_histograms(
    radii: Mapping[str, ArrayLike],
    *,
    groups: Sequence[str] | None = None,
    censored: Mapping[str, ArrayLike] | None = None,
    label: str = "basin radius (filter norms)",
    title: str = "",
    bins: int = 60,
    logarithmic: bool = False,
    path: str | Path | None = None,
) -> Figure:
    """A row a minimum: the histogram of its radii, and their median as a dot.

    Bins are the same for all rows; every row is scaled to its own highest bin.

    Args:
      radii: ``[k]`` float above 0 a minimum, by name, from top to bottom; k may differ.
      groups: name of each minimum's group, in the order of ``radii``; groups have colours.
      censored: ``[k]`` bool a minimum, by name: radii that are lower bounds, drawn hatched and
        counted at the end of the row.
      label: of the horizontal axis, with its unit.
      title: above the rows.
      bins: how many, over all rows.
      logarithmic: of the horizontal axis.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      ValueError: there is no minimum, one has no finite radius above 0, the groups or what is
        censored do not match, or the name does not end in ``.png``.
    """
    values = {name: np.asarray(one, float).reshape(-1) for name, one in radii.items()}
    bad = [n for n, one in values.items() if not (one.size and np.isfinite(one).all())]
    bad += [n for n, one in values.items() if n not in bad and not (one > 0).all()]
    if bad or not values:
        raise ValueError(f"radii of {bad or 'nobody'}: expected at least one, finite and above 0")
    colours = _colours(groups, len(values), "radii")
    masks = {
        name: np.asarray((censored or {}).get(name, np.zeros(one.size)), bool)
        for name, one in values.items()
    }
    wrong = [name for name, mask in masks.items() if mask.shape != values[name].shape]
    if wrong or set(censored or {}) - set(values):
        unknown = wrong or sorted(set(censored or {}) - set(values))
        raise ValueError(f"censored of {unknown}: expected [k] bool of minima of ``radii``")
    low = min(one.min() for one in values.values())
    high = max(one.max() for one in values.values())
    edges = _edges(low, high, bins, logarithmic)
    figure = style.new_figure(5.4, 0.9 + ROW * max(3, len(values)))
    axes = figure.add_subplot()
    style.dress(axes, x=label, grid="x")
    for row, (name, one) in enumerate(values.items()):
        _ridge(axes, -row, one, masks[name], edges, colours[row])
    axes.set_yticks([-row for row in range(len(values))], list(values))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(-len(values) + 0.75, 1.05)
    axes.set_xlim(edges[0], edges[-1])
    if logarithmic:
        scales.logarithmic_axis(axes.xaxis)
    _legend(axes, groups, title)
    return style.save(figure, path)


def volume_scatter(
    x: ArrayLike,
    volumes: ArrayLike,
    *,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
    groups: Sequence[str] | None = None,
    x_label: str = "test accuracy",
    label: str = "log-volume (nats)",
    title: str = "",
    note: str = "",
    logarithmic: bool = False,
    path: str | Path | None = None,
) -> Figure:
    """A log-volume (or a median radius) of each minimum over its test accuracy or poison.

    Args:
      x: ``[k]`` float.
      volumes: ``[k]`` float, such as Jensen bounds, or estimates with effective samples enough.
      low: ``[k]`` float, lower ends of the intervals, given with ``high``.
      high: ``[k]`` float.
      groups: name of each minimum's group; groups have colours and markers.
      x_label: of the horizontal axis.
      label: of the vertical axis.
      title: above the axes.
      note: in a corner, such as a rank correlation with its interval.
      logarithmic: whether the vertical axis is, as for radii.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      ValueError: there is no minimum, the shapes do not match, only one end of the intervals is
        given, or the name does not end in ``.png``.
    """
    xs, ys = np.asarray(x, float), np.asarray(volumes, float)
    if (low is None) != (high is None):
        raise ValueError("only one of low and high is given: expected both or neither")
    ends = [np.asarray(end, float) for end in (low, high) if end is not None]
    if any(array.shape != ys.shape for array in (xs, *ends)) or ys.ndim != 1 or not ys.size:
        shapes = [array.shape for array in (xs, ys, *ends)]
        raise ValueError(f"x, volumes and their ends have shapes {shapes}: expected [k] all")
    colours = _colours(groups, len(ys), "volumes")
    figure = style.new_figure(4.8, 3.5)
    axes = figure.add_subplot()
    style.dress(axes, x=x_label, y=label, grid="both")
    names = list(groups) if groups is not None else [""] * len(ys)
    known = list(dict.fromkeys(names))
    for index in range(len(ys)):
        if ends:
            span = (ends[0][index], ends[1][index])
            axes.vlines(xs[index], *span, color=colours[index], linewidth=1.2, alpha=0.7)
        axes.plot(
            xs[index],
            ys[index],
            marker=style.MARKERS[known.index(names[index]) % len(style.MARKERS)],
            markersize=4.8,
            color=colours[index],
            markeredgecolor="white",
            markeredgewidth=0.6,
            linestyle="none",
        )
    axes.margins(x=0.06, y=0.1)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.6g}"))
    if logarithmic:
        axes.set_yscale("log")  # before the view is read: margins are of the logarithms
        scales.logarithmic_axis(axes.yaxis)
    if note:
        axes.annotate(
            note,
            (0.98, 0.03),
            xycoords="axes fraction",
            ha="right",
            **style.SMALL,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5},
        )
    _legend(axes, groups, title, markers=True)
    return style.save(figure, path)


def volume_curves(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike]],
    *,
    label: str = "log-volume (nats)",
    band_label: str = "95 % of subsets",
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """Estimates over the number of directions: one that still rises has too few.

    Args:
      curves: (directions ``[s]`` int, rising, estimate ``[s]``, low ``[s]``, high ``[s]``) a
        minimum, by name.
      label: of the vertical axis.
      band_label: what the bands show.
      title: above the axes.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      ValueError: there is no curve, the shapes do not match, or the name does not end in ``.png``.
    """
    arrays = {name: [np.asarray(part, float) for part in one] for name, one in curves.items()}
    wrong = [
        name
        for name, parts in arrays.items()
        if len(parts) != 4 or parts[0].ndim != 1 or len({part.shape for part in parts}) != 1
    ]
    if wrong or not arrays:
        raise ValueError(f"curves of {wrong or 'nobody'}: expected four arrays [s] each")
    figure = style.new_figure(4.8, 3.5)
    axes = figure.add_subplot()
    style.dress(axes, x="directions", y=label)
    for index, (name, (sizes, estimate, low, high)) in enumerate(arrays.items()):
        colour = style.series_colour(index)
        axes.fill_between(sizes, low, high, color=colour, alpha=0.14, linewidth=0)
        axes.plot(
            sizes,
            estimate,
            color=colour,
            linewidth=1.6,
            marker=style.MARKERS[index % len(style.MARKERS)],
            markersize=3.4,
            label=name,
        )
    style.swatch(axes, band_label)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.6g}"))
    style.legend(axes, title=title)
    return style.save(figure, path)


def _colours(groups: Sequence[str] | None, count: int, of: str) -> list[str]:
    """A colour a minimum, by its group.

    Raises:
      ValueError: there are more or fewer groups than minima.
    """
    if groups is None:
        return [style.series_colour(0)] * count
    if len(groups) != count:
        raise ValueError(f"groups has {len(groups)} names: expected one for each of {count} {of}")
    known = list(dict.fromkeys(groups))
    return [style.series_colour(known.index(name)) for name in groups]


def _edges(low: float, high: float, bins: int, logarithmic: bool) -> np.ndarray:
    if high - low <= 1e-9 * high:
        low, high = 0.98 * low, 1.02 * high
    margin = (high / low) ** 0.02 if logarithmic else 0.02 * (high - low)
    if logarithmic:
        return np.geomspace(low / margin, high * margin, bins + 1)
    return np.linspace(max(low - margin, 0), high + margin, bins + 1)


def _ridge(
    axes: Axes, row: int, values: np.ndarray, mask: np.ndarray, edges: np.ndarray, colour: str
) -> None:
    counts, _ = np.histogram(values, edges)
    height = 0.85 / max(counts.max(), 1)
    hidden, _ = np.histogram(values[mask], edges)
    axes.stairs(
        row + height * counts, edges, baseline=row, fill=True, color=colour, alpha=0.35, zorder=2
    )
    axes.stairs(row + height * counts, edges, baseline=row, color=colour, linewidth=0.9, zorder=3)
    if mask.any():
        axes.stairs(
            row + height * hidden,
            edges,
            baseline=row,
            fill=True,
            facecolor="none",
            edgecolor=style.INK,
            hatch="//////",
            linewidth=0,
            zorder=4,
        )
        axes.annotate(
            f"{int(mask.sum())} reach the span",
            (1, row),
            xycoords=("axes fraction", "data"),
            xytext=(4, 1),
            textcoords="offset points",
            fontsize=style.TICK_SIZE - 1,
            color=style.INK,
            annotation_clip=False,
        )
    axes.plot(np.median(values), row, **style.ring(4), zorder=5, clip_on=False)


def _legend(axes: Axes, groups: Sequence[str] | None, title: str, *, markers: bool = False) -> None:
    handles = []
    for index, name in enumerate(dict.fromkeys(groups or ())):
        marker = style.MARKERS[index % len(style.MARKERS)] if markers else "s"
        colour = style.series_colour(index)
        handles.append(Line2D([], [], color=colour, marker=marker, linestyle="none", label=name))
    style.legend(axes, handles=handles, title=title, columns=4)


# ---- spectra of the Hessian ----


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
