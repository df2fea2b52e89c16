"""Encoders on disk come back whole, and fit the networks that they are for."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.classification.pretrained import (
    Encoder,
    encode,
    fresh,
    load_encoder,
    network,
    save_encoder,
    variable_shapes,
)
from densejax.classification.task import with_pretrained

TINY = Encoder("resnet20", 2, origin="a test", options={"blocks": (1, 1, 1)})
VIT = Encoder("vit", 8, options={"size": 8, "patch": 4, "depth": 1, "heads": 2})


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_an_encoder_comes_back_and_gets_a_head(tmp_path):
    variables = fresh(jax.random.key(0), TINY)
    save_encoder(tmp_path, TINY, variables)
    save_encoder(tmp_path, TINY, variables)  # The same again changes nothing.
    encoder, found = load_encoder(tmp_path)
    equal(found, variables)
    assert "head" not in found["params"]
    assert dataclasses.replace(encoder, options=TINY.options) == TINY
    model = network(encoder, 3, head_std=1e-3)
    shapes = jax.eval_shape(model.init, jax.random.key(1), jnp.zeros((1, 32, 32, 3)))

    def zeros(key):
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    whole = with_pretrained(zeros, found)(jax.random.key(0))
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    logits, out = model.apply(whole, images)
    assert logits.shape == (2, 3)
    features, stats = encode(encoder, found, images)
    np.testing.assert_allclose(features, out["features"], rtol=1e-6)
    assert features.shape == (2, encoder.features)
    equal(stats, found["batch_stats"])


def test_a_transformer_has_no_moments(tmp_path):
    variables = fresh(jax.random.key(0), VIT)
    assert variables["batch_stats"] == {}
    save_encoder(tmp_path, VIT, variables)
    encoder, found = load_encoder(tmp_path)
    assert encoder == VIT
    equal(found, variables)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    features, stats = encode(encoder, found, images, train=True)
    assert features.shape == (2, 8) and stats == {}


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50", "resnet20"])
def test_features_are_as_long_as_the_head_expects(architecture):
    encoder = Encoder(architecture, 2)
    head = variable_shapes(encoder, head=True)["params"]["head"]
    assert head["kernel"].shape == (encoder.features, 1)


def test_fresh_kernels_have_the_deviation_of_the_networks_own(tmp_path):
    encoder = Encoder("resnet18", 16)
    drawn = fresh(jax.random.key(0), encoder)
    kernel = np.asarray(drawn["params"]["layer3_1"]["conv2"]["kernel"])
    # He et al. 2015 over the fan out: 3 x 3 x 64.
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.03)
    assert abs(kernel.mean()) < 1e-3
    norm = drawn["params"]["layer3_1"]["norm2"]
    assert np.all(norm["scale"] == 1) and not np.any(norm["bias"])
    stats = drawn["batch_stats"]["layer3_1"]["norm2"]
    assert np.all(stats["var"] == 1) and not np.any(stats["mean"])


def test_what_is_no_encoder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"encoder\.json is missing"):
        load_encoder(tmp_path)
    (tmp_path / "encoder.json").write_text(json.dumps({"architecture": "vgg"}))
    with pytest.raises(ValueError, match=r"encoder\.json: is no description"):
        load_encoder(tmp_path)
    with pytest.raises(FileExistsError, match="describes another"):
        save_encoder(tmp_path, TINY, fresh(jax.random.key(0), TINY))
    for bad in ({"architecture": "vgg"}, {"stem": "x"}, {"width": 0}, {"std": (1.0,)}):
        with pytest.raises(ValueError, match=str(next(iter(bad)))):
            Encoder(**bad)
