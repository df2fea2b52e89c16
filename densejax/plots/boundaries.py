"""Networks in a plane: decision boundaries, and minefields.

A decision boundary is what a network says everywhere, with the points it learnt from.
Probabilities are ``[p, q, c]`` at ``(grid_x[i], grid_y[j])``. A place is white where the two
likeliest classes tie and takes on its class' colour as that class gains.

A minefield is the path of a good run among bad minima, embedded in the plane by t-SNE, after Huang,
Emam et al. (2020), figure 3.6. Such an embedding keeps neighbourhoods, not sizes or distances, and
shows structure that hangs on its perplexity (Wattenberg et al. 2016); so there is a panel for each
perplexity and a caption that says so.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from densejax.plots import scales, style

STRENGTH = 0.42  # of a certain class' colour behind the points
KINDS = "o^sDvP"  # markers of a minefield's networks
CAPTION = (
    "t-SNE keeps neighbours only: sizes of clusters and distances between them carry no meaning."
)


def decision_boundary(
    points: ArrayLike,
    labels: ArrayLike,
    grid_x: ArrayLike,
    grid_y: ArrayLike,
    probabilities: ArrayLike,
    *,
    unseen: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    x_label: str = "",
    y_label: str = "",
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """One network's boundary and the points.

    Args:
      points: ``[n, 2]`` float.
      labels: ``[n]`` int in 0..c-1.
      grid_x: ``[p]`` float, rising.
      grid_y: ``[q]`` float, rising.
      probabilities: ``[p, q, c]`` float in 0..1, or ``[p, q]``, that of class 1 of two; nan (a
        network that diverged) is hatched.
      unseen: ``[n]`` bool, points that were not trained on, drawn hollow.
      class_names: c names; None is their numbers.
      x_label: of the horizontal axis.
      y_label: of the vertical axis.
      title: above the axes, such as the test accuracy.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      ValueError: shapes or names do not match, a label is outside 0..c-1, or the name does not end
        in ``.png``.
    """
    cloud = _cloud(points, labels, unseen)
    grid, sure = _field(grid_x, grid_y, probabilities, cloud[1], "probabilities")
    names = style.class_names(class_names, sure.shape[2])
    handles = _handles(names, cloud[2])
    rows = -(-len(handles) // 4)
    figure, panels = style.sheet(
        1,
        columns=1,
        width=3.5,
        tall=style.proportion(*grid),
        margins=style.Margins(
            left=0.58 if y_label else 0.42,
            top=0.16 + 0.17 * rows + 0.2 * bool(title),
            bottom=0.48 if x_label else 0.3,
        ),
    )
    axes = panels[0]
    _draw(axes, grid, sure, cloud, size=_size(len(cloud[0]), 18))
    style.dress(axes, x=x_label, y=y_label, grid="")
    style.few_ticks(axes)
    style.legend(axes, handles=handles, title=title, columns=4)
    return style.save(figure, path)


def decision_boundaries(
    points: ArrayLike,
    labels: ArrayLike,
    grid_x: ArrayLike,
    grid_y: ArrayLike,
    probabilities: Mapping[str, ArrayLike],
    *,
    unseen: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    columns: int = 5,
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """Many networks' boundaries side by side, such as seeds or poisoning factors.

    Args:
      points: ``[n, 2]`` float, the same in all panels.
      labels: ``[n]`` int in 0..c-1.
      grid_x: ``[p]`` float, rising.
      grid_y: ``[q]`` float, rising.
      probabilities: ``[p, q, c]`` (or ``[p, q]``) float in 0..1 by the title of each panel.
      unseen: ``[n]`` bool, points that were not trained on, drawn hollow.
      class_names: c names; None is their numbers.
      columns: most panels in a row.
      title: above all.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      ValueError: as `decision_boundary`, or there is no network.
    """
    if not probabilities:
        raise ValueError("probabilities is empty: expected at least one network")
    cloud = _cloud(points, labels, unseen)
    fields = {
        name: _field(grid_x, grid_y, field, cloud[1], name) for name, field in probabilities.items()
    }
    grid = next(iter(fields.values()))[0]
    names = style.class_names(class_names, max(sure.shape[2] for _, sure in fields.values()))
    figure, panels = style.sheet(
        len(fields),
        columns=columns,
        width=1.6,
        tall=style.proportion(*grid),
        margins=style.Margins(
            left=0.12, right=0.12, top=0.5 + 0.26 * bool(title), bottom=0.12, down=0.27
        ),
    )
    for axes, (name, (_, sure)) in zip(panels, fields.items(), strict=True):
        _draw(axes, grid, sure, cloud, size=_size(len(cloud[0]), 6))
        axes.set_title(name, loc="left", pad=3, **style.SMALL)
        style.frame(axes, colour=style.GRID, width=0.8)
    top = figure.get_size_inches()[1] - 0.1 - 0.24 * bool(title)
    handles = _handles(names, cloud[2])
    style.legend(figure, handles=handles, columns=len(handles), at=(0.12, top))
    style.heading(figure, title, left=0.12)
    return style.save(figure, path)


def minefield(
    embeddings: Mapping[float, ArrayLike],
    kinds: ArrayLike,
    values: ArrayLike,
    *,
    final: int | None = None,
    joined: Sequence[str] = (),
    limits: tuple[float | None, float | None] | None = None,
    label: str = "test accuracy",
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """Networks as dots in the plane, a panel for each perplexity.

    Args:
      embeddings: ``[n, 2]`` float by perplexity; nan is an outlier that was left out, and counted
        in the panel's title.
      kinds: ``[n]`` str, such as "good run" or "bad minimum": each has a marker of its own.
      values: ``[n]`` float, the colour of each network.
      final: the network that is drawn as a star, such as the end of the good run.
      joined: kinds whose networks are joined by a line in their order.
      limits: lowest and highest value of the colours; None is the values' own.
      label: of the bar.
      title: above all.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      ValueError: there is no embedding, shapes do not match, a joined kind or the final network
        is not there, or the name does not end in ``.png``.
    """
    sorts, colour_values = np.asarray(kinds), np.asarray(values, float)
    maps = {perplexity: np.asarray(places, float) for perplexity, places in embeddings.items()}
    names = list(dict.fromkeys(sorts.tolist()))
    _check_maps(maps, sorts, colour_values, final, joined)
    colours = scales.scale([colour_values], limits=limits, levels=())
    figure, panels = style.sheet(
        len(maps),
        columns=2 if len(maps) in (2, 4) else 3,
        width=2.3,
        tall=0.92,
        margins=style.Margins(
            left=0.14, right=0.95, top=0.54 + 0.26 * bool(title), bottom=0.4, down=0.32
        ),
    )
    for axes, (perplexity, places) in zip(panels, maps.items(), strict=True):
        _scatter(axes, places, sorts, names, colour_values, colours, final, joined)
        away = int(np.isnan(places).any(axis=1).sum())
        note = f" ({away} outlier{'s' * (away > 1)} left out)" if away else ""
        axes.set_title(
            f"perplexity {perplexity:g}{note}",
            fontsize=style.LABEL_SIZE,
            color=style.INK,
            loc="left",
        )
    scales.bar(figure, panels, colours, label)
    across, down = figure.get_size_inches()
    dot = style.ring(5, width=1.0) | {"markerfacecolor": style.GRID, "linestyle": "none"}
    handles = [
        Line2D([], [], label=name, **dot | {"marker": KINDS[index % len(KINDS)]})
        for index, name in enumerate(names)
    ]
    if final is not None:
        handles.append(Line2D([], [], label="final", **dot | {"marker": "*", "markersize": 10}))
    style.legend(
        figure, handles=handles, columns=len(handles), at=(0.14, down - 0.1 - 0.25 * bool(title))
    )
    style.heading(figure, title)
    place = 0.14 / across, 0.16 / down
    figure.text(*place, CAPTION, fontsize=style.TICK_SIZE, color="#5D646E", va="center")
    return style.save(figure, path)


def _shades(probabilities: ArrayLike, colours: Sequence[str]) -> np.ndarray:
    """Colours ``[p, q, 3]`` of probabilities ``[p, q, c]``: white at a tie, tinted when certain.

    nan gives nan.
    """
    sure = np.asarray(probabilities, float)
    ranked = np.sort(sure, axis=-1)
    lead = ranked[..., -1] - ranked[..., -2]
    hues = np.array([to_rgb(colour) for colour in colours])[np.argmax(sure, axis=-1)]
    return 1 - STRENGTH * np.clip(lead, 0, 1)[..., None] * (1 - hues)


def _cloud(
    points: ArrayLike, labels: ArrayLike, unseen: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    places, classes = np.asarray(points, float), np.asarray(labels)
    if places.ndim != 2 or places.shape[1] != 2 or classes.shape != places.shape[:1]:
        raise ValueError(
            f"points have shape {places.shape} and labels {classes.shape}: expected [n, 2] and [n]"
        )
    hollow = np.zeros(len(places), bool) if unseen is None else np.asarray(unseen, bool)
    if hollow.shape != classes.shape:
        raise ValueError(f"unseen has shape {hollow.shape}: expected {classes.shape}")
    return places, classes, hollow


def _field(
    grid_x: ArrayLike, grid_y: ArrayLike, probabilities: ArrayLike, labels: np.ndarray, name: str
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    x, y = np.asarray(grid_x, float), np.asarray(grid_y, float)
    sure = np.asarray(probabilities, float)
    if sure.ndim == 2:
        sure = np.stack([1 - sure, sure], axis=-1)
    if min(x.size, y.size) < 2 or sure.ndim != 3 or sure.shape[:2] != (x.size, y.size):
        raise ValueError(
            f"{name} has shape {sure.shape} on a grid of {x.size} by {y.size}: expected [p, q, c]"
        )
    if sure.shape[2] < 2:
        raise ValueError(f"{name} has one class: expected [p, q, c] with two or more, or [p, q]")
    if labels.size and (labels.min() < 0 or labels.max() >= sure.shape[2]):
        raise ValueError(
            f"labels are {labels.min()}..{labels.max()}: expected 0..{sure.shape[2] - 1}"
        )
    return (x, y), sure


def _size(count: int, largest: float) -> float:
    """Area of a point, so that many do not hide the boundary."""
    return float(np.clip(largest * np.sqrt(200 / max(count, 1)), largest / 4, 1.6 * largest))


def _draw(
    axes: Axes,
    grid: tuple[np.ndarray, np.ndarray],
    sure: np.ndarray,
    cloud: tuple[np.ndarray, np.ndarray, np.ndarray],
    *,
    size: float,
) -> None:
    x, y = grid
    colours = [style.series_colour(c) for c in range(sure.shape[2])]
    told = np.isfinite(sure).all(axis=-1)
    if not told.all():
        axes.add_patch(Rectangle((0, 0), 1, 1, transform=axes.transAxes, zorder=0, **scales.HATCH))
    tints = np.concatenate([_shades(sure, colours), told[..., None]], axis=-1)
    left, right, low, high = *scales.edges(x)[[0, -1]], *scales.edges(y)[[0, -1]]
    axes.imshow(
        np.nan_to_num(np.swapaxes(tints, 0, 1)),
        origin="lower",
        extent=(left, right, low, high),
        interpolation="bilinear" if told.all() else "nearest",
        aspect="auto",
        zorder=1,
    )
    # Two classes share one boundary; of more, each has its own.
    for own in range(1 if len(colours) == 2 else len(colours)):
        others = np.delete(sure, own, axis=-1).max(axis=-1)
        lead = np.ma.masked_invalid(sure[..., own] - others)
        if lead.count() and lead.min() < 0 < lead.max():
            axes.contour(x, y, lead.T, levels=[0], colors=style.INK, linewidths=1.1, zorder=2)
    places, classes, hollow = cloud
    for label, colour in enumerate(colours):
        for empty in (True, False):
            chosen = places[(classes == label) & (hollow == empty)]
            axes.scatter(
                chosen[:, 0],
                chosen[:, 1],
                s=size,
                color="white" if empty else colour,
                edgecolors=colour if empty else "white",
                linewidths=0.8 if empty else 0.4,
                zorder=3,
            )
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)


def _handles(names: Sequence[str], hollow: np.ndarray) -> list[Line2D]:
    """Entries of the legend: the classes, what is hollow, and the line."""
    dot: dict[str, Any] = {"marker": "o", "linestyle": "none", "markersize": 5}
    handles = [
        Line2D([], [], color=style.series_colour(c), markeredgecolor="white", label=name, **dot)
        for c, name in enumerate(names)
    ]
    if hollow.any():
        look = style.ring(5, width=1.0) | {"linestyle": "none"}
        handles.append(Line2D([], [], label="unseen", **look))
    handles.append(Line2D([], [], color=style.INK, linewidth=1.1, label="boundary"))
    return handles


def _check_maps(
    maps: Mapping[float, np.ndarray],
    kinds: np.ndarray,
    values: np.ndarray,
    final: int | None,
    joined: Sequence[str],
) -> None:
    wrong = {key: places.shape for key, places in maps.items() if places.shape != (len(kinds), 2)}
    if not maps or wrong or kinds.ndim != 1 or values.shape != kinds.shape or not kinds.size:
        raise ValueError(
            f"kinds have shape {kinds.shape}, values {values.shape} and embeddings"
            f" {wrong or sorted(maps)}: expected [n], [n] and [n, 2] for each perplexity"
        )
    strangers = sorted(set(joined) - set(kinds.tolist()))
    if strangers:
        raise ValueError(
            f"joined names {strangers}: expected some of {sorted(set(kinds.tolist()))}"
        )
    if final is not None and not -len(kinds) <= final < len(kinds):
        raise ValueError(f"final is {final}: expected one of {len(kinds)} networks")


def _scatter(
    axes: Axes,
    places: np.ndarray,
    kinds: np.ndarray,
    names: Sequence[str],
    values: np.ndarray,
    colours: scales.Scale,
    final: int | None,
    joined: Sequence[str],
) -> None:
    look: dict[str, Any] = {"cmap": scales.palette(), "norm": colours.norm}
    for kind in joined:
        axes.plot(*places[kinds == kind].T, color=style.FAINT, linewidth=0.8, alpha=0.7, zorder=1)
    for index, kind in enumerate(names):
        chosen = kinds == kind
        axes.scatter(
            places[chosen, 0],
            places[chosen, 1],
            c=colours.heights(values[chosen]),
            marker=KINDS[index % len(KINDS)],
            s=17,
            edgecolors=style.INK,
            linewidths=0.4,
            zorder=3 + (kind in joined),
            **look,
        )
    if final is not None:
        axes.scatter(
            places[[final], 0],
            places[[final], 1],
            c=colours.heights(values[[final]]),
            marker="*",
            s=190,
            edgecolors=style.INK,
            linewidths=1.0,
            zorder=6,
            **look,
        )
    # Units of t-SNE mean nothing, so there are none; both axes have the same, which does.
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.06)
    style.frame(axes, colour=style.GRID, width=0.8)
