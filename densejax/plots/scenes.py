"""Surfaces in three dimensions by pyvista, without a screen: pictures and turntables.

VTK draws by EGL or OSMesa where there is no display. A process in which its driver is missing may
die rather than raise, so ``why_not`` tries it in a process of its own. The projection is parallel:
a length in the picture is one number of nanometres, whatever lies nearer.

Arrays are z, y, x. In the picture, from azimuth 0, x runs to the right, y towards the eye, and
sections lie on one another with the first on top: the volume is turned, never mirrored.
"""

import dataclasses
import functools
import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from densejax.plots import animation, style
from densejax.plots.slices import round_length

WIDTH, HEIGHT = 7.6, 5.4  # of the scene, inches
HEAD = 0.36
FILM_DPI = 140
AZIMUTH, ELEVATION = 32.0, 28.0  # of the eye, degrees; the elevation is above the sections' plane
PROBE_SECONDS = 120
FRAME_COLOUR = "#B9BEC6"
# Directions in the eye's axes (right, up, towards it) and strengths: over its left shoulder, from
# the right against black, and from the eye itself.
LIGHTS = (((-1.0, 1.2, 1.4), 0.72), ((1.4, 0.2, 0.7), 0.42), ((0.0, 0.0, 1.0), 0.2))
_LOOK = {"ambient": 0.34, "diffuse": 0.66, "specular": 0.15, "specular_power": 20}
_BESIDE = 0.12  # inches between an edge of the volume and its name


@dataclasses.dataclass(frozen=True)
class Body:
    """A surface that is drawn.

    Attributes:
      name: for the legend.
      vertices: [v, 3] float, nanometres, z, y, x.
      faces: [f, 3] int, counter-clockwise seen from outside where x, y, z are right-handed.
      colour: ``#RRGGBB``.
      opacity: 0..1.
    """

    name: str
    vertices: np.ndarray
    faces: np.ndarray
    colour: str
    opacity: float = 1.0


@dataclasses.dataclass(frozen=True)
class View:
    """What all pictures of one scene share.

    Attributes:
      low: corner of the volume in nanometres, (z, y, x).
      high: the opposite corner.
      size: (width, height) in pixels.
      elevation: of the eye, degrees.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    size: tuple[int, int]
    elevation: float = ELEVATION

    @property
    def pixel_nm(self) -> float:
        """Nanometres a pixel: the volume and its names fit from wherever they are seen."""
        depth, height, width = np.subtract(self.high, self.low)
        around = float(np.hypot(height, width))
        tilt = np.radians(self.elevation)
        tall = depth * np.cos(tilt) + around * np.sin(tilt)
        return 1.12 * float(max(around / self.size[0], tall / self.size[1]))

    @property
    def ends(self) -> np.ndarray:
        """The two corners in the scene's coordinates, [2, 3]."""
        return turned(np.array([self.low, self.high]))

    def edges(self, azimuth: float) -> Iterator[np.ndarray]:
        """The ends, [2, 2] in pixels from the lower left, of one edge along each of x, y and z.

        The lowest of the four along x and along y, the leftmost along z: nothing lies before them.
        """
        towards, up = _eye(azimuth, self.elevation)
        flat = np.stack([np.cross(up, towards), up], axis=1)
        ends = self.ends
        for axis in range(3):
            # Both ends of the axis, at both of each other one: four edges.
            corners = np.stack(np.meshgrid(*ends.T, indexing="ij"), axis=-1)
            lines = np.moveaxis(corners, axis, 2).reshape(4, 2, 3)
            seen = (lines - ends.mean(0)) @ flat / self.pixel_nm + np.array(self.size) / 2
            yield seen[np.argmin(seen[..., int(axis < 2)].mean(1))]


def turned(points: np.ndarray) -> np.ndarray:
    """Points [n, 3] z, y, x in the scene's x, -y, -z: upright, right-handed, not mirrored."""
    return np.asarray(points, float)[:, ::-1] * [1, -1, -1]


