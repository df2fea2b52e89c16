"""How far networks see: found by asking, against receptive fields counted by hand."""

import jax
import numpy as np
import pytest

from densejax.inference.receptive_field import blind_margin, choose_overlap
from densejax.inference.tiles import Windowing, corner, grid_of, pooling_factor, slices
from densejax.models import hybrid, unet, unet3d
from densejax.models.layers import draw_parameters
from densejax.ops.convolution import convolution


def convolved(times, padding="SAME"):
    """3x3x3 convolutions one after another: they see one voxel further each."""

    def network(params, image):
        for _ in range(times):
            image = convolution(image, params, padding=padding)
        return image, {}

    return network


@pytest.mark.parametrize("times", [0, 1, 3])
def test_padded_convolutions_are_blind_by_their_radius(times):
    window = (9, 12, 11)
    found = blind_margin(
        convolved(times), np.ones((3, 3, 3, 1, 1), np.float32), Windowing(window, window)
    )
    assert found == (times, times, times)


def test_convolutions_without_padding_are_blind_to_nothing():
    kernel = np.ones((3, 3, 3, 1, 1), np.float32)
    found = blind_margin(convolved(2, "VALID"), kernel, Windowing((9, 12, 11), (5, 8, 7)))
    assert found == (0, 0, 0)


def test_a_window_within_the_radius_is_all_blind():
    kernel = np.ones((3, 3, 3, 1, 1), np.float32)
    window = (3, 12, 5)
    assert blind_margin(convolved(3), kernel, Windowing(window, window)) == (None, 3, None)


def margin_of(model, window):
    params = draw_parameters(jax.random.key(0), model, (1, *window, 1))
    factor = pooling_factor(model.output_window, window)
    output = model.output_window(window)
    return blind_margin(model.apply, params, Windowing(window, output), factor=factor)


def blind_by_hand(path, size):
    """Outputs of an axis whose lowest input lies below 0, along the path that sees furthest.

    The path leads back from the output: a number of convolutions, ``up`` or ``pool``.
    """

    def lowest(place):
        for step in path:
            if step == "up":
                place //= 2
            elif step == "pool":
                place *= 2
            else:
                place -= step
        return place

    return sum(lowest(place) < 0 for place in range(size))


U_NET = (2, "up", 2, "pool", 2)
THICK = (3, "up", 3, "pool", 3)
HYBRID = ("up", 5, "pool", 3, "up", 3, "up", 2, "up", 2, "pool", 2, "pool", 3, "pool", 3)


@pytest.mark.parametrize(
    ("model", "window", "paths"),
    [
        (unet.UNet(width=1, scales=2, padding="SAME"), (1, 40, 40), (None, U_NET, U_NET)),
        (unet.UNet(width=1, scales=2, padding="VALID"), (1, 40, 40), (None, None, None)),
        (unet3d.thick(width=1, scales=2), (32, 32, 32), (THICK, THICK, THICK)),
        # Along y the window is too small: every voxel misses something.
        (hybrid.Hybrid2D3D(width=1), (1, 64, 144), ((4, 5), HYBRID, HYBRID)),
    ],
)
def test_networks_by_counting_along_the_deepest_path(model, window, paths):
    expected = []
    for path, size in zip(paths, window, strict=True):
        blind = 0 if path is None else blind_by_hand(path, size)
        # Blind from both faces, and so everywhere.
        expected.append(None if 2 * blind >= size else blind)
    assert margin_of(model, window) == tuple(expected)


def test_seams_are_exact_where_the_overlap_is_receptive():
    # What one window of the whole volume says, away from the volume's own border.
    model, window = unet.UNet(width=2, scales=2, padding="SAME"), (1, 32, 32)
    params = draw_parameters(jax.random.key(1), model, (1, *window, 1))
    volume = np.random.default_rng(0).normal(size=(1, 88, 72)).astype(np.float32)
    factor = pooling_factor(model.output_window, window)
    blind = margin_of(model, window)
    overlap = choose_overlap("receptive", output=window, blind=blind)
    assert overlap == (0, 16, 16)
    grid = grid_of(volume.shape, Windowing(window, window, overlap), factor=factor)
    apply = jax.jit(lambda image: model.apply(params, image[None, ..., None])[0][0])
    found = np.zeros((*volume.shape, 7), np.float32)
    for index in grid.windows(tuple((0, size) for size in volume.shape)):
        held, own = grid.held(index), grid.own(index)
        logits = np.asarray(apply(volume[slices(held)]))
        found[slices(own)] = logits[slices(own, origin=corner(held))]
    whole = np.asarray(apply(volume))
    assert np.abs(whole).max() > 0.1
    np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-5)
    # With less overlap the seams show.
    thin = grid_of(volume.shape, Windowing(window, window, (0, 0, 0)), factor=factor)
    for index in thin.windows(tuple((0, size) for size in volume.shape)):
        found[slices(thin.held(index))] = np.asarray(apply(volume[slices(thin.held(index))]))
    assert np.abs(found - whole).max() > 1e-3


def test_overlaps_by_name():
    blind = (1, 10, None)
    options = {"output": (5, 90, 90), "blind": blind}
    assert choose_overlap("receptive", **options) == (2, 20, 45)
    assert choose_overlap("third", **options) == (1, 30, 30)
    assert choose_overlap("auto", **options) == (1, 20, 30)
    assert choose_overlap((0, 1, 2), **options) == (0, 1, 2)
    with pytest.raises(ValueError, match="'half'"):
        choose_overlap("half", **options)
