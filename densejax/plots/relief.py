"""Relief: a lit surface in three dimensions, with the pieces that stand on it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d import proj3d
from mpl_toolkits.mplot3d.axes3d import Axes3D
from numpy.typing import ArrayLike

from densejax.plots import scales
from densejax.plots import style as page
from densejax.plots.surfaces import PLAIN, SurfaceStyle, checked_run

FINEST = 160  # facets a side: what the eye still tells apart at this size
DEPTH = 0.62  # height of the box over its width
ELEVATION = 42.0  # of the eye, in degrees
AMBIENT, DIFFUSE, GLOSS = 0.5, 0.55, 0.16


def surface_3d(
    x: ArrayLike,
    y: ArrayLike,
    values: ArrayLike,
    *,
    style: SurfaceStyle = PLAIN,
    trajectory: ArrayLike | None = None,
    losses: ArrayLike | None = None,
    minima: Mapping[str, tuple[float, float, float]] | None = None,
    view: tuple[float, float] | None = None,
    light: tuple[float, float] = (48.0, -82.0),
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """A surface in relief, lit from one side, its lines on the floor below.

    Between grid points the relief is bilinear: what is seen is what was computed. Values beyond
    the scale are cut off at its ends, which the bar tells by arrows. Cells with a missing corner
    are left out. A trajectory and minima are drawn over the relief also where it would hide them.

    Args:
      x: ``[p]`` float, rising.
      y: ``[q]`` float, rising.
      values: ``[p, q]`` float; nan is not yet computed.
      style: scale, levels and labels.
      trajectory: ``[t, 2]`` float, coordinates of iterates in their order, drawn at their losses.
      losses: ``[t]`` float, the true loss of each iterate; needed with a trajectory.
      minima: coordinates and loss by name.
      view: elevation and azimuth of the eye in degrees; None looks over the lowest corner.
      light: elevation of the light, and its azimuth from the eye's, in degrees.
      title: above the picture.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      ValueError: as `contour`, or a trajectory is given without losses.
    """
    part = scales.known(x, y, values)
    steps = checked_run(trajectory, losses, None)
    if steps is not None and steps[1] is None:
        raise ValueError("trajectory is given without losses: expected the height of each iterate")
    colours = style.scale([part.values])
    figure = page.new_figure(5.6, 4.5, constrained=False)
    labels = style.x_label, style.y_label
    axes = _draw(figure, part, colours, view=view, light=light, labels=labels)
    if steps is not None and steps[1] is not None:
        _draw_line(axes, steps[0], steps[1], colours)
    for name, place in (minima or {}).items():
        _mark(axes, name, place, colours)
    scales.bar(figure, [], colours, style.label, box=(0.865, 0.24, 0.022, 0.5))
    page.heading(figure, "\n".join(line for line in (title, part.note) if line), bold=False)
    return page.save(figure, path)


def _draw(
    figure: Figure,
    part: scales.Known,
    colours: scales.Scale,
    *,
    view: tuple[float, float] | None,
    light: tuple[float, float],
    labels: tuple[str, str],
) -> Axes3D:
    """Draw a surface ``[p, q]`` into a figure and return its axes, heights as `Scale` has them."""
    axes = figure.add_axes((-0.01, 0.025, 0.86, 0.97), projection="3d", computed_zorder=False)
    assert isinstance(axes, Axes3D)
    heights = np.clip(colours.heights(part.values), colours.low, colours.high)
    floor = colours.low - 0.22 * (colours.high - colours.low)
    view = view or _open_view(heights)
    x, y, z, faces = _lit(
        part.x, part.y, heights, colours, light=(light[0], view[1] + light[1]), eye=view
    )
    axes.view_init(*view)
    _dress(axes, part, colours, floor, labels)
    if part.complete and colours.lines:
        axes.contour(
            part.x,
            part.y,
            heights.T,
            levels=list(colours.lines),
            zdir="z",
            offset=floor,
            cmap=scales.palette(),
            norm=colours.norm,
            linewidths=0.8,
            zorder=1,
        )
    axes.add_artist(_Lit(x, y, z, faces))
    return axes


class _Lit(Artist):
    """A surface of small triangles, from the far to the near, colours running between corners.

    Of a height over a plane, farther cells never hide nearer ones, so the order of depth is enough.
    Agg leaves no seams between such triangles, where it does between polygons.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, z: np.ndarray, faces: np.ndarray) -> None:
        super().__init__()
        self.set_zorder(2)
        self.corners = np.stack([*np.meshgrid(x, y, indexing="ij"), z], axis=-1)
        self.faces = faces

    def draw(self, renderer: RendererBase) -> None:
        """Draw with the projection that the axes have now."""
        axes = self.axes
        assert isinstance(axes, Axes3D)
        projected = proj3d.proj_transform(*self.corners.reshape(-1, 3).T, axes.get_proj())
        across, up, depth = (np.reshape(one, self.corners.shape[:2]) for one in projected)
        flat = np.stack([across, up], axis=-1)
        cells = [slice(None, -1), slice(1, None)]
        four = [(cells[i], cells[j]) for i, j in ((0, 0), (1, 0), (1, 1), (0, 1))]
        whole = np.all([np.isfinite(self.corners[at][..., 2]) for at in four], axis=0)
        far = np.mean([depth[at][whole] for at in four], axis=0)
        order = np.argsort(-far, kind="stable")
        places = np.stack([flat[at][whole][order] for at in four], axis=1)
        colours = np.stack([self.faces[at][whole][order] for at in four], axis=1)
        halves = [[0, 1, 2], [0, 2, 3]]
        context = renderer.new_gc()
        renderer.draw_gouraud_triangles(
            context,
            places[:, halves].reshape(-1, 3, 2),
            colours[:, halves].reshape(-1, 3, 4),
            axes.transData,
        )
        context.restore()


