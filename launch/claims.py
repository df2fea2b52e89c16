"""Who works on a block: one directory whose name says so, and which changes hands by a rename.

A block's folder holds its work folder under exactly one of these names:

    work.free                        nobody works on it
    work.slurm,812_3,node7,4711      that process of that job does
    run                              the block has ended

Of two processes that rename the same name only one succeeds, on any file system that a cluster
shares, so that there is never a moment with two owners. A process that lost its claim (a node that
the scheduler gave up, but that still runs) finds its folder gone and stops: it cannot write into
the folder of its successor. The work folder's time is renewed while its owner lives.
"""

import os
import shutil
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launch import scheduler

FREE = "work.free"
ENDED = "run"
WHOLE = ".whole"  # what a work folder holds that was not made by a process that lost its claim
SILENT_SECONDS = 300.0


class HeldError(RuntimeError):
    """A living process works on the block."""


class LostError(RuntimeError):
    """Another process has taken the block over."""


@dataclass(frozen=True)
class Owner:
    """A process that works on a block.

    Attributes:
      kind: ``slurm`` or ``local``.
      job: the scheduler's number of the job, such as ``812_3``; ``-`` for a local process.
      host: the node's name.
      pid: number of the process there.
    """

    kind: str
    job: str
    host: str
    pid: int

    @property
    def name(self) -> str:
        """Of the work folder while this owner has it."""
        return f"work.{self.kind},{self.job},{self.host},{self.pid}"

    def __str__(self) -> str:
        what = f"process {self.pid}" if self.kind == "local" else f"job {self.job}"
        return f"{what} on {self.host}"


def this_process(environment: Mapping[str, str], *, local: bool) -> Owner:
    """The owner that the running process is."""
    host = environment.get("SLURMD_NODENAME") or socket.gethostname()
    job = environment.get("SLURM_JOB_ID", "-")
    if "SLURM_ARRAY_JOB_ID" in environment:
        job = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    if local or job == "-":
        return Owner("local", "-", host, os.getpid())
    return Owner("slurm", job, host, os.getpid())


def owner_of(work: Path) -> Owner | None:
    """Whose name a work folder carries; None for one that is free or has ended."""
    parts = work.name.removeprefix("work.").split(",")
    if len(parts) != 4 or not parts[3].isdecimal():
        return None
    return Owner(parts[0], parts[1], parts[2], int(parts[3]))


def make_free(block: Path) -> None:
    """The empty work folder of a new block."""
    (block / FREE).mkdir(parents=True)
    (block / FREE / WHOLE).touch()


def work_folder(block: Path) -> Path:
    """A block's work folder under the name that it has now.

    Raises:
      FileNotFoundError: the block has none.
    """
    for _ in range(20):
        names = os.listdir(block)
        if ENDED in names:
            return block / ENDED
        for name in sorted(names):
            if name.startswith("work.") and (block / name / WHOLE).exists():
                return block / name
        time.sleep(0.05)  # it may have been renamed while the names were read
    raise FileNotFoundError(f"{block} has no work folder")


def claim(block: Path, owner: Owner) -> Path | None:
    """Take a block's work folder; None where the block has ended.

    Raises:
      HeldError: a living process has it.
    """
    while True:
        found = work_folder(block)
        if found.name == ENDED:
            return None
        holder = owner_of(found)
        if holder is not None and holder != owner and not is_gone(found, holder, asks=owner):
            raise HeldError(f"block {block.name} is worked on by {holder}")
        mine = block / owner.name
        try:
            # Left by a process that lost its claim long ago; a rename needs an empty place.
            if mine != found and mine.exists() and not (mine / WHOLE).exists():
                shutil.rmtree(mine)
            found.rename(mine)
        except FileNotFoundError:
            continue
        os.utime(mine)
        return mine


def renew(work: Path, inode: int) -> None:
    """Say that the owner lives.

    Args:
      work: the folder that ``claim`` returned.
      inode: of the folder when it was claimed.

    Raises:
      LostError: it is another's now.
    """
    try:
        if work.stat().st_ino != inode:
            raise FileNotFoundError
        os.utime(work)
    except FileNotFoundError:
        raise LostError(f"{work} was taken over by another process") from None


def release(work: Path) -> None:
    """Hand a work folder back."""
    work.rename(work.with_name(FREE))


def is_gone(
    work: Path,
    holder: Owner,
    *,
    asks: Owner | None = None,
    queue: Mapping[str, scheduler.Queued] | None = None,
) -> bool:
    """Whether a work folder's owner no longer lives: by the system, the scheduler, its silence.

    Args:
      work: the folder.
      holder: its owner.
      asks: who wants to know; the same job, started again, knows that its first start is over.
      queue: what the scheduler has; asked here where it is not given.
    """
    if holder.kind == "slurm":
        if asks is not None and asks.kind == "slurm" and asks.job == holder.job:
            return True
        queue = scheduler.queue() if queue is None else queue
        if queue is not None:
            return holder.job not in queue or not queue[holder.job].runs
    elif holder.host == socket.gethostname() and not _lives(holder.pid):
        return True
    return _silent_seconds(work) > SILENT_SECONDS


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _silent_seconds(work: Path) -> float:
    """Seconds since the owner's last sign of life, by the clock of the file system."""
    clock = work.parent / f".clock.{uuid.uuid4().hex}"
    try:
        clock.touch()
        return clock.stat().st_mtime - work.stat().st_mtime
    except FileNotFoundError:
        return 0.0
    finally:
        clock.unlink(missing_ok=True)
