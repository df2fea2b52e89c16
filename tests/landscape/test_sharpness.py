"""Sharpness of losses whose maximum in a box or along the gradient is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.landscape.curvature import ascent_sharpness, box_sharpness

WEIGHTS = {"w": np.float32([1.0, -2.0, 0.5]), "step": np.int32(4)}
SLOPE = np.float32([3.0, -1.0, 0.2])
CURVATURE = np.float32([4.0, 2.0, 1.0])


def linear(params):
    return 2 + jnp.sum(SLOPE * (params["w"] - WEIGHTS["w"]))


def bowl(params):
    return {"loss": 0.5 * jnp.sum(CURVATURE * (params["w"] - WEIGHTS["w"]) ** 2)}


@pytest.mark.parametrize("epsilon", [1e-2, 0.5])
def test_the_box_of_a_linear_loss_is_left_at_its_corner(epsilon):
    box = epsilon * (np.abs(WEIGHTS["w"]) + 1)
    expected = 100 * np.sum(np.abs(SLOPE) * box) / (1 + 2)
    found = jax.jit(lambda p: box_sharpness(jax.random.key(0), linear, p, epsilon=epsilon))(WEIGHTS)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_at_a_minimum_where_the_gradient_vanishes_the_box_still_has_its_highest_corner():
    box = 0.1 * (np.abs(WEIGHTS["w"]) + 1)
    expected = 100 * 0.5 * np.sum(CURVATURE * box**2)
    found = box_sharpness(jax.random.key(0), bowl, WEIGHTS, epsilon=0.1)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_ascent_is_one_step_along_the_gradient():
    np.testing.assert_allclose(
        ascent_sharpness(linear, WEIGHTS, radius=0.1), 0.1 * np.linalg.norm(SLOPE), rtol=1e-4
    )
    away = {**WEIGHTS, "w": WEIGHTS["w"] + np.float32([0.3, 0.1, -0.2])}
    offset = np.float64([0.3, 0.1, -0.2])
    gradient = CURVATURE * offset
    moved = offset + 0.5 * gradient / np.linalg.norm(gradient)
    expected = 0.5 * np.sum(CURVATURE * (moved**2 - offset**2))
    np.testing.assert_allclose(ascent_sharpness(bowl, away, radius=0.5), expected, rtol=1e-4)
    assert ascent_sharpness(bowl, WEIGHTS) == 0


def test_modes_agree(assert_modes_agree):
    weights = {"w": WEIGHTS["w"] + 0.3}
    assert_modes_agree(lambda p: ascent_sharpness(bowl, p), weights, rtol=1e-4)
