"""Counting in blocks against scikit-learn and whole-array NumPy, however the volume is cut."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from sklearn import metrics as reference

from densejax import metrics
from densejax.data.formats import LazyArray
from densejax.segmentation import label_blocks
from densejax.segmentation.evaluation import streaming as evaluation
from densejax.segmentation.evaluation.comparisons import agreement
from densejax.segmentation.evaluation.partitions import count_pairs
from densejax.segmentation.label_blocks import _box_voxels, block_boxes, run_blocks
from densejax.segmentation.label_volumes import Labelling, lay_over

VOXEL = (50.0, 10.0, 8.0)
SHAPE = (9, 23, 31)
CLASSES = 5


def labelling(array, *, name="labels", offset=(0, 0, 0), unlabelled=None, chunks=None):
    lazy = LazyArray(array.shape, array.dtype, lambda box: np.array(array[box]), chunks=chunks)
    return Labelling(name, lazy, VOXEL, f"/{name}", offset=offset, unlabelled=unlabelled)


def pair(seed=0, *, shape=SHAPE, right=0.6):
    """Smooth truth with holes, and a prediction in bytes that is right more often than not."""
    generator = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(generator.normal(size=shape), 1.5)
    truth = np.digitize(smooth, np.quantile(smooth, [0.3, 0.6, 0.8, 0.9])).astype(np.int32)
    other = generator.integers(0, CLASSES, shape)
    predicted = np.where(generator.random(shape) < right, truth, other).astype(np.uint8)
    truth[:, :3] = -1
    predicted[-1] = 255
    return truth, predicted


def counted(truth, predicted, **options):
    placed, region = lay_over(
        [
            labelling(truth, chunks=options.pop("chunks", None)),
            labelling(predicted, name="prediction", unlabelled=255, chunks=(4, 8, 8)),
        ]
    )
    return evaluation.count_labels(placed, region, classes=CLASSES, **options)


@pytest.mark.parametrize("voxels", [1, 700, 2**24])
@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64])
def test_tables_equal_sklearn_however_the_volume_is_cut(monkeypatch, voxels, dtype):
    monkeypatch.setattr(evaluation, "BLOCK_VOXELS", voxels)
    truth, predicted = pair()
    found = counted(truth.astype(dtype), predicted)
    both = (truth >= 0) & (predicted != 255)
    expected = reference.confusion_matrix(truth[both], predicted[both], labels=range(CLASSES))
    np.testing.assert_array_equal(found.confusion(), expected)
    assert found.tables[0, 1].sum() == truth.size
    missed = np.bincount(truth[(truth >= 0) & (predicted == 255)], minlength=CLASSES)
    np.testing.assert_array_equal(found.tables[0, 1, :-1, -1], missed)
    np.testing.assert_array_equal(found.tables[1, 0], found.tables[0, 1].T)
    sizes = np.bincount(predicted[predicted != 255], minlength=CLASSES)
    np.testing.assert_array_equal(found.sizes(1), sizes)
    score = reference.adjusted_rand_score(truth[both], predicted[both])
    assert float(metrics.adjusted_rand(found.confusion())) == pytest.approx(score, rel=1e-12)


def test_a_shift_of_labels_and_swapped_classes_are_seen_exactly():
    truth, _ = pair()
    truth[truth < 0] = 0
    swapped = np.array([0, 1, 3, 2, 4], np.int32)[truth]
    table = counted(truth, swapped).confusion()
    sizes = np.bincount(truth.ravel(), minlength=CLASSES)
    expected = np.diag(sizes)
    expected[[2, 3]] = expected[[3, 2]]
    np.testing.assert_array_equal(table, expected.T)
    # The names of the classes are wrong, the division of the voxels is not.
    assert float(metrics.adjusted_rand(table)) == 1
    assert float(metrics.mean_iou(table)) == pytest.approx(3 / 5)


@pytest.mark.parametrize("reach", [0.0, 10.0, 25.0, 120.0])
@pytest.mark.parametrize("voxels", [400, 2**22])
def test_fractions_near_the_cell_equal_the_distance_in_the_whole_volume(monkeypatch, reach, voxels):
    monkeypatch.setattr(evaluation, "_DISTANCE_VOXELS", voxels)
    truth, predicted = pair(1)
    truth[:, :, 12:] = 0
    truth[:, :, 20:] = -1
    found = counted(truth, predicted, cell_mask_nm=reach)
    cell = truth > 0
    near = ndimage.distance_transform_edt(~cell, sampling=VOXEL) <= reach
    inside = predicted[near & (predicted != 255)]
    counts = np.bincount(inside, minlength=CLASSES)
    np.testing.assert_array_equal(found.near[1], counts)
    np.testing.assert_allclose(found.fractions(1)[1:], counts[1:] / counts[1:].sum())
    true = np.bincount(truth[cell], minlength=CLASSES)
    np.testing.assert_allclose(found.fractions(0)[1:], true[1:] / true.sum())
    assert math.isnan(found.fractions(0)[0])


def test_another_background_and_a_volume_without_cell():
    truth, predicted = pair(2)
    found = counted(truth, predicted, background=3)
    cell = (truth >= 0) & (truth != 3)
    true = np.bincount(truth[cell], minlength=CLASSES) / cell.sum()
    np.testing.assert_allclose(np.delete(found.fractions(0), 3), np.delete(true, 3))
    nothing = counted(np.zeros_like(truth), predicted)
    assert np.isnan(nothing.fractions(0)).all() and np.isnan(nothing.fractions(1)).all()


def test_everybody_with_everybody_in_one_pass():
    truth, predicted = pair(3)
    third = np.roll(truth, 2, axis=2).astype(np.int16)
    placed, region = lay_over(
        [
            labelling(truth),
            labelling(predicted, name="prediction", unlabelled=255),
            labelling(third, name="third"),
        ]
    )
    found = agreement(
        evaluation.count_labels(placed, region, classes=CLASSES), organelles=(2, 3, 4)
    )
    arrays = [truth, np.where(predicted == 255, -1, predicted.astype(int)), third]
    for i, a in enumerate(arrays):
        for j, b in enumerate(arrays):
            both = (a >= 0) & (b >= 0)
            ious = reference.jaccard_score(
                a[both], b[both], average=None, labels=range(CLASSES), zero_division=0
            )
            assert found.scores["miou_all"][i, j] == pytest.approx(ious.mean())
            assert found.scores["miou_organelles"][i, j] == pytest.approx(ious[2:].mean())
            assert found.scores["accuracy"][i, j] == pytest.approx((a[both] == b[both]).mean())
            rand = reference.adjusted_rand_score(a[both], b[both])
            assert found.scores["adjusted_rand"][i, j] == pytest.approx(rand)
            np.testing.assert_allclose(found.class_iou[i, j], ious)
    assert found.pairs == [(0, 1), (0, 2), (1, 2)]


def test_only_what_both_cover_is_compared():
    truth, predicted = pair(4)
    part = truth[2:6, 5:20, 7:29]
    placed, region = lay_over(
        [
            labelling(predicted, name="prediction", offset=(10, 0, 0), unlabelled=255),
            labelling(part, offset=(12, 5, 7)),
        ]
    )
    assert region.start == (12, 5, 7) and region.shape == part.shape
    found = evaluation.count_labels(placed[::-1], region, classes=CLASSES)
    inside = predicted[2:6, 5:20, 7:29]
    both = (part >= 0) & (inside != 255)
    expected = reference.confusion_matrix(part[both], inside[both], labels=range(CLASSES))
    np.testing.assert_array_equal(found.confusion(), expected)


def test_objects_are_counted_where_something_was_predicted():
    generator = np.random.default_rng(5)
    truth = np.repeat(generator.integers(0, 300, SHAPE), 2, axis=2)
    found = np.where(generator.random(truth.shape) < 0.9, truth, 0).astype(np.uint32)
    classes = np.where(generator.random(truth.shape) < 0.5, 255, 1).astype(np.uint8)
    placed, region = lay_over(
        [
            labelling(found, chunks=(4, 8, 8)),
            labelling(truth),
            labelling(classes, unlabelled=255),
        ]
    )
    table = evaluation.count_objects(placed[0], placed[1], region, outside=placed[2])
    expected = count_pairs(truth[classes != 255], found[classes != 255])
    np.testing.assert_array_equal(table.voxels, expected.voxels)
    whole = evaluation.count_objects(placed[0], placed[1], region)
    np.testing.assert_array_equal(whole.voxels, count_pairs(truth, found).voxels)


@pytest.mark.parametrize(
    ("value", "unlabelled", "message"),
    [
        (5, None, r"label 5 at \(z, y, x\) \(4, 10, 20\), in the block z 0:9.*expected 0\.\.4"),
        (-2, None, r"label -2 at \(z, y, x\) \(4, 10, 20\)"),
        (7, 6, "expected 0..4, or -1 or 6 for not labelled"),
    ],
)
def test_a_label_out_of_range_is_named_with_its_block(value, unlabelled, message):
    truth, predicted = pair()
    truth[4, 10, 20] = value
    placed, region = lay_over(
        [labelling(truth, unlabelled=unlabelled), labelling(predicted, unlabelled=255)]
    )
    with pytest.raises(ValueError, match=message):
        evaluation.count_labels(placed, region, classes=CLASSES)


def test_a_class_may_mean_not_labelled():
    truth, predicted = pair(6)
    zero = labelling(truth, unlabelled=0)
    placed, region = lay_over([zero, labelling(predicted, unlabelled=255)])
    found = evaluation.count_labels(placed, region, classes=CLASSES)
    both = (truth > 0) & (predicted != 255)
    expected = reference.confusion_matrix(truth[both], predicted[both], labels=range(CLASSES))
    np.testing.assert_array_equal(found.confusion(), expected)
    masks = labelling(predicted == 1, name="mask"), labelling(predicted < 3)
    both_masks = evaluation.count_labels(*lay_over(masks), classes=2)
    assert both_masks.sizes(0)[1] == (predicted == 1).sum()


def test_no_labelled_voxel_at_all_is_refused():
    truth, predicted = pair()
    with pytest.raises(ValueError, match="labels /labels: no labelled voxel"):
        counted(np.full_like(truth, -1), predicted)


def test_a_killed_count_goes_on_with_the_blocks_that_are_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(evaluation, "BLOCK_VOXELS", 500)
    truth, predicted = pair()
    whole = counted(truth, predicted)
    read: list[int] = []
    classes_of = evaluation.read_classes

    def dies(*args):
        if len(read) >= 9:
            raise KeyboardInterrupt
        read.append(1)
        return classes_of(*args)

    monkeypatch.setattr(evaluation, "read_classes", dies)
    with pytest.raises(KeyboardInterrupt):
        counted(truth, predicted, folder=tmp_path, threads=1)
    kept = len(list(tmp_path.glob("*.npz")))
    assert 1 <= kept <= 4
    (tmp_path / ".000007.npz.1").write_bytes(b"half of a block")
    monkeypatch.setattr(evaluation, "read_classes", classes_of)
    again = counted(truth, predicted, folder=tmp_path)
    np.testing.assert_array_equal(again.tables, whole.tables)
    np.testing.assert_array_equal(again.near, whole.near)


@pytest.mark.parametrize("seed", range(30))
def test_blocks_cover_every_voxel_once(seed):
    generator = np.random.default_rng(seed)
    shape = generator.integers(1, 40, 3)
    chunks = generator.integers(1, 20, (generator.integers(0, 3), 3))
    origin = generator.integers(0, 30, 3)
    voxels = int(generator.choice([1, 100, 3000, 10**6]))
    boxes = block_boxes(shape.tolist(), chunks=chunks.tolist(), origin=origin, voxels=voxels)
    seen = np.zeros(shape, int)
    for box in boxes:
        assert _box_voxels(box) == seen[box].size > 0
        seen[box] += 1
    assert (seen == 1).all()
    if len(chunks) == 1:
        for box in boxes:
            for side, start, size, end in zip(box, origin, chunks[0], shape, strict=True):
                assert side.start == 0 or (side.start + start) % size == 0
                assert side.stop == end or (side.stop + start) % size == 0


def test_a_chunk_that_no_memory_holds_is_cut(monkeypatch):
    monkeypatch.setattr(label_blocks, "LARGEST_CHUNK", 1000)
    boxes = block_boxes((40, 40, 40), chunks=[(40, 40, 40)], voxels=10)
    assert max(map(_box_voxels, boxes)) <= 1000
    assert sum(map(_box_voxels, boxes)) == 40**3


def test_results_come_in_order_and_an_error_ends_the_work():
    boxes = block_boxes((40, 1, 1), voxels=1)
    starts = run_blocks(boxes, lambda box: {"z": np.array(box[0].start)}, what="t", threads=4)
    assert [int(tables["z"]) for tables in starts] == list(range(40))

    def fails(box):
        if box[0].start == 3:
            raise ValueError("block 3 is broken")
        return {}

    with pytest.raises(ValueError, match="block 3 is broken"):
        list(run_blocks(boxes, fails, what="t", threads=2))


def test_memory_holds_a_few_blocks_only(monkeypatch):
    monkeypatch.setattr(evaluation, "BLOCK_VOXELS", 100)
    truth, predicted = pair()
    largest = 0

    def read(box):
        nonlocal largest
        largest = max(largest, truth[box].size)
        return np.array(truth[box])

    lazy = labelling(truth)
    lazy = replace(lazy, array=LazyArray(truth.shape, truth.dtype, read))
    placed, region = lay_over([lazy, labelling(predicted, unlabelled=255)])
    evaluation.count_labels(placed, region, classes=CLASSES)
    assert largest <= 100


@pytest.mark.parametrize("classes", [2, 7, 15, 16, 254])
@pytest.mark.parametrize("size", [1, 2**18, 2**18 + 3])
def test_pair_tables_of_any_number_of_classes_and_voxels(classes, size):
    generator = np.random.default_rng(classes)
    first, second = (generator.integers(-1, classes, size).astype(np.uint8) for _ in range(2))
    kept = first.copy()
    found = evaluation._pair_table(first, second, classes)
    expected = np.zeros((classes + 1, classes + 1), np.int64)
    np.add.at(expected, (np.minimum(first, classes), np.minimum(second, classes)), 1)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(first, kept)
