"""A block has one owner at a time, whatever happens to owners."""

import os
import subprocess
import sys
import threading

import pytest

from launch import claims
from launch.claims import HeldError, LostError, Owner

HERE = claims.this_process({}, local=True)


@pytest.fixture
def block(tmp_path):
    claims.make_free(tmp_path / "0000")
    return tmp_path / "0000"


def dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_claim_release_claim(block):
    work = claims.claim(block, HERE)
    assert claims.owner_of(work) == HERE
    claims.release(work)
    assert claims.owner_of(claims.work_folder(block)) is None
    assert claims.claim(block, HERE) == work


def test_one_of_many_wins(block):
    # Owners of another host that live: nobody may take over from them.
    owners = [Owner("local", "-", "elsewhere", 1000 + number) for number in range(16)]
    won, lost = [], []
    start = threading.Barrier(len(owners))

    def contend(owner):
        start.wait()
        try:
            won.append(claims.claim(block, owner))
        except HeldError:
            lost.append(owner)

    threads = [threading.Thread(target=contend, args=(owner,)) for owner in owners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and len(lost) == 15
    assert [path.name for path in block.iterdir()] == [won[0].name]


def test_held_by_a_living_process(block):
    claims.claim(block, Owner("local", "-", HERE.host, os.getppid()))
    with pytest.raises(HeldError, match=f"process {os.getppid()} on {HERE.host}"):
        claims.claim(block, HERE)


def test_taken_over_from_a_dead_process(block):
    old = claims.claim(block, Owner("local", "-", HERE.host, dead_process()))
    (old / "file").write_text("kept")
    work = claims.claim(block, HERE)
    assert (work / "file").read_text() == "kept" and not old.exists()


def test_taken_over_from_a_silent_host(block):
    other = claims.claim(block, Owner("local", "-", "elsewhere", 1))
    with pytest.raises(HeldError):
        claims.claim(block, HERE)
    long_ago = os.stat(other).st_mtime - 2 * claims.SILENT_SECONDS
    os.utime(other, (long_ago, long_ago))
    assert claims.claim(block, HERE).name == HERE.name


@pytest.mark.parametrize(
    ("words", "gone"),
    [("12_3|RUNNING|None|n1", False), ("12_3|PENDING|None|", True), ("9|RUNNING|None|n1", True)],
)
def test_the_scheduler_says_whether_a_job_lives(block, tmp_path, monkeypatch, words, gone):
    (tmp_path / "squeue").write_text(f"#!/bin/sh\necho '{words}'\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    work = claims.claim(block, Owner("slurm", "12_3", "n1", 77))
    assert claims.is_gone(work, claims.owner_of(work)) == gone


def test_the_same_job_started_again_goes_on(block, monkeypatch):
    monkeypatch.setenv("PATH", "")  # a node without squeue
    claims.claim(block, Owner("slurm", "12_3", "n1", 77))
    with pytest.raises(HeldError):
        claims.claim(block, Owner("slurm", "12_4", "n2", 78))
    assert claims.claim(block, Owner("slurm", "12_3", "n2", 79)) is not None


def test_who_lost_its_claim_learns_it_and_harms_nobody(block, monkeypatch):
    monkeypatch.setenv("PATH", "")
    old = claims.claim(block, Owner("slurm", "12_3", "n1", 77))
    inode = old.stat().st_ino
    claims.renew(old, inode)
    new = claims.claim(block, Owner("slurm", "12_3", "n2", 79))
    with pytest.raises(LostError):
        claims.renew(old, inode)
    # It may write once more before it learns it, into a folder that nobody reads.
    (old / "running").mkdir(parents=True)
    with pytest.raises(LostError):
        claims.renew(old, inode)
    assert claims.work_folder(block) == new
    # Even if the job comes back to the process that has left it.
    assert claims.claim(block, Owner("slurm", "12_3", "n1", 77)).stat().st_ino == inode


def test_an_ended_block_is_nobodys(block):
    claims.claim(block, HERE).rename(block / claims.ENDED)
    assert claims.claim(block, HERE) is None


def test_owner_by_the_environment():
    array = {"SLURM_JOB_ID": "15", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}
    assert claims.this_process(array | {"SLURMD_NODENAME": "n7"}, local=False).job == "12_3"
    assert claims.this_process({"SLURM_JOB_ID": "15"}, local=False).job == "15"
    assert claims.this_process({"SLURM_JOB_ID": "15"}, local=True).kind == "local"
