"""Values on a grid of two directions: what is known of them, their colours, levels and bar.

What the pictures of surfaces share. Logarithmic values are drawn at their logarithm, so that the
lines between grid points are straight there and not in the values. A logarithm has no lower end, so
a few points near zero (or a corner that explodes) would take most of the colours: there the scale
ends at a percentile, and its bar ends in an arrow.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator
from numpy.typing import ArrayLike

from densejax.plots import style

TAIL = 1.0  # percent of the values at either end of a logarithmic scale that may lie beyond it
HATCH: dict[str, Any] = {
    "facecolor": "#F4F5F7",
    "edgecolor": "#C3C9D1",
    "hatch": "////",
    "linewidth": 0.0,
}


def palette() -> Colormap:
    """From deep (low) to pale (high): even in lightness, and ink is read on its upper half."""
    whole = matplotlib.colormaps["viridis"]
    return ListedColormap(whole(np.linspace(0.06, 0.97, 256)), name="depth")


@dataclasses.dataclass(frozen=True)
class Known:
    """The part of a surface that is known: every row and column with a computed point.

    Attributes:
      x: ``[p]`` float, rising.
      y: ``[q]`` float, rising.
      values: ``[p, q]`` float; nan where a point of the part is not computed.
      computed: points that are.
      total: points of the whole grid.
    """

    x: np.ndarray
    y: np.ndarray
    values: np.ndarray
    computed: int
    total: int

    @property
    def complete(self) -> bool:
        """Whether no point of the part is missing, so that lines may be drawn between them."""
        return not bool(np.isnan(self.values).any())

    @property
    def note(self) -> str:
        """How much is computed; empty where all is."""
        if self.computed == self.total:
            return ""
        return f"{self.computed:,} of {self.total:,} points computed"


def known(x: ArrayLike, y: ArrayLike, values: ArrayLike, *, name: str = "values") -> Known:
    """Check a surface and cut it to what is computed.

    Args:
      x: ``[p]`` float, rising, p at least 2.
      y: ``[q]`` float, rising, q at least 2.
      values: ``[p, q]`` float, at ``(x[i], y[j])``; nan is not yet computed, infinite diverged.
      name: of the values, for errors.

    Raises:
      ValueError: shapes do not match, coordinates do not rise, or no point is computed.
    """
    x, y, values = np.asarray(x, float), np.asarray(y, float), np.asarray(values, float)
    for axis, places in (("x", x), ("y", y)):
        if places.ndim != 1 or places.size < 2 or not (np.diff(places) > 0).all():
            raise ValueError(
                f"{axis} is {np.array2string(places, threshold=6, edgeitems=2)}:"
                " expected two or more rising places"
            )
    if values.shape != (x.size, y.size):
        raise ValueError(f"{name} has shape {values.shape}: expected [p, q] = {(x.size, y.size)}")
    there = ~np.isnan(values)
    if not there.any():
        raise ValueError(f"{name} has no computed point: all {values.size} are nan")
    rows, columns = there.any(axis=1), there.any(axis=0)
    if min(rows.sum(), columns.sum()) < 2:
        rows, columns = np.ones_like(rows), np.ones_like(columns)
    part = values[np.ix_(rows, columns)]
    return Known(x[rows], y[columns], part, int(there.sum()), values.size)


@dataclasses.dataclass(frozen=True)
class Scale:
    """Where values stand between the lowest and the highest colour.

    Attributes:
      low: lowest height: a value, or its decimal logarithm.
      high: highest height.
      logarithmic: whether heights are logarithms.
      below: whether values lie below the lowest height.
      above: whether values lie above the highest height.
      lines: heights of the lines, rising.
    """

    low: float
    high: float
    logarithmic: bool
    below: bool
    above: bool
    lines: tuple[float, ...]

    def heights(self, values: ArrayLike) -> np.ndarray:
        """Values as heights; infinite ones stand a whole span outside the scale."""
        heights = np.asarray(values, float)
        if self.logarithmic:
            with np.errstate(divide="ignore", invalid="ignore"):
                heights = np.log10(heights)
        span = self.high - self.low
        heights = np.where(heights == np.inf, self.high + span, heights)
        return np.where(heights == -np.inf, self.low - span, heights)

    @property
    def norm(self) -> Normalize:
        """From heights to 0..1."""
        return Normalize(self.low, self.high)

    @property
    def extend(self) -> str:
        """Which ends of a bar are arrows, in matplotlib's words."""
        return (
            ("both" if self.below else "max") if self.above else "min" if self.below else "neither"
        )

    def ticks(self, *, most: int = 6) -> tuple[list[float], list[str]]:
        """Heights of round values, and the values as text."""
        if not self.logarithmic:
            places = MaxNLocator(most, steps=style.STEPS).tick_values(self.low, self.high)
            values = [0.0 if abs(p) < 1e-9 * (self.high - self.low) else p for p in places]
        else:
            values = _round_values(self.low, self.high, most)
        heights = [float(np.log10(v)) if self.logarithmic else float(v) for v in values]
        slack = 1e-9 * (self.high - self.low)
        kept = [
            (h, short(v))
            for h, v in zip(heights, values, strict=True)
            if self.low - slack <= h <= self.high + slack
        ]
        return [h for h, _ in kept], [text for _, text in kept]


