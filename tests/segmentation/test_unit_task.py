"""Learning from labelled units: what is drawn, what counts, what moves."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.segmentation.task import Descent
from densejax.segmentation.unit_task import (
    UnitDraw,
    channel_moments,
    median_frequency,
    padded_pictures,
    standardised,
    unit_data,
    unit_task,
)

CLASSES = 3


def network(variables, x, train=False, mutable=None, rngs=None):
    """Logits of each pixel from its own grey level, with a running mean and dropout."""
    params, mean = variables["params"], variables["batch_stats"]["mean"]
    if not train:
        return (x - mean) * params["w"] + params["b"], {}
    assert mutable == ["batch_stats"]
    kept = jax.random.bernoulli(rngs["dropout"], 0.5, x.shape)
    logits = kept * (x - jnp.mean(x)) * params["w"] + params["b"]
    return (logits, {}), {"batch_stats": {"mean": 0.9 * mean + 0.1 * jnp.mean(x)}}


def variables(key):
    params = {"w": jax.random.normal(key, (CLASSES,)), "b": jnp.zeros(CLASSES)}
    return {"params": params, "batch_stats": {"mean": jnp.zeros(())}}


def units_of(n=6, size=4):
    """Unit i is i everywhere in its image; its labels are random, void in places."""
    random = np.random.default_rng(0)
    images = np.repeat(np.arange(n, dtype=np.uint8), size**2).reshape(n, 1, size, size, 1)
    labels = random.integers(-1, CLASSES, (n, 1, size, size)).astype(np.int8)
    return SimpleNamespace(images=images, labels=labels)


def data_of(units, sets, **options):
    given = {"test_images": units.images, "test_labels": units.labels, "classes": CLASSES}
    return unit_data(units, sets, largest=4, **(given | options))


def task_of():
    return unit_task(
        variables,
        standardised(network, mean=(0.0,), std=(1.0,)),
        CLASSES,
        batch=2,
        learning_rate=0.1,
        descent=Descent(8, optimiser="momentum", dice_weight=0.0),
        draw=UnitDraw(),
    )


def test_only_labelled_units_are_drawn_and_each_once_an_epoch():
    data = data_of(units_of(), [[5, 2, 4], [0]])
    draw = jax.jit(
        lambda step, row: UnitDraw()(
            jax.random.key(1), step, dict(data, settings={"query_set": row})
        )
    )
    seen = [int(draw(step, 0.0)[0].max() * 255 + 0.5) for step in range(12)]
    epochs = [tuple(seen[start : start + 3]) for start in range(0, 12, 3)]
    assert all(sorted(epoch) == [2, 4, 5] for epoch in epochs)
    assert len(set(epochs)) > 1
    assert {int(draw(step, 1.0)[0].max() * 255 + 0.5) for step in range(3)} == {0}


def test_void_counts_in_no_gradient_and_no_table():
    units = units_of()
    task = task_of()
    state = task.init(jax.random.key(0), {})
    step = jax.jit(task.step)
    data = data_of(units, [[1, 3]])
    moved = step(state, data)[0]["params"]
    assert not np.array_equal(moved["w"], state["params"]["w"])
    still = step(state, dict(data, labels=np.full_like(units.labels, -1)))[0]["params"]
    jax.tree.map(np.testing.assert_array_equal, still, state["params"])
    measures = jax.jit(task.evaluate)(state, data_of(units, [[1]]))
    assert int(measures["confusion"].sum()) == int((units.labels >= 0).sum())


def test_moments_move_in_training_and_not_in_evaluation():
    task, data = task_of(), data_of(units_of(), [[3, 5]])
    state = task.init(jax.random.key(0), {"query_set": 0.0})
    moved, _ = jax.jit(task.step)(state, data)
    assert float(moved["moving"]["batch_stats"]["mean"]) == pytest.approx(0.1 * 4 / 255, rel=1e-5)
    found, mean = task.parameters(moved), moved["moving"]["batch_stats"]["mean"]
    assert set(found) == {"params", "batch_stats"}
    jax.jit(task.evaluate)(moved, data)
    np.testing.assert_array_equal(found["batch_stats"]["mean"], mean)
    # Dropout is a function of the step: the same step twice is the same.
    again, _ = jax.jit(task.step)(state, data)
    jax.tree.map(np.testing.assert_array_equal, moved, again)


def test_crops_cut_image_and_labels_alike():
    size = 6
    places = np.arange(size**2, dtype=np.uint8).reshape(1, 1, size, size)
    units = SimpleNamespace(images=places[..., None], labels=places.astype(np.int32) % CLASSES)
    data = dict(data_of(units, [[0]]), settings={"query_set": jnp.float32(0)})
    plain = jax.jit(UnitDraw((3, 4), flips=""))
    corners = set()
    for step in range(20):
        image, labels, weights = plain(jax.random.key(0), step, data)
        found = np.rint(np.asarray(image)[0, :, :, 0] * 255).astype(int)
        y, x = divmod(int(found[0, 0]), size)
        corners.add((y, x))
        np.testing.assert_array_equal(found, places[0, 0, y : y + 3, x : x + 4])
        np.testing.assert_array_equal(np.asarray(labels)[0], found % CLASSES)
        assert weights.shape == labels.shape
    assert {y for y, _ in corners} == {0, 1, 2, 3} and {x for _, x in corners} == {0, 1, 2}


def test_a_unit_that_is_smaller_than_its_crop_counts_once():
    images = np.full((1, 1, 8, 8, 3), 90, np.uint8)
    units = SimpleNamespace(images=images, labels=np.zeros((1, 1, 8, 8), np.int32))
    data = dict(data_of(units, [[0]]), settings={"query_set": jnp.float32(0)})
    draw = jax.jit(UnitDraw((8, 8), scale=(0.5, 0.5), flips="x"))
    image, labels, _ = draw(jax.random.key(0), 0, data)
    np.testing.assert_allclose(image, 90 / 255, rtol=1e-6)
    assert int((np.asarray(labels) == 0).sum()) == 16 and set(np.unique(labels)) == {-1, 0}
    with pytest.raises(ValueError, match="and a crop"):
        UnitDraw(scale=(0.5, 2.0))


def test_median_frequency_by_hand():
    # Class 0 is 30 of 40 pixels where it is, class 1 is 10 of 20, class 2 nowhere.
    weights = median_frequency([[10, 10, 0], [20, 0, 0]])
    np.testing.assert_allclose(weights, [0.625 / 0.75, 0.625 / 0.5, 1.0], rtol=1e-6)
    units = units_of()
    data = data_of(units, [[0], [1, 2]], weighted=True)
    tables = [np.bincount(units.labels[i][units.labels[i] >= 0], minlength=3) for i in (1, 2)]
    np.testing.assert_allclose(data["class_weights"][1], median_frequency(tables), rtol=1e-6)


def test_padded_pictures_are_continued_and_the_rest_is_void():
    images, labels = np.arange(15, dtype=np.uint8).reshape(1, 1, 3, 5, 1), np.ones((1, 1, 3, 5))
    padded, void = padded_pictures(images, labels, multiple=(1, 4, 4))
    assert padded.shape == (1, 1, 4, 8, 1) and int((void >= 0).sum()) == 15
    np.testing.assert_array_equal(padded[0, 0, 3, :, 0], [10, 11, 12, 13, 14, 14, 13, 12])
    mean, std = channel_moments(images)
    assert mean[0] == pytest.approx(7 / 255)
    assert std[0] == pytest.approx(np.std(np.arange(15)) / 255)
    with pytest.raises(ValueError, match="channel 0 is constant"):
        channel_moments(images * 0)


@pytest.mark.parametrize(
    "sets, spoil, said",
    [
        ([[0, 0]], None, "2 units, 1 different; expected at most 4, each once"),
        ([[0, 1, 2, 3, 4]], None, "5 units, 5 different; expected at most 4"),
        ([[6]], None, "expected 0 to 5"),
        ([[1]], -1, "unit 1: every pixel is void"),
        ([[1]], CLASSES, "unit 1: labels .* to 3; expected 0 to 2, or -1"),
    ],
)
def test_sets_that_cannot_be_learnt_from_are_refused(sets, spoil, said):
    units = units_of()
    if spoil is not None:
        units.labels[1] = spoil
    with pytest.raises(ValueError, match=said):
        data_of(units, sets)
