"""Which voxels of a labelled volume train, rank and test: by its labelled sections or blocks.

Where every section is labelled, whole sections are cut into slabs. Where labels are sparse, the
labelled sections are shared out; where these are too few or too near one another, the labelled
columns along y or x are. The window of a network decides nothing, so that runs with other windows
are scored on the same voxels. What a part's labels are not of is masked in it, and sections around
them are kept, unlabelled, for windows to look at.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from densejax.data.datasets import LabelledVolume, split_sections
from densejax.typing import UNLABELLED

Part = Literal["train", "evaluation", "test"]
By = Literal["labelled", "sections"]

PARTS: tuple[Part, ...] = ("train", "evaluation", "test")
LEAST_SECTIONS = 5  # the depth of a published window
AROUND_NM = 250.0  # that are kept, unlabelled, on either side of labelled sections
SHARE = 0.15  # of what is labelled, for evaluation and for test
GAP = 0.05  # of the labelled extent, between two parts
LEAST_SHARE = 0.02  # of the labelled voxels, below which a part says nothing


@dataclass(frozen=True)
class Piece:
    """What a part has of a volume; ``start`` is its first section there."""

    part: Part
    start: int
    volume: LabelledVolume


@dataclass(frozen=True)
class Division:
    """How a volume was divided, for people.

    Attributes:
      name: of the volume.
      shape: (z, y, x).
      voxel_nm: (z, y, x).
      front: int8 [z, x], seen along y: 0 not labelled, 1 train, 2 evaluation, 3 test, 4 labelled
        and left out.
      top: int8 [y, x], the same seen along z.
      text: one line.
    """

    name: str
    shape: tuple[int, int, int]
    voxel_nm: tuple[float, float, float]
    front: np.ndarray
    top: np.ndarray
    text: str


def default_sections(depth: int) -> tuple[int, int, int, int]:
    """Sections for train, evaluation and test and the gap between them, from all sections.

    About 15 % each for evaluation and test, at least ``LEAST_SECTIONS`` where a quarter of the
    stack is as deep; 5 % and at least one for each gap; the rest for training. It depends on
    nothing but the stack, so that runs with other windows are scored on the same sections.
    """
    part, gap = _part_and_gap(depth)
    return depth - 2 * part - 2 * gap, part, part, gap


def parse_fold(text: str) -> tuple[int, int] | None:
    """Fold and number of folds from text such as ``0/5``; None for an empty text.

    Raises:
      ValueError: it is no such text, or there is no such fold.
    """
    if not text:
        return None
    fold, _, folds = text.partition("/")
    if not (fold.isdecimal() and folds.isdecimal() and 0 <= int(fold) < int(folds) > 1):
        raise ValueError(
            f"--fold={text!r}: expected the fold and the number of folds, such as 0/5, 1/5 ... 4/5"
        )
    return int(fold), int(folds)


def split_volume(
    volume: LabelledVolume,
    *,
    sections: Sequence[int] = (),
    parts: Sequence[Part] = PARTS,
    by: By = "labelled",
    fold: tuple[int, int] | None = None,
) -> list[Piece]:
    """Share a volume out among training, evaluation and test.

    Args:
      volume: to be cut; a slab of whole sections is a view.
      sections: train, evaluation, test and gap in whole sections; empty chooses them. What is not
        in ``parts`` has to be 0.
      parts: that are taken from this volume; the others have volumes of their own.
      by: ``labelled`` sections, or whole ``sections`` whether they are labelled or not.
      fold: which of how many parts of the labelled sections evaluates, in their order; the others
        train, and none tests.

    Returns:
      A piece for each part, in the order train, evaluation, test.

    Raises:
      ValueError: a part would have no labelled voxel, or there are too few sections; the message
        says where labels are and which flags help.
    """
    known = np.asarray((volume.labels >= 0).any(axis=(1, 2)))
    if not known.any():
        raise ValueError(f"{volume.name}: no voxel is labelled; expected labels to learn from")
    if sections and fold:
        raise ValueError("--sections and --fold both divide a volume; give one of them")
    if fold is not None:
        pieces = _folded(volume, known, *fold)
    elif len(parts) == 1:
        if sections:
            raise ValueError(
                "--sections divides the volumes of --image, and evaluation and test have volumes "
                "of their own: leave it out"
            )
        pieces = [Piece("train", 0, volume)]
    elif sections or by == "sections" or known.all():
        pieces = _slabs(volume, sections, parts)
    else:
        pieces = _sparse(volume, known, parts)
    for piece in pieces:
        if not (piece.volume.labels >= 0).any():
            end = piece.start + len(piece.volume.labels) - 1
            raise ValueError(
                f"{volume.name}: the {piece.part} part has no labelled voxel in its sections "
                f"{piece.start} to {end}; {where_labelled(known)}. Without --sections and with "
                "--split=labelled what is labelled is divided; otherwise give other --sections, or "
                "volumes of their own (--evaluation_image and --evaluation_labels, --test_image "
                "and --test_labels)"
            )
    return pieces


def divided(volume: LabelledVolume, pieces: Sequence[Piece]) -> Division:
    """Look at a volume from two sides, for the picture and the line of its division."""
    labelled = volume.labels >= 0
    views = {axis: np.where(labelled.any(axis), np.int8(4), np.int8(0)) for axis in (0, 1)}
    texts = []
    for piece in pieces:
        mine, code = piece.volume.labels >= 0, PARTS.index(piece.part) + 1
        views[0][mine.any(0)] = code
        views[1][piece.start : piece.start + len(mine)][mine.any(1)] = code
        rows, columns = (np.flatnonzero(mine.any(axis=(0, other))) for other in (2, 1))
        place = _runs(np.flatnonzero(mine.any((1, 2))) + piece.start)
        inside = [
            f"{letter} {found[0]}..{found[-1]}"
            for letter, found, size in zip("yx", (rows, columns), mine.shape[1:], strict=True)
            if len(found) < size
        ]
        texts.append(f"{piece.part} sections {', '.join([place, *inside])}")
    z, y, x = volume.labels.shape
    return Division(volume.name, (z, y, x), volume.voxel_nm, views[1], views[0], "; ".join(texts))


def draw_divisions(divisions: Sequence[Division], path: Path) -> Path:
    """Draw how volumes were divided, seen along y (strips along z); return the path."""
    # Imported here: --help answers without matplotlib.
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    from densejax.plots import style

    colours = ["#ececec", *(style.series_colour(index) for index in range(3)), "#b8b8b8"]
    names = ("not labelled", *PARTS, "labelled, left out")
    figure = style.new_figure(6, 0.8 + 2.6 * len(divisions))
    used: set[int] = set()
    grid = figure.subplots(len(divisions), 1, squeeze=False)[:, 0]
    for axes, division in zip(grid, divisions, strict=True):
        z, y, x = division.voxel_nm
        strips = len(np.unique(division.top[division.top > 0])) > 1
        view = (division.top, y / x, "y") if strips else (division.front, z / x, "z")
        codes, tall, letter = view
        used |= {int(code) for code in np.unique(codes)}
        wide = codes.shape[1] / max(codes.shape[0] * tall, 1e-9)
        axes.imshow(
            codes,
            cmap=ListedColormap(colours),
            vmin=-0.5,
            vmax=4.5,
            interpolation="nearest",
            aspect=tall if 0.2 < wide < 5 else "auto",
        )
        style.dress(axes, x="x (voxels)", y=f"{letter} (voxels)", grid="")
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_title(Path(division.name).name, **style.LEFT)
    figure.legend(
        handles=[Patch(color=colours[code], label=names[code]) for code in sorted(used)],
        loc="outside lower left",
        ncols=min(len(used), 3),
        frameon=False,
        fontsize=style.TICK_SIZE,
    )
    style.save(figure, path)
    return path


def where_labelled(known: np.ndarray) -> str:
    """Which of the sections, bool [z], are labelled, in words."""
    found = np.flatnonzero(known)
    return f"{len(found)} of {len(known)} sections are labelled: {_runs(found)}"


def _part_and_gap(depth: int) -> tuple[int, int]:
    least = min(LEAST_SECTIONS, depth // 4)
    return max(least, round(SHARE * depth), 1), max(1, round(GAP * depth))


def _slabs(volume: LabelledVolume, sections: Sequence[int], parts: Sequence[Part]) -> list[Piece]:
    """Whole sections, first to last."""
    depth = len(volume.labels)
    if not sections:
        part, gap = _part_and_gap(depth)
        others = len(parts) - 1
        sizes: dict[str, int] = {one: part if one in parts else 0 for one in PARTS}
        sizes["train"] = depth - others * (part + gap)
        if sizes["train"] < 1:
            ones = [str(int(one in parts)) for one in PARTS[1:]]
            fits = ",".join([str(depth - others), *ones])
            raise ValueError(
                f"{volume.name}: {depth} sections are too few to divide: {len(parts)} parts and a "
                f"section between two of them need {2 * len(parts)} or more. Give "
                "--evaluation_image and --evaluation_labels, and --test_image and --test_labels"
                + (f"; or --sections={fits},0 (no gap)" if depth >= len(parts) else "")
            )
    else:
        if len(sections) != 4:
            raise ValueError(
                f"--sections takes four numbers, train,evaluation,test,gap; found {tuple(sections)}"
            )
        *numbers, gap = sections
        sizes = {str(one): size for one, size in zip(PARTS, numbers, strict=True)}
        for one in PARTS:
            if one not in parts and sizes[one]:
                raise ValueError(
                    f"--sections={','.join(map(str, sections))}: {one} has volumes of its own and "
                    f"takes no section here; expected 0 for it"
                )
    slabs = split_sections(
        volume, **sizes, gap=gap, absent=tuple(one for one in PARTS if one not in parts)
    )
    pieces, start = [], 0
    for one, slab in zip([one for one in PARTS if one in parts], slabs, strict=True):
        pieces.append(Piece(one, start, slab))
        start += len(slab.labels) + gap
    return pieces


def _sparse(volume: LabelledVolume, known: np.ndarray, parts: Sequence[Part]) -> list[Piece]:
    """Labelled sections, or where they are too few, labelled columns."""
    found = np.flatnonzero(known)
    counts = (volume.labels >= 0).sum(axis=(1, 2))
    chosen = _share_out(counts, max(1, round(SHARE * len(found))), found, parts)
    if chosen is not None:
        return [_of_sections(volume, part, chosen[part]) for part in PARTS if part in chosen]
    labelled = volume.labels >= 0
    columns = [np.asarray(labelled.any(axis=axes)) for axes in ((0, 2), (0, 1))]
    axis = int(np.argmax([_extent(one) for one in columns])) + 1
    cut = _cut_columns(labelled.sum(axis=(0, 3 - axis)), parts)
    if cut is None:
        raise ValueError(
            f"{volume.name}: {where_labelled(known)}, too little to divide in {len(parts)} parts. "
            "Give --evaluation_image and --evaluation_labels, and --test_image and --test_labels, "
            "or label more"
        )
    return [_of_columns(volume, found, part, axis, cut[part]) for part in PARTS if part in cut]


def _share_out(
    counts: np.ndarray, each: int, found: np.ndarray, parts: Sequence[Part]
) -> dict[Part, np.ndarray] | None:
    """Sections of each part, the last for the test; None where training would keep less than half.

    ``counts`` [z] are labelled voxels, ``each`` the sections of a part but training.
    """
    gap = max(1, round(GAP * (found[-1] - found[0] + 1)))
    chosen: dict[Part, np.ndarray] = {}
    rest = found
    for part in reversed([part for part in parts if part != "train"]):
        if len(rest) <= each:
            return None
        chosen[part] = rest[-each:]
        rest = rest[rest < chosen[part][0] - gap]
    chosen["train"] = rest
    total = counts.sum()
    if 2 * len(rest) < len(found) or 2 * counts[rest].sum() < total:
        return None
    if any(counts[one].sum() < LEAST_SHARE * total for one in chosen.values()):
        return None
    return chosen


def _cut_columns(counts: np.ndarray, parts: Sequence[Part]) -> dict[Part, slice] | None:
    """Columns of each part from labelled voxels a column, the last for the test."""
    found = np.flatnonzero(counts)
    total = counts.sum()
    gap = max(1, round(GAP * (found[-1] - found[0] + 1)))
    cut: dict[Part, slice] = {}
    end = len(counts)
    for part in reversed([part for part in parts if part != "train"]):
        sums = np.cumsum(counts[:end][::-1])
        if not len(sums) or sums[-1] < SHARE * total:
            return None
        start = end - 1 - int(np.argmax(sums >= SHARE * total))
        cut[part] = slice(start, end)
        end = max(0, start - gap)
    if 2 * counts[:end].sum() < total:
        return None
    cut["train"] = slice(0, end)
    return cut


def _folded(volume: LabelledVolume, known: np.ndarray, fold: int, folds: int) -> list[Piece]:
    found = np.flatnonzero(known)
    if len(found) < folds:
        raise ValueError(
            f"--fold={fold}/{folds}: {volume.name} has {len(found)} labelled sections "
            f"({where_labelled(known)}); expected at most as many folds"
        )
    mine = np.array_split(found, folds)[fold]
    gap = max(1, round(GAP * (found[-1] - found[0] + 1)))
    rest = found[(found < mine[0] - gap) | (found > mine[-1] + gap)]
    if not len(rest):
        raise ValueError(
            f"--fold={fold}/{folds}: no labelled section of {volume.name} is left for training, "
            f"{gap} or more away from those that evaluate; {where_labelled(known)}. Give more folds"
        )
    return [_of_sections(volume, "train", rest), _of_sections(volume, "evaluation", mine)]


def _of_sections(volume: LabelledVolume, part: Part, chosen: np.ndarray) -> Piece:
    place = _around(chosen, volume)
    labels = np.full_like(volume.labels[place], UNLABELLED)
    labels[chosen - place.start] = volume.labels[chosen]
    return Piece(part, place.start, _masked(volume, part, place, labels))


def _of_columns(
    volume: LabelledVolume, found: np.ndarray, part: Part, axis: int, columns: slice
) -> Piece:
    place = _around(found, volume)
    inside = (slice(None), *(columns if axis == one else slice(None) for one in (1, 2)))
    labels = np.full_like(volume.labels[place], UNLABELLED)
    labels[inside] = volume.labels[place][inside]
    return Piece(part, place.start, _masked(volume, part, place, labels))


def _around(chosen: np.ndarray, volume: LabelledVolume) -> slice:
    more = int(np.clip(round(AROUND_NM / volume.voxel_nm[0]), LEAST_SECTIONS, 32))
    end = min(len(volume.labels), int(chosen[-1]) + 1 + more)
    return slice(max(0, int(chosen[0]) - more), end)


def _masked(volume: LabelledVolume, part: Part, place: slice, labels: np.ndarray) -> LabelledVolume:
    weights = volume.weights
    if weights is not None:
        weights = np.where(labels >= 0, weights[place], 0).astype(np.float32)
    return replace(
        volume,
        name=f"{volume.name} {part}",
        images=volume.images[place],
        labels=labels,
        weights=weights,
    )


def _extent(known: np.ndarray) -> int:
    found = np.flatnonzero(known)
    return int(found[-1] - found[0] + 1)


def _runs(found: np.ndarray) -> str:
    """Numbers as runs, such as ``0..2, 7``; every n-th as ``0, 5, ... 45``."""
    steps = np.diff(found)
    if len(found) > 3 and steps[0] > 1 and (steps == steps[0]).all():
        return f"{found[0]}, {found[1]}, ... {found[-1]}"
    runs = np.split(found, np.flatnonzero(steps > 1) + 1)
    texts = [f"{run[0]}..{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs]
    return ", ".join(texts if len(texts) <= 8 else [*texts[:4], "...", *texts[-3:]])
