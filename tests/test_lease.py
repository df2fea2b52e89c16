"""Leases: every block is done, by one living process at a time, whoever dies when."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from densejax import lease as module
from densejax.lease import HeldError, Leases, LostError, this_process

NAMES = [f"{number:05d}" for number in range(6)]


def test_blocks_come_in_order_and_end(tmp_path):
    with Leases(tmp_path, NAMES) as leases:
        taken = []
        while (name := leases.take()) is not None:
            taken.append(name)
            leases.finish(name, {"voxels": len(taken)})
        assert taken == NAMES and leases.done() == set(NAMES)
        assert leases.records()["00003"] == {"voxels": 4}
    assert {path.suffix for path in tmp_path.iterdir()} == {".done"}


def test_two_at_once_share_the_blocks_and_begin_apart(tmp_path):
    names = [f"{number:05d}" for number in range(40)]
    done = {0: [], 1: []}

    def work(who):
        with Leases(tmp_path, names) as leases:
            while (name := leases.take()) is not None:
                time.sleep(0.002)
                done[who].append(name)
                leases.finish(name, who)

    threads = [threading.Thread(target=work, args=(who,)) for who in done]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done[0] + done[1]) == names
    # The second begins amid what the first has not reached, so that both walk over neighbours.
    steps = [
        int(b) - int(a) for who in done for a, b in zip(done[who], done[who][1:], strict=False)
    ]
    assert steps.count(1) > 0.7 * len(steps)


def test_what_is_held_is_not_taken_again_and_comes_back_when_released(tmp_path):
    with Leases(tmp_path, NAMES[:2]) as first, Leases(tmp_path, NAMES[:2]) as second:
        a, b = first.take(), second.take()
        assert {a, b} == set(NAMES[:2])
        assert first.take() is None and second.take() is None
        second.release(b)
        assert first.take() == b


def lease_of(folder, owner, *, age=0.0, kind="lease"):
    path = Path(folder) / f"{NAMES[0]}.000000.{kind}"
    path.write_text(json.dumps(owner) if isinstance(owner, dict) else owner)
    os.utime(path, (time.time() - age, time.time() - age))


def test_a_dead_process_of_this_host_is_seen_at_once(tmp_path):
    child = subprocess.Popen(["sleep", "60"])
    owner = asdict(this_process()) | {"pid": child.pid, "started": module.process_start(child.pid)}
    lease_of(tmp_path, owner)
    with Leases(tmp_path, NAMES[:1]) as leases:
        assert leases.take() is None
        child.kill()
        time.sleep(0.1)  # not yet waited for: a zombie is dead
        assert leases.take() == NAMES[0]
        assert [path.name for path in tmp_path.glob("*.lease")] == [f"{NAMES[0]}.000001.lease"]
    child.wait()


def test_a_process_number_that_is_used_again_is_another_process(tmp_path):
    lease_of(tmp_path, asdict(this_process()) | {"started": "1"})
    with Leases(tmp_path, NAMES[:1]) as leases:
        assert leases.take() == NAMES[0]


@pytest.mark.parametrize("owner", [{"place": "another host", "pid": 1, "started": "7"}, ""])
def test_another_host_is_dead_when_it_is_silent(tmp_path, owner):
    lease_of(tmp_path, owner, age=5)
    with Leases(tmp_path, NAMES[:1], silent_s=60) as leases:
        assert leases.take() is None
    with Leases(tmp_path, NAMES[:1], silent_s=2) as leases:
        assert leases.take() == NAMES[0]


def test_a_long_block_is_kept_alive_by_its_heartbeat(tmp_path, monkeypatch):
    with Leases(tmp_path, NAMES[:1], heartbeat_s=0.05) as leases:
        name = leases.take()
        monkeypatch.setattr(module, "_place", lambda: "another host")
        with Leases(tmp_path, NAMES[:1], silent_s=0.5) as other:
            for _ in range(8):
                time.sleep(0.1)
                assert other.take() is None
        leases.finish(name, {})


def test_a_block_that_was_finished_meanwhile_is_not_taken(tmp_path):
    first, second = Leases(tmp_path, NAMES[:1]), Leases(tmp_path, NAMES[:1])
    with first, second:
        name = first.take()
        dead = next(tmp_path.glob("*.lease"))
        first.finish(name, {})
        # As if the second had read the folder before the first was done.
        assert not second._create(name, None) and not second._create(name, dead)
        assert not list(tmp_path.glob("*.lease"))


def test_only_one_of_many_takes_a_dead_mans_block(tmp_path):
    for attempt in range(10):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        lease_of(folder, asdict(this_process()) | {"started": "1"})
        gate, taken = threading.Barrier(8), []

        def work(folder=folder, gate=gate, taken=taken):
            leases = Leases(folder, NAMES[:1])
            gate.wait()
            taken.append(leases.take())

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(map(str, taken)) == [NAMES[0], *["None"] * 7]


def test_the_clock_of_a_host_does_not_matter(tmp_path, monkeypatch):
    lease_of(tmp_path, {"place": "another host", "pid": 1, "started": "7"}, age=5)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(time, "strftime", lambda form: "1970-01-01T00:00:00")
    with Leases(tmp_path, NAMES[:1], silent_s=60) as leases:
        assert leases.take() is None
    with Leases(tmp_path, NAMES[:1], silent_s=2) as leases:
        assert leases.take() == NAMES[0]


def test_who_knows_that_a_holder_is_gone_is_asked_first(tmp_path):
    holder = asdict(this_process(job="12_3"))
    lease_of(tmp_path, holder)
    seen = []
    gone = Leases(tmp_path, gone=lambda other: seen.append(other) or False)
    with pytest.raises(HeldError, match=f"block {NAMES[0]} is worked on by job 12_3 on"):
        gone.acquire(NAMES[0])
    assert str(Leases(tmp_path).living()[NAMES[0]]) == str(seen[0])
    Leases(tmp_path, gone=lambda other: True).acquire(NAMES[0])


def test_who_lost_a_lease_learns_it_and_harms_nobody(tmp_path):
    holders = [this_process(job=str(number)) for number in range(3)]
    old, new, third = (Leases(tmp_path, holder=h, gone=lambda other: True) for h in holders)
    old.acquire("a")
    old.renew("a")
    new.acquire("a")
    with pytest.raises(LostError):
        old.renew("a")
    new.renew("a")
    new.release("a")
    third.acquire("a")  # under the same name as the first lease
    with pytest.raises(LostError):
        old.renew("a")
    old.release("a")
    third.renew("a")
    assert third.living() == {}  # as everybody is gone
    assert Leases(tmp_path).living() == {"a": holders[2]}


@pytest.mark.parametrize("alive", [False, True])
def test_what_the_version_before_has_left(tmp_path, alive):
    owner = asdict(this_process()) | {"time": "2026-01-01T00:00:00", "host": "here"}
    owner.pop("job")
    lease_of(tmp_path, owner if alive else owner | {"started": "1"}, kind="claim")
    (tmp_path / f"{NAMES[1]}.done").write_text("{}")
    with Leases(tmp_path, NAMES[:2]) as leases:
        assert leases.take() == (None if alive else NAMES[0])
        assert leases.done() == {NAMES[1]}
    assert bool(list(tmp_path.glob("*.claim"))) == alive


RACING = """
import sys, time
from pathlib import Path
from densejax.lease import HeldError, Leases
folder = Path(sys.argv[1])
leases = Leases(folder / "leases")
(folder / f"ready{sys.argv[2]}").touch()
while not (folder / "go").exists():
    time.sleep(0.001)
