"""Moving pictures: figures as a GIF or MP4, a trajectory walking a surface, wiggled parameters.

A GIF has one palette for all its frames, so that nothing flickers, and needs nothing but Pillow.
An MP4 needs ffmpeg: on the PATH, or from the package imageio-ffmpeg.
"""

import base64
import dataclasses
import importlib.util
import itertools
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from densejax.io import replacing
from densejax.plots import scales, surfaces
from densejax.plots import style as page

FRAME_DPI = 110
COLOURS = 255  # of a GIF, beside a pure white
BINS = 32  # a channel, of the histogram that the palette is taken from
SAMPLES = 200_000


def animate(
    frames: Iterable[Figure | np.ndarray],
    path: str | Path,
    *,
    seconds: float = 0.08,
    hold: float = 0.0,
    dpi: int = FRAME_DPI,
) -> Path:
    """Write frames as an animation that repeats for ever (GIF) or as a film (MP4).

    Args:
      frames: figures of one size, or uint8 ``[h, w, 3]``, drawn one after another as they are
        asked for: a generator never has two in memory.
      path: ends in ``.gif`` or ``.mp4``; written under another name and renamed when it is whole.
      seconds: each frame is seen; a GIF counts hundredths.
      hold: seconds that the last frame is seen beyond its own.
      dpi: pixels an inch of figures.

    Returns:
      The path.

    Raises:
      ValueError: there is no frame, sizes differ, or the name ends otherwise.
      RuntimeError: an MP4 is asked for and there is no ffmpeg, or ffmpeg fails.
    """
    path = Path(path)
    if path.suffix.lower() not in (".gif", ".mp4"):
        raise ValueError(f"{path} is not a name of an animation: expected .gif or .mp4")
    if seconds < 0.02 or hold < 0:
        raise ValueError(
            f"seconds is {seconds} and hold {hold}: expected at least 0.02 (players change less)"
            " and none below zero"
        )
    write = _write_gif if path.suffix.lower() == ".gif" else _write_mp4
    with replacing(path) as partial:
        write(_pixels(frames, dpi), partial, seconds, hold)
    return path


def swing(amplitude: float, *, frames: int = 48) -> np.ndarray:
    """Positions ``[frames]`` of a swing from 0 to both sides and back: a loop without a seam."""
    return amplitude * np.sin(2 * np.pi * np.arange(frames) / frames)


def walk(
    x: ArrayLike,
    y: ArrayLike,
    values: ArrayLike,
    trajectory: ArrayLike,
    path: str | Path,
    *,
    losses: ArrayLike | None = None,
    residuals: ArrayLike | None = None,
    style: surfaces.SurfaceStyle = surfaces.PLAIN,
    frames: int = 60,
    seconds: float = 0.08,
    title: str = "",
) -> Path:
    """A trajectory that grows over the contours of a surface.

    Args:
      x: ``[p]`` float, rising.
      y: ``[q]`` float, rising.
      values: ``[p, q]`` float.
      trajectory: ``[t, 2]`` float, coordinates of iterates in their order.
      path: of the GIF or MP4.
      losses: ``[t]`` float, the true loss of each iterate, its dot's colour.
      residuals: ``[t]`` float, how far each iterate lies off the plane, its dot's size.
      style: scale, levels and labels.
      frames: at most so many; iterates between them are drawn in one step.
      seconds: each frame is seen; the last one is held for a second and a half.
      title: above the axes, before the number of the iterate.

    Returns:
      The path.

    Raises:
      ValueError: as `surfaces.contour` and `animate`.
      RuntimeError: as `animate`.
    """
    steps = surfaces.checked_run(trajectory, losses, residuals)
    if steps is None:
        raise ValueError("trajectory is None: expected [t, 2]")
    places = steps[0]
    shown = [np.asarray(values, float)] + ([steps[1]] if steps[1] is not None else [])
    colours = style.scale(shown)
    low, high = (10**end if style.log else end for end in (colours.low, colours.high))
    fixed = dataclasses.replace(style, limits=(low, high))
    heading = f"{title}\n\u00a0" if title else "\u00a0"
    picture = surfaces.contour(x, y, values, style=fixed, title=heading)
    picture.set_dpi(FRAME_DPI)
    picture.axes[0].set_title("", loc="left")
    counts = np.unique(np.linspace(1, len(places), min(frames, len(places))).round().astype(int))
    return animate(_steps(picture, colours, steps, counts, title), path, seconds=seconds, hold=1.5)


