"""What rounds of active learning came to: tables, statistics, pictures."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from densejax.active.rounds import curves
from densejax.active.rounds.records import Trained
from densejax.io import write_csv, write_json
from densejax.stats import paired_tests, student_mean

REFERENCE = "random"


@dataclass(frozen=True)
class Results:
    """All rounds as arrays; s strategies, k seeds, t rounds, c classes.

    Attributes:
      strategies: s names.
      seeds: k numbers.
      labelled: [t] int64, samples labelled in each round.
      accuracy: [s, k, t] float64 on the test set; nan where a network failed or was not trained.
      top5: [s, k, t] float64.
      class_accuracy: [s, k, t, c] float64.
      class_counts: [s, k, t, c] float64, labelled samples of each class; nan as the accuracy.
      class_names: c names.
    """

    strategies: tuple[str, ...]
    seeds: tuple[int, ...]
    labelled: np.ndarray
    accuracy: np.ndarray
    top5: np.ndarray
    class_accuracy: np.ndarray
    class_counts: np.ndarray
    class_names: tuple[str, ...]

    @property
    def failed(self) -> int:
        """Runs of a strategy and seed that did not reach the end."""
        return int(np.isnan(self.accuracy[..., -1]).sum())

    @property
    def imbalance(self) -> np.ndarray:
        """[s, k, t]: ``curves.imbalance_ratio`` of the labelled samples; nan where untrained."""
        return curves.imbalance_ratio(np.nan_to_num(self.class_counts))

    @property
    def entropy(self) -> np.ndarray:
        """[s, k, t]: ``curves.class_entropy`` of the labelled samples, in nats; nan likewise."""
        return curves.class_entropy(np.nan_to_num(self.class_counts))


def collect(rounds: Sequence[Trained], class_names: Sequence[str]) -> Results:
    """Rounds in order, as arrays."""
    names = tuple(dict.fromkeys(rounds[0].names.tolist()))
    seeds = tuple(dict.fromkeys(rounds[0].seeds.tolist()))
    shape = (len(names), len(seeds), len(rounds))
    arrays = {name: np.full(shape, np.nan) for name in ("accuracy", "top5")}
    more = (*shape, len(class_names))
    arrays |= {name: np.full(more, np.nan) for name in ("class_accuracy", "class_counts")}
    for t, one in enumerate(rounds):
        for place, (name, seed) in enumerate(zip(one.names.tolist(), one.seeds, strict=True)):
            at = (names.index(name), seeds.index(int(seed)), t)
            for field, array in arrays.items():
                array[at] = getattr(one, field)[place]
    labelled = np.array([one.sets.shape[1] for one in rounds], np.int64)
    return Results(names, seeds, labelled, **arrays, class_names=tuple(class_names))


def published_curves(path: str | Path, names: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """Curves of a paper from a CSV file ``strategy,1000,2000,...``.

    Args:
      path: the file; scores are fractions, or percents where one is above 1.
      names: of our strategies; others of the file are left out. "Balanced Random Sampler" is
        ``balanced_random``, "Partitioned Coreset Sampler" ``partitioned_core_set``.

    Returns:
      (labelled [t], scores [t]) by name.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it has no such table.
    """
    with Path(path).open(newline="") as file:
        rows = list(csv.reader(file))
    found: dict[str, tuple[Any, Any]] = {}
    try:
        labelled = np.array(rows[0][1:], float)
        for row in rows[1:]:
            name = row[0].lower().replace(" sampler", "").strip().replace(" ", "_")
            name = name.replace("coreset", "core_set")
            scores = np.array([float(cell) if cell else np.nan for cell in row[1:]])
            if name in names:
                found[name] = labelled, scores / (100 if np.nanmax(scores) > 1 else 1)
    except (IndexError, ValueError) as error:
        raise ValueError(
            f"{path}: expected strategy,1000,2000,... and numbers ({error})"
        ) from error
    return found


def statistics(results: Results) -> dict[str, Any]:
    """Areas under the curves, break-even points and paired tests against random.

    Seeds that failed are left out, for a comparison of both strategies. The normalised area is
    between the lowest and the highest mean accuracy of all strategies here; Chen's highest, that
    of all labels, is not known.
    """
    means = _mean(results.accuracy, axis=1)
    lowest, highest = float(np.nanmin(means)), float(np.nanmax(means))
    found: dict[str, Any] = {"labelled": results.labelled.tolist(), "strategies": {}}
    areas = {}
    for name, scores in zip(results.strategies, results.accuracy, strict=True):
        whole = np.isfinite(scores).all(axis=1)
        area = np.full(len(scores), np.nan)
        area[whole] = curves.alc(results.labelled, scores[whole])
        areas[name] = area
        entry: dict[str, Any] = {"alc": asdict(student_mean(area))}
        if len(results.labelled) > 1 and whole.any() and highest > lowest:
            normalised = curves.normalised_alc(
                results.labelled, scores[whole], lowest=lowest, highest=highest
            )
            entry["normalised_alc"] = asdict(student_mean(normalised))
        found["strategies"][name] = entry
    if REFERENCE in results.strategies:
        _against(results, areas, found["strategies"])
    return found


def _against(results: Results, areas: dict[str, np.ndarray], entries: dict[str, Any]) -> None:
    base = results.accuracy[results.strategies.index(REFERENCE)]
    others = {name: area for name, area in areas.items() if name != REFERENCE}
    for name, test in paired_tests(others, areas[REFERENCE]).items():
        scores = results.accuracy[results.strategies.index(name)]
        both = np.isfinite(scores).all(axis=1) & np.isfinite(base).all(axis=1)
        entries[name]["against_random"] = asdict(test)
        if both.any():
            point = curves.break_even_interval(results.labelled, scores[both], base[both])
            entries[name]["break_even"] = asdict(point)


def summarise_rounds(
    results: Results,
    folder: Path,
    *,
    title: str = "",
    published: Mapping[str, tuple[Any, Any]] | None = None,
) -> list[Path]:
    """Write tables, statistics and pictures, and print the table.

    Args:
      results: all rounds.
      folder: ``summary`` of the run; what is there is replaced.
      title: of the pictures; says which data it is.
      published: curves of a paper, drawn faintly.

    Returns:
      ``rounds.csv`` (a row a network), ``table.csv`` (a row a strategy and round),
      ``summary.json``, and the pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = statistics(results)
    paths = [folder / name for name in ("rounds.csv", "table.csv", "summary.json")]
    table = _table(results)
    for path, rows in ((paths[0], _rows(results)), (paths[1], table)):
        write_csv(path, rows[0], [row.values() for row in rows], form=".6g")
    write_json(paths[2], _plain(numbers))
    paths += _draw(results, folder, title, published)
    _print(table, numbers)
    return paths


