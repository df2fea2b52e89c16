"""Cuts through a volume along two planes: the image, the truth, predictions and their doubt."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch, Rectangle
from numpy.typing import ArrayLike

from densejax.plots import style

_ROUND_LENGTHS = (1.0, 2.0, 5.0)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Sizes in inches; columns share a width and each row has the height of its plane."""

    width: float
    heights: tuple[float, float]
    columns: int
    left: float = 0.42
    right: float = 0.12
    top: float = 0.34
    bottom: float = 0.78
    gap: float = 0.07

    @property
    def size(self) -> tuple[float, float]:
        across = self.left + self.right + self.columns * (self.width + self.gap) - self.gap
        return across, self.top + self.bottom + sum(self.heights) + self.gap

    def add(self, figure: Figure, row: int, column: int) -> Axes:
        across, down = self.size
        x = self.left + column * (self.width + self.gap)
        y = self.bottom + (self.heights[1] + self.gap if row == 0 else 0)
        return figure.add_axes(
            (x / across, y / down, self.width / across, self.heights[row] / down)
        )


def orthoslices(
    image: ArrayLike | None,
    labellings: Mapping[str, ArrayLike],
    path: str | Path,
    *,
    voxel_nm: tuple[float, float, float],
    entropy: ArrayLike | None = None,
    classes: int | None = None,
    class_names: Sequence[str] | None = None,
    z: int | None = None,
    y: int | None = None,
    white: str = "not labelled",
    title: str = "",
) -> Path:
    """An xy and a zx plane of an image beside its labellings, in true proportion.

    The usual columns are image, truth, best single, ensemble, entropy. Dashed lines show where the
    other plane cuts; a bar gives the scale, the same along both axes and in both rows.

    Args:
      image: ``[z, y, x]`` float or int; shown from its 0.5th to its 99.5th percentile. None shows
        the labellings alone.
      labellings: ``[z, y, x]`` int in 0..c-1 or -1 (white), by the title of its column.
      path: of the PNG.
      voxel_nm: size of a voxel in nanometres (z, y, x).
      entropy: ``[z, y, x]`` float in 0..ln c, in nats.
      classes: c; None is the number of names, or one more than the largest label.
      class_names: c names for the legend; None is their numbers.
      z: the xy plane; None is the middle.
      y: the zx plane; None is the middle.
      white: what -1 means, for the legend.
      title: above the columns, at the left.

    Returns:
      The path.

    Raises:
      ValueError: a shape is not the image's, a voxel size is not positive, a plane is outside, a
        label is outside -1..c-1, the names do not match, or the name does not end in ``.png``.
    """
    columns = {name: np.asarray(volume) for name, volume in labellings.items()}
    doubt = None if entropy is None else np.asarray(entropy, float)
    grey = {} if image is None else {"image": np.asarray(image)}
    shape = _shape({**grey, **columns, **({} if doubt is None else {"entropy": doubt})})
    if len(voxel_nm) != 3 or min(voxel_nm) <= 0:
        raise ValueError(f"voxel_nm is {voxel_nm}: expected three positive sizes (z, y, x)")
    z, y = _plane(z, shape[0], "z"), _plane(y, shape[1], "y")
    classes = _count(columns, classes, class_names)
    names = style.class_names(class_names, classes)

    microns = np.array(shape) * np.array(voxel_nm) / 1000
    columns_drawn = len(grey) + len(columns) + (doubt is not None)
    width = float(np.clip(9.6 / columns_drawn, 1.6, 2.6))
    heights = (width * microns[1] / microns[2], width * microns[0] / microns[2])
    white = white if any((v < 0).any() for v in columns.values()) else ""
    rows = _legend_rows([*names, *filter(None, [white])], columns_drawn * width)
    layout = _Layout(
        width=width,
        heights=heights,
        columns=columns_drawn,
        right=0.12 if doubt is None else 0.72,
        top=0.34 if not title else 0.56,
        bottom=0.22 + 0.165 * rows,
    )
    figure = style.new_figure(*layout.size, constrained=False)
    palette = _palette(classes)
    for index, (name, volume) in enumerate([*grey.items(), *columns.items()]):
        scale = _grey(volume) if name in grey else palette
        _column(figure, layout, index, name, volume, (z, y), microns, scale)
    if doubt is not None:
        scale = {"cmap": "magma", "vmin": 0.0, "vmax": float(np.log(max(classes, 2)))}
        shown = _column(
            figure, layout, layout.columns - 1, "entropy", doubt, (z, y), microns, scale
        )
        _colourbar(figure, layout, shown)
    _legend(figure, layout, names, rows, white)
    if title:
        across, down = layout.size
        figure.text(
            layout.left / across,
            1 - 0.12 / down,
            title,
            fontsize=style.TITLE_SIZE,
            color=style.INK,
            va="top",
            fontweight="bold",
        )
    return style.save(figure, path)


def _shape(volumes: Mapping[str, np.ndarray]) -> tuple[int, int, int]:
    """The shape that all volumes have."""
    if not volumes:
        raise ValueError("there is neither an image nor a labelling: expected one at least")
    (first, one), *others = volumes.items()
    if one.ndim != 3 or not one.size:
        raise ValueError(f"{first} has shape {one.shape}: expected [z, y, x]")
    for name, volume in others:
        if volume.shape != one.shape:
            raise ValueError(f"{name} has shape {volume.shape}: expected the {first}'s {one.shape}")
    return one.shape[0], one.shape[1], one.shape[2]


