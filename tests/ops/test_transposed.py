"""transposed_convolution against PyTorch and lax.conv_transpose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from densejax.ops.convolution import transposed_convolution

KERNELS = [(1, 2, 2), (2, 2, 2)]


def arrays(kernel, lead=()):
    one, two = jax.random.split(jax.random.key(0))
    x = jax.random.normal(one, (*lead, 2, 3, 4, 5, 3))
    return x, jax.random.normal(two, (*lead, *kernel, 3, 4)) * 0.5


def reference(x, w):
    """lax turns the kernel round; turning it beforehand gives the transposed convolution."""
    dims = ("NDHWC", "DHWIO", "NDHWC")
    strides = w.shape[:3]
    return lax.conv_transpose(x, w[::-1, ::-1, ::-1], strides, "VALID", dimension_numbers=dims)


def gradient(f):
    return jax.grad(lambda x, w: jnp.sin(f(x, w)).sum(), argnums=(0, 1))


def close(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_value_agrees_with_torch(kernel):
    torch = pytest.importorskip("torch")
    x, w = arrays(kernel)
    expected = torch.nn.functional.conv_transpose3d(
        torch.tensor(np.asarray(x).transpose(0, 4, 1, 2, 3)),
        torch.tensor(np.asarray(w).transpose(3, 4, 0, 1, 2)),
        stride=kernel,
    )
    close(transposed_convolution(x, w), expected.numpy().transpose(0, 2, 3, 4, 1))


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradient_agrees_with_lax_plain_and_jitted(kernel):
    x, w = arrays(kernel)
    theirs = gradient(reference)(x, w)
    close(gradient(transposed_convolution)(x, w), theirs)
    close(jax.jit(gradient(transposed_convolution))(x, w), theirs)


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_every_batching_agrees_with_lax(axes):
    one, many = arrays((1, 2, 2)), arrays((1, 2, 2), (3,))
    args = [m if axis == 0 else o for m, o, axis in zip(many, one, axes, strict=True)]
    for change in (lambda f: f, gradient):
        ours, theirs = (jax.vmap(change(f), axes) for f in (transposed_convolution, reference))
        close(ours(*args), theirs(*args))


def test_inside_a_map_it_agrees_with_vmap():
    args = arrays((1, 2, 2), (3,))
    step = gradient(transposed_convolution)
    close(lax.map(lambda a: step(*a), args), jax.vmap(step)(*args))


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(1, 2, 2, 4, 4\)"):
        transposed_convolution(jnp.zeros((1, 1, 2, 2, 3)), jnp.zeros((1, 2, 2, 4, 4)))
