"""Films of training: what a run records of one section, and the two films that it becomes.

A run records one whole section of its evaluation volume, labelled by windows: the section that
shows most of every class. ``recording.npz`` in the run's folder holds its image and its truth, each
member's ``frames/`` the probabilities that its parameters gave at a step. The films show how the
probabilities and the labels of the section come to be (the two videos of section 4.5.5 of Emam
2022); frames are read one after another as they are drawn.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch

from densejax.data.datasets import LabelledVolume, standardise
from densejax.data.windows import Sizes, check_windows, evaluation_corners, input_tile
from densejax.inference.sliding_window import centrality
from densejax.io import write_npz
from densejax.plots import animation, style
from densejax.plots.overlays import tinted
from densejax.plots.slices import grey_limits, scale_bar
from densejax.segmentation.rendering.subjects import counts_along, informative_sections
from densejax.segmentation.task import WindowTask
from densejax.training.folders import frames_of, read_metrics
from densejax.training.sweep import Recording
from densejax.typing import Batch

SECTION_FILE = "recording.npz"
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


def record_section(
    volume: LabelledVolume,
    task: WindowTask,
    *,
    every: int,
    window: Sizes,
    output: Sizes,
    workdir: Path,
) -> Recording:
    """What a sweep records of a volume; writes the section's image and truth where they are not.

    Args:
      volume: the evaluation volume, raw.
      task: whose ``section`` labels it.
      every: interval in steps.
      window: (z, y, x) of the network's input.
      output: (z, y, x) of its output, centred in the input.
      workdir: the run's folder.

    Raises:
      ValueError: a window does not fit into the volume.
    """
    counts = counts_along(volume.labels, len(volume.class_names), axis=0)
    section = informative_sections(counts)[0]
    data = section_data(volume, section=section, window=window, output=output)
    path = workdir / SECTION_FILE
    if not path.exists():
        content = {
            "image": volume.images[section],
            "labels": volume.labels[section],
            "section": section,
            "voxel_nm": volume.voxel_nm,
            "class_names": volume.class_names,
            "volume": volume.name,
        }
        write_npz(path, content, compressed=True)
    return Recording(every, task.section, data)


def section_data(volume: LabelledVolume, *, section: int, window: Sizes, output: Sizes) -> Batch:
    """Arrays from which ``WindowTask.section`` labels one whole section of a volume.

    Windows share a third of their outputs, as the released prediction; each voxel is taken from the
    window in which it is most central, the first of equals.

    Args:
      volume: standardised by its own mean and deviation, as for evaluation.
      section: its z.
      window: (z, y, x) of the network's input.
      output: (z, y, x) of its output, centred in the input.

    Returns:
      ``images`` [n, z, y, x] float32, ``plane`` int32 [] and ``places`` int32 [h, w].

    Raises:
      ValueError: a window does not fit into the volume.
    """
    images = standardise(volume.images)
    check_windows(images.shape, window, output)
    depth, high, wide = output
    first = int(np.clip(section - depth // 2, 0, len(images) - depth))
    shape = images.shape[1:]
    corners = evaluation_corners((depth, *shape), output, (0, high // 3, wide // 3))
    corners = corners + np.array([first, 0, 0], corners.dtype)
    central = centrality((1, high, wide))[0]
    inside = np.arange(high * wide, dtype=np.int32).reshape(high, wide)
    best, places = np.zeros(shape, np.float32), np.zeros(shape, np.int32)
    for index, (_, y, x) in enumerate(corners.tolist()):
        at = (slice(y, y + high), slice(x, x + wide))
        better = central > best[at]
        best[at] = np.where(better, central, best[at])
        places[at] = np.where(better, index * high * wide + inside, places[at])
    return {
        "images": np.stack([input_tile(images, corner, output, window) for corner in corners]),
        "plane": np.asarray(section - first, np.int32),
        "places": places,
    }


def _recorded_members(run: str | Path) -> list[Path]:
    """Folders of a run's members that have frames, ended or still in training, by name."""
    run = Path(run)
    if not (run / SECTION_FILE).is_file():
        raise FileNotFoundError(
            f"{run / SECTION_FILE}: no such file; a run records its training with --record=N "
            "(python -m experiments.segment --record=200 ...)"
        )
    folders = [*(run / "seeds").glob("*"), *(run / "running").glob("*")]
    found = sorted((folder for folder in folders if frames_of(folder)), key=lambda path: path.name)
    if not found:
        raise FileNotFoundError(f"{run}: no member has frames yet")
    return found


def _best_member(folders: list[Path]) -> Path:
    """The folder of the member with the best evaluation so far; the first of equals."""

    def score(folder: Path) -> float:
        done = folder / "DONE"
        if done.is_file():
            return float(json.loads(done.read_text())["best_score"] or 0)
        return max(_scores(folder)[1], default=0.0)

    return max(folders, key=score)


def films_of(run: str | Path, folder: Path, *, seed: str = "") -> list[Path]:
    """The two films of one member of a run.

    Args:
      run: the run's folder.
      folder: for the films.
      seed: name of the member, such as ``0003`` or ``3``; empty is the best so far.

    Returns:
      The films' paths, as MP4, or as GIF where there is no ffmpeg, which is said.

    Raises:
      FileNotFoundError: the run recorded nothing.
      ValueError: there is no such member.
    """
    members = _recorded_members(run)
    chosen = _best_member(members)
    if seed:
        wanted = f"{int(seed):04d}" if seed.isdecimal() else seed
        found = [member for member in members if member.name == wanted]
        if not found:
            names = ", ".join(member.name for member in members)
            raise ValueError(f"{run}: no frames of member {seed!r}; there are those of {names}")
        chosen = found[0]
    return _make_films(run, chosen, folder, suffix=animation.film_suffix(report=print))


def _make_films(run: str | Path, member: Path, folder: Path, *, suffix: str = ".mp4") -> list[Path]:
    """Make ``NAME_probabilities`` and ``NAME_segmentation`` of one member."""
    with np.load(Path(run) / SECTION_FILE) as held:
        section = Section(
            image=held["image"],
            truth=held["labels"],
            voxel_nm=(float(held["voxel_nm"][1]), float(held["voxel_nm"][2])),
            class_names=[str(name) for name in held["class_names"]],
            words=f"{held['volume']}, section {int(held['section'])}",
        )
    steps, files = zip(*frames_of(member), strict=True)
    frames = Frames(steps, files, *_scores(member), name=f"seed {member.name}")
    return [
        probability_film(frames, section, folder / f"{member.name}_probabilities{suffix}"),
        segmentation_film(frames, section, folder / f"{member.name}_segmentation{suffix}"),
    ]


def _scores(folder: Path) -> tuple[list[int], list[float]]:
    """Steps and MIoU of a member's evaluations."""
    path = folder / "metrics.jsonl"
    rows = (
        [row for row in read_metrics(path) if row.get("miou") is not None] if path.is_file() else []
    )
    return [row["step"] for row in rows], [row["miou"] for row in rows]


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
