"""Algebra on trees, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densejax import trees


def make(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = {"kernel": (3, 4), "bias": (4,), "scale": ()}
    named = {n: np.float32(scale * rng.normal(size=s)) for n, s in shapes.items()}
    return {"layer": named, "rest": [np.float32(scale * rng.normal(size=(2, 0, 3)))]}


def flat(tree):
    return np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(tree)])


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 2**31))
def test_dot_is_numpys(first, second):
    a, b = make(first), make(second)
    np.testing.assert_allclose(trees.dot(a, b), flat(a) @ flat(b), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
def test_norm_is_numpys_far_beyond_the_range_of_squares(scale):
    tree = make(0, scale)
    np.testing.assert_allclose(trees.norm(tree), np.linalg.norm(flat(tree)), rtol=1e-6)


def test_norm_of_trouble_is_trouble_and_of_nothing_is_zero():
    assert np.isnan(trees.norm({"a": np.float32([1, np.nan])}))
    assert np.isinf(trees.norm({"a": np.float32([1, -np.inf])}))
    assert trees.norm({}) == 0 and trees.norm({"a": np.zeros((0, 3), np.float32)}) == 0


def test_the_gradient_of_a_norm_is_the_unit_vector_and_zero_at_zero():
    tree = make(1)
    unit = flat(tree) / np.linalg.norm(flat(tree))
    np.testing.assert_allclose(flat(jax.grad(trees.norm)(tree)), unit, rtol=1e-5)
    zero = jax.tree.map(np.zeros_like, tree)
    assert not flat(jax.grad(trees.norm)(zero)).any()


def test_sums_over_many_bfloat16_entries_are_complete():
    ones = {"a": jnp.ones(100_000, jnp.bfloat16)}
    assert trees.dot(ones, ones) == 100_000 and trees.dot(ones, ones).dtype == jnp.float32
    np.testing.assert_allclose(trees.norm(ones), np.sqrt(1e5), rtol=1e-6)


@pytest.mark.parametrize("scalar", [0.0, -1.5, np.float32(0.25)])
def test_axpy_is_numpys(scalar):
    a, b = make(2), make(3)
    moved = trees.axpy(scalar, a, b)
    np.testing.assert_allclose(flat(moved), scalar * flat(a) + flat(b), rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(moved) == jax.tree.structure(b)


def test_axpy_keeps_the_dtype_of_the_base_and_rounds_once():
    base, step = jnp.bfloat16([1.0, 256.0]), np.float32([1 / 512, 1.0])
    moved = trees.axpy(1.0, {"a": step}, {"a": base})["a"]
    assert moved.dtype == jnp.bfloat16
    expected = jnp.asarray(np.float32(base) + step, jnp.bfloat16)
    np.testing.assert_array_equal(moved, expected)


def test_trees_that_do_not_match_are_refused_by_name():
    with pytest.raises(ValueError, match=r"shape at \['w'\].*\[3\].*\[1\]"):
        trees.dot({"w": np.ones(3)}, {"w": np.ones(1)})
    with pytest.raises(ValueError, match="structure"):
        trees.axpy(1.0, {"w": np.ones(3)}, {"v": np.ones(3)})
    with pytest.raises(ValueError, match="scalar"):
        trees.axpy(np.ones(3), {"w": np.ones(3)}, {"w": np.ones(3)})


def test_random_like_is_standard_normal_in_shape_and_dtype():
    like = {"a": jnp.zeros((200, 100), jnp.float32), "b": jnp.zeros(7, jnp.bfloat16)}
    drawn = trees.random_like(jax.random.key(0), like)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), drawn) == jax.tree.map(
        lambda x: (x.shape, x.dtype), like
    )
    values = np.sort(flat(drawn["a"]))
    assert abs(values.mean()) < 5 / np.sqrt(values.size)
    assert abs(values.std() - 1) < 5 / np.sqrt(2 * values.size)


def test_random_like_draws_apart_between_leaves_and_keys():
    like = [np.zeros(5, np.float32), np.zeros(5, np.float32)]
    one, two = (trees.random_like(jax.random.key(seed), like) for seed in (0, 1))
    assert len({tuple(np.asarray(leaf).tolist()) for leaf in [*one, *two]}) == 4
    longer = trees.random_like(jax.random.key(0), [np.zeros(9, np.float32), like[1]])
    np.testing.assert_array_equal(longer[1], one[1])
    with pytest.raises(ValueError, match="int32"):
        trees.random_like(jax.random.key(0), {"step": np.int32(1)})


def test_count_and_finiteness():
    tree = make(4)
    assert trees.count(tree) == flat(tree).size == 17
    assert trees.count(jax.eval_shape(lambda: tree)) == 17
    assert trees.all_finite(tree) and trees.all_finite({}) and trees.all_finite({"n": 3})
    for trouble in (np.nan, np.inf, -np.inf):
        assert not trees.all_finite([tree, np.float32([0, trouble])])


def test_every_function_agrees_in_every_mode(assert_modes_agree):
    a, b = make(5), make(6)
    assert_modes_agree(trees.dot, a, b)
    assert_modes_agree(trees.norm, a)
    assert_modes_agree(trees.axpy, np.float32(0.3), a, b)
    assert_modes_agree(trees.all_finite, a)
    assert_modes_agree(trees.random_like, jax.random.key(3), a)