@functools.cache
def why_not() -> str:
    """Why no surface can be drawn here by pyvista; empty where it can."""
    for package in ("pyvista", "vtk"):
        if importlib.util.find_spec(package) is None:
            return f"the package {package} is not installed (pip install 'densejax[render]')"
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"from {__name__} import _try; _try()"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"VTK drew nothing within {PROBE_SECONDS} s"
    if done.returncode == 0:
        return ""
    said = [line for line in done.stderr.splitlines() if line.strip()]
    return (
        f"VTK cannot draw here, which takes libEGL or libOSMesa (exit code {done.returncode}: "
        f"{said[-1].strip() if said else 'it said nothing'})"
    )


def _try() -> None:
    """Draw a triangle and look whether it is there."""
    corners = np.array([[0, 0, 0], [0, 90, 0], [0, 0, 90.0]])
    view = View((0, 0, 0), (90, 90, 90), (64, 64), elevation=60)
    scene = Scene([Body("triangle", corners, np.array([[0, 1, 2]]), "#D55E00")], view)
    picture = scene.image(40.0).astype(int)
    scene.close()
    if not (picture[..., 0] - picture[..., 2] > 60).any():
        raise RuntimeError("the picture is empty")


def new_plotter(size: tuple[int, int]) -> Any:
    """Return an off-screen plotter of ``size`` pixels, white, unlit, of parallel projection."""
    import pyvista
    from vtk import vtkLogger

    # That there is no display is no news.
    vtkLogger.SetStderrVerbosity(vtkLogger.VERBOSITY_ERROR)
    plotter: Any = pyvista.Plotter(off_screen=True, window_size=list(size), lighting="none")
    plotter.set_background("white")
    plotter.enable_anti_aliasing("ssaa")
    plotter.enable_parallel_projection()
    return plotter


class Scene:
    """Bodies in their volume, whose edges are thin lines, seen from anywhere."""

    def __init__(self, bodies: Sequence[Body], view: View) -> None:
        """Hand the bodies to VTK."""
        import pyvista

        self._view = view
        self._plotter = plotter = new_plotter(view.size)
        for body in bodies:
            surface = pyvista.PolyData.from_regular_faces(turned(body.vertices), body.faces)
            plotter.add_mesh(
                surface.compute_normals(split_vertices=False, cell_normals=False),
                color=body.colour,
                opacity=body.opacity,
                smooth_shading=True,
                **_LOOK,
            )
        ends = view.ends
        box = pyvista.Box(np.stack([ends.min(0), ends.max(0)], axis=1).ravel())
        edges = box.extract_all_edges()
        plotter.add_mesh(edges, color=FRAME_COLOUR, line_width=1.5, lighting=False)
        for place, strength in LIGHTS:
            plotter.add_light(
                pyvista.Light(position=place, intensity=strength, light_type="camera light")
            )
        if any(body.opacity < 1 for body in bodies):
            plotter.enable_depth_peeling(number_of_peels=8)

    def image(self, azimuth: float) -> np.ndarray:
        """The picture from an azimuth in degrees, uint8 [h, w, 3] on white."""
        view, camera = self._view, self._plotter.camera
        towards, up = _eye(azimuth, view.elevation)
        centre = view.ends.mean(0)
        camera.focal_point = centre
        camera.position = centre + 2 * np.linalg.norm(np.ptp(view.ends, axis=0)) * towards
        camera.up = up
        camera.parallel_scale = view.pixel_nm * view.size[1] / 2
        self._plotter.reset_camera_clipping_range()
        self._plotter.render()
        return np.ascontiguousarray(self._plotter.screenshot(return_img=True)[..., :3])

    def close(self) -> None:
        """Give back what the scene holds."""
        self._plotter.close()


