"""Class probabilities on a grid against a function known by hand and a network called directly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax

from densejax.minima.boundaries import class_probabilities, plane_grid
from densejax.models.mlp import MLP


def test_the_published_grid():
    x, y = plane_grid()
    assert len(x) == len(y) == 500 and x[0] == -18 and y[-1] == 18
    x, y = plane_grid(span=2, points=5, centre=(1, -1))
    np.testing.assert_allclose(x, [-1, 0, 1, 2, 3])
    np.testing.assert_allclose(y, [-3, -2, -1, 0, 1])


@pytest.mark.parametrize("chunk", [1, 7, 10**6])
def test_one_logit_is_the_odds_of_class_one(chunk):
    x, y = np.linspace(-1, 1, 4), np.linspace(0, 3, 5)
    found = class_probabilities(
        lambda w, points: points @ w, jnp.array([[2.0], [-1.0]]), x, y, chunk=chunk
    )
    assert found.shape == (4, 5, 2) and found.dtype == np.float32
    np.testing.assert_allclose(found[..., 1], expit(2 * x[:, None] - y), rtol=1e-5)
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-6)


def test_many_networks():
    model = MLP(3, widths=(6,))
    keys = jax.random.split(jax.random.key(0), 4)
    stacked = jax.vmap(lambda key: model.init(key, jnp.zeros((1, 2))))(keys)
    x, y = plane_grid(span=3, points=6)
    logits_of = lambda variables, points: model.apply(variables, points)[0]  # noqa: E731
    found = class_probabilities(logits_of, stacked, x, y, stacked=True, chunk=10)
    assert found.shape == (4, 6, 6, 3)
    third = jax.tree.map(lambda leaf: leaf[2], stacked)
    place = np.array([[x[1], y[4]]], np.float32)
    expected = softmax(np.asarray(model.apply(third, place)[0])[0])
    np.testing.assert_allclose(found[2, 1, 4], expected, rtol=1e-5)
    np.testing.assert_array_equal(found[2], class_probabilities(logits_of, third, x, y, chunk=10))


def test_errors():
    with pytest.raises(ValueError, match="grid of 1 points"):
        plane_grid(points=1)
    with pytest.raises(ValueError, match=r"grid_x \(2, 2\)"):
        class_probabilities(lambda w, p: p, {}, np.zeros((2, 2)), np.zeros(2))
    with pytest.raises(ValueError, match="chunk is 0"):
        class_probabilities(lambda w, p: p, {}, np.zeros(2), np.zeros(2), chunk=0)
