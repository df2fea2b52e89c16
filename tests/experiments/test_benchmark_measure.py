"""The runner of the benchmarks: who takes turns, who agrees, what is judged, what is written."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from experiments.benchmarks import measure


@dataclass(frozen=True)
class Config(measure.Timed):
    """Of these tests."""


def test_contenders_take_turns_after_a_warm_up(monkeypatch):
    monkeypatch.setattr(measure, "SETTLE_SECONDS", 0)
    monkeypatch.setattr(measure, "LAP_SECONDS", 0)
    called = []
    calls = {name: lambda name=name: called.append(name) for name in ("densejax", "peer")}
    row = measure.compared(calls, rounds=3)
    assert called == ["densejax", "peer"] * 4
    assert {name: len(laps) for name, laps in row["seconds"].items()} == {"densejax": 3, "peer": 3}
    assert set(row) == {"seconds", "densejax ms (cpu)", "peer ms (cpu)", "peer / densejax"}


def test_ratios_are_taken_round_by_round():
    seconds = {"a": [(4.0, 1.0), (6.0, 1.0), (9.0, 1.0)], "b": [(1.0, 1.0), (2.0, 1.0), (9.0, 1.0)]}
    assert measure.ratio(seconds, "a", "b") == {"median": 3.0, "min": 1.0, "max": 4.0}


def test_a_contender_that_differs_is_named():
    exact = np.array([1.0, -4.0])
    assert measure.agreed("peer", exact + 0.002, exact, tolerance=1e-3) == pytest.approx(5e-4)
    with pytest.raises(ValueError, match=r"peer differs by 0[.]0025 of .* at most 0[.]001"):
        measure.agreed("peer", exact + 0.01, exact, tolerance=1e-3)
    with pytest.raises(ValueError, match="differs by nan"):
        measure.agreed("peer", exact * np.nan, exact, tolerance=1e-3)


def test_a_goal_judges_the_median_of_the_rows_it_speaks_of():
    goals = (
        measure.Goal("twice", "ratio", least=2.0, of=lambda row: row["case"] != "free"),
        measure.Goal("at most five", "ratio", most=5.0),
    )
    rows = [{"case": name, "ratio": {"median": m}} for name, m in (("a", 1.9), ("free", 6.0))]
    lines = measure.judged([*rows, {"case": "untimed"}], goals, at=lambda row: row["case"])
    found = [(line["goal"], line["at"], line["met"]) for line in lines]
    assert found == [
        ("twice", "a", "no"),
        ("at most five", "a", "yes"),
        ("at most five", "free", "no"),
    ]


def test_a_report_grows_and_says_what_was_not_measured(tmp_path, capsys):
    goal = measure.Goal("fast", "a / b", least=1.0)
    report = measure.Report(
        "speed",
        "How fast?",
        ("case", "a / b"),
        Config(out=str(tmp_path), minutes=10.0),
        ceilings={"copy GB/s": 2.0},
        goals=[goal],
        totals=lambda rows: [{"case": f"all {len(rows)}"}],
    )
    long = {"long": 3600.0}
    for case in report.each(["short", "long"], needs=lambda case: long.get(case, 0.0)):
        report.rows.append({"case": case, "a / b": {"median": 2.0, "min": 1.0, "max": 3.0}})
    found = json.loads((tmp_path / "speed.json").read_text())
    assert [row["case"] for row in found["rows"]] == ["short"]
    assert found["not_measured"] == ["long: about 60 minutes, more than were left"]
    text = (tmp_path / "speed.md").read_text()
    assert "Measured ceilings: copy GB/s 2." in text and "- long: about 60 minutes" in text
    assert "| short | **2.00** (1.00 to 3.00) |\n| all 1 |  |" in text
    assert "| fast | short | **2.00** (1.00 to 3.00) | yes |" in text
    assert "| short |" in capsys.readouterr().out


def test_a_trial_takes_the_small_sizes_and_leaves_nothing(tmp_path):
    seen = []

    def run(config):
        seen.append((config.rounds, config.out))
        measure.Report("x", "X", ("case",), config).write()

    for words, code in (([], 0), (["--fast_dev_run"], 0), (["--rounds=0"], 2)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["bench", f"--out={tmp_path}", *words])
            with pytest.raises(SystemExit) as end:
                measure.main(Config, run, description="X")
        assert end.value.code == code
    (many, kept), (few, thrown_away) = seen
    assert (many, kept, few) == (5, str(tmp_path), 1) and thrown_away != kept
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.md"]


def test_a_command_is_timed_with_what_it_starts_and_its_failure_is_told(tmp_path):
    log = tmp_path / "log"
    busy = "import time\nwhile time.process_time() < 0.3: pass"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}])"
    cpu, wall = measure.timed([measure.sys.executable, "-c", nested], log=log)
    assert 0.3 <= cpu and 0.25 <= wall
    with pytest.raises(RuntimeError, match=r"ended with code 3; see .*log"):
        measure.timed([measure.sys.executable, "-c", "print(7); raise SystemExit(3)"], log=log)
    assert log.read_text() == "7\n"
