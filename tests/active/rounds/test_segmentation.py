"""Rounds of segmentation: who learns from what, one pass of looks, warm starts, kills, refusals."""

import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.active.pixel_scores import PixelScores, look, pixel_score
from densejax.active.rounds import segmentation_report as report
from densejax.active.rounds.engine import Rounds
from densejax.active.rounds.oracles import KnownLabels
from densejax.active.rounds.records import Plan
from densejax.active.rounds.segmentation import (
    Segmentation,
    Training,
    network_of,
    scores_of,
    strategies_of,
)
from densejax.data.units import windows
from densejax.models import UNet
from densejax.segmentation.unit_task import UnitDraw
from densejax.training.checkpoint import restore_tree

NAMES = (
    "random",
    "order",
    "entropy:mean",
    "entropy:quantile",
    "balanced(margin:mean)",
    "miou:mean",
)


@pytest.fixture(scope="module")
def volume():
    rng = np.random.default_rng(0)
    labels = (rng.random((3, 6, 8)) < 0.3).repeat(8, axis=1).repeat(8, axis=2).astype(np.int32)
    images = (60 + 90 * labels + rng.integers(0, 60, labels.shape)).astype(np.uint8)
    return images, labels


def subject_of(volume, folder, names=NAMES, **training):
    images, labels = volume
    units = windows(
        jax.random.key(0),
        images,
        labels,
        size=16,
        count=20,
        class_names=("background", "object"),
    )
    module = UNet(2, width=2, scales=2, padding="SAME", logit_relu=False, drop=0.3)
    given = {"batch": 2, "draw": UnitDraw(), "warm_start": False} | training
    return Segmentation(
        units,
        network_of(module, units, query_drop=0.3),
        Training(8, 0.02, **given),
        images[:, None, ..., None],
        labels[:, None],
        names,
        passes=2,
        chunk=8,
        members=2,
        thresholds=folder / "thresholds.json",
        binary=True,
    )


def rounds_of(subject, folder, *, rounds=3, seeds=(0, 1), **options):
    plan = Plan(strategies_of(subject.names), seeds, initial=4, budget=3, rounds=rounds, **options)
    oracle = KnownLabels(np.zeros(subject.size, np.int32), classes=1)
    return Rounds(subject, oracle, plan, workdir=folder, say=lambda line: None)


