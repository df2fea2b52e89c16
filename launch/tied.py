"""Start a command that ends when its parent does: ``python -m launch.tied PARENT CORES COMMAND``.

A supervisor that is killed outright (out of memory, a node taken back) cannot end its experiment;
the system does, where it knows how (Linux). ``CORES`` are numbers with commas, or ``-`` for all.

A scheduler's warnings reach every process of a job. They are for the supervisor: the command goes
on, and is ended outright where the supervisor decides so.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: int, cores: str, command: list[str]) -> None:
    """Tie this process to its parent and become the command."""
    for warning in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(warning, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the line above
            sys.exit(1)
        if cores != "-":
            os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
