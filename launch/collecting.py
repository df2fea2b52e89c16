"""The end of a sweep: the experiment once more, over all seeds that have ended, for its summary."""

import os
import subprocess
import sys
from collections.abc import Callable

from launch import claims, members, sweeps
from launch.attempt import child_environment
from launch.seeds import write_seeds


def seeds_to_collect(sweep: sweeps.Sweep) -> tuple[set[int], set[int]]:
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

    Args:
      sweep: what to collect.
      local: whether this is no job of a scheduler.
      say: where a line for people goes.

    Raises:
      ValueError: no block has ended.
      HeldError: another process is collecting.
    """
    done, missing = seeds_to_collect(sweep)
    if not done:
        raise ValueError(f"{sweep.workdir}: no block has ended, there is nothing to collect")
    if missing:
        say(f"without seeds {write_seeds(missing)}, which have not ended")
    runs = [block.folder / claims.ENDED for block in sweep.blocks() if block.ending()]
    if not (sweep.experiment.extends or sweep.experiment.combines):
        say(f"{sweep.experiment.module}: each block is a run of its own, with its own summary:")
        for run in runs:
            say(f"  {run}")
        return 0
    command = sweep.experiment.command(write_seeds(done), sweep.workdir)
    if not sweep.experiment.extends:
        command.append("--combine=" + ",".join(map(str, runs)))
    place = sweep.folder / "collecting"
    if not place.exists():
        claims.make_free(place)
    owner = claims.this_process(os.environ, local=local)
    work = claims.claim(place, owner)
    assert work is not None  # it is never renamed to run
    try:
        environment = child_environment(os.environ, {}, "-")
        sys.stdout.flush()
        # In this process's group, so that a terminal's Ctrl-C ends both.
        done_process = subprocess.run(
            command, cwd=sweep.experiment.folder, env=environment, stdin=subprocess.DEVNULL
        )
    finally:
        claims.release(work)
    return done_process.returncode
