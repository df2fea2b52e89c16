"""Mean and deviation read piece by piece are those of the whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densejax.data.formats import LazyArray
from densejax.data.grey_levels import pieces, volume_moments


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(*[st.integers(1, 9)] * 3),
    st.tuples(*[st.integers(1, 4)] * 3),
    st.integers(1, 90),
    st.data(),
)
def test_pieces_cover_a_part_once_and_cut_along_chunks(shape, chunks, voxels, data):
    part = []
    for size in shape:
        low = data.draw(st.integers(0, size - 1))
        part.append((low, data.draw(st.integers(low + 1, size))))
    seen = np.zeros(shape, int)
    array = LazyArray(shape, np.uint8, lambda box: None, chunks=chunks)
    for box in pieces(array, part, voxels=voxels):
        seen[box] += 1
        for place, (low, high), chunk in zip(box, part, array.chunks, strict=True):
            assert place.start == low or place.start % chunk == 0
            assert place.stop == high or place.stop % chunk == 0
    expected = np.zeros(shape, int)
    expected[tuple(slice(*pair) for pair in part)] = 1
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize(
    "dtype", [bool, np.uint8, np.int8, np.uint16, np.int16, np.int32, np.float32, np.float64]
)
def test_moments_are_those_of_numpy(dtype):
    random = np.random.default_rng(0)
    top = 2 if np.dtype(dtype) == bool else 120
    volume = (random.integers(0, top, (7, 20, 31)) - (top == 120) * 30).astype(dtype)
    boxes = pieces(volume, [(0, n) for n in volume.shape], voxels=300)
    found = volume_moments(volume, boxes)
    np.testing.assert_allclose(found.mean, np.mean(volume, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(found.deviation, np.std(volume, dtype=np.float64), rtol=1e-12)
    assert found.count == volume.size


def test_small_integers_are_exact_far_from_zero():
    # Sums of squares of 60 000 cancel in float64 only after 10^6 voxels; as integers never.
    volume = np.full((4, 100, 100), 60000, np.uint16)
    volume[0, 0, 0] = 60001
    found = volume_moments(volume, pieces(volume, [(0, n) for n in volume.shape], voxels=999))
    n = volume.size
    np.testing.assert_allclose(found.deviation, np.sqrt((n - 1) / n**2), rtol=1e-14)


def test_floats_far_from_zero_do_not_cancel():
    volume = 1e6 + np.random.default_rng(0).normal(size=(5, 40, 40))
    found = volume_moments(volume, pieces(volume, [(0, n) for n in volume.shape], voxels=500))
    np.testing.assert_allclose(found.deviation, np.std(volume), rtol=1e-10)


def test_the_same_numbers_whatever_the_threads():
    volume = np.random.default_rng(0).normal(size=(9, 40, 40)).astype(np.float32)
    boxes = pieces(volume, [(0, n) for n in volume.shape], voxels=500)
    first = volume_moments(volume, boxes, threads=1)
    assert all(volume_moments(volume, boxes, threads=n) == first for n in (2, 5))


def test_bad_volumes_are_refused():
    volume = np.ones((3, 4, 4), np.float32)
    boxes = pieces(volume, [(0, n) for n in volume.shape], voxels=16)
    with pytest.raises(ValueError, match="every voxel of the volume is 1"):
        volume_moments(volume, boxes)
    volume[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match=r"voxels \S+: a grey level is NaN"):
        volume_moments(volume, boxes)


def test_what_cannot_be_read_stops_or_is_left_out():
    values = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)

    def read(box):
        if box[0].start <= 1 < box[0].stop:
            raise ValueError("section 1 is broken")
        return values[box]

    volume = LazyArray(values.shape, np.uint8, read, chunks=(1, 4, 4))
    boxes = pieces(volume, [(0, 3), (0, 4), (0, 4)], voxels=16)
    with pytest.raises(ValueError, match="section 1"):
        volume_moments(volume, boxes)
    told = []
    found = volume_moments(volume, boxes, on_error=lambda box, error: told.append(str(error)))
    assert told == ["section 1 is broken"]
    kept = values[[0, 2]]
    assert (found.count, found.mean) == (kept.size, kept.mean())
    with pytest.raises(ValueError, match="no part"):
        volume_moments(volume, boxes[1:2], on_error=lambda box, error: None)
