"""Several annotators and predictions compared with each other (figure 4.9 of the thesis).

People who label the same cell agree as little as this says; a network that agrees with each of them
about as well labels as one of them would.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from densejax import metrics
from densejax.segmentation.evaluation.streaming import LabelCounts
from densejax.segmentation.label_volumes import Labelling, open_labelling


@dataclass(frozen=True)
class Agreement:
    """How n labellings agree, two by two; each pair over the voxels that both have labelled.

    Attributes:
      names: of the labellings.
      scores: [n, n] float64 by name of the score: ``miou_all``, ``miou_organelles`` (where there
        are organelles), ``accuracy`` and ``adjusted_rand``; symmetric, 1 on the diagonal.
      class_iou: [n, n, c] float64, nan for a class that neither has.
      fractions: [n, c] float64, the part of the cell that each class takes.
      confusions: [n, n, c, c] int64, rows the first.
    """

    names: tuple[str, ...]
    scores: dict[str, np.ndarray]
    class_iou: np.ndarray
    fractions: np.ndarray
    confusions: np.ndarray

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Every two labellings, the earlier one first."""
        return list(itertools.combinations(range(len(self.names)), 2))


def agreement(counts: LabelCounts, *, organelles: Sequence[int] = ()) -> Agreement:
    """Derive every pair's scores from the counts.

    Args:
      counts: of two or more labellings.
      organelles: classes of MIoU(org); empty leaves that score out.
    """
    tables = counts.tables[..., :-1, :-1]
    scores = {
        "miou_all": metrics.mean_iou(tables),
        "accuracy": metrics.accuracy(tables),
        "adjusted_rand": metrics.adjusted_rand(tables),
    }
    if organelles:
        scores["miou_organelles"] = metrics.mean_iou(tables, classes=organelles)
    return Agreement(
        counts.names,
        {name: np.asarray(values, float) for name, values in scores.items()},
        np.asarray(metrics.iou(tables), float),
        np.array([counts.fractions(i) for i in range(len(counts.names))]),
        tables,
    )


def parse_pairwise(entries: Sequence[str]) -> list[tuple[str, str]]:
    """Names and paths from ``name:path`` entries, in their order.

    Raises:
      ValueError: an entry has no name or no path, or a name occurs twice or is taken.
    """
    found: list[tuple[str, str]] = []
    for entry in entries:
        name, colon, path = entry.partition(":")
        if not colon or not name.strip() or not path.strip() or path.startswith("//"):
            raise ValueError(f"--pairwise: {entry!r}; expected name:path")
        if name in {"labels", "prediction", *(n for n, _ in found)}:
            raise ValueError(f"--pairwise: the name {name!r} is taken; expected another")
        found.append((name.strip(), path.strip()))
    return found


def open_annotators(
    entries: Sequence[str],
    *,
    known: Sequence[Labelling],
    voxel_nm: Sequence[float] | None = None,
    unlabelled: int | None = None,
    values: Sequence[int] = (),
) -> list[Labelling]:
    """Open the labellings of ``--pairwise`` that are not those already known.

    A known one that is named again keeps its place and gets the new name.

    Args:
      entries: ``name:path``; a path as ``open_labelling`` takes it.
      known: the truth and the prediction.
      voxel_nm: voxel size in nm, (z, y, x), where a file states none.
      unlabelled: a value that does not count, in files that are no predictions.
      values: the value of each class in such files; empty where it is the class's number.

    Returns:
      The known ones, perhaps renamed, and the others behind them.

    Raises:
      FileNotFoundError: a path is not there.
      ValueError: as ``parse_pairwise`` and ``open_labelling``.
    """
    found = list(known)
    places = {_place(labelling.path): i for i, labelling in enumerate(known)}
    for name, path in parse_pairwise(entries):
        labelling = open_labelling(path, name=name, voxel_nm=voxel_nm)
        if labelling.prediction is None and labelling.unlabelled is None:
            labelling = open_labelling(
                path, name=name, voxel_nm=voxel_nm, unlabelled=unlabelled, values=values
            )
        place = places.get(_place(labelling.path))
        if place is None:
            found.append(labelling)
        else:
            found[place] = replace(found[place], name=name)
    return found


def _place(path: str) -> str:
    return str(Path(path).resolve())
