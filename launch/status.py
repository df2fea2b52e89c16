"""What has become of a sweep: ``python -m launch.status WORKDIR``.

Files say what is done, the scheduler what waits. Exit code 0 where every seed has ended and none
failed, else 1.
"""

import json
import shlex
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from densejax.lease import Holder
from launch import command, members, scheduler, sweeps, work
from launch.attempt import hopeless

# Of a block: what it is called, and whether a new submission of it makes sense.
ENDED, RUNNING, QUEUED, HELD = "ended", "running", "queued", "held"
FAILED, HOPELESS, BROKEN, MISSING = "failed", "does not fit", "broken off", "missing"
_LEFT_ALONE = {ENDED, RUNNING, QUEUED, HELD}


def run(arguments: Sequence[str]) -> int:
    """Print the state of a sweep; returns the exit code."""
    parser = command.parser_of(__doc__, "status")
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead")
    given = parser.parse_args(list(arguments))
    sweep = sweeps.open_sweep(given.workdir)
    found = views(sweep)
    counts = summary(found)
    if given.json:
        print(json.dumps(counts))
    else:
        _report(sweep, found, counts)
    return 0 if counts["done"] == counts["seeds"] else 1


@dataclass(frozen=True)
class BlockView:
    """A block and what has become of it.

    Attributes:
      state: one of the names above.
      said: why, for people.
      tries: times that it was submitted.
      failed: seeds with a failed member.
      published: seeds with a published member.
      part: of each seed in training, the share of its steps that is done.
      rate: seeds an hour that its running try trains; 0 where there is none.
    """

    block: sweeps.Block
    state: str
    said: str
    tries: int = 0
    failed: frozenset[int] = frozenset()
    published: frozenset[int] = frozenset()
    part: dict[int, float] = field(default_factory=dict)
    rate: float = 0.0

    @property
    def submits(self) -> bool:
        """Whether it neither ended nor is the scheduler's or a process's."""
        return self.state not in _LEFT_ALONE

    @property
    def done(self) -> frozenset[int]:
        """Seeds that have ended, failed ones included."""
        if self.state == ENDED:
            return frozenset(self.block.seeds)
        return self.published - self.part.keys()


def views(sweep: sweeps.Sweep) -> list[BlockView]:
    """All blocks of a sweep, by their seeds; the scheduler is asked twice, however many."""
    lines = [line.get("elements", {}) for line in sweep.submissions()]
    newest = {name: element for line in lines for element, name in line.items()}
    tries = Counter(name for line in lines for name in line.values())
    arrays = {element.partition("_")[0] for element in newest.values()}
    queued = scheduler.queue()
    accounts = scheduler.ended(arrays) if queued is not None else {}
    published = list(members.members(sweep.workdir)) if sweep.experiment.extends else []
    living = work.leases_of(sweep.folder, queue=queued).living()
    found = []
    for block in sweep.blocks():
        element, submitted = newest.get(block.name, ""), tries[block.name]
        if (ending := block.ending()) is not None:
            failed = frozenset(members.seed_of(Path(path)) for path in ending["failed"])
            said = f"{len(failed)} seeds failed" if failed else "ended"
            found.append(BlockView(block, ENDED, said, submitted, failed))
            continue
        state = _state(block, living.get(block.name), element, queued or {}, accounts)
        found.append(_view(sweep, block, published, submitted, state))
    return found


def _view(
    sweep: sweeps.Sweep,
    block: sweeps.Block,
    elsewhere: Sequence[Path],
    submitted: int,
    said: tuple[str, str],
) -> BlockView:
    """View of a block that has not ended; ``elsewhere`` are the members that the sweep has."""
    run = work.work_folder(block.folder)
    found = [run / path for path in members.members(run)]
    found += [sweep.workdir / p for p in elsewhere if members.seed_of(p) in block.seeds]
    published = frozenset(members.seed_of(path) for path in found)
    failed = frozenset(members.seed_of(path) for path in found if (path / "FAILED").exists())
    steps = members.steps_of(sweep.workdir, elsewhere[0]) if elsewhere else 0
    part = members.parts_of(run, otherwise=steps)
    rate = _rate(block, part, published) if said[0] == RUNNING else 0.0
    return BlockView(block, *said, submitted, failed, published, part, rate)


