"""Sweeps on a real Slurm of two nodes, through everything that happens to jobs.

``pytest -m slurm tests/launch`` runs them, in about twenty minutes on idle cores: time limits are
whole minutes. ``LAUNCH_EXPERIMENT=counting`` takes an experiment that starts at once, for machines
that are busy.
"""

import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from densejax.training.checkpoint import restore_tree
from launch import experiment, resources, submit, sweeps

pytestmark = pytest.mark.slurm
slow = pytest.mark.slow
EXPERIMENT = os.environ.get("LAUNCH_EXPERIMENT", "tiny_sweep")
LONG = 900  # seconds; importing JAX alone takes a minute where cores are rare


def plain(workdir, module, seeds, *flags):
    words = [sys.executable, "-m", module, f"--seeds={seeds}", f"--workdir={workdir}", *flags]
    subprocess.run(words, check=False, capture_output=True, timeout=600)
    return workdir


def assert_same_bits(found, expected, seeds):
    """Metrics, endings and, of a network, the parameters of all seeds."""
    assert sorted(p.name for p in (found / "seeds").iterdir()) == [f"{s:04d}" for s in seeds]
    for seed in seeds:
        one, other = (folder / "seeds" / f"{seed:04d}" for folder in (found, expected))
        assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
        names = {path.name for path in other.iterdir()}
        assert {path.name for path in one.iterdir()} == names
        for marker in names & {"DONE", "FAILED"}:
            assert (one / marker).read_bytes() == (other / marker).read_bytes()
        for part in names & {"best", "last"}:
            like = {"w": np.zeros(2, np.float32)}
            arrays = [restore_tree(folder / part, like)["w"] for folder in (one, other)]
            np.testing.assert_array_equal(*arrays)


def attempts(workdir, block):
    folder = workdir / "launch" / "blocks" / block
    return sweeps.Block(folder, ()).attempts()


def job_of(said):
    return re.search(r"blocks as job (\d+)", said).group(1)


def ask(*words):
    return subprocess.run(words, capture_output=True, text=True, timeout=60).stdout


def wait_for(ready, what, seconds=LONG):
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until, f"{what}\n{ask('squeue')}"
        time.sleep(0.5)


def reached(workdir, block, seed, step):
    """Whether a seed of a block in work has a checkpoint of a step."""
    pattern = f"launch/blocks/{block}/work.slurm*/running/{seed:04d}/checkpoints/{step:010d}"
    return bool(list(workdir.glob(pattern)))


def test_smoke(plain_cluster, tiny, tmp_path, monkeypatch, commands):
    # Without accounting, and with arrays of three elements at most: five blocks are two arrays.
    for name, value in plain_cluster.environment.items():
        monkeypatch.setenv(name, value)
    assert plain_cluster.listens() == {"127.0.0.1"}
    words = ("--module=counting", "--seeds=0:9", "--block=2", f"--workdir={tmp_path / 'a'}")
    said = commands("slurm", *words, "--nocollect", "--time=10", "--", f"--trouble={tiny}")
    assert "submitted 3 blocks" in said and "submitted 2 blocks" in said
    commands.wait_until(tmp_path / "a", "9 seeds: 9 done")
    assert_same_bits(tmp_path / "a", plain(tmp_path / "b", "counting", "0:9"), range(9))
    again = commands("slurm", *words, "--nocollect", "--time=10", "--", f"--trouble={tiny}")
    assert "5 blocks, 0 to submit" in again


@slow
def test_a_failing_block_and_a_failing_seed(on_slurm, tiny, tmp_path):
    (tiny / "crash-5").touch()
    (tiny / "nan-1").touch()
    flags = f"--trouble={tiny}"
    words = (f"--module={EXPERIMENT}", "--seeds=0:9", "--block=3", f"--workdir={tmp_path / 'a'}")
    on_slurm("slurm", *words, "--gres=gpu:2", "--cpus_per_task=2", "--time=30", "--", flags)
    said = on_slurm.wait_until(tmp_path / "a", "5 done, 1 failed", "3 missing")
    assert "seed 5 brings the whole process down" in said and "FAILED on" in said
    (tiny / "crash-5").unlink()
    said = on_slurm("retry", tmp_path / "a")
    assert "submitted 1 blocks" in said and "seeds 3:6" in said
    on_slurm.wait_until(tmp_path / "a", "8 done, 1 failed", "0 missing")
    wait_for(lambda: (tmp_path / "a/summary/scores.txt").exists(), "no summary")
    assert_same_bits(tmp_path / "a", plain(tmp_path / "b", EXPERIMENT, "0:9", flags), range(9))
    one, other = ((tmp_path / n / "summary/scores.txt").read_text() for n in "ab")
    assert one == other
    assert on_slurm("retry", tmp_path / "a").endswith("nothing to submit\n")


