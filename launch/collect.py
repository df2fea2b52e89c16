"""Write a sweep's summary: ``python -m launch.collect WORKDIR``.

Runs the experiment once more over all seeds that have ended; it finds them trained and writes what
it writes at its end, with the number of cores or accelerators of this machine. Submissions add this
as a job that waits for the blocks.
"""

from collections.abc import Sequence
from pathlib import Path

from launch import command, sweeps
from launch.collecting import collect


def run(arguments: Sequence[str]) -> int:
    """Collect; returns the experiment's exit code."""
    parser = command.parser_of(__doc__, "collect")
    parser.add_argument("workdir", type=Path)
    given = parser.parse_args(list(arguments))
    return collect(sweeps.open_sweep(given.workdir), local=True)


if __name__ == "__main__":
    command.main(run)
