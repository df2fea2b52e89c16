"""How fast is a plane of the loss, beside loops over its points in PyTorch?

51 x 51 points of the thesis' swiss-roll network (3614 parameters) on 200 and on 2000 points, and
points of the same plane of ResNet-20 on 2000 pictures of 32 pixels; loss and accuracy at each, in
one interleaved run:

    python -m experiments.benchmarks.surfaces

Contenders: densejax (``surface``; of ResNet-20 ``evaluate``); PyTorch's lean loop, with the full
batch in memory; of ResNet-20 also that loop in the batches and the layout that suit it best; and
the usual loop over a ``DataLoader`` with batches of 128. PyTorch has the number of threads that
is fastest for each. Then both *cold*: the first grid of a fresh process, compilation included,
imports and data not; where a lap has fewer points than the plane, its warm rate makes up the rest.
Results are compared before anything is timed. Writes ``surfaces``.
"""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

from densejax import trees
from densejax.landscape.surfaces.points import Evaluator
from densejax.population import use_all_cores
from experiments.benchmarks import measure
from experiments.benchmarks.surface_cases import (
    BATCHES,
    GRID,
    LEAN,
    LOADER,
    OURS,
    TUNED,
    Case,
    resnet,
    swissroll,
)

# Imported, a script keeps its flags to itself: the names recur in others.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()
OUT = flags.DEFINE_string(
    "out", str(Path(__file__).parent / "results"), "folder of the report", flag_values=FLAGS
)
ONLY = flags.DEFINE_list("only", [], "cases; all where empty", flag_values=FLAGS)
ROUNDS = flags.DEFINE_integer(
    "rounds", 5, "interleaved rounds that count", lower_bound=1, flag_values=FLAGS
)
COLD = flags.DEFINE_integer(
    "cold", 3, "fresh processes a contender; 0 leaves them out", flag_values=FLAGS
)
MINUTES = flags.DEFINE_float("minutes", 60.0, "start no case after so many", flag_values=FLAGS)
SIDE = flags.DEFINE_integer(
    "side", 4, "points of a lap of ResNet-20, along each axis", flag_values=FLAGS
)
PICTURES = flags.DEFINE_integer("pictures", 2000, "of ResNet-20", lower_bound=1, flag_values=FLAGS)
BATCH = flags.DEFINE_integer(
    "batch", 0, "pictures that densejax reads at once; 0: the fastest", flag_values=FLAGS
)
THREADS = flags.DEFINE_integer(
    "threads", 1, "of PyTorch in such a process", lower_bound=1, flag_values=FLAGS
)
CHILD = flags.DEFINE_string(
    "child", "", "contender whose first grid this process is to time", flag_values=FLAGS
)

SWISSROLL = {"swissroll_200": 200, "swissroll_2000": 2000}
RESNET = "resnet20"
CASES = (*SWISSROLL, RESNET)
# Relative, of the loss: what two libraries' rounding makes of it.
TOLERANCE = 1e-4
LEAN_GOAL, LOADER_GOAL, RESNET_GOAL, COLD_GOAL = 9.0, 30.0, 1.0, 1.0
COLUMNS = (
    *("case", "n", "parameters", "points a lap", "rounds", "densejax ms (cpu)", "lean ms (cpu)"),
    *("tuned ms (cpu)", "loader ms (cpu)", "lean / densejax", "tuned / densejax"),
    *("loader / densejax", "cold: lean / densejax", "largest difference", "MFLOP a point"),
    *("floor ms", "settings"),
)


def contenders(name: str) -> tuple[str, ...]:
    """Who takes part in a case."""
    return (OURS, LEAN, TUNED, LOADER) if name == RESNET else (OURS, LEAN, LOADER)


def case_of(name: str, *, side: int, pictures: int, batch: int) -> Case:
    """A case by its name; ``batch`` 0 is densejax's fastest."""
    if name in SWISSROLL:
        return swissroll(SWISSROLL[name])
    if batch:
        return resnet(pictures, side=side, batch=batch)
    seconds = {}
    for size in BATCHES:
        case = resnet(pictures, side=2, batch=size)
        seconds[size] = measure.best_seconds(case.ours, repeats=1)
    return resnet(pictures, side=side, batch=min(seconds, key=lambda size: seconds[size]))


def agreement(case: Case, names: Sequence[str]) -> float:
    """Largest relative difference of a loop's losses from densejax's.

    Raises:
      ValueError: it is more than rounding makes, or accuracies differ by more than a sample.
    """
    ours, largest = case.ours(), 0.0
    one = 1.001 / len(case.peer.labels)
    for name, call in case.calls([n for n in names if n != OURS]).items():
        theirs = call()
        gap = np.abs(theirs[:, 0] / ours[:, 0] - 1).max()
        # A sample between two classes may go to either.
        if not gap < TOLERANCE or np.quantile(np.abs(theirs - ours)[:, 1], 0.99) > one:
            raise ValueError(f"{name}: a loss differs from densejax's by {gap:.2g}")
        largest = max(largest, float(gap))
    return largest


