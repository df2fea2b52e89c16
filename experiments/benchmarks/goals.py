"""The goals of the training step, and whether measured rows meet them."""

from typing import Any

from experiments.benchmarks.measure import Rows

ONE_INSTANCE = {64: 3.0, 128: 2.0, 300: 1.3}
FOUR_NARROW = {64: 6.0, 96: 6.0}
NARROW = 8
MOST_OF_K = 0.85


def judged(rows: Rows) -> Rows:
    """One line for every row that a goal speaks of: goal, at, found, met ('yes' or 'no')."""
    lines: Rows = []
    for row in rows:
        at = f"{row['mode']}, width {row['width']}, window {row['window']}, K {row['K']}"
        faster = row["torch / densejax"]
        if row["K"] == 1 and row["window"] in ONE_INSTANCE:
            least = ONE_INSTANCE[row["window"]]
            goal = f"one instance at least {least:g}x PyTorch at {row['window']}"
            lines.append(_line(goal, at, faster, faster["median"] >= least))
        if (row["K"], row["width"]) == (4, NARROW) and row["window"] in FOUR_NARROW:
            least = FOUR_NARROW[row["window"]]
            goal = f"four narrow instances at least {least:g}x four PyTorch runs"
            lines.append(_line(goal, at, faster, faster["median"] >= least))
        if row["K"] > 1 and row["devices"] == 2:
            share = row["K at once / K times one"]
            goal = f"K at once at most {MOST_OF_K:g} of K times one, on two cores"
            lines.append(_line(goal, at, share, share["median"] <= MOST_OF_K))
    return lines


def _line(goal: str, at: str, found: Any, met: bool) -> dict[str, Any]:
    return {"goal": goal, "at": at, "found": found, "met": "yes" if met else "no"}
