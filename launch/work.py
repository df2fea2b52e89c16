"""A block's work folder, under the block's lease.

A block's folder holds its work folder under exactly one of these names:

    work.free                             nobody works on it
    work.slurm,812_3,node7,4711.1f0c6a2b  that process of that job does
    run                                   the block has ended

Whoever gets the lease renames the folder to a name that nobody else ever has. A process that lost
its lease (a node that the scheduler gave up, but that still runs) so finds its folder gone and
stops: it cannot write into the folder of its successor.
"""

import contextlib
import os
import socket
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

from densejax.lease import Holder, Leases, process_start, this_process
from launch import scheduler

FREE = "work.free"
ENDED = "run"
SILENT_SECONDS = 300.0
_WHOLE = ".whole"  # what a work folder holds that was not made by a process that lost its lease


def holder_of(environment: Mapping[str, str], *, local: bool) -> Holder:
    """The running process as a holder of leases: of its job, unless it is local."""
    job = environment.get("SLURM_JOB_ID", "")
    if "SLURM_ARRAY_JOB_ID" in environment:
        job = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    host = environment.get("SLURMD_NODENAME") or socket.gethostname()
    return this_process(host=host, job="" if local else job)


def leases_of(
    folder: Path,
    *,
    holder: Holder | None = None,
    queue: Mapping[str, scheduler.Queued] | None = None,
) -> Leases:
    """Leases of a sweep's blocks; the scheduler says which jobs are gone, by ``queue`` if given."""

    def gone(other: Holder) -> bool | None:
        if other.job:
            if holder is not None and other.job == holder.job:
                return True  # the same job, started again: its first start is over
            jobs = scheduler.queue() if queue is None else queue
            if jobs is not None:
                return other.job not in jobs or not jobs[other.job].runs
        elif other.host == socket.gethostname() and process_start(other.pid) is None:
            return True
        return None

    return Leases(folder / "leases", holder=holder, gone=gone, silent_s=SILENT_SECONDS)


def make_free(block: Path) -> None:
    """The empty work folder of a new block."""
    (block / FREE).mkdir(parents=True)
    (block / FREE / _WHOLE).touch()


def work_folder(block: Path) -> Path:
    """A block's work folder under the name that it has now."""
    for _ in range(20):
        names = os.listdir(block)
        if ENDED in names:
            return block / ENDED
        for name in sorted(names):
            if name.startswith("work.") and (block / name / _WHOLE).exists():
                return block / name
        time.sleep(0.05)  # it may have been renamed while the names were read
    raise FileNotFoundError(f"{block} has no work folder")


def begin(block: Path, leases: Leases) -> Path | None:
    """Take a block's lease and its work folder; None where the block has ended.

    Raises:
      HeldError: a living process has it.
    """
    leases.acquire(block.name)
    holder = leases.holder
    name = f"slurm,{holder.job}" if holder.job else "local,-"
    mine = block / f"work.{name},{holder.host},{holder.pid}.{uuid.uuid4().hex[:8]}"
    try:
        while (found := work_folder(block)).name != ENDED:
            with contextlib.suppress(FileNotFoundError):  # it is being handed back just now
                return found.rename(mine)
    except BaseException:
        leases.release(block.name)
        raise
    leases.release(block.name)
    return None


def end(work: Path, leases: Leases, *, name: str = FREE) -> None:
    """Hand a work folder back, free or as the run of a block that has ended."""
    try:
        work.rename(work.with_name(name))
    finally:
        leases.release(work.parent.name)