def row_of(
    name: str, case: Case, *, rounds: int, cold: int, ceilings: Mapping[str, float]
) -> dict[str, Any]:
    """Compare and measure one case."""
    names = contenders(name)
    case.tune(names)
    found = agreement(case, names)
    seconds = measure.interleaved(case.calls(names), rounds=rounds)
    count = len(case.coordinates)
    one = measure.floor(case.loss_fn, case.plane.centre)
    least = one["gflop"] / ceilings["float32 GFLOP/s"]
    case.settings[OURS]["chunk"] = Evaluator(case.loss_fn, case.plane).chunk
    settings = {key: value for key, value in case.settings.items() if key in names}
    row: dict[str, Any] = {
        **{"case": name, "n": len(case.peer.labels), "parameters": trees.count(case.plane.centre)},
        **{"points a lap": count, "rounds": rounds, "largest difference": found},
        **{"MFLOP a point": 1e3 * one["gflop"], "floor ms": 1e3 * least * count},
        **{"settings": settings, "seconds": seconds},
    }
    for who in names:
        row[f"{who} ms (cpu)"] = measure.medians(seconds[who])
        if who != OURS:
            row[f"{who} / {OURS}"] = measure.ratio(seconds, who, OURS)
    if cold:
        row |= _cold(name, case, seconds, cold)
    return row


def _cold(name: str, case: Case, seconds: measure.Rounds, times: int) -> dict[str, Any]:
    """First grids of fresh processes, in turn; what a lap lacks of the plane at the warm rate."""
    more = GRID**2 / len(case.coordinates) - 1
    laps: measure.Rounds = {OURS: [], LEAN: []}
    draws = []
    for _ in range(times):
        for who in laps:
            told = first_grid(name, who, case.settings)
            warm = measure.medians(seconds[who])
            wall = told["wall"] + more * warm["wall_ms"] / 1e3
            laps[who].append((wall, told["cpu"] + more * warm["cpu_ms"] / 1e3))
            if who == OURS:
                draws.append(told["draw"])
    return {
        "cold": {"seconds of the whole plane": laps, "seconds of the first draw": draws},
        f"cold: {LEAN} / {OURS}": measure.ratio(laps, LEAN, OURS),
    }


def first_grid(name: str, contender: str, settings: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of a fresh process' first grid: wall, cpu, and of drawing the plane."""
    command = [sys.executable, "-m", "experiments.benchmarks.surfaces"]
    command += [f"--child={contender}", f"--only={name}", f"--side={SIDE.value}"]
    command += [f"--pictures={PICTURES.value}", f"--batch={settings[OURS].get('batch', 0)}"]
    command += [f"--threads={settings.get(contender, {}).get('threads', 1)}"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(out.splitlines()[-1])


def child(name: str, contender: str) -> None:
    """Time this process' first grid and print it."""
    # Backend and client are up, as after the training that led to the minimum.
    jax.block_until_ready(jax.numpy.zeros(1) + 1)
    case = case_of(name, side=SIDE.value, pictures=PICTURES.value, batch=BATCH.value)
    case.settings[LEAN] = {"threads": THREADS.value}
    call = case.calls([contender])[contender]
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    print(json.dumps(seconds | {"draw": case.draw_seconds}))


def judged(rows: measure.Rows) -> measure.Rows:
    """One line for every goal and case: goal, at, found, met ('yes' or 'no')."""
    lines: measure.Rows = []

    def judge(goal: float, row: dict[str, Any], column: str) -> None:
        if column in row:
            met = "yes" if row[column]["median"] >= goal else "no"
            text = f"{column} at least {goal:g}"
            lines.append({"goal": text, "at": row["case"], "found": row[column], "met": met})

    for row in rows:
        small = row["case"] != RESNET
        judge(LEAN_GOAL if small else RESNET_GOAL, row, f"{LEAN} / {OURS}")
        judge(RESNET_GOAL, row, f"{TUNED} / {OURS}")
        if small:
            judge(LOADER_GOAL, row, f"{LOADER} / {OURS}")
        judge(COLD_GOAL, row, f"cold: {LEAN} / {OURS}")
    return lines


def run(names: Sequence[str], *, rounds: int, cold: int, minutes: float, out: Path) -> measure.Rows:
    """Measure the cases; the report grows by each."""
    end = time.monotonic() + 60 * minutes
    where, on_cpu = measure.machine(), jax.default_backend() == "cpu"
    ceilings = {"float32 GFLOP/s": measure.matmul_gflops(), "copy GB/s": measure.copy_gigabytes()}
    rows: measure.Rows = []
    left_out: list[str] = []
    for name in names:
        if time.monotonic() > end:
            left_out.append(f"{name}: no minutes were left")
            continue
        started = time.monotonic()
        case = case_of(name, side=SIDE.value, pictures=PICTURES.value, batch=BATCH.value)
        rows.append(row_of(name, case, rounds=rounds, cold=cold, ceilings=ceilings))
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
        goals = judged(rows)
        parts = [
            measure.heading("Planes of the loss", where, ceilings),
            measure.markdown(rows, COLUMNS),
            "\n" + measure.markdown(goals, ("goal", "at", "found", "met")),
            *(f"\nNot measured: {line}" for line in left_out),
        ]
        result = {"machine": where, "ceilings": ceilings, "rows": rows, "goals": goals}
        measure.write(
            out,
            "surfaces" if on_cpu else "surfaces_gpu",
            result=result | {"not_measured": left_out},
            text="\n".join(parts),
        )
    print(*left_out, sep="\n")
    return rows


def main(arguments: list[str]) -> None:
    """Measure what the flags name."""
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected argument {arguments[1]!r}; flags begin with --")
    logging.set_verbosity(logging.WARNING)
    for name in ONLY.value:
        if name not in CASES:
            raise app.UsageError(f"--only={name}: expected of {', '.join(CASES)}")
    use_all_cores()
    names = ONLY.value or CASES
    if CHILD.value:
        child(names[0], CHILD.value)
        return
    rows = run(
        names,
        rounds=ROUNDS.value,
        cold=COLD.value,
        minutes=MINUTES.value,
        out=Path(OUT.value),
    )
    print(measure.markdown(rows, COLUMNS))


if __name__ == "__main__":
    app.run(main)
