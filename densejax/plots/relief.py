"""Relief: a lit surface in three dimensions, with the pieces that stand on it.

The surface is drawn by pyvista where it is installed and can draw, else by matplotlib, in flat
cells; axes, lines on the floor and marks are matplotlib's either way, in one parallel projection.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LightSource
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d import proj3d
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from mpl_toolkits.mplot3d.axes3d import Axes3D
from numpy.typing import ArrayLike
from scipy import ndimage

from densejax.plots import scales, scenes
from densejax.plots import style as page
from densejax.plots.surfaces import PLAIN, SurfaceStyle, checked_run

DEPTH = 0.62  # height of the box over its width
ELEVATION = 42.0  # of the eye, in degrees
PIXELS = 1400  # of the surface's picture, across
_LOOK = {"ambient": 0.45, "diffuse": 0.6, "specular": 0.16, "specular_power": 24}


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

    Between grid points nothing is invented: facets join the values. Values beyond the scale are
    cut off at its ends, which the bar tells by arrows. Cells with a missing corner are left out. A
    trajectory and minima are drawn over the relief also where it would hide them.

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
    axes = figure.add_axes(
        (-0.01, 0.025, 0.86, 0.97), projection="3d", computed_zorder=False, proj_type="ortho"
    )
    assert isinstance(axes, Axes3D)
    heights = np.clip(colours.heights(part.values), colours.low, colours.high)
    floor = colours.low - 0.22 * (colours.high - colours.low)
    view = view or _open_view(heights)
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
    points = np.stack([*np.meshgrid(part.x, part.y, indexing="ij"), heights], axis=-1)
    direction = (light[0], view[1] + light[1])
    if scenes.why_not():
        _add_cells(axes, points, colours, light=direction)
    else:
        _add_picture(axes, points, colours, light=direction, eye=view)
    return axes


def cells(values: np.ndarray) -> np.ndarray:
    """The corners of the cells of a grid ``[p, q]`` that miss none, ``[m, 4]`` flat indexes."""
    index = np.arange(values.size).reshape(values.shape)
    corners = [index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]]
    found = np.stack([corner.ravel() for corner in corners], axis=1)
    return found[~np.isnan(values.ravel()[found]).any(axis=1)]


def _add_picture(
    axes: Axes3D,
    points: np.ndarray,
    colours: scales.Scale,
    *,
    light: tuple[float, float],
    eye: tuple[float, float],
) -> None:
    """The surface ``[p, q, 3]`` as pyvista sees it, laid where the axes' projection puts it."""
    import pyvista

    def seen(places: np.ndarray) -> np.ndarray:
        across, up, away = proj3d.proj_transform(*places.T, axes.get_proj())
        return np.stack([across, up, -np.asarray(away)], axis=1)

    low, high = np.transpose([axes.get_xlim(), axes.get_ylim(), axes.get_zlim()])
    box = seen(np.stack(np.meshgrid(*zip(low, high, strict=True)), axis=-1).reshape(-1, 3))
    low, high = box.min(0), box.max(0)
    tall = round(PIXELS * (high[1] - low[1]) / (high[0] - low[0]))
    plotter = scenes.new_plotter((PIXELS, tall))
    flat = points.reshape(-1, 3)
    surface = pyvista.PolyData.from_regular_faces(np.nan_to_num(seen(flat)), cells(points[..., 2]))
    surface["height"] = flat[:, 2]
    plotter.add_mesh(
        surface.compute_normals(split_vertices=False, cell_normals=False),
        scalars="height",
        cmap=scales.palette(),
        clim=(colours.low, colours.high),
        interpolate_before_map=True,
        show_scalar_bar=False,
        smooth_shading=True,
        **_LOOK,
    )
    # The eye's own axes, in which the surface stands: right, up and towards it.
    towards, right = _direction(*eye), _direction(0, eye[1] + 90)
    place = np.stack([right, np.cross(towards, right), towards]) @ _direction(*light)
    plotter.add_light(pyvista.Light(position=10 * place, light_type="scene light"))
    camera = plotter.camera
    camera.focal_point = (low + high) / 2
    camera.position = camera.focal_point + np.array([0, 0, 2 * np.ptp(box)])
    camera.up = (0, 1, 0)
    camera.parallel_scale = (high[1] - low[1]) / 2
    plotter.reset_camera_clipping_range()
    plotter.render()
    drawn = plotter.screenshot(return_img=True, transparent_background=True)
    plotter.close()
    extent = (low[0], high[0], low[1], high[1])
    image = AxesImage(axes, extent=extent, interpolation="antialiased", origin="upper", zorder=2)
    image.set_data(drawn)
    axes.add_artist(image)


def _add_cells(
    axes: Axes3D, points: np.ndarray, colours: scales.Scale, *, light: tuple[float, float]
) -> None:
    """The surface ``[p, q, 3]`` as cells of one colour each, by matplotlib alone."""
    x, y, heights = points[:, 0, 0], points[0, :, 1], points[..., 2]
    faces = cells(heights)
    shown = scales.palette()(colours.norm(heights))[..., :3]
    # Beside a hole the slope is that towards the nearest value.
    nearest = ndimage.distance_transform_edt(
        np.isnan(heights), return_distances=False, return_indices=True
    )
    # Slopes are in the proportions of the box, not in the values' units; azimuths run from north.
    up = DEPTH * (heights[tuple(nearest)] - colours.low) / (colours.high - colours.low)
    steps: dict[str, Any] = {"dx": (x - x[0]) / np.ptp(x), "dy": -(y - y[0]) / np.ptp(y)}
    bright = LightSource(azdeg=90 - light[1], altdeg=light[0]).hillshade(up.T, **steps)
    lit = np.clip(shown * (0.6 + 0.5 * bright.T[..., None]), 0, 1)
    mean = lit.reshape(-1, 3)[faces].mean(axis=1)
    axes.add_collection3d(
        Poly3DCollection(
            points.reshape(-1, 3)[faces], facecolors=mean, linewidth=0, antialiased=False, zorder=2
        )
    )


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
        (1, float(np.clip(np.ptp(part.y) / np.ptp(part.x), 0.5, 2)), DEPTH), zoom=0.9
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
