"""Convolutions of pictures: each way of computing them against PyTorch, alone and side by side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.models import layers
from densejax.models.layers import BatchNorm, Conv2d


def draw(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def to_torch(torch, x):
    return torch.tensor(np.asarray(x).transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "n"),
    [(3, 2, 1, 6), (3, 2, 1, 7), (7, 2, 3, 9), (4, 2, 1, 8), (5, 3, 0, 11), (2, 2, 0, 5)],
)
def test_strided_convolution_matches_pytorch(kernel, stride, padding, n):
    torch = pytest.importorskip("torch")
    x, w = draw(2, n, n + 3, 3), draw(kernel, kernel, 3, 4, seed=1)
    weight = torch.tensor(np.asarray(w).transpose(3, 2, 0, 1))
    expected = torch.nn.functional.conv2d(to_torch(torch, x), weight, None, stride, padding)
    for run in (layers.strided_native, layers.strided_folded):
        found = run(x, w, stride=stride, padding=padding)
        np.testing.assert_allclose(found.transpose(0, 3, 1, 2), expected, rtol=1e-4, atol=1e-5)


def test_transposed_convolution_matches_pytorch():
    torch = pytest.importorskip("torch")
    x, w = draw(2, 3, 5, 4), draw(4, 4, 4, 6, seed=1)
    weight = torch.tensor(np.ascontiguousarray(w[::-1, ::-1].transpose(2, 3, 0, 1)))
    options = {"stride": 2, "padding": 1}
    expected = torch.nn.functional.conv_transpose2d(to_torch(torch, x), weight, **options)
    for run in (layers.doubled_native, layers.doubled_folded):
        found = run(x, w)
        np.testing.assert_allclose(found.transpose(0, 3, 1, 2), expected, rtol=1e-4, atol=1e-5)


def test_gradients_of_instances_side_by_side_are_those_of_each():
    x, w = draw(2, 2, 6, 6, 3), draw(2, 3, 3, 3, 4, seed=1)

    def loss(x, w):
        return jnp.square(layers.strided_folded(x, w, stride=2, padding=1)).sum()

    def reference(x, w):
        return jnp.square(layers.strided_native(x, w, stride=2, padding=1)).sum()

    found = jax.vmap(jax.grad(loss, (0, 1)))(x, w)
    for i in range(2):
        expected = jax.grad(reference, (0, 1))(x[i], w[i])
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kernel", "stride", "n"), [(1, 2, 7), (3, 1, 5), (3, 2, 6)])
def test_layer_matches_pytorch(kernel, stride, n):
    torch = pytest.importorskip("torch")
    model, x = Conv2d(4, kernel, stride, use_bias=True), draw(2, n, n + 1, 3)
    variables = model.init(jax.random.key(1), x)
    variables["params"]["bias"] = jnp.arange(4.0)
    w = torch.tensor(np.asarray(variables["params"]["kernel"]).transpose(3, 2, 0, 1))
    bias = torch.arange(4.0)
    expected = torch.nn.functional.conv2d(to_torch(torch, x), w, bias, stride, kernel // 2)
    found = np.asarray(model.apply(variables, x)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_batch_norm_matches_pytorch_in_training_and_evaluation():
    torch = pytest.importorskip("torch")
    x = np.asarray(jax.random.normal(jax.random.key(0), (4, 3, 2, 5))) * 3 + 100
    ours, theirs = BatchNorm(), torch.nn.BatchNorm2d(5)
    variables = ours.init(jax.random.key(0), x)
    for _ in range(2):
        y, new = ours.apply(variables, x, train=True, mutable=["batch_stats"])
        expected = theirs(torch.tensor(x.transpose(0, 3, 1, 2))).detach().numpy()
        np.testing.assert_allclose(y.transpose(0, 3, 1, 2), expected, atol=1e-4)
        variables = variables | new
    np.testing.assert_allclose(new["batch_stats"]["mean"], theirs.running_mean, rtol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["var"], theirs.running_var, rtol=1e-4)
    theirs.eval()
    expected = theirs(torch.tensor(x.transpose(0, 3, 1, 2))).detach().numpy()
    found = ours.apply(variables, x).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
