"""Films of training: how the probabilities and the labels of one section come to be.

The two videos of section 4.5.5 of Emam (2022). Frames are read one after another as they are drawn.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch

from densejax.plots import animation, style
from densejax.plots.overlays import tinted
from densejax.plots.slices import scale_bar

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
    figure, places = _panels(section, columns, lines, right=0.62)
    low, high = _limits(section.image)
    places[0].imshow(section.image, cmap="gray", vmin=low, vmax=high, extent=_extent(section))
    _title(places[0], "image", None)
    scale_bar(places[0], *_microns(section))
    shown = []
    for axes, name, colour in zip(places[1:], names, style.class_colours(len(names)), strict=False):
        _title(axes, name, colour)
        empty = np.zeros(section.image.shape, np.uint8)
        shown.append(axes.imshow(empty, cmap="inferno", vmin=0, vmax=255, extent=_extent(section)))
    for axes in places[len(names) + 1 :]:
        axes.set_visible(False)
    across = figure.get_size_inches()[0]
    box = places[columns - 1].get_position()
    bar_axes = figure.add_axes(((across - 0.5) / across, box.y0, 0.1 / across, box.height))
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), colormaps["inferno"]), cax=bar_axes)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar_axes.tick_params(labelsize=style.TICK_SIZE, length=2, labelcolor=style.INK)
    bar_axes.set_title("probability", fontsize=style.TICK_SIZE, color=style.INK, pad=5)
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
    names, grey = list(section.class_names), _limits(section.image)
    curve = 0.95 if len(frames.scores) > 1 else 0.0
    rows = _legend_rows(names)
    figure, places = _panels(section, 3, 1, foot=0.2 + 0.19 * rows + curve)
    extent = _extent(section)
    places[0].imshow(section.image, cmap="gray", vmin=grey[0], vmax=grey[1], extent=extent)
    scale_bar(places[0], *_microns(section))
    for axes, title in zip(places, ("image", "truth", "network"), strict=True):
        _title(axes, title, None)
    truth = tinted(None, section.truth.astype(int), len(names), grey=grey)
    places[1].imshow(truth, extent=extent)
    shown = places[2].imshow(truth, extent=extent)
    _legend(figure, names, rows)
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
    wide = (WIDTH - 0.12 - right - (columns - 1) * gap) / columns
    height, width = section.image.shape
    high = wide * height * section.voxel_nm[0] / (width * section.voxel_nm[1])
    down = head + lines * (high + title) + foot
    figure = style.new_figure(WIDTH, down, constrained=False)
    places = []
    for index in range(columns * lines):
        line, column = divmod(index, columns)
        left = 0.12 + column * (wide + gap)
        low = down - head - (line + 1) * (high + title)
        axes = figure.add_axes((left / WIDTH, low / down, wide / WIDTH, high / down))
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set_color(style.FAINT)
            spine.set_linewidth(0.6)
        places.append(axes)
    return figure, places


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
    heading = figure.text(
        0.12 / WIDTH,
        1 - 0.1 / down,
        "",
        fontsize=style.TITLE_SIZE,
        color=style.INK,
        va="top",
        fontweight="bold",
    )
    figure.text(
        1 - 0.12 / WIDTH,
        1 - 0.1 / down,
        section.words,
        fontsize=style.TICK_SIZE,
        color=style.FAINT,
        va="top",
        ha="right",
    )

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


def _legend_rows(names: Sequence[str]) -> int:
    fitting = max(1, int(WIDTH / (0.42 + 0.064 * max(map(len, names)))))
    return -(-len(names) // fitting)


def _legend(figure: Figure, names: Sequence[str], rows: int) -> None:
    down = figure.get_size_inches()[1]
    colours = style.class_colours(len(names))
    figure.legend(
        handles=[
            Patch(color=colour, label=name) for colour, name in zip(colours, names, strict=True)
        ],
        loc="lower left",
        bbox_to_anchor=(0.06 / WIDTH, 0.08 / down),
        ncols=-(-len(names) // rows),
        frameon=False,
        fontsize=style.TICK_SIZE,
        labelcolor=style.INK,
        handlelength=1.1,
        handleheight=1.1,
        columnspacing=1.2,
        borderaxespad=0,
    )


def _title(axes: Axes, text: str, colour: str | None) -> None:
    axes.set_title(text, fontsize=style.LABEL_SIZE, color=style.INK, loc="left", pad=3)
    if colour is not None:
        for spine in axes.spines.values():
            spine.set_color(colour)
            spine.set_linewidth(1.8)


def _limits(image: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(image, (0.5, 99.5))
    return float(low), float(max(high, low + 1e-12))


def _microns(section: Section) -> tuple[float, float]:
    height, width = section.image.shape
    return width * section.voxel_nm[1] / 1000, height * section.voxel_nm[0] / 1000


def _extent(section: Section) -> tuple[float, float, float, float]:
    width, height = _microns(section)
    return 0, width, height, 0
