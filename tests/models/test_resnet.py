"""ResNet: published counts, the ways of running its norm, what `out` holds, and errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.models.resnet import ResNet, resnet18, resnet20, resnet50, svhn_resnet20

SMALL = {"classes": 3, "blocks": (1, 1), "widths": (4, 6), "stem": "cifar"}


def shapes(model, shape):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(lambda a: model.init_with_output(jax.random.key(0), a), x)


def size(tree):
    return sum(math.prod(p.shape) for p in jax.tree.leaves(tree))


def drawn(seed=0, **options):
    """A small network, random variables from NumPy (compiling ``init`` takes longer), pictures."""
    model, rng = ResNet(**(SMALL | options)), np.random.default_rng(seed)
    _, tree = shapes(model, (4, 8, 8, 3))

    def leaf(path, p):
        value = 0.5 * rng.standard_normal(p.shape)
        value = 0.5 + np.abs(value) if path[-1].key in ("var", "scale") else value
        return jnp.asarray(value, jnp.float32)

    variables = jax.tree_util.tree_map_with_path(leaf, tree)
    return model, variables, jnp.asarray(rng.standard_normal((4, 8, 8, 3)), jnp.float32)


@pytest.mark.parametrize(
    ("model", "window", "count"),
    [
        (resnet18(1000), 224, 11_689_512),
        (resnet50(1000), 224, 25_557_032),
        (resnet18(10, stem="cifar"), 32, 11_173_962),
        (resnet20(10), 32, 269_722),
        (svhn_resnet20(10), 32, 269_722),
    ],
)
def test_published_parameter_counts(model, window, count):
    (logits, out), variables = shapes(model, (2, window, window, 3))
    assert size(variables["params"]) == count
    assert logits.shape == (2, model.classes)
    d = model.widths[-1] * (4 if model.bottleneck else 1)
    assert out["features"].shape == (2, d)
    coarse = window // (32 if model.stem == "imagenet" else 2 ** (len(model.widths) - 1))
    assert out[f"layer{len(model.widths)}"].shape == (2, coarse, coarse, d)


def test_training_changes_the_moments_and_frozen_does_not():
    model, variables, x = drawn()
    (logits, _), new = model.apply(variables, x, train=True, mutable=["batch_stats"])
    assert all(
        not np.array_equal(a, b)
        for a, b in zip(
            jax.tree.leaves(new["batch_stats"]),
            jax.tree.leaves(variables["batch_stats"]),
            strict=True,
        )
    )
    frozen, _, _ = drawn(frozen_norm=True)
    (still, _), same = frozen.apply(variables, x, train=True, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, same["batch_stats"], variables["batch_stats"])
    expected, _ = model.apply(variables, x)
    np.testing.assert_array_equal(still, expected)
    assert not np.allclose(still, logits)


def test_head_is_linear_on_the_features_and_features_are_means():
    model, variables, x = drawn()
    logits, out = model.apply(variables, x)
    head = variables["params"]["head"]
    np.testing.assert_allclose(
        logits, out["features"] @ head["kernel"] + head["bias"], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(out["features"], out["layer2"].mean((1, 2)), rtol=1e-5)


def test_without_norm_there_are_no_moments():
    model, variables, x = drawn(norm=False)
    assert set(variables) == {"params"}
    assert "bias" in variables["params"]["conv1"]
    _, new = model.apply(variables, x, train=True, mutable=["batch_stats"])
    assert new.get("batch_stats", {}) == {}


def test_dropout_passes_of_a_frozen_network_differ():
    model, variables, x = drawn(frozen_norm=True, dropout=0.5)

    def one(key):
        return model.apply(variables, x, train=True, rngs={"dropout": key})[0]

    passes = jax.vmap(one)(jax.random.split(jax.random.key(0), 3))
    assert not np.allclose(passes[0], passes[1])


def test_modes(assert_modes_agree):
    model, variables, x = drawn(blocks=(1,), widths=(4,), bottleneck=True)
    assert_modes_agree(
        lambda v, a: model.apply(v, a, train=True, mutable=["batch_stats"]),
        variables,
        x,
        rtol=1e-3,
        atol=1e-4,
    )


def torch_pre_activation(torch, variables, x, *, train):
    """The thesis' network of SVHN by PyTorch's functions, from Flax variables."""
    F = torch.nn.functional
    params, stats = variables["params"], variables["batch_stats"]

    def tensor(a):
        return torch.tensor(np.array(a))

    def activated(y, p, s):
        arrays = [tensor(a) for a in (s["mean"], s["var"], p["scale"], p["bias"])]
        y = F.batch_norm(y, *arrays, training=train, eps=1e-3)
        return F.leaky_relu(y, 0.1)

    def convolved(y, p, stride=1):
        kernel = tensor(p["kernel"]).permute(3, 2, 0, 1)
        return F.conv2d(y, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    y = convolved(tensor(x).permute(0, 3, 1, 2), params["conv1"])
    for stage, stride in ((1, 1), (2, 2)):
        p, s = params[f"layer{stage}_0"], stats[f"layer{stage}_0"]
        inner = activated(y, p["norm1"], s["norm1"])
        skip = inner if stage == 1 else F.avg_pool2d(y, 2)
        inner = convolved(inner, p["conv1"], stride)
        inner = convolved(activated(inner, p["norm2"], s["norm2"]), p["conv2"])
        more = inner.shape[1] - skip.shape[1]
        y = inner + F.pad(skip, (0, 0, 0, 0, more // 2, more - more // 2))
    y = activated(y, params["norm_last"], stats["norm_last"]).mean((2, 3))
    return (y @ tensor(params["head"]["kernel"]) + tensor(params["head"]["bias"])).numpy()


@pytest.mark.parametrize("train", [False, True])
def test_pre_activation_is_that_of_torch(train):
    torch = pytest.importorskip("torch")
    options = {"pre_activation": True, "leak": 0.1, "epsilon": 1e-3, "shortcut": "pool"}
    published = svhn_resnet20(3)
    assert all(getattr(published, name) == value for name, value in options.items())
    model, variables, x = drawn(**options)
    expected = torch_pre_activation(torch, variables, x, train=train)
    (logits, _), _ = model.apply(variables, x, train=train, mutable=["batch_stats"])
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_shortcuts_without_parameters():
    _, variables, _ = drawn(shortcut="projection")
    assert "shortcut_conv" in variables["params"]["layer2_0"]
    outs = []
    for shortcut in ("pad", "pool"):
        model, variables, x = drawn(shortcut=shortcut)
        assert "shortcut_conv" not in variables["params"]["layer2_0"]
        # Without a residual the block is its shortcut, behind the ReLU.
        for name in ("scale", "bias"):
            variables["params"]["layer2_0"]["norm2"][name] *= 0
        outs.append(model.apply(variables, x)[1])
    first = outs[0]["layer1"]
    np.testing.assert_allclose(outs[0]["layer2"][..., 1:5], first[:, ::2, ::2], rtol=1e-6)
    means = first.reshape(4, 4, 2, 4, 2, 4).mean((2, 4))
    np.testing.assert_allclose(outs[1]["layer2"][..., 1:5], means, rtol=1e-5)
    assert not np.asarray(outs[0]["layer2"])[..., [0, 5]].any()


def test_half_precision_keeps_float32_logits_and_moments():
    model, _, _ = drawn(dtype=jnp.bfloat16)
    (logits, out), variables = shapes(model, (2, 8, 8, 3))
    assert logits.dtype == jnp.float32 and out["features"].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "large"}, "stem is 'large'; expected one of"),
        ({"norm": "layer"}, "norm is 'layer'"),
        ({"shortcut": "none"}, "shortcut is 'none'"),
        ({"blocks": (1,)}, r"\(1,\) blocks for stages of widths \(4, 6\)"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        (
            {"pre_activation": True},
            "pre_activation with bottleneck False and shortcut 'projection'",
        ),
        ({"pre_activation": True, "shortcut": "pad", "bottleneck": True}, "bottleneck True"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        shapes(ResNet(**(SMALL | options)), (2, 8, 8, 3))
    with pytest.raises(ValueError, match=r"expected an input \[b, y, x, c\]"):
        shapes(ResNet(**SMALL), (2, 8, 8))
