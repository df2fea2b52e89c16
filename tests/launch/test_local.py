"""Blocks on this machine: the same results as one plain run, whatever happens on the way."""

import os
import signal
import subprocess
import sys
import time

import pytest

from launch import attempt, local, sweeps, work

SWEEP = ("--module=counting", "--seeds=0:7", "--block=3")


def plain(workdir, seeds="0:7", module="counting", *flags):
    words = [sys.executable, "-m", module, f"--seeds={seeds}", f"--workdir={workdir}", *flags]
    subprocess.run(words, check=False, capture_output=True, timeout=600)
    return workdir


def results(workdir):
    """Everything that is published, and the summary."""
    files = [*workdir.glob("**/seeds/*/*"), *workdir.glob("summary/*")]
    files = [path for path in files if path.is_file() and "launch" not in path.parts]
    return {path.relative_to(workdir).as_posix(): path.read_bytes() for path in files}


def test_blocks_are_a_plain_run(tiny, tmp_path, commands):
    said = commands("local", *SWEEP, f"--workdir={tmp_path / 'a'}", "--", f"--trouble={tiny}")
    assert results(tmp_path / "a") == results(plain(tmp_path / "b"))
    assert "block 0003: seeds 3:6" in said
    assert "7 seeds: 7 done, 0 failed" in commands("status", tmp_path / "a")
    again = commands("local", *SWEEP, f"--workdir={tmp_path / 'a'}", "--", f"--trouble={tiny}")
    assert again.count("has ended before") == 3


def test_a_failing_block_and_a_failing_seed(tiny, tmp_path, commands):
    (tiny / "crash-4").touch()
    (tiny / "nan-1").touch()
    words = (*SWEEP, f"--workdir={tmp_path / 'a'}", "--", f"--trouble={tiny}")
    said = commands("local", *words, expect=1)
    assert "seed 4 brings the whole process down" in said
    assert "without seeds 4:6, which have not ended" in said
    said = commands("status", tmp_path / "a", expect=1)
    assert "4 done, 1 failed" in said and "2 missing" in said and "log.txt" in said
    assert "the same command again" in said
    (tiny / "crash-4").unlink()
    commands("local", *words, expect=1)
    whole = plain(tmp_path / "b", "0:7", "counting", f"--trouble={tiny}")
    assert results(tmp_path / "a") == results(whole)


def test_a_kill_at_any_moment_loses_at_most_a_block(tiny, tmp_path, commands):
    (tiny / "slow").write_text("0.05")
    words = [sys.executable, "-m", "launch.local", *SWEEP, f"--workdir={tmp_path / 'a'}", "--"]
    words.append(f"--trouble={tiny}")
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not list(tmp_path.glob("a/launch/blocks/0003/work.local*/running/0003/checkpoints/*")):
        assert time.monotonic() < until
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    said = commands("status", tmp_path / "a", expect=1)
    assert "broken off" in said and "ended without a word" in said
    run = work.work_folder(tmp_path / "a/launch/blocks/0003")
    steps = len((run / "running/0003/metrics.jsonl").read_text().splitlines())
    time.sleep(0.5)  # its experiment has ended with it
    assert steps == len((run / "running/0003/metrics.jsonl").read_text().splitlines())
    (tiny / "slow").unlink()
    commands("local", *words[3:])
    assert results(tmp_path / "a") == results(plain(tmp_path / "b"))


