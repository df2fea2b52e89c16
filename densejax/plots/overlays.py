"""Labels over an image: three planes through a point, and sections side by side.

Classes are translucent in their colours with a line around them, so that the image stays to be
seen; the first class, the background, is left as it is. Arrays may be larger than memory: of
anything that slices to numpy, the planes that are drawn are read and nothing else, every second,
third, ... voxel where there are more than a picture shows.
"""

import colorsys
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from densejax.plots import style
from densejax.plots.slices import grey_limits, scale_bar

PIXELS = 1400  # along a side of a plane: more than a picture shows
TINT, GREY_TINT, HEAT = 0.38, 0.10, 0.85
AXIS_COLOURS = ("#FFD23F", "#5CE1E6", "#FF6B9A")  # of the planes z, y, x, as viewers have them


@dataclasses.dataclass(frozen=True)
class Layer:
    """What lies over an image.

    Attributes:
      labels: [z, y, x] int; a value outside 0..c-1 (such as -1 or 255) is "not labelled". Or None.
      heat: [z, y, x], drawn as a heat map, such as entropy. Or None.
      class_names: c names.
      heat_name: beside its bar.
      heat_most: the value of ``heat`` at the upper end of its bar, where it reads 1.
    """

    labels: Any = None
    heat: Any = None
    class_names: Sequence[str] = ()
    heat_name: str = ""
    heat_most: float = 1.0


