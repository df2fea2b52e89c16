"""A block has one holder at a time, whatever happens to holders."""

import os
import subprocess
import sys
import threading

import pytest

from densejax.lease import HeldError, Holder, LostError
from launch import work

HERE = work.holder_of({}, local=True)


@pytest.fixture
def block(tmp_path):
    work.make_free(tmp_path / "0000")
    return tmp_path / "0000"


def take(block, holder):
    """A block's work folder, taken by somebody, and the leases that hold it."""
    leases = work.leases_of(block.parent, holder=holder)
    return work.begin(block, leases), leases


def dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_taken_handed_back_and_taken(block):
    run, leases = take(block, HERE)
    assert run.name.startswith(f"work.local,-,{HERE.host},{HERE.pid}.")
    assert work.leases_of(block.parent).living() == {"0000": HERE}
    work.end(run, leases)
    assert work.work_folder(block).name == work.FREE
    assert not work.leases_of(block.parent).living()
    assert take(block, HERE)[0].exists()


def test_one_of_many_wins(block):
    # Holders on another host that live: nobody may take over from them.
    holders = [Holder("elsewhere", number, f"place {number}") for number in range(16)]
    won, lost = [], []
    start = threading.Barrier(len(holders))

    def contend(holder):
        start.wait()
        try:
            won.append(take(block, holder)[0])
        except HeldError:
            lost.append(holder)

    threads = [threading.Thread(target=contend, args=(holder,)) for holder in holders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and len(lost) == 15
    assert [path.name for path in block.iterdir()] == [won[0].name]


def test_held_by_a_living_process(block):
    take(block, Holder(HERE.host, os.getppid(), "there"))
    with pytest.raises(HeldError, match=f"process {os.getppid()} on {HERE.host}"):
        take(block, HERE)


def test_taken_over_from_a_dead_process(block):
    old, _ = take(block, Holder(HERE.host, dead_process(), "there"))
    (old / "file").write_text("kept")
    run, _ = take(block, HERE)
    assert (run / "file").read_text() == "kept" and not old.exists()


def test_taken_over_from_a_silent_host(block):
    take(block, Holder("elsewhere", 1, "there"))
    with pytest.raises(HeldError):
        take(block, HERE)
    lease = next((block.parent / "leases").glob("0000.*"))
    long_ago = os.stat(lease).st_mtime - 2 * work.SILENT_SECONDS
    os.utime(lease, (long_ago, long_ago))
    assert take(block, HERE)[0].exists()


@pytest.mark.parametrize(
    ("words", "gone"),
    [("12_3|RUNNING|None|n1", False), ("12_3|PENDING|None|", True), ("9|RUNNING|None|n1", True)],
)
def test_the_scheduler_says_whether_a_job_lives(block, tmp_path, monkeypatch, words, gone):
    (tmp_path / "squeue").write_text(f"#!/bin/sh\necho '{words}'\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    take(block, Holder("n1", 77, "there", job="12_3"))
    assert bool(work.leases_of(block.parent).living()) != gone


def test_the_same_job_started_again_goes_on(block, monkeypatch):
    monkeypatch.setenv("PATH", "")  # a node without squeue
    take(block, Holder("n1", 77, "there", job="12_3"))
    with pytest.raises(HeldError):
        take(block, Holder("n2", 78, "elsewhere", job="12_4"))
    assert take(block, Holder("n2", 79, "elsewhere", job="12_3"))[0] is not None


def test_who_lost_its_lease_learns_it_and_harms_nobody(block, monkeypatch):
    monkeypatch.setenv("PATH", "")
    first = Holder("n1", 77, "there", job="12_3")
    old, held = take(block, first)
    held.renew("0000")
    new, newer = take(block, Holder("n2", 79, "elsewhere", job="12_3"))
    with pytest.raises(LostError):
        held.renew("0000")
    # It may write once more before it learns it, into a folder that nobody reads.
    (old / "running").mkdir(parents=True)
    with pytest.raises(LostError):
        held.renew("0000")
    assert work.work_folder(block) == new
    with pytest.raises(FileNotFoundError):
        work.end(new.with_name("work.lost"), held)
    newer.renew("0000")
    # Even if the job comes back to the process that has left it.
    inode = new.stat().st_ino
    assert take(block, first)[0].stat().st_ino == inode


def test_an_ended_block_is_nobodys(block):
    run, leases = take(block, HERE)
    work.end(run, leases, name=work.ENDED)
    assert take(block, HERE)[0] is None
    assert not work.leases_of(block.parent).living()


def test_a_folder_of_the_version_before_is_gone_on_with(block):
    (block / work.FREE).rename(block / "work.slurm,812_3,node7,4711")
    (block / "work.slurm,812_3,node7,4711" / "file").write_text("kept")
    run, _ = take(block, HERE)
    assert (run / "file").read_text() == "kept"
    assert [path.name for path in block.iterdir()] == [run.name]


def test_holder_by_the_environment():
    array = {"SLURM_JOB_ID": "15", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}
    found = work.holder_of(array | {"SLURMD_NODENAME": "n7"}, local=False)
    assert str(found) == "job 12_3 on n7"
    assert work.holder_of({"SLURM_JOB_ID": "15"}, local=False).job == "15"
    assert work.holder_of({"SLURM_JOB_ID": "15"}, local=True).job == ""
