"""Cores and memory by the scheduler and by control groups of both versions."""

import os

import pytest

from launch import child


@pytest.fixture
def groups(tmp_path):
    """``write(table, {file: text})`` makes a machine's control groups."""

    def write(table, files):
        (tmp_path / "table").write_text(table)
        for name, text in files.items():
            path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        return {"groups": tmp_path / "groups", "table": tmp_path / "table"}

    return write


def test_version_2_the_tightest_group_around(groups):
    files = {"job/memory.max": "4000000", "job/step/memory.max": "max", "memory.max": "9000000"}
    found = groups("0::/job/step/task\n", files | {"job/cpu.max": "150000 100000"})
    assert child.memory_of({}, **found) == 4_000_000
    assert child.cores_of({}, **found) == min(2, len(os.sched_getaffinity(0)))


def test_version_1(groups):
    files = {
        "memory/slurm/job/memory.limit_in_bytes": "5000000",
        "memory/memory.limit_in_bytes": "9223372036854771712",  # no limit
        "cpu,cpuacct/slurm/cpu.cfs_quota_us": "-1",
    }
    table = "4:memory:/slurm/job/task\n3:cpu,cpuacct:/slurm\n"
    assert child.memory_of({}, **groups(table, files)) == 5_000_000
    assert child.cores_of({}, **groups(table, files)) == len(os.sched_getaffinity(0))


def test_the_scheduler(groups):
    none = groups("0::/\n", {})
    assert child.memory_of({}, **none) is None
    assert child.memory_of({"SLURM_MEM_PER_NODE": "100"}, **none) == 100 * 1024**2
    per_core = {"SLURM_MEM_PER_CPU": "10", "SLURM_CPUS_ON_NODE": "3"}
    assert child.memory_of(per_core, **none) == 30 * 1024**2
    assert child.memory_of({"SLURM_MEM_PER_NODE": "0"}, **none) is None  # the whole node
    assert child.cores_of({"SLURM_CPUS_PER_TASK": "1", "SLURM_CPUS_ON_NODE": "64"}, **none) == 1
    assert child.cores_of({"SLURM_CPUS_ON_NODE": "1"}, **none) == 1


def test_no_groups_at_all(tmp_path):
    nothing = {"groups": tmp_path / "a", "table": tmp_path / "b"}
    assert child.memory_of({}, **nothing) is None
    assert child.cores_of({}, **nothing) == len(os.sched_getaffinity(0))
