"""Prediction of whole volumes: windows leave no trace, and the averages are what they say."""

import itertools
from dataclasses import replace
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from densejax.data.windows import input_tile
from densejax.inference import sliding_window
from densejax.inference.members import member_probabilities
from densejax.inference.sliding_window import centrality, combine
from densejax.inference.tiles import Windowing

CLASSES = 3
# Volumes of these tests are what windows show; standardising has a test of its own.
predict_volume = partial(sliding_window.predict_volume, standardised=True)


@st.composite
def layouts(draw):
    """Volume, output window, overlap and input window, one entry an axis each."""
    axes = []
    for _ in range(3):
        volume = draw(st.integers(1, 9))
        output = draw(st.integers(1, volume))
        overlap = draw(st.integers(0, output - 1))
        margin = draw(st.integers(0, min(5, volume - 1)))
        axes.append((volume, output, overlap, output + margin))
    return tuple(zip(*axes, strict=True))


def middle(tile, output):
    starts = [(size - out) // 2 for size, out in zip(tile.shape, output, strict=True)]
    return tile[tuple(slice(s, s + out) for s, out in zip(starts, output, strict=True))]


@settings(max_examples=40, deadline=None)
@given(layouts(), st.integers(0, 99))
def test_tiling_the_identity_is_the_identity(layout, seed):
    shape, output, overlap, window = layout
    volume = np.random.default_rng(seed).integers(0, CLASSES, shape)

    def identity(tile):
        assert tile.shape == window
        return np.eye(CLASSES, dtype=np.float32)[middle(tile, output).astype(int)][None]

    found = predict_volume(identity, volume, Windowing(window, output, overlap))
    np.testing.assert_array_equal(found.labels, volume)
    np.testing.assert_array_equal(found.members[0], volume)
    np.testing.assert_array_equal(found.cumulative[0], volume)
    assert found.labels.dtype == np.int32
    assert not found.entropy.any() and not found.disagreement.any()


@pytest.mark.parametrize("blend", ["centre", "gaussian"])
def test_kept_probabilities_are_the_mean_of_the_members(blend):
    random = np.random.default_rng(0)
    volume = random.normal(size=(3, 9, 9)).astype(np.float32)
    shares = random.dirichlet(np.ones(CLASSES), size=(2, *volume.shape)).astype(np.float32)

    def looked_up(tile):
        # Grey levels are all different, so that a voxel's tells where it is.
        places = [np.argwhere(volume == value)[0] for value in tile.ravel()]
        found = np.stack([shares[:, z, y, x] for z, y, x in places], axis=1)
        return found.reshape(2, *tile.shape, CLASSES)

    windowing = Windowing((2, 6, 6), (2, 6, 6), (1, 3, 3), blend)
    found = predict_volume(looked_up, volume, windowing, keep_probabilities=True)
    np.testing.assert_allclose(found.probabilities, shares.mean(0), atol=1e-6)
    assert predict_volume(looked_up, volume, windowing).probabilities is None


def box_mean(image, padding):
    """Mean of 3x3x3 voxels, ``valid`` or padded with zeros."""
    mean = ndimage.uniform_filter(image.astype(np.float64), 3, mode="constant")
    return mean[1:-1, 1:-1, 1:-1] if padding == "valid" else mean


def two_classes(values):
    share = 1 / (1 + np.exp(-4 * values))
    return np.stack([1 - share, share], axis=-1)[None]


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("overlap", [(2, 2, 2), (2, 3, 4)])
def test_tiles_give_what_one_window_gives(padding, overlap):
    # Radius one and overlap two or more: the window that a voxel is taken from sees all that the
    # voxel depends on, so the seams do not show.
    volume = np.random.default_rng(0).normal(size=(8, 17, 19)).astype(np.float32)
    output, extra = (4, 7, 6), 2 if padding == "valid" else 0
    found = predict_volume(
        lambda tile: two_classes(box_mean(tile, padding)),
        volume,
        Windowing(tuple(n + extra for n in output), output, overlap).at((1, 1, 1)),
    )
    whole = two_classes(box_mean(volume, "same"))[0]
    inside = (slice(1, -1),) * 3
    expected = -(whole * np.log(whole)).sum(-1) / np.log(2)
    np.testing.assert_array_equal(found.labels[inside], whole.argmax(-1)[inside])
    np.testing.assert_allclose(found.entropy[inside], expected[inside], rtol=1e-5)


@pytest.mark.parametrize("members", [1, 2, 5])
def test_averages_entropy_and_disagreement_by_brute_force(members):
    shape, classes = (3, 6, 7), 4
    random = np.random.default_rng(members)
    shares = random.dirichlet(np.full(classes, 0.5), (members, *shape)).astype(np.float32)
    # Each voxel of the volume is its own index, so that a window can look its shares up.
    volume = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    flat = shares.reshape(members, -1, classes)
    found = predict_volume(
        lambda tile: flat[:, tile.astype(int)], volume, Windowing((2, 4, 4), (2, 4, 4))
    )
    for place in np.ndindex(shape):
        own = [shares[(m, *place)].astype(np.float64) for m in range(members)]
        mean = sum(own) / members
        assert found.labels[place] == np.argmax(mean)
        entropy = -sum(p * np.log(p) for p in mean if p > 0) / np.log(classes)
        np.testing.assert_allclose(found.entropy[place], entropy, rtol=1e-4, atol=1e-5)
        others = np.mean([np.argmax(o) != np.argmax(mean) for o in own])
        np.testing.assert_allclose(found.disagreement[place], others, rtol=1e-6)
        for m in range(members):
            assert found.members[(m, *place)] == np.argmax(own[m])
            assert found.cumulative[(m, *place)] == np.argmax(sum(own[: m + 1]))


def test_members_are_the_networks_own_softmax():
    random = np.random.default_rng(3)
    params = {"w": random.normal(size=(3, CLASSES)).astype(np.float32)}

    def network(one, image):
        return image * one["w"], {}

    tile = random.normal(size=(2, 3, 4)).astype(np.float32)
    found = member_probabilities(network, params)(tile)
    raw = np.exp(tile[None, ..., None].astype(np.float64) * params["w"][:, None, None, None])
    np.testing.assert_allclose(found, raw / raw.sum(-1, keepdims=True), rtol=1e-5)
    assert found.dtype == jnp.float32


def test_members_are_averaged_over_views_each_for_itself():
    random = np.random.default_rng(4)
    kernels = random.normal(size=(2, 3, 4, 4, CLASSES)).astype(np.float32)
    params, tile = {"w": kernels}, random.normal(size=(3, 4, 4)).astype(np.float32)

    def network(one, image):
        return image * one["w"], {}

    def shares(image, kernel):
        raw = np.exp(image[..., None].astype(np.float64) * kernel)
        return raw / raw.sum(-1, keepdims=True)

    found = member_probabilities(network, params, views="turns")(tile)
    for own, kernel in zip(found, kernels, strict=True):
        total = 0
        for axes in ((), (1,), (2,), (1, 2)):
            total = total + np.flip(shares(np.flip(tile, axes), kernel), axes)
            turned = shares(np.flip(np.swapaxes(tile, 1, 2), axes), kernel)
            total = total + np.swapaxes(np.flip(turned, axes), 1, 2)
        np.testing.assert_allclose(own, total / 8, rtol=1e-5)
    plain = member_probabilities(network, params)(tile)
    np.testing.assert_allclose(plain[0], shares(tile, kernels[0]), rtol=1e-5)
    assert np.abs(plain - found).max() > 0.1


@settings(max_examples=25, deadline=None)
@given(layouts(), st.integers(0, 99))
def test_blended_windows_of_a_function_of_voxels_are_that_function(layout, seed):
    shape, output, overlap, window = layout
    random = np.random.default_rng(seed)
    volume = random.integers(0, 50, shape)
    shares = random.dirichlet(np.ones(CLASSES), (2, 50))

    def pointwise(tile):
        return shares[:, middle(tile, output).astype(int)].astype(np.float32)

    found = predict_volume(pointwise, volume, Windowing(window, output, overlap, "gaussian"))
    mean = shares[:, volume].mean(0)
    entropy = -(mean * np.log(mean)).sum(-1) / np.log(CLASSES)
    np.testing.assert_array_equal(found.labels, mean.argmax(-1))
    np.testing.assert_array_equal(found.members, shares[:, volume].argmax(-1))
    np.testing.assert_allclose(found.entropy, entropy, atol=1e-4)


def bell(size):
    """The weights of a window along one axis: a deviation of an eighth of its length."""
    place = np.arange(size) - (size - 1) / 2
    return np.exp(-(place**2) / (2 * (size / 8) ** 2))


@pytest.mark.parametrize("overlap", [(0, 0, 0), (1, 2, 1), (2, 3, 4), None])
def test_gaussian_blending_is_the_weighted_mean_of_all_windows(overlap):
    """By brute force: probabilities that depend on where the window lies and on all it shows."""
    shape, output, window = (5, 11, 9), (3, 5, 6), (3, 7, 8)
    random = np.random.default_rng(0)
    volume = random.normal(size=shape).astype(np.float32)
    matrix = random.normal(size=(2, np.prod(window), np.prod(output) * CLASSES)) / 6

    def probabilities(tile):
        assert tile.shape == window
        logits = np.einsum("i,kio->ko", tile.ravel(), matrix).reshape(2, *output, CLASSES)
        raw = np.exp(logits)
        return (raw / raw.sum(-1, keepdims=True)).astype(np.float32)

    told = []

    def progress(items, total):
        told.append(total)
        return items

    windowing = Windowing(window, output, overlap, "gaussian")
    found = predict_volume(probabilities, volume, windowing, progress=progress)
    shared = (1, 1, 2) if overlap is None else overlap
    axes = [
        [*range(0, size - out, out - both), size - out]
        for size, out, both in zip(shape, output, shared, strict=True)
    ]
    weights = np.einsum("a,b,c->abc", *(bell(size) for size in output))
    sums, total = np.zeros((2, *shape, CLASSES)), np.zeros(shape)
    for corner in itertools.product(*axes):
        place = tuple(slice(c, c + out) for c, out in zip(corner, output, strict=True))
        shares = probabilities(input_tile(volume, np.array(corner), output, window))
        sums[(slice(None), *place)] += weights[..., None] * shares
        total[place] += weights
    each = sums / total[..., None]
    mean = each.mean(0)
    entropy = -(mean * np.log(mean)).sum(-1) / np.log(CLASSES)
    assert told == [np.prod([len(axis) for axis in axes])]
    np.testing.assert_array_equal(found.labels, mean.argmax(-1))
    np.testing.assert_array_equal(found.members, each.argmax(-1))
    np.testing.assert_array_equal(found.cumulative, [each[0].argmax(-1), mean.argmax(-1)])
    np.testing.assert_allclose(found.entropy, entropy, atol=1e-5)
    others = (each.argmax(-1) != mean.argmax(-1)).mean(0)
    np.testing.assert_allclose(found.disagreement, others, atol=1e-6)
    if overlap == (2, 3, 4):
        centre = replace(windowing, blend="centre", anisotropy=(1, 1, 1))
        centre = predict_volume(probabilities, volume, centre)
        assert np.any(centre.labels != found.labels)


def test_centrality_is_the_distance_to_the_border():
    for window in ((1, 1, 1), (5, 6, 7), (3, 9, 4)):
        inside = np.pad(np.ones(window), 1)
        expected = ndimage.distance_transform_edt(inside, sampling=(4, 1, 1))[1:-1, 1:-1, 1:-1]
        np.testing.assert_allclose(centrality(window), expected)


def test_windows_that_do_not_fit_are_refused():
    volume = np.zeros((3, 8, 8), np.float32)

    def never(tile):
        raise AssertionError("asked for a prediction")

    for blend in ("centre", "gaussian"):
        with pytest.raises(ValueError, match=r"\(4, 8, 8\).*\(3, 8, 8\)"):
            predict_volume(never, volume, Windowing((4, 8, 8), (4, 8, 8), blend=blend))
        with pytest.raises(ValueError, match=r"beyond the output"):
            predict_volume(never, volume, Windowing((9, 8, 8), (1, 8, 8), blend=blend))


def test_progress_is_told_the_number_of_windows():
    told = []

    def progress(items, total):
        told.append(total)
        return items

    predict_volume(
        lambda tile: np.ones((1, *tile.shape, 2), np.float32) / 2,
        np.zeros((2, 4, 4)),
        Windowing((1, 2, 2), (1, 2, 2), (0, 0, 0)),
        progress=progress,
    )
    assert told == [2 * 2 * 2]


def test_volumes_of_each_member_combine_to_what_windows_of_all_give():
    rng = np.random.default_rng(5)
    volume = rng.normal(size=(3, 9, 11)).astype(np.float32)
    weights = rng.normal(size=(4, 5)).astype(np.float32)

    def shares(tile, k):
        logits = tile[..., None] * weights[k]
        return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)

    sizes = Windowing((2, 4, 5), (2, 4, 5), (1, 2, 2))
    expected = predict_volume(
        lambda tile: np.stack([shares(tile, k) for k in range(4)]), volume, sizes
    )
    each = [
        predict_volume(
            lambda tile, k=k: shares(tile, k)[None], volume, sizes, keep_probabilities=True
        ).probabilities
        for k in range(4)
    ]
    np.testing.assert_allclose(each[2], shares(volume, 2), rtol=1e-6)
    found = combine(iter(each))
    for name in ("labels", "members", "cumulative"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_allclose(found.entropy, expected.entropy, atol=1e-6)
    np.testing.assert_array_equal(found.disagreement, expected.disagreement)
    with pytest.raises(ValueError, match="no members"):
        combine([])


def test_grey_levels_are_standardised_as_a_whole():
    volume = np.random.default_rng(6).integers(0, 256, (4, 9, 9)).astype(np.uint8)
    seen = []

    def look(tile):
        seen.append(tile)
        return np.full((1, *tile.shape, 2), 0.5, np.float32)

    windowing = Windowing((2, 9, 9), (2, 9, 9), (0, 0, 0))
    sliding_window.predict_volume(look, volume, windowing)
    np.testing.assert_allclose(
        np.concatenate(seen), (volume - volume.mean()) / volume.std(), atol=1e-5
    )
    with pytest.raises(ValueError, match="every voxel is 3"):
        sliding_window.predict_volume(look, np.full((4, 9, 9), 3), windowing)
