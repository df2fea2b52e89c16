"""What an element of an array does: one block, or the collection of them all.

Started by submitit from a pickle (``BlockTask``, ``CollectTask``), or by a plain script:

    python -m launch.task --workdir=runs/a --module=experiments.segment --seeds=0:25 -- --width=8

Exit codes of the latter: 0, the block has ended or another process works on it; 75, its time was
up and the job should be requeued; 2, it failed.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launch import claims, collecting, command, experiment, sweeps
from launch.attempt import Attempt, BlockFailedError, hopeless
from launch.resources import minutes
from launch.seeds import parse_seeds

AGAIN = 75  # EX_TEMPFAIL
# Slurm gives its warning up to a minute before the moment that was asked for.
_EARLY_SECONDS = 70.0


class BlockTask:
    """A block as a callable that submitit can pickle, and requeue at its time limit."""

    def __init__(self, workdir: str, name: str, limit: float, signal_seconds: float) -> None:
        """Args: the sweep's folder, the block's name, its time limit and warning in seconds."""
        self.workdir, self.name = workdir, name
        self.limit, self.signal_seconds = limit, signal_seconds
        self._attempt: Attempt | None = None

    def __call__(self) -> dict[str, Any]:
        """Run the block to its end."""
        self._started = time.monotonic()
        self._attempt = attempt_of(Path(self.workdir), self.name, limit=self.limit)
        try:
            return self._attempt.run()
        except claims.HeldError as error:
            print(f"nothing to do: {error}", flush=True)
            return {}

    def checkpoint(self) -> Any:
        """Called by submitit at its signal; a new submission, or None for no more of them."""
        import submitit

        if self._attempt is not None:
            elapsed = time.monotonic() - self._started
            why = reason_of_signal(elapsed, limit=self.limit, signal_seconds=self.signal_seconds)
            if not self._attempt.stop_and_wait(why):
                print(hopeless_message(self.name, self.limit), flush=True)
                return None
        again = BlockTask(self.workdir, self.name, self.limit, self.signal_seconds)
        return submitit.helpers.DelayedSubmission(again)


class CollectTask:
    """The end of a sweep, as a job that waits for the blocks' jobs."""

    def __init__(self, workdir: str) -> None:
        self.workdir = workdir

    def __call__(self) -> int:
        """Write the summary of what has ended."""
        code = collecting.collect(sweeps.open_sweep(Path(self.workdir)), local=False)
        if code > 1:  # 1 says that a member failed
            raise BlockFailedError(f"the summary was refused with exit code {code}, see above")
        return code


def attempt_of(
    workdir: Path, name: str, *, limit: float, say: Callable[[str], None] | None = None
) -> Attempt:
    """A try of a block by this process.

    Raises:
      ValueError: the sweep or the block is not there.
    """
    sweep = sweeps.open_sweep(workdir)
    blocks = {block.name: block for block in sweep.blocks()}
    if name not in blocks:
        raise ValueError(f"{sweep.folder} has no block {name}")
    owner = claims.this_process(os.environ, local=False)
    report = say or (lambda line: print(line, flush=True))
    return Attempt(sweep, blocks[name], owner, limit=limit, say=report)


def reason_of_signal(elapsed: float, *, limit: float, signal_seconds: float) -> str:
    """Why the scheduler has sent its warning: ``time limit`` or ``preempted``."""
    late = limit and elapsed > limit - signal_seconds - _EARLY_SECONDS
    return "time limit" if late else "preempted"


def hopeless_message(name: str, limit: float) -> str:
    """What a block is told that never fits its time limit."""
    return (
        f"block {name} does not fit its time limit: two tries of {limit / 60:g} minutes ended "
        "without a new checkpoint. Give a longer --time, a smaller --block, or let the experiment "
        "checkpoint more often"
    )


def run(arguments: Sequence[str]) -> int:
    """Run the block of a plain script; returns the exit code."""
    own, flags = command.divided(arguments)
    parser = command.parser_of(__doc__, "task")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--module", required=True)
    parser.add_argument("--seeds", required=True)
    parser.add_argument("--time", default="24:00:00")
    parser.add_argument("--signal_seconds", type=float, default=90.0)
    given = parser.parse_args(own)
    seeds = parse_seeds(given.seeds)
    sweep = sweeps.begin(given.workdir, experiment.find(given.module, flags))
    block = sweep.add(seeds, len(seeds))[0]
    return _run_plain(sweep, block, given)


def _run_plain(sweep: sweeps.Sweep, block: sweeps.Block, given: argparse.Namespace) -> int:
    started, limit = time.monotonic(), 60.0 * minutes(given.time)
    attempt = attempt_of(sweep.workdir, block.name, limit=limit)
    asked: list[str] = []

    def warned(number: int, frame: object) -> None:
        del number, frame
        elapsed = time.monotonic() - started
        asked.append(reason_of_signal(elapsed, limit=limit, signal_seconds=given.signal_seconds))
        attempt.stop(asked[0])

    signal.signal(signal.SIGUSR2, warned)
    # Of a job that ends by itself before it is taken back, not every Slurm makes a waiting one.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        attempt.run()
    except claims.HeldError as error:
        print(f"nothing to do: {error}")
    except BlockFailedError as error:
        if not asked:
            raise
        if hopeless(block):
            raise ValueError(hopeless_message(block.name, limit)) from error
        return AGAIN
    return 0


if __name__ == "__main__":
    # Python would show the lines of a log file only when it is full.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    command.main(run)
