"""One look for every picture: colours that survive colour blindness, sizes, axes, and saving.

Figures are objects drawn by the Agg back end. Nothing here or in the other files of this folder
touches pyplot or any other global state, so pictures may be drawn from threads and in notebooks.
"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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
        axes.spines[side].set_color(FAINT)
        axes.spines[side].set_linewidth(0.7)
    axes.tick_params(
        labelsize=TICK_SIZE,
        color=FAINT,
        labelcolor=INK,
        width=0.7,
        length=3,
        labelfontfamily=FONT,
    )
    axes.set_xlabel(x, fontsize=LABEL_SIZE, color=INK, family=FONT)
    axes.set_ylabel(y, fontsize=LABEL_SIZE, color=INK, family=FONT)
    if title:
        axes.set_title(title, fontsize=TITLE_SIZE, color=INK, family=FONT, loc="left")
    if grid:
        axes.grid(axis=grid, color=GRID, linewidth=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def legend_above(axes: Axes, title: str, *, columns: int = 3) -> None:
    """A legend between the axes and their title, where no data can be.

    Args:
      axes: of the legend.
      title: above it.
      columns: at most; fewer where the names are too long for the figure's width.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    entries = len(axes.get_legend_handles_labels()[0])
    available = (figure.get_figwidth() - _BESIDE_LEGEND) * figure.dpi
    for count in range(max(1, min(columns, entries)), 0, -1):
        legend = axes.legend(
            frameon=False,
            fontsize=TICK_SIZE,
            labelcolor=INK,
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=count,
            borderaxespad=0.2,
            handlelength=1.6,
        )
        if legend.get_window_extent().width <= available:
            break
    rows = -(-entries // count)
    if title:
        axes.set_title(title, fontsize=TITLE_SIZE, color=INK, loc="left", pad=8 + 12 * rows)


def legend_at(
    figure: Figure, handles: Sequence[Artist], place: tuple[float, float], *, rows: int
) -> None:
    """A figure's legend of small patches.

    Args:
      figure: to draw on.
      handles: entries; without any nothing is drawn.
      place: of the upper left corner, x and y in inches from the lower left of the figure.
      rows: of entries.
    """
    if not handles:
        return
    across, down = figure.get_size_inches()
    figure.legend(
        handles=list(handles),
        loc="upper left",
        bbox_to_anchor=(place[0] / across, place[1] / down),
        ncols=-(-len(handles) // rows),
        frameon=False,
        fontsize=TICK_SIZE,
        labelcolor=INK,
        handlelength=1.1,
        handleheight=1.1,
        columnspacing=1.2,
        borderaxespad=0,
    )


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, making its folder, and return the path.

    Raises:
      ValueError: the name does not end in ``.png``.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path} is not a name of a PNG: expected it to end in .png")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, format="png")
    return path
