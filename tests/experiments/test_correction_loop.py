"""The correction loop with a simulated annotator: a tiny one whole, and its numbers by hand."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import jaccard_score

from densejax.cli import few_steps
from densejax.inference.sliding_window import Prediction
from densejax.segmentation.finetune import study as correction_study
from densejax.segmentation.finetune.study import Row, paired_difference
from experiments import correction_loop

TINY = replace(
    few_steps(correction_loop.Config(world=(6, 48, 48), width=2, window=(2, 24, 24))),
    unseen=(6, 64, 64),
    block=(1, 16, 16),
    arms=("disagreement", "random", "none"),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("loop")
    return workdir, correction_loop.run(TINY, workdir)


def test_every_arm_corrects_as_much_and_none_corrects_nothing(finished):
    _, result = finished
    assert [(row.arm, row.round) for row in result.rows] == [
        (arm, number) for arm in TINY.arms for number in (0, 1)
    ]
    voxels = {(row.arm, row.round): row.voxels for row in result.rows}
    assert all(voxels[arm, 0] == 0 for arm in TINY.arms)
    assert voxels["disagreement", 1] == voxels["random", 1] == 3 * 16 * 16
    assert voxels["none", 1] == 0
    first = {row.held_out for row in result.rows if row.round == 0}
    assert len(first) == 1  # all arms start from the same ensemble
    for row in result.rows:
        assert 0 < row.held_out < 1 and row.repaired >= row.unseen - 1e-6


def test_the_summary_holds_every_row_and_the_curves(finished):
    workdir, result = finished
    with (workdir / "summary" / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["held_out"]) for row in rows] == [row.held_out for row in result.rows]
    text = (workdir / "summary" / "findings.md").read_text()
    assert "disagreement - random" in text and "not told apart" in text
    for name in ("held_out", "repaired"):
        assert (workdir / "summary" / f"{name}.png").stat().st_size > 5000


def test_the_same_command_again_trains_nothing_and_says_the_same(finished):
    workdir, result = finished
    again = correction_loop.run(TINY, workdir)
    np.testing.assert_equal(again.rows, result.rows)


def test_scores_against_scikit_learn(tmp_path):
    loop = correction_loop.make_loop(TINY, 0, tmp_path)
    random = np.random.default_rng(0)

    def prediction(shape):
        labels = random.integers(0, 7, shape)
        nothing = np.zeros(shape, np.float32)
        return Prediction(labels, nothing, nothing, labels[None], labels[None])

    unseen, held_out = (prediction(TINY.unseen) for _ in range(2))
    corrected = random.random(TINY.unseen) < 0.3
    row = correction_study._row(loop, (0, "random", 1), corrected, 0.5, unseen, held_out)
    repaired = np.where(corrected, loop.unseen.labels, unseen.labels)
    for score, truth, found, classes in (
        (row.held_out, loop.held_out, held_out.labels, range(7)),
        (row.organelles, loop.held_out, held_out.labels, range(2, 7)),
        (row.unseen, loop.unseen, unseen.labels, range(7)),
        (row.repaired, loop.unseen, repaired, range(7)),
    ):
        expected = jaccard_score(
            truth.labels.ravel(), found.ravel(), labels=list(classes), average="macro"
        )
        assert score == pytest.approx(expected, abs=1e-6)
    assert row.voxels == corrected.sum()


def test_blocks_of_an_arm_are_where_it_looks(tmp_path):
    loop = correction_loop.make_loop(TINY, 0, tmp_path)
    shape = TINY.unseen
    disagreement, entropy = np.zeros((2, *shape), np.float32)
    disagreement[2, 16:32, 48:64] = 1.0
    entropy[5, 0:16, 16:32] = 0.5
    labels = np.zeros(shape, np.int32)
    seen = Prediction(labels, entropy, disagreement, labels[None], labels[None])
    for arm, corner in (("disagreement", (2, 16, 48)), ("entropy", (5, 0, 16))):
        chosen = correction_study._choose(loop, arm, seen, [], 1)
        assert chosen[0] == corner and len(chosen) == 3
        assert corner not in correction_study._choose(loop, arm, seen, chosen, 2)
    one = correction_study._choose(loop, "random", seen, [], 1)
    assert one == correction_study._choose(loop, "random", seen, [], 1)
    assert one != correction_study._choose(loop, "random", seen, [], 2)
    assert correction_study._choose(loop, "none", seen, [], 1) == []


@pytest.mark.parametrize("repeats", [1, 2, 6, 9])
def test_differences_against_scipy(repeats):
    random = np.random.default_rng(repeats)
    scores = {arm: random.normal(size=repeats) for arm in ("a", "b")}
    rows = [
        Row(repeat, arm, number, 0, 0.0, scores[arm][repeat] * number, 0, 0, 0)
        for arm in scores
        for repeat in range(repeats)
        for number in (0, 1)
    ]
    found = paired_difference(rows, "a", "b")
    gaps = scores["a"] - scores["b"]
    assert found["mean"] == pytest.approx(gaps.mean())
    assert found["wins"] == (gaps > 0).sum() and found["repeats"] == repeats
    if repeats > 1:
        assert found["error"] == pytest.approx(stats.sem(gaps))
        # Exact: all ways of swapping the two arms of a repeat.
        expected = stats.permutation_test(
            (scores["a"], scores["b"]),
            lambda one, other: np.mean(one - other),
            permutation_type="samples",
            n_resamples=np.inf,
        )
        assert found["p"] == pytest.approx(expected.pvalue)


def test_an_unknown_arm_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--arms=margin; expected some of disagreement"):
        correction_loop.run(replace(TINY, arms=("margin",)), tmp_path)
