"""Volumes with broken chunks: all else is read, and what is broken is named."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from densejax.data.formats import LEAST_EDGE, LazyArray, Patchy, parts_of


def broken(values, bad, chunks=None):
    """A volume of which the chunk that holds voxel ``bad`` cannot be read."""

    def read(box):
        if all(s.start <= b < s.stop for s, b in zip(box, bad, strict=True)):
            raise ValueError("checksum")
        return values[box]

    return LazyArray(values.shape, values.dtype, read, chunks=chunks)


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.integers(1, 12)] * 3), st.tuples(*[st.integers(2, 5)] * 3), st.data())
def test_one_chunk_is_left_out_and_no_more(shape, chunks, data):
    values = np.random.default_rng(0).integers(1, 200, shape).astype(np.uint8)
    bad = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
    box = []
    for size in shape:
        low = data.draw(st.integers(0, size - 1))
        box.append(slice(low, data.draw(st.integers(low + 1, size))))
    array = broken(values, bad, chunks)
    patchy = Patchy(array)
    found = patchy[tuple(box)]
    inside = all(s.start <= b < s.stop for s, b in zip(box, bad, strict=True))
    expected = values.copy()
    # LazyArray cuts chunks to the shape; one of one voxel says nothing of chunks.
    steps = [chunk if chunk > 1 else LEAST_EDGE for chunk in array.chunks]
    chunk = [slice(b // n * n, b // n * n + n) for b, n in zip(bad, steps, strict=True)]
    if inside:
        expected[tuple(chunk)] = 0
    np.testing.assert_array_equal(found, expected[tuple(box)])
    assert len(patchy.unread) == inside
    for place, why in patchy.unread:
        assert why == "checksum"
        for got, whole, asked in zip(place, chunk, box, strict=True):
            assert got.start == max(whole.start, asked.start)
            assert got.stop == min(whole.stop, asked.stop)


def test_parts_cover_a_box_once():
    values = np.arange(6 * 70 * 70).reshape(6, 70, 70)
    seen = np.zeros(values.shape, int)
    box = tuple(slice(0, size) for size in values.shape)
    for part, read in parts_of(broken(values, (3, 40, 3)), box):
        seen[part] += 1
        assert isinstance(read, ValueError) or np.array_equal(read, values[part])
    assert (seen == 1).all()


def test_a_whole_volume_is_read_at_once():
    reads = []

    def read(box):
        reads.append(box)
        return np.ones([s.stop - s.start for s in box], np.uint8)

    patchy = Patchy(LazyArray((4, 4, 4), np.uint8, read))
    assert patchy[slice(0, 4), slice(0, 4), slice(0, 2)].sum() == 32
    assert len(reads) == 1 and not patchy.unread
