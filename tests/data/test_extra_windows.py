"""Windows around corrected voxels against brute force: where they lie, what they read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densejax.data import extra_windows as extra
from densejax.data.augment import NO_AUGMENTATION, Augmentation, draw_window, training_arrays
from densejax.data.extra_windows import Patch, cut_patch, extra_arrays, patch_corners
from densejax.data.sampling import Sampling, class_table
from densejax.data.windows import input_tile

VOLUME = (9, 40, 37)
INPUT, OUTPUT = (5, 16, 12), (3, 12, 8)
OPTIONS = {"input_window": INPUT, "output_window": OUTPUT}


def world():
    """A volume in which every voxel tells where it is."""
    return np.arange(np.prod(VOLUME), dtype=np.float32).reshape(VOLUME)


def block(shape, seed=0, share=0.3):
    random = np.random.default_rng(seed)
    return np.where(random.random(shape) < share, random.integers(0, 3, shape), -1).astype(np.int32)


BLOCKS = [
    ((0, 0, 0), (1, 20, 20)),  # thinner than a window, at the border
    ((8, 30, 20), (1, 10, 17)),
    ((3, 5, 9), (4, 13, 9)),
    ((5, 18, 3), (2, 4, 20)),
]


def patches():
    return [
        cut_patch(world(), block(shape, seed), offset, **OPTIONS)
        for seed, (offset, shape) in enumerate(BLOCKS)
    ]


def test_a_patch_is_standardised_and_what_is_no_number_is_named():
    grey, labels = world(), block((2, 4, 20))
    plain, found = (
        cut_patch(grey, labels, (5, 18, 3), mean=mean, deviation=deviation, **OPTIONS).image
        for mean, deviation in ((0.0, 1.0), (7.0, 3.0))
    )
    np.testing.assert_array_equal(found, (plain - 7) / np.float32(3))
    assert found.dtype == np.float32
    grey[5, 18, 3] = np.nan
    with pytest.raises(ValueError, match=r"here: NaN or infinity near the block at \(5, 18, 3\)"):
        cut_patch(grey, labels, (5, 18, 3), name="here", **OPTIONS)


def windows_of(offset, shape):
    """Corners of windows inside the volume that lie in the block, or in which the block lies."""
    axes = []
    for at, size, length, out in zip(offset, shape, VOLUME, OUTPUT, strict=True):
        inside = [
            c
            for c in range(length - out + 1)
            if (at <= c and c + out <= at + size) or (c <= at and at + size <= c + out)
        ]
        axes.append((min(inside), max(inside)))
    return tuple(zip(*axes, strict=True))


@pytest.mark.parametrize("offset, shape", BLOCKS)
def test_windows_of_a_block_against_a_search(offset, shape):
    found = patch_corners(offset, shape, volume_shape=VOLUME, output_window=OUTPUT)
    assert found == windows_of(offset, shape)


sides = st.integers(4, 12).flatmap(
    lambda length: st.tuples(
        st.just(length),
        st.integers(1, length).flatmap(
            lambda size: st.tuples(st.integers(0, length - size), st.just(size))
        ),
        st.integers(1, 4),
    )
)


@settings(max_examples=60, deadline=None)
@given(st.tuples(sides, sides, sides))
def test_every_voxel_of_a_block_lies_in_a_window_and_no_window_leaves_the_volume(layout):
    lengths, places, output = zip(*layout, strict=True)
    offset, shape = zip(*places, strict=True)
    low, high = patch_corners(offset, shape, volume_shape=lengths, output_window=output)
    for at, size, length, out, first, last in zip(
        offset, shape, lengths, output, low, high, strict=True
    ):
        assert 0 <= first <= last <= length - out
        assert first <= at and at + size <= last + out


def test_a_drawn_window_is_what_a_prediction_reads_at_that_place():
    """Image with its mirrored border and labels, for every block, at many draws."""
    data = extra_arrays(patches(), class_weights=np.float32([1, 2, 3]))
    draw = jax.jit(lambda step: extra.draw_extra_window(jax.random.key(3), step, data, **OPTIONS))
    corrected = np.full(VOLUME, -1)
    for seed, (offset, shape) in enumerate(BLOCKS):
        place = tuple(slice(a, a + n) for a, n in zip(offset, shape, strict=True))
        corrected[place] = block(shape, seed)
    seen = set()
    before = [(i - o) // 2 for i, o in zip(INPUT, OUTPUT, strict=True)]
    for step in range(60):
        image, labels, weights = map(np.asarray, draw(step))
        assert (image.shape, labels.shape, weights.shape) == (INPUT, OUTPUT, OUTPUT)
        assert (image.dtype, labels.dtype, weights.dtype) == (np.float32, np.int32, np.float32)
        first = np.unravel_index(int(image[tuple(before)]), VOLUME)
        np.testing.assert_array_equal(image, input_tile(world(), first, OUTPUT, INPUT))
        place = tuple(slice(a, a + n) for a, n in zip(first, OUTPUT, strict=True))
        kept = labels >= 0
        assert kept.any()
        np.testing.assert_array_equal(labels[kept], corrected[place][kept])
        np.testing.assert_array_equal(weights, np.where(kept, labels + 1, 0))
        windows = [windows_of(*one) for one in BLOCKS]
        seen |= {
            number
            for number, (low, high) in enumerate(windows)
            if all(a <= f <= b for a, f, b in zip(low, first, high, strict=True))
        }
    assert seen == set(range(len(BLOCKS)))


def test_corrected_voxels_have_equal_influence_under_a_mean_away_from_the_edges():
    """Dense corrections beside sparse ones: the expected share of the loss is the same a voxel."""
    output = (1, 1, 8)
    labels = np.full((1, 1, 400), -1, np.int32)
    labels[0, 0, 40:160] = 1  # all of a stretch
    labels[0, 0, 240:360:10] = 1  # one in ten, never two in a window
    volume = np.arange(400, dtype=np.float32).reshape(1, 1, 400)
    patch = cut_patch(volume, labels, (0, 0, 0), input_window=output, output_window=output)
    data = extra_arrays([patch], class_weights=np.ones(2))
    draw = jax.vmap(
        lambda step: extra.draw_extra_window(
            jax.random.key(0), step, data, input_window=output, output_window=output
        )
    )
    images, drawn, _ = map(np.asarray, draw(jnp.arange(40000)))
    kept = drawn[:, 0, 0] >= 0
    share = np.zeros(400)
    np.add.at(share, images[:, 0, 0].astype(int), kept / kept.sum(1, keepdims=True))
    dense, sparse = share[50:150].mean(), share[240:360:10].mean()
    # 132 anchors, 40 000 draws: 303 a voxel; a single voxel's own deviation is about 6 %.
    np.testing.assert_allclose([dense, sparse], 40000 / 132, rtol=0.06)


def test_more_corrected_voxels_than_anchors_are_sampled_evenly():
    labels = np.zeros((2, 64, 64), np.int32)
    patch = Patch(np.zeros((2, 64, 64), np.float32), labels, (0, 0, 0))
    found = extra_arrays([patch, patch], class_weights=np.ones(1), anchors=4096)["extra_anchors"]
    assert found.shape == (4096, 4) and found.dtype == np.int32
    assert len(np.unique(found, axis=0)) == 4096
    for column, size in enumerate((2, 2, 64, 64)):
        counts = np.bincount(found[:, column], minlength=size)
        # Four standard deviations of a hypergeometric count.
        expected = 4096 / size
        assert np.abs(counts - expected).max() < 4 * np.sqrt(expected)


@pytest.mark.parametrize("percent", [1, 30, 50, 99, 100])
def test_windows_come_in_turn_and_the_volumes_are_those_without_corrections(percent):
    random = np.random.default_rng(0)
    image = random.normal(size=VOLUME).astype(np.float32)
    volume = training_arrays(image, block(VOLUME, 5, share=0.9))
    data = {**volume, **extra_arrays(patches(), class_weights=np.ones(3))}
    key = jax.random.key(8)
    options = OPTIONS | {"augmentation": Augmentation()}
    mixed = jax.jit(
        lambda step: extra.draw_mixed_window(
            key, step, data, percent=percent, spacing=(2, 5, 5), **options
        )
    )
    plain = jax.jit(lambda step: draw_window(key, step, volume, spacing=(2, 5, 5), **options))
    extras = jax.jit(lambda step: extra.draw_extra_window(key, step, data, **options))
    numbers = {"plain": 0, "extra": 0}
    for step in range(100 if percent < 50 else 20):
        due = (step + 1) * percent // 100 > step * percent // 100
        kind, draw = ("extra", extras) if due else ("plain", plain)
        for found, expected in zip(mixed(step), draw(numbers[kind]), strict=True):
            np.testing.assert_array_equal(found, expected)
        numbers[kind] += 1
    assert numbers["extra"] == sum(numbers.values()) * percent // 100


def test_the_volumes_windows_are_drawn_by_class_where_that_is_asked_for():
    labels = block(VOLUME, 5, share=0.9)
    volume = training_arrays(world(), labels) | jax.tree.map(jnp.asarray, class_table(labels, 3))
    data = {**volume, **extra_arrays(patches(), class_weights=np.ones(3))}
    options = OPTIONS | {"spacing": (2, 5, 5), "sampling": Sampling(class_share=1.0)}
    key = jax.random.key(8)
    mixed, plain = (
        jax.jit(draw)
        for draw in (
            lambda step: extra.draw_mixed_window(key, step, data, percent=50, **options),
            lambda step: draw_window(key, step, volume, **options),
        )
    )
    for step in range(0, 12, 2):
        for found, expected in zip(mixed(step), plain(step // 2), strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("step", [0, 99, 100, 101, 21_474_836, 2_000_000_001])
@pytest.mark.parametrize("percent", [1, 33, 100])
def test_the_count_of_extra_windows_does_not_overflow(step, percent):
    found = extra.extra_windows_before(step, percent=percent)
    assert int(found) == step * percent // 100


def test_a_drawn_window_is_the_same_in_every_mode(assert_modes_agree):
    data = extra_arrays(patches(), class_weights=np.ones(3))

    def draw(key, step):
        return extra.draw_extra_window(key, step, data, augmentation=NO_AUGMENTATION, **OPTIONS)

    assert_modes_agree(draw, jax.random.key(1), jnp.int32(4))


def test_what_cannot_be_drawn_is_refused():
    empty = np.full((1, 12, 12), -1)
    patch = cut_patch(world(), empty, (0, 0, 0), **OPTIONS)
    with pytest.raises(ValueError, match="no corrected voxel in 1 blocks"):
        extra_arrays([patch], class_weights=np.ones(3))
    with pytest.raises(ValueError, match="no corrected block"):
        extra_arrays([], class_weights=np.ones(3))
    with pytest.raises(ValueError, match=r"corrected label is 2; expected 0\.\.1"):
        extra_arrays(patches(), class_weights=np.ones(2))
    with pytest.raises(ValueError, match=r"\(8, 30, 30\).*\(1, 10, 17\).*\(9, 40, 37\)"):
        patch_corners((8, 30, 30), (1, 10, 17), volume_shape=VOLUME, output_window=OUTPUT)
    with pytest.raises(ValueError, match="larger than the volume"):
        patch_corners((0, 0, 0), (1, 1, 1), volume_shape=(2, 40, 40), output_window=OUTPUT)
    with pytest.raises(ValueError, match="101 percent"):
        extra.draw_mixed_window(jax.random.key(0), 0, {}, percent=101, spacing=(1, 1, 1), **OPTIONS)
