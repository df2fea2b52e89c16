"""What an element of an array does: one block, or the collection of them all.

submitit starts these from a pickle that knows them by the names of this module and its classes.
"""

import os
import time
from pathlib import Path
from typing import Any

from densejax.lease import HeldError
from launch import sweeps, work
from launch.attempt import Attempt, BlockFailedError
from launch.collect import collect

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
        sweep = sweeps.open_sweep(Path(self.workdir))
        blocks = {block.name: block for block in sweep.blocks()}
        if self.name not in blocks:
            raise ValueError(f"{sweep.folder} has no block {self.name}")
        owner = work.holder_of(os.environ, local=False)
        self._attempt = Attempt(sweep, blocks[self.name], owner, limit=self.limit, say=_say)
        try:
            return self._attempt.run()
        except HeldError as error:
            _say(f"nothing to do: {error}")
            return {}

    def checkpoint(self) -> Any:
        """Called by submitit at its signal; a new submission, or None for no more of them."""
        import submitit

        if self._attempt is not None:
            elapsed = time.monotonic() - self._started
            late = self.limit and elapsed > self.limit - self.signal_seconds - _EARLY_SECONDS
            if not self._attempt.stop_and_wait("time limit" if late else "preempted"):
                _say(
                    f"block {self.name} does not fit its time limit: two tries of "
                    f"{self.limit / 60:g} minutes ended without a new checkpoint. Give a longer "
                    "--time, a smaller --block, or let the experiment checkpoint more often"
                )
                return None
        again = BlockTask(self.workdir, self.name, self.limit, self.signal_seconds)
        return submitit.helpers.DelayedSubmission(again)


class CollectTask:
    """The end of a sweep, as a job that waits for the blocks' jobs."""

    def __init__(self, workdir: str) -> None:
        self.workdir = workdir

    def __call__(self) -> int:
        """Write the summary of what has ended."""
        code = collect(sweeps.open_sweep(Path(self.workdir)), local=False)
        if code > 1:  # 1 says that a member failed
            raise BlockFailedError(f"the summary was refused with exit code {code}, see above")
        return code


def _say(line: str) -> None:
    print(line, flush=True)
