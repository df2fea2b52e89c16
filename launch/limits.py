"""What a process may use: cores and memory, by the scheduler and the control group."""

import math
import os
from collections.abc import Mapping
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
TABLE = Path("/proc/self/cgroup")
_MEGABYTE = 1024**2
_UNLIMITED = 2**60  # version 1 writes "no limit" as a number near 2^63


def cores(environment: Mapping[str, str], *, groups: Path = GROUPS, table: Path = TABLE) -> int:
    """Cores that this process may keep busy, at least 1.

    The least of its affinity, the scheduler's allocation (sites without binding leave the affinity
    at the whole node) and the control group's quota.
    """
    found = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else _all_cores()]
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        if environment.get(name, "").isdecimal():
            found.append(int(environment[name]))
            break
    for folder in _folders("cpu", groups, table):
        quota = _quota(folder)
        if quota is not None:
            found.append(math.ceil(quota))
    return max(min(found), 1)


def memory(
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


def _all_cores() -> int:
    return os.cpu_count() or 1


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
