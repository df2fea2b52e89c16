"""How fast are densejax's query strategies, beside PyTorch and at scale?

Margin, MASE and BASE (50 000 x 512, 100 classes, 1000 picks), k-centre (20 000 x 128, 500 picks)
and BADGE (5000 x 512, 200 picks), against the algorithm as the published PyTorch code performs it
and against PyTorch given the same closed form, in one interleaved run:

    python -m experiments.benchmarks.selectors --minutes=40

and BASE, MASE, margin (1.28 million x 2048, 1000 classes, 10 000 picks) and partitioned k-centre
and BADGE from a file of 10.5 GB that is made in a folder given, time and peak memory:

    python -m experiments.benchmarks.selectors --scale --scratch=/large/disk

Before timing, the picks are compared: the same set, or one that differs where float64 says that the
samples are as good (``selector_replay``). Runs on an accelerator too, where the time of the one
product that cannot be avoided is the measure. Writes ``selectors`` or ``selectors_scale``.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging

from experiments.benchmarks import measure, selector_scale

# Imported, a script keeps its flags to itself: the names recur in others.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()
OUT = flags.DEFINE_string(
    "out", str(Path(__file__).parent / "results"), "folder of the report", flag_values=FLAGS
)
MINUTES = flags.DEFINE_float("minutes", 40.0, "start no case after so many", flag_values=FLAGS)
ONLY = flags.DEFINE_list("only", [], "cases; all where empty", flag_values=FLAGS)
ROUNDS = flags.DEFINE_integer(
    "rounds", 7, "interleaved rounds that count", lower_bound=1, flag_values=FLAGS
)
SHARE = flags.DEFINE_float(
    "share", 1.0, "of samples and picks, for a trial", 0.0, 1.0, flag_values=FLAGS
)
SCALE = flags.DEFINE_bool("scale", False, "the large pool from disk instead", flag_values=FLAGS)
SCRATCH = flags.DEFINE_string("scratch", "", "folder of the large pool's file", flag_values=FLAGS)
SAMPLES = flags.DEFINE_integer(
    "samples", 1_280_000, "of the large pool", lower_bound=100, flag_values=FLAGS
)
FEATURES = flags.DEFINE_integer(
    "features", 2048, "of the large pool", lower_bound=1, flag_values=FLAGS
)
CLASSES = flags.DEFINE_integer(
    "classes", 1000, "of the large pool", lower_bound=2, flag_values=FLAGS
)
BUDGET = flags.DEFINE_integer(
    "budget", 10_000, "picks of the large pool", lower_bound=1, flag_values=FLAGS
)

# Regret that rounding explains, of a typical value.
TOLERANCE = 1e-4
# The published form is slow: no more rounds of it than take this long, from 1 to 3.
PUBLISHED_SECONDS = 120.0
PUBLISHED_GOAL, CLOSED_GOAL, PRODUCT_GOAL, GIB_GOAL = 100.0, 1.2, 2.0, 8.0
# The published margin materialises nothing that the closed form avoids.
NO_PUBLISHED_GOAL = ("margin",)
COLUMNS = (
    *("case", "n", "d", "c", "labelled", "b", "rounds", "published rounds"),
    *("densejax ms (cpu)", "published ms (cpu)", "closed form ms (cpu)", "one product ms (cpu)"),
    *("published / densejax", "closed form / densejax", "densejax / one product"),
    *("same set: published", "closed form", "largest regret", "GFLOP", "gigabytes", "floor ms"),
)
SCALE_COLUMNS = (
    *("case", "n", "d", "c", "labelled", "b", "seconds", "rows/s", "peak GiB"),
    *("GFLOP", "gigabytes", "floor seconds", "product seconds", "goal met"),
)


def float32_gflops(*, size: int = 2048) -> float:
    """GFLOP/s of a product in full float32: rankings hang on it, so TF32 is no measure."""
    with jax.default_matmul_precision("highest"):
        return measure.matmul_gflops(size=size)


def floor_ms(floor: dict[str, float], ceilings: dict[str, float]) -> float:
    """Milliseconds below which nothing can be, by the measured product and copy."""
    product, copy = ceilings["float32 GFLOP/s"], ceilings["copy GB/s"]
    return 1e3 * max(floor["gflop"] / product, floor["gigabytes"] / copy)


def row_of(name: str, share: float, *, rounds: int, ceilings: dict[str, float]) -> dict[str, Any]:
    """Compare and measure one case.

    Raises:
      ValueError: a contender's query is not one the algorithm can make.
    """
    from experiments.benchmarks import selector_cases as cases

    sizes, make = cases.CASES[name]
    if share < 1:
        sizes = cases.Sizes(
            max(200, int(share * sizes.samples)),
            sizes.features,
            sizes.classes,
            max(10, int(share * sizes.labelled)),
            max(10, int(share * sizes.budget)),
        )
    case = make(sizes)
    found = cases.agreement(case, tolerance=TOLERANCE)
    quick = {who: call for who, call in case.calls.items() if who != cases.PUBLISHED}
    seconds = measure.interleaved(quick, rounds=rounds)
    row: dict[str, Any] = {
        **{"case": name, "n": sizes.samples, "d": sizes.features, "c": sizes.classes},
        **{"labelled": sizes.labelled, "b": sizes.budget, "rounds": rounds},
        **{"agreement": found, "seconds": seconds, "largest regret": max(found["regret"].values())},
        **{"GFLOP": case.floor["gflop"], "gigabytes": case.floor["gigabytes"]},
        "floor ms": floor_ms(case.floor, ceilings),
    }
    for who, laps in seconds.items():
        row[f"{who} ms (cpu)"] = measure.medians(laps)
    ours = "densejax"
    row["densejax / one product"] = measure.ratio(seconds, ours, cases.PRODUCT)
    if cases.CLOSED in seconds:
        row["closed form"] = found["set"][cases.CLOSED]
        row["closed form / densejax"] = measure.ratio(seconds, cases.CLOSED, ours)
    if cases.PUBLISHED in case.calls:
        row["same set: published"] = found["set"][cases.PUBLISHED]
        row |= _published(case.calls, found["seconds"][cases.PUBLISHED])
    return row


def _published(calls: dict[str, Any], took: float) -> dict[str, Any]:
    """Rounds of the published form and densejax, as few as its time allows."""
    pair = {"published": calls["published"], "densejax": calls["densejax"]}
    rounds = int(min(3, max(1, PUBLISHED_SECONDS // took)))
    seconds = measure.interleaved(pair, rounds=rounds)
    return {
        "published rounds": rounds,
        "published seconds": seconds,
        "published ms (cpu)": measure.medians(seconds["published"]),
        "published / densejax": measure.ratio(seconds, "published", "densejax"),
    }


def judged(rows: measure.Rows, *, on_cpu: bool) -> measure.Rows:
    """One line for every goal and case: goal, at, found, met ('yes' or 'no')."""
    lines: measure.Rows = []

    def judge(goal: str, row: dict[str, Any], column: str, met: Any) -> None:
        if column in row:
            found = row[column]
            yes = "yes" if met(found["median"]) else "no"
            lines.append({"goal": goal, "at": row["case"], "found": found, "met": yes})

    for row in rows:
        if row["case"] not in NO_PUBLISHED_GOAL:
            goal = f"at least {PUBLISHED_GOAL:g}x the published form"
            judge(goal, row, "published / densejax", lambda x: x >= PUBLISHED_GOAL)
        goal = f"at least {CLOSED_GOAL:g}x PyTorch given the closed form"
        judge(goal, row, "closed form / densejax", lambda x: x >= CLOSED_GOAL)
        if not on_cpu:
            goal = f"within {PRODUCT_GOAL:g}x of the one product"
            judge(goal, row, "densejax / one product", lambda x: x <= PRODUCT_GOAL)
    return lines


def run(
    names: Sequence[str], *, share: float, rounds: int, minutes: float, out: Path
) -> measure.Rows:
    """Measure the cases; the report grows by each."""
    end = time.monotonic() + 60 * minutes
    where, on_cpu = measure.machine(), jax.default_backend() == "cpu"
    ceilings = {"float32 GFLOP/s": float32_gflops(), "copy GB/s": measure.copy_gigabytes()}
    rows: measure.Rows = []
    left_out: list[str] = []
    for name in names:
        if time.monotonic() > end:
            left_out.append(f"{name}: no minutes were left")
            continue
        started = time.monotonic()
        rows.append(row_of(name, share, rounds=rounds, ceilings=ceilings))
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
        goals = judged(rows, on_cpu=on_cpu)
        parts = [
            measure.heading("Query strategies", where, ceilings),
            measure.markdown(rows, COLUMNS),
            "\n" + measure.markdown(goals, ("goal", "at", "found", "met")),
            *(f"\nNot measured: {line}" for line in left_out),
        ]
        result = {"machine": where, "ceilings": ceilings, "rows": rows, "goals": goals}
        measure.write(
            out,
            "selectors" if on_cpu else "selectors_gpu",
            result=result | {"not_measured": left_out},
            text="\n".join(parts),
        )
    print(*left_out, sep="\n")
    return rows


def run_scale(
    names: Sequence[str], query: selector_scale.Query, *, scratch: Path, minutes: float, out: Path
) -> measure.Rows:
    """Measure the large pool, each case in a fresh process; the report grows by each."""
    where, on_cpu = measure.machine(), jax.default_backend() == "cpu"
    path = selector_scale.feature_file(scratch, query)
    end = time.monotonic() + 60 * minutes
    read = selector_scale.read_gigabytes(path)
    ceilings = {"float32 GFLOP/s": float32_gflops(size=4096), "read GB/s": read}
    goal = f"peak under {GIB_GOAL:g} GiB"
    if not on_cpu:
        goal = f"within {PRODUCT_GOAL:g}x of the product that cannot be avoided"
    rows: measure.Rows = []
    left_out: list[str] = []
    for name in names:
        if time.monotonic() > end:
            left_out.append(f"{name}: no minutes were left")
            continue
        row = _scale_row(name, path, query, ceilings, on_cpu=on_cpu)
        rows.append(row)
        print({key: row[key] for key in SCALE_COLUMNS if key in row}, flush=True)
        text = measure.heading("Query strategies at scale", where, ceilings)
        text += f"\nGoal: {goal}.\n\n" + measure.markdown(rows, SCALE_COLUMNS)
        result = {"machine": where, "ceilings": ceilings, "rows": rows}
        file = "selectors_scale" if on_cpu else "selectors_scale_gpu"
        measure.write(out, file, result=result, text=text)
    print(*left_out, sep="\n")
    return rows


def _scale_row(
    name: str,
    path: Path,
    query: selector_scale.Query,
    ceilings: dict[str, float],
    *,
    on_cpu: bool,
) -> dict[str, Any]:
    # An accelerator's memory belongs to one process.
    found = (selector_scale.apart if on_cpu else selector_scale.one)(name, path, query)
    floor = selector_scale.floor(name, query)
    seconds, peak, product = found["seconds"], found["peak_gib"], found.get("product_seconds")
    least = floor["gflop"] / ceilings["float32 GFLOP/s"]
    if on_cpu:
        least = max(least, floor["gigabytes"] / ceilings["read GB/s"])
        met = peak < GIB_GOAL
    else:
        met = seconds <= PRODUCT_GOAL * (product or least)
    return {
        **{"case": name, "n": query.samples, "d": query.features, "c": query.classes},
        **{"labelled": query.labelled, "b": query.budget, "seconds": seconds},
        **{"rows/s": query.samples / seconds, "peak GiB": peak, "GFLOP": floor["gflop"]},
        **{"gigabytes": floor["gigabytes"], "floor seconds": least},
        **{"product seconds": product or "", "goal met": "yes" if met else "no", "found": found},
    }


def chosen(known: Sequence[str], default: Sequence[str]) -> Sequence[str]:
    """The cases of ``--only``.

    Raises:
      UsageError: one is not known.
    """
    for name in ONLY.value:
        if name not in known:
            raise app.UsageError(f"--only={name}: expected of {', '.join(known)}")
    return ONLY.value or default


def main(arguments: list[str]) -> None:
    """Measure what the flags name."""
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected argument {arguments[1]!r}; flags begin with --")
    logging.set_verbosity(logging.WARNING)
    out = Path(OUT.value)
    if SCALE.value:
        if not SCRATCH.value:
            raise app.UsageError("--scale needs --scratch, a folder for the pool's file")
        on_cpu = jax.default_backend() == "cpu"
        default = selector_scale.ON_CPU if on_cpu else selector_scale.CASES
        names = chosen(selector_scale.CASES, default)
        # The setting of the thesis: 50 000 labelled, or of a smaller pool a tenth.
        labelled = min(50_000, SAMPLES.value // 10)
        query = selector_scale.Query(
            SAMPLES.value, FEATURES.value, CLASSES.value, labelled, BUDGET.value
        )
        run_scale(names, query, scratch=Path(SCRATCH.value), minutes=MINUTES.value, out=out)
        return
    from experiments.benchmarks.selector_cases import CASES

    names = chosen(tuple(CASES), tuple(CASES))
    run(names, share=SHARE.value, rounds=ROUNDS.value, minutes=MINUTES.value, out=out)


if __name__ == "__main__":
    app.run(main)
