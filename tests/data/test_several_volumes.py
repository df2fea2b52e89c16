"""Windows of several volumes of different shapes: each from one volume, all of them drawn from."""

from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.data.augment import PLANNED, draw_window, training_arrays
from densejax.data.sampling import Sampling, class_table
from densejax.data.windows import grid_bins

SHAPES = [(4, 12, 10), (3, 20, 8), (6, 9, 9)]
OUTPUT, INPUT, SPACING = (2, 4, 4), (2, 6, 6), (2, 3, 3)
KEY = jax.random.key(3)


def labels_of(shape, seed, *, labelled=1.0):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(shape) < labelled, rng.integers(0, 2, shape), -1)


def several(*, labelled=1.0, sampled=False, sparse=False, rare=False):
    """Volumes whose grey level names volume and voxel, with random labels."""
    labels = [labels_of(shape, i, labelled=labelled) for i, shape in enumerate(SHAPES)]
    if rare:  # a class of one voxel, in the second volume
        labels[1][2, 15, 3] = 2
    images = [10_000.0 * i + np.arange(one.size).reshape(one.shape) for i, one in enumerate(labels)]
    volumes = tuple(
        training_arrays(image, one, weights=np.full(one.shape, 1.0 + i))
        for i, (image, one) in enumerate(zip(images, labels, strict=True))
    )
    table = class_table(labels, 3 if rare else 2, sparse=sparse) if sampled else {}
    return {"volumes": volumes, **jax.tree.map(jnp.asarray, table)}, labels


def drawn(data, count, **options):
    one = partial(draw_window, input_window=INPUT, output_window=OUTPUT, spacing=SPACING, **options)
    return jax.device_get(
        jax.jit(lambda steps: jax.lax.map(lambda s: one(KEY, s, data), steps))(jnp.arange(count))
    )


def places(images, labels, weights, truth):
    """Volume and corner of each window, checked: labels and weights are of the same place."""
    found = []
    for image, label, weight in zip(images, labels, weights, strict=True):
        inner = image[:, 1:-1, 1:-1].astype(int)
        number, flat = divmod(int(inner[0, 0, 0]), 10_000)
        corner = np.unravel_index(flat, SHAPES[number])
        place = tuple(slice(c, c + n) for c, n in zip(corner, OUTPUT, strict=True))
        np.testing.assert_array_equal(label, truth[number][place])
        index = np.arange(truth[number].size).reshape(SHAPES[number])[place]
        np.testing.assert_array_equal(inner, 10_000 * number + index)
        np.testing.assert_array_equal(weight, np.where(label >= 0, 1.0 + number, 0))
        found.append((number, *(int(c) for c in corner)))
    return found


def test_an_epoch_visits_every_bin_of_every_volume_once():
    data, truth = several()
    bins = [grid_bins(shape, OUTPUT, SPACING) for shape in SHAPES]
    total = sum(int(np.prod(one)) for one in bins)
    found = places(*drawn(data, 2 * total), truth)
    orders = []
    for epoch in (found[:total], found[total:]):
        visited = [
            (n, *(c // s for c, s in zip(corner, SPACING, strict=True))) for n, *corner in epoch
        ]
        expected = {(n, *index) for n, one in enumerate(bins) for index in np.ndindex(one)}
        assert Counter(visited) == Counter(expected)
        orders.append(visited)
    assert orders[0] != orders[1]
    assert [n for n, *_ in orders[0]] != sorted(n for n, *_ in orders[0])


def test_uniform_windows_are_drawn_from_volumes_by_how_many_they_hold():
    data, truth = several(sampled=True)
    found = places(*drawn(data, 3000, sampling=Sampling()), truth)
    windows = [np.prod([v - w + 1 for v, w in zip(s, OUTPUT, strict=True)]) for s in SHAPES]
    shares = np.array(windows) / sum(windows)
    counts = np.bincount([n for n, *_ in found], minlength=3)
    np.testing.assert_allclose(counts / 3000, shares, atol=4 * 0.5 / np.sqrt(3000))
    for number, shape in enumerate(SHAPES):
        corners = np.array([corner for n, *corner in found if n == number])
        np.testing.assert_array_equal(corners.min(0), 0)
        np.testing.assert_array_equal(corners.max(0), np.subtract(shape, OUTPUT))


def test_a_class_that_one_volume_has_is_drawn_as_often_as_the_others():
    data, truth = several(sampled=True, rare=True)
    _, labels, _ = windows = drawn(data, 600, sampling=Sampling(class_share=1.0))
    places(*windows, truth)
    share = np.mean([(label == 2).any() for label in labels])
    assert 0.27 < share < 0.41


@pytest.mark.parametrize("reject", [0.0, 1.0])
def test_sparse_windows_always_hold_a_label(reject):
    data, truth = several(labelled=0.01, sampled=True, sparse=True)
    windows = drawn(data, 300, sampling=Sampling(class_share=0.3, reject_empty=reject))
    assert {n for n, *_ in places(*windows, truth)} == {0, 1, 2}
    assert all((label >= 0).any() for label in windows[1])


def test_one_sparse_volume_is_drawn_around_its_labels():
    labels = labels_of((8, 40, 40), 0, labelled=0.002)
    table = jax.tree.map(jnp.asarray, class_table(labels, 2, sparse=True))
    data = training_arrays(np.zeros(labels.shape), labels) | table
    windows = drawn(data, 200, sampling=Sampling(class_share=0.0))
    assert all((label >= 0).any() for label in windows[1])


@pytest.mark.parametrize("sampling", [None, Sampling(0.5)])
def test_everything_that_happens_to_a_window_happens_to_these(sampling):
    data, _ = several(sampled=True)
    plain, augmented = (
        drawn(data, 40, sampling=sampling, **how) for how in ({}, {"augmentation": PLANNED})
    )
    assert np.isfinite(augmented[0]).all() and augmented[0].shape == plain[0].shape
    assert not np.array_equal(plain[0], augmented[0])
    assert set(np.unique(augmented[1])) <= {-1, 0, 1}
