"""Networks as tasks take them: what is fresh, what is kept, where values are dropped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.classification.pretrained import HEAD_STD, Encoder, fresh, perceptron, with_head

ENCODERS = {
    "resnet20": Encoder("resnet20", 4),
    "vit": Encoder("vit", 16, options={"size": 8, "patch": 4, "depth": 1, "heads": 2}),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_keeps_its_variables_and_gets_a_new_head(name):
    encoder = ENCODERS[name]
    stored = fresh(jax.random.key(0), encoder)
    network = with_head(encoder, 50, stored=stored, frozen_norm=True, dropout=0.5)
    assert network.mean == encoder.mean and network.std == encoder.std
    one, two = (network.init(jax.random.key(seed)) for seed in (1, 2))
    head, other = one["params"].pop("head"), two["params"].pop("head")
    for kept in (one, two):
        assert jax.tree.all(jax.tree.map(np.array_equal, dict(kept), dict(stored)))
    assert not head["bias"].any() and not np.array_equal(head["kernel"], other["kernel"])
    assert abs(np.std(head["kernel"]) / HEAD_STD - 1) < 0.2
    variables = dict(one, params=one["params"] | {"head": head})
    images = jax.random.normal(jax.random.key(3), (2, 8, 8, 3))
    logits, out = network.apply(variables, images)
    np.testing.assert_allclose(logits, out["features"] @ head["kernel"], atol=1e-6)
    # In training values are dropped in front of the head alone, and frozen moments stay.
    dropped, _ = network.apply(
        variables, images, train=True, rngs={"dropout": jax.random.key(4)}, mutable=["batch_stats"]
    )[0]
    assert not np.allclose(dropped, logits)
    fresh_body = with_head(encoder, 2).init(jax.random.key(1))
    assert not jax.tree.all(
        jax.tree.map(
            np.array_equal,
            fresh_body["params"],
            stored["params"] | {"head": fresh_body["params"]["head"]},
        )
    )


def test_a_head_alone_is_drawn_as_that_of_an_encoder():
    network = perceptron(40, (60,), mean=(), std=())
    params = network.init(jax.random.key(0))["params"]
    assert set(params) == {"head"} and abs(np.std(params["head"]["kernel"]) / HEAD_STD - 1) < 0.1
    hidden = perceptron(4, (2, 3, 1), widths=(7,), dropout=0.5, mean=(0.1,), std=(0.2,))
    params = hidden.init(jax.random.key(0))["params"]
    assert params["linear0"]["kernel"].shape == (6, 7) and hidden.mean == (0.1,)
    assert np.abs(params["head"]["kernel"]).max() <= 1 / np.sqrt(7)
    images = jnp.ones((1, 2, 3, 1))
    assert hidden.apply({"params": params}, images)[1]["features"].shape == (1, 7)


def test_dropout_where_there_is_none_is_refused():
    with pytest.raises(ValueError, match="a head alone has no layer of dropout"):
        perceptron(3, (5,), dropout=0.1)
    with pytest.raises(ValueError, match=r"MLP: dropout is 1\.0"):
        perceptron(3, (5,), widths=(2,), dropout=1.0)
    with pytest.raises(ValueError, match=r"vit: dropout is -1; expected 0 or more, below 1"):
        with_head(ENCODERS["vit"], 3, dropout=-1)
