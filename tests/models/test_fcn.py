"""FCN-8s: the published count, the forward pass and its gradient in PyTorch, dropout."""

import functools

import jax
import numpy as np
import pytest
from drawing import Torch, drawn, last, shapes, size

from densejax.models.fcn import FCN8s
from densejax.models.segnet import STAGES

NARROW = {"classes": 3, "width": 1 / 32}


def test_published_count_and_sizes():
    (logits, out), variables = shapes(FCN8s(11), (1, 180, 240), channels=3)
    assert size(variables["params"]) == 134_314_081
    assert logits.shape == (2, 1, 180, 240, 11)
    assert out["bottleneck"].shape == (2, 1, 6, 8, 4096)
    (logits, _), _ = shapes(FCN8s(11, width=1 / 16), (2, 37, 53))
    assert logits.shape == (2, 2, 37, 53, 11)


def reference(net, x):
    """The network by its description."""
    F, pooled, whole = net.F, [], x.shape[2:]
    for stage, (_, count) in enumerate(STAGES, 1):
        for i in range(1, count + 1):
            x = F.relu(net.conv(x, f"conv{stage}_{i}"))
        x = F.max_pool2d(x, 2, 2, ceil_mode=True)
        pooled.append(x)
    x = F.relu(net.conv(F.relu(net.conv(x, "fc6")), "fc7"))

    def enlarge(y, factor, sizes):
        y = F.interpolate(y, scale_factor=factor, mode="bilinear", align_corners=False)
        return y[:, :, : sizes[0], : sizes[1]]

    y = net.conv(x, "score")
    for name, level in (("score_pool4", pooled[3]), ("score_pool3", pooled[2])):
        y = net.conv(level, name) + enlarge(y, 2, level.shape[2:])
    return enlarge(y, 8, whole), x


def test_a_training_step_agrees_with_torch():
    torch = pytest.importorskip("torch")
    model = FCN8s(**NARROW, drop=0.0)
    x = jax.random.normal(jax.random.key(1), (2, 1, 60, 83, 3))
    variables = drawn(model, x)
    mask = np.random.default_rng(2).standard_normal((2, 1, 60, 83, 3)).astype(np.float32)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def step(params):
        logits, out = model.apply({"params": params}, x, train=True)
        return (logits * mask).sum(), (logits, out["bottleneck"])

    gradient, found = step(variables["params"])
    net = Torch(torch, variables, train=True)
    expected = reference(net, net.planes(x))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, last(b, a), rtol=2e-4, atol=2e-4)
    slopes = net.gradients((expected[0] * net.planes(mask)).sum())
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(slopes), strict=True
    ):
        scale = max(np.abs(b).max(), 1e-6)
        np.testing.assert_allclose(
            np.asarray(a) / scale, b / scale, atol=2e-3, err_msg=jax.tree_util.keystr(path)
        )


def test_dropout_is_drawn_where_it_is_asked_for():
    model = FCN8s(**NARROW)
    x = jax.random.normal(jax.random.key(1), (1, 1, 32, 32, 1))
    variables = drawn(model, x)
    apply = jax.jit(
        lambda key, on: model.apply(variables, x, dropout=on, rngs={"dropout": key})[0],
        static_argnums=1,
    )
    assert not np.allclose(apply(jax.random.key(0), True), apply(jax.random.key(1), True))
    np.testing.assert_array_equal(apply(jax.random.key(0), False), apply(jax.random.key(1), False))
