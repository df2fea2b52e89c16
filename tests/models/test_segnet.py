"""SegNet: published counts, the forward pass and its gradient in PyTorch, dropout, odd sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawing import Torch, drawn, last, shapes, size

from densejax.models.segnet import STAGES, SegNet, SegNetBasic

NARROW = {"classes": 3, "width": 1 / 16}


@pytest.mark.parametrize(("network", "count"), [(SegNet, 29_449_355), (SegNetBasic, 1_416_587)])
def test_published_counts_and_sizes(network, count):
    (logits, out), variables = shapes(network(11), (1, 180, 240), channels=3)
    assert size(variables["params"]) == count
    assert logits.shape == (2, 1, 180, 240, 11) and logits.dtype == jnp.float32
    coarse = (6, 8) if network is SegNet else (12, 15)
    assert out["bottleneck"].shape[2:4] == coarse
    (logits, _), variables = shapes(network(11, width=1 / 8), (2, 37, 53), channels=1)
    assert logits.shape == (2, 2, 37, 53, 11)
    assert size(variables["params"]) < count / 40


def segnet(net, x):
    """SegNet by its description."""
    F, kept = net.F, []
    for stage, (_, count) in enumerate(STAGES, 1):
        for i in range(1, count + 1):
            x = net.conv_norm(x, f"encoder{stage}_{i}")
        kept.append(x.shape)
        x, places = F.max_pool2d(x, 2, 2, ceil_mode=True, return_indices=True)
        kept[-1] = (kept[-1], places)
    bottleneck = x
    for stage in range(5, 0, -1):
        shape, places = kept[stage - 1]
        x = F.max_unpool2d(x, places, 2, 2, output_size=shape[2:])
        for i in range(STAGES[stage - 1][1], 0, -1):
            if (stage, i) != (1, 1):
                x = net.conv_norm(x, f"decoder{stage}_{i}")
    return net.conv(x, "predictor"), x, bottleneck


def basic(net, x):
    """SegNet-Basic by its description."""
    F, kept = net.F, []
    x = F.local_response_norm(x, 5, alpha=1e-4, beta=0.75)
    for stage in range(1, 5):
        x = net.conv_norm(x, f"encoder{stage}")
        shape = x.shape
        x, places = F.max_pool2d(x, 2, 2, ceil_mode=True, return_indices=True)
        kept.append((shape, places))
    bottleneck = x
    for stage in range(4, 0, -1):
        shape, places = kept[stage - 1]
        x = F.max_unpool2d(x, places, 2, 2, output_size=shape[2:])
        x = net.conv_norm(x, f"decoder{stage}", relu=False)
    return net.conv(x, "predictor"), x, bottleneck


@pytest.mark.parametrize(("network", "reference"), [(SegNet, segnet), (SegNetBasic, basic)])
def test_a_training_step_agrees_with_torch(network, reference):
    torch = pytest.importorskip("torch")
    model = network(**NARROW)
    x = jax.random.normal(jax.random.key(1), (3, 1, 33, 46, 3))
    variables = drawn(model, x)
    mask = np.random.default_rng(2).standard_normal((3, 1, 33, 46, 3)).astype(np.float32)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def step(params):
        (logits, out), _ = model.apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        return (logits * mask).sum(), (logits, out["features"], out["bottleneck"])

    gradient, found = step(variables["params"])
    net = Torch(torch, variables, train=True)
    expected = reference(net, net.planes(x))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, last(b, a), rtol=2e-4, atol=2e-4)
    slopes = net.gradients((expected[0] * net.planes(mask)).sum())
    assert jax.tree.structure(gradient) == jax.tree.structure(slopes)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(slopes), strict=True
    ):
        if path[-1].key == "bias" and path[-2].key == "conv":
            continue  # batch norm takes a bias away again: both gradients are rounding
        scale = np.abs(b).max()
        np.testing.assert_allclose(
            np.asarray(a) / scale, b / scale, atol=3e-3, err_msg=jax.tree_util.keystr(path)
        )


def test_dropout_is_drawn_where_it_is_asked_for():
    model = SegNetBasic(**NARROW, drop=0.5)
    x = jax.random.normal(jax.random.key(1), (1, 1, 16, 16, 1))
    variables = drawn(model, x)
    apply = jax.jit(
        lambda key, on: model.apply(variables, x, dropout=on, rngs={"dropout": key})[0],
        static_argnums=1,
    )
    one, other = (apply(jax.random.key(seed), True) for seed in (0, 1))
    assert not np.allclose(one, other)
    np.testing.assert_array_equal(apply(jax.random.key(0), False), apply(jax.random.key(1), False))
    with pytest.raises(ValueError, match="1 plane"):
        model.apply(variables, x, train=True, mutable=["batch_stats"])
