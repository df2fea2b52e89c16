"""Two ways to draw surfaces in three dimensions without a screen: VTK, and matplotlib alone.

Both look at the same bodies with the same parallel projection, so that a length in the picture is
one number of nanometres, whatever lies nearer. VTK (by pyvista, the extra ``render``) draws with
EGL or OSMesa where there is no display. A process in which its driver is missing may die rather
than raise, so ``find_renderer`` tries it in a process of its own.

Arrays are z, y, x. In the picture, from azimuth 0, x runs to the right, y towards the eye, and
sections lie on one another with the first on top: the volume is turned, never mirrored.
"""

import dataclasses
import functools
import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import to_rgb
from matplotlib.path import Path
from matplotlib.transforms import Affine2D, IdentityTransform
from PIL import Image

Renderer = Literal["vtk", "matplotlib"]

ELEVATION = 28.0  # of the eye above the sections' plane, degrees
PROBE_SECONDS = 120
OVERSAMPLING = 2  # pixels a side that matplotlib's picture is averaged from
FRAME_COLOUR = "#B9BEC6"
# Directions in the eye's axes (right, up, towards it) and strengths: over its left shoulder, from
# the right against black, and from the eye itself.
AMBIENT = 0.34
LIGHTS = (((-1.0, 1.2, 1.4), 0.72), ((1.4, 0.2, 0.7), 0.42), ((0.0, 0.0, 1.0), 0.2))


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
        """Nanometres a pixel: the volume fits from wherever it is seen."""
        depth, height, width = np.subtract(self.high, self.low)
        around = float(np.hypot(height, width))
        tilt = np.radians(self.elevation)
        tall = depth * np.cos(tilt) + around * np.sin(tilt)
        return 1.04 * float(max(around / self.size[0], tall / self.size[1]))

    @property
    def centre(self) -> np.ndarray:
        """Of the volume, in the scene's coordinates."""
        return turned(np.add(self.low, self.high)[None] / 2)[0]


class Scene(Protocol):
    """Bodies that can be seen from anywhere."""

    def image(self, azimuth: float) -> np.ndarray:
        """The picture from an azimuth in degrees, uint8 [h, w, 3] on white."""
        ...

    def close(self) -> None:
        """Give back what the scene holds."""
        ...


def turned(points: np.ndarray) -> np.ndarray:
    """Points [n, 3] z, y, x in the scene's x, -y, -z: upright, right-handed, not mirrored."""
    return np.asarray(points, float)[:, ::-1] * [1, -1, -1]


def open_scene(bodies: Sequence[Body], view: View, *, renderer: Renderer) -> Scene:
    """The scene of a volume's bodies, its edges drawn as thin lines."""
    return _VtkScene(bodies, view) if renderer == "vtk" else _AggScene(bodies, view)


@functools.cache
def find_renderer() -> tuple[Renderer, str]:
    """The better renderer that works here, and why not VTK where it is matplotlib."""
    for package in ("pyvista", "vtk"):
        if importlib.util.find_spec(package) is None:
            return "matplotlib", (
                f"the package {package} is not installed (pip install 'densejax[render]')"
            )
    trial = f"from {__name__} import _try_vtk; _try_vtk()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", trial],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return "matplotlib", f"VTK drew nothing within {PROBE_SECONDS} s"
    if done.returncode == 0:
        return "vtk", ""
    said = [line for line in done.stderr.splitlines() if line.strip()]
    return "matplotlib", (
        f"VTK cannot draw here, which takes libEGL or libOSMesa (exit code {done.returncode}: "
        f"{said[-1].strip() if said else 'it said nothing'})"
    )


def _try_vtk() -> None:
    """Draw a triangle with VTK and look whether it is there."""
    corners = np.array([[0, 0, 0], [0, 90, 0], [0, 0, 90.0]])
    faces = np.array([[0, 1, 2]])
    view = View((0, 0, 0), (90, 90, 90), (64, 64), elevation=60)
    scene = _VtkScene([Body("triangle", corners, faces, "#D55E00")], view)
    picture = scene.image(40.0).astype(int)
    scene.close()
    if not (picture[..., 0] - picture[..., 2] > 60).any():
        raise RuntimeError("the picture is empty")


class _VtkScene:
    """Surfaces drawn by VTK."""

    def __init__(self, bodies: Sequence[Body], view: View) -> None:
        import pyvista
        from vtk import vtkLogger

        # That there is no display is no news.
        vtkLogger.SetStderrVerbosity(vtkLogger.VERBOSITY_ERROR)
        self._view = view
        plotter: Any = pyvista.Plotter(
            off_screen=True, window_size=list(view.size), lighting="none"
        )
        self._plotter = plotter
        plotter.set_background("white")
        for body in bodies:
            surface = pyvista.PolyData.from_regular_faces(turned(body.vertices), body.faces)
            plotter.add_mesh(
                surface.compute_normals(split_vertices=False, cell_normals=False),
                color=body.colour,
                opacity=body.opacity,
                smooth_shading=True,
                ambient=AMBIENT,
                diffuse=1 - AMBIENT,
                specular=0.15,
                specular_power=20,
            )
        ends = turned(np.array([view.low, view.high]))
        box = pyvista.Box(np.stack([ends.min(0), ends.max(0)], axis=1).ravel())
        plotter.add_mesh(
            box.extract_all_edges(), color=FRAME_COLOUR, line_width=1.5, lighting=False
        )
        for place, strength in LIGHTS:
            plotter.add_light(
                pyvista.Light(position=place, intensity=strength, light_type="camera light")
            )
        if any(body.opacity < 1 for body in bodies):
            plotter.enable_depth_peeling(number_of_peels=8)
        plotter.enable_anti_aliasing("ssaa")
        plotter.enable_parallel_projection()

    def image(self, azimuth: float) -> np.ndarray:
        towards, up = _eye(azimuth, self._view.elevation)
        centre = self._view.centre
        far = 2 * float(np.linalg.norm(np.subtract(self._view.high, self._view.low)))
        camera = self._plotter.camera
        camera.focal_point = centre
        camera.position = centre + far * towards
        camera.up = up
        camera.parallel_scale = self._view.pixel_nm * self._view.size[1] / 2
        self._plotter.reset_camera_clipping_range()
        self._plotter.render()
        return np.ascontiguousarray(self._plotter.screenshot(return_img=True)[..., :3])

    def close(self) -> None:
        self._plotter.close()