def _steps(
    picture: Figure, colours: scales.Scale, steps: Any, counts: np.ndarray, title: str
) -> Iterator[np.ndarray]:
    """The surface, drawn once, under more and more of the trajectory."""
    axes, canvas = picture.axes[0], picture.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    places, losses, _ = steps
    canvas.draw()
    ground = canvas.copy_from_bbox(picture.bbox)
    for count in counts:
        words = f"iterate {count - 1:,} of {len(places) - 1:,}"
        if losses is not None:
            words += f", its own loss {losses[count - 1]:.3g}"
        before = set(axes.get_children())
        surfaces.draw_run(axes, colours, *steps, count=int(count), legend=False)
        heading = axes.set_title(f"{title}\n{words}" if title else words, **page.LEFT)
        added = set(axes.get_children()) - before
        canvas.restore_region(ground)
        for artist in [*sorted(added, key=lambda one: one.zorder), heading]:
            axes.draw_artist(artist)
        yield np.array(np.asarray(canvas.buffer_rgba())[..., :3])
        for artist in added:
            artist.remove()


@dataclasses.dataclass(frozen=True)
class Moving:
    """A GIF that a notebook shows.

    Attributes:
      content: the bytes of the GIF.
    """

    content: bytes = dataclasses.field(repr=False)

    def _repr_html_(self) -> str:
        coded = base64.b64encode(self.content).decode("ascii")
        return f'<img src="data:image/gif;base64,{coded}" alt="animation">'


def wiggle(
    draw: Callable[[float], Figure],
    positions: ArrayLike,
    *,
    label: str = "t",
    seconds: float = 0.08,
    dpi: int = FRAME_DPI,
    slider: bool | None = None,
) -> Any:
    """A picture of parameters that are moved along a direction, for a notebook.

    Args:
      draw: from a position to a figure, such as the decision boundary of the parameters there.
      positions: ``[f]`` float, in the order of the animation; a slider has them in rising order.
      label: of the slider.
      seconds: each frame of the animation is seen.
      dpi: pixels an inch.
      slider: whether to make a slider, which draws a position when it is first asked for; None is
        where ipywidgets is installed and a notebook runs.

    Returns:
      A widget with a slider, or a `Moving`: both are shown by a notebook as a cell's last value.

    Raises:
      ValueError: there is no position, or figures differ in size.
      RuntimeError: a slider is asked for and ipywidgets is not installed.
    """
    places = np.asarray(positions, float).reshape(-1)
    if not places.size:
        raise ValueError("positions are none: expected at least one")
    installed = importlib.util.find_spec("ipywidgets") is not None
    if slider and not installed:
        raise RuntimeError("a slider needs the package ipywidgets, which is not installed")
    if slider or (slider is None and installed and _in_notebook()):
        return _slider(draw, np.unique(places), label, dpi)
    with tempfile.TemporaryDirectory() as folder:
        path = animate(map(draw, places), Path(folder) / "wiggle.gif", seconds=seconds, dpi=dpi)
        return Moving(path.read_bytes())


def _in_notebook() -> bool:
    """Whether a kernel answers a notebook, rather than a script or a terminal."""
    if importlib.util.find_spec("IPython") is None:
        return False
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


def _slider(draw: Callable[[float], Figure], places: np.ndarray, label: str, dpi: int) -> Any:
    import ipywidgets

    drawn: dict[int, bytes] = {}

    def picture(index: int) -> bytes:
        if index not in drawn:
            with tempfile.TemporaryFile() as file:
                draw(float(places[index])).savefig(file, format="png", dpi=dpi)
                file.seek(0)
                drawn[index] = file.read()
        return drawn[index]

    start = int(np.argmin(abs(places)))
    shown = ipywidgets.Image(value=picture(start), format="png")
    shown.layout.object_fit = "contain"
    slider = ipywidgets.SelectionSlider(
        options=[(f"{place:+.3g}", index) for index, place in enumerate(places)],
        value=start,
        description=label,
    )
    slider.observe(lambda change: setattr(shown, "value", picture(change["new"])), names="value")
    return ipywidgets.VBox([slider, shown])


