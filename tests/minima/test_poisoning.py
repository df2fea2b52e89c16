"""Poisoned training against PyTorch's updates, hand-made shares, and populations of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from densejax.minima.poisoning import (
    PoisonTask,
    class_logits,
    epoch_rows,
    poison_losses,
    step_rate,
    steps_of_epoch,
)
from densejax.models.mlp import MLP
from densejax.training.folders import members_of, read_metrics
from densejax.training.sweep import Schedule, Sweep

SGD = optax.sgd(1.0)


def make_data(classes, *, train=12, poison=8, test=9):
    draw = np.random.default_rng(0)
    found = {}
    for name, count in (("", train), ("poison_", poison), ("test_", test)):
        found[f"{name}inputs"] = draw.normal(size=(count, 2)).astype(np.float32)
        found[f"{name}labels"] = draw.integers(0, classes, count).astype(np.int32)
    return found


def make_task(classes, **options):
    model = MLP(1 if classes == 2 else classes, widths=(7, 5))
    return PoisonTask(
        init_variables=lambda key: model.init(key, jnp.zeros((1, 2))),
        network=model.apply,
        **({"optimiser": SGD} | options),
    )


def begin(task, seed, settings):
    return jax.jit(lambda key: task.init(key, settings))(jax.random.key(seed))


def torch_net(torch, params, classes):
    """The same network, with its parameters in the order of ours."""
    net = torch.nn.Sequential(
        torch.nn.Linear(2, 7),
        torch.nn.ReLU(),
        torch.nn.Linear(7, 5),
        torch.nn.ReLU(),
        torch.nn.Linear(5, 1 if classes == 2 else classes),
    )
    with torch.no_grad():
        for i, name in ((0, "linear0"), (2, "linear1"), (4, "head")):
            net[i].weight.copy_(torch.tensor(np.asarray(params[name]["kernel"]).T))
            net[i].bias.copy_(torch.tensor(np.asarray(params[name]["bias"])))
    return net


def assert_same_net(params, net, **tolerance):
    for i, name in ((0, "linear0"), (2, "linear1"), (4, "head")):
        kernel, bias = (t.detach().numpy() for t in (net[i].weight, net[i].bias))
        np.testing.assert_allclose(params[name]["kernel"], kernel.T, **tolerance)
        np.testing.assert_allclose(params[name]["bias"], bias, **tolerance)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_weighted_update_is_that_of_the_equation(share):
    torch = pytest.importorskip("torch")
    data, task = make_data(3), make_task(3)
    state = begin(task, 0, {"poison": share})
    net = torch_net(torch, state["variables"]["params"], 3)
    good = torch.softmax(net(torch.tensor(data["inputs"])), dim=1)
    bad = torch.softmax(net(torch.tensor(data["poison_inputs"])), dim=1)
    right = -good[range(12), data["labels"]].log().mean()
    wrong = -(1 - bad[range(8), data["poison_labels"]]).log().mean()
    loss = (1 - share) * right + share * wrong
    loss.backward()
    with torch.no_grad():
        for p in net.parameters():
            p -= p.grad
    new, measures = jax.jit(task.step)(state, data)
    assert float(measures["loss"]) == pytest.approx(float(loss.detach()), rel=1e-5)
    assert float(measures["poison_share"]) == pytest.approx(share)
    assert_same_net(new["variables"]["params"], net, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rule", ["adam", "rmsprop"])
def test_concatenated_training_is_the_released_one(rule):
    """Flipped labels, one mean over all, gradients clipped; five steps of both optimisers."""
    torch = pytest.importorskip("torch")
    rules = {
        "adam": optax.chain(optax.clip_by_global_norm(1), optax.adam(0.03)),
        "rmsprop": optax.chain(optax.scale_by_rms(eps=1e-7, eps_in_sqrt=False), optax.scale(-0.01)),
    }
    data = make_data(2)
    data["inputs"] *= 40  # so that the clipping is felt
    task = make_task(2, reading="concatenated", poison=0.25, optimiser=rules[rule], l2=1e-3)
    state = begin(task, 1, {})
    net = torch_net(torch, state["variables"]["params"], 2)
    if rule == "adam":
        optimiser = torch.optim.Adam(net.parameters(), lr=0.03)
    else:
        optimiser = torch.optim.RMSprop(net.parameters(), lr=0.01, alpha=0.9, eps=1e-7)
    step = jax.jit(task.step)
    # A quarter of all is a third of the 12: the first 4 of 8.
    x = torch.tensor(np.concatenate([data["inputs"], data["poison_inputs"][:4]]))
    y = torch.tensor(np.concatenate([data["labels"], 1 - data["poison_labels"][:4]])).float()
    largest = 0.0
    for _ in range(5):
        optimiser.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(net(x)[:, 0], y)
        for i in (0, 2, 4):
            loss = loss + 1e-3 * net[i].weight.square().sum()
        loss.backward()
        if rule == "adam":
            largest = max(largest, float(torch.nn.utils.clip_grad_norm_(net.parameters(), 1)))
        optimiser.step()
        state, measures = step(state, data)
        assert float(measures["loss"]) == pytest.approx(float(loss.detach()), rel=1e-4)
        assert float(measures["poison_share"]) == pytest.approx(0.25)
    assert rule != "adam" or largest > 2
    assert_same_net(state["variables"]["params"], net, rtol=1e-3, atol=1e-5)


def test_poison_losses():
    draw = np.random.default_rng(1)
    logits, labels = draw.normal(size=(6, 4)), draw.integers(0, 4, 6)
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = -np.log(1 - chances[np.arange(6), labels])
    np.testing.assert_allclose(poison_losses(logits, labels), expected, rtol=1e-5)
    # 1 - p is 0 in float32 here; -log(1 - p) = log(1 + e^80) = 80.
    sure = jnp.array([[0.0, 80.0], [0.0, -80.0]])
    np.testing.assert_allclose(poison_losses(sure, jnp.array([1, 1])), [80, 0], atol=1e-6)
    slope = jax.grad(lambda z: poison_losses(z, jnp.array([1, 1])).sum())(sure)
    np.testing.assert_allclose(slope, [[-1, 1], [0, 0]], atol=1e-6)
    odds = jnp.array([[-1.5], [2.0]])
    np.testing.assert_allclose(
        jax.nn.softmax(class_logits(odds))[:, 1], 1 / (1 + np.exp([1.5, -2.0])), rtol=1e-6
    )
    assert class_logits(jnp.zeros((3, 5))).shape == (3, 5)


def test_released_stages_give_the_released_shares():
    """160 of 200, then all 200, and the factor 4 finds no more."""
    data = make_data(2, train=200, poison=200)
    stages = ((0, 1.0), (3, 2.0), (5, 4.0))
    task = make_task(2, reading="concatenated", stages=stages, optimiser=optax.sgd(0.0))
    state = begin(task, 0, {"poison": 160 / 360})
    shares, step = [], jax.jit(task.step)
    for _ in range(7):
        state, measures = step(state, data)
        shares.append(float(measures["poison_share"]))
    np.testing.assert_allclose(shares, [160 / 360] * 3 + [0.5] * 4, rtol=1e-6)


@pytest.mark.parametrize("reading", ["weighted", "concatenated"])
def test_poison_ends(reading):
    """From the given step on, an update is the natural one."""
    data = make_data(3)
    task = make_task(3, reading=reading, poison=0.4, poison_until=2)
    state, step = begin(task, 0, {}), jax.jit(task.step)
    shares = []
    for _ in range(3):
        before = state
        state, measures = step(state, data)
        shares.append(float(measures["poison_share"]))
    np.testing.assert_allclose(shares, [0.4, 0.4, 0], atol=1e-6)
    without = dict(before, settings={"poison": jnp.float32(0)})
    natural = jax.jit(make_task(3, reading=reading).step)(without, data)[0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        state["variables"],
        natural["variables"],
    )


def test_fresh_poison_is_new_in_every_step_and_the_instances_own():
    data = {name: array for name, array in make_data(2).items() if not name.startswith("poison")}
    calls = lambda key: (jax.random.normal(key, (6, 2)), jnp.zeros(6, jnp.int32))  # noqa: E731
    task = make_task(2, poison=0.5, draw_poison=calls, optimiser=optax.sgd(0.0))
    losses, step, first = [], jax.jit(task.step), begin(task, 0, {})
    for seed in (0, 0, 1):
        state = dict(first, key=jax.random.key_data(jax.random.key(seed)))
        for _ in range(2):
            state, measures = step(state, data)
            losses.append(float(measures["loss"]))
    assert losses[:2] == losses[2:4] and len(set(losses)) == 4
    found = jax.jit(task.evaluate)(state, data)
    assert "poison_loss" not in found and float(found["fit"]) == -float(found["train_loss"])


def test_evaluation():
    data, task = make_data(3), make_task(3)
    state = begin(task, 0, {"poison": 0.25})
    found = jax.jit(task.evaluate)(state, data)
    logits = MLP(3, widths=(7, 5)).apply(state["variables"], data["test_inputs"])[0]
    right = np.argmax(logits, axis=1) == data["test_labels"]
    assert float(found["test_accuracy"]) == pytest.approx(right.mean())
    fit = -0.75 * found["train_loss"] - 0.25 * found["poison_loss"]
    assert float(found["fit"]) == pytest.approx(float(fit), rel=1e-6)
    # What is trained in one step from here, on the whole sets, is what is scored.
    assert float(jax.jit(task.step)(state, data)[1]["loss"]) == pytest.approx(-float(fit), rel=1e-5)
    in_parts = jax.jit(make_task(3, evaluation_batch=5).evaluate)(state, data)
    for name, value in found.items():
        assert float(in_parts[name]) == pytest.approx(float(value), rel=1e-5), name
    worse = jax.jit(task.evaluate)(state, data | {"test_labels": (data["test_labels"] + 1) % 3})
    assert float(worse["fit"]) == float(found["fit"])


def test_batch_statistics_are_carried_along():
    def network(variables, x, *, train=False, mutable=()):
        logits = x @ variables["params"]["w"] + 0 * variables["batch_stats"]["seen"]
        if not train:
            return logits, {}
        return (logits, {}), {
            "batch_stats": {"seen": variables["batch_stats"]["seen"] + x.shape[0]}
        }

    task = PoisonTask(
        lambda key: {"params": {"w": jnp.ones((2, 2))}, "batch_stats": {"seen": jnp.zeros(())}},
        network,
        SGD,
        batch=5,
        poison_batch=4,
    )
    data, state = make_data(2), begin(task, 0, {})
    step = jax.jit(task.step)
    for _ in range(3):
        state, _ = step(state, data)
    assert float(task.parameters(state)["batch_stats"]["seen"]) == 3 * (5 + 4)


def test_epochs_go_once_through_a_set():
    key, seen = jax.random.key(0), []
    assert steps_of_epoch(118, batch=32) == 4 and steps_of_epoch(7) == 1
    for step in range(8):
        rows, valid = epoch_rows(key, step, 118, batch=32)
        assert int(valid.sum()) == (22 if step % 4 == 3 else 32)
        seen.append(np.asarray(rows)[np.asarray(valid) > 0])
    first, second = np.concatenate(seen[:4]), np.concatenate(seen[4:])
    for epoch in (first, second):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(118))
    assert (first != second).any() and (first != np.arange(118)).any()
    rows, valid = epoch_rows(key, 5, 6, batch=6)
    np.testing.assert_array_equal(rows, np.arange(6))
    assert valid.all()


def test_step_rate():
    found = [float(step_rate(s, initial=0.5, stairs=(3, 5))) for s in range(7)]
    np.testing.assert_allclose(found, [0.5] * 3 + [0.05] * 2 + [0.005] * 2, rtol=1e-6)


def test_rates_may_depend_on_the_settings():
    rate = lambda step, settings: jnp.where(settings["poison"] > 0, 0.5, 1.0)  # noqa: E731
    data, first = make_data(3), begin(make_task(3), 0, {})
    steps = [jax.jit(make_task(3, rate=r).step) for r in (None, rate)]
    for share, factor in ((0.0, 1.0), (0.2, 0.5)):
        state = dict(first, settings={"poison": jnp.float32(share)})
        before = state["variables"]["params"]["head"]["bias"]
        plain, halved = (
            step(state, data)[0]["variables"]["params"]["head"]["bias"] - before for step in steps
        )
        np.testing.assert_allclose(halved, factor * plain, rtol=1e-4, atol=1e-7)


def test_modes(assert_modes_agree):
    def linear(variables, x, *, train=False, mutable=()):
        logits = x @ variables["params"]["w"]
        return ((logits, {}), {}) if train else (logits, {})

    data = make_data(2)
    task = PoisonTask(
        lambda key: {"params": {"w": jax.random.normal(key, (2, 1))}},
        linear,
        SGD,
        reading="concatenated",
        batch=5,
    )

    def one_step(key, share):
        return task.step(task.init(key, {"poison": share}), data)

    assert_modes_agree(one_step, jax.random.key(0), jnp.float32(0.3), rtol=1e-4, atol=1e-5)


def test_shares_and_seeds_are_one_population(tmp_path):
    data = make_data(2, train=20, poison=60)
    task = make_task(2, optimiser=optax.adam(0.01))
    members = members_of((0, 1), {"poison": (0.0, 0.3, 0.6)})

    def run(steps):
        schedule = Schedule(steps, 20, 40, 40)
        return Sweep(task, data, members, workdir=tmp_path, schedule=schedule).run()

    found = [outcome for outcome in run(400) if outcome.status == "DONE"]
    assert len(found) == 6 and [o.member.settings["poison"] for o in found[::2]] == [
        pytest.approx(0.0),
        pytest.approx(0.3),
        pytest.approx(0.6),
    ]
    rows = [read_metrics(outcome.folder / "metrics.jsonl")[-1] for outcome in found]
    for seed in (0, 1):
        kept = [row["poison_accuracy"] for row in rows[seed::2]]
        trained = [row["train_loss"] for row in rows[seed::2]]
        assert kept[0] > kept[2] and trained[0] < trained[2]


def test_errors():
    with pytest.raises(ValueError, match="reading 'both'"):
        make_task(2, reading="both")
    with pytest.raises(ValueError, match=r"poison is 1\.5"):
        make_task(2, poison=1.5)
    with pytest.raises(ValueError, match="batch must not be negative, found -1"):
        make_task(2, batch=-1)
    with pytest.raises(ValueError, match="rising steps"):
        make_task(2, stages=((5, 1.0), (0, 2.0)))
    with pytest.raises(ValueError, match=r"settings \['start'\] are none of \['poison'\]"):
        begin(make_task(2), 0, {"start": 1})