def _state(
    block: sweeps.Block,
    holder: Holder | None,
    element: str,
    queued: Mapping[str, scheduler.Queued],
    accounts: Mapping[str, tuple[str, str]],
) -> tuple[str, str]:
    job = queued.get(element)
    if holder is not None:
        return RUNNING, str(holder)
    if job is not None and job.held:
        return HELD, f"{job.reason}; scontrol release {element}"
    if job is not None:
        words = f"job {element} {job.state}"
        return QUEUED, words + (f" ({job.reason})" if job.state == "PENDING" else f" on {job.node}")
    account = accounts.get(element, ("", ""))
    ended = f"; job {element} {account[0]} on {account[1]}" if account[0] else ""
    lines = block.attempts()
    if hopeless(block):
        return HOPELESS, "two tries reached the time limit without a new checkpoint"
    if lines and lines[-1]["event"] == "end":
        words = f"{lines[-1].get('reason', '')}{ended}"
        return (FAILED if lines[-1]["outcome"] == "failed" else BROKEN), words
    if lines:
        return BROKEN, f"{lines[-1]['owner']} ended without a word{ended}"
    if account[0]:
        return MISSING, (
            f"job {element} {account[0]} on {account[1]} and never came to {block.folder}: does "
            "that node see the folder? Its log, if there is one: "
            f"{block.folder.parent.parent / 'slurm'}"
        )
    return MISSING, f"job {element} is gone" if element else "never submitted"


def _rate(block: sweeps.Block, part: dict[int, float], published: frozenset[int]) -> float:
    """Seeds an hour since the try began, from what it has added to what it found."""
    starts = [line for line in block.attempts() if line["event"] == "start"]
    if not starts:
        return 0.0
    now = len(published - part.keys()) + sum(part.values())
    gained = now - starts[-1].get("seeds", 0.0)
    hours = (time.time() - starts[-1]["time"]) / 3600
    return max(gained, 0.0) / max(hours, 1e-9)


def summary(found: Sequence[BlockView]) -> dict[str, Any]:
    """Numbers of seeds by what became of them, rate (seeds an hour) and ETA (hours, or None)."""
    counts: dict[str, Any] = dict.fromkeys(
        ("seeds", "done", "failed", "running", "queued", "held", "missing"), 0
    )
    left = 0.0
    for view in found:
        seeds, done = set(view.block.seeds), view.done
        counts["seeds"] += len(seeds)
        counts["failed"] += len(view.failed)
        counts["done"] += len(done - view.failed)
        rest = seeds - done
        name = view.state if view.state in (RUNNING, QUEUED, HELD) else "missing"
        if view.state != ENDED:
            counts[name] += len(rest)
            left += len(rest) - sum(view.part.values())
    counts["rate"] = sum(view.rate for view in found)
    counts["eta_hours"] = left / counts["rate"] if counts["rate"] else None
    return counts


def _report(sweep: sweeps.Sweep, found: Sequence[BlockView], counts: dict[str, Any]) -> None:
    """The same for people, with a line for every block that is not simply done."""
    names = ("done", "failed", "running", "queued", "held", "missing")
    numbers = ", ".join(f"{counts[name]} {name}" for name in names)
    print(f"{sweep.workdir}\n{sweep.experiment.module}: {counts['seeds']} seeds: {numbers}")
    if counts["rate"]:
        end = time.strftime("%a %H:%M", time.localtime(time.time() + 3600 * counts["eta_hours"]))
        print(f"{counts['rate']:.1f} seeds an hour; at this rate all have ended on {end}")
    for view in found:
        if view.state != ENDED or view.failed:
            seeds = sweeps.write_seeds(view.block.seeds)
            line = f"  seeds {seeds:<12} {view.state:<12} {len(view.done)}/{len(view.block.seeds)}"
            print(f"{line}  {view.said}")
            if view.state in (FAILED, HOPELESS, BROKEN):
                print(f"{'':<20}log {view.block.folder / 'log.txt'}")
        if view.failed:
            print(
                f"{'':<20}seeds that failed: {sweeps.write_seeds(view.failed)}; "
                f"see DONE and FAILED in {sweep.workdir / 'seeds'}"
            )
    if any(view.submits for view in found):
        again = f"python -m launch.retry {shlex.quote(str(sweep.workdir))} submits"
        print(f"{again if sweep.submissions() else 'the same command again runs'} what is missing")


if __name__ == "__main__":
    command.main(run)