def test_an_interrupt_hands_blocks_back(tiny, tmp_path):
    (tiny / "slow").write_text("0.05")
    words = [sys.executable, "-m", "launch.local", *SWEEP, f"--workdir={tmp_path}", "--"]
    child = subprocess.Popen(
        [*words, f"--trouble={tiny}"],
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background of a shell, interrupts are ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until = time.monotonic() + 120
    while not list(tmp_path.glob("launch/blocks/0000/work.local*/running/0000/checkpoints/*")):
        assert time.monotonic() < until
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    assert "the same command again continues" in child.communicate(timeout=60)[1]
    assert child.returncode == 130
    assert work.work_folder(tmp_path / "launch/blocks/0000").name == work.FREE


def test_two_at_once_publish_each_seed_once(tiny, tmp_path, commands):
    (tiny / "slow").write_text("0.01")
    words = [sys.executable, "-m", "launch.local", *SWEEP, f"--workdir={tmp_path / 'a'}", "--"]
    both = [
        subprocess.Popen([*words, f"--trouble={tiny}"], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for child in both:
        child.communicate(timeout=300)
    commands("local", *words[3:], f"--trouble={tiny}")
    assert results(tmp_path / "a") == results(plain(tmp_path / "b"))
    for block in sweeps.open_sweep(tmp_path / "a").blocks():
        assert [line["event"] for line in block.attempts()] == ["start", "end"]


def test_processes_side_by_side(tiny, tmp_path, commands):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core")
    words = (*SWEEP, "--processes=2", f"--workdir={tmp_path / 'a'}", "--", f"--trouble={tiny}")
    commands("local", *words)
    assert results(tmp_path / "a") == results(plain(tmp_path / "b"))
    with pytest.raises(ValueError, match="processes for"):
        local.places(10_000)


def test_hosts_that_share_the_blocks(tiny, tmp_path, commands):
    for share in ("0/2", "1/2"):
        words = ("--nocollect", f"--share={share}", f"--workdir={tmp_path / 'a'}", "--")
        commands("local", *SWEEP, *words, f"--trouble={tiny}")
    commands("collect", tmp_path / "a")
    assert results(tmp_path / "a") == results(plain(tmp_path / "b"))


def test_a_plain_run_is_gone_on_with(tiny, tmp_path, commands):
    plain(tmp_path / "a", "1:4")
    (tiny / "crash-2").touch()  # would end who trains it again
    commands("local", *SWEEP, f"--workdir={tmp_path / 'a'}", "--", f"--trouble={tiny}")
    assert results(tmp_path / "a") == results(plain(tmp_path / "b"))


def test_a_block_that_never_fits_is_given_up(tmp_path):
    sweep = sweeps.begin(tmp_path, sweeps.Experiment("counting", (), "/", "python", True))
    block = sweep.add(range(3), 3)[0]
    tries = [("time limit", False), ("preempted", False), ("time limit", True)]
    for reason, gained in [*tries, ("time limit", False)]:
        block.note("start", limit=600.0)
        block.note("end", outcome="stopped", reason=reason, gained=gained)
        assert not attempt.hopeless(block)
    block.note("start", limit=600.0)
    block.note("end", outcome="stopped", reason="time limit", gained=False)
    assert attempt.hopeless(block)
    block.note("start", limit=1200.0)  # a longer limit is another matter
    block.note("end", outcome="stopped", reason="time limit", gained=False)
    assert not attempt.hopeless(block)


@pytest.mark.slow
def test_a_real_sweep_to_the_bit(tiny, tmp_path, commands):
    (tiny / "nan-2").touch()
    words = ("--module=tiny_sweep", "--seeds=0:4", "--block=3", f"--workdir={tmp_path / 'a'}")
    commands("local", *words, "--", f"--trouble={tiny}", expect=1)
    one = results(tmp_path / "a")
    other = results(plain(tmp_path / "b", "0:4", "tiny_sweep", f"--trouble={tiny}"))
    metrics = [name for name in other if name.endswith(("metrics.jsonl", "DONE", "FAILED"))]
    assert len(metrics) == 8
    assert {name: one[name] for name in metrics} == {name: other[name] for name in metrics}


COMBINING = """
import argparse
from pathlib import Path


class Config:
    combine: str


parser = argparse.ArgumentParser()
for name in ("seeds", "workdir", "combine"):
    parser.add_argument(f"--{name}", default="")
parser.add_argument("--only_check_args", action="store_true")
given = parser.parse_args()
if not given.only_check_args:
    folder = Path(given.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    runs = [Path(run) for run in given.combine.split(",") if run]
    words = [given.seeds, *((run / "summary.txt").read_text() for run in runs)]
    (folder / "summary.txt").write_text(" ".join(words))
"""


def test_runs_that_cannot_be_extended_are_combined(tiny, tmp_path, commands, monkeypatch):
    (tiny / "combining.py").write_text(COMBINING)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ["PYTHONPATH"], str(tiny)]))
    words = ("--module=combining", "--seeds=0:5", "--block=2", f"--workdir={tmp_path / 'a'}", "--")
    commands("local", *words)
    assert (tmp_path / "a" / "summary.txt").read_text() == "0:5 0:2 2:4 4"
