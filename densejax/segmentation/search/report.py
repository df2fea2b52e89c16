"""The end of a search: architectures ranked, ensembles of the best of them, what mattered."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from densejax import metrics
from densejax.inference.sliding_window import Prediction
from densejax.io import write_csv, write_json
from densejax.plots.curves import top_k_curve
from densejax.plots.scores import scores_over_settings
from densejax.segmentation.report import (
    Judged,
    draw_planes,
    judge,
    mean_ious,
    write_volumes,
)
from densejax.segmentation.search.architectures import Architecture
from densejax.segmentation.sources import Parts
from densejax.training.folders import Outcome, rank_members


@dataclass(frozen=True)
class Entry:
    """One architecture of a search.

    Attributes:
      seed: from which it was drawn.
      architecture: what was drawn.
      parameters: their number.
      gflop: of one forward pass over its window.
      outcome: how its training ended.
    """

    seed: int
    architecture: Architecture
    parameters: int
    gflop: float
    outcome: Outcome


@dataclass(frozen=True)
class Summary:
    """What a search came to; ``ranked`` are the members of the ensembles, best first."""

    entries: tuple[Entry, ...]
    ranked: tuple[Entry, ...]
    evaluation: Judged | None
    test: Judged | None
    files: tuple[Path, ...]

    @property
    def failed(self) -> int:
        """Architectures that were not trained to their end."""
        return sum(entry.outcome.status != "DONE" for entry in self.entries)


def best_of(entries: Sequence[Entry], most: int) -> list[Entry]:
    """The best architectures that are trained, by their score, at most so many."""
    done = [entry for entry in entries if entry.outcome.status == "DONE"]
    return [done[index] for index in rank_members([e.outcome.best_score for e in done])][:most]


def summarise_search(
    entries: Sequence[Entry],
    parts: Parts,
    ranked: Sequence[Entry],
    predictions: Sequence[Prediction],
    *,
    folder: Path,
) -> Summary:
    """Score the best architectures and their ensembles, write it all.

    Source: Emam (2022), chapter 4: ensembles of the best 1 to 15 architectures by the evaluation
    volume's adjusted Rand index.

    Args:
      entries: of all architectures.
      parts: the search's volumes.
      ranked: members of the ensembles, best first (``best_of``).
      predictions: of the evaluation and the test volume, by these.
      folder: results go there.

    Returns:
      The summary; without ensembles where nothing was trained to its end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [_write_architectures(folder / "architectures.csv", entries)]
    if not ranked:
        print(f"no architecture was trained to its end; see {files[0]}")
        return Summary(tuple(entries), (), None, None, tuple(files))
    done = [entry for entry in entries if entry.outcome.status == "DONE"]
    judged = [
        judge(volume, prediction, parts.organelles)
        for volume, prediction in zip((parts.evaluation, parts.test), predictions, strict=True)
    ]
    summary = Summary(tuple(entries), tuple(ranked), judged[0], judged[1], ())
    correlations = _correlations(done)
    files += [_write_top_k(folder / "top_k.csv", summary), *write_volumes(folder, judged[1])]
    files.append(folder / "summary.json")
    write_json(files[-1], _numbers(summary, correlations))
    files += _draw(folder, summary, done, correlations)
    summary = Summary(tuple(entries), tuple(ranked), judged[0], judged[1], tuple(files))
    _print(summary, correlations)
    return summary


def _correlations(done: Sequence[Entry]) -> dict[str, float]:
    """Spearman's rank correlation of each setting with the score; nan where either is constant."""
    scores = np.array([entry.outcome.best_score for entry in done])
    columns = _columns(done)
    found = {}
    for name, column in columns.items():
        varies = len(done) > 2 and np.ptp(column) > 0 and np.ptp(scores) > 0
        found[name] = float(spearmanr(column, scores).statistic) if varies else float("nan")
    return found


def _columns(entries: Sequence[Entry]) -> dict[str, np.ndarray]:
    rows = [
        entry.architecture.settings() | {"parameters": entry.parameters, "gflop": entry.gflop}
        for entry in entries
    ]
    return {name: np.array([row[name] for row in rows], float) for name in rows[0]}


def _write_architectures(path: Path, entries: Sequence[Entry]) -> Path:
    names = ["seed", "status", "adjusted_rand", "best_step", "parameters", "gflop"]
    drawn = ["width", "encoder", "bottom", "decoder", "cubes", "window", "learning_rate", "l2"]
    rows = []
    for entry in sorted(entries, key=lambda e: (-e.outcome.best_score, e.seed)):
        o, a = entry.outcome, entry.architecture
        score = f"{o.best_score:.6f}" if np.isfinite(o.best_score) else ""
        cells = [
            "-".join(map(str, value)) if isinstance(value, tuple) else f"{value:.6g}"
            for value in (getattr(a, name) for name in drawn)
        ]
        counts = [o.best_step, entry.parameters, f"{entry.gflop:.4g}"]
        rows.append([entry.seed, o.status, score, *counts, *cells, o.reason])
    return write_csv(path, [*names, *drawn, "reason"], rows)