@slow
def test_a_retry_has_a_cap(on_slurm, tiny, tmp_path):
    (tiny / "crash-0").touch()
    words = ("--module=counting", "--seeds=0:2", f"--workdir={tmp_path}", "--nocollect")
    on_slurm("slurm", *words, "--", f"--trouble={tiny}")
    on_slurm.wait_until(tmp_path, "FAILED on")
    on_slurm("retry", tmp_path, "--cap=2", "--nocollect")
    on_slurm.wait_until(tmp_path, "FAILED on")
    said = on_slurm("retry", tmp_path, "--cap=2", expect=1)
    assert "left to you after 2 submissions" in said and "nothing to submit" in said


@slow
def test_the_time_limit_three_times(on_slurm, tiny, tmp_path):
    (tiny / "slow").write_text("4.0")
    words = (f"--module={EXPERIMENT}", "--seeds=0:2", f"--workdir={tmp_path / 'a'}", "--nocollect")
    limits = ("--time=2", "--signal_seconds=30")
    on_slurm("slurm", *words, *limits, "--", f"--trouble={tiny}", "--steps=600")

    def stops():
        return [line for line in attempts(tmp_path / "a", "0000") if line["event"] == "end"]

    wait_for(lambda: len(stops()) >= 3, "no three limits")
    assert all(line["reason"] == "time limit" and line["gained"] for line in stops())
    (tiny / "slow").unlink()
    on_slurm.wait_until(tmp_path / "a", "2 done")
    expected = plain(tmp_path / "b", EXPERIMENT, "0:2", "--steps=600")
    assert_same_bits(tmp_path / "a", expected, range(2))


@slow
def test_a_block_that_never_fits(on_slurm, tiny, tmp_path):
    (tiny / "slow").write_text("1.0")
    (tiny / "stuck").touch()
    words = ("--module=counting", "--seeds=0:2", f"--workdir={tmp_path}", "--nocollect")
    limits = ("--time=1", "--signal_seconds=20")
    on_slurm("slurm", *words, *limits, "--", f"--trouble={tiny}", "--steps=500")
    said = on_slurm.wait_until(tmp_path, "does not fit", "two tries")
    assert len(attempts(tmp_path, "0000")) == 4
    assert "give a longer --time" in on_slurm("retry", tmp_path, expect=1)
    (tiny / "stuck").unlink()
    (tiny / "slow").unlink()
    assert "submitted 1 blocks" in on_slurm("retry", tmp_path, "--time=5", "--nocollect"), said
    on_slurm.wait_until(tmp_path, "2 done")


