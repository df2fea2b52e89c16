"""Claims: every block is done, by one living process at a time, whoever dies when."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from densejax.ensembles import claims as module
from densejax.ensembles.claims import Claims

NAMES = [f"{number:05d}" for number in range(6)]


def test_blocks_come_in_order_and_end(tmp_path):
    with Claims(tmp_path, NAMES) as claims:
        taken = []
        while (name := claims.take()) is not None:
            taken.append(name)
            claims.finish(name, {"voxels": len(taken)})
        assert taken == NAMES and claims.done() == set(NAMES)
        assert claims.records()["00003"] == {"voxels": 4}
    assert {path.suffix for path in tmp_path.iterdir()} == {".done"}


def test_two_at_once_share_the_blocks_and_begin_apart(tmp_path):
    names = [f"{number:05d}" for number in range(40)]
    done = {0: [], 1: []}

    def work(who):
        with Claims(tmp_path, names) as claims:
            while (name := claims.take()) is not None:
                time.sleep(0.002)
                done[who].append(name)
                claims.finish(name, who)

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
    with Claims(tmp_path, NAMES[:2]) as first, Claims(tmp_path, NAMES[:2]) as second:
        a, b = first.take(), second.take()
        assert {a, b} == set(NAMES[:2])
        assert first.take() is None and second.take() is None
        second.release(b)
        assert first.take() == b


def claim_of(folder, owner, *, age=0.0):
    path = Path(folder) / f"{NAMES[0]}.000000.claim"
    path.write_text(json.dumps(owner) if isinstance(owner, dict) else owner)
    os.utime(path, (time.time() - age, time.time() - age))


def test_a_dead_process_of_this_host_is_seen_at_once(tmp_path):
    child = subprocess.Popen(["sleep", "60"])
    owner = module._owner() | {"pid": child.pid, "started": module._started(child.pid)}
    claim_of(tmp_path, owner)
    with Claims(tmp_path, NAMES[:1]) as claims:
        assert claims.take() is None
        child.kill()
        time.sleep(0.1)  # not yet waited for: a zombie is dead
        assert claims.take() == NAMES[0]
        assert [path.name for path in tmp_path.glob("*.claim")] == [f"{NAMES[0]}.000001.claim"]
    child.wait()


def test_a_process_number_that_is_used_again_is_another_process(tmp_path):
    claim_of(tmp_path, module._owner() | {"started": "1"})
    with Claims(tmp_path, NAMES[:1]) as claims:
        assert claims.take() == NAMES[0]


@pytest.mark.parametrize("owner", [{"place": "another host", "pid": 1, "started": "7"}, ""])
def test_another_host_is_dead_when_it_is_silent(tmp_path, owner):
    claim_of(tmp_path, owner, age=5)
    with Claims(tmp_path, NAMES[:1], silent_s=60) as claims:
        assert claims.take() is None
    with Claims(tmp_path, NAMES[:1], silent_s=2) as claims:
        assert claims.take() == NAMES[0]


def test_a_long_block_is_kept_alive_by_its_heartbeat(tmp_path, monkeypatch):
    with Claims(tmp_path, NAMES[:1], heartbeat_s=0.05) as claims:
        name = claims.take()
        monkeypatch.setattr(module, "_place", lambda: "another host")
        with Claims(tmp_path, NAMES[:1], silent_s=0.5) as other:
            for _ in range(8):
                time.sleep(0.1)
                assert other.take() is None
        claims.finish(name, {})


def test_a_block_that_was_finished_meanwhile_is_not_taken(tmp_path):
    first, second = Claims(tmp_path, NAMES[:1]), Claims(tmp_path, NAMES[:1])
    with first, second:
        name = first.take()
        dead = next(tmp_path.glob("*.claim"))
        first.finish(name, {})
        # As if the second had read the folder before the first was done.
        assert not second._claim(name, None) and not second._claim(name, dead)
        assert not list(tmp_path.glob("*.claim"))


def test_only_one_of_many_takes_a_dead_mans_block(tmp_path):
    for attempt in range(10):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        claim_of(folder, module._owner() | {"started": "1"})
        gate, taken = threading.Barrier(8), []

        def work(folder=folder, gate=gate, taken=taken):
            claims = Claims(folder, NAMES[:1])
            gate.wait()
            taken.append(claims.take())

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(map(str, taken)) == [NAMES[0], *["None"] * 7]


KILLED = """
import sys, time
from pathlib import Path
from densejax.ensembles.claims import Claims
folder, names = Path(sys.argv[1]), sys.argv[2].split(",")
with Claims(folder / "claims", names) as claims:
    while len(claims.done()) < len(names):
        name = claims.take()
        if name is None:
            time.sleep(0.01)
            continue
        with (folder / "log").open("a") as log:
            log.write(name + "\\n")
        time.sleep(0.03)
        claims.finish(name, {})
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
