"""The linear model on products: against scikit-learn's explicit features, PIL, and hand counts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.preprocessing import PolynomialFeatures

from densejax.models.pairwise import PairwiseLinear, pairs, quadratic_form, shrink


def explicit(s):
    """Products of pairs, squares included, as the published code makes them: [b, d (d + 1) / 2]."""
    features = PolynomialFeatures(2, include_bias=False).fit_transform(s)
    return features[:, s.shape[1] :]


def test_the_published_count():
    model = PairwiseLinear(10)
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    (logits, out), variables = jax.eval_shape(
        lambda a: model.init_with_output(jax.random.key(0), a), x
    )
    rows = {name: leaf.shape[0] for name, leaf in variables["params"].items()}
    assert rows["pixels"] + rows["products"] == 298_368
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables)) == 2_983_690
    assert logits.shape == (2, 10) and out["small"].shape == (2, 16, 16, 3)


def test_the_form_is_linear_in_explicit_products():
    rng = np.random.default_rng(0)
    s, kernel = rng.standard_normal((5, 7)), rng.standard_normal((pairs(7), 3))
    found = quadratic_form(jnp.float32(s), jnp.float32(kernel))
    np.testing.assert_allclose(found, explicit(s) @ kernel, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_the_explicit_model():
    rng = np.random.default_rng(1)
    s, kernel = rng.standard_normal((4, 6)), rng.standard_normal((pairs(6), 3))
    weights = rng.standard_normal((4, 3))

    def loss(k):
        return jnp.sum(jnp.float32(weights) * quadratic_form(jnp.float32(s), k))

    np.testing.assert_allclose(
        jax.grad(loss)(jnp.float32(kernel)), explicit(s).T @ weights, rtol=1e-4, atol=1e-5
    )
    # Linear in the kernel: a Hessian of zeros, and jvp agrees with the value.
    tangent = jnp.float32(rng.standard_normal(kernel.shape))
    value = jax.jvp(loss, (jnp.float32(kernel),), (tangent,))[1]
    np.testing.assert_allclose(value, loss(tangent), rtol=1e-4)


def test_the_whole_model_is_that_of_explicit_features():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((3, 8, 8, 2)).astype(np.float32)
    model = PairwiseLinear(4, size=4)
    variables = model.init(jax.random.key(0), x)
    logits, out = model.apply(variables, x)
    small = np.asarray(out["small"], np.float64).reshape(3, -1)
    features = np.concatenate([x.reshape(3, -1), explicit(small)], axis=1)
    p = variables["params"]
    weights = np.concatenate([p["pixels"], p["products"]])
    np.testing.assert_allclose(logits, features @ weights + p["bias"], rtol=1e-4, atol=1e-5)
    # PyTorch's draw for a layer of so many inputs.
    bound = 1 / math.sqrt(features.shape[1])
    assert np.abs(weights).max() <= bound and np.std(weights) == pytest.approx(
        bound / 3**0.5, rel=0.1
    )


@pytest.mark.parametrize("side", [32, 28])
def test_shrinking_is_pils_bilinear(side):
    pixels = np.random.default_rng(3).integers(0, 256, (2, side, side, 3), np.uint8)
    found = shrink(jnp.float32(pixels), size=16)
    pil = [Image.fromarray(one).resize((16, 16), Image.Resampling.BILINEAR) for one in pixels]
    # PIL rounds to whole numbers, once an axis.
    assert (
        np.abs(np.asarray(found) - np.stack([np.asarray(one) for one in pil])).max() <= 1.0 + 1e-3
    )
    exact = [
        np.asarray(Image.fromarray(one[..., 0].astype(np.float32)).resize((16, 16), 2))
        for one in pixels
    ]
    np.testing.assert_allclose(found[..., 0], exact, rtol=1e-4, atol=1e-3)


def test_shrinking_commutes_with_standardisation():
    x = jnp.float32(np.random.default_rng(4).standard_normal((1, 32, 32, 3)))
    first = shrink((x - 0.4) / 0.2, size=16)
    np.testing.assert_allclose(first, (shrink(x, size=16) - 0.4) / 0.2, rtol=1e-4, atol=1e-4)


def test_modes(assert_modes_agree):
    rng = np.random.default_rng(5)
    s = jnp.float32(rng.standard_normal((3, 5)))
    kernel = jnp.float32(rng.standard_normal((pairs(5), 2)))
    assert_modes_agree(quadratic_form, s, kernel)


def test_errors():
    for shape, message in (
        ((1, 8, 16, 3), "8 x 16 pixels; expected 16"),
        ((8, 8, 3), "expected an input"),
    ):
        with pytest.raises(ValueError, match=message):
            PairwiseLinear().init(jax.random.key(0), jnp.zeros(shape))
