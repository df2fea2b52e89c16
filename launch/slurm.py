"""Seeds of any experiment as a Slurm array, a block of seeds an element.

    python -m launch.slurm --module=experiments.segment --seeds=0:500 --block=25 \\
        --partition=gpu --gres=gpu:4 --time=24:00:00 -- --data=platelets --network=unet

What follows -- goes to the experiment, which is asked before anything is submitted. All of a node's
accelerators work on one block. The same command again submits what has neither ended nor waits;
other seeds extend the sweep. --dry_run prints a script for sbatch instead and does nothing.
"""

import sys
from collections.abc import Sequence

from launch import command, experiment, resources, scheduler, shared, state, submit
from launch.script import sbatch_script
from launch.seeds import in_blocks, write_seeds


def run(arguments: Sequence[str]) -> int:
    """Submit, or print the script; returns the exit code."""
    own, flags = command.divided(arguments)
    parser = command.parser_of(__doc__, "slurm")
    command.add_sweep_flags(parser)
    resources.add_flags(parser)
    parser.add_argument("--dry_run", action="store_true", help="print a script for sbatch")
    parser.add_argument("--nocollect", action="store_true", help="no job that writes the summary")
    given = parser.parse_args(own)
    asked = resources.from_flags(given)
    if given.dry_run:
        found = experiment.find(given.module, flags, python=given.python)
        experiment.check(found, str(given.seeds[0]))
        workdir, blocks = command.workdir_of(given, found), in_blocks(given.seeds, given.block)
        largest = scheduler.largest_array()
        print(sbatch_script(found, workdir, blocks, asked, largest=largest), end="")
        return 0
    scheduler.require()
    for warning in shared.check(command.workdir_of_flags(given, flags)):
        print(f"warning: {warning}", file=sys.stderr)
    sweep, blocks_of_sweep = command.begin(given, flags)
    open_blocks = [view for view in state.views(sweep) if view.block in blocks_of_sweep]
    wanted = [view.block for view in open_blocks if view.submits]
    print(f"{sweep.workdir}: {len(blocks_of_sweep)} blocks, {len(wanted)} to submit")
    for view in open_blocks:
        if not view.submits:
            print(f"  seeds {write_seeds(view.block.seeds)}: {view.said}")
    if wanted:
        submit.submit(sweep, wanted, asked, collector=not given.nocollect)
    print(f"python -m launch.status {sweep.workdir}")
    return 0


if __name__ == "__main__":
    command.main(run)