def _rows(results: Results) -> list[dict[str, Any]]:
    rows = []
    imbalance, entropy = results.imbalance, results.entropy
    for s, k, t in np.ndindex(results.accuracy.shape):
        if np.isnan(results.class_counts[s, k, t]).all():
            continue
        rows.append(
            {
                "strategy": results.strategies[s],
                "seed": results.seeds[k],
                "round": t,
                "labelled": int(results.labelled[t]),
                "accuracy": results.accuracy[s, k, t],
                "top5": results.top5[s, k, t],
                "imbalance_ratio": imbalance[s, k, t],
                "class_entropy": entropy[s, k, t],
            }
            | {
                f"{what}_{name}": values[s, k, t, c]
                for what, values in (
                    ("labelled", results.class_counts),
                    ("accuracy", results.class_accuracy),
                )
                for c, name in enumerate(results.class_names)
                if len(results.class_names) <= 100
            }
        )
    return rows


def _table(results: Results) -> list[dict[str, Any]]:
    rows = []
    measures = {
        "accuracy": results.accuracy,
        "imbalance_ratio": results.imbalance,
        "class_entropy": results.entropy,
    }
    for t, labelled in enumerate(results.labelled.tolist()):
        for s, name in enumerate(results.strategies):
            row: dict[str, Any] = {"labelled": labelled, "strategy": name}
            row["seeds"] = int(np.isfinite(results.accuracy[s, :, t]).sum())
            for measure, values in measures.items():
                one = values[s, :, t]
                # A class without any sample: no mean is finite, and none is shown.
                broken = measure == "imbalance_ratio" and np.isinf(one).any()
                interval = student_mean([] if broken else one)
                row[measure] = math.inf if broken else interval.value
                row[f"{measure}_low"], row[f"{measure}_high"] = interval.low, interval.high
            rows.append(row)
    return rows


