"""Cuts through a volume along two planes: the image, the truth, predictions and their doubt."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch, Rectangle
from numpy.typing import ArrayLike

from densejax.plots import style

_ROUND_LENGTHS = (1.0, 2.0, 5.0)
_GAP = 0.07  # inches between planes


def orthoslices(
    image: ArrayLike | None,
    labellings: Mapping[str, ArrayLike],
    *,
    voxel_nm: tuple[float, float, float],
    entropy: ArrayLike | None = None,
    classes: int | None = None,
    class_names: Sequence[str] | None = None,
    z: int | None = None,
    y: int | None = None,
    white: str = "not labelled",
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """An xy and a zx plane of an image beside its labellings, in true proportion.

    The usual columns are image, truth, best single, ensemble, entropy. Dashed lines show where the
    other plane cuts; a bar gives the scale, the same along both axes and in both rows.

    Args:
      image: ``[z, y, x]`` float or int; shown from its 0.5th to its 99.5th percentile. None shows
        the labellings alone.
      labellings: ``[z, y, x]`` int in 0..c-1 or -1 (white), by the title of its column.
      voxel_nm: size of a voxel in nanometres (z, y, x).
      entropy: ``[z, y, x]`` float in 0..ln c, in nats.
      classes: c; None is the number of names, or one more than the largest label.
      class_names: c names for the legend; None is their numbers.
      z: the xy plane; None is the middle.
      y: the zx plane; None is the middle.
      white: what -1 means, for the legend.
      title: above the columns, at the left.
      path: of a PNG to write.

    Returns:
      The figure.

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
    drawn = [(name, volume, grey_limits(volume)) for name, volume in grey.items()]
    drawn += [(name, volume, _palette(classes)) for name, volume in columns.items()]
    if doubt is not None:
        scale = {"cmap": "magma", "vmin": 0.0, "vmax": float(np.log(max(classes, 2)))}
        drawn.append(("entropy", doubt, scale))
    width = float(np.clip(9.6 / len(drawn), 1.6, 2.6))
    heights = (width * microns[1] / microns[2], width * microns[0] / microns[2])
    handles = _handles(names, white if any((v < 0).any() for v in columns.values()) else "")
    rows = style.legend_rows([str(one.get_label()) for one in handles], len(drawn) * width)
    left, right, bottom = 0.42, 0.12 if doubt is None else 0.72, 0.22 + 0.165 * rows
    across = left + right + len(drawn) * (width + _GAP) - _GAP
    down = (0.56 if title else 0.34) + bottom + sum(heights) + _GAP
    figure = style.new_figure(across, down, constrained=False)
    for column, (name, volume, look) in enumerate(drawn):
        places = [
            figure.add_axes((x / across, y / down, width / across, high / down))
            for x, y, high in (
                (left + column * (width + _GAP), bottom + heights[1] + _GAP, heights[0]),
                (left + column * (width + _GAP), bottom, heights[1]),
            )
        ]
        shown = _column(places, volume, (z, y), microns, look, first=column == 0)
        places[0].set_title(name, fontsize=style.TITLE_SIZE, color=style.INK, pad=4)
    if doubt is not None:
        box = ((across - right + 0.08) / across, bottom / down, 0.09 / across)
        style.colour_bar(figure, shown, "entropy (nats)", box=(*box, (sum(heights) + _GAP) / down))
    style.legend(
        figure, handles=handles, columns=-(-len(handles) // rows), at=(left, bottom - 0.08)
    )
    style.heading(figure, title, left=left)
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


def grey_limits(image: np.ndarray | None) -> dict[str, Any]:
    """How grey levels are shown: from the 0.5th percentile, black, to the 99.5th, white."""
    low, high = (0.0, 1.0) if image is None else np.percentile(image, (0.5, 99.5))
    return {"cmap": "gray", "vmin": float(low), "vmax": float(max(high, low + 1e-12))}


def _palette(classes: int) -> dict[str, Any]:
    colours = ListedColormap([style.UNLABELLED_COLOUR, *style.class_colours(classes)])
    return {"cmap": colours, "norm": BoundaryNorm(np.arange(-1.5, classes), classes + 1)}


def _column(
    places: Sequence[Axes],
    volume: np.ndarray,
    at: tuple[int, int],
    microns: np.ndarray,
    look: dict[str, Any],
    *,
    first: bool,
) -> AxesImage:
    """Draw both planes of one volume; the extents are in micrometres, so proportions are true."""
    z, y = at
    depth, height, width = microns
    planes = (
        (volume[z], height, (y + 0.5) / volume.shape[1], "xy plane"),
        (volume[:, y], depth, (z + 0.5) / volume.shape[0], "zx plane"),
    )
    for axes, (plane, extent, cut, plane_name) in zip(places, planes, strict=True):
        shown = axes.imshow(
            plane, extent=(0, width, extent, 0), aspect="auto", interpolation="nearest", **look
        )
        style.frame(axes)
        if first:
            axes.axhline(cut * extent, color="#FFD23F", linewidth=1.0, linestyle=(0, (3, 3)))
            axes.set_ylabel(plane_name, fontsize=style.LABEL_SIZE, color=style.INK)
    if first:
        scale_bar(places[0], width, height)
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


def _handles(names: Sequence[str], white: str) -> list[Patch]:
    colours = style.class_colours(len(names))
    handles = [Patch(color=c, label=n) for c, n in zip(colours, names, strict=True)]
    if white:
        edge: dict[str, Any] = {"edgecolor": style.FAINT, "lw": 0.6}
        handles.append(Patch(facecolor=style.UNLABELLED_COLOUR, label=white, **edge))
    return handles
