"""VGG against PyTorch: counts, values, gradients and running moments; and what it refuses."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.models.vgg import CONVOLUTIONS, VGG, vgg

SMALL = {"classes": 3, "convolutions": (1, 2, 1), "widths": (4, 6, 5)}


def torch_vgg(torch, convolutions, widths, classes, *, norm, channels=3):
    """The layout of kuangliu/pytorch-cifar, from PyTorch's own layers."""
    nn, layers, before = torch.nn, [], channels
    for count, width in zip(convolutions, widths, strict=True):
        for _ in range(count):
            layers.append(nn.Conv2d(before, width, 3, padding=1))
            layers += [nn.BatchNorm2d(width)] if norm else []
            layers.append(nn.ReLU())
            before = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before, classes))


def shapes(model, shape=(2, 32, 32, 3)):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(lambda a: model.init_with_output(jax.random.key(0), a), x)


def drawn(model, shape):
    """Random variables from NumPy (compiling ``init`` takes longer); biases and means are zero."""
    rng = np.random.default_rng(0)
    fixed = {"bias": 0.0, "mean": 0.0, "scale": 1.0, "var": 1.0}

    def leaf(path, p):
        value = fixed.get(path[-1].key)
        value = 0.3 * rng.standard_normal(p.shape) if value is None else np.full(p.shape, value)
        return jnp.asarray(value, jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes(model, shape)[1])


def size(tree):
    return sum(math.prod(p.shape) for p in jax.tree.leaves(tree))


def copied(torch, network, norm):
    """PyTorch's variables as those of ``VGG(**SMALL)``."""
    layers = iter(network)
    params, stats = {}, {}
    for stage, count in enumerate(SMALL["convolutions"], 1):
        for i in range(count):
            conv = next(m for m in layers if isinstance(m, torch.nn.Conv2d))
            params[f"conv{stage}_{i}"] = {
                "kernel": conv.weight.detach().numpy().transpose(2, 3, 1, 0),
                "bias": conv.bias.detach().numpy(),
            }
            if norm:
                batch = next(layers)
                params[f"norm{stage}_{i}"] = {
                    "scale": batch.weight.detach().numpy(),
                    "bias": batch.bias.detach().numpy(),
                }
                stats[f"norm{stage}_{i}"] = {
                    "mean": batch.running_mean.numpy().copy(),
                    "var": batch.running_var.numpy().copy(),
                }
    head = network[-1]
    params["head"] = {
        "kernel": head.weight.detach().numpy().T,
        "bias": head.bias.detach().numpy(),
    }
    tree = {"params": params} | ({"batch_stats": stats} if norm else {})
    return jax.tree.map(lambda a: jnp.asarray(a.copy()), tree)


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("norm", ["batch", False])
def test_counts_are_those_of_torch(name, norm):
    torch = pytest.importorskip("torch")
    (logits, out), variables = shapes(vgg(name, 10, norm=norm))
    with torch.device("meta"):
        widths = (64, 128, 256, 512, 512)
        theirs = torch_vgg(torch, CONVOLUTIONS[name], widths, 10, norm=bool(norm))
    assert size(variables["params"]) == sum(p.numel() for p in theirs.parameters())
    assert logits.shape == (2, 10) and out["features"].shape == (2, 512)


def test_the_published_network():
    # Hand count of VGG13: convolutions and their biases, norms, head.
    assert size(shapes(vgg("vgg13", 10))[1]["params"]) == 9_404_992 + 5_888 + 5_130
    narrow = vgg("vgg13", 10, width=8)
    assert narrow.widths == (8, 16, 32, 64, 64)


