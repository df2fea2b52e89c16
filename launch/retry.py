"""Submit again exactly what is missing of a sweep: ``python -m launch.retry WORKDIR``.

Blocks that have ended, run, wait or are held are left alone. The resources are those of the last
submission; flags change them (``--time`` for blocks that do not fit). A block that was submitted
--cap times is left to you.
"""

from collections.abc import Sequence
from pathlib import Path

from launch import command, resources, scheduler, status, submit, sweeps


def run(arguments: Sequence[str]) -> int:
    """Submit; returns 1 where a block is left to the user."""
    parser = command.parser_of(__doc__, "retry")
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--cap", type=int, default=3, help="submissions of a block (default: 3)")
    parser.add_argument("--nocollect", action="store_true", help="submit no job for the summary")
    resources.add_flags(parser)
    given = parser.parse_args(list(arguments))
    sweep = sweeps.open_sweep(given.workdir)
    if not sweep.submissions():
        raise ValueError(
            f"{sweep.workdir} was not submitted by launch.slurm: give its own command again"
        )
    scheduler.require()
    before = [line["resources"] for line in sweep.submissions()]
    asked = resources.from_flags(given, before=before[-1])
    wanted, left = [], 0
    for view in status.views(sweep):
        why = _why_not(view, given.cap, asked, before)
        if view.state == status.ENDED:
            continue
        left += bool(why) and view.state not in (status.RUNNING, status.QUEUED)
        seeds = sweeps.write_seeds(view.block.seeds)
        print(f"  seeds {seeds:<12} {why or f'submitted again: {view.said}'}")
        if not why:
            wanted.append(view.block)
    if wanted:
        submit.submit(sweep, wanted, asked, collector=not given.nocollect)
    else:
        print("nothing to submit")
    return 1 if left else 0


def _why_not(
    view: status.BlockView, cap: int, asked: resources.Resources, before: Sequence[dict]
) -> str:
    """Why a block is not submitted again; empty where it is."""
    if not view.submits:
        return f"left alone: {view.state}, {view.said}"
    if view.tries >= cap:
        return f"left to you after {view.tries} submissions (--cap): {view.said}"
    longest = max((resources.minutes(line["time"]) for line in before), default=0)
    if view.state == status.HOPELESS and resources.minutes(asked.time) <= longest:
        return f"left to you: {view.said}; give a longer --time than {before[-1]['time']}"
    return ""


if __name__ == "__main__":
    command.main(run)
