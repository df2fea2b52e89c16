"""ViT: published counts, `out`, modes and errors; its numbers against PyTorch are in convert."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.models.vit import ViT, vit_base, vit_small, vit_tiny

SMALL = {"classes": 3, "size": 8, "patch": 4, "width": 6, "depth": 1, "heads": 2}


def shapes(model, shape):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(lambda a: model.init_with_output(jax.random.key(0), a), x)


def drawn(model):
    """Variables from NumPy: compiling ``init`` takes far longer."""
    rng = np.random.default_rng(0)
    _, tree = shapes(model, (1, 8, 8, 3))
    return jax.tree.map(lambda p: rng.standard_normal(p.shape).astype(np.float32), tree)


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (vit_tiny(1000), 5_717_416),
        (vit_small(1000), 22_050_664),
        (vit_base(1000), 86_567_656),
        (vit_base(1000, patch=32), 88_224_232),
    ],
)
def test_published_parameter_counts(model, count):
    (logits, out), variables = shapes(model, (2, 224, 224, 3))
    assert sum(math.prod(p.shape) for p in jax.tree.leaves(variables)) == count
    assert logits.shape == (2, 1000) and out["features"].shape == (2, model.width)
    assert out["tokens"].shape == (2, 1 + (224 // model.patch) ** 2, model.width)


def test_head_is_linear_on_the_features():
    model = ViT(**SMALL, head_std=0.1)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    variables = drawn(model)
    logits, out = model.apply(variables, x)
    head = variables["params"]["head"]
    np.testing.assert_allclose(
        logits, out["features"] @ head["kernel"] + head["bias"], rtol=1e-5, atol=1e-6
    )


def test_patches_may_be_permuted_with_their_positions():
    model = ViT(**SMALL)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    variables = drawn(model)
    turned = jnp.concatenate([x[:, 4:], x[:, :4]], 1)
    positions = variables["params"]["pos_embed"][:, jnp.array([0, 3, 4, 1, 2])]
    moved = {"params": variables["params"] | {"pos_embed": positions}}
    np.testing.assert_allclose(
        model.apply(variables, x)[0], model.apply(moved, turned)[0], rtol=1e-4, atol=1e-6
    )


def test_modes(assert_modes_agree):
    model = ViT(**SMALL)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    variables = drawn(model)
    assert_modes_agree(model.apply, variables, x, rtol=1e-4, atol=1e-5)


def test_half_precision_keeps_float32_logits():
    (logits, out), variables = shapes(ViT(**SMALL, dtype=jnp.bfloat16), (2, 8, 8, 3))
    assert logits.dtype == out["features"].dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({}, (2, 8, 9, 3), r"expected pictures of 8 x 8, found shape \(2, 8, 9, 3\)"),
        ({"patch": 3}, (2, 8, 8, 3), "patch 3 must divide size 8"),
        ({"heads": 4}, (2, 8, 8, 3), "heads 4 divide width 6"),
        ({}, (2, 8, 8), r"expected an input \[b, y, x, c\]"),
    ],
)
def test_errors(options, shape, message):
    with pytest.raises(ValueError, match=message):
        shapes(ViT(**(SMALL | options)), shape)
