"""Minefields: the path of a good run among bad minima, embedded in the plane by t-SNE.

After Huang, Emam et al. (2020), figure 3.6. An embedding by t-SNE keeps neighbourhoods, not sizes
or distances, and shows structure that hangs on its perplexity (Wattenberg et al. 2016); so there is
a panel for each perplexity and a caption that says so.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from densejax.plots import scales, sheets, style

MARKERS = "o^sDvP"
CAPTION = (
    "t-SNE keeps neighbours only: sizes of clusters and distances between them carry no meaning."
)


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
    _check(maps, sorts, colour_values, final, joined)
    colours = scales.scale([colour_values], limits=limits, levels=())
    figure, panels = sheets.sheet(
        len(maps),
        columns=2 if len(maps) in (2, 4) else 3,
        width=2.3,
        tall=0.92,
        margins=sheets.Margins(
            left=0.14, right=0.95, top=0.54 + 0.26 * bool(title), bottom=0.4, down=0.32
        ),
    )
    for axes, (perplexity, places) in zip(panels, maps.items(), strict=True):
        _draw(axes, places, sorts, names, colour_values, colours, final, joined)
        away = int(np.isnan(places).any(axis=1).sum())
        note = f" ({away} outlier{'s' * (away > 1)} left out)" if away else ""
        axes.set_title(
            f"perplexity {perplexity:g}{note}",
            fontsize=style.LABEL_SIZE,
            color=style.INK,
            loc="left",
        )
    scales.bar(figure, panels, colours, label)
    _words(figure, names, final is not None, title)
    if path is not None:
        style.save(figure, path)
    return figure


def _check(
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


def _draw(
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
            marker=MARKERS[index % len(MARKERS)],
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
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(style.GRID)


def _words(figure: Figure, names: Sequence[str], starred: bool, title: str) -> None:
    dot: dict[str, Any] = {
        "linestyle": "none",
        "markeredgecolor": style.INK,
        "markerfacecolor": style.GRID,
    }
    handles = [
        Line2D([], [], marker=MARKERS[i % len(MARKERS)], markersize=5, label=name, **dot)
        for i, name in enumerate(names)
    ]
    if starred:
        handles.append(Line2D([], [], marker="*", markersize=10, label="final", **dot))
    across, down = figure.get_size_inches()
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.12 / across, 1 - (0.08 + 0.25 * bool(title)) / down),
        ncols=len(handles),
        frameon=False,
        fontsize=style.TICK_SIZE,
        labelcolor=style.INK,
        borderaxespad=0.2,
        handlelength=1.0,
    )
    if title:
        sheets.heading(figure, title)
    figure.text(
        0.14 / across, 0.16 / down, CAPTION, fontsize=style.TICK_SIZE, color="#5D646E", va="center"
    )
