"""The contenders of the benchmark of planes compute one thing, and a fault in one is seen."""

import sys

import pytest

torch = pytest.importorskip("torch")

from experiments.benchmarks import measure, surfaces  # noqa: E402


@pytest.fixture(scope="module")
def small():
    return surfaces.swissroll(30, side=4)


def test_loops_agree_on_the_small_network(small):
    names = (measure.OURS, surfaces.LEAN, surfaces.LOADER)
    small.tune(names)
    assert surfaces.agreement(small, names) < surfaces.TOLERANCE


def test_loops_agree_on_pictures():
    case = surfaces.resnet(9, side=2, batch=4)
    case.settings[surfaces.TUNED] = {"threads": 1, "batch": 5, "channels_last": True}
    assert surfaces.agreement(case, surfaces.contenders(surfaces.RESNET)) < surfaces.TOLERANCE


def test_another_direction_is_seen(small):
    small.peer.first["0.weight"].mul_(1.01)
    try:
        with pytest.raises(ValueError, match="lean: a loss differs"):
            surfaces.agreement(small, (measure.OURS, surfaces.LEAN))
    finally:
        small.peer.first["0.weight"].div_(1.01)


def test_goals_are_judged_by_the_median():
    row = {"case": "swissroll_200", "lean / densejax": {"median": 9.5, "min": 1, "max": 12}}
    row |= {"cold: lean / densejax": {"median": 0.8, "min": 0.7, "max": 1.2}}
    lines = measure.judged([row], surfaces.GOALS, at=lambda row: row["case"])
    found = {line["goal"]: line["met"] for line in lines}
    assert found == {"lean / densejax at least 9": "yes", "cold: lean / densejax at least 1": "no"}


def test_a_record_names_no_folder_of_a_machine(monkeypatch, tmp_path):
    words = [str(tmp_path / "python"), "-m", "bench", f"--out={tmp_path}", "--minutes=3", "--x=a/b"]
    monkeypatch.setattr(sys, "executable", words[0])
    monkeypatch.setattr(sys, "orig_argv", words)
    where = measure.machine()
    assert where["command"] == ["python", "-m", "bench", "--out=DIR", "--minutes=3", "--x=a/b"]
    assert str(tmp_path) not in str(where)
