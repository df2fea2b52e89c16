"""One look for every picture: colours that survive colour blindness, axes, legends, sheets, files.

Figures are objects drawn by the Agg back end. Nothing here or in the other files of this folder
touches pyplot or any other global state, so pictures may be drawn from threads and in notebooks.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, MaxNLocator, StrMethodFormatter

DPI = 200
INK = "#22262B"
FAINT = "#8A9099"
GRID = "#E4E7EB"
TITLE_SIZE = 9.0
LABEL_SIZE = 8.5
TICK_SIZE = 7.5
_BESIDE_LEGEND = 0.75  # inches left of the axes, for the vertical axis's numbers and name
FONT = "DejaVu Sans"  # ships with matplotlib, so pictures are the same on every machine

# Classes keep their colour in every picture. Background and cytoplasm are greys; what is looked
# for has the hues of Okabe and Ito (2008), which differ in lightness as well.
CLASS_COLOURS = (
    "#17191C",
    "#9BA3AD",
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#F0E442",
    "#D55E00",
    "#56B4E9",
    "#7A4EAB",
    "#5B3A1E",
    "#B5D6B2",
)
SERIES_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5B3A1E")
UNLABELLED_COLOUR = "#FFFFFF"
MARKERS = "osD^vPX"  # of series
STEPS = [1, 2, 2.5, 5, 10]  # between round ticks

SMALL: dict[str, Any] = {"fontsize": TICK_SIZE, "color": INK}
LABEL: dict[str, Any] = {"fontsize": LABEL_SIZE, "color": INK, "family": FONT}
LEFT: dict[str, Any] = {"fontsize": TITLE_SIZE, "color": INK, "family": FONT, "loc": "left"}


def class_colours(classes: int) -> list[str]:
    """The colour of each class 0..c-1; beyond twelve the hues of the organelles repeat."""
    hues = CLASS_COLOURS[2:]
    beyond = [hues[i % len(hues)] for i in range(max(0, classes - len(CLASS_COLOURS)))]
    return [*CLASS_COLOURS[:classes], *beyond]


def series_colour(index: int) -> str:
    """The colour of the i-th population of a picture; seven differ, then they repeat."""
    return SERIES_COLOURS[index % len(SERIES_COLOURS)]


def class_names(names: Sequence[str] | None, classes: int) -> list[str]:
    """``names`` as a list, or ``class 0`` and on where None.

    Raises:
      ValueError: there are fewer or more names than classes.
    """
    if names is None:
        return [f"class {i}" for i in range(classes)]
    if len(names) != classes:
        raise ValueError(f"class_names has {len(names)} names: expected one for each of {classes}")
    return list(names)


def new_figure(width: float, height: float, *, constrained: bool = True) -> Figure:
    """An empty white figure of ``width`` by ``height`` inches."""
    figure = Figure(
        figsize=(width, height), facecolor="white", layout="constrained" if constrained else None
    )
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(w_pad=0.08, h_pad=0.07)  # type: ignore[call-arg]
    FigureCanvasAgg(figure)
    return figure


def dress(axes: Axes, *, x: str = "", y: str = "", title: str = "", grid: str = "y") -> None:
    """Give axes the house's spines, sizes and labels; ``grid`` is x, y, both or nothing."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set(color=FAINT, linewidth=0.7)
    axes.tick_params(
        labelsize=TICK_SIZE,
        color=FAINT,
        labelcolor=INK,
        width=0.7,
        length=3,
        labelfontfamily=FONT,
    )
    axes.set_xlabel(x, **LABEL)
    axes.set_ylabel(y, **LABEL)
    if title:
        axes.set_title(title, **LEFT)
    if grid:
        axes.grid(axis=grid, color=GRID, linewidth=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def frame(axes: Axes, *, colour: str = FAINT, width: float = 0.6) -> None:
    """Axes of a picture: no ticks, and a line around it."""
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=width)


def whole_ticks(axis: Axis, *, most: int = 6) -> None:
    """Ticks at round whole numbers, thousands set off by commas."""
    axis.set_major_locator(MaxNLocator(most, integer=True, steps=STEPS))
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def percents(axis: Axis) -> None:
    """Parts as round per cents."""
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda part, _: f"{100 * part:.3g}%"))


