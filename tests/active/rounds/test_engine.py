"""Rounds of active learning on blobs: who learns from what, kills, oracles, refusals."""

import csv
import itertools
import shutil
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.active import scores
from densejax.active.rounds.engine import Rounds
from densejax.active.rounds.oracles import KnownLabels, LabelFile, LabelsNeededError
from densejax.active.rounds.pictures import Pictures
from densejax.active.rounds.records import Plan, Samples, Trained, read_record
from densejax.active.strategies import Strategy, balancing, base, random
from densejax.classification.task import ImageTask
from densejax.models.mlp import MLP

CLASSES = 3
STRATEGIES = {
    "random": Strategy(random.random, network=False),
    "margin": Strategy(scores.ranked(scores.margin())),
}


def blobs(number, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, number).astype(np.int32)
    images = rng.integers(0, 150, (number, 4, 4, 1))
    images[:, :2] += 50 * labels[:, None, None, None]
    return images.astype(np.uint8), labels


@pytest.fixture(scope="module")
def samples():
    images, labels = blobs(70, 0)
    test_images, test_labels = blobs(40, 1)
    held_out = np.arange(70) % 7 == 3
    return Samples(images, labels, held_out, test_images, test_labels, ("a", "b", "c"))


PLAN = Plan(STRATEGIES, (0, 1), initial=6, budget=4, rounds=3, checkpoint_every=1)


def task_of(plan, **options):
    model = MLP(CLASSES, widths=(6,))

    def init(key):
        return model.init(key, jnp.zeros((1, 4, 4, 1)))

    given = {"batch": 4, "epochs": 3, "optimiser": "adam", "learning_rate": 0.02}
    return ImageTask(init, model.apply, CLASSES, largest=plan.largest, **(given | options))


def rounds_of(samples, workdir, plan=PLAN, *, oracle=None, task=None, weighted=False, **options):
    oracle = oracle or KnownLabels(samples.labels, classes=CLASSES)
    size = len(plan.seeds) * len(plan.strategies)
    return Rounds(
        Pictures(task or task_of(plan), samples, size, weighted),
        oracle,
        plan,
        workdir=workdir,
        say=lambda line: None,
        **options,
    )


