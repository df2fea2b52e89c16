"""The process of an experiment: what it may use, and that it ends when its supervisor does.

    python launch/child.py PARENT CORES COMMAND

ties itself to its parent and becomes the command. A supervisor that is killed outright (out of
memory, a node taken back) cannot end its experiment; the system does, where it knows how (Linux).
``CORES`` are numbers with commas, or ``-`` for all.

A scheduler's warnings reach every process of a job. They are for the supervisor: the command goes
on, and is ended outright where the supervisor decides so.
"""

import ctypes
import math
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

ALL = "-"
GROUPS = Path("/sys/fs/cgroup")
TABLE = Path("/proc/self/cgroup")
_MEGABYTE = 1024**2
_UNLIMITED = 2**60  # version 1 writes "no limit" as a number near 2^63
_PR_SET_PDEATHSIG = 1


def environment_of(
    own: Mapping[str, str], *, more: Mapping[str, str] | None = None, cores: str = ALL
) -> dict[str, str]:
    """The environment of an experiment, with the cores and the memory that it may use.

    ``own`` is that of this process, ``more`` what the experiment has besides.
    """
    found = dict(own) | dict(more or {})
    count = cores_of(found) if cores == ALL else len(cores.split(","))
    found.setdefault("JAX_NUM_CPU_DEVICES", str(count))
    if (limit := memory_of(found)) is not None:
        found.setdefault("DENSEJAX_MEMORY_BYTES", str(limit))
    return found


def cores_of(environment: Mapping[str, str], *, groups: Path = GROUPS, table: Path = TABLE) -> int:
    """Cores that this process may keep busy, at least 1.

    The least of its affinity, the scheduler's allocation (sites without binding leave the affinity
    at the whole node) and the control group's quota.
    """
    known = hasattr(os, "sched_getaffinity")  # not on every system
    found = [len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1]
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        if environment.get(name, "").isdecimal():
            found.append(int(environment[name]))
            break
    for folder in _folders("cpu", groups, table):
        quota = _quota(folder)
        if quota is not None:
            found.append(math.ceil(quota))
    return max(min(found), 1)


def memory_of(
    environment: Mapping[str, str], *, groups: Path = GROUPS, table: Path = TABLE
) -> int | None:
    """Bytes that this process may use; None where nobody has set a limit.

    The least of the scheduler's allocation and the limits of the control group and of all those
    around it.
    """
    found = []
    per_node, per_core = (environment.get(f"SLURM_MEM_PER_{of}", "") for of in ("NODE", "CPU"))
    if per_node.isdecimal() and int(per_node):  # 0 is the whole node
        found.append(int(per_node) * _MEGABYTE)
    elif per_core.isdecimal() and environment.get("SLURM_CPUS_ON_NODE", "").isdecimal():
        found.append(int(per_core) * int(environment["SLURM_CPUS_ON_NODE"]) * _MEGABYTE)
    for folder in _folders("memory", groups, table):
        for name in ("memory.max", "memory.limit_in_bytes"):
            value = _number(folder / name)
            if value is not None and value < _UNLIMITED:
                found.append(value)
    return min(found) if found else None


def _folders(controller: str, groups: Path, table: Path) -> list[Path]:
    """Folders of the control groups that this process is in, innermost first."""
    try:
        lines = [line.split(":", 2) for line in table.read_text().splitlines()]
    except OSError:
        lines = []
    found = []
    for _, controllers, place in lines:
        root = groups / controller if controllers else groups
        if controllers and controller not in controllers.split(","):
            continue
        inner = root / place.strip("/")
        # Inside a container the table may name a place that is not mounted there.
        found += [folder for folder in (inner, *inner.parents) if folder.is_relative_to(root)]
    return found or [groups]


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _quota(folder: Path) -> float | None:
    """Cores that a control group's quota of time comes to."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    first, second = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return first / second if first and second else None


def _become(parent: int, cores: str, command: list[str]) -> None:
    """Tie this process to its parent and become the command."""
    for warning in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(warning, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the line above
            sys.exit(1)
        if cores != ALL:
            os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    os.execvp(command[0], command)


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