def picture(
    bodies: Sequence[Body],
    *,
    corners_nm: ArrayLike,
    azimuth: float = AZIMUTH,
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """Draw bodies in their volume, seen from one side.

    Args:
      bodies: surfaces; at least one.
      corners_nm: [2, 3], lowest and highest corner of the volume, (z, y, x), drawn as thin lines.
      azimuth: of the eye, degrees.
      title: above, at the left.
      path: of a PNG to write.

    Returns:
      The figure.

    Raises:
      RuntimeError: pyvista is not installed, or cannot draw here.
      ValueError: there is no body, or the name does not end in ``.png``.
    """
    scene, show = _set(bodies, corners_nm, title, style.DPI)
    try:
        return style.save(show(azimuth), path)
    finally:
        scene.close()


def turntable(
    bodies: Sequence[Body],
    path: str | Path,
    *,
    corners_nm: ArrayLike,
    frames: int = 120,
    seconds: float = 8.0,
    title: str = "",
) -> Path:
    """Draw bodies in their volume, turned once around: a film without a seam.

    Args:
      bodies: surfaces; at least one.
      path: ends in ``.mp4`` or ``.gif``.
      corners_nm: [2, 3], of the volume.
      frames: pictures of the turn.
      seconds: that the turn takes.
      title: above, at the left.

    Returns:
      The path.

    Raises:
      ValueError: there is no body, or as ``animation.animate``.
      RuntimeError: pyvista is not installed or cannot draw here, or an MP4 is asked for and there
        is no ffmpeg.
    """
    scene, show = _set(bodies, corners_nm, title, FILM_DPI)
    drawn = (show(AZIMUTH + 360 * index / frames) for index in range(frames))
    try:
        return animation.animate(drawn, path, seconds=seconds / frames, dpi=FILM_DPI)
    finally:
        scene.close()


def _set(
    bodies: Sequence[Body], corners_nm: ArrayLike, title: str, dpi: int
) -> tuple[Scene, Callable[[float], Figure]]:
    """A scene, and its figure from an azimuth."""
    if not bodies:
        raise ValueError("there is no body to draw")
    if why_not():
        raise RuntimeError(f"surfaces in three dimensions need pyvista: {why_not()}")
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
    centred: dict[str, Any] = {"ha": "center", "va": "center", **style.SMALL}
    names = [
        axes.text(0, 0, f"{name}  {length / 1000:.3g} µm", **centred)
        for name, length in zip("xyz", np.ptp(view.ends, axis=0), strict=True)
    ]
    style.heading(figure, title)
    handles = [Patch(color=body.colour, label=body.name) for body in bodies]
    style.legend(figure, handles=handles, columns=-(-len(bodies) // rows), at=(0.14, foot - 0.04))
    scene = Scene(bodies, view)

    def show(azimuth: float) -> Figure:
        shown.set_data(scene.image(azimuth))
        for text, (start, stop) in zip(names, view.edges(azimuth), strict=True):
            along = (stop - start) * (1 if stop[0] > start[0] else -1)
            length = float(np.linalg.norm(along))
            across = np.array([along[1], -along[0]]) / max(length, 1e-9)
            middle = (start + stop) / 2
            outwards = across * (1 if across @ (middle - np.array(size) / 2) > 0 else -1)
            text.set_position((middle + _BESIDE * dpi * outwards).tolist())
            text.set_rotation(float(np.degrees(np.arctan2(along[1], along[0]))))
            # An edge that points at the eye has no room for its name.
            text.set_visible(length > 0.8 * dpi)
        return figure

    return scene, show


def _scale_bar(axes: Axes, view: View) -> None:
    """A bar of a round length at the lower right; the projection is parallel, so it is true."""
    width, height = view.size
    length, text = round_length(view.pixel_nm * width / 5000)
    pixels = 1000 * length / view.pixel_nm
    right, low = 0.97 * width, 0.035 * height
    bar: dict[str, Any] = {"color": style.INK, "linewidth": 2.6, "solid_capstyle": "butt"}
    axes.plot([right - pixels, right], [low, low], **bar)
    place = (right - pixels / 2, low + 0.015 * height)
    axes.text(*place, text, ha="center", va="bottom", fontsize=style.LABEL_SIZE, color=style.INK)
    axes.set(xlim=(0, width), ylim=(0, height))


def _eye(azimuth: float, elevation: float) -> tuple[np.ndarray, np.ndarray]:
    """From the volume to the eye, and upwards; azimuth 0 looks along the sections' y."""
    around, over = np.radians([azimuth - 90, elevation])
    towards = np.array([np.cos(over) * np.cos(around), np.cos(over) * np.sin(around), np.sin(over)])
    up = np.array([-np.sin(over) * np.cos(around), -np.sin(over) * np.sin(around), np.cos(over)])
    return towards, up
