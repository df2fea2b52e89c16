"""Scores of partitions against scikit-image, loops over all pairs, and what must not matter."""

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from densejax.segmentation.evaluation import partitions
from densejax.segmentation.evaluation.partitions import PairCounts, count_pairs


def two(seed, *, shape=(4, 9, 11), ids=6, dtype=np.uint32, noise=0.25):
    """Objects along x, and a prediction that splits, merges, moves and forgets some of them."""
    generator = np.random.default_rng(seed)
    truth = np.repeat(generator.integers(0, ids, shape), 3, axis=-1)
    other = np.repeat(generator.integers(0, ids, shape), 3, axis=-1)
    predicted = np.where(generator.random(truth.shape) < noise, other, (truth * 2) % (ids + 1))
    return truth.astype(dtype), predicted.astype(dtype)


def pairs_by_loops(truth, predicted):
    """Pairs of voxels that are together in the truth, in the prediction, and in both."""
    counts = [0, 0, 0]
    voxels = list(zip(truth.ravel().tolist(), predicted.ravel().tolist(), strict=True))
    for (t, p), (u, q) in itertools.combinations(voxels, 2):
        for i, together in enumerate((t == u, p == q, t == u and p == q)):
            counts[i] += together
    return counts


@pytest.mark.parametrize("seed", range(4))
def test_rand_error_and_variation_equal_scikit_image(seed):
    skimage = pytest.importorskip("skimage.metrics")
    truth, predicted = two(seed, shape=(6, 20, 21), ids=4 + 9 * seed)
    table = count_pairs(truth, predicted)
    # It names precision and recall the other way round.
    error, recall, precision = skimage.adapted_rand_error(truth, predicted)
    np.testing.assert_allclose(
        partitions.adapted_rand(table), (error, precision, recall), rtol=1e-12
    )
    inside = skimage.variation_of_information(truth, predicted, ignore_labels=(0,))
    np.testing.assert_allclose(partitions.variation_of_information(table), inside, rtol=1e-9)
    whole = skimage.variation_of_information(truth, predicted)
    found = partitions.variation_of_information(table, only_foreground=False)
    np.testing.assert_allclose(found, whole, rtol=1e-9)


@pytest.mark.parametrize("background", ["segment", "singletons"])
def test_rand_error_equals_a_loop_over_all_pairs(background):
    truth, predicted = two(5, shape=(2, 5, 6))
    found = partitions.adapted_rand(count_pairs(truth, predicted), background=background)
    inside = truth > 0
    truth, predicted = truth[inside], predicted[inside].astype(np.int64)
    if background == "singletons":
        alone = predicted == 0
        predicted[alone] = 1000 + np.arange(alone.sum())
    true, called, both = pairs_by_loops(truth, predicted)
    expected = (1 - 2 * both / (true + called), both / called, both / true)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_variation_is_the_conditional_entropy_in_bits():
    truth = np.array([1, 1, 1, 1, 2, 2, 2, 2])
    split = partitions.variation_of_information(
        count_pairs(truth, np.array([1, 1, 3, 3, 2, 2, 2, 2]))
    )
    assert split == pytest.approx((0.5, 0.0))  # half of the voxels need one bit more
    merge = partitions.variation_of_information(count_pairs(truth, np.full(8, 7)))
    assert merge == pytest.approx((0.0, 1.0))


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64, np.uint64])
def test_blocks_merge_to_the_whole(dtype):
    truth, predicted = two(1, dtype=dtype)
    if np.dtype(dtype).itemsize == 8:
        truth[truth > 0] += np.asarray(2**40, dtype)
    whole = count_pairs(truth, predicted)
    merger = partitions.PairMerger()
    for block in np.array_split(np.arange(truth.shape[0]), 3):
        for side in (slice(0, 7), slice(7, None)):
            merger.add(count_pairs(truth[block, :, side], predicted[block, :, side]))
    merged = merger.merged()
    for name in ("truth", "predicted", "voxels"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name))
    assert whole.total == truth.size
    ids, counts = np.unique(
        np.stack([truth.ravel(), predicted.ravel()]).astype(np.uint64), axis=1, return_counts=True
    )
    np.testing.assert_array_equal(whole.voxels, counts)
    np.testing.assert_array_equal(np.stack([whole.truth, whole.predicted]), ids)


def test_pieces_of_a_block_are_counted_as_one(monkeypatch):
    truth, predicted = two(2)
    whole = count_pairs(truth, predicted)
    monkeypatch.setattr(partitions, "_PIECE", 17)
    cut = count_pairs(truth, predicted)
    np.testing.assert_array_equal(cut.voxels, whole.voxels)


