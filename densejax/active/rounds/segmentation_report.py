"""What rounds of segmentation came to: curves over three costs, areas, break-even, agreement."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from densejax.active.rounds import curves
from densejax.active.rounds.records import Query, read_record, round_folder
from densejax.active.rounds.segmentation import Segmented
from densejax.data.units import Units
from densejax.io import (
    markdown,
    read_csv,
    read_json,
    read_npz,
    without_nan,
    write_csv,
    write_json,
    write_text,
)
from densejax.stats import Finding, findings_table, paired_tests, student_mean


@dataclass(frozen=True)
class Results:
    """All rounds as arrays; s strategies, k seeds, t rounds, c classes.

    Attributes:
      strategies: s names.
      seeds: k numbers.
      labelled: [t] int64, units.
      score: [s, k, t] float64; nan where a network failed or was not trained.
      class_iou: [s, k, t, c] float64.
      costs: by name [s, k, t] float64: ``labels``, ``distinct_pixels`` and ``boundary``.
      foreground: [s, k, t] float64, share of the labelled pixels that are not of class 0; of the
        units that the last query added (at the start: of all).
      score_name: of ``score``.
      class_names: c names.
      agreement: by round, (names of scores, [q, q] rank correlations, [q, q] overlaps).
      seconds: by round, of ``train``, ``look`` and ``choose``.
    """

    strategies: tuple[str, ...]
    seeds: tuple[int, ...]
    labelled: np.ndarray
    score: np.ndarray
    class_iou: np.ndarray
    costs: dict[str, np.ndarray]
    foreground: np.ndarray
    score_name: str
    class_names: tuple[str, ...]
    agreement: tuple[tuple[tuple[str, ...], np.ndarray, np.ndarray], ...] = ()
    seconds: tuple[dict[str, float], ...] = ()


COSTS = {
    "labels": "labelled units",
    "distinct_pixels": "distinct labelled pixels",
    "boundary": "length of the labelled masks' class borders (pixel edges)",
}
REFERENCE = "random"
BANDS = 4  # strategies up to which each has the band of its interval


def collect(
    rounds: Sequence[Segmented], units: Units, workdir: Path, *, score: str = "MIoU"
) -> Results:
    """Put rounds together; what a set of units costs follows from the units.

    Args:
      rounds: as ``Rounds.run`` returns them.
      units: the pool.
      workdir: of the run, for what the networks looked at.
      score: name of the score.
    """
    names = tuple(dict.fromkeys(rounds[0].names.tolist()))
    seeds = tuple(sorted(set(rounds[0].seeds.tolist())))
    labelled = np.array([one.sets.shape[1] for one in rounds])
    shape = (len(names), len(seeds), len(rounds))
    scores, foreground = np.full(shape, np.nan), np.full(shape, np.nan)
    class_iou = np.full((*shape, len(units.class_names)), np.nan)
    costs = {name: np.full(shape, np.nan) for name in COSTS}
    known: dict[bytes, tuple[float, float, float]] = {}
    for t, one in enumerate(rounds):
        before = labelled[t - 1] if t else 0
        for row, (name, seed) in enumerate(zip(one.names, one.seeds, strict=True)):
            at = names.index(str(name)), seeds.index(int(seed)), t
            own = np.sort(one.sets[row])
            if own.tobytes() not in known:
                counts = units.counts(one.sets[row, before:]).sum(axis=0)
                known[own.tobytes()] = (
                    units.distinct_pixels(own),
                    units.boundary_length(own),
                    1 - counts[0] / max(counts.sum(), 1),
                )
            pixels, border, share = known[own.tobytes()]
            scores[at], class_iou[at] = one.scores[row], one.class_iou[row]
            for cost, value in zip(COSTS, (labelled[t], pixels, border), strict=True):
                costs[cost][at] = value
            foreground[at] = share
    folders = [round_folder(workdir, t) for t in range(len(rounds))]
    return Results(
        names,
        seeds,
        labelled,
        scores,
        class_iou,
        costs,
        foreground,
        score,
        units.class_names,
        tuple(found for folder in folders if (found := agreement(folder)) is not None),
        tuple(read_json(f / "seconds.json") for f in folders if (f / "seconds.json").exists()),
    )


def agreement(folder: Path) -> tuple[tuple[str, ...], np.ndarray, np.ndarray] | None:
    """How alike the scores of a round order the pool, and what share of their queries is common.

    Of the networks of the round, the mean of: Spearman's rank correlation of every pair of scores
    over all units, and the overlap of the units that they would query first, as many as the round
    queried, in parts of both together (Jaccard).

    Args:
      folder: of a round.

    Returns:
      q names, [q, q] correlations (nan where a score is the same for all units), [q, q] overlaps;
      None where the round looked at no scores.
    """
    path = folder / "look.npz"
    query = read_record(Query, folder / "query.npz")
    if query is None or not path.exists():
        return None
    stored = read_npz(path)
    names = tuple(stored["scores"].tolist())
    values, budget = stored["values"], query.indices.shape[1]
    if not names:
        return None
    ranks = scipy.stats.rankdata(values, axis=-1)
    centred = ranks - ranks.mean(axis=-1, keepdims=True)
    norm = np.sqrt((centred**2).sum(axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        rank = np.einsum("kan,kbn->kab", centred, centred) / (norm[:, :, None] * norm[:, None])
    first = np.argsort(-values, axis=-1, kind="stable")[..., :budget]
    inside = np.zeros(values.shape, bool)
    np.put_along_axis(inside, first, True, axis=-1)
    both = np.einsum("kan,kbn->kab", inside.astype(np.float32), inside.astype(np.float32))
    overlap = (both / (2 * budget - both)).mean(axis=0)
    alive = np.isfinite(rank).all(axis=0)
    return names, np.where(alive, np.nan_to_num(rank).mean(axis=0), np.nan), overlap


def statistics(
    results: Results, *, lowest: float | None = None, highest: float | None = None
) -> dict[str, Any]:
    """Areas, break-even points on each cost, and paired tests against random, by strategy.

    Args:
      results: all rounds.
      lowest: score of the start, for the published form of the normalised area (Chen: 0.506); the
        mean of the first round where None.
      highest: with all labels (0.75 of images, 0.65 of crops); the best mean here where None.
    """
    means = _mean(results.score)
    low = float(np.nanmean(means[:, 0])) if lowest is None else lowest
    high = float(np.nanmax(means)) if highest is None else highest
    found: dict[str, Any] = {}
    areas = {}
    for name, scores in zip(results.strategies, results.score, strict=True):
        whole = np.isfinite(scores).all(axis=1)
        area = np.full(len(scores), np.nan)
        area[whole] = curves.alc(results.labelled, scores[whole])
        areas[name] = area
        entry: dict[str, Any] = {
            "alc": asdict(student_mean(area)),
            "last": asdict(student_mean(scores[:, -1])),
        }
        if len(results.labelled) > 1 and whole.any() and high > low:
            published = curves.normalised_alc(
                results.labelled, scores[whole], lowest=low, highest=high
            )
            entry["normalised_alc"] = asdict(student_mean(published))
        found[name] = entry
    if REFERENCE not in areas:
        return found
    at = results.strategies.index(REFERENCE)
    others = {name: area for name, area in areas.items() if name != REFERENCE}
    for name, test in paired_tests(others, areas[REFERENCE]).items():
        found[name]["against_random"] = asdict(test)
        own = results.strategies.index(name)
        both = np.isfinite(results.score[[own, at]]).all(axis=(0, 2))
        if len(results.labelled) < 2 or not both.any():
            continue
        for cost in COSTS:
            x, y, base = _on_one_axis(results, cost, own, at, both)
            found[name].setdefault("break_even", {})[cost] = asdict(
                curves.break_even_interval(x, y, base)
            )
    return found


def _on_one_axis(
    results: Results, cost: str, own: int, at: int, seeds: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of a strategy and of random at common costs: [t], [k, t], [k, t], linear between.

    The costs are the means of random's rounds, as far as both have come.
    """
    if cost == "labels":
        return results.labelled, results.score[own, seeds], results.score[at, seeds]
    prices = results.costs[cost]
    base, mine = prices[at, seeds], prices[own, seeds]
    low = max(base[:, 0].max(), mine[:, 0].max())
    high = min(base[:, -1].min(), mine[:, -1].min())
    x = np.linspace(low, max(high, low + 1), len(results.labelled))

    def read(prices: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return np.stack([np.interp(x, p, s) for p, s in zip(prices, scores, strict=True)])

    return x, read(mine, results.score[own, seeds]), read(base, results.score[at, seeds])


def published_areas(path: str | Path) -> dict[str, float]:
    """A paper's areas from a CSV file ``query,alc`` by its own names.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it has no such table.
    """
    rows = read_csv(path)
    if not rows or len(rows[0]) != 2 or "query" not in rows[0]:
        raise ValueError(f"{path}: expected the header query,alc and a row a query")
    return {row.pop("query"): float(next(iter(row.values()))) for row in map(dict, rows)}


def summarise(
    results: Results,
    folder: Path,
    *,
    title: str = "",
    published: str | None = None,
    findings: Sequence[Finding] = (),
) -> list[Path]:
    """Write tables, statistics and pictures of all rounds, and print the table.

    Args:
      results: all rounds.
      folder: ``summary`` of the run; what is there is replaced.
      title: of the pictures.
      published: CSV of a paper's areas, tabulated beside.
      findings: on claims, tabulated below.

    Returns:
      ``rounds.csv`` (a row a network), ``summary.json``, ``summary.md``, and the pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = statistics(results)
    paths = [folder / name for name in ("rounds.csv", "summary.json", "summary.md")]
    header = ["strategy", "seed", *COSTS, "foreground", "score", *results.class_names]
    write_csv(paths[0], header, _rows(results), form=".6g")
    write_json(
        paths[1],
        without_nan(
            {
                "score": results.score_name,
                "labelled": results.labelled.tolist(),
                "strategies": numbers,
                "seconds": list(results.seconds),
                "agreement": [
                    {"scores": names, "rank": rank.tolist(), "overlap": overlap.tolist()}
                    for names, rank, overlap in results.agreement
                ],
            }
        ),
    )
    table = _table(results, numbers)
    lines = markdown(_HEADER, table)
    if published:
        lines += ["", *markdown(["published", "alc"], [*published_areas(published).items()])]
    if findings:
        lines += ["", *findings_table(findings)]
    write_text(paths[2], f"# {title}\n\n" + "\n".join(lines) + "\n")
    for line in lines:
        print(line)
    return paths + _draw(results, folder, title, numbers)


_HEADER = (
    "strategy",
    "mean score over the curve (95 %)",
    "last round",
    "against random",
    "p (Holm)",
    "labels for random's level",
    "foreground of what it queried",
)


def _table(results: Results, numbers: dict[str, Any]) -> list[list[str]]:
    def text(entry: dict[str, float], form: str = ".3f") -> str:
        return f"{entry['value']:{form}} ({entry['low']:{form}} to {entry['high']:{form}})"

    found = []
    order = sorted(results.strategies, key=lambda name: -_value(numbers[name]["alc"]))
    for name in order:
        entry, at = numbers[name], results.strategies.index(name)
        test = entry.get("against_random")
        queried = results.foreground[at, :, 1:]
        point = entry.get("break_even", {}).get("labels")
        found.append(
            [
                name,
                text(entry["alc"]),
                f"{entry['last']['value']:.3f}",
                text(test["difference"], "+.3f") if test else "",
                f"{test['p_holm']:.3g}" if test else "",
                "" if point is None else text(point, ".0f"),
                f"{np.nanmean(queried):.3f}" if queried.size else "",
            ]
        )
    return found


def _value(entry: dict[str, float]) -> float:
    return entry["value"] if np.isfinite(entry["value"]) else -np.inf


def _rows(results: Results) -> list[list[Any]]:
    found = []
    for s, name in enumerate(results.strategies):
        for k, seed in enumerate(results.seeds):
            for t in range(len(results.labelled)):
                at = s, k, t
                if np.isnan(results.costs["labels"][at]):
                    continue
                costs = [results.costs[cost][at] for cost in COSTS]
                more = [results.foreground[at], results.score[at], *results.class_iou[at]]
                found.append([name, seed, *costs, *more])
    return found


def _draw(results: Results, folder: Path, title: str, numbers: dict[str, Any]) -> list[Path]:
    from densejax.plots.curves import round_curves

    means = dict(zip(results.strategies, _mean(results.score), strict=True))
    bands = None
    # More bands than a handful cover each other; the intervals are in the picture of differences.
    if len(means) <= BANDS:
        ends = {
            n: [student_mean(c) for c in s.T] for n, s in zip(means, results.score, strict=True)
        }
        bands = {n: ([e.low for e in one], [e.high for e in one]) for n, one in ends.items()}
    label = f"test {results.score_name}"
    paths = []
    for cost, x_label in COSTS.items():
        paths.append(folder / ("curves.png" if cost == "labels" else f"curves_{cost}.png"))
        prices = dict(zip(results.strategies, _mean(results.costs[cost]), strict=True))
        round_curves(
            prices,
            means,
            intervals=bands if cost == "labels" else None,
            reference=REFERENCE,
            label=label,
            x_label=x_label,
            title=title,
            path=paths[-1],
        )
    paths.append(folder / "foreground.png")
    round_curves(
        results.labelled,
        dict(zip(results.strategies, _mean(results.foreground), strict=True)),
        reference=REFERENCE,
        label=f"share of pixels not {results.class_names[0]}",
        x_label="labelled units after the query",
        title=title,
        path=paths[-1],
    )
    if any("against_random" in entry for entry in numbers.values()):
        paths.append(folder / "against_random.png")
        _differences_picture(results, numbers, title, paths[-1])
    if results.agreement:
        paths.append(folder / "agreement.png")
        _agreement_picture(results, title).savefig(paths[-1], dpi=200)
    return paths


def _differences_picture(results: Results, numbers: dict[str, Any], title: str, path: Path) -> None:
    """Each strategy's gain over random, over the whole curve and in the last round."""
    from densejax.plots import style

    names = [n for n in results.strategies if "against_random" in numbers[n]]
    names.sort(key=lambda name: numbers[name]["against_random"]["difference"]["value"])
    base = results.score[results.strategies.index(REFERENCE), :, -1]
    figure = style.new_figure(5.6, 1.2 + 0.28 * len(names))
    axes = figure.add_subplot()
    style.dress(axes, x=f"test {results.score_name} beyond random's, same seed", grid="x")
    for place, name in enumerate(names):
        own = results.score[results.strategies.index(name), :, -1]
        last = student_mean((own - base)[np.isfinite(own - base)])
        whole = numbers[name]["against_random"]["difference"]
        pairs = ((whole["value"], whole["low"], whole["high"]), (last.value, last.low, last.high))
        labels = ("mean over the curve", f"at {results.labelled[-1]} units")
        for shift, (middle, low, high), label in zip((0.12, -0.12), pairs, labels, strict=True):
            colour = style.series_colour(0 if shift > 0 else 1)
            y = place + shift
            axes.plot([low, high], [y, y], color=colour, linewidth=1.4)
            axes.plot(
                middle, y, "o", color=colour, markersize=4, label=label if not place else None
            )
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    style.legend(axes, title=f"{title}; 95 % intervals")
    style.save(figure, path)


def _agreement_picture(results: Results, title: str) -> Any:
    """Rank correlation and overlap of the scores in the first and the last round that looked."""
    from densejax.plots import style

    shown = [results.agreement[0], results.agreement[-1]]
    figure = style.new_figure(8.4, 7.4)
    grid = figure.subplots(2, 2)
    where = ("first look", "last look")
    for row, (names, rank, overlap) in enumerate(shown):
        pairs = (
            (rank, "rank correlation over the pool", "RdBu_r", -1),
            (overlap, "overlap of the first queries", "viridis", 0),
        )
        for axes, (values, what, colours, low) in zip(grid[row], pairs, strict=True):
            drawn = axes.imshow(values, vmin=low, vmax=1, cmap=colours)
            axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
            axes.set_yticks(range(len(names)), names, fontsize=6)
            axes.set_title(f"{what}, {where[row]}", fontsize=8)
            figure.colorbar(drawn, ax=axes, shrink=0.8)
    figure.suptitle(title, fontsize=9)
    return figure


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over seeds, nan without a warning where there is none."""
    finite = np.isfinite(values)
    total = np.where(finite, values, 0).sum(axis=1)
    return np.where(finite.any(axis=1), total / np.maximum(finite.sum(axis=1), 1), np.nan)
