"""A sweep that is killed at any moment and started again ends as if it had never been killed."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from toy import Line, line_data

from densejax.training import checkpoint
from densejax.training.checkpoint import restore_tree
from densejax.training.folders import MemberFolder, members_of
from densejax.training.sweep import Schedule, Sweep

ROOT = Path(__file__).resolve().parent.parent.parent
SEEDS = (0, 1, 2)

# Two slots for three members, so that kills also land between one member's end and the next's
# beginning. The whole and the killed run are of different processes and numbers of devices.
PROGRAM = """
import sys
from pathlib import Path

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_compilation_cache_dir", sys.argv[3])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

from toy import Line, line_data

from densejax.training.folders import members_of
from densejax.training.sweep import Schedule, Sweep

steps = int(sys.argv[2])
schedule = Schedule(steps=steps, log_every=5, evaluate_every=10, checkpoint_every=5)
sweep = Sweep(
    Line(), line_data(), members_of((0, 1, 2), {}), workdir=Path(sys.argv[1]), schedule=schedule,
    slots=2,
)
print("READY", flush=True)
sweep.run()
print("ENDED", flush=True)
"""


def start(folder, steps, cache):
    paths = f"{ROOT}{os.pathsep}{Path(__file__).parent}"
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), str(steps), str(cache)],
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_until_training(process):
    """Read the process's lines until its members start; what it said, if it ended before."""
    said = []
    for line in process.stdout:
        said.append(line)
        if "3 instances of" in line:
            return
    raise AssertionError("".join(said))


def killed_and_resumed(folder, cache, *, steps, kills, longest, seed):
    """Kill a sweep ``kills`` times, each after a random time of training, then let it end."""
    random = np.random.default_rng(seed)
    landed = 0
    for _ in range(kills):
        process = start(folder, steps, cache)
        wait_until_training(process)
        time.sleep(random.uniform(0, longest))
        process.kill()
        rest, _ = process.communicate()
        landed += "ENDED" not in rest
    output, _ = start(folder, steps, cache).communicate()
    assert "ENDED" in output, output
    return landed


def check_same(folder, whole):
    for outcome in whole:
        found = folder / "seeds" / outcome.member.name
        for name in ("best", "last"):
            one, other = (
                restore_tree(place / name, {"w": np.zeros(2, np.float32)})["w"]
                for place in (found, outcome.folder)
            )
            assert one.tobytes() == other.tobytes(), (outcome.member, name)
        for name in ("metrics.jsonl", "DONE"):
            assert (found / name).read_text() == (outcome.folder / name).read_text()
        # Nothing half-written is published.
        expected = {"DONE", "best", "last", "metrics.jsonl"}
        assert {path.name for path in found.iterdir()} == expected
    assert not list((folder / "running").iterdir())


def whole_run(folder, steps):
    # Without checkpoints on the way: they change nothing.
    return sweep_in(folder, steps, checkpoint_every=steps).run()


def sweep_in(folder, steps, *, checkpoint_every=5):
    schedule = Schedule(
        steps=steps, log_every=5, evaluate_every=10, checkpoint_every=checkpoint_every
    )
    members = members_of(SEEDS, {})
    return Sweep(Line(), line_data(), members, workdir=folder, schedule=schedule, slots=2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return whole_run(tmp_path_factory.mktemp("whole"), 20)


class Killed(BaseException):
    """Raised where a kill would have landed; nothing catches it."""


def dying(function, *, call, after):
    """The function, but its n-th call ends in a kill, before or after it has done its work."""
    calls = []

    def called(*arguments, **options):
        calls.append(1)
        if len(calls) == call and not after:
            raise Killed
        result = function(*arguments, **options)
        if len(calls) == call:
            raise Killed
        return result

    return called


@pytest.mark.parametrize(
    ("owner", "name", "call", "after"),
    [
        (MemberFolder, "log", 3, True),
        (checkpoint, "save_tree", 8, True),  # the first member's last parameters
        (Path, "rename", 1, True),  # published, and nothing after
        *(
            pytest.param(*moment, marks=pytest.mark.slow)
            for moment in (
                (MemberFolder, "log", 1, False),
                (checkpoint, "save_tree", 1, False),
                (checkpoint, "save_tree", 2, True),
                (checkpoint, "save_tree", 7, True),
                (MemberFolder, "publish", 2, False),
                (Path, "rename", 1, False),
                (shutil, "rmtree", 3, False),
            )
        ),
    ],
)
def test_no_moment_is_a_bad_one(tmp_path, monkeypatch, whole, owner, name, call, after):
    with monkeypatch.context() as context:
        context.setattr(owner, name, dying(getattr(owner, name), call=call, after=after))
        with pytest.raises(Killed):
            sweep_in(tmp_path, 20).run()
    sweep_in(tmp_path, 20).run()
    check_same(tmp_path, whole)


def test_leftovers_of_a_kill_while_writing_are_cleared(tmp_path, whole):
    for member in ("0000", "0002"):
        for place in ("best", "checkpoints/0000000005"):
            left = tmp_path / "running" / member / f"{place}.orbax-checkpoint-tmp"
            left.mkdir(parents=True)
            (left / "manifest.ocdbt").write_bytes(b"half")
        (tmp_path / "running" / member / "metrics.jsonl").write_text('{"step": 5, "lo')
    sweep_in(tmp_path, 20).run()
    check_same(tmp_path, whole)


def test_a_damaged_checkpoint_costs_its_interval_only(tmp_path, monkeypatch, whole, capsys):
    with monkeypatch.context() as context:
        context.setattr(MemberFolder, "log", dying(MemberFolder.log, call=7, after=True))
        with pytest.raises(Killed):
            sweep_in(tmp_path, 20).run()
    newest = sorted((tmp_path / "running" / "0000" / "checkpoints").iterdir())[-1]
    assert newest.name == "0000000015"
    for path in newest.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-7])
    sweep_in(tmp_path, 20).run()
    assert "damaged" in capsys.readouterr().out
    check_same(tmp_path, whole)


def test_three_kills_change_nothing(tmp_path):
    landed = killed_and_resumed(
        tmp_path / "cut", tmp_path / "cache", steps=80, kills=3, longest=1.5, seed=0
    )
    assert landed
    check_same(tmp_path / "cut", whole_run(tmp_path / "whole", 80))


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path):
    landed = killed_and_resumed(
        tmp_path / "cut", tmp_path / "cache", steps=1200, kills=20, longest=1.0, seed=1
    )
    # Long enough that twenty kills come before the end, also on a machine twice as fast.
    assert landed == 20
    check_same(tmp_path / "cut", whole_run(tmp_path / "whole", 1200))
