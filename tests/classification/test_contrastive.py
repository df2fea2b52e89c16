"""Contrastive tasks: against PyTorch and by hand, alone and in the sweep engine."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.classification.contrastive import MoCoTask, SimCLRTask, epoch_rows
from densejax.classification.pretrained import Encoder, encode
from densejax.losses import info_nce, nt_xent, unit_rows
from densejax.population import instance_key
from densejax.training.folders import Member, read_metrics
from densejax.training.sweep import Schedule, Sweep

# One block compiles in seconds, and so does a recipe of crops and flips.
TINY = Encoder("resnet18", 4, options={"blocks": (1,), "widths": (4,)})
COMMON = {
    "recipe": "cifar",
    "encoder": TINY,
    "steps": 8,
    "batch": 8,
    "size": 8,
    "classes": 3,
    "neighbours": 5,
}


def tiny_data(n=24):
    random = np.random.default_rng(0)
    rows = np.arange(n, dtype=np.int32)
    labels = random.integers(0, 3, n).astype(np.int32)
    return {
        "images": random.integers(0, 256, (n, 8, 8, 3), np.uint8),
        "bank_rows": rows[8:],
        "bank_labels": labels[8:],
        "evaluation_rows": rows[:8],
        "evaluation_labels": labels[:8],
    }


def assert_trees_close(found, expected, **options):
    options = {"rtol": 1e-5, "atol": 1e-6} | options
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **options), found, expected)


def simclr(**options):
    return SimCLRTask(**(COMMON | options))


def moco(**options):
    return MoCoTask(**(COMMON | {"queue": 24, "norm_groups": 2} | options))


@pytest.fixture(scope="module")
def moco_steps():
    """States before and after each of four steps, and the losses."""
    task, data = moco(), tiny_data()
    step = jax.jit(task.step)
    states, losses = [jax.jit(task.init)(jax.random.key(1), {})], []
    for _ in range(4):
        state, measures = step(states[-1], data)
        states.append(state)
        losses.append(float(measures["loss"]))
    return task, data, states, losses


def views_of(task, state, data):
    """The views of a step, drawn once more."""
    order, view, shuffle = jax.random.split(jax.random.wrap_key_data(state["key"]), 3)
    n = len(data["images"])
    rows = epoch_rows(order, state["step"], n=n, batch=task.batch)
    views = task._views(jax.random.fold_in(view, state["step"]), data["images"][rows])
    return views, jax.random.fold_in(shuffle, state["step"])


def test_every_epoch_sees_every_picture_once_in_another_order():
    key = jax.random.key(0)
    epochs = [
        np.concatenate([epoch_rows(key, 3 * e + s, n=12, batch=4) for s in range(3)])
        for e in range(3)
    ]
    for one in epochs:
        assert sorted(one.tolist()) == list(range(12))
    assert len({tuple(one.tolist()) for one in epochs}) == 3
    # The last, incomplete batch is left out.
    odd = np.concatenate([epoch_rows(key, s, n=14, batch=4) for s in range(3)])
    assert len(set(odd.tolist())) == 12
    with pytest.raises(ValueError, match=r"batch is 5.*4 pictures"):
        epoch_rows(key, 0, n=4, batch=5)


def test_simclr_step_is_sgd_on_nt_xent_of_one_batch_of_both_views():
    torch = pytest.importorskip("torch")
    task, data = simclr(weight_decay=0.01, learning_rate=0.2, warmup=2), tiny_data()
    state = jax.jit(task.init)(jax.random.key(3), {})
    step = jax.jit(task.step)
    weights = [torch.tensor(np.asarray(x)) for x in jax.tree.leaves(state["learnt"])]
    optimiser = torch.optim.SGD(weights, lr=1.0, momentum=0.9, weight_decay=0.01)

    @jax.jit
    def loss_of(learnt, stats, views):
        both = jnp.concatenate([views[0], views[1]])
        variables = {"params": learnt["encoder"], "batch_stats": stats}
        features, _ = encode(TINY, variables, both, train=True)
        hidden, head = learnt["projection"]["linear0"], learnt["projection"]["head"]
        z = jax.nn.relu(features @ hidden["kernel"] + hidden["bias"])
        z = z @ head["kernel"] + head["bias"]
        return nt_xent(z[:8], z[8:], temperature=0.5)

    # Half way up, the top, then a sixth of the way down the cosine of six steps.
    for rate in (0.1, 0.2, 0.2 * 0.5 * (1 + np.cos(0)), 0.2 * 0.5 * (1 + np.cos(np.pi / 6))):
        views, _ = views_of(task, state, data)
        loss, gradient = jax.value_and_grad(loss_of)(state["learnt"], state["batch_stats"], views)
        for weight, slope in zip(weights, jax.tree.leaves(gradient), strict=True):
            weight.grad = torch.tensor(np.asarray(slope))
        optimiser.param_groups[0]["lr"] = float(rate)
        optimiser.step()
        before, (state, measures) = state, step(state, data)
        np.testing.assert_allclose(measures["loss"], loss, rtol=1e-4)
        for mine, theirs in zip(jax.tree.leaves(state["learnt"]), weights, strict=True):
            np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-3, atol=1e-4)
        for weight, mine in zip(weights, jax.tree.leaves(state["learnt"]), strict=True):
            weight.data.copy_(torch.tensor(np.asarray(mine)))
        moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, state)
        assert all(jax.tree.leaves(moved["batch_stats"]))


def test_moco_moves_the_keys_encoder_by_the_momentum_before_it_is_used(moco_steps):
    task, _, states, _ = moco_steps
    assert_trees_close(states[0]["key_learnt"], states[0]["learnt"])
    for before, after in itertools.pairwise(states):
        expected = jax.tree.map(
            lambda key, query: 0.99 * np.float64(key) + 0.01 * np.float64(query),
            before["key_learnt"],
            before["learnt"],
        )
        assert_trees_close(after["key_learnt"], expected)
    assert task.momentum == 0.99


def test_moco_replaces_the_oldest_keys_and_leaves_the_others(moco_steps):
    _, _, states, _ = moco_steps
    for number, (before, after) in enumerate(itertools.pairwise(states)):
        start = 8 * (number % 3)
        assert int(before["pointer"]) == start
        changed = np.any(np.asarray(before["queue"]) != np.asarray(after["queue"]), axis=1)
        assert np.flatnonzero(changed).tolist() == list(range(start, start + 8))
    np.testing.assert_allclose(np.linalg.norm(states[-1]["queue"], axis=1), 1, rtol=1e-5)


def test_moco_loss_and_keys_by_hand(moco_steps):
    """Groups normed one after another, keys dealt in the drawn order and put back."""
    task, data, states, losses = moco_steps
    before, after = states[2], states[3]
    views, key = views_of(task, before, data)

    @jax.jit
    def project(learnt, stats, images):
        return task._project(learnt, stats, images, train=True)

    def grouped(learnt, stats, images):
        parts = [project(learnt, stats, images[start : start + 4]) for start in (0, 4)]
        means = jax.tree.map(lambda a, b: (a + b) / 2, parts[0][1], parts[1][1])
        return np.concatenate([rows for rows, _ in parts]), means

    queries, stats = grouped(before["learnt"], before["batch_stats"], views[0])
    order = np.asarray(jax.random.permutation(key, 8))
    dealt, key_stats = grouped(after["key_learnt"], before["key_stats"], views[1][order])
    keys = np.empty_like(dealt)
    keys[order] = dealt
    expected = info_nce(queries, keys, before["queue"], temperature=0.2)
    np.testing.assert_allclose(losses[2], expected, rtol=1e-4)
    np.testing.assert_allclose(after["queue"][16:24], unit_rows(keys), rtol=1e-3, atol=1e-4)
    assert_trees_close(after["batch_stats"], stats, rtol=1e-4, atol=1e-5)
    assert_trees_close(after["key_stats"], key_stats, rtol=1e-4, atol=1e-5)


def test_moco_gradient_does_not_reach_the_keys_encoder_or_the_queue(moco_steps):
    task, data, states, _ = moco_steps
    views, key = views_of(task, states[1], data)
    kept = ("key_learnt", "queue")

    def loss_of(learnt, others):
        return task._loss(learnt, dict(states[1], **others), views, key)[0]

    others = {name: states[1][name] for name in kept}
    gradients = jax.jit(jax.grad(loss_of, argnums=(0, 1)))(states[1]["learnt"], others)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients[0]["projection"]))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients[1]))


def test_without_labels_minus_the_loss_is_the_score():
    data = {name: tiny_data()[name] for name in ("images", "evaluation_rows")}
    for make in (simclr, moco):
        task = make(score="minus_loss", recipe="none")
        state = jax.jit(task.init)(jax.random.key(0), {})
        evaluate = jax.jit(task.evaluate)
        first, again = evaluate(state, data), evaluate(state, data)
        assert set(first) == {"minus_loss"} and np.isfinite(first["minus_loss"])
        assert float(first["minus_loss"]) == float(again["minus_loss"]) < 0
    few = dict(data, evaluation_rows=np.arange(3, dtype=np.int32))
    with pytest.raises(ValueError, match=r"3 evaluation pictures.*8"):
        simclr(score="minus_loss").evaluate(state, few)


def test_features_do_not_depend_on_how_they_are_cut():
    task, images = simclr(batch=8), tiny_data(21)["images"]
    variables = task.parameters(jax.jit(task.init)(jax.random.key(0), {}))["encoder"]
    whole = jax.jit(task.features)(variables, images)
    assert whole.shape == (21, 4) and whole.dtype == jnp.float32
    np.testing.assert_allclose(
        whole[17:18], jax.jit(task.features)(variables, images[17:18]), rtol=1e-4, atol=1e-5
    )


def test_seeds_train_in_the_sweep_as_alone(moco_steps, tmp_path):
    task, data, _, _ = moco_steps
    members, schedule = [Member(0), Member(1)], Schedule(2, 1, 2, 2)
    outcomes = Sweep(task, data, members, workdir=tmp_path, schedule=schedule).run()
    assert [outcome.status for outcome in outcomes] == ["DONE", "DONE"]
    rows = read_metrics(outcomes[1].folder / "metrics.jsonl")
    assert 0 <= rows[-1]["knn"] <= 1
    state = jax.jit(task.init)(instance_key(jax.random.key(0), 1), {})
    for row in rows:
        state, measures = jax.jit(task.step)(state, data)
        np.testing.assert_allclose(row["loss"], measures["loss"], rtol=1e-4)


def test_adam_learns_to_tell_colours_apart():
    # Each picture of one colour: with flips alone, views of one are equal and of two are not.
    colours = np.random.default_rng(1).integers(0, 256, (8, 1, 1, 3), np.uint8)
    data = {"images": np.broadcast_to(colours, (8, 8, 8, 3))}
    task = simclr(optimiser="adam", learning_rate=0.01, steps=200, temperature=0.2)
    state, step = jax.jit(task.init)(jax.random.key(0), {}), jax.jit(task.step)
    losses = []
    for _ in range(80):
        state, measures = step(state, data)
        losses.append(float(measures["loss"]))
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.5


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (simclr, {"batch": 0}, "batch is 0"),
        (simclr, {"temperature": 0.0}, "temperature is 0.0"),
        (simclr, {"warmup": 9}, "warmup is 9 of 8"),
        (simclr, {"optimiser": "lars"}, "lars"),
        (simclr, {"score": "miou"}, "miou"),
        (moco, {"queue": 20}, "queue is 20.*multiple of the batch, 8"),
        (moco, {"norm_groups": 3}, "norm_groups is 3.*divisor"),
        (moco, {"momentum": 1.5}, "momentum is 1.5"),
    ],
)
def test_bad_numbers_are_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match=r"dropout.*temperature"):
        simclr().init(jax.random.key(0), {"dropout": 0.1})
