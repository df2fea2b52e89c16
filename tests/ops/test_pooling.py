"""max_pool against lax.reduce_window and PyTorch, ties and NaN included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from densejax.ops.pooling import max_pool

WINDOWS = [(1, 2, 2), (2, 2, 2), (3, 1, 2)]


def reference(x, window):
    sizes = (1, *window, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, sizes, sizes, "VALID")


def volume(shape=(2, 5, 7, 6, 3), *, ties=False):
    x = jax.random.normal(jax.random.key(0), shape)
    return jnp.round(x) if ties else x


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("window", WINDOWS)
def test_value_and_gradient_agree_with_reduce_window(window, ties):
    x = volume(ties=ties)
    weights = jax.random.normal(jax.random.key(1), reference(x, window).shape)
    for f in (max_pool, jax.jit(max_pool, static_argnums=1)):
        np.testing.assert_array_equal(f(x, window), reference(x, window))
    ours, theirs = (
        jax.jit(jax.grad(lambda x, f=f: (f(x, window) * weights).sum()))(x)
        for f in (max_pool, reference)
    )
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("window", WINDOWS)
def test_value_and_gradient_agree_with_torch_where_values_tie(window):
    torch = pytest.importorskip("torch")
    x = volume(ties=True)
    there = torch.tensor(np.asarray(x).transpose(0, 4, 1, 2, 3), requires_grad=True)
    y = torch.nn.functional.max_pool3d(there, window)
    (y**3).sum().backward()
    ours = jax.grad(lambda x: (max_pool(x, window) ** 3).sum())(x)
    expected = there.grad.numpy().transpose(0, 2, 3, 4, 1)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_vmapped_and_inside_a_map_it_agrees_with_one_at_a_time():
    x = volume((3, 1, 2, 5, 4, 2), ties=True)
    slope = jax.grad(lambda x: (max_pool(x, (1, 2, 2)) ** 3).sum())
    expected = jnp.stack([slope(a) for a in x])
    np.testing.assert_array_equal(jax.vmap(slope)(x), expected)
    np.testing.assert_array_equal(lax.map(slope, x), expected)


@pytest.mark.parametrize("place", range(4))
def test_a_nan_is_the_maximum_of_its_window(place):
    x = jnp.arange(4.0).at[place].set(jnp.nan).reshape(1, 1, 2, 2, 1)
    assert jnp.isnan(max_pool(x, (1, 2, 2))).all()


@pytest.mark.parametrize(
    ("shape", "message"), [((2, 4, 4, 3), "rank|shape"), ((1, 1, 4, 4, 1), "fit")]
)
def test_wrong_arguments_are_named(shape, message):
    with pytest.raises(ValueError, match=message):
        max_pool(jnp.zeros(shape), (2, 2, 2))