def few_ticks(axes: Axes, *, most: int = 5) -> None:
    """About so many round ticks an axis."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(most, steps=STEPS))


def ring(size: float, *, marker: str = "o", width: float = 1.1) -> dict[str, Any]:
    """The look of a white mark with a dark edge, which stands out on any ground."""
    return {
        "marker": marker,
        "markersize": size,
        "markerfacecolor": "white",
        "markeredgecolor": INK,
        "markeredgewidth": width,
    }


def swatch(axes: Axes, label: str) -> None:
    """An entry of the legend for bands, whatever their colour."""
    axes.fill_between([], [], [], color=FAINT, alpha=0.3, linewidth=0, label=label)


def legend_rows(names: Sequence[str], width: float) -> int:
    """Rows that a legend needs in ``width`` inches, from the length of its longest name."""
    fitting = max(1, int(width / (0.42 + 0.064 * max(map(len, names), default=0))))
    return -(-len(names) // fitting)


def legend(
    on: Axes | Figure,
    *,
    handles: Sequence[Artist] | None = None,
    title: str = "",
    columns: int = 3,
    at: tuple[float, float] | None = None,
) -> int:
    """The legend of a picture, where no data can be: between axes and their title, or at a place.

    Args:
      on: axes, or with ``at`` a figure.
      handles: entries; None is all that have a label. Without any only the title is drawn.
      title: above the legend of axes.
      columns: at most; fewer where the names are too long for the figure's width.
      at: the upper left corner in inches from the lower left of a figure.

    Returns:
      How many rows it has.
    """
    if handles is None:
        assert isinstance(on, Axes)
        handles = on.get_legend_handles_labels()[0]
    figure = on.get_figure(root=True)
    assert figure is not None
    rows = 0
    across, down = figure.get_size_inches()
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1.0), "borderaxespad": 0.2}
    if at is not None:
        place = {"loc": "upper left", "bbox_to_anchor": (at[0] / across, at[1] / down)}
        place |= {"borderaxespad": 0, "handleheight": 1.1}
    available = (across - (_BESIDE_LEGEND if at is None else at[0])) * figure.dpi
    for count in range(min(columns, len(handles)), 0, -1):
        drawn = on.legend(
            handles=list(handles),
            ncols=count,
            frameon=False,
            fontsize=TICK_SIZE,
            labelcolor=INK,
            handlelength=1.6 if at is None else 1.1,
            columnspacing=1.4,
            **place,
        )
        rows = -(-len(handles) // count)
        if count == 1 or drawn.get_window_extent().width <= available:
            break
        drawn.remove()
    if title:
        assert isinstance(on, Axes)
        on.set_title(title, **LEFT, pad=6 + 12 * rows + 2 * bool(rows))
    return rows


def heading(
    figure: Figure, text: str, *, left: float = 0.14, top: float = 0.1, bold: bool = True
) -> None:
    """A title at the upper left of a figure, placed in inches where nothing else places it."""
    if not text:
        return
    look: dict[str, Any] = {"fontsize": TITLE_SIZE, "color": INK, "family": FONT}
    look["fontweight"] = "bold" if bold else "normal"
    across, down = figure.get_size_inches()
    if figure.get_layout_engine() is not None:
        figure.suptitle(text, x=left / across, ha="left", **look)
    else:
        figure.text(left / across, 1 - top / down, text, va="top", **look)


def shared_labels(figure: Figure, panels: Sequence[Axes], x: str, y: str) -> None:
    """The labels of axes that all panels of a sheet share, once below and once at the left."""
    places = [panel.get_position() for panel in panels]
    across, down = figure.get_size_inches()
    middle = (min(p.x0 for p in places) + max(p.x1 for p in places)) / 2
    centre = (min(p.y0 for p in places) + max(p.y1 for p in places)) / 2
    figure.text(middle, 0.06 / down, x, ha="center", va="bottom", **LABEL)
    figure.text(0.08 / across, centre, y, ha="left", va="center", rotation=90, **LABEL)


def colour_bar(
    figure: Figure,
    shown: ScalarMappable,
    label: str,
    *,
    box: tuple[float, float, float, float] | None = None,
    **options: Any,
) -> Colorbar:
    """A bar of colours, in a box (left, low, width, height, parts of the figure) or beside axes."""
    place = {"fraction": 0.045, "pad": 0.03} if box is None else {"cax": figure.add_axes(box)}
    drawn = figure.colorbar(shown, **place, **options)
    drawn.outline.set_visible(False)  # type: ignore[operator]
    drawn.ax.tick_params(labelsize=TICK_SIZE, length=2, color=FAINT, labelcolor=INK)
    drawn.set_label(label, **LABEL)
    return drawn


@dataclasses.dataclass(frozen=True)
class Margins:
    """Inches around and between the panels of a sheet.

    Attributes:
      left: of the first column, for tick labels and the axis' label.
      right: of the last column; a bar needs 0.9.
      top: above the first row, for title and legend.
      bottom: below the last row.
      across: between columns.
      down: between rows, for the panels' titles.
    """

    left: float = 0.62
    right: float = 0.14
    top: float = 0.3
    bottom: float = 0.5
    across: float = 0.14
    down: float = 0.32


def sheet(
    count: int, *, columns: int, width: float, tall: float, margins: Margins
) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels in rows of at most ``columns``, as even as they can be.

    Args:
      count: of panels.
      columns: most in a row.
      width: of a panel in inches.
      tall: height of a panel over its width.
      margins: around and between them.

    Returns:
      The figure, and the panels row by row.
    """
    rows = -(-count // max(1, min(columns, count)))
    columns = -(-count // rows)
    height = width * tall
    across = margins.left + columns * width + (columns - 1) * margins.across + margins.right
    down = margins.top + rows * height + (rows - 1) * margins.down + margins.bottom
    figure = new_figure(across, down, constrained=False)
    panels = []
    for index in range(count):
        row, column = divmod(index, columns)
        left = margins.left + column * (width + margins.across)
        low = down - margins.top - height - row * (height + margins.down)
        box = (left / across, low / down, width / across, height / down)
        panels.append(figure.add_axes(box))
    return figure, panels


def proportion(x: np.ndarray, y: np.ndarray) -> float:
    """Height over width of the plane of two ranges, unless it is too thin to be read."""
    ratio = float(np.ptp(y) / np.ptp(x))
    return ratio if 0.4 <= ratio <= 1.6 else 0.8


def outer(panels: list[Axes], index: int) -> tuple[bool, bool]:
    """Whether a panel is the first of its row, and whether the last of its column."""
    box = panels[index].get_position()
    others = [panel.get_position() for panel in panels]
    first = all(other.x0 > box.x0 - 1e-6 for other in others)
    last = not any(abs(other.x0 - box.x0) < 1e-6 and other.y0 < box.y0 - 1e-6 for other in others)
    return first, last


def name_ticks(axes: Axes, names: Sequence[str]) -> None:
    """Names below bars at 0, 1, ..., a word a line: beside one another they would run together."""
    lines = [name.replace("/", "/\n").replace(" ", "\n") for name in names]
    axes.set_xticks(range(len(names)), lines)
    axes.tick_params(axis="x", length=0)


def table(
    axes: Axes,
    values: np.ndarray,
    text: Callable[[float], str] | None,
    *,
    limits: tuple[float, float],
    light_above: float,
) -> AxesImage:
    """A table as cells of blues with their values; what is not finite stays grey.

    Args:
      axes: to draw on.
      values: ``[r, c]`` float.
      text: of a value; None leaves the texts out.
      limits: values of the palest and of the darkest blue.
      light_above: the value from which on texts are white.

    Returns:
      The image, for a bar.
    """
    axes.set_facecolor(GRID)
    shown = np.ma.masked_invalid(values)
    image = axes.imshow(shown, cmap="Blues", vmin=limits[0], vmax=limits[1])
    for (row, column), value in np.ndenumerate(values):
        if text is not None and np.isfinite(value):
            colour = "white" if value > light_above else INK
            place = {"ha": "center", "va": "center", "fontsize": TICK_SIZE - 0.5}
            axes.text(column, row, text(float(value)), color=colour, **place)  # type: ignore[arg-type]
    axes.set_xticks(np.arange(values.shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(values.shape[0] + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    return image


def save(figure: Figure, path: str | Path | None) -> Figure:
    """Write a figure as PNG, making its folder, where a path is given; return the figure.

    Raises:
      ValueError: the name does not end in ``.png``.
    """
    if path is None:
        return figure
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path} is not a name of a PNG: expected it to end in .png")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, format="png")
    return figure
