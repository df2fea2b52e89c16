"""What strategies are given in rounds: experts, which learn from all labels once, and networks."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.active import scores
from densejax.active.rounds.engine import Rounds
from densejax.active.rounds.oracles import KnownLabels, LabelFile
from densejax.active.rounds.pictures import Pictures
from densejax.active.rounds.records import Plan, Query, Samples, read_record
from densejax.active.strategies import Strategy, random
from densejax.classification.task import ImageTask
from densejax.models.mlp import MLP
from densejax.training.checkpoint import restore_tree

EXPERT = Strategy(scores.ranked(scores.entropy()), expert=True)
PLAN = Plan({"expert": EXPERT}, (0, 1), initial=4, budget=5, rounds=2, checkpoint_every=1)
MODEL = MLP(3, widths=(6,))


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 50).astype(np.int32)
    images = rng.integers(0, 150, (50, 4, 4, 1))
    images[:, :2] += 50 * labels[:, None, None, None]
    images = images.astype(np.uint8)
    return Samples(images, labels, np.arange(50) % 5 == 0, images[:9], labels[:9], ("a", "b", "c"))


def rounds_of(samples, workdir, plan=PLAN, oracle=None):
    def init(key):
        return MODEL.init(key, jnp.zeros((1, 4, 4, 1)))

    options = {"batch": 8, "epochs": 4, "optimiser": "adam", "learning_rate": 0.02}
    task = ImageTask(init, MODEL.apply, 3, largest=plan.largest, **options)
    oracle = oracle or KnownLabels(samples.labels, classes=3)
    said = []
    return (
        Rounds(Pictures(task, samples, 2), oracle, plan, workdir=workdir, say=said.append),
        task,
        said,
    )


def test_the_query_is_the_experts_and_it_learns_once(samples, tmp_path):
    rounds, task, said = rounds_of(samples, tmp_path)
    done = rounds.run()
    assert "experts: 2 networks on all 40 labels" in said
    template = jax.eval_shape(task.init_variables, jax.random.key(0))
    for place, seed in enumerate(done[0].seeds):
        best = restore_tree(tmp_path / f"experts/seeds/{seed:04d}/best", template)
        logits = np.asarray(task.forward(best, samples.images)[0], np.float64)
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        doubt = -(p * np.log(p)).sum(axis=1)
        doubt[samples.held_out] = doubt[done[0].sets[place]] = -1
        expected = np.argsort(-doubt, kind="stable")[:5]
        assert set(done[1].sets[place, 4:].tolist()) == set(expected.tolist())
        # Four epochs of one batch; of the expert (below), of five.
        assert done[0].steps[place] == 4 * 1 and not (tmp_path / "experts/seeds/0000/last").exists()
    assert (tmp_path / "experts/seeds/0000/DONE").read_text().startswith('{"step": 20')
    before = read_record(Query, tmp_path / "rounds/00/query.npz")
    for path in (tmp_path / "rounds/00/query.npz", tmp_path / "rounds/01/trained.npz"):
        path.unlink()
    stamp = (tmp_path / "experts/seeds/0000").stat().st_mtime_ns
    rounds_of(samples, tmp_path)[0].run()
    again = read_record(Query, tmp_path / "rounds/00/query.npz")
    np.testing.assert_array_equal(before.indices, again.indices)
    assert (tmp_path / "experts/seeds/0000").stat().st_mtime_ns == stamp


def test_a_person_cannot_teach_an_expert(samples, tmp_path):
    with pytest.raises(ValueError, match="expert needs labels before they are asked for"):
        rounds_of(samples, tmp_path, oracle=LabelFile(class_names=samples.class_names))


def test_an_expert_that_diverges_is_named(samples, tmp_path):
    broken = replace(samples, images=np.where(samples.images < 0, 0, np.nan).astype(np.float32))
    rounds = rounds_of(samples, tmp_path)[0]
    rounds.subject = replace(rounds.subject, samples=broken)
    with pytest.raises(ValueError, match=r"experts/seeds/0000: the expert failed"):
        rounds._train_experts()


def test_images_and_variables_are_those_of_the_round(samples, tmp_path):
    seen = {}

    def looks(key, pool, budget, *, variables):
        seen["looks"] = variables, pool
        return random.random(key, pool, budget)

    def does_not_look(key, pool, budget):
        seen["does not look"] = None, pool
        return random.random(key, pool, budget)

    strategies = {
        "looks": Strategy(looks, images=True, variables=True),
        "does not look": Strategy(does_not_look, images=True, network=False),
    }
    plan = replace(PLAN, strategies=strategies, seeds=(0,))
    rounds, task, _ = rounds_of(samples, tmp_path, plan)
    rounds.run()
    variables, pool = seen["looks"]
    logits = task.forward(variables, samples.images)[0]
    np.testing.assert_allclose(pool.logits, logits, atol=1e-5)
    assert pool.images is samples.images and pool.features is not None
    _, pool = seen["does not look"]
    assert pool.images is samples.images and pool.logits is pool.features is None
