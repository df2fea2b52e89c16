"""Paths: ends, barriers and valleys against NumPy loops and losses whose valleys are known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from densejax.landscape import paths
from densejax.landscape.paths import Curve, linear_barrier, profile, train_curve, train_curves

ROWS = 30


def network(seed):
    rng = np.random.default_rng(seed)
    shapes = {"a": (2, 5), "b": (5,), "c": (5, 3)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def rows():
    rng = np.random.default_rng(9)
    return rng.normal(size=(ROWS, 2)).astype(np.float32), rng.integers(0, 3, ROWS)


def measures(params):
    x, label = rows()
    logits = jnp.maximum(x @ params["a"] + params["b"], 0) @ params["c"]
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=1)
    return {"loss": -picked.mean(), "accuracy": jnp.mean(logits.argmax(axis=1) == label)}


def measures_in_numpy(params):
    x, label = rows()
    logits = np.maximum(x @ params["a"] + params["b"], 0) @ params["c"]
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -logs[np.arange(ROWS), label].mean(), np.mean(logits.argmax(axis=1) == label)


def ring(params):
    """Zero on the unit circle, 1 at its centre."""
    return (jnp.sum(params["w"] ** 2) - 1) ** 2


def parabola(params):
    """Zero on y = 1 - x^2 alone."""
    x, y = params["w"]
    return (y - 1 + x**2) ** 2


WEST, EAST = {"w": np.float32([-1, 0])}, {"w": np.float32([1, 0])}


def alike(first, second):
    return all(
        np.array_equal(a, b) and jnp.result_type(a) == jnp.result_type(b)
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    )


# ---- curves ----


@pytest.mark.parametrize("kind", ["chain", "bezier"])
def test_a_curve_is_its_formula_and_its_ends_are_exact(kind):
    points = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
    tree = {"w": points, "half": points.astype(jnp.bfloat16), "step": np.int32([7, 8, 9])}
    curve = Curve(tree, kind)
    for t in np.linspace(0, 1, 11):
        if kind == "bezier":
            weights = [(1 - t) ** 2, 2 * t * (1 - t), t**2]
        else:
            weights = [np.interp(t, [0, 0.5, 1], unit) for unit in np.eye(3)]
        found = curve.at(t)
        np.testing.assert_allclose(found["w"], np.tensordot(weights, points, 1), atol=1e-6)
        assert found["half"].dtype == jnp.bfloat16 and found["step"] == 7
    for t, place in ((0.0, 0), (1.0, -1)):
        end = jax.tree.map(lambda leaf, place=place: leaf[place], tree)
        assert alike(jax.jit(curve.at)(t) | {"step": end["step"]}, end)


def test_a_curve_of_degree_five_is_de_casteljaus():
    points = np.random.default_rng(0).normal(size=(6, 3))
    for t in (0.1, 0.5, 0.83):
        left = points
        while len(left) > 1:
            left = (1 - t) * left[:-1] + t * left[1:]
        found = Curve({"w": points.astype(np.float32)}, "bezier").at(t)["w"]
        np.testing.assert_allclose(found, left[0], atol=1e-5)


def test_curves_agree_in_every_mode(assert_modes_agree):
    points = {"w": np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)}
    for kind in ("chain", "bezier"):
        assert_modes_agree(lambda p, t, kind=kind: Curve(p, kind).at(t), points, np.float32(0.3))


# ---- barriers ----


@pytest.mark.parametrize("chunk", [1, 4])
def test_the_linear_barrier_is_that_of_a_loop(chunk):
    first, second = network(0), network(1)
    found = linear_barrier(measures, first, second, points=21, chunk=chunk)
    losses, accuracies, rises = [], [], []
    for t in np.linspace(0, 1, 21):
        point = {name: (1 - t) * first[name] + t * second[name] for name in first}
        loss, accuracy = measures_in_numpy(point)
        losses.append(loss)
        accuracies.append(accuracy)
    for t, loss in zip(np.linspace(0, 1, 21), losses, strict=True):
        rises.append(loss - (1 - t) * losses[0] - t * losses[-1])
    np.testing.assert_allclose(found.values["loss"], losses, rtol=1e-5)
    np.testing.assert_allclose(found.values["accuracy"], accuracies, atol=1e-6)
    np.testing.assert_allclose(found.barrier, max(rises), rtol=1e-4, atol=1e-6)
    assert found.highest == np.linspace(0, 1, 21)[np.argmax(rises)]
    assert found.rise(name="accuracy")[0] == 0


def test_a_convex_loss_has_no_barrier_and_a_hole_in_it_is_not_hidden():
    bowl = linear_barrier(lambda p: jnp.sum(p["w"] ** 2), WEST, {"w": np.float32([3, 1])})
    assert bowl.barrier == 0
    hole = linear_barrier(lambda p: jnp.log(jnp.abs(p["w"][0]) - 0.5), WEST, EAST, points=5)
    assert np.isnan(hole.barrier)


def test_barriers_of_every_pair_are_those_of_each():
    minima = jax.tree.map(lambda *leaves: np.stack(leaves), *[network(i) for i in range(3)])
    table = paths.linear_barriers(measures, minima, points=9)
    for i in range(3):
        for j in range(3):
            one = linear_barrier(measures, network(i), network(j), points=9).barrier
            np.testing.assert_allclose(table[i, j], one, rtol=1e-4, atol=1e-6)


# ---- bent curves ----


@pytest.mark.parametrize(("kind", "bends"), [("bezier", 1), ("bezier", 3), ("chain", 3)])
def test_between_minima_on_a_ring_a_bent_curve_stays_near_it(kind, bends):
    curve, losses = paths.bezier(jax.random.key(0), ring, WEST, EAST, kind=kind, bends=bends)
    straight = linear_barrier(ring, WEST, EAST)
    np.testing.assert_allclose(straight.barrier, 1, rtol=1e-6)
    assert straight.highest == 0.5
    assert profile(ring, curve).barrier < 0.1
    assert losses.shape == (1000,) and losses[-100:].mean() < 0.1 * losses[:5].mean()
    assert alike(jax.tree.map(lambda leaf: leaf[0], curve.points), WEST)
    assert alike(jax.tree.map(lambda leaf: leaf[-1], curve.points), EAST)
    assert alike(curve.at(0.0), WEST) and alike(curve.at(1.0), EAST)


def test_a_valley_that_is_a_quadratic_curve_is_found():
    # (2t - 1, 4t(1 - t)) is the Bezier curve of the ends and (0, 2), and the parabola itself.
    curve, _ = paths.bezier(
        jax.random.key(1), parabola, WEST, EAST, optimiser=optax.adam(0.03), steps=2000
    )
    np.testing.assert_allclose(curve.points["w"][1], [0, 2], atol=0.02)
    assert profile(parabola, curve).barrier < 1e-4 < linear_barrier(parabola, WEST, EAST).barrier


def test_many_pairs_are_trained_as_each_alone():
    starts = {"w": np.float32([[-1, 0], [0, 1], [0.6, 0.8]])}
    ends = {"w": np.float32([[1, 0], [0, -1], [-0.6, -0.8]])}
    key = jax.random.key(3)
    options = {"steps": 500, "noise": 0.1}
    curves, losses = train_curves(key, ring, starts, ends, **options)
    assert losses.shape == (3, 500) and curves.points["w"].shape == (3, 3, 2)
    train = jax.jit(lambda key, first, second: train_curve(key, ring, first, second, **options))
    for i in range(3):
        pair = ({"w": one["w"][i]} for one in (starts, ends))
        alone, expected = train(jax.random.fold_in(key, i), *pair)
        one = jax.tree.map(lambda leaf, i=i: leaf[i], curves)
        np.testing.assert_allclose(one.points["w"], alone.points["w"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(losses[i], expected, rtol=1e-3, atol=1e-5)
        assert profile(ring, one).barrier < 0.5


def test_a_curve_trains_on_batches_and_leaves_counters():
    targets = jnp.asarray(np.random.default_rng(0).normal(size=(64, 2)) * 0.1)

    def loss(params):
        return jnp.mean((jnp.sum((params["w"] - targets) ** 2, axis=1) - 1) ** 2)

    def batch_loss(key, params):
        some = targets[jax.random.randint(key, (4,), 0, 64)]
        return {"loss": jnp.mean((jnp.sum((params["w"] - some) ** 2, axis=1) - 1) ** 2)}

    first, second = (end | {"step": np.int32(5)} for end in (WEST, EAST))
    curve, _ = paths.bezier(
        jax.random.key(0), loss, first, second, batch_loss=batch_loss, samples=3
    )
    straight = linear_barrier(loss, first, second).barrier
    assert profile(loss, curve).barrier < 0.2 * straight
    assert curve.at(0.5)["step"] == 5


# ---- what is refused ----


def test_what_does_not_fit_is_refused():
    first, key = network(0), jax.random.key(0)
    with pytest.raises(ValueError, match=r"\['b'\] is in .* and not in the second minimum"):
        linear_barrier(measures, first, {"a": first["a"], "c": first["c"]})
    with pytest.raises(ValueError, match=r"\['b'\] is \[5\].*\[6\] in the second minimum"):
        train_curve(key, measures, first, {**first, "b": np.zeros(6, np.float32)})
    with pytest.raises(ValueError, match="points=1"):
        linear_barrier(measures, first, network(1), points=1)
    with pytest.raises(ValueError, match="kind='spline'"):
        train_curve(key, ring, WEST, EAST, kind="spline")
    with pytest.raises(ValueError, match="bends=0"):
        train_curve(key, ring, WEST, EAST, bends=0)
    with pytest.raises(ValueError, match="expected a scalar"):
        linear_barrier(lambda p: p["w"], WEST, EAST)
