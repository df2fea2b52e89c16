"""What rounds of active learning are made of: samples, a plan, records of a round."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from densejax.active.pool import Pool, Selection
from densejax.active.strategies import Strategy
from densejax.io import read_npz, write_npz
from densejax.typing import Array


@dataclass(frozen=True)
class Samples:
    """What there is to learn from.

    Attributes:
      images: [n, ...], uint8 pictures [n, y, x, c] or floating features [n, d].
      labels: [n] int32; of the held-out samples, those of others are never looked at.
      held_out: [n] bool, what the best parameters of a network are chosen by; never queried.
      test_images: [e, ...].
      test_labels: [e] int32.
      class_names: c names.
    """

    images: Array
    labels: Array
    held_out: Array
    test_images: Array
    test_labels: Array
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        held_out = np.asarray(self.held_out)
        sizes = {len(self.images), len(self.labels), len(held_out)}
        if len(sizes) > 1 or held_out.dtype != bool:
            raise ValueError(
                f"images [{len(self.images)}], labels [{len(self.labels)}] and held_out "
                f"{held_out.dtype} [{len(held_out)}] do not agree"
            )
        if not held_out.any():
            raise ValueError("no sample is held out; expected some to choose the best network by")


@dataclass(frozen=True)
class Plan:
    """How many rounds of what.

    Attributes:
      strategies: by name.
      seeds: of which each strategy has a run of its own.
      initial: samples labelled before the first round.
      budget: samples queried after each round.
      rounds: trainings.
      start: how the initial set of a seed is drawn; all its strategies share it.
      patience: epochs without a better evaluation after which a network ends; 0 never.
      evaluate_every: epochs between evaluations.
      checkpoint_every: epochs between checkpoints, a multiple of ``evaluate_every``.
      keep: whether a round's best parameters stay on disk when the next samples are chosen.
      base_seed: from which everything is drawn.
      warm_start: whether a round's networks start from those of the round before (Roels & Saeys
        2019), or afresh.
    """

    strategies: Mapping[str, Strategy]
    seeds: Sequence[int]
    initial: int
    budget: int
    rounds: int
    start: Literal["random", "balanced"] = "random"
    patience: int = 0
    evaluate_every: int = 1
    checkpoint_every: int = 10
    keep: bool = True
    base_seed: int = 0
    warm_start: bool = False

    def __post_init__(self) -> None:
        counts = ("initial", "budget", "rounds", "evaluate_every", "checkpoint_every")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if not self.strategies or not self.seeds:
            raise ValueError("a plan needs at least one strategy and one seed")
        if self.start not in ("random", "balanced"):
            raise ValueError(f"start {self.start!r}: expected random or balanced")

    @property
    def largest(self) -> int:
        """Samples labelled in the last round."""
        return self.initial + self.budget * (self.rounds - 1)


@dataclass(frozen=True)
class Labelled:
    """One round's labelled sets; k rows, one for each strategy and seed that takes part.

    A subject adds columns of what its networks came to; the first of them is the score.

    Attributes:
      names: [k] str, strategies.
      seeds: [k] int64.
      sets: [k, l] int64, labelled samples in the order of their labelling.
      labels: [k, l] int32, theirs; 0 where a label is a mask.
    """

    names: np.ndarray
    seeds: np.ndarray
    sets: np.ndarray
    labels: np.ndarray

    @property
    def scores(self) -> np.ndarray:
        """[k] float64, the first column of the subject; nan for a network that failed."""
        return np.asarray(getattr(self, fields(self)[4].name), np.float64)

    @property
    def alive(self) -> np.ndarray:
        """[k] bool, whether a network has a score."""
        return np.isfinite(self.scores)


@dataclass(frozen=True)
class Trained(Labelled):
    """One round's classifiers.

    Attributes:
      accuracy: [k] float64, top 1 on the test set; nan for a network that failed.
      top5: [k] float64, the true class among the five largest logits (all, below five classes).
      class_accuracy: [k, c] float64, of each true class; nan where the test set has none.
      validation: [k] float64, the best accuracy on the held-out samples.
      best_step: [k] int64, when.
      steps: [k] int64, how many were made.
    """

    accuracy: np.ndarray
    top5: np.ndarray
    class_accuracy: np.ndarray
    validation: np.ndarray
    best_step: np.ndarray
    steps: np.ndarray

    @property
    def class_counts(self) -> np.ndarray:
        """[k, c] int64, labelled samples of each class."""
        classes = self.class_accuracy.shape[1]
        rows = [np.bincount(row, minlength=classes) for row in self.labels]
        return np.stack(rows)


Record = TypeVar("Record", bound=Labelled)
Stored = TypeVar("Stored")


@dataclass(frozen=True)
class Query:
    """What is to be labelled next; a row for each of the round's networks that did not fail.

    Attributes:
      names: [k'] str.
      seeds: [k'] int64.
      indices: [k', b] int64, in the order of the query.
      scores: [k', b] float32, the strategy's.
      predicted: [k', b] int32, the network's class; -1 for a strategy that does not look.
    """

    names: np.ndarray
    seeds: np.ndarray
    indices: np.ndarray
    scores: np.ndarray
    predicted: np.ndarray


def round_folder(workdir: Path, number: int) -> Path:
    """Where a round of a run is."""
    return workdir / "rounds" / f"{number:02d}"


def write_record(record: Labelled | Query, path: Path) -> None:
    """Write a record as ``.npz``, whole or not at all."""
    arrays = {field.name: getattr(record, field.name) for field in fields(record)}
    write_npz(path, arrays, durable=True)


def read_record(kind: type[Stored], path: Path) -> Stored | None:
    """A record that ``write_record`` wrote, or None where there is none."""
    return kind(**read_npz(path)) if path.exists() else None


def read_rounds(folder: Path, kind: type[Record]) -> list[Record]:
    """The rounds that have ended in a run's folder, the first first.

    Args:
      folder: of the run.
      kind: of record, such as ``Trained``.

    Raises:
      FileNotFoundError: there is none.
    """
    found: list[Record] = []
    while (one := read_record(kind, round_folder(folder, len(found)) / "trained.npz")) is not None:
        found.append(one)
    if not found:
        raise FileNotFoundError(f"{folder}: no round of active learning has ended in it")
    return found


def together(runs: Sequence[Sequence[Record]]) -> list[Record]:
    """Runs of other seeds as one: the rounds that all of them have.

    Raises:
      ValueError: a seed is in two runs, or a round is larger in one than in another.
    """
    found: list[Record] = []
    for rounds in zip(*runs, strict=False):
        seeds, counts = np.unique(
            np.concatenate([np.unique(one.seeds) for one in rounds]), return_counts=True
        )
        if counts.max() > 1:
            raise ValueError(f"seeds {seeds[counts > 1].tolist()} are in more than one run")
        sizes = sorted({one.sets.shape[1] for one in rounds})
        if len(sizes) > 1:
            raise ValueError(f"round {len(found)} has {sizes} labelled samples in different runs")
        kind = type(rounds[0])
        names = [field.name for field in fields(kind)]
        arrays = {n: np.concatenate([getattr(one, n) for one in rounds]) for n in names}
        found.append(kind(**arrays))
    return found


def check_selection(chosen: Selection, pool: Pool, budget: int, name: str) -> None:
    """Refuse what a strategy from outside must not ask for.

    Args:
      chosen: by the strategy.
      pool: from which.
      budget: how many it was to choose.
      name: of the strategy.

    Raises:
      ValueError: too few or too many, one twice, or one that is not available.
    """
    indices = np.asarray(chosen.indices)
    whole = len(indices) == budget == len(np.unique(indices))
    if not whole or not pool.available[indices].all():
        raise ValueError(
            f"strategy {name} chose {len(indices)} samples, {len(np.unique(indices))} different, "
            f"{int(pool.available[indices].sum())} available; expected {budget}"
        )