def _pixels(frames: Iterable[Figure | np.ndarray], dpi: int) -> Iterator[np.ndarray]:
    """Each frame as uint8 ``[h, w, 3]``."""
    first: tuple[int, ...] | None = None
    for index, frame in enumerate(frames):
        if isinstance(frame, Figure):
            frame.set_dpi(dpi)
            frame.canvas.draw()
            frame = np.asarray(frame.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(
                f"frame {index} is {frame.dtype} {frame.shape}: expected uint8 [h, w, 3]"
            )
        first = first or frame.shape
        if frame.shape != first:
            raise ValueError(
                f"frame {index} has shape {frame.shape}: expected {first} as the first"
            )
        yield frame
    if first is None:
        raise ValueError("there is no frame: expected at least one")


def _write_gif(frames: Iterator[np.ndarray], path: Path, seconds: float, hold: float) -> None:
    """Two passes, since the palette must know all frames: they wait on disk, packed."""
    with tempfile.TemporaryDirectory() as folder:
        counts, sums = np.zeros(BINS**3), np.zeros((BINS**3, 3))
        kept = 0
        for kept, frame in enumerate(frames, 1):
            _count(frame, counts, sums)
            Image.fromarray(frame).save(f"{folder}/{kept - 1}.png", compress_level=1)
        palette = _palette(counts, sums)

        def reduced(index: int) -> Image.Image:
            with Image.open(f"{folder}/{index}.png") as file:
                return file.convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE)

        # Times are rounded where they end, so that many frames do not drift.
        ends = np.round(100 * seconds * np.arange(kept + 1)).astype(int)
        ends[-1] += round(100 * hold)
        reduced(0).save(
            path,
            format="GIF",
            save_all=True,
            append_images=map(reduced, range(1, kept)),
            duration=[10 * int(time) for time in np.diff(ends)],
            loop=0,
            disposal=1,
        )


def _count(frame: np.ndarray, counts: np.ndarray, sums: np.ndarray) -> None:
    """Add a frame to a histogram of colours, in place."""
    pixels = frame.reshape(-1, 3)
    coarse = pixels.astype(np.int64) * BINS // 256
    places = (coarse[:, 0] * BINS + coarse[:, 1]) * BINS + coarse[:, 2]
    counts += np.bincount(places, minlength=len(counts))
    for channel in range(3):
        sums[:, channel] += np.bincount(places, pixels[:, channel], minlength=len(counts))


def _palette(counts: np.ndarray, sums: np.ndarray) -> Image.Image:
    """A palette by median cut, in which a thin line counts beside a wide ground."""
    met = counts > 0
    colours = (sums[met] / counts[met, None]).round().astype(np.uint8)
    weights = np.sqrt(counts[met])
    repeats = np.ceil(weights * SAMPLES / weights.sum()).astype(int)
    samples = Image.fromarray(np.repeat(colours, repeats, axis=0)[None])
    cut = samples.quantize(COLOURS, method=Image.Quantize.MEDIANCUT).getpalette() or []
    found = Image.new("P", (1, 1))
    found.putpalette([255, 255, 255, *cut[: 3 * COLOURS]])
    return found


def _write_mp4(frames: Iterator[np.ndarray], path: Path, seconds: float, hold: float) -> None:
    program = _find_ffmpeg()
    first = next(frames)
    height, width = first.shape[:2]
    command = [program, "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{width}x{height}", "-r", f"{1 / seconds:g}", "-i", "-", "-an"]
    # Players want sides of an even number of pixels and colours at half resolution.
    command += ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2:color=white", "-pix_fmt", "yuv420p"]
    command += ["-movflags", "+faststart", "-f", "mp4", str(path)]
    with tempfile.TemporaryFile() as said:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=said) as process:
            assert process.stdin is not None
            try:
                last = first
                for last in itertools.chain([first], frames):
                    process.stdin.write(last.tobytes())
                for _ in range(round(hold / seconds)):
                    process.stdin.write(last.tobytes())
            except BrokenPipeError:
                pass
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            said.seek(0)
            raise RuntimeError(
                f"{program} failed ({process.returncode}): {said.read().decode(errors='replace')}"
            )


def _find_ffmpeg() -> str:
    """The program that writes an MP4.

    Raises:
      RuntimeError: there is none; the message says where it was looked for.
    """
    found = shutil.which("ffmpeg")
    if found is None and importlib.util.find_spec("imageio_ffmpeg") is not None:
        import imageio_ffmpeg

        found = imageio_ffmpeg.get_ffmpeg_exe()
    if found is None:
        raise RuntimeError(
            "an MP4 needs ffmpeg, which is neither on the PATH nor in the package imageio-ffmpeg:"
            " install either, or name a .gif"
        )
    return found


def film_suffix(*, report: Callable[[str], Any]) -> str:
    """``.mp4``, or ``.gif`` where there is no ffmpeg; ``report`` is told why."""
    try:
        _find_ffmpeg()
    except RuntimeError as error:
        report(f"a GIF in place of an MP4: {error}")
        return ".gif"
    return ".mp4"