def _plane(index: int | None, size: int, name: str) -> int:
    if index is None:
        return size // 2
    if not 0 <= index < size:
        raise ValueError(f"{name} is {index}: expected a plane in 0..{size - 1}")
    return index


def _count(
    columns: Mapping[str, np.ndarray], classes: int | None, names: Sequence[str] | None
) -> int:
    top = max((int(v.max()) for v in columns.values()), default=0)
    if classes is None:
        classes = len(names) if names is not None else top + 1
    for name, volume in columns.items():
        if volume.min() < -1 or volume.max() >= classes:
            raise ValueError(
                f"{name} has labels {volume.min()}..{volume.max()}: expected -1..{classes - 1}"
            )
    return max(classes, 1)


def _grey(image: np.ndarray) -> dict:
    low, high = np.percentile(image, (0.5, 99.5))
    return {"cmap": "gray", "vmin": float(low), "vmax": float(max(high, low + 1e-12))}


def _palette(classes: int) -> dict:
    colours = ListedColormap([style.UNLABELLED_COLOUR, *style.class_colours(classes)])
    return {"cmap": colours, "norm": BoundaryNorm(np.arange(-1.5, classes), classes + 1)}


def _column(
    figure: Figure,
    layout: _Layout,
    column: int,
    name: str,
    volume: np.ndarray,
    at: tuple[int, int],
    microns: np.ndarray,
    scale: dict,
) -> AxesImage:
    """Draw both planes of one volume; the extents are in micrometres, so proportions are true."""
    z, y = at
    depth, height, width = microns
    planes = (
        (volume[z], height, (y + 0.5) / volume.shape[1], "xy plane"),
        (volume[:, y], depth, (z + 0.5) / volume.shape[0], "zx plane"),
    )
    for row, (plane, extent, cut, plane_name) in enumerate(planes):
        axes = layout.add(figure, row, column)
        shown = axes.imshow(
            plane, extent=(0, width, extent, 0), aspect="auto", interpolation="nearest", **scale
        )
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_color(style.FAINT)
            spine.set_linewidth(0.6)
        if column == 0:
            axes.axhline(cut * extent, color="#FFD23F", linewidth=1.0, linestyle=(0, (3, 3)))
            axes.set_ylabel(plane_name, fontsize=style.LABEL_SIZE, color=style.INK)
            if row == 0:
                scale_bar(axes, width, extent)
        if row == 0:
            axes.set_title(name, fontsize=style.TITLE_SIZE, color=style.INK, pad=4)
    return shown


def round_length(most: float) -> tuple[float, str]:
    """The longest of 1, 2, 5 times a power of ten micrometres up to ``most``, and its name."""
    power = 10.0 ** np.floor(np.log10(most))
    length = max((r * power for r in _ROUND_LENGTHS if r * power <= most), default=power)
    return length, f"{length:g} µm" if length >= 1 else f"{1000 * length:g} nm"


def scale_bar(axes: Axes, width: float, height: float) -> None:
    """A bar of a round length, near a quarter of the width, on a dark ground, above all else.

    Args:
      axes: x from 0 to ``width`` and y from 0, at the top, to ``height``, in micrometres.
      width: micrometres.
      height: micrometres.
    """
    length, text = round_length(width / 4)
    pad = 0.04 * width
    box_width, box_height = length + 2 * pad, 0.135 * width
    left, top = width - box_width - pad * 0.6, height - box_height - pad * 0.6
    ground = Rectangle(
        (left, top), box_width, box_height, facecolor="black", alpha=0.6, linewidth=0
    )
    thick = 0.018 * width
    place = (left + pad, top + box_height - 1.8 * thick)
    for patch in (ground, Rectangle(place, length, thick, color="white", lw=0)):
        patch.set_zorder(6)
        axes.add_patch(patch)
    axes.text(
        left + box_width / 2,
        top + 0.1 * box_height,
        text,
        color="white",
        ha="center",
        va="top",
        fontsize=style.TICK_SIZE - 0.5,
        zorder=7,
    )


def _colourbar(figure: Figure, layout: _Layout, shown: AxesImage) -> None:
    across, down = layout.size
    total = sum(layout.heights) + layout.gap
    x = across - layout.right + 0.08
    axes = figure.add_axes((x / across, layout.bottom / down, 0.09 / across, total / down))
    bar = figure.colorbar(shown, cax=axes)
    bar.outline.set_visible(False)  # type: ignore[operator]
    axes.tick_params(labelsize=style.TICK_SIZE, length=2, color=style.FAINT, labelcolor=style.INK)
    axes.set_ylabel("entropy (nats)", fontsize=style.TICK_SIZE, color=style.INK, labelpad=2)


def _legend_rows(names: Sequence[str], width: float) -> int:
    """Rows that the legend needs below ``width`` inches, from the length of its longest name."""
    fitting = max(1, int(width / (0.36 + 0.055 * max(map(len, names)))))
    return -(-len(names) // fitting)


def _legend(figure: Figure, layout: _Layout, names: Sequence[str], rows: int, white: str) -> None:
    colours = style.class_colours(len(names))
    handles = [Patch(color=c, label=n) for c, n in zip(colours, names, strict=True)]
    if white:
        handles.append(
            Patch(
                facecolor=style.UNLABELLED_COLOUR,
                edgecolor=style.FAINT,
                label=white,
                lw=0.6,
            )
        )
    style.legend_at(figure, handles, (layout.left - 0.06, layout.bottom - 0.08), rows=rows)
