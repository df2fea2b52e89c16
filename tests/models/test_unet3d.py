"""UNet3D: published counts and windows, and the window arithmetic."""

import math

import jax
import numpy as np
import pytest
from drawing import drawn, shapes

from densejax.models.unet3d import UNet3D, thick, thin

SMALL = {"classes": 3, "width": 2}


@pytest.mark.parametrize(("make", "count"), [(thin, 2_033_767), (thick, 2_074_727)])
def test_published_parameter_counts(make, count):
    _, variables = shapes(make(), (16, 64, 64))
    assert sum(math.prod(p.shape) for p in jax.tree.leaves(variables)) == count


def test_published_windows():
    assert thin().output_window((5, 300, 300)) == (5, 300, 300)
    assert thin(crop=(0, 2, 2)).output_window((5, 300, 300)) == (5, 296, 296)
    assert thick().output_window((16, 180, 180)) == (16, 180, 180)


@pytest.mark.parametrize("make", [thin, thick])
@pytest.mark.parametrize("crop", [(0, 0, 0), (0, 2, 3), (1, 0, 2)])
@pytest.mark.parametrize("window", [(4, 8, 8), (7, 9, 23), (5, 16, 31)])
def test_output_window_is_the_shape_of_the_logits(make, crop, window):
    model = make(**SMALL, crop=crop)
    (logits, _), _ = shapes(model, window)
    assert logits.shape == (2, *model.output_window(window), 3)
    assert min(logits.shape) > 0


@pytest.mark.parametrize(
    ("model", "window"),
    [
        (thin(), (1, 3, 8)),
        (thick(), (3, 8, 8)),
        (thin(crop=(0, 2, 2)), (1, 4, 8)),
        (thin(crop=(1, 0, 0)), (2, 8, 8)),
        (UNet3D(), (8, 8)),
    ],
)
def test_a_window_too_small_is_named(model, window):
    with pytest.raises(ValueError, match=", ".join(map(str, window))):
        model.output_window(window)


def test_crop_cuts_the_border_of_the_logits():
    x = jax.random.normal(jax.random.key(1), (1, 3, 8, 12, 1))
    model, cropped = (
        thin(**SMALL, scales=2, convs=1, crop=crop) for crop in ((0, 0, 0), (1, 2, 3))
    )
    variables = drawn(model, x)
    whole, _ = jax.jit(model.apply)(variables, x)
    cut, _ = jax.jit(cropped.apply)(variables, x)
    np.testing.assert_allclose(cut, whole[:, 1:-1, 2:-2, 3:-3], rtol=1e-5, atol=1e-6)