def _write_top_k(path: Path, summary: Summary) -> Path:
    assert summary.evaluation is not None and summary.test is not None
    measures = {"adjusted_rand": metrics.adjusted_rand, "miou": mean_ious}
    columns = {
        f"{part}_{name}_{what}": np.asarray(measure(getattr(judged, attribute)))
        for part, judged in (("evaluation", summary.evaluation), ("test", summary.test))
        for name, measure in measures.items()
        for what, attribute in (("alone", "members"), ("top_k", "ensembles"))
    }
    seeds = [entry.seed for entry in summary.ranked]
    rows = zip(range(1, len(seeds) + 1), seeds, *columns.values(), strict=True)
    return write_csv(path, ["rank", "seed", *columns], rows, form=".6f")


def _rands(judged: Judged) -> tuple[np.ndarray, np.ndarray]:
    """Adjusted Rand indices of the members alone and of the ensembles, [k] each."""
    alone, together = (metrics.adjusted_rand(t) for t in (judged.members, judged.ensembles))
    return np.asarray(alone), np.asarray(together)


def _numbers(summary: Summary, correlations: dict[str, float]) -> dict[str, Any]:
    """The summary's numbers; the ensemble's size is chosen on the evaluation volume."""
    assert summary.evaluation is not None and summary.test is not None
    chosen = int(np.argmax(_rands(summary.evaluation)[1]))
    numbers: dict[str, Any] = {
        "architectures": len(summary.entries),
        "failed": summary.failed,
        "top_k": chosen + 1,
        "rank_correlation_with_adjusted_rand": {
            name: value if np.isfinite(value) else None for name, value in correlations.items()
        },
    }
    for part in ("evaluation", "test"):
        judged: Judged = getattr(summary, part)
        alone, together = _rands(judged)
        numbers[part] = {
            "adjusted_rand_best_single": float(alone[0]),
            "adjusted_rand_top_k": float(together[chosen]),
            "miou_best_single": float(mean_ious(judged.members)[0]),
            "miou_top_k": float(mean_ious(judged.ensembles)[chosen]),
        }
    return numbers


def _draw(
    folder: Path, summary: Summary, done: Sequence[Entry], correlations: dict[str, float]
) -> list[Path]:
    assert summary.evaluation is not None and summary.test is not None
    chosen = int(np.argmax(_rands(summary.evaluation)[1]))
    paths = [folder / "settings.png"]
    scores_over_settings(
        {name.replace("_", " "): column for name, column in _columns(done).items()},
        np.array([entry.outcome.best_score for entry in done]),
        correlations={name.replace("_", " "): v for name, v in correlations.items()},
        label="adjusted Rand",
        path=paths[0],
    )
    for part in ("evaluation", "test"):
        alone, together = _rands(getattr(summary, part))
        paths.append(folder / f"top_k_{part}.png")
        top_k_curve(
            np.arange(1, len(together) + 1),
            together,
            best_single=float(alone[0]),
            label=f"adjusted Rand, {part}",
            path=paths[-1],
        )
    paths.append(draw_planes(summary.test, chosen, folder / "orthoslices.png"))
    return paths


def _print(summary: Summary, correlations: dict[str, float]) -> None:
    assert summary.evaluation is not None and summary.test is not None
    print(f"\n{'rank':>4} {'seed':>5} {'evaluation':>11} {'test':>7}  adjusted Rand; architecture")
    columns = zip(_rands(summary.evaluation)[0], _rands(summary.test)[0], strict=True)
    for rank, (entry, (low, high)) in enumerate(zip(summary.ranked, columns, strict=True), 1):
        print(f"{rank:>4} {entry.seed:>5} {low:>11.4f} {high:>7.4f}  {entry.architecture}")
    numbers = _numbers(summary, correlations)
    for part in ("evaluation", "test"):
        scores = numbers[part]
        print(
            f"{part:<11} adjusted Rand: best single {scores['adjusted_rand_best_single']:.4f}, "
            f"Top-{numbers['top_k']} {scores['adjusted_rand_top_k']:.4f}; MIoU "
            f"{scores['miou_best_single']:.4f}, {scores['miou_top_k']:.4f}"
        )
    if summary.failed:
        print(f"{summary.failed} of {len(summary.entries)} architectures failed")
    print("\nfiles")
    for path in summary.files:
        print(f"  {path}")