@pytest.mark.parametrize("norm", ["batch", False])
def test_values_gradients_and_moments_are_those_of_torch(norm):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = torch_vgg(torch, SMALL["convolutions"], SMALL["widths"], 3, norm=bool(norm))
    variables, model = copied(torch, theirs, bool(norm)), VGG(**SMALL, norm=norm)
    # Eight pixels are left as one, which torch flattens and this network averages.
    x = np.random.default_rng(0).standard_normal((6, 8, 8, 3)).astype(np.float32)
    weights = np.random.default_rng(1).standard_normal((6, 3)).astype(np.float32)

    def loss(params):
        (logits, _), changed = model.apply(
            dict(variables, params=params), x, train=True, mutable=["batch_stats"]
        )
        return (logits * weights).sum(), (logits, changed)

    gradient, (logits, changed) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    out = theirs(torch.tensor(x.transpose(0, 3, 1, 2)))
    (out * torch.tensor(weights)).sum().backward()
    np.testing.assert_allclose(logits, out.detach().numpy(), rtol=1e-4, atol=1e-5)
    found = np.concatenate([np.ravel(g) for g in jax.tree.leaves(gradient)])
    for p in theirs.parameters():
        p.data = p.grad
    expected = copied(torch, theirs, bool(norm))
    flat = np.concatenate([np.ravel(g) for g in jax.tree.leaves(expected["params"])])
    np.testing.assert_allclose(found, flat, rtol=2e-4, atol=2e-4)
    if norm:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            changed["batch_stats"],
            expected["batch_stats"],
        )
        theirs.eval()
        still = model.apply(copied(torch, theirs, True), x)[0]
        with torch.no_grad():
            out = theirs(torch.tensor(x.transpose(0, 3, 1, 2)))
        np.testing.assert_allclose(still, out.numpy(), rtol=1e-4, atol=1e-5)


def test_draws():
    # PyTorch's kernels are uniform in +-1 / sqrt(fan in); He's have a deviation of fan out.
    for draw, deviation, bound in (
        ("torch", 1 / math.sqrt(3 * 27), 1 / math.sqrt(27)),
        ("he", math.sqrt(2 / (9 * 64)), None),
    ):
        model = VGG(3, (1,), (64,), draw=draw)
        params = model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))["params"]
        kernel = params["conv1_0"]["kernel"]
        assert np.std(kernel) == pytest.approx(deviation, rel=0.05)
        assert bound is None or np.abs(kernel).max() <= bound
        assert not params["conv1_0"]["bias"].any()


def test_every_layer_is_wrapped():
    shapes_seen = []

    def wrap(layer):
        def wrapped(params, x):
            shapes_seen.append(params["kernel"].shape)
            return 2 * layer(params, x)

        return wrapped

    plain, doubled = VGG(**SMALL, norm=False), VGG(**SMALL, norm=False, wrap=wrap)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 8, 3)), jnp.float32)
    variables = drawn(plain, x.shape)
    found, expected = doubled.apply(variables, x)[0], plain.apply(variables, x)[0]
    assert len(shapes_seen) == 5 and shapes_seen[-1] == (5, 3)
    # Without biases the network is homogeneous: five layers, 2 ** 5 in all.
    np.testing.assert_allclose(found, 32 * expected, rtol=1e-5)


def test_modes(assert_modes_agree):
    model = VGG(3, (1, 1), (4, 4))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 4, 4, 3)), jnp.float32)
    variables = drawn(model, x.shape)
    run = lambda v, a: model.apply(v, a, train=True, mutable=["batch_stats"])  # noqa: E731
    assert_modes_agree(run, variables, x, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"norm": "layer"}, (1, 8, 8, 3), "norm is 'layer'"),
        ({"draw": "glorot"}, (1, 8, 8, 3), "draw is 'glorot'"),
        ({"widths": (4,)}, (1, 8, 8, 3), r"convolutions for widths \(4,\)"),
        ({}, (1, 7, 8, 3), "7 x 8 pixels; 3 poolings need 8 or more"),
        ({}, (8, 8, 3), r"expected an input \[b, y, x, c\]"),
    ],
)
def test_errors(options, shape, message):
    with pytest.raises(ValueError, match=message):
        shapes(VGG(**(SMALL | options)), shape)


def test_an_unknown_name():
    with pytest.raises(ValueError, match="'vgg12': expected one of vgg11, vgg13"):
        vgg("vgg12", 10)
