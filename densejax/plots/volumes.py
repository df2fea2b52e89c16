"""Pictures and turntables of surfaces in three dimensions, with a legend and a scale bar."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from densejax.plots import animation, style
from densejax.plots.scenes import Body, Renderer, Scene, View, open_scene
from densejax.plots.slices import round_length

WIDTH, HEIGHT = 7.6, 5.4  # of the scene, inches
HEAD = 0.36
FILM_DPI = 140
AZIMUTH = 32.0


def picture(
    bodies: Sequence[Body],
    *,
    corners_nm: ArrayLike,
    renderer: Renderer,
    azimuth: float = AZIMUTH,
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """Bodies in their volume, seen from one side.

    Args:
      bodies: surfaces; at least one.
      corners_nm: [2, 3], lowest and highest corner of the volume, (z, y, x), drawn as thin lines.
      renderer: ``vtk`` or ``matplotlib``.
      azimuth: of the eye, degrees.
      title: above, at the left.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      ValueError: there is no body, or the name does not end in ``.png``.
    """
    figure, scene, shown = _set(bodies, corners_nm, renderer, title, style.DPI)
    try:
        shown.set_data(scene.image(azimuth))
    finally:
        scene.close()
    return style.save(figure, path)


def turntable(
    bodies: Sequence[Body],
    path: str | Path,
    *,
    corners_nm: ArrayLike,
    renderer: Renderer,
    frames: int = 120,
    seconds: float = 8.0,
    title: str = "",
) -> Path:
    """Bodies in their volume, turned once around: a film without a seam.

    Args:
      bodies: surfaces; at least one.
      path: ends in ``.mp4`` or ``.gif``.
      corners_nm: [2, 3], of the volume.
      renderer: ``vtk`` or ``matplotlib``.
      frames: pictures of the turn.
      seconds: that the turn takes.
      title: above, at the left.

    Returns:
      The path.

    Raises:
      ValueError: there is no body, or as ``animation.animate``.
      RuntimeError: an MP4 is asked for and there is no ffmpeg.
    """
    figure, scene, shown = _set(bodies, corners_nm, renderer, title, FILM_DPI)

    def drawn() -> Iterator[Figure]:
        for index in range(frames):
            shown.set_data(scene.image(AZIMUTH + 360 * index / frames))
            yield figure

    try:
        return animation.animate(drawn(), path, seconds=seconds / frames, dpi=FILM_DPI)
    finally:
        scene.close()


def _set(
    bodies: Sequence[Body], corners_nm: ArrayLike, renderer: Renderer, title: str, dpi: int
) -> tuple[Figure, Scene, AxesImage]:
    """The figure with everything but the scene's picture, and the scene."""
    if not bodies:
        raise ValueError("there is no body to draw")
    size = (round(WIDTH * dpi), round(HEIGHT * dpi))
    low, high = np.asarray(corners_nm, float).tolist()
    view = View(tuple(low), tuple(high), size)
    rows = style.legend_rows([body.name for body in bodies], WIDTH)
    foot = 0.12 + 0.19 * rows
    down = HEAD + HEIGHT + foot
    figure = style.new_figure(WIDTH, down, constrained=False)
    axes = figure.add_axes((0, foot / down, 1, HEIGHT / down))
    axes.axis("off")
    shown = axes.imshow(
        np.full((size[1], size[0], 3), 255, np.uint8),
        extent=(0, size[0], 0, size[1]),
        aspect="auto",
        interpolation="nearest",
    )
    _scale_bar(axes, view)
    style.heading(figure, title)
    handles = [Patch(color=body.colour, label=body.name) for body in bodies]
    style.legend(figure, handles=handles, columns=-(-len(bodies) // rows), at=(0.14, foot - 0.04))
    return figure, open_scene(bodies, view, renderer=renderer), shown


def _scale_bar(axes: Axes, view: View) -> None:
    """A bar of a round length at the lower right; the projection is parallel, so it is true."""
    width, height = view.size
    length, text = round_length(view.pixel_nm * width / 5000)
    pixels = 1000 * length / view.pixel_nm
    right, low = 0.97 * width, 0.035 * height
    axes.plot(
        [right - pixels, right], [low, low], color=style.INK, linewidth=2.6, solid_capstyle="butt"
    )
    axes.text(
        right - pixels / 2,
        low + 0.015 * height,
        text,
        ha="center",
        va="bottom",
        fontsize=style.LABEL_SIZE,
        color=style.INK,
    )
    axes.set(xlim=(0, width), ylim=(0, height))