def _open_view(heights: np.ndarray) -> tuple[float, float]:
    """Elevation and azimuth that look into ``[p, q]`` over its lowest quarter; nan is low."""
    rows, columns = (np.array_split(np.arange(size), 2) for size in heights.shape)
    filled = np.nan_to_num(heights, nan=float(np.nanmin(heights)))
    # In front of the eye lie the larger or smaller x, and the larger or smaller y.
    quarters = {-58.0: (1, 0), 32.0: (1, 1), 122.0: (0, 1), -148.0: (0, 0)}
    means = {
        azimuth: filled[np.ix_(rows[i], columns[j])].mean() for azimuth, (i, j) in quarters.items()
    }
    return ELEVATION, min(means, key=lambda azimuth: means[azimuth])


def _finer(values: np.ndarray) -> np.ndarray:
    """``[p, ...]`` with more points between its own, on straight lines, for smooth light."""
    count = len(values)
    times = max(1, FINEST // (count - 1))
    fine = np.linspace(0, count - 1, times * (count - 1) + 1)
    low = np.minimum(fine.astype(int), count - 2)
    share = (fine - low).reshape(-1, *[1] * (values.ndim - 1))
    # A corner that weighs nothing must not spread its nan.
    upper = np.where(share > 0, values[low + 1] * share, 0)
    return np.where(share < 1, values[low] * (1 - share), 0) + upper


def _lit(
    x: np.ndarray,
    y: np.ndarray,
    z: np.ndarray,
    colours: scales.Scale,
    *,
    light: tuple[float, float],
    eye: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A relief ``[p, q]`` made finer, and its colours ``[p', q', 4]`` under one distant light.

    Reflection after Blinn (1977), its normals between grid points after Phong (1975). Slopes are
    taken in the proportions of the box that is drawn, not in the values' units.
    """
    across, along = (x - x[0]) / np.ptp(x), (y - y[0]) / np.ptp(y)
    up = DEPTH * (z - colours.low) / (colours.high - colours.low)
    slopes = np.stack([np.gradient(up, across, axis=0), np.gradient(up, along, axis=1)], axis=-1)
    # Beside a hole there is no slope.
    slopes = np.nan_to_num(slopes)
    both = _finer(np.swapaxes(_finer(np.concatenate([z[..., None], slopes], axis=-1)), 0, 1))
    z, *falls = np.moveaxis(np.swapaxes(both, 0, 1), -1, 0)
    normal = np.stack([-falls[0], -falls[1], np.ones_like(z)], axis=-1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    towards, seen = _direction(*light), _direction(*eye)
    half = (towards + seen) / np.linalg.norm(towards + seen)
    bright = AMBIENT + DIFFUSE * np.clip(normal @ towards, 0, 1)
    shine = GLOSS * np.clip(normal @ half, 0, 1) ** 24
    faces = scales.palette()(colours.norm(z))
    faces[..., :3] = np.clip(faces[..., :3] * bright[..., None] + shine[..., None], 0, 1)
    return _finer(x), _finer(y), z, faces


def _draw_line(axes: Axes3D, places: np.ndarray, losses: np.ndarray, colours: scales.Scale) -> None:
    """Draw iterates ``[t, 2]`` at the heights of their losses ``[t]``."""
    heights = np.clip(colours.heights(losses), colours.low, colours.high)
    for colour, width in (("white", 2.6), (page.INK, 1.1)):
        axes.plot(*places.T, heights, color=colour, linewidth=width, zorder=5)
    axes.plot(*places[-1:].T, heights[-1:], marker="o", markersize=4, color=page.INK, zorder=6)


def _mark(
    axes: Axes3D, name: str, place: tuple[float, float, float], colours: scales.Scale
) -> None:
    """A star with a name at coordinates and a loss."""
    x, y, loss = place
    height = float(np.clip(colours.heights(loss), colours.low, colours.high))
    axes.plot([x], [y], [height], **page.ring(11, marker="*", width=0.9), zorder=7)
    axes.text(
        x,
        y,
        height + 0.06 * (colours.high - colours.low),
        name,
        ha="center",
        fontsize=page.TICK_SIZE + 0.5,
        color=page.INK,
        path_effects=[withStroke(linewidth=2.2, foreground="white")],
        zorder=8,
    )


def _direction(elevation: float, azimuth: float) -> np.ndarray:
    up, around = np.radians([elevation, azimuth])
    return np.array([np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up)])


def _dress(
    axes: Axes3D,
    part: scales.Known,
    colours: scales.Scale,
    floor: float,
    labels: tuple[str, str],
) -> None:
    axes.set_box_aspect(
        (1, float(np.clip(np.ptp(part.y) / np.ptp(part.x), 0.5, 2)), DEPTH), zoom=0.94
    )
    axes.set_xlim(part.x[0], part.x[-1])
    axes.set_ylim(part.y[0], part.y[-1])
    axes.set_zlim(floor, colours.high)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=page.STEPS))
    # Both axes end in the corner before the eye, where two numbers would lie upon each other.
    shared = "upper" if np.sin(np.radians(axes.azim)) > 0 else "lower"
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=page.STEPS, prune=shared))
    heights, texts = colours.ticks(most=5)
    axes.set_zticks(heights, labels=texts)
    for axis, label in zip((axes.xaxis, axes.yaxis, axes.zaxis), (*labels, ""), strict=True):
        axis.set_label_text(label, fontsize=page.LABEL_SIZE, color=page.INK, family=page.FONT)
        axis.set_tick_params(labelsize=page.TICK_SIZE, labelcolor=page.INK, pad=0)
        axis.line.set_color(page.FAINT)
        axis.line.set_linewidth(0.7)
        axis.pane.set_facecolor("white")
        axis.pane.set_edgecolor(page.GRID)
        axis.set_tick_params(color=page.FAINT)
        axis._axinfo["grid"].update(color=page.GRID, linewidth=0.6)
        axis._axinfo["tick"].update(inward_factor=0.0, outward_factor=0.15)
