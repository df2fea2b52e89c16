"""EncoderDecoder: the U-Net where every block has two convolutions, counts and sizes by hand."""

import math

import jax
import numpy as np
import pytest
from drawing import shapes

from densejax.models.encoder_decoder import EncoderDecoder
from densejax.models.layers import draw_parameters
from densejax.models.unet import UNet

KEY = jax.random.key(3)


def test_two_convolutions_in_every_block_are_the_unet():
    """The U-Net itself is compared with PyTorch; here only the names of its last block differ."""
    window = (2, 18, 23)
    unet = UNet(classes=3, width=2, scales=3, padding="SAME", logit_relu=False)
    ours = EncoderDecoder(classes=3, width=2, encoder=(2, 2), bottom=2, decoder=(2, 2))
    params = draw_parameters(KEY, unet, (1, *window, 1))["params"]
    renamed = {{"encoder2": "bottom"}.get(name, name): value for name, value in params.items()}
    x = jax.random.normal(KEY, (1, *window, 1))
    expected, _ = unet.apply({"params": params}, x)
    found, out = ours.apply({"params": renamed}, x)
    np.testing.assert_array_equal(found, expected)
    assert out["features"].shape == (1, 2, 16, 20, 2)


def parameters_by_hand(width, encoder, bottom, decoder, cubes, classes):
    """Each convolution's weights and biases, one after another."""

    def block(scale, convs, channels):
        total, full = 0, width * 2**scale
        if scale < cubes:
            lead = max(1, full // 2)
            total, channels = total + 27 * channels * lead + lead, lead
        for _ in range(convs):
            total, channels = total + 9 * channels * full + full, full
        return total, channels

    total, channels = 0, 1
    for scale, convs in enumerate(encoder):
        count, channels = block(scale, convs, channels)
        total += count
    count, channels = block(len(encoder), bottom, channels)
    total += count
    for scale in reversed(range(len(decoder))):
        full = width * 2**scale
        total += 4 * channels * full + full
        count, channels = block(scale, decoder[scale], 2 * full)
        total += count
    return total + channels * classes + classes


@pytest.mark.parametrize(
    ("encoder", "bottom", "decoder", "cubes", "window"),
    [
        ((1,), 1, (3,), 0, (1, 2, 2)),
        ((1, 4), 2, (3, 1), 1, (3, 9, 22)),
        ((2, 1, 6), 5, (1, 2, 3), 2, (2, 17, 30)),
        ((1, 1, 1, 1), 1, (1, 1, 1, 1), 9, (2, 16, 40)),
    ],
)
def test_blocks_are_as_asked_for(encoder, bottom, decoder, cubes, window):
    model = EncoderDecoder(4, 3, encoder, bottom, decoder, cubes)
    (logits, _), variables = shapes(model, window)
    assert logits.shape == (2, *model.output_window(window), 4)
    counted = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables))
    assert counted == parameters_by_hand(3, encoder, bottom, decoder, cubes, 4)


def test_planes_are_labelled_alone_unless_there_are_cubes():
    x = np.array(jax.random.normal(KEY, (1, 3, 16, 16, 1)))
    other = x.copy()
    other[0, 0] += 1
    for cubes, alone in ((0, True), (1, False)):
        model = EncoderDecoder(3, 4, (1, 1), 1, (1, 1), cubes)
        params = draw_parameters(KEY, model, x.shape)
        same = model.apply(params, x)[0][0, 1] == model.apply(params, other)[0][0, 1]
        assert bool(same.all()) == alone


def test_what_cannot_be_built_is_named():
    for options, window, message in (
        ({"encoder": (1, 1)}, (1, 16, 16), r"encoder \(1, 1\) and decoder \(2, 2, 2\)"),
        ({"bottom": 0}, (1, 16, 16), "at least one in each block"),
        ({}, (1, 7, 16), r"at least \(1, 8, 8\)"),
    ):
        with pytest.raises(ValueError, match=message):
            EncoderDecoder(**options).output_window(window)