@pytest.fixture(scope="module")
def finished(volume, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    subject = subject_of(volume, folder)
    return folder, subject, rounds_of(subject, folder).run()


def variables_of(subject, folder):
    template = jax.eval_shape(subject.init_variables, jax.random.key(0))
    return restore_tree(folder / "best", template)


def test_networks_of_a_seed_with_one_set_are_trained_once(finished):
    folder, _, done = finished
    assert len(list((folder / "rounds/00/seeds").iterdir())) == 2
    assert [one.sets.shape[1] for one in done] == [4, 7, 10]
    for one in done:
        assert all(len(set(row.tolist())) == len(row) for row in one.sets)
    first = done[0].sets[done[0].seeds == 0]
    assert (first == first[0]).all() and not (done[0].sets[0] == done[0].sets[1]).all()
    order = done[1].sets[(done[1].names == "order")]
    for row in order:
        free = [unit for unit in range(20) if unit not in row[:4]]
        assert row[4:].tolist() == free[:3]


def test_the_score_is_of_the_whole_test_set(finished):
    folder, subject, done = finished
    place = done[0].names.tolist().index("random")
    (best,) = folder.glob("rounds/00/seeds/0000*")
    variables = variables_of(subject, best)
    truth = np.asarray(subject.test_labels)
    logits = subject.network.apply(variables, jnp.asarray(subject.test_images))[0]
    found = np.asarray(logits).argmax(axis=-1) == 1
    expected = (found & (truth == 1)).sum() / (found | (truth == 1)).sum()
    assert done[0].miou[place] == pytest.approx(expected, abs=1e-6)
    assert done[0].confusion[place].sum() == truth.size


def test_a_query_takes_the_units_of_the_largest_score(finished):
    folder, subject, done = finished
    (best,) = folder.glob("rounds/00/seeds/0000*")
    logits, _ = subject.network.apply(variables_of(subject, best), subject.units.images)
    p = np.asarray(jax.nn.softmax(logits), np.float64)
    entropy = -(p * np.log(p)).sum(axis=-1).reshape(20, -1).mean(axis=1)
    row = (done[1].names == "entropy:mean") & (done[1].seeds == 0)
    own = done[1].sets[row][0]
    entropy[own[:4]] = -1
    assert own[4:].tolist() == np.argsort(-entropy, kind="stable")[:3].tolist()


def test_what_was_looked_at_is_kept(finished):
    folder, subject, _ = finished
    stored = np.load(folder / "rounds/01/look.npz")
    assert stored["scores"].tolist() == [
        "entropy:mean", "entropy:quantile", "margin:mean", "miou:mean",
    ]  # fmt: skip
    assert stored["values"].shape == (8, 4, 20)  # four of six strategies look, two seeds
    plan = PixelScores(subject.network, 2, (pixel_score("margin:mean"),), chunk=20)
    place = stored["names"].tolist().index("entropy:mean")
    seed = int(stored["seeds"][place])
    row = NAMES.index("entropy:mean") * 2 + seed
    (best,) = folder.glob(f"rounds/01/seeds/{seed:04d}*query_set={row}")
    found = look(jax.random.key(0), plan, variables_of(subject, best), subject.units.images)
    np.testing.assert_allclose(stored["values"][place, 2], found.columns["margin:mean"], atol=1e-5)
    names, rank, overlap = report.agreement(folder / "rounds/01")
    assert names == tuple(stored["scores"].tolist())
    np.testing.assert_allclose(np.diag(overlap), 1)
    # Of two classes, entropy and margin both fall with |P - 1/2|: alike, but not the same means.
    assert 0.8 < rank[0, 2] <= 1 and rank.shape == (4, 4)


def test_a_killed_run_ends_in_the_same_queries(volume, finished, tmp_path):
    folder, _, _ = finished
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    for name in ("rounds/01/query.npz", "rounds/01/look.npz", "rounds/02"):
        path = again / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    rounds_of(subject_of(volume, again), again).run()
    for name in ("rounds/01/query.npz", "rounds/01/look.npz", "rounds/02/trained.npz"):
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name


def test_a_warm_start_begins_with_the_network_before(volume, tmp_path):
    subject = subject_of(volume, tmp_path, ("random", "entropy:mean"), warm_start=True)
    # So small a rate moves nothing that float32 shows.
    subject = replace(subject, training=replace(subject.training, warm_rate=1e-30, warm_steps=4))
    done = rounds_of(subject, tmp_path, rounds=2, warm_start=True, seeds=(0,)).run()
    (before,) = tmp_path.glob("rounds/00/seeds/0000*")
    for after in tmp_path.glob("rounds/01/seeds/0000*"):
        a, b = (variables_of(subject, folder) for folder in (before, after))
        jax.tree.map(np.testing.assert_array_equal, a, b)
    np.testing.assert_array_equal(done[0].miou, done[1].miou)
    assert done[1].steps.tolist() == [4, 4]


def test_a_committee_is_the_seeds_of_a_strategy(volume, tmp_path):
    subject = subject_of(volume, tmp_path, ("ensemble_bald:mean", "bald:mean"))
    done = rounds_of(subject, tmp_path, rounds=2).run()
    rows = done[1].names == "ensemble_bald:mean"
    members = [
        variables_of(subject, folder) for folder in sorted(tmp_path.glob("rounds/00/seeds/*"))
    ]
    p = np.stack(
        [jax.nn.softmax(subject.network.apply(one, subject.units.images)[0]) for one in members]
    ).astype(np.float64)
    entropy = [-(q * np.log(q)).sum(axis=-1) for q in (p.mean(axis=0), p)]
    score = (entropy[0] - entropy[1].mean(axis=0)).reshape(20, -1).mean(axis=1)
    for own in done[1].sets[rows]:
        left = np.where(np.isin(np.arange(20), own[:4]), -1, score)
        assert own[4:].tolist() == np.argsort(-left, kind="stable")[:3].tolist()


def test_the_report_has_costs_and_what_was_queried(finished, tmp_path):
    folder, subject, done = finished
    results = report.collect(done, subject.units, folder, score=subject.score)
    at = results.strategies.index("random"), 0, 1
    own = done[1].sets[(done[1].names == "random") & (done[1].seeds == 0)][0]
    covered = np.zeros(subject.units.source_shape[:1] + subject.units.source_shape[2:], bool)
    for source, (_, y, x) in zip(subject.units.source[own], subject.units.offset[own], strict=True):
        covered[source, y : y + 16, x : x + 16] = True
    assert results.costs["distinct_pixels"][at] == covered.sum()
    assert results.foreground[at] == pytest.approx((subject.units.labels[own[4:]] == 1).mean())
    paths = report.summarise(results, tmp_path / "summary", title="windows")
    assert all(path.stat().st_size > 200 for path in paths)
    found = report.statistics(results)["entropy:mean"]
    assert set(found["break_even"]) == {"labels", "distinct_pixels", "boundary"}


def test_what_cannot_be_is_refused_before_training(volume, tmp_path):
    with pytest.raises(ValueError, match=r"no entropy of 2 classes exceeds 0\.6931"):
        subject_of(volume, tmp_path, ("entropy:count",))
    with pytest.raises(ValueError, match="strategy 'doubt'"):
        strategies_of(("doubt",))
    with pytest.raises(ValueError, match="expected each once"):
        strategies_of(("random", "random"))
    with pytest.raises(ValueError, match="looks at no class"):
        strategies_of(("balanced(random)",))
    subject = subject_of(volume, tmp_path)
    plain = replace(subject.network, passes=None)
    with pytest.raises(ValueError, match="needs stochastic passes"):
        replace(subject, network=plain, names=("bald:mean",))
    with pytest.raises(ValueError, match="want 31; the pool has 20"):
        rounds_of(subject, tmp_path, rounds=10)
    assert scores_of("balanced(margin:count0.8)")[0].level == 0.8
    assert scores_of("k_means:flat") == ()
