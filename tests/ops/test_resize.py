"""Aligned resizing and unpooling against PyTorch, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.ops.pooling import max_pool_places, unpool
from densejax.ops.resize import resize_aligned


def close(function, reference, *arrays):
    """Values and gradients of a weighted sum agree; arrays are [b, 1, y, x, c]."""
    torch = pytest.importorskip("torch")
    tensors = [torch.tensor(np.asarray(a), requires_grad=True) for a in arrays]
    expected = reference(torch, *tensors)
    weights = np.random.default_rng(9).standard_normal(expected.shape).astype(np.float32)
    found, slopes = jax.jit(jax.value_and_grad(lambda a: (function(*a) * weights).sum()))(arrays)
    loss = (expected * torch.tensor(weights)).sum()
    loss.backward()
    np.testing.assert_allclose(function(*arrays), expected.detach().numpy(), atol=2e-5)
    np.testing.assert_allclose(found, loss.item(), rtol=1e-4, atol=1e-3)
    for slope, tensor in zip(slopes, tensors, strict=True):
        np.testing.assert_allclose(slope, tensor.grad.numpy(), atol=2e-4)


def planes(x):
    """[b, 1, y, x, c] -> [b, c, y, x]."""
    return x[:, 0].permute(0, 3, 1, 2)


def volumes(y):
    return y.permute(0, 2, 3, 1)[:, None]


def drawn(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("target", [(9, 13), (5, 3), (1, 7)])
def test_resizing_with_aligned_corners(target):
    def reference(torch, x):
        resize = torch.nn.functional.interpolate
        return volumes(resize(planes(x), target, mode="bilinear", align_corners=True))

    close(lambda x: resize_aligned(x, target), reference, drawn(0, 2, 1, 5, 4, 3))


@pytest.mark.parametrize("sizes", [(6, 8), (7, 5)])
def test_unpooling_puts_numbers_back(sizes):
    def reference(torch, x, y):
        F = torch.nn.functional
        _, places = F.max_pool2d(planes(x), 2, 2, ceil_mode=True, return_indices=True)
        return volumes(F.max_unpool2d(planes(y), places, 2, 2, output_size=sizes)) + 0 * x.sum()

    x = drawn(0, 2, 1, *sizes, 3)
    halved = [-(-n // 2) for n in sizes]

    def function(x, y):
        return unpool(y, max_pool_places(x)[1], sizes)

    close(function, reference, x, drawn(1, 2, 1, *halved, 3))


def test_maxima_and_their_gradient():
    def reference(torch, x):
        return volumes(torch.nn.functional.max_pool2d(planes(x), 2, 2, ceil_mode=True))

    x = np.round(drawn(0, 2, 1, 7, 6, 2))  # with ties
    close(lambda x: max_pool_places(x)[0], reference, x)
    places = np.asarray(max_pool_places(jnp.zeros((1, 1, 2, 2, 1)))[1])
    assert places.item() == 0
    with pytest.raises(ValueError, match="unpool"):
        unpool(x, places, (2, 2))
