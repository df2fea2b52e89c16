"""Films of training: how the probabilities and the labels of one section come to be.

The two videos of section 4.5.5 of Emam (2022). Frames are read one after another as they are drawn.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch

from densejax.plots import animation, style
from densejax.plots.overlays import tinted
from densejax.plots.slices import grey_limits, scale_bar

LENGTH, HOLD = 12.0, 2.0  # seconds of a film, and of its last picture
WIDTH = 8.8
DPI = 140


@dataclasses.dataclass(frozen=True)
class Section:
    """The section that a film shows.

    Attributes:
      image: [h, w], grey levels.
      truth: [h, w] int in 0..c-1, anything else is not labelled.
      voxel_nm: (y, x) in nanometres.
      class_names: c names.
      words: which section of what, for the heading.
    """

    image: np.ndarray
    truth: np.ndarray
    voxel_nm: tuple[float, float]
    class_names: Sequence[str]
    words: str = ""


@dataclasses.dataclass(frozen=True)
class Frames:
    """A member's frames.

    Attributes:
      steps: of each frame, rising.
      files: of each frame, npz with ``probabilities`` uint8 [h, w, c], 255 is one.
      score_steps: of the evaluations.
      scores: evaluation MIoU.
      name: of the member.
    """

    steps: Sequence[int]
    files: Sequence[Path]
    score_steps: Sequence[int] = ()
    scores: Sequence[float] = ()
    name: str = ""

    def heading(self, index: int) -> str:
        """Step and last evaluation of a frame."""
        step = self.steps[index]
        words = f"{self.name}   step {step:,} of {self.steps[-1]:,}"
        known = [
            score for at, score in zip(self.score_steps, self.scores, strict=True) if at <= step
        ]
        return f"{words}   evaluation MIoU {known[-1]:.3f}" if known else words


def probability_film(frames: Frames, section: Section, path: str | Path) -> Path:
    """Each class's probability through training, beside the image.

    Args:
      frames: of one member; at least one.
      section: that they are of.
      path: ends in ``.mp4`` or ``.gif``.

    Returns:
      The path.

    Raises:
      ValueError: there is no frame, or one has another shape than the section.
      RuntimeError: an MP4 is asked for and there is no ffmpeg.
    """
    names = list(section.class_names)
    columns = min(4, len(names) + 1)
    lines = -(-(len(names) + 1) // columns)
    figure, places = _panels(section, columns, lines, right=0.78)
    places[0].imshow(section.image, extent=_extent(section), **grey_limits(section.image))
    _title(places[0], "image", None)
    scale_bar(places[0], *_microns(section))
    shown = []
    for axes, name, colour in zip(places[1:], names, style.class_colours(len(names)), strict=False):
        _title(axes, name, colour)
        empty = np.zeros(section.image.shape, np.uint8)
        shown.append(axes.imshow(empty, cmap="inferno", vmin=0, vmax=255, extent=_extent(section)))
    for axes in places[len(names) + 1 :]:
        axes.set_visible(False)
    last = places[columns - 1].get_position()
    box = (1 - 0.68 / WIDTH, last.y0, 0.1 / WIDTH, last.height)
    bar = style.colour_bar(figure, shown[0], "probability", box=box)
    bar.set_ticks([0, 127.5, 255], labels=["0", "0.5", "1"])
    return _film(figure, frames, section, path, lambda shares: _show_each(shown, shares))


def segmentation_film(frames: Frames, section: Section, path: str | Path) -> Path:
    """The labels through training beside the image and the truth, over the evaluation's curve.

    Args:
      frames: of one member; at least one.
      section: that they are of.
      path: ends in ``.mp4`` or ``.gif``.

    Returns:
      The path.

    Raises:
      ValueError: there is no frame, or one has another shape than the section.
      RuntimeError: an MP4 is asked for and there is no ffmpeg.
    """
    names, look = list(section.class_names), grey_limits(section.image)
    curve = 0.95 if len(frames.scores) > 1 else 0.0
    rows = style.legend_rows(names, WIDTH)
    figure, places = _panels(section, 3, 1, foot=0.2 + 0.19 * rows + curve)
    extent, grey = _extent(section), (look["vmin"], look["vmax"])
    places[0].imshow(section.image, extent=extent, **look)
    scale_bar(places[0], *_microns(section))
    for axes, title in zip(places, ("image", "truth", "network"), strict=True):
        _title(axes, title, None)
    truth = tinted(None, section.truth.astype(int), len(names), grey=grey)
    places[1].imshow(truth, extent=extent)
    shown = places[2].imshow(truth, extent=extent)
    hues = style.class_colours(len(names))
    handles = [Patch(color=hue, label=name) for hue, name in zip(hues, names, strict=True)]
    style.legend(
        figure, handles=handles, columns=-(-len(names) // rows), at=(0.12, 0.08 + 0.19 * rows)
    )
    dot = _curve(figure, frames, 0.2 + 0.19 * rows, curve) if curve else None

    def show(shares: np.ndarray) -> None:
        labels = shares.argmax(-1)
        shown.set_data(tinted(None, labels, len(names), grey=grey))

    return _film(figure, frames, section, path, show, dot=dot)


def _panels(
    section: Section, columns: int, lines: int, *, right: float = 0.12, foot: float = 0.12
) -> tuple[Figure, list[Axes]]:
    """Axes of the section's proportions in a grid, each with room for its title."""
    gap, head, title = 0.08, 0.3, 0.24
    height, width = section.image.shape
    figure, panels = style.sheet(
        columns * lines,
        columns=columns,
        width=(WIDTH - 0.12 - right - (columns - 1) * gap) / columns,
        tall=height * section.voxel_nm[0] / (width * section.voxel_nm[1]),
        margins=style.Margins(0.12, right, head + title, foot, gap, title),
    )
    for axes in panels:
        style.frame(axes)
    return figure, panels