def test_names_of_objects_do_not_matter():
    truth, predicted = two(3)
    generator = np.random.default_rng(0)
    names = np.concatenate([[0], 1 + generator.permutation(2**33 // 2**20)[:30]]).astype(np.uint64)
    names[1:] += np.uint64(2**40)
    before, after = count_pairs(truth, predicted), count_pairs(names[truth], names[predicted])
    for score in (partitions.adapted_rand, partitions.variation_of_information):
        np.testing.assert_allclose(score(after), score(before), rtol=1e-12)
    np.testing.assert_allclose(
        partitions.match_objects(after), partitions.match_objects(before), rtol=1e-12
    )


@pytest.mark.parametrize(
    ("dtype", "unlabelled"), [(np.int16, -1), (np.int64, -7), (np.uint64, 2**64 - 1)]
)
def test_unlabelled_voxels_never_count(dtype, unlabelled):
    truth, predicted = (ids.astype(dtype) for ids in two(4))
    holes = np.random.default_rng(0).random(truth.shape) < 0.3
    expected = count_pairs(truth[~holes], predicted[~holes])
    truth[holes] = unlabelled
    found = count_pairs(truth, predicted)
    np.testing.assert_array_equal(found.voxels, expected.voxels)
    np.testing.assert_array_equal(found.truth, expected.truth)


@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_matches_equal_the_best_assignment(threshold):
    generator = np.random.default_rng(6)
    truth = np.repeat(np.repeat(generator.integers(0, 40, (6, 6, 6)), 3, 1), 3, 2)
    predicted = np.where(generator.random(truth.shape) < 0.12, 0, truth)
    predicted[:2] = np.where(predicted[:2] > 0, 99, 0)
    (found,) = partitions.match_objects(count_pairs(truth, predicted), thresholds=[threshold])
    true, called = (np.unique(ids[ids > 0]) for ids in (truth, predicted))
    overlaps = np.array(
        [
            [((truth == t) & (predicted == p)).sum() / ((truth == t) | (predicted == p)).sum()]
            for t in true
            for p in called
        ]
    ).reshape(len(true), len(called))
    rows, columns = linear_sum_assignment(-(overlaps > threshold).astype(float))
    chosen = overlaps[rows, columns]
    chosen = chosen[chosen > threshold]
    assert 0 < len(chosen) < len(true)
    matched, missed, invented = len(chosen), len(true) - len(chosen), len(called) - len(chosen)
    assert (found.matched, found.missed, found.invented) == (matched, missed, invented)
    assert found.precision == pytest.approx(matched / len(called))
    assert found.recall == pytest.approx(matched / len(true))
    assert found.average_precision == pytest.approx(matched / (matched + missed + invented))
    assert found.mean_iou == pytest.approx(chosen.mean())
    quality = chosen.sum() / (matched + (missed + invented) / 2)
    assert found.panoptic_quality == pytest.approx(quality)


def test_the_same_partition_is_perfect_and_no_object_is_nan():
    truth, _ = two(0)
    table = count_pairs(truth, truth)
    assert partitions.adapted_rand(table) == (0.0, 1.0, 1.0)
    assert partitions.variation_of_information(table) == (0.0, 0.0)
    assert partitions.match_objects(table)[-1].panoptic_quality == 1.0
    nothing = count_pairs(np.zeros(5, np.int32), np.arange(5))
    assert math.isnan(partitions.adapted_rand(nothing).error)
    assert math.isnan(partitions.variation_of_information(nothing).split)
    assert math.isnan(partitions.match_objects(nothing)[0].recall)
    assert partitions.match_objects(nothing)[0].invented == 4
    alone = count_pairs(np.arange(1, 6), np.arange(1, 6))
    assert partitions.adapted_rand(alone).error == 0.0


def test_counts_beyond_64_bits_are_exact():
    # Two objects of 2**40 voxels, of which the prediction gives 2**20 to the other: the squares
    # need 80 bits.
    big, few = 2**40, 2**20
    table = PairCounts(
        np.array([1, 1, 2], np.uint64),
        np.array([1, 2, 2], np.uint64),
        np.array([big - few, few, big], np.int64),
    )

    def pairs(n):
        return n * (n - 1) // 2

    both = pairs(big - few) + pairs(few) + pairs(big)
    true, called = 2 * pairs(big), pairs(big - few) + pairs(big + few)
    found = partitions.adapted_rand(table)
    assert found.error == pytest.approx(1 - 2 * both / (true + called), rel=1e-9)
    assert found.precision == both / called


def test_a_million_objects():
    ids = np.arange(1, 2**20 + 1, dtype=np.uint64).repeat(4).reshape(64, 256, 256)
    table = count_pairs(ids, (ids + np.uint64(1)) // np.uint64(2))
    assert len(table.voxels) == 2**20
    assert partitions.variation_of_information(table).split == 0
    # All but the first and the last object are merged with their neighbour.
    assert partitions.variation_of_information(table).merge == pytest.approx(1, abs=1e-5)


def test_bad_input_says_so():
    with pytest.raises(ValueError, match=r"truth has shape \(3,\) and predicted has shape \(4,\)"):
        count_pairs(np.zeros(3, int), np.zeros(4, int))
    with pytest.raises(ValueError, match="predicted has dtype float64: expected integer ids"):
        count_pairs(np.zeros(3, int), np.zeros(3))
    with pytest.raises(ValueError, match=r"threshold 0\.4: expected 0\.5"):
        partitions.match_objects(count_pairs(np.ones(3, int), np.ones(3, int)), thresholds=[0.4])
