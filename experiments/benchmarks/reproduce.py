"""Are the numbers of ``results`` what today's statistics make of the rows stored beside them?

    python -m experiments.benchmarks.reproduce

Computes medians, quartiles, intervals, p, areas, break-even points and verdicts again and compares
them with the files, in the digits of each. What a file says that hangs on rows which are not
stored is named as such. Exit status 1 where a number differs. A few seconds.
"""

import csv
import json
import math
import re
import sys
import warnings
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from densejax.active.rounds.curves import alc, break_even
from densejax.minima.reading import MEASURED, MEASURES, Basin, Minimum
from densejax.minima.report import by_run, by_share, compare_shares
from densejax.stats import (
    LEVEL,
    bimodality,
    bootstrap_median,
    findings_table,
    five_numbers,
    holm,
    mann_whitney,
)
from experiments import minefield, rings, svhn_minima, swissroll

RESULTS = Path(__file__).parent.parent / "results"


class Check:
    """Counts what agrees and prints what does not."""

    agree = differ = 0

    def __call__(self, what: str, found: Any, stored: Any, *, rel: float = 1e-9) -> None:
        """Compare numbers by a relative tolerance and texts by their letters."""
        if isinstance(stored, list | tuple):
            for one, other in zip(found, stored, strict=True):
                self(what, one, other, rel=rel)
            return
        if isinstance(stored, str):
            same = found == stored
        else:
            same = math.isclose(found, stored, rel_tol=rel) or (
                math.isnan(found) and math.isnan(stored)
            )
        self.agree, self.differ = self.agree + same, self.differ + (not same)
        if not same:
            print(f"DIFFERS {what}: {found} is not the stored {stored}")


def table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def column(rows: list[dict[str, str]], name: str) -> np.ndarray:
    """Numbers of one column, [n]."""
    return np.array([float(row[name]) for row in rows])


def sweep(check: Check, folder: Path) -> dict[str, float]:
    """A segmentation sweep's summary; returns the peak of each seed, in the order of the seeds."""
    stored, top = json.loads((folder / "summary.json").read_text()), table(folder / "top_k.csv")
    peaks = stored["peak_evaluation_miou"].pop("scores")
    found: dict[str, dict[str, Any]] = {"peak_evaluation_miou": asdict(five_numbers(peaks))}
    median = bootstrap_median(peaks)
    ends = {"low": median.low, "high": median.high, "confidence": LEVEL}
    found["median_interval"] = {"median": median.value, **ends}
    if "bimodality" in stored:
        found["bimodality"] = asdict(bimodality(peaks))
    for name, numbers in found.items():
        for key, value in numbers.items():
            check(f"{folder.name} {name} {key}", value, stored[name][key], rel=1e-6)
    chosen = stored["top_k"] - 1
    for part in ("evaluation", "test"):
        alone, together = column(top, f"{part}_alone"), column(top, f"{part}_top_k")
        singles = (alone[0], np.median(alone), together[chosen], together[-1])
        for name, value in zip(
            ("best_single", "median_single", "top_k", "all"), singles, strict=True
        ):
            check(f"{folder.name} {part} {name}", value, stored[part][name], rel=1e-5)
    ranked = [row["member"] for row in top]
    best = {row["member"]: float(row["best_miou"]) for row in table(folder / "scores.csv")}
    check(f"{folder.name} ranks", [round(p, 6) for p in peaks], [best[m] for m in ranked])
    return dict(sorted(zip(ranked, peaks, strict=True)))


