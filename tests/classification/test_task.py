"""The task of learning from pictures: against PyTorch, and what an instance's own set decides."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.classification.task import (
    ImageTask,
    class_weights,
    image_data,
    shuffled,
    with_pretrained,
)
from densejax.data.images import augment
from densejax.models.mlp import MLP
from densejax.models.resnet import ResNet

CLASSES = 3


def pictures(number=40, seed=0, channels=1):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, number).astype(np.int32)
    images = rng.integers(0, 120, (number, 6, 6, channels), np.uint8)
    images += (labels * 60).astype(np.uint8)[:, None, None, None]
    return images, labels


def world(sets, *, channels=1, **options):
    images, labels = pictures(channels=channels)
    evaluation_images, evaluation_labels = pictures(25, 1, channels)
    return image_data(
        images,
        labels,
        sets,
        evaluation_images=evaluation_images,
        evaluation_labels=evaluation_labels,
        classes=CLASSES,
        **options,
    )


def init_of(model, channels=1):
    return lambda key: model.init(key, jnp.zeros((1, 6, 6, channels)))


def task_of(model=None, *, channels=1, **options):
    model = model or MLP(CLASSES, widths=(8,))
    given = {"largest": 12, "batch": 5, "epochs": 4, "mean": (0.4,) * channels}
    given["std"] = (0.3,) * channels
    return ImageTask(init_of(model, channels), model.apply, CLASSES, **(given | options))


def test_a_shuffled_order_is_a_permutation_of_the_first():
    for count in (1, 5, 12):
        orders = [np.asarray(shuffled(jax.random.key(k), 12, jnp.int32(count))) for k in range(3)]
        for order in orders:
            assert sorted(order[:count]) == list(range(count))
    assert not np.array_equal(orders[0], orders[1])


def test_an_epoch_sees_each_sample_of_the_own_set_once():
    task = task_of()
    data = world([[0, 1], [3, 7, 9, 11, 20, 22, 30]], largest=12)
    state = task.init(jax.random.key(3), {"query_set": np.float32(1)})
    seen = []

    class Spy:
        def prepare(self, images, *, augment_key=None):
            seen.append(np.asarray(images))
            return ImageTask.prepare(task, images)

    spied = Spy()
    object.__setattr__(task, "prepare", spied.prepare)
    for _ in range(4):
        state, _ = task.step(state, data)
    rows = [int(np.flatnonzero((data["images"] == one).all((1, 2, 3)))[0]) for one in seen[0]]
    rows += [int(np.flatnonzero((data["images"] == one).all((1, 2, 3)))[0]) for one in seen[1]]
    assert sorted(rows[:7]) == [3, 7, 9, 11, 20, 22, 30]
    assert rows[7:] == rows[:3]  # the last batch is filled up with the first of the order
    assert not np.array_equal(seen[0], seen[2])


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_training_agrees_with_pytorch(optimiser):
    torch = pytest.importorskip("torch")
    chosen = [0, 4, 5, 9, 13, 17]
    task = task_of(
        batch=6, optimiser=optimiser, weight_decay=1e-2, learning_rate=0.05, schedule="cosine"
    )
    data = world([chosen], largest=12, weighted=True)
    state = task.init(jax.random.key(0), {})
    start = jax.tree.map(np.asarray, state["variables"]["params"])
    layers = [torch.nn.Linear(36, 8), torch.nn.Linear(8, CLASSES)]
    for layer, name in zip(layers, ("linear0", "head"), strict=True):
        layer.weight.data = torch.tensor(start[name]["kernel"].T.copy())
        layer.bias.data = torch.tensor(start[name]["bias"].copy())
    network = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1])
    make = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
        "adam": lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=1e-2),
    }[optimiser]
    optimiser = make(network.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=4)
    x = (torch.tensor(data["images"][chosen].reshape(6, -1)) / 255 - 0.4) / 0.3
    y = torch.tensor(data["labels"][chosen].astype(np.int64))
    counts = np.bincount(data["labels"][chosen], minlength=CLASSES)
    weights = torch.tensor(class_weights(counts))
    losses = []
    for _ in range(4):
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(x), y, weight=weights)
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
    found = []
    for _ in range(4):
        state, measures = jax.jit(task.step)(state, data)
        found.append(float(measures["loss"]))
    np.testing.assert_allclose(found, losses, rtol=2e-4)
    params = state["variables"]["params"]
    np.testing.assert_allclose(
        params["head"]["kernel"].T, layers[1].weight.detach().numpy(), rtol=2e-3, atol=2e-5
    )


def test_evaluation_counts_every_picture_once():
    task = task_of(evaluation_batch=7)
    data = world([[0, 1]], largest=12)
    state = task.init(jax.random.key(1), {})
    measures = task.evaluate(state, data)
    logits, _ = task.forward(state["variables"], data["evaluation_images"])
    hits = np.argmax(logits, 1) == data["evaluation_labels"]
    np.testing.assert_allclose(measures["accuracy"], hits.mean(), rtol=1e-6)
    of_class = [hits[data["evaluation_labels"] == c].mean() for c in range(CLASSES)]
    np.testing.assert_allclose(measures["class_accuracy"], of_class, rtol=1e-6)


def test_linear_training_moves_the_head_alone_and_augments():
    model = ResNet(CLASSES, blocks=(1,), widths=(4,), stem="cifar", frozen_norm=True)
    options = {"augment": partial(augment, recipe="cifar"), "learning_rate": 0.1}
    task = task_of(model, channels=3, linear=True, **options)
    data = world([[0, 1, 2, 3, 4, 5]], largest=12, channels=3)
    state = task.init(jax.random.key(1), {})
    after, measures = jax.jit(task.step)(state, data)
    before = state["variables"]
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, after["variables"])
    assert changed["params"].pop("head") == {"kernel": True, "bias": True}
    assert not any(jax.tree.leaves(changed))
    assert np.isfinite(measures["loss"])


def test_batch_norm_moments_move_unless_frozen():
    for frozen in (False, True):
        model = ResNet(CLASSES, blocks=(1,), widths=(4,), stem="cifar", frozen_norm=frozen)
        task = task_of(model, channels=3)
        data = world([[0, 1, 2, 3, 4, 5]], largest=12, channels=3)
        state = task.init(jax.random.key(1), {})
        after, _ = jax.jit(task.step)(state, data)
        pairs = zip(
            jax.tree.leaves(state["variables"]["batch_stats"]),
            jax.tree.leaves(after["variables"]["batch_stats"]),
            strict=True,
        )
        assert all(np.array_equal(a, b) == frozen for a, b in pairs)


def test_a_checkpoint_is_grafted_below_a_fresh_head():
    model = ResNet(CLASSES, blocks=(1,), widths=(4,), stem="cifar")
    fresh = init_of(model, 3)
    stored = fresh(jax.random.key(5))
    stored = {"params": dict(stored["params"]), "batch_stats": stored["batch_stats"]}
    head = stored["params"].pop("head")
    variables = with_pretrained(fresh, stored)(jax.random.key(6))
    np.testing.assert_array_equal(
        variables["params"]["conv1"]["kernel"], stored["params"]["conv1"]["kernel"]
    )
    assert not np.array_equal(variables["params"]["head"]["kernel"], head["kernel"])
    wide = init_of(ResNet(CLASSES, blocks=(1,), widths=(8,), stem="cifar"), 3)
    with pytest.raises(ValueError, match="does not fit the network"):
        with_pretrained(wide, stored)


def test_class_weights_follow_the_released_rule():
    np.testing.assert_allclose(class_weights([6, 3, 0]), np.array([1.5, 3, 1]) / 5.5, rtol=1e-6)


def test_bad_sets_are_refused():
    for sets, message in (
        ([[0, 40]], "index 40; expected 0 to 39"),
        ([[1, 1]], "twice"),
        ([range(13)], "13 samples; expected at most 12"),
    ):
        with pytest.raises(ValueError, match=message):
            world(sets, largest=12)
    images, labels = pictures()
    labels[7] = -1
    with pytest.raises(ValueError, match="label -1 of sample 7"):
        image_data(
            images,
            labels,
            [[7]],
            evaluation_images=images,
            evaluation_labels=labels,
            classes=CLASSES,
        )
    with pytest.raises(ValueError, match=r"settings \['nonsense'\]"):
        task_of().init(jax.random.key(0), {"nonsense": 1.0})
