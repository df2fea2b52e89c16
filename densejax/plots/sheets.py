"""Sheets: panels of one size, laid out in inches, so that planes keep their proportions."""

import dataclasses

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from densejax.plots import style

STEPS = [1, 2, 2.5, 5, 10]


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
    figure = style.new_figure(across, down, constrained=False)
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


def few_ticks(axes: Axes, *, most: int = 5) -> None:
    """About so many round ticks an axis."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(most, steps=STEPS))


def outer(panels: list[Axes], index: int) -> tuple[bool, bool]:
    """Whether a panel is the first of its row, and whether the last of its column."""
    box = panels[index].get_position()
    others = [panel.get_position() for panel in panels]
    first = all(other.x0 > box.x0 - 1e-6 for other in others)
    last = not any(abs(other.x0 - box.x0) < 1e-6 and other.y0 < box.y0 - 1e-6 for other in others)
    return first, last


def heading(figure: Figure, text: str, *, left: float = 0.14, top: float = 0.1) -> None:
    """A title at the upper left, placed in inches."""
    across, down = figure.get_size_inches()
    figure.text(
        left / across,
        1 - top / down,
        text,
        fontsize=style.TITLE_SIZE,
        color=style.INK,
        family=style.FONT,
        va="top",
    )
