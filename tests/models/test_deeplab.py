"""DeepLab v3+: published counts, the forward pass and its gradient in PyTorch, dropout, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawing import Torch, drawn, last, shapes, size

from densejax.models.deeplab import DeepLab, ResNetBeta

SHORT = functools.partial(ResNetBeta, blocks=(2, 1, 2, 1))
SMALL = {"classes": 3, "width": 1 / 16, "rates": (2, 3), "backbone": SHORT}


@pytest.mark.parametrize(("classes", "count"), [(19, 40_475_443), (11, 40_473_387)])
def test_published_counts_and_strides(classes, count):
    (logits, out), variables = shapes(DeepLab(classes), (1, 513, 513), channels=3)
    assert size(variables["params"]) == count
    assert logits.shape == (2, 1, 513, 513, classes) and logits.dtype == jnp.float32
    assert out["bottleneck"].shape == (2, 1, 33, 33, 256)
    assert out["features"].shape == (2, 1, 129, 129, 256)


@pytest.mark.parametrize("window", [(1, 180, 240), (1, 129, 129), (3, 16, 37)])
def test_odd_sizes_and_narrow_networks(window):
    (logits, out), variables = shapes(DeepLab(11, width=1 / 8), window, channels=1)
    assert logits.shape == (2, *window, 11)
    assert out["bottleneck"].shape == (2, window[0], *(-(-n // 16) for n in window[1:]), 32)
    assert size(variables["params"]) < 40_473_387 / 50
    assert DeepLab().output_window(window) == window


def reference(net, x):
    """The network by its description, from TensorFlow's names of strides and rates."""
    F = net.F
    sizes = x.shape[2:]
    for i, stride in ((1, 2), (2, 1), (3, 1)):
        x = net.conv_norm(x, f"backbone/root{i}", stride=stride)
    x = F.max_pool2d(x, 3, 2, 1)
    low = None
    units = (("layer1_0", 1, 1), ("layer1_1", 2, 1), ("layer2_0", 2, 1))
    for name, stride, rate in (*units, ("layer3_0", 1, 1), ("layer3_1", 1, 1), ("layer4_0", 1, 2)):
        at = f"backbone/{name}"
        y = F.relu(net.norm(net.conv(x, f"{at}/conv1"), f"{at}/norm1"))
        y = net.conv(y, f"{at}/conv2", stride=stride, dilation=rate)
        y = net.norm(net.conv(F.relu(net.norm(y, f"{at}/norm2")), f"{at}/conv3"), f"{at}/norm3")
        low = y if name == "layer1_0" else low
        if "shortcut_conv" in net.at(net.params, at):
            x = net.norm(net.conv(x, f"{at}/shortcut_conv", stride=stride), f"{at}/shortcut_norm")
        else:
            x = F.max_pool2d(x, 1, stride)
        x = F.relu(x + y)
    pooled = net.conv_norm(F.adaptive_avg_pool2d(x, 1), "pooled").expand(-1, -1, *x.shape[2:])
    parts = [pooled, net.conv_norm(x, "rate1")]
    parts += [net.conv_norm(x, f"rate{rate}", dilation=rate) for rate in SMALL["rates"]]
    bottleneck = net.conv_norm(net.torch.cat(parts, 1), "project")
    resize = functools.partial(F.interpolate, mode="bilinear", align_corners=True)
    y = resize(bottleneck, low.shape[2:])
    y = net.torch.cat([y, net.conv_norm(low, "low")], 1)
    for i in range(2):
        y = net.conv_norm(y, f"decoder{i}")
    return resize(net.conv(y, "predictor"), sizes), y, bottleneck


def agrees(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, last(b, a), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_training_step_agrees_with_torch():
    torch = pytest.importorskip("torch")
    model = DeepLab(**SMALL, drop=0.0)
    x = jax.random.normal(jax.random.key(1), (3, 1, 49, 65, 3))
    variables = drawn(model, x)
    mask = np.random.default_rng(2).standard_normal((3, 1, 49, 65, 3)).astype(np.float32)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def step(params):
        everything = variables | {"params": params}
        (logits, out), _ = model.apply(everything, x, train=True, mutable=["batch_stats"])
        return (logits * mask).sum(), (logits, out["features"], out["bottleneck"])

    slopes, found = step(variables["params"])
    net = Torch(torch, variables, train=True)
    expected = reference(net, net.planes(x))
    agrees(found, expected)
    expected = net.gradients((expected[0] * net.planes(mask)).sum())
    for a, b in zip(jax.tree.leaves(slopes), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max() + 1e-4)


def test_evaluation_agrees_with_torch_for_instances_and_planes_and_dropout_acts_where_asked():
    model = DeepLab(**SMALL, drop=0.5)
    x = jax.random.normal(jax.random.key(1), (1, 2, 49, 34, 1))
    variables = drawn(model, x)
    two = jax.tree.map(lambda a: np.stack([a, 1.1 * a]), variables)

    @jax.jit
    def run(two, keys):
        side = jax.vmap(lambda v: model.apply(v, x))(two)

        def one(key):
            return model.apply(variables, x, dropout=True, rngs={"dropout": key})[0]

        return side, jax.vmap(one)(keys)

    (logits, out), passes = run(two, jax.random.split(jax.random.key(0), 2))
    torch = pytest.importorskip("torch")
    for i in range(2):
        net = Torch(torch, jax.tree.map(lambda a, i=i: a[i], two))
        found = (logits[i], out["features"][i], out["bottleneck"][i])
        agrees(found, reference(net, net.planes(x)))
    assert not np.allclose(passes[0], passes[1], rtol=1e-2)
    assert not np.allclose(passes[0], logits[0], rtol=1e-2)


@pytest.mark.parametrize(
    ("shape", "options", "train", "message"),
    [
        ((2, 32, 32, 1), {}, False, r"expected an input \[b, z, y, x, c\]"),
        ((2, 1, 15, 32, 1), {}, False, r"\(1, 15, 32\): expected at least \(1, 16, 16\)"),
        ((1, 1, 32, 32, 1), {}, True, "a training step of 1 plane"),
        ((2, 1, 32, 32, 1), {"drop": 1.5}, False, "dropout is 1.5"),
    ],
)
def test_errors(shape, options, train, message):
    model = DeepLab(**(SMALL | options))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda x: model.init(jax.random.key(0), x, train=train, dropout=False),
            jax.ShapeDtypeStruct(shape, jnp.float32),
        )
