"""Ranking the blocks of a prediction, against plain NumPy over the whole volume."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densejax.data.formats import LazyArray
from densejax.segmentation.finetune import export as correction_blocks
from densejax.segmentation.finetune.export import (
    ScoredBlocks,
    choose_blocks,
    choose_diverse_blocks,
    score_blocks,
)

sides = st.integers(1, 9).flatmap(lambda v: st.tuples(st.just(v), st.integers(1, v)))


@settings(max_examples=40, deadline=None)
@given(st.tuples(sides, sides, sides), st.integers(0, 3))
def test_scores_are_the_means_whatever_is_read_at_once(layout, seed):
    lengths, shape = zip(*layout, strict=True)
    random = np.random.default_rng(seed)
    doubt = random.integers(0, 256, lengths).astype(np.uint8)
    labels = np.where(random.random(lengths) < 0.01, 255, 1).astype(np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(correction_blocks, "_READ", (3, 4, 5))
        found = score_blocks(doubt, labels, shape=shape)
    expected = []
    for corner in found.corners:
        box = tuple(slice(c, c + n) for c, n in zip(corner, shape, strict=True))
        expected.append(np.nan if (labels[box] == 255).any() else doubt[box].mean() / 255)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-12)
    covered = np.zeros(lengths, bool)
    for corner in found.corners:
        covered[tuple(slice(c, c + n) for c, n in zip(corner, shape, strict=True))] = True
    assert covered.all()


def test_every_voxel_is_read_once_and_never_much_at_a_time(monkeypatch):
    monkeypatch.setattr(correction_blocks, "_READ", (4, 16, 16))
    boxes = []

    def read(box):
        boxes.append(box)
        return np.zeros([part.stop - part.start for part in box], np.uint8)

    lazy = LazyArray((12, 64, 64), np.uint8, read)
    score_blocks(lazy, np.zeros(lazy.shape, np.uint8), shape=(1, 8, 8))
    sizes = [np.prod([part.stop - part.start for part in box]) for box in boxes]
    assert sum(sizes) == lazy.size and max(sizes) == 4 * 16 * 16


def scored(scores, corners, shape=(1, 4, 4)):
    return ScoredBlocks(np.array(corners, np.int32), np.array(scores, float), shape)


def test_ties_go_to_the_lowest_index_and_blocks_without_a_score_are_passed_over():
    corners = [(0, 0, 4 * i) for i in range(5)]
    blocks = scored([0.2, 0.5, np.nan, 0.5, 0.1], corners)
    found = choose_blocks(blocks, count=10, voxel_nm=(1, 1, 1))
    np.testing.assert_array_equal(found, [1, 3, 0, 4])
    found = choose_blocks(blocks, count=1, voxel_nm=(1, 1, 1))
    np.testing.assert_array_equal(found, [1])


def test_chosen_blocks_keep_off_each_other_and_off_taken_ones():
    random = np.random.default_rng(1)
    blocks = score_blocks(
        random.integers(0, 256, (3, 30, 30)).astype(np.uint8),
        np.zeros((3, 30, 30), np.uint8),
        shape=(1, 8, 8),
    )
    taken = [((0, 3, 3), (2, 6, 6))]
    voxel, least = np.array([40.0, 5, 5]), 60.0
    found = choose_blocks(blocks, count=12, voxel_nm=voxel, taken=taken, least_distance_nm=least)
    boxes = [(np.array(c), np.array(s)) for c, s in taken]
    order = np.argsort(-blocks.scores, kind="stable")
    expected = []
    for index in order:
        corner, size = blocks.corners[index], np.array(blocks.shape)
        free = all(
            np.linalg.norm((corner + size / 2 - c - s / 2) * voxel) >= least
            and not np.all((corner < c + s) & (c < corner + size))
            for c, s in boxes
        )
        if free and len(expected) < 12:
            expected.append(index)
            boxes.append((corner, size))
    np.testing.assert_array_equal(found, expected)
    assert 3 < len(found) < 12


def test_diverse_blocks_are_far_apart_and_nearer_only_where_too_few_are_left():
    # The most doubtful place, in eight sections, beside a row of places of little doubt.
    corners = [(z, 0, 0) for z in range(8)] + [(0, 0, 8 * i) for i in range(1, 4)]
    blocks = scored([0.9] * 8 + [0.1, 0.2, 0.3], corners, shape=(1, 8, 8))
    options = {"voxel_nm": (10, 5, 5)}  # the longest side of a block is 40 nm
    found = choose_diverse_blocks(blocks, count=5, **options)
    # Sections 0 and 4 of the place are 40 nm apart, as the neighbours in the row are.
    np.testing.assert_array_equal(found, [0, 4, 10, 9, 8])
    assert choose_blocks(blocks, count=5, **options).tolist() == [0, 1, 2, 3, 4]
    # Half of it for the sixth and seventh, and never section 1 beside section 0.
    found = choose_diverse_blocks(blocks, count=99, **options)
    np.testing.assert_array_equal(found, [0, 2, 4, 6, 10, 9, 8])
    found = choose_diverse_blocks(blocks, count=1, taken=[((1, 2, 2), (1, 8, 8))], **options)
    np.testing.assert_array_equal(found, [5])


def test_a_block_larger_than_the_prediction_and_other_dtypes_are_refused():
    volume = np.zeros((4, 8, 8), np.uint8)
    with pytest.raises(ValueError, match=r"\(5, 4, 4\).*\(4, 8, 8\)"):
        score_blocks(volume, volume, shape=(5, 4, 4))
    with pytest.raises(ValueError, match="float32"):
        score_blocks(volume.astype(np.float32), volume, shape=(1, 4, 4))
    with pytest.raises(ValueError, match=r"\(4, 8, 8\).*\(4, 8, 9\)"):
        score_blocks(volume, np.zeros((4, 8, 9), np.uint8), shape=(1, 4, 4))
