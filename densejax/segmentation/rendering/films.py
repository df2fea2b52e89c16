"""Films of training for segmentation: what a run records, and how it becomes two films.

A run records one whole section of its evaluation volume, labelled by windows: the section that
shows most of every class. ``recording.npz`` in the run's folder holds its image and its truth, each
member's ``frames/`` the probabilities that its parameters gave at a step.
"""

import json
from pathlib import Path

import numpy as np

from densejax.data.datasets import LabelledVolume, standardise
from densejax.data.windows import Sizes, check_windows, evaluation_corners, input_tile
from densejax.inference.sliding_window import centrality
from densejax.io import write_npz
from densejax.plots import animation, films
from densejax.segmentation.rendering.sections import counts_along, informative_sections
from densejax.segmentation.task import WindowTask
from densejax.training.folders import frames_of, read_metrics
from densejax.training.sweep import Recording
from densejax.typing import Batch

SECTION_FILE = "recording.npz"


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
    reach, places = np.zeros(shape, np.float32), np.zeros(shape, np.int32)
    for index, (_, y, x) in enumerate(corners.tolist()):
        at = (slice(y, y + high), slice(x, x + wide))
        better = central > reach[at]
        reach[at] = np.where(better, central, reach[at])
        places[at] = np.where(better, index * high * wide + inside, places[at])
    return {
        "images": np.stack([input_tile(images, corner, output, window) for corner in corners]),
        "plane": np.asarray(section - first, np.int32),
        "places": places,
    }


def recorded_members(run: str | Path) -> list[Path]:
    """Folders of a run's members that have frames, ended or still in training, by name.

    Raises:
      FileNotFoundError: the run recorded nothing; the message says how to.
    """
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


def best_member(folders: list[Path]) -> Path:
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
    members = recorded_members(run)
    chosen = best_member(members)
    if seed:
        wanted = f"{int(seed):04d}" if seed.isdecimal() else seed
        found = [member for member in members if member.name == wanted]
        if not found:
            names = ", ".join(member.name for member in members)
            raise ValueError(f"{run}: no frames of member {seed!r}; there are those of {names}")
        chosen = found[0]
    return make_films(run, chosen, folder, suffix=animation.film_suffix(report=print))


def make_films(run: str | Path, member: Path, folder: Path, *, suffix: str = ".mp4") -> list[Path]:
    """The two films of one member.

    Args:
      run: the run's folder.
      member: the member's folder, with frames.
      folder: for the films.
      suffix: ``.mp4`` or ``.gif``.

    Returns:
      Paths of ``NAME_probabilities`` and ``NAME_segmentation``.

    Raises:
      ValueError: frames are not of the recorded section.
      RuntimeError: an MP4 is asked for and there is no ffmpeg.
    """
    with np.load(Path(run) / SECTION_FILE) as held:
        section = films.Section(
            image=held["image"],
            truth=held["labels"],
            voxel_nm=(float(held["voxel_nm"][1]), float(held["voxel_nm"][2])),
            class_names=[str(name) for name in held["class_names"]],
            words=f"{held['volume']}, section {int(held['section'])}",
        )
    steps, files = zip(*frames_of(member), strict=True)
    frames = films.Frames(steps, files, *_scores(member), name=f"seed {member.name}")
    return [
        films.probability_film(frames, section, folder / f"{member.name}_probabilities{suffix}"),
        films.segmentation_film(frames, section, folder / f"{member.name}_segmentation{suffix}"),
    ]


def _scores(folder: Path) -> tuple[list[int], list[float]]:
    """Steps and MIoU of a member's evaluations."""
    path = folder / "metrics.jsonl"
    rows = [row for row in read_metrics(path) if "miou" in row] if path.is_file() else []
    return [row["step"] for row in rows], [row["miou"] for row in rows]
