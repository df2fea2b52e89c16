"""What has become of each block and seed: from the files first, from the scheduler second."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launch import claims, members, progress, scheduler, sweeps
from launch.attempt import hopeless

# Of a block: what it is called, and whether a new submission of it makes sense.
ENDED, RUNNING, QUEUED, HELD = "ended", "running", "queued", "held"
FAILED, HOPELESS, BROKEN, MISSING = "failed", "does not fit", "broken off", "missing"
_LEFT_ALONE = {ENDED, RUNNING, QUEUED, HELD}


@dataclass(frozen=True)
class BlockView:
    """A block and what has become of it.

    Attributes:
      block: seeds and folder.
      state: one of the names above.
      said: why, for people.
      element: its newest job, such as ``812_3``; empty for none.
      tries: times that it was submitted.
      failed: seeds with a failed member.
      published: seeds with a published member.
      part: of each seed in training, the share of its steps that is done.
      rate: seeds an hour that its running try trains; 0 where there is none.
    """

    block: sweeps.Block
    state: str
    said: str
    element: str = ""
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


def views(sweep: sweeps.Sweep, *, ask: bool = True) -> list[BlockView]:
    """All blocks of a sweep, by their seeds; the scheduler is asked twice, however many.

    Args:
      sweep: whose blocks.
      ask: whether to ask the scheduler, where there is one.
    """
    newest, tries = _elements(sweep)
    arrays = {element.partition("_")[0] for element in newest.values()}
    queued = scheduler.queue() if ask else None
    accounts = scheduler.ended(arrays) if queued is not None else {}
    published = list(members.members(sweep.workdir)) if sweep.experiment.extends else []
    return [
        _view(sweep, block, published, newest, tries, queued, accounts) for block in sweep.blocks()
    ]


def _elements(sweep: sweeps.Sweep) -> tuple[dict[str, str], dict[str, int]]:
    """Newest element and number of submissions of each block, by name."""
    newest: dict[str, str] = {}
    tries: dict[str, int] = {}
    for line in sweep.submissions():
        for element, name in line.get("elements", {}).items():
            newest[name] = element
            tries[name] = tries.get(name, 0) + 1
    return newest, tries


def _view(
    sweep: sweeps.Sweep,
    block: sweeps.Block,
    elsewhere: Sequence[Path],
    elements: Mapping[str, str],
    submissions: Mapping[str, int],
    queued: Mapping[str, scheduler.Queued] | None,
    accounts: Mapping[str, tuple[str, str]],
) -> BlockView:
    """View of a block; ``elsewhere`` are the members that the sweep has."""
    element, tries = elements.get(block.name, ""), submissions.get(block.name, 0)
    ending = block.ending()
    if ending is not None:
        failed = frozenset(members.seed_of(Path(path)) for path in ending["failed"])
        said = f"{len(failed)} seeds failed" if failed else "ended"
        return BlockView(block, ENDED, said, element, tries, failed)
    work = claims.work_folder(block.folder)
    state, said = _state(block, work, element, queued, accounts)
    found = [work / path for path in members.members(work)]
    found += [sweep.workdir / p for p in elsewhere if members.seed_of(p) in block.seeds]
    published = frozenset(members.seed_of(path) for path in found)
    failed = frozenset(members.seed_of(path) for path in found if (path / "FAILED").exists())
    steps = progress.steps_of(sweep.workdir, elsewhere[0]) if elsewhere else 0
    part = progress.parts_of(work, otherwise=steps)
    rate = _rate(block, part, published) if state == RUNNING else 0.0
    return BlockView(block, state, said, element, tries, failed, published, part, rate)


def _state(
    block: sweeps.Block,
    work: Path,
    element: str,
    queued: Mapping[str, scheduler.Queued] | None,
    accounts: Mapping[str, tuple[str, str]],
) -> tuple[str, str]:
    holder = claims.owner_of(work)
    job = (queued or {}).get(element)
    if holder is not None and not claims.is_gone(work, holder, queue=queued):
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