def comparison(check: Check, name: str, runs: dict[str, dict[str, float]]) -> None:
    """Tables of ``experiments.compare``, for the runs whose peaks are stored."""
    for row in table(RESULTS / f"vnc/{name}_runs.csv"):
        if row["run"] not in runs:
            continue
        scores = list(runs[row["run"]].values())
        numbers, interval, two = five_numbers(scores), bootstrap_median(scores), bimodality(scores)
        found = {k: v for k, v in asdict(numbers).items() if k != "count"}
        found |= {"median_low": interval.low, "median_high": interval.high, "modes": two.modes}
        found |= {"delta_bic": two.delta_bic, "lower_mean": two.means[0]}
        found |= {"upper_mean": two.means[1], "upper_weight": two.weights[1]}
        for key, value in found.items():
            check(f"{name}_runs {row['run']} {key}", value, float(row[key]), rel=1e-6)
    for row in table(RESULTS / f"vnc/{name}_pairs.csv"):
        if row["a"] in runs and row["b"] in runs:
            test = mann_whitney(*(list(runs[row[side]].values()) for side in "ab"))
            for key, value in asdict(test).items():
                check(f"{name}_pairs {key}", value, float(row[key]))


def basins(path: Path) -> list[Basin]:
    """Minima of a table, with as much of their basins as its columns hold."""
    found = []
    for row in table(path):
        measures = {name: float(row[name]) for name in MEASURES}
        settings: dict[str, float] = {k: float(row[k]) for k in ("poison", "start") if k in row}
        minimum = Minimum(row["name"], int(row["seed"]), settings, {}, measures)
        n: dict[str, float] = {name: float(row[name]) for name in MEASURED}
        radii = SimpleNamespace(radius=np.array([n["radius"]]), censored=np.array([n["censored"]]))
        volume = SimpleNamespace(estimate=n["log_volume"], interval=(n["low"], n["high"]), **n)
        none = math.isnan(n["radius"])
        found.append(Basin(minimum, None if none else radii, None if none else volume))  # type: ignore[arg-type]
    return found


def lines_of(check: Check, folder: str, found: list[str]) -> None:
    """Compare lines of Markdown tables with those of ``findings.md``."""
    text = (RESULTS / "minima" / folder / "findings.md").read_text().splitlines()
    check(folder, found, [line for line in text if line.startswith("|")])


def minima(check: Check) -> None:
    """Findings and tables of the minima."""
    for folder, claims in (
        ("swissroll_unpoisoned_end", partial(compare_shares, published=swissroll.PUBLISHED)),
        ("fashion_mnist_resnet20", svhn_minima.claims),
        ("cifar10_resnet20", svhn_minima.claims),
    ):
        rows = basins(RESULTS / "minima" / folder / "minima.csv")
        lines_of(check, folder, [*findings_table(claims(rows)), *by_share(rows)])
    names = {"wide": "wide gap 0.2", "pinched": "pinched gap 0.001"}
    groups = {names[n]: basins(RESULTS / f"minima/rings/minima_{n}.csv") for n in names}
    lines_of(check, "rings", [*findings_table(rings.claims(groups)), *by_run(groups)])
    for folder in ("minefield", "minefield_without_l2"):
        rows = basins(RESULTS / "minima" / folder / "minima.csv")
        text = (RESULTS / "minima" / folder / "findings.md").read_text()
        good = [float(n) for n in re.findall(r"\| ([0-9.]+) \(train ([0-9.]+)\) \|", text)[0]]
        path = {"test_accuracy": np.array(good[:1]), "train_accuracy": np.array(good[1:])}
        lines_of(check, folder, findings_table(minefield.claims(path, rows)))