@slow
def test_preemption(on_slurm, tiny, tmp_path):
    (tiny / "slow").write_text("1.0")
    words = (f"--module={EXPERIMENT}", "--seeds=0:4", "--block=2", f"--workdir={tmp_path / 'a'}")
    flags = (f"--trouble={tiny}", "--steps=300")
    on_slurm("slurm", *words, "--cpus_per_task=4", "--nocollect", "--time=30", "--", *flags)
    both = lambda: all(reached(tmp_path / "a", f"000{n}", n, 20) for n in (0, 2))  # noqa: E731
    wait_for(both, "blocks do not run")
    # Somebody with a higher priority takes both nodes.
    ask("sbatch", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 5")
    wait_for(lambda: len(attempts(tmp_path / "a", "0000")) >= 2, "not started again")
    (tiny / "slow").unlink()
    on_slurm.wait_until(tmp_path / "a", "4 done")
    for block in ("0000", "0002"):
        second = [line for line in attempts(tmp_path / "a", block) if line["event"] == "start"][1]
        assert second["seeds"] > 0  # it went on where its last checkpoint was
    expected = plain(tmp_path / "b", EXPERIMENT, "0:4", *flags)
    assert_same_bits(tmp_path / "a", expected, range(4))


@slow
def test_cancelled_in_the_middle(on_slurm, tiny, tmp_path):
    (tiny / "slow").write_text("1.0")
    words = (f"--module={EXPERIMENT}", "--seeds=0:4", "--block=2", f"--workdir={tmp_path / 'a'}")
    flags = (f"--trouble={tiny}", "--steps=300")
    said = on_slurm("slurm", *words, "--nocollect", "--time=30", "--", *flags)
    wait_for(lambda: reached(tmp_path / "a", "0002", 2, 20), "block does not run")
    ask("scancel", f"{job_of(said)}_1")
    said = on_slurm.wait_until(tmp_path / "a", "broken off", "CANCELLED")
    assert "seeds 2:4" in said
    (tiny / "slow").unlink()
    on_slurm("retry", tmp_path / "a", "--nocollect")
    on_slurm.wait_until(tmp_path / "a", "4 done")
    expected = plain(tmp_path / "b", EXPERIMENT, "0:4", *flags)
    assert_same_bits(tmp_path / "a", expected, range(4))


@slow
def test_a_node_set_down(on_slurm, cluster, tiny, tmp_path):
    (tiny / "slow").write_text("1.0")
    words = (f"--module={EXPERIMENT}", "--seeds=0:2", f"--workdir={tmp_path / 'a'}", "--nocollect")
    flags = (f"--trouble={tiny}", "--steps=300")
    on_slurm("slurm", *words, "--time=30", "--", *flags)
    wait_for(lambda: reached(tmp_path / "a", "0000", 0, 20), "block does not run")
    node = attempts(tmp_path / "a", "0000")[0]["host"]
    try:
        ask("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
        said = on_slurm.wait_until(tmp_path / "a", "2 held", "scontrol release")
        ask(*re.search(r"scontrol release [\d_]+", said).group().split())
        (tiny / "slow").unlink()
        on_slurm.wait_until(tmp_path / "a", "2 done")
    finally:
        ask("scontrol", "update", f"nodename={node}", "state=resume")
        cluster.wait_for_nodes()
    other = [line["host"] for line in attempts(tmp_path / "a", "0000") if line["event"] == "start"]
    assert len(set(other)) == 2
    expected = plain(tmp_path / "b", EXPERIMENT, "0:2", *flags)
    assert_same_bits(tmp_path / "a", expected, range(2))


@slow
def test_submitted_twice_at_once(on_slurm, tiny, tmp_path):
    (tiny / "slow").write_text("0.5")
    flags = (f"--trouble={tiny}", "--steps=100")
    found = experiment.find(EXPERIMENT, flags)
    sweep = sweeps.begin(tmp_path / "a", found)
    blocks = sweep.add(range(4), 2)
    # launch.slurm would see the other's jobs in the queue; here neither looks.
    asked = resources.Resources(time="30")
    both = [submit.submit(sweep, blocks, asked, collector=False) for _ in range(2)]
    jobs = [job for one in both for job in one]
    wait_for(lambda: ask("squeue", "-h", "-j", ",".join(jobs)) == "", "jobs do not end")
    assert "4 done" in on_slurm("status", tmp_path / "a")
    for block in ("0000", "0002"):
        # Of four jobs for two blocks, one of the two found it held, or ended, and trained nothing.
        assert [line["event"] for line in attempts(tmp_path / "a", block)] == ["start", "end"]
    logs = [path.read_text() for path in (tmp_path / "a/launch/slurm").glob("*_log.out")]
    assert len(logs) == 4
    said = [t for t in logs if "is worked on by job" in t or "has ended before" in t]
    assert len(said) == 2
    (tiny / "slow").unlink()
    expected = plain(tmp_path / "b", EXPERIMENT, "0:4", *flags)
    assert_same_bits(tmp_path / "a", expected, range(4))


@slow
def test_a_folder_that_the_nodes_do_not_see(on_slurm, cluster, tiny, tmp_path):
    words = ("--module=counting", "--seeds=0:2", f"--workdir={tmp_path / 'a'}", "--nocollect")
    (tmp_path / "a").mkdir()
    pids = [cluster.node_process(node) for node in ("n1", "n2")]
    try:
        for pid in pids:
            subprocess.run(
                ["nsenter", "-t", str(pid), "-m", "mount", "-t", "tmpfs", "none", tmp_path / "a"],
                check=True,
            )
        on_slurm("slurm", *words, "--", f"--trouble={tiny}")
        said = on_slurm.wait_until(tmp_path / "a", "never came to", "2 missing")
        assert "does that node see the folder?" in said
    finally:
        for pid in pids:
            subprocess.run(["nsenter", "-t", str(pid), "-m", "umount", tmp_path / "a"], check=True)


@slow
def test_the_scheduler_in_its_own_words(on_slurm, tiny, tmp_path):
    words = ("--module=counting", "--seeds=0:2", f"--workdir={tmp_path}", "--partition=gqu")
    said = on_slurm("slurm", *words, "--", f"--trouble={tiny}", expect=2)
    assert "invalid partition specified: gqu" in said


@slow
def test_many_blocks_are_submitted_at_once(on_slurm, tiny, tmp_path):
    words = ("--module=counting", "--seeds=0:5000", "--block=25", f"--workdir={tmp_path}")
    start = time.monotonic()
    said = on_slurm("slurm", *words, "--sbatch=--begin=now+1hour", "--", f"--trouble={tiny}")
    print(f"200 blocks submitted in {time.monotonic() - start:.1f} s")
    assert "submitted 200 blocks" in said
    start = time.monotonic()
    assert "5000 queued" in on_slurm("status", tmp_path, expect=1)
    print(f"their status in {time.monotonic() - start:.1f} s")
    ask("scancel", job_of(said))