def _round_values(low: float, high: float, most: int) -> list[float]:
    """Powers of ten, or of 1, 2 and 5 times them where the scale holds few, or even steps."""
    powers = np.arange(np.floor(low), np.ceil(high) + 1)
    if high - low >= 2:
        step = int(np.ceil((high - low) / most))
        return [10.0**k for k in powers if k % step == 0]
    finer = [base * 10.0**k for k in powers for base in (1, 2, 5)]
    if sum(low <= np.log10(v) <= high for v in finer) >= 3:
        return finer
    steps = MaxNLocator(most - 1, steps=style.STEPS).tick_values(10**low, 10**high)
    return [v for v in steps if v > 0]


def logarithmic_axis(axis: XAxis | YAxis, *, most: int = 6) -> None:
    """Make an axis logarithmic, with ticks at round values of what it shows now.

    Below a decade matplotlib's own are numbers with powers of ten that run into one another.
    """
    (axis.axes.set_xscale if isinstance(axis, XAxis) else axis.axes.set_yscale)("log")
    low, high = sorted(np.log10(axis.get_view_interval()))
    values = [v for v in _round_values(low, high, most) if low <= np.log10(v) <= high]
    axis.set_major_locator(FixedLocator(values))
    axis.set_major_formatter(FixedFormatter([short(value) for value in values]))
    axis.set_minor_locator(NullLocator())