def queries(check: Check, folder: Path) -> None:
    """Holm's p of a study of queries, its verdicts, mean areas and break-even points."""
    rows, curves = table(folder / "queries.csv"), table(folder / "curves.csv")
    mean: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in curves:
        mean.setdefault((row["width"], row["query"]), []).append(row)
    for width in dict.fromkeys(row["width"] for row in rows):
        same = [row for row in rows if row["width"] == width]
        tested = [row for row in same if row["query"] != "random"]
        adjusted = holm(column(tested, "p")).tolist()
        check(f"{folder.name} Holm", adjusted, column(tested, "p_holm").tolist(), rel=2e-5)
        x, base = (column(mean[width, "random"], name) for name in ("labelled", "accuracy"))
        for row in same:
            y = column(mean[width, row["query"]], "accuracy")
            check(f"{folder.name} area", float(alc(x, y)), float(row["alc"]), rel=2e-5)
            if row["query"] != "random":
                even = break_even(x, y, base)
                check(f"{folder.name} break-even", even, float(row["break_even"]), rel=1e-3)
    groups: dict[str, list[list[str]]] = {}
    for line in (folder / "findings.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 6 and line.startswith("| ") and cells[0] != "claim":
            claim = re.sub(r"margin-stride\d+", "stride", cells[0])
            kind = "moved" if "without a move" in claim else " ".join(claim.split()[:2])
            kind = "oracles" if kind.split()[-1] == "above" and "stride" not in kind else kind
            groups.setdefault(kind, []).append(cells)
    for lines in groups.values():
        for (claim, source, verdict, gap, _, p), one in zip(
            lines, holm([float(c[4]) for c in lines]), strict=True
        ):
            check(f"{folder.name} {claim}", float(one), float(p), rel=0.06)
            words = ("above", "below") if source == "no" else ("seen", "not seen")
            expected = words[gap.startswith("-")] if float(p) < 0.05 else "not told apart"
            if float(p) != 0.05:  # two digits do not say on which side it is
                check(f"{folder.name} {claim}", expected, verdict)


def rounds(check: Check, folder: Path) -> None:
    """Holm's p of rounds of active learning, mean areas in both forms, break-even points."""
    stored = json.loads((folder / "summary.json").read_text())
    x, rows = stored["labelled"], table(folder / "table.csv")
    means = {
        name: column([row for row in rows if row["strategy"] == name], "accuracy")
        for name in stored["strategies"]
    }
    lowest, highest = (f(list(means.values())) for f in (np.min, np.max))
    tests = []
    for name, entry in stored["strategies"].items():
        area = float(alc(x, means[name]))
        check(f"{folder.name} {name} area", area, entry["alc"]["value"], rel=1e-5)
        form = (area - lowest) * (x[-1] - x[0]) / (highest - lowest)
        check(f"{folder.name} {name} Chen", form, entry["normalised_alc"]["value"], rel=1e-4)
        if "against_random" in entry:
            tests.append(entry["against_random"])
            even = break_even(x, means[name], means["random"])
            check(f"{folder.name} {name}", even, float(entry["break_even"]["value"]), rel=1e-3)
            gap = area - float(alc(x, means["random"]))
            check(
                f"{folder.name} {name}", round(gap, 5), round(tests[-1]["difference"]["value"], 5)
            )
    adjusted = holm([test["p"] for test in tests]).tolist()
    check(f"{folder.name} Holm", adjusted, [test["p_holm"] for test in tests])


NOT_STORED = """not stored, so not checked:
  vnc/logits_*: peaks of hybrid_linear up to step 1500, its row and the pair
  race, synthetic, vnc: counts of blocks, by which the size of an ensemble is chosen
  minima/minefield*: the good run, whose accuracies are read off findings.md; units that fire
  minima/optimizers: accuracies of single seeds (populations.json)
  active, queries: scores of single seeds, behind p, intervals, class balance and spread
  search: summary.json; volumes/corrections.md: rows.csv of the study"""


def main() -> int:
    """Check everything; the exit status."""
    check = Check()
    warnings.simplefilter("ignore", UserWarning)
    runs = {name: sweep(check, RESULTS / "vnc" / name) for name in ("hybrid", "hybrid_linear")}
    runs["unet_linear"] = sweep(check, RESULTS / "vnc/unet_linear")
    for name in ("race", "synthetic"):
        sweep(check, RESULTS / name)
    comparison(check, "networks", runs)
    comparison(check, "logits", {"hybrid": runs["hybrid"]})
    minima(check)
    for name in ("mnist", "fashion_mnist"):
        queries(check, RESULTS / "queries" / name)
    for name in ("a1", "b1", "a1_linear", "b1_linear"):
        rounds(check, RESULTS / "active" / name)
    print(f"{check.agree} numbers and lines agree, {check.differ} differ\n{NOT_STORED}")
    return check.differ > 0


if __name__ == "__main__":
    sys.exit(main())
