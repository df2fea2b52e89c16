"""Write a sweep's summary: ``python -m launch.collect WORKDIR``.

Runs the experiment once more over all seeds that have ended; it finds them trained and writes what
it writes at its end, with the number of cores or accelerators of this machine. Submissions add this
as a job that waits for the blocks.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from launch import child, command, members, sweeps, work


def run(arguments: Sequence[str]) -> int:
    """Collect; returns the experiment's exit code."""
    parser = command.parser_of(__doc__, "collect")
    parser.add_argument("workdir", type=Path)
    given = parser.parse_args(list(arguments))
    return collect(sweeps.open_sweep(given.workdir), local=True)


def _seeds_to_collect(sweep: sweeps.Sweep) -> tuple[set[int], set[int]]:
    """Seeds of the blocks that have ended, and all others.

    A seed of a block that has not ended counts as ended where all its members are published: where
    it has every kind of member that seeds of ended blocks have.
    """
    blocks = sweep.blocks()
    ended = {seed for block in blocks if block.ending() for seed in block.seeds}
    others = {seed for block in blocks for seed in block.seeds} - ended
    kinds: dict[int, set[str]] = {}
    for member in members.members(sweep.workdir):
        kinds.setdefault(members.seed_of(member), set()).add(members.pattern_of(member))
    whole = set().union(*(kinds.get(seed, set()) for seed in ended))
    complete = {seed for seed in others if whole and kinds.get(seed, set()) >= whole}
    return ended | complete, others - complete


def collect(sweep: sweeps.Sweep, *, local: bool, say: Callable[[str], None] = print) -> int:
    """Write the summary of all seeds that have ended; returns the experiment's exit code.

    Raises:
      ValueError: no block has ended.
      HeldError: another process is collecting.
    """
    done, missing = _seeds_to_collect(sweep)
    if not done:
        raise ValueError(f"{sweep.workdir}: no block has ended, there is nothing to collect")
    if missing:
        say(f"without seeds {sweeps.write_seeds(missing)}, which have not ended")
    runs = [block.folder / work.ENDED for block in sweep.blocks() if block.ending()]
    if not (sweep.experiment.extends or sweep.experiment.combines):
        say(f"{sweep.experiment.module}: each block is a run of its own, with its own summary:")
        for folder in runs:
            say(f"  {folder}")
        return 0
    words = sweep.experiment.command(sweeps.write_seeds(done), sweep.workdir)
    if not sweep.experiment.extends:
        words.append("--combine=" + ",".join(map(str, runs)))
    holder = work.holder_of(os.environ, local=local)
    leases = work.leases_of(sweep.folder, holder=holder)
    leases.acquire("summary")
    with leases:
        sys.stdout.flush()
        # In this process's group, so that a terminal's Ctrl-C ends both.
        return subprocess.run(
            words,
            cwd=sweep.experiment.folder,
            env=child.environment_of(os.environ),
            stdin=subprocess.DEVNULL,
        ).returncode


if __name__ == "__main__":
    command.main(run)