try:
    leases.acquire("a")
    print("won", flush=True)
except HeldError as error:
    print(error, flush=True)
sys.stdin.read()
"""


def test_of_processes_that_race_for_a_killed_ones_block_one_wins(tmp_path):
    def start(number):
        words = [sys.executable, "-c", RACING, str(tmp_path), str(number)]
        return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    first = start(0)
    (tmp_path / "go").touch()
    assert first.stdout.readline() == "won\n"
    (tmp_path / "go").unlink()
    others = [start(number) for number in range(1, 6)]
    while len(list(tmp_path.glob("ready*"))) < 6:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    (tmp_path / "go").touch()
    said = [child.stdout.readline() for child in others]
    for child in others:
        child.communicate()
    assert said.count("won\n") == 1
    winner = others[said.index("won\n")].pid
    assert sum(f"worked on by process {winner} on" in line for line in said) == 4


KILLED = """
import sys, time
from pathlib import Path
from densejax.lease import Leases
folder, names = Path(sys.argv[1]), sys.argv[2].split(",")
with Leases(folder / "leases", names) as leases:
    while len(leases.done()) < len(names):
        name = leases.take()
        if name is None:
            time.sleep(0.01)
            continue
        with (folder / "log").open("a") as log:
            log.write(name + "\\n")
        time.sleep(0.03)
        leases.finish(name, {})
"""


def test_killed_at_any_moment_nothing_is_lost(tmp_path):
    names = [f"{number:05d}" for number in range(25)]
    command = [sys.executable, "-c", KILLED, str(tmp_path), ",".join(names)]
    kills = 0
    for delay in (0.5, 0.33, 0.41, 0.37):
        child = subprocess.Popen(command)
        begun = time.monotonic()
        log = tmp_path / "log"
        before = log.stat().st_size if log.exists() else 0
        while (not log.exists() or log.stat().st_size == before) and child.poll() is None:
            assert time.monotonic() < begun + 30
            time.sleep(0.005)
        time.sleep(delay / 3)
        kills += child.poll() is None
        child.kill()
        child.wait()
    subprocess.run(command, check=True, timeout=60)
    lines = (tmp_path / "log").read_text().split()
    assert set(lines) == set(names)
    assert kills and len(lines) <= len(names) + kills