def short(value: float) -> str:
    """A number as short text: powers of ten as such where zeros would have to be counted."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:g}"
    base, power = f"{value:.3e}".split("e")
    base = base.rstrip("0").rstrip(".")
    factor = "" if base == "1" else "-" if base == "-1" else base + r"\times"
    return rf"${factor}10^{{{int(power)}}}$"


def scale(
    surfaces: Iterable[ArrayLike],
    *,
    logarithmic: bool = False,
    limits: tuple[float | None, float | None] | None = None,
    levels: int | Sequence[float] = 12,
    robust: bool = True,
) -> Scale:
    """One scale for the values of all surfaces.

    Args:
      surfaces: float of any shapes; nan and infinite values are left out of it.
      logarithmic: whether colours and lines follow the logarithm; zeros lie below the scale.
      limits: lowest and highest value; None is the data's own.
      levels: of the lines: about how many at even heights, or their values.
      robust: whether the data's own ends of a logarithmic scale leave out a long tail.

    Raises:
      ValueError: no value is finite, a value is negative where the scale is logarithmic, or the
        limits do not rise.
    """
    values = np.concatenate([np.asarray(s, float).reshape(-1) for s in surfaces])
    values = values[~np.isnan(values)]
    if logarithmic and (values < 0).any():
        raise ValueError(
            f"values go down to {values.min():g}: a logarithmic scale expects none below zero"
        )
    finite = values[np.isfinite(values) & ((values > 0) | (not logarithmic))]
    if not finite.size:
        raise ValueError(
            f"values have no finite {'positive ' if logarithmic else ''}entry: expected one"
        )
    fixed = limits or (None, None)
    inner = np.clip(finite, *fixed) if any(end is not None for end in fixed) else finite
    ends = _ends(inner, robust and logarithmic)
    low, high = (float(end if to is None else to) for to, end in zip(fixed, ends, strict=True))
    if low > high or (logarithmic and low <= 0) or not np.isfinite([low, high]).all():
        raise ValueError(
            f"limits are {low:g} and {high:g}: expected the first below the second"
            + (", both above zero" if logarithmic else "")
        )
    slack = 1e-9 * max(abs(low), abs(high))  # of limits that were logarithms once
    below, above = bool((values < low - slack).any()), bool((values > high + slack).any())
    if logarithmic:
        low, high = float(np.log10(low)), float(np.log10(high))
    if high - low <= 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    return Scale(low, high, logarithmic, below, above, _lines(low, high, logarithmic, levels))


def _ends(values: np.ndarray, robust: bool) -> tuple[float, float]:
    """Least and greatest value; a percentile where the tail is over half as long as the rest."""
    ends = float(values.min()), float(values.max())
    if not robust:
        return ends
    low, high = np.log10(ends)
    first, last = np.percentile(np.log10(values), (TAIL, 100 - TAIL))
    rest = last - first
    return (
        float(10**first) if first - low > rest / 2 > 0 else ends[0],
        float(10**last) if high - last > rest / 2 > 0 else ends[1],
    )


def _lines(
    low: float, high: float, logarithmic: bool, levels: int | Sequence[float]
) -> tuple[float, ...]:
    if isinstance(levels, int):
        even = MaxNLocator(max(levels, 1), steps=style.STEPS).tick_values(low, high)
        places = np.asarray(even, float)
    else:
        asked = np.sort(np.asarray(levels, float))
        if logarithmic and (asked <= 0).any():
            raise ValueError(f"levels are {asked}: a logarithmic scale expects them above zero")
        places = np.log10(asked) if logarithmic else asked
    return tuple(float(p) for p in places if low < p < high)


def paint(axes: Axes, part: Known, colours: Scale) -> None:
    """Fill axes with a surface: smooth with lines where it is whole, else cell by cell."""
    heights = colours.heights(part.values)
    look: dict[str, Any] = {"cmap": palette(), "norm": colours.norm}
    if part.complete:
        fills = np.linspace(colours.low, colours.high, 129)
        axes.contourf(part.x, part.y, heights.T, levels=fills, extend="both", **look)
        if colours.lines:
            axes.contour(
                part.x,
                part.y,
                heights.T,
                levels=list(colours.lines),
                colors="white",
                linewidths=0.6,
                alpha=0.65,
                linestyles="solid",
            )
        return
    axes.add_patch(Rectangle((0, 0), 1, 1, transform=axes.transAxes, zorder=0, **HATCH))
    cells = np.ma.masked_invalid(heights)
    axes.pcolormesh(edges(part.x), edges(part.y), cells.T, **look)


def edges(places: np.ndarray) -> np.ndarray:
    """``[p + 1]`` borders of cells around ``[p]`` places: half way, and as far outside."""
    middles = (places[1:] + places[:-1]) / 2
    first, last = 2 * places[0] - middles[0], 2 * places[-1] - middles[-1]
    return np.concatenate([[first], middles, [last]])


def bar(
    figure: Figure,
    panels: Sequence[Axes],
    colours: Scale,
    label: str,
    *,
    box: tuple[float, float, float, float] | None = None,
) -> None:
    """The scale at the right of all panels (or in a box of the figure), its lines as strokes."""
    if box is None:
        places = [panel.get_position() for panel in panels]
        across = figure.get_size_inches()[0]
        low, high = min(place.y0 for place in places), max(place.y1 for place in places)
        right = max(place.x1 for place in places)
        box = (right + 0.12 / across, low, 0.13 / across, high - low)
    shown = ScalarMappable(norm=colours.norm, cmap=palette())
    drawn = style.colour_bar(figure, shown, label, box=box, extend=colours.extend)
    heights, texts = colours.ticks()
    drawn.set_ticks(heights, labels=texts)
    drawn.ax.minorticks_off()
    drawn.ax.hlines(colours.lines, 0, 1, color="white", linewidth=0.6, alpha=0.65)
