"""Seeds of any experiment as a Slurm array, a block of seeds an element.

    python -m launch.slurm --module=experiments.segment --seeds=0:500 --block=25 \\
        --partition=gpu --gres=gpu:4 --time=24:00:00 -- --data=platelets --network=unet

What follows -- goes to the experiment, which is asked before anything is submitted. All of a node's
accelerators work on one block. The same command again submits what has neither ended nor waits;
other seeds extend the sweep. --dry_run prints the scripts that sbatch would get, and does nothing.
"""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from launch import command, experiment, resources, scheduler, status, submit, sweeps

# Kept in the memory of one machine.
_OF_ONE_HOST = {"tmpfs", "ramfs", "devtmpfs"}
# Of a disk of this machine, unless it is this machine that exports it.
_OF_A_DISK = {"ext2", "ext3", "ext4", "xfs", "btrfs", "overlay", "zfs"}


def run(arguments: Sequence[str]) -> int:
    """Submit, or print the scripts; returns the exit code."""
    own, flags = command.divided(arguments)
    parser = command.parser_of(__doc__, "slurm")
    command.add_sweep_flags(parser)
    resources.add_flags(parser)
    parser.add_argument("--dry_run", action="store_true", help="print the scripts for sbatch")
    parser.add_argument("--nocollect", action="store_true", help="submit no job for the summary")
    given = parser.parse_args(own)
    asked = resources.from_flags(given)
    if not given.dry_run:
        scheduler.require()
    found = experiment.find(given.module, flags, python=given.python)
    workdir = command.workdir_of(given, found)
    submit.check_name("--workdir", str(workdir))
    if given.dry_run:
        experiment.check(found, str(given.seeds[0]))
        sweep = sweeps.Sweep(workdir, found)
        left_alone = {view.block.seeds for view in status.views(sweep) if not view.submits}
        parts = sweeps.in_blocks(given.seeds, given.block)
        wanted = [part for part in parts if part not in left_alone]
        print(f"{workdir}: {len(parts)} blocks, {len(wanted)} to submit", file=sys.stderr)
        for text in submit.scripts(sweep, wanted, asked, collector=not given.nocollect):
            print(text)
        return 0
    for warning in check_shared(workdir):
        print(f"warning: {warning}", file=sys.stderr)
    sweep, blocks = command.begin(given, found)
    views = [view for view in status.views(sweep) if view.block in blocks]
    open_blocks = [view.block for view in views if view.submits]
    print(f"{sweep.workdir}: {len(blocks)} blocks, {len(open_blocks)} to submit")
    for view in views:
        if not view.submits:
            print(f"  seeds {sweeps.write_seeds(view.block.seeds)}: {view.said}")
    if open_blocks:
        submit.submit(sweep, open_blocks, asked, collector=not given.nocollect)
    print(f"python -m launch.status {shlex.quote(str(sweep.workdir))}")
    return 0


def check_shared(folder: Path, *, table: Path = Path("/proc/mounts")) -> list[str]:
    """Warnings of a folder's file system; a ValueError where no other host can see the folder."""
    kind, place = _file_system(folder, table)
    if kind in _OF_ONE_HOST:
        raise ValueError(
            f"{folder} lies on {place}, which is {kind}: in the memory of this machine, unseen by "
            "the nodes. Name a --workdir on a file system that all hosts share."
        )
    if kind in _OF_A_DISK:
        return [
            f"{folder} lies on {place}, a disk of this machine ({kind}); if the nodes do not see "
            "it, their jobs end without a word, and python -m launch.status says so"
        ]
    return []


def _file_system(folder: Path, table: Path) -> tuple[str, str]:
    """Kind and place of the file system that a path is on; empty where it cannot be told."""
    real = os.path.realpath(folder)
    best = ("", "")
    try:
        lines = table.read_text().splitlines()
    except OSError:
        return best
    for line in lines:
        _, place, kind = line.split()[:3]
        place = place.replace("\\040", " ")
        inside = real == place or real.startswith(place.rstrip("/") + "/")
        if inside and len(place) >= len(best[1]):
            best = (kind, place)
    return best


if __name__ == "__main__":
    command.main(run)
