"""Populations that are compared: the test accuracy of each, its interval, a table and a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from densejax.io import write_csv, write_json
from densejax.plots.scores import strips
from densejax.stats import bootstrap_median
from densejax.training.folders import Member, MemberFolder, Outcome, read_metrics

WHAT = ("last", "best", "train")


@dataclass(frozen=True)
class Population:
    """The seeds of one way to train.

    Attributes:
      name: of the way.
      outcomes: of all seeds.
      last: [n] float64, accuracy after the last step, of the seeds that are done.
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
        """Seeds that diverged: their loss or parameters became not-a-number or infinite."""
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
      ValueError: a member that is done has no evaluation.
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


def finished(workdir: Path, members: Sequence[Member]) -> list[Outcome]:
    """Members of a sweep that are done, stopped early or failed, by its folder; in their order."""
    found = [MemberFolder(workdir, member).outcome() for member in members]
    return [outcome for outcome in found if outcome is not None]


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
    files = [folder / "accuracy.csv", folder / "populations.json"]
    rows = [_row(p, (notes or {}).get(p.name, "")) for p in populations]
    write_csv(files[0], rows[0], [row.values() for row in rows])
    numbers = {p.name: {what: getattr(p, what).tolist() for what in WHAT} for p in populations}
    write_json(files[1], numbers)
    _print(rows)
    scores = {p.name: p.last for p in populations if len(p.last)}
    if scores:
        edges = {
            r["name"]: (float(r["last_low"]), float(r["last_high"])) for r in rows if r["last_low"]
        }
        path, label = folder / "accuracy.png", "accuracy after the last step"
        strips(scores, intervals=edges, label=label, title=title, path=path)
        files.append(path)
    return Comparison(tuple(populations), tuple(files))


def _row(p: Population, note: str) -> dict[str, str]:
    """Cells of the table; medians and their intervals are empty where every member failed."""
    row = {"name": p.name, "seeds": str(len(p.outcomes)), "failed": str(p.failed)}
    for what in WHAT:
        found = bootstrap_median(getattr(p, what)) if len(p.last) else None
        for edge, name in (("median", "value"), ("low", "low"), ("high", "high")):
            row[f"{what}_{edge}"] = f"{getattr(found, name):.4f}" if found else ""
    return row | {"note": note}


def _print(rows: Sequence[Mapping[str, str]]) -> None:
    width = max(len(row["name"]) for row in rows)
    print(f"{'':<{width}}  seeds  failed  {'last':<24}  {'best':<24}  {'train':<24}")
    for row in rows:
        cells = [
            f"{row[f'{what}_median']} [{row[f'{what}_low']}, {row[f'{what}_high']}]"
            if row[f"{what}_median"]
            else "-"
            for what in WHAT
        ]
        shown = "  ".join(f"{cell:<24}" for cell in cells)
        print(
            f"{row['name']:<{width}}  {row['seeds']:>5}  {row['failed']:>6}  {shown}  {row['note']}"
        )