def _draw(
    results: Results, folder: Path, title: str, published: Mapping[str, tuple[Any, Any]] | None
) -> list[Path]:
    from densejax.plots.curves import class_histograms, round_curves

    table = _table(results)
    kinds = {
        "accuracy": ("test accuracy", False),
        "imbalance_ratio": ("largest / smallest class of the labelled samples", True),
        "class_entropy": ("entropy of the labelled classes (nats)", False),
    }
    paths = []
    for measure, (label, logarithmic) in kinds.items():
        columns = {
            name: [[r[f"{measure}{end}"] for r in table if r["strategy"] == name] for end in _ENDS]
            for name in results.strategies
        }
        paths.append(folder / f"{measure}.png")
        round_curves(
            results.labelled,
            {name: column[0] for name, column in columns.items()},
            intervals={name: (column[1], column[2]) for name, column in columns.items()},
            published=published if measure == "accuracy" else None,
            label=label,
            title=title,
            logarithmic=logarithmic,
            path=paths[-1],
        )
    last = np.nan_to_num(_mean(results.class_counts[:, :, -1], axis=1))
    paths.append(folder / "classes.png")
    class_histograms(
        dict(zip(results.strategies, last, strict=True)),
        class_names=results.class_names,
        title=title,
        path=paths[-1],
    )
    return paths


_ENDS = ("", "_low", "_high")


def _print(table: list[dict[str, Any]], numbers: Mapping[str, Any]) -> None:
    print(
        f"{'labelled':>9}  {'strategy':<24}{'accuracy (95 %)':<26}{'imbalance':>10}{'entropy':>9}"
    )
    for row in table:
        spread = ""
        if math.isfinite(row["accuracy_low"]):
            spread = f" ({row['accuracy_low']:.4f} to {row['accuracy_high']:.4f})"
        accuracy = f"{row['accuracy']:.4f}{spread}"
        print(
            f"{row['labelled']:>9,}  {row['strategy']:<24}{accuracy:<26}"
            f"{row['imbalance_ratio']:>10.3g}{row['class_entropy']:>9.4f}"
        )
    for name, entry in numbers["strategies"].items():
        line = f"{name:<24}ALC {entry['alc']['value']:.4f}"
        if "against_random" in entry:
            test = entry["against_random"]
            line += f", {test['difference']['value']:+.4f} to random (p {test['p_holm']:.3g}, Holm)"
        if "break_even" in entry:
            point = entry["break_even"]
            line += f", break-even {_count(point['value'])}"
            line += f" ({_count(point['low'])} to {_count(point['high'])})"
        print(line)


def _mean(values: np.ndarray, *, axis: int) -> np.ndarray:
    """Mean of what is there; nan where nothing is."""
    there = np.isfinite(values)
    counts = there.sum(axis=axis)
    total = np.where(there, values, 0).sum(axis=axis)
    return np.where(counts > 0, total / np.maximum(counts, 1), np.nan)


def _count(value: float) -> str:
    return "never" if math.isinf(value) else "always" if value == 0 else f"{value:,.0f}"


def _plain(value: Any) -> Any:
    """JSON has neither infinity nor nan: text and null stand for them."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "infinity"
    return value
