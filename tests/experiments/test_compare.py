"""Comparison of runs end to end, on folders made up here."""

import csv
import json

import numpy as np
import pytest
from scipy import stats

from densejax.cli import main
from experiments import compare


def make_run(folder, peaks, *, failed=0, unfinished=0, score="miou"):
    """Seeds that climb to their peak and fall again; loss rows lie between the evaluated ones."""
    total = len(peaks) + failed + unfinished
    for index in range(total):
        seed = folder / "seeds" / f"{index:04d}"
        seed.mkdir(parents=True)
        peak = peaks[index] if index < len(peaks) else 0.99
        rows = [{"step": step, "loss": 1 / step} for step in (1, 2, 3, 4)]
        for row, part in zip(rows[1:], (0.5, 1.0, 0.8), strict=True):
            row[score] = float(peak) * part
        (seed / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        if index < len(peaks):
            (seed / "DONE").touch()
        elif index < len(peaks) + failed:
            (seed / "FAILED").write_text("loss is nan at step 3\n")
    return folder


@pytest.fixture
def two_runs(tmp_path):
    generator = np.random.default_rng(0)
    groups = (generator.normal(0.45, 0.01, 12), generator.normal(0.6, 0.01, 18))
    a, b = np.concatenate(groups), generator.normal(0.5, 0.02, 25)
    hybrid = make_run(tmp_path / "runs" / "hybrid", a, failed=2, unfinished=1)
    unet = make_run(tmp_path / "runs" / "unet", b)
    return (hybrid, unet), (a, b)


def call(*arguments):
    options = {"description": compare.__doc__, "workdir": "compare", "trains": False}
    with pytest.raises(SystemExit) as ended:
        main(compare.Config, compare.run, argv=["compare", *map(str, arguments)], **options)
    return ended.value.code


def test_two_runs_from_end_to_end(two_runs, tmp_path, capsys):
    folders, (a, b) = two_runs
    out = tmp_path / "out"
    assert call(*folders, f"--workdir={out}", "--resamples=200") == 0
    printed = capsys.readouterr().out
    assert "hybrid" in printed and "unet" in printed and "ΔBIC" in printed
    assert (out / "histogram.png").read_bytes().startswith(b"\x89PNG")
    saved = json.loads((out / "comparison.json").read_text())
    first, second = saved["runs"]
    assert (first["seeds"], first["failed"], first["unfinished"]) == (30, 2, 1)
    assert first["median"] == pytest.approx(np.median(a))
    assert first["maximum"] == pytest.approx(a.max())
    assert first["bimodal"] and not second["bimodal"]
    assert first["median_low"] <= first["median"] <= first["median_high"]
    (pair,) = saved["pairs"]
    expected = stats.mannwhitneyu(a, b)
    assert pair["u"] == expected.statistic and pair["p_value"] == pytest.approx(expected.pvalue)
    np.testing.assert_allclose(list(saved["scores"]["unet"].values()), b)
    with (out / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["run"] for r in rows] == ["hybrid", "unet"]
    assert float(rows[1]["median"]) == pytest.approx(np.median(b))


def test_three_runs_are_three_pairs_with_adjusted_p(two_runs, tmp_path):
    folders, _ = two_runs
    third = make_run(tmp_path / "third", [0.5])
    config = compare.Config(runs=tuple(map(str, (*folders, third))), resamples=50)
    result = compare.run(config, tmp_path / "out")
    assert len(result["pairs"]) == 3
    assert all(pair["p_holm"] >= pair["p_value"] for pair in result["pairs"])
    assert result["runs"][2]["bimodal"] is None
    assert "third" in compare.as_text(result)


def test_lowest_loss_and_seeds_still_training(two_runs, tmp_path):
    folders, (a, _) = two_runs
    arguments = ("--score=loss", "--peak=min", "--unfinished", f"--workdir={tmp_path / 'out'}")
    assert call(*folders, *arguments) == 0
    saved = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert saved["runs"][0]["seeds"] == a.size + 1
    assert saved["runs"][0]["median"] == pytest.approx(0.25)


def test_nothing_is_written_over_unasked(two_runs, tmp_path, capsys):
    folders, _ = two_runs
    workdir = f"--workdir={tmp_path / 'out'}"
    assert call(*folders, workdir, "--resamples=200") == 0
    assert call(*folders, workdir, "--resamples=200") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert call(*folders, workdir, "--resamples=200", "--overwrite") == 0


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [make_run(tmp_path / day / "unet", np.linspace(0.4, 0.6, 9)) for day in ("mon", "tue")]
    assert compare.names_of(runs) == ["mon/unet", "tue/unet"]
    with pytest.raises(ValueError, match="twice"):
        compare.names_of([runs[0], runs[0]])


def test_half_a_last_line_and_scores_that_are_not_finite(tmp_path):
    run = make_run(tmp_path / "run", [0.4, 0.5])
    for index, text in enumerate(('{"step": 5, "mio', '{"step": 5, "miou": NaN}\n')):
        with (run / "seeds" / f"{index:04d}" / "metrics.jsonl").open("a") as file:
            file.write(text)
    never = run / "seeds" / "0009"
    never.mkdir()
    (never / "metrics.jsonl").write_text('{"step": 1, "miou": null}\n')
    (never / "DONE").touch()
    sweep = compare.read_sweep(run, compare.Config(), name="run")
    assert sweep.scores == {"0000": 0.4, "0001": 0.5} and sweep.failed == 1


def test_few_seeds_are_noted(tmp_path, capsys):
    runs = [make_run(tmp_path / n, np.linspace(0.4, 0.6, 5)) for n in ("a", "b")]
    assert call(*runs, f"--workdir={tmp_path / 'out'}", "--resamples=200") == 0
    assert "fewer than 8" in capsys.readouterr().err


def test_runs_of_other_lengths_are_compared_at_one(two_runs, tmp_path):
    folders, (a, b) = two_runs
    out = tmp_path / "out"
    assert call(*folders, "--until=2", f"--workdir={out}", "--resamples=200") == 0
    rows = list(csv.DictReader((out / "runs.csv").open()))
    halves = [np.median(values) / 2 for values in (a, b)]  # at step 2 a seed is halfway to its peak
    np.testing.assert_allclose([float(row["median"]) for row in rows], halves)


def test_what_cannot_be_compared_says_why(two_runs, tmp_path, capsys):
    (good, other), _ = two_runs
    plain = tmp_path / "plain"
    plain.mkdir()
    dead = make_run(tmp_path / "dead", [], failed=3, unfinished=2)
    broken = make_run(tmp_path / "broken", [0.5])
    (broken / "seeds" / "0000" / "metrics.jsonl").write_text('{"step": 1\n{"step": 2}\n')
    cases = [
        ((good,), "1 runs given"),
        ((good, tmp_path / "nowhere"), "no such folder"),
        ((good, plain), "not a run"),
        ((good, dead), "no seed finished (3 failed, 2 unfinished)"),
        ((good, broken), "line 1: not JSON"),
        ((good, other, "--score=dice"), "no row has the score 'dice'; it has loss, miou"),
        ((good, other, "--until=1"), "no 'miou' up to step 1; the first is at step 2"),
        ((good, other, "--peak=top"), "expected max or min"),
        ((good, other, "--confidence=2"), "confidence is 2"),
        ((good, other, "--nonsense=1"), "nonsense"),
    ]
    for arguments, message in cases:
        assert call(*arguments, f"--workdir={tmp_path / 'never'}") == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "never").exists()
    assert call("--help") == 0
    assert "--score" in capsys.readouterr().out
