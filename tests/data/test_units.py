"""Units of labelling: costs worked by hand, where crops and windows lie, and what is refused."""

import jax
import numpy as np
import pytest

from densejax.data import units as u

NAMES = ("a", "b", "c")
KEY = jax.random.key(3)


def volume(shape=(2, 9, 11)):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, shape, np.uint8)
    return images, rng.integers(-1, 3, shape).astype(np.int32)


def placed(offsets, sources, labels, shape):
    number = len(labels)
    return u.Units(
        np.zeros((*np.shape(labels), 1), np.uint8),
        np.asarray(labels, np.int8),
        np.asarray(sources, np.int32),
        np.asarray(offsets, np.int32),
        ("v",) * number,
        tuple(map(str, range(number))),
        shape,
        NAMES,
    )


def test_costs_by_hand():
    # Two 2 x 2 windows of section 0 share one pixel; the same corner of section 1 shares none.
    labels = [[[[0, 1], [1, 1]]], [[[-1, 2], [0, 0]]], [[[2, 2], [2, 2]]]]
    some = placed([(0, 0, 0), (0, 1, 1), (0, 0, 0)], [0, 0, 1], labels, (2, 1, 4, 4))
    assert [some.distinct_pixels([0, 1]), some.distinct_pixels([0, 2]), some.pixels] == [7, 8, 4]
    assert some.distinct_pixels([0, 0]) == 4 and some.distinct_pixels([]) == 0
    # 0|1 right of and below the corner; beside void there is no border: 2 over 0 only.
    assert [some.boundary_length([n]) for n in range(3)] == [2, 1, 0]
    assert some.boundary_length([0, 1, 1]) == 4 and some.boundary_length([]) == 0
    np.testing.assert_array_equal(some.counts([2, 1]), [[0, 0, 4], [2, 0, 1]])
    assert some.counts([]).shape == (0, 3)


def test_the_checksum_tells_changed_pools():
    images, labels = volume()
    one = u.windows(KEY, images, labels, size=4, count=5, class_names=NAMES)
    same = u.windows(KEY, images, labels, size=4, count=5, class_names=NAMES)
    assert one.checksum() == same.checksum()
    same.labels[0, 0, 0, 0] = (same.labels[0, 0, 0, 0] + 2) % 3
    assert one.checksum() != same.checksum()


@pytest.mark.parametrize(("count", "expected"), [(7, 7), (None, 2 * 2 * 2), (2 * 6 * 8, 96)])
def test_windows_are_cut_where_they_say(count, expected):
    images, labels = volume()
    found = u.windows(KEY, images, labels, size=4, count=count, class_names=NAMES)
    assert len(found) == len(set(found.names)) == expected
    for n in range(expected):
        z, (_, y, x) = found.source[n], found.offset[n]
        np.testing.assert_array_equal(
            found.images[n, 0, ..., 0], images[z, y : y + 4, x : x + 4], strict=True
        )
        np.testing.assert_array_equal(found.labels[n, 0], labels[z, y : y + 4, x : x + 4])
        assert found.names[n] == f"z{z:03d}_y{y:04d}_x{x:04d}"
    if count is None:
        assert found.distinct_pixels(range(8)) == 8 * 16


def test_crops_lie_inside_and_are_drawn_once():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (40, 6, 9, 3), np.uint8)
    labels = rng.integers(0, 3, (40, 6, 9)).astype(np.int8)
    names = [f"p{n}" for n in range(40)]
    whole = u.whole_pictures(images, labels, names=names, groups=names, class_names=NAMES)
    assert whole.distinct_pixels(range(3)) == 3 * 54
    crops = u.random_crops(KEY, whole, 5)
    for n, (_, y, x) in enumerate(crops.offset):
        np.testing.assert_array_equal(crops.images[n, 0], images[n, y : y + 5, x : x + 5])
        np.testing.assert_array_equal(crops.labels[n, 0], labels[n, y : y + 5, x : x + 5])
    # Every place occurs, the far edges too.
    assert set(crops.offset[:, 1].tolist()) == {0, 1}
    assert set(crops.offset[:, 2].tolist()) == set(range(5))
    assert crops.checksum() == u.random_crops(KEY, whole, 5).checksum()
    assert crops.names == whole.names and crops.distinct_pixels(range(40)) == 40 * 25
    assert u.random_crops(KEY, whole, 6).offset[:, 1].max() == 0


def test_binning_by_hand():
    images = np.array([[[0, 1, 9], [0, 1, 9], [7, 7, 7]]], np.uint8)  # mean 0.5, half up
    assert u.binned(images, np.zeros((1, 3, 3), int), 2, classes=3)[0].tolist() == [[[1]]]
    blocks = {(0, 0, 1, 2): 0, (2, 2, 1, 1): 1, (-1, -1, 2, 1): -1, (-1, -1, 2, 2): 2}
    blocks[(-1, -1, -1, 2)] = -1
    for block, expected in blocks.items():
        labels = np.reshape(block, (1, 2, 2))
        found = u.binned(np.zeros((1, 2, 2), np.uint8), labels, 2, classes=3)[1]
        assert found.tolist() == [[[expected]]]


def test_halves_part_along_y():
    images, labels = volume()
    (top, _), (bottom, below) = u.halves(images, labels)
    assert top.shape == (2, 4, 11) and bottom.shape == below.shape == (2, 5, 11)
    np.testing.assert_array_equal(np.concatenate([top, bottom], axis=1), images)


def test_what_is_refused():
    images, labels = volume()
    options = {"class_names": NAMES}
    with pytest.raises(ValueError, match=r"window of 10 pixels .*sections are 9 x 11; .*1 to 9"):
        u.windows(KEY, images, labels, size=10, count=3, **options)
    with pytest.raises(ValueError, match="97 windows of 4 pixels; expected 1 to 96"):
        u.windows(KEY, images, labels, size=4, count=97, **options)
    names = ["p", "q"]
    whole = u.whole_pictures(images[..., None], labels, names=names, groups=names, **options)
    with pytest.raises(ValueError, match=r"crop of 10 pixels .*pictures are 9 x 11"):
        u.random_crops(KEY, whole, 10)
    with pytest.raises(ValueError, match="do not agree"):
        u.whole_pictures(images[..., None], labels, names=["p"], groups=names, **options)
    with pytest.raises(ValueError, match="do not agree"):
        u.whole_pictures(images[:, 1:, :, None], labels, names=names, groups=names, **options)
    with pytest.raises(ValueError, match="labels -1 to 3; expected 0 to 2, or -1"):
        u.windows(KEY, images, np.where(labels == 2, 3, labels), size=4, count=96, **options)
    with pytest.raises(ValueError, match="no halves along y"):
        u.halves(images[:, :1], labels[:, :1])
    for factor in (0, 10):
        with pytest.raises(ValueError, match=rf"binning by {factor} .*expected 1 to 9"):
            u.binned(images, labels, factor, classes=3)
