"""ResNet: published counts, the ways of running its norm, what `out` holds, and errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.models.resnet import ResNet, resnet18, resnet20, resnet50

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
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        shapes(ResNet(**(SMALL | options)), (2, 8, 8, 3))
    with pytest.raises(ValueError, match=r"expected an input \[b, y, x, c\]"):
        shapes(ResNet(**SMALL), (2, 8, 8))