class _AggScene:
    """Surfaces drawn by matplotlib's Agg: triangles from the far to the near."""

    def __init__(self, bodies: Sequence[Body], view: View) -> None:
        self._view = view
        self._points = [turned(body.vertices) - view.centre for body in bodies]
        self._normals = [
            _normals(points, body.faces) for points, body in zip(self._points, bodies, strict=True)
        ]
        self._bodies = list(bodies)

    def image(self, azimuth: float) -> np.ndarray:
        width, height = (OVERSAMPLING * size for size in self._view.size)
        towards, up = _eye(azimuth, self._view.elevation)
        axes = np.stack([np.cross(up, towards), up, towards])
        places, colours, depths = [], [], []
        for body, points, normals in zip(self._bodies, self._points, self._normals, strict=True):
            seen = points @ axes.T
            corners = seen[body.faces]
            a, b, c = corners[..., :2].transpose(1, 0, 2)
            one, other = b - a, c - a
            front = one[:, 0] * other[:, 1] > one[:, 1] * other[:, 0]
            faces = front if body.opacity == 1 else np.ones(len(a), bool)
            lit = _lit(normals @ axes.T, body)
            places.append(corners[faces][..., :2])
            depths.append(corners[faces][..., 2].mean(1))
            colours.append(lit[body.faces[faces]])
        renderer = RendererAgg(width, height, 72)
        context = renderer.new_gc()
        context.set_linewidth(0)
        ground = Path.unit_rectangle().transformed(Affine2D().scale(width, height))
        renderer.draw_path(context, ground, IdentityTransform(), (1.0, 1.0, 1.0))
        pixel = self._view.pixel_nm / OVERSAMPLING
        middle = np.array([width, height]) / 2
        self._edges(renderer, axes, pixel, middle, behind=True)
        if depths:
            order = np.argsort(np.concatenate(depths), kind="stable")
            renderer.draw_gouraud_triangles(
                context,
                (np.concatenate(places)[order] / pixel + middle),
                np.concatenate(colours)[order],
                IdentityTransform(),
            )
        self._edges(renderer, axes, pixel, middle, behind=False)
        drawn = np.asarray(renderer.buffer_rgba())[..., :3]
        return np.array(Image.fromarray(np.ascontiguousarray(drawn)).reduce(OVERSAMPLING))

    def close(self) -> None:
        """Nothing is held."""

    def _edges(
        self, renderer: RendererAgg, axes: np.ndarray, pixel: float, middle: Any, *, behind: bool
    ) -> None:
        """The volume's edges: those at its farthest corner first, the others over the bodies."""
        ends = turned(np.array([self._view.low, self._view.high])) - self._view.centre
        corners = np.array(
            [[ends[i, 0], ends[j, 1], ends[k, 2]] for i, j, k in np.ndindex(2, 2, 2)]
        )
        seen = corners @ axes.T
        farthest = int(np.argmin(seen[:, 2]))
        context = renderer.new_gc()
        context.set_foreground(FRAME_COLOUR)
        context.set_linewidth(1.2 * OVERSAMPLING)
        for one in range(8):
            for bit in (1, 2, 4):
                other = one ^ bit
                if one < other and (farthest in (one, other)) == behind:
                    line = Path(seen[[one, other], :2] / pixel + middle)
                    renderer.draw_path(context, line, IdentityTransform())


def _eye(azimuth: float, elevation: float) -> tuple[np.ndarray, np.ndarray]:
    """From the volume to the eye, and upwards; azimuth 0 looks along the sections' y."""
    around, over = np.radians([azimuth - 90, elevation])
    towards = np.array([np.cos(over) * np.cos(around), np.cos(over) * np.sin(around), np.sin(over)])
    up = np.array([-np.sin(over) * np.cos(around), -np.sin(over) * np.sin(around), np.cos(over)])
    return towards, up


def _normals(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Mean normals of vertices, [v, 3], weighted by area."""
    a, b, c = (points[faces[:, corner]] for corner in range(3))
    across = np.cross(b - a, c - a)
    total = np.zeros_like(points)
    for axis in range(3):
        for corner in range(3):
            total[:, axis] += np.bincount(faces[:, corner], across[:, axis], minlength=len(points))
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-30)


def _lit(normals: np.ndarray, body: Body) -> np.ndarray:
    """Colours [v, 4] of vertices under the same two lights, normals in the eye's axes."""
    if body.opacity < 1:
        normals = np.where(normals[:, 2:] < 0, -normals, normals)
    bright = np.full(len(normals), AMBIENT)
    for place, strength in LIGHTS:
        light = np.array(place) / np.linalg.norm(place)
        bright += (1 - AMBIENT) * strength * np.clip(normals @ light, 0, 1)
    colours = np.clip(np.array(to_rgb(body.colour)) * bright[:, None], 0, 1)
    return np.concatenate([colours, np.full((len(colours), 1), body.opacity)], axis=1)