def _film(
    figure: Figure,
    frames: Frames,
    section: Section,
    path: str | Path,
    show: Callable[[np.ndarray], None],
    *,
    dot: Callable[[int], None] | None = None,
) -> Path:
    if not frames.files:
        raise ValueError(f"{path}: there is no frame to show")
    expected = (*section.image.shape, len(section.class_names))
    down = figure.get_size_inches()[1]
    style.heading(figure, frames.heading(0), left=0.12)
    heading = figure.texts[-1]
    aside = {"fontsize": style.TICK_SIZE, "color": style.FAINT, "va": "top", "ha": "right"}
    figure.text(1 - 0.12 / WIDTH, 1 - 0.1 / down, section.words, **aside)  # type: ignore[arg-type]

    def drawn() -> Iterator[Figure]:
        for index, file in enumerate(frames.files):
            with np.load(file) as arrays:
                shares = arrays["probabilities"]
            if shares.shape != expected:
                raise ValueError(f"{file}: shape {shares.shape}; expected {expected}")
            show(shares)
            heading.set_text(frames.heading(index))
            if dot is not None:
                dot(frames.steps[index])
            yield figure

    seconds = float(np.clip(LENGTH / len(frames.files), 0.04, 0.4))
    return animation.animate(drawn(), path, seconds=seconds, hold=HOLD, dpi=DPI)


def _show_each(shown: Sequence[AxesImage], shares: np.ndarray) -> None:
    for number, picture in enumerate(shown):
        picture.set_data(shares[..., number])


def _curve(figure: Figure, frames: Frames, low: float, height: float) -> Callable[[int], None]:
    """The evaluation's curve below the panels, grey, and in ink up to the step that is shown."""
    down = figure.get_size_inches()[1]
    axes = figure.add_axes(
        (0.62 / WIDTH, (low + 0.34) / down, 1 - 0.8 / WIDTH, (height - 0.4) / down)
    )
    style.dress(axes, x="step", y="MIoU")
    axes.plot(frames.score_steps, frames.scores, color=style.GRID, linewidth=1.6)
    (line,) = axes.plot([], [], color=style.SERIES_COLOURS[0], linewidth=1.6)
    (mark,) = axes.plot([], [], "o", color=style.SERIES_COLOURS[0], markersize=4.5)
    axes.set_ylim(0, None)
    axes.set_xlim(0, max(frames.steps[-1], frames.score_steps[-1]))
    steps, scores = np.array(frames.score_steps), np.array(frames.scores)

    def move(step: int) -> None:
        seen = steps <= step
        line.set_data(steps[seen], scores[seen])
        mark.set_data(steps[seen][-1:], scores[seen][-1:])

    return move


def _title(axes: Axes, text: str, colour: str | None) -> None:
    axes.set_title(text, fontsize=style.LABEL_SIZE, color=style.INK, loc="left", pad=3)
    if colour is not None:
        style.frame(axes, colour=colour, width=1.8)


def _microns(section: Section) -> tuple[float, float]:
    height, width = section.image.shape
    return width * section.voxel_nm[1] / 1000, height * section.voxel_nm[0] / 1000


def _extent(section: Section) -> tuple[float, float, float, float]:
    width, height = _microns(section)
    return 0, width, height, 0