def orthogonal(
    image: Any,
    layer: Layer,
    *,
    voxel_nm: tuple[float, float, float],
    at: tuple[int, int, int],
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """Three planes through a point in true proportion, with a scale bar and a legend.

    The xy plane with the zx plane below and the zy plane at its right, so that lines along x and y
    run on; thin lines of one colour an axis say where the others cut.

    Args:
      image: [z, y, x], anything that slices to numpy, or None for labels alone.
      layer: over it, of its shape.
      voxel_nm: (z, y, x).
      at: voxel (z, y, x) through which the planes go.
      title: above, at the left.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      ValueError: shapes differ, a voxel size is not positive, the point is outside, or the name
        does not end in ``.png``.
    """
    shape = _checked(image, layer, voxel_nm)
    if any(not 0 <= place < size for place, size in zip(at, shape, strict=True)):
        raise ValueError(f"at is {tuple(at)}: expected a voxel of {shape}")
    depth, height, width = (float(n * s / 1000) for n, s in zip(shape, voxel_nm, strict=True))
    gap, side, foot = 0.08, 0.12 if layer.heat is None else 0.75, 0.12
    inch = min(6.4 / (width + depth), 5.4 / (height + depth))  # for a micrometre
    across = side + 0.12 + gap + inch * (width + depth)
    # The corner that the planes leave free holds the legend, where it is large enough.
    corner = _fits(layer, inch * depth)
    rows = 0 if corner else style.legend_rows(_names(layer), across)
    foot += 0.17 * rows
    top = 0.34 if title else 0.1
    down = top + gap + foot + inch * (height + depth)
    figure = style.new_figure(across, down, constrained=False)

    def axes_at(left: float, bottom: float, wide: float, high: float) -> Axes:
        return figure.add_axes((left / across, bottom / down, wide / across, high / down))

    left, low = 0.12, foot + inch * depth + gap
    places = [
        axes_at(left, low, inch * width, inch * height),
        axes_at(left, foot, inch * width, inch * depth),
        axes_at(left + inch * width + gap, low, inch * depth, inch * height),
    ]
    grey = None
    for axis, (axes, extent) in enumerate(
        zip(places, ((width, height), (width, depth), (depth, height)), strict=True)
    ):
        planes = _planes(image, layer, axis, at[axis])
        grey = _grey(planes[0]) if grey is None else grey
        _draw(axes, planes, extent, layer, grey)
        _cross(axes, axis, [(p + 0.5) * s / 1000 for p, s in zip(at, voxel_nm, strict=True)])
    scale_bar(places[0], width, height)
    style.heading(figure, title, left=0.12)
    if corner:
        start = 0.12 + inch * width + gap
        _legend(figure, layer, len(layer.class_names) - 1, (start, foot + inch * depth))
    else:
        _legend(figure, layer, rows, (0.12, foot - 0.05))
    if layer.heat is not None:
        place = ((across - side + 0.14) / across, low / down, 0.11 / across)
        _heat_bar(figure, layer, (*place, inch * height / down))
    return style.save(figure, path)


def montage(
    image: Any,
    layer: Layer,
    *,
    voxel_nm: tuple[float, float, float],
    sections: Sequence[int],
    captions: Sequence[str] | None = None,
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """Sections across z side by side, each with its number and its depth.

    Args:
      image: [z, y, x], anything that slices to numpy, or None for labels alone.
      layer: over it, of its shape.
      voxel_nm: (z, y, x).
      sections: to draw, in this order.
      captions: of each section drawn, in place of its number and depth.
      title: above, at the left.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      ValueError: as ``orthogonal``, or there is no section.
    """
    shape = _checked(image, layer, voxel_nm)
    if not len(sections) or not all(0 <= z < shape[0] for z in sections):
        raise ValueError(f"sections are {list(sections)}: expected some of 0..{shape[0] - 1}")
    height, width = shape[1] * voxel_nm[1] / 1000, shape[2] * voxel_nm[2] / 1000
    columns = _columns(len(sections), width / height)
    lines = -(-len(sections) // columns)
    wide = min(9.6 / columns, 7.0 / lines * width / height, 4.2)
    side = 0.12 if layer.heat is None else 0.75
    across = 0.12 + side + columns * (wide + 0.06) - 0.06
    rows = style.legend_rows(_names(layer), across)
    top, foot = 0.34 if title else 0.1, 0.12 + 0.17 * rows
    figure, panels = style.sheet(
        len(sections),
        columns=columns,
        width=wide,
        tall=height / width,
        margins=style.Margins(0.12, side, top, foot, 0.06, 0.06),
    )
    grey = None
    for index, (axes, z) in enumerate(zip(panels, sections, strict=True)):
        planes = _planes(image, layer, 0, int(z))
        grey = _grey(planes[0]) if grey is None else grey
        _draw(axes, planes, (width, height), layer, grey)
        axes.text(
            0.02,
            0.98,
            f"z {z}   {z * voxel_nm[0] / 1000:.2f} µm" if captions is None else captions[index],
            transform=axes.transAxes,
            color="white",
            va="top",
            fontsize=style.TICK_SIZE - 0.5,
            bbox={"facecolor": "black", "alpha": 0.6, "linewidth": 0, "pad": 1.6},
        )
        if index == 0:
            scale_bar(axes, width, height)
    style.heading(figure, title, left=0.12)
    _legend(figure, layer, rows, (0.12, foot - 0.05))
    if layer.heat is not None:
        across, down = figure.get_size_inches()
        place = ((across - side + 0.14) / across, foot / down, 0.11 / across)
        _heat_bar(figure, layer, (*place, 1 - (top + foot) / down))
    return style.save(figure, path)


def tinted(
    image: np.ndarray | None,
    labels: np.ndarray,
    classes: int,
    *,
    grey: tuple[float, float],
    strength: float = TINT,
) -> np.ndarray:
    """Colours [h, w, 3] float of an image under translucent classes.

    Args:
      image: [h, w], or None for full colours on white.
      labels: [h, w] int; values outside 0..c-1 are washed out.
      classes: c.
      grey: values of the image that are black and white.
      strength: share of a class's colour; of grey classes it is a fixed small one.
    """
    colours = np.array([to_rgb(colour) for colour in style.class_colours(classes)])
    known = (labels >= 0) & (labels < classes)
    places = np.where(known, labels, 0).astype(np.intp)
    if image is None:
        return np.where(known[..., None], colours[places], 1.0)
    ground = _shade(image, grey)
    saturation = np.array([colorsys.rgb_to_hsv(*colour)[1] for colour in colours])
    tints = np.where(saturation > 0.3, strength, GREY_TINT)
    tints[0] = 0
    share = np.where(known, tints[places], 0.55)[..., None]
    return (1 - share) * ground + share * np.where(known[..., None], colours[places], 1.0)


def _outline(axes: Axes, labels: np.ndarray, classes: int, extent: tuple[float, float]) -> None:
    """A line in its colour around each class but the first, over an extent (width, height)."""
    height, width = labels.shape
    x = (np.arange(width) + 0.5) * extent[0] / width
    y = (np.arange(height) + 0.5) * extent[1] / height
    if min(labels.shape) < 2:
        return
    for number, colour in enumerate(style.class_colours(classes)):
        mask = labels == number
        if number and mask.any() and not mask.all():
            axes.contour(x, y, mask, levels=[0.5], colors=[colour], linewidths=0.7)


def _checked(image: Any, layer: Layer, voxel_nm: Sequence[float]) -> tuple[int, int, int]:
    arrays = {"image": image, "labels": layer.labels, "heat": layer.heat}
    shapes = {name: tuple(array.shape) for name, array in arrays.items() if array is not None}
    if not shapes or len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 3:
        raise ValueError(f"shapes are {shapes}: expected one shape [z, y, x] of at least one array")
    if len(voxel_nm) != 3 or min(voxel_nm) <= 0:
        raise ValueError(f"voxel_nm is {voxel_nm}: expected three positive sizes (z, y, x)")
    z, y, x = next(iter(shapes.values()))
    return z, y, x


def _plane(array: Any, axis: int, place: int) -> np.ndarray:
    """A plane across an axis, thinned to what a picture shows; across x it lies on its side."""
    index: list[Any] = [slice(None, None, -(-size // PIXELS)) for size in array.shape]
    index[axis] = place
    plane = np.asarray(array[tuple(index)])
    return plane.T if axis == 2 else plane


def _planes(image: Any, layer: Layer, axis: int, place: int) -> list[np.ndarray | None]:
    arrays = (image, layer.labels, layer.heat)
    return [None if array is None else _plane(array, axis, place) for array in arrays]


def _grey(plane: np.ndarray | None) -> tuple[float, float]:
    look = grey_limits(plane)
    return look["vmin"], look["vmax"]


def _shade(image: np.ndarray, grey: tuple[float, float]) -> np.ndarray:
    low, high = grey
    level = np.clip((image.astype(np.float32) - low) / (high - low), 0, 1)
    return np.repeat(level[..., None], 3, axis=2)


def _draw(
    axes: Axes,
    planes: Sequence[np.ndarray | None],
    extent: tuple[float, float],
    layer: Layer,
    grey: tuple[float, float],
) -> None:
    """One plane of the image, the labels and the heat, over an extent in micrometres."""
    image, labels, heat = planes
    classes = len(layer.class_names)
    if labels is not None:
        labels = labels.astype(np.int64)
        shown = tinted(image, labels, classes, grey=grey)
    elif image is not None:
        shown = _shade(image, grey)
    else:
        assert heat is not None
        shown = np.zeros((*heat.shape, 3))
    if heat is not None:
        level = np.clip(heat.astype(np.float32) / layer.heat_most, 0, 1)
        share = HEAT * np.clip(2 * level, 0, 1)[..., None]
        shown = (1 - share) * shown + share * colormaps["inferno"](level)[..., :3]
    axes.imshow(np.clip(shown, 0, 1), extent=(0, extent[0], extent[1], 0), aspect="auto")
    if labels is not None and heat is None:
        _outline(axes, labels, classes, extent)
    axes.set(xlim=(0, extent[0]), ylim=(extent[1], 0))
    style.frame(axes)


def _cross(axes: Axes, axis: int, at: Sequence[float]) -> None:
    """Where the two other planes cut this one, and its own colour around it."""
    z, y, x = at
    lines = {
        0: ((1, "h", y), (2, "v", x)),
        1: ((0, "h", z), (2, "v", x)),
        2: ((0, "v", z), (1, "h", y)),
    }
    for other, way, place in lines[axis]:
        draw = axes.axhline if way == "h" else axes.axvline
        draw(place, color=AXIS_COLOURS[other], linewidth=0.7, alpha=0.9, linestyle=(0, (4, 4)))
    style.frame(axes, colour=AXIS_COLOURS[axis], width=1.2)


def _columns(number: int, aspect: float) -> int:
    """Columns of a grid of tiles (width over height), a little wider than high and near full."""

    def cost(columns: int) -> float:
        lines = -(-number // columns)
        shape = abs(np.log(columns * aspect / lines / 1.5))
        return float(shape + (lines * columns - number) / number)

    return min(range(1, number + 1), key=cost)


def _names(layer: Layer) -> list[str]:
    """For the legend. The background lies bare: no colour of it is in the picture."""
    return [] if layer.labels is None else list(layer.class_names[1:])


def _legend(figure: Figure, layer: Layer, rows: int, at: tuple[float, float]) -> None:
    """The legend with its upper left corner at a place in inches."""
    names = _names(layer)
    hues = style.class_colours(len(names) + 1)[1:]
    handles = [Patch(color=hue, label=name) for hue, name in zip(hues, names, strict=True)]
    style.legend(figure, handles=handles, columns=-(-len(names) // max(rows, 1)), at=at)


def _fits(layer: Layer, side: float) -> bool:
    """Whether the legend fits into a square of ``side`` inches as one column."""
    names = _names(layer)
    longest = max(map(len, names), default=0)
    return bool(names) and 0.2 * len(names) < side and 0.35 + 0.068 * longest < side


def _heat_bar(figure: Figure, layer: Layer, box: tuple[float, float, float, float]) -> None:
    shown = ScalarMappable(Normalize(0, 1), colormaps["inferno"])
    style.colour_bar(figure, shown, layer.heat_name, box=box)
