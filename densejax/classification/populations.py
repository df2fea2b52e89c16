"""Populations that are compared: the test accuracy of each, its interval, a table and a picture."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from densejax.ensembles.distributions import Interval, bootstrap_median
from densejax.plots.strips import strips
from densejax.training.folders import Outcome, read_metrics


@dataclass(frozen=True)
class Population:
    """The seeds of one way to train.

    Attributes:
      name: of the way.
      outcomes: of all seeds.
      last: [n] float64, accuracy after the last step, of the seeds that ended well.
      best: [n] float64, highest accuracy of each at any evaluation. Where the evaluation set is the
        test set (as in the thesis' code), choosing by it flatters; ``last`` chooses nothing.
      train: [n] float64, accuracy on the batches of the last interval.
    """

    name: str
    outcomes: tuple[Outcome, ...]
    last: np.ndarray
    best: np.ndarray
    train: np.ndarray

    @property
    def failed(self) -> int:
        """Seeds whose loss or parameters were no numbers any more."""
        return len(self.outcomes) - len(self.last)


@dataclass(frozen=True)
class Comparison:
    """What an experiment returns: populations, in the order asked for, and files."""

    populations: tuple[Population, ...]
    files: tuple[Path, ...]

    @property
    def failed(self) -> int:
        """Members that failed, of all populations."""
        return sum(population.failed for population in self.populations)


def read_population(name: str, outcomes: Sequence[Outcome]) -> Population:
    """The accuracies of a sweep's members, from their files.

    Args:
      name: of the population.
      outcomes: of its members, of a task that evaluates ``accuracy``.

    Raises:
      ValueError: a member that ended well has no evaluation.
    """
    last, best, train = [], [], []
    for outcome in outcomes:
        if outcome.status != "DONE":
            continue
        rows = read_metrics(outcome.folder / "metrics.jsonl")
        found = [row["accuracy"] for row in rows if "accuracy" in row]
        if not found:
            raise ValueError(f"{outcome.folder}: no evaluation in metrics.jsonl; expected one")
        last.append(found[-1])
        best.append(max(found))
        train.append(rows[-1]["train_accuracy"])
    columns = (np.array(values, np.float64) for values in (last, best, train))
    return Population(name, tuple(outcomes), *columns)


def compare(
    populations: Sequence[Population],
    folder: Path,
    *,
    title: str,
    notes: Mapping[str, str] | None = None,
) -> Comparison:
    """Print the table of populations; write it, all single numbers, and a picture.

    Args:
      populations: at least one.
      folder: of the files, made if absent.
      title: of the picture.
      notes: a few words about a population, by name, for the table's last column.

    Returns:
      The populations with the files: ``accuracy.csv``, ``populations.json``, ``accuracy.png`` (not
      where every member failed).
    """
    folder.mkdir(parents=True, exist_ok=True)
    intervals = {
        p.name: {what: bootstrap_median(getattr(p, what)) for what in ("last", "best", "train")}
        for p in populations
        if len(p.last)
    }
    files = [folder / "accuracy.csv", folder / "populations.json"]
    width = max(len(p.name) for p in populations)
    print(f"{'':<{width}}  seeds  failed  {'last':>22}  {'best':>22}   train")
    with files[0].open("w", newline="") as file:
        writer = csv.writer(file)
        header = ["name", "seeds", "failed"]
        header += [
            f"{what}_{edge}" for what in ("last", "best") for edge in ("median", "low", "high")
        ]
        writer.writerow([*header, "train_median", "note"])
        for p in populations:
            found, note = intervals.get(p.name), (notes or {}).get(p.name, "")
            cells = [""] * 7
            if found:
                edges = [asdict(found[what]) for what in ("last", "best")]
                cells = [f"{e[k]:.4f}" for e in edges for k in ("median", "low", "high")]
                cells.append(f"{found['train'].median:.4f}")
            writer.writerow([p.name, len(p.outcomes), p.failed, *cells, note])
            shown = [_shown(found[what]) if found else "-" for what in ("last", "best")]
            train = f"{found['train'].median:.3f}" if found else "-"
            print(
                f"{p.name:<{width}}  {len(p.outcomes):>5}  {p.failed:>6}  {shown[0]:>22}  "
                f"{shown[1]:>22}   {train:>5}  {note}"
            )
    files[1].write_text(
        json.dumps(
            {
                p.name: {w: getattr(p, w).tolist() for w in ("last", "best", "train")}
                for p in populations
            },
            indent=1,
        )
    )
    scores = {p.name: p.last for p in populations if len(p.last)}
    if scores:
        edges_of = {
            name: (found["last"].low, found["last"].high) for name, found in intervals.items()
        }
        path = folder / "accuracy.png"
        label = "accuracy after the last step"
        files.append(strips(scores, path, intervals=edges_of, label=label, title=title))
    return Comparison(tuple(populations), tuple(files))


def _shown(interval: Interval) -> str:
    return f"{interval.median:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