@pytest.fixture(scope="module")
def finished(samples, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("rounds")
    return workdir, rounds_of(samples, workdir).run()


def same(one, other):
    for name in one.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def of(trained, name):
    """Rows of one strategy, without the place that they have."""
    rows = trained.names == name
    return {n: getattr(trained, n)[rows] for n in trained.__dataclass_fields__}


def test_sets_grow_by_the_budget_and_keep_what_they_had(samples, finished):
    _, done = finished
    assert [one.sets.shape for one in done] == [(4, 6), (4, 10), (4, 14)]
    for before, after in itertools.pairwise(done):
        np.testing.assert_array_equal(after.sets[:, : before.sets.shape[1]], before.sets)
    for one in done:
        for row, labels in zip(one.sets, one.labels, strict=True):
            assert len(set(row.tolist())) == len(row)
            assert not samples.held_out[row].any()
            np.testing.assert_array_equal(labels, samples.labels[row])
        np.testing.assert_array_equal(one.class_counts.sum(axis=1), one.sets.shape[1])
        assert np.isfinite(one.accuracy).all() and (one.top5 == 1).all()


def test_strategies_share_the_initial_set_and_its_network(finished):
    workdir, done = finished
    first = done[0]
    for seed in (0, 1):
        rows = first.seeds == seed
        assert len(np.unique(first.sets[rows], axis=0)) == len(np.unique(first.accuracy[rows])) == 1
    assert len(list((workdir / "rounds/00/seeds").iterdir())) == 2
    assert len(list((workdir / "rounds/01/seeds").iterdir())) == 4
    assert not np.array_equal(first.sets[0], first.sets[1])


def test_the_query_is_the_selectors_own(samples, finished):
    workdir, done = finished
    task = task_of(PLAN)
    template = jax.eval_shape(task.init_variables, jax.random.key(0))
    from densejax.training.checkpoint import restore_tree

    one = done[1]
    place = int(np.flatnonzero((one.names == "margin") & (one.seeds == 1))[0])
    best = restore_tree(workdir / "rounds/01/seeds/0001,query_set=3/best", template)
    logits = np.asarray(task.forward(best, samples.images)[0])
    ordered = np.sort(jax.nn.softmax(logits, axis=-1), axis=1)
    gaps = ordered[:, -1] - ordered[:, -2]
    gaps[samples.held_out] = np.inf
    gaps[one.sets[place]] = np.inf
    expected = np.argsort(gaps, kind="stable")[: PLAN.budget]
    assert set(done[2].sets[place, -PLAN.budget :]) == set(expected)
    test_logits = np.asarray(task.forward(best, samples.test_images)[0])
    hits = test_logits.argmax(axis=1) == samples.test_labels
    np.testing.assert_allclose(one.accuracy[place], hits.mean())
    each = [hits[samples.test_labels == c].mean() for c in range(CLASSES)]
    np.testing.assert_allclose(one.class_accuracy[place], each)


def test_a_strategy_does_not_depend_on_which_others_run(samples, finished, tmp_path):
    more = {"mase": Strategy(base.mase), "margin": STRATEGIES["margin"]}
    plan = replace(PLAN, strategies=more, seeds=(1,))
    others = rounds_of(samples, tmp_path, plan).run()
    for before, after in zip(finished[1], others, strict=True):
        one, two = of(before, "margin"), of(after, "margin")
        for name in one:
            np.testing.assert_array_equal(one[name][1:], two[name], err_msg=name)


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    "where", ["training", "before the record", "before the query", "before its record"]
)
def test_a_killed_run_goes_on_to_the_same_numbers(samples, finished, tmp_path, where, monkeypatch):
    from densejax.active.rounds import engine as rounds
    from densejax.training.sweep import Sweep

    calls = []

    def kill_at(number, real):
        def run(*arguments, **options):
            calls.append(1)
            if len(calls) == number:
                raise Killed
            return real(*arguments, **options)

        return run

    cut = rounds_of(samples, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        if where == "training":
            patch.setattr(Sweep, "_advance", kill_at(5, Sweep._advance))
        elif where == "before the query":
            patch.setattr(cut, "_choose", kill_at(3, cut._choose))
        else:
            number = {"before the record": 3, "before its record": 2}[where]
            patch.setattr(rounds, "write_record", kill_at(number, rounds.write_record))
        cut.run()
    resumed = rounds_of(samples, tmp_path).run()
    for one, other in zip(finished[1], resumed, strict=True):
        same(one, other)


def test_finished_rounds_are_read_and_more_may_follow(samples, finished, tmp_path, monkeypatch):
    workdir, done = finished
    shutil.copytree(workdir, tmp_path / "copy")
    plan = replace(PLAN, rounds=4)
    more = rounds_of(samples, tmp_path / "copy", plan).run()
    for one, other in zip(done, more, strict=False):
        same(one, other)
    assert more[3].sets.shape == (4, 18)
    whole = rounds_of(samples, tmp_path / "whole", plan).run()
    same(more[3], whole[3])


def test_another_configuration_in_the_folder_is_refused(samples, finished, tmp_path):
    workdir, _ = finished
    with pytest.raises(ValueError, match="begun with another configuration"):
        rounds_of(samples, workdir, replace(PLAN, seeds=(5,))).run()
    with pytest.raises(ValueError, match="begun with another configuration"):
        rounds_of(samples, workdir, replace(PLAN, initial=7)).run()


def test_parameters_may_be_removed_when_they_have_chosen(samples, finished, tmp_path):
    plan = replace(PLAN, keep=False)
    done = rounds_of(samples, tmp_path, plan).run()
    same(done[-1], finished[1][-1])
    assert not (tmp_path / "rounds/01/seeds").exists()
    assert (tmp_path / "rounds/02/seeds").exists()


def test_strategies_that_know_more_are_given_it(samples, tmp_path):
    strategies = {
        "balanced_random": Strategy(random.balanced_random, truth=True, balanced_start=True),
        "balancing": Strategy(balancing.balancing, sequential=True),
        "most_incorrect": Strategy(scores.ranked(scores.most_incorrect()), truth=True),
        "base": Strategy(partial(base.base, order="block")),
    }
    plan = replace(PLAN, strategies=strategies, seeds=(0,), rounds=2)
    done = rounds_of(samples, tmp_path, plan, weighted=True).run()
    first = done[0]
    assert np.ptp(first.class_counts[0]) <= 1
    np.testing.assert_array_equal(first.sets[1], first.sets[2])
    assert np.ptp(done[1].class_counts[0]) <= 2
    file = LabelFile(class_names=samples.class_names)
    with pytest.raises(ValueError, match="balanced_random, balancing, most_incorrect needs labels"):
        rounds_of(samples, tmp_path, plan, oracle=file)


def test_a_network_that_fails_ends_its_own_run_alone(samples, finished, tmp_path):
    class Fragile(ImageTask):
        def step(self, state, data):
            state, measures = super().step(state, data)
            doomed = state["settings"]["query_set"] == 3
            return state, dict(measures, loss=jnp.where(doomed, jnp.nan, measures["loss"]))

    task = task_of(PLAN)
    fragile = Fragile(**{name: getattr(task, name) for name in task.__dataclass_fields__})
    done = rounds_of(samples, tmp_path, task=fragile).run()
    assert [len(one.names) for one in done] == [4, 4, 3]
    assert np.isnan(done[1].accuracy).tolist() == [False, False, False, True]
    for name in ("sets", "accuracy"):
        np.testing.assert_array_equal(getattr(done[2], name), getattr(finished[1][2], name)[:3])


def answer(query, labels, path):
    with query.open() as file:
        rows = list(csv.DictReader(file))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "label"])
        for row in reversed(rows):
            writer.writerow([row["index"], "abc"[labels[int(row["index"])]]])
    return rows


