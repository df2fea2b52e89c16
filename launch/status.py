"""What has become of a sweep: ``python -m launch.status WORKDIR``.

Files say what is done, the scheduler what waits. Exit code 0 where every seed has ended and none
failed, else 1.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch import command, state, sweeps
from launch.seeds import write_seeds


def run(arguments: Sequence[str]) -> int:
    """Print the state of a sweep; returns the exit code."""
    parser = command.parser_of(__doc__, "status")
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--json", action="store_true", help="one line of JSON instead")
    given = parser.parse_args(list(arguments))
    sweep = sweeps.open_sweep(given.workdir)
    views = state.views(sweep)
    counts = summary(views)
    if given.json:
        print(json.dumps(counts))
    else:
        report(sweep, views, counts)
    return 0 if counts["done"] == counts["seeds"] else 1


def summary(views: Sequence[state.BlockView]) -> dict[str, Any]:
    """Numbers of seeds by what became of them, rate (seeds an hour) and ETA (hours, or None)."""
    counts: dict[str, Any] = dict.fromkeys(
        ("seeds", "done", "failed", "running", "queued", "held", "missing"), 0
    )
    left = 0.0
    for view in views:
        seeds, done = set(view.block.seeds), view.done
        counts["seeds"] += len(seeds)
        counts["failed"] += len(view.failed)
        counts["done"] += len(done - view.failed)
        rest = seeds - done
        name = view.state if view.state in (state.RUNNING, state.QUEUED, state.HELD) else "missing"
        if view.state != state.ENDED:
            counts[name] += len(rest)
            left += len(rest) - sum(view.part.values())
    counts["rate"] = sum(view.rate for view in views)
    counts["eta_hours"] = left / counts["rate"] if counts["rate"] else None
    return counts


def report(sweep: sweeps.Sweep, views: Sequence[state.BlockView], counts: dict[str, Any]) -> None:
    """The same for people, with a line for every block that is not simply done."""
    names = ("done", "failed", "running", "queued", "held", "missing")
    numbers = ", ".join(f"{counts[name]} {name}" for name in names)
    print(f"{sweep.workdir}\n{sweep.experiment.module}: {counts['seeds']} seeds: {numbers}")
    if counts["rate"]:
        end = time.strftime("%a %H:%M", time.localtime(time.time() + 3600 * counts["eta_hours"]))
        print(f"{counts['rate']:.1f} seeds an hour; at this rate all have ended on {end}")
    for view in views:
        if view.state != state.ENDED or view.failed:
            seeds = write_seeds(view.block.seeds)
            line = f"  seeds {seeds:<12} {view.state:<12} {len(view.done)}/{len(view.block.seeds)}"
            print(f"{line}  {view.said}")
            if view.state in (state.FAILED, state.HOPELESS, state.BROKEN):
                print(f"{'':<20}log {view.block.folder / 'log.txt'}")
        if view.failed:
            print(
                f"{'':<20}seeds that failed: {write_seeds(view.failed)}; see DONE and FAILED in "
                f"{sweep.workdir / 'seeds'}"
            )
    if any(view.submits for view in views):
        again = f"python -m launch.retry {sweep.workdir} submits"
        print(f"{again if sweep.submissions() else 'the same command again runs'} what is missing")


if __name__ == "__main__":
    command.main(run)