def test_a_person_is_the_oracle(samples, finished, tmp_path):
    hidden = replace(samples, labels=np.where(samples.held_out, samples.labels, -1))
    oracle = LabelFile(class_names=samples.class_names, files=[f"{i}.png" for i in range(70)])
    for number in range(PLAN.rounds):
        with pytest.raises(LabelsNeededError, match=r"query\.csv.*labels\.csv"):
            rounds_of(hidden, tmp_path, oracle=oracle).run()
        folder = tmp_path / "rounds" / f"{number:02d}"
        rows = answer(folder / "query.csv", samples.labels, folder / "labels.csv")
        assert len({row["index"] for row in rows}) == len(rows)
        assert all(row["file"] == f"{row['index']}.png" for row in rows)
        assert any(row["predicted"] for row in rows) == (number > 0)
    done = rounds_of(hidden, tmp_path, oracle=oracle).run()
    for one, other in zip(finished[1], done, strict=True):
        same(one, other)


def test_what_cannot_be_is_refused_before_training(samples, tmp_path):
    with pytest.raises(ValueError, match=r"want 78; the pool has 60"):
        rounds_of(samples, tmp_path, replace(PLAN, budget=36))
    with pytest.raises(ValueError, match="budget must be at least 1, found -1"):
        replace(PLAN, budget=-1)
    with pytest.raises(ValueError, match="the task is of 3 classes; expected 2"):
        rounds_of(replace(samples, class_names=("a", "b")), tmp_path)
    with pytest.raises(ValueError, match="no sample is held out"):
        replace(samples, held_out=np.zeros(70, bool))
    with pytest.raises(ValueError, match="do not agree"):
        replace(samples, labels=samples.labels[:9])
    with pytest.raises(ValueError, match="label 7 of sample 2 is outside the 3 classes"):
        KnownLabels(np.array([0, 1, 7]), classes=3)


def test_a_strategy_that_chooses_wrongly_is_refused(samples, tmp_path):
    def stubborn(key, pool, budget):
        chosen = random.random(key, pool, budget)
        return chosen._replace(indices=np.zeros_like(chosen.indices))

    plan = replace(PLAN, strategies={"stubborn": Strategy(stubborn, network=False)})
    with pytest.raises(ValueError, match="stubborn chose 4 samples, 1 different"):
        rounds_of(samples, tmp_path, plan).run()
    assert read_record(Trained, tmp_path / "nothing.npz") is None
