"""Every score against scikit-learn, and the properties that follow from counting."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as reference

from densejax import metrics

CLASSES = 7


def sample(seed: int, *, shape: tuple[int, ...] = (4, 30, 31), right: float = 0.6):
    """Labels and predictions that agree more often than by chance."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, shape, dtype=np.int32)
    noise = generator.integers(0, CLASSES, shape, dtype=np.int32)
    return labels, np.where(generator.random(shape) < right, labels, noise)


def count(labels, predictions, classes=CLASSES):
    return metrics.confusion_counts(labels, predictions, classes=classes)


@pytest.mark.parametrize("mode", ["plain", "jit", "vmap", "map"])
def test_counts_equal_sklearn_in_every_mode(mode):
    labels, predictions = sample(0)
    labels[:, ::3] = -1
    modes: dict[str, Any] = {
        "plain": lambda t, p: jnp.stack([count(a, b) for a, b in zip(t, p, strict=True)]),
        "jit": lambda t, p: jnp.stack([jax.jit(count)(a, b) for a, b in zip(t, p, strict=True)]),
        "vmap": jax.jit(jax.vmap(count)),
        "map": jax.jit(lambda t, p: jax.lax.map(lambda pair: count(*pair), (t, p))),
    }
    found = modes[mode](jnp.asarray(labels), jnp.asarray(predictions))
    assert found.dtype == jnp.int32
    for table, truth, predicted in zip(found, labels, predictions, strict=True):
        seen = truth >= 0
        expected = reference.confusion_matrix(truth[seen], predicted[seen], labels=range(CLASSES))
        np.testing.assert_array_equal(table, expected)


@pytest.mark.parametrize("chunk", [7, 1000, 2**20])
def test_accelerator_path_counts_the_same(monkeypatch, chunk):
    monkeypatch.setattr(metrics, "_CHUNK", chunk)
    labels, predictions = (jnp.asarray(a.reshape(-1)) for a in sample(1, shape=(3, 17, 11)))
    labels = labels.at[::5].set(CLASSES)
    by_product = metrics._counts_by_product(labels, predictions, CLASSES)
    by_scatter = metrics._counts_by_scatter(labels, predictions, CLASSES)
    np.testing.assert_array_equal(by_product, by_scatter)


def test_values_out_of_range_never_count():
    labels = np.array([0, 1, -1, 2, 1, -2], np.int32)
    predictions = np.array([0, 2, 1, 1, 1, 0], np.int32)
    np.testing.assert_array_equal(count(labels, predictions, 2), [[1, 0], [0, 1]])
    assert count(labels[:0], predictions[:0], 2).sum() == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int64])
def test_counts_of_narrow_types_do_not_wrap(dtype):
    labels = np.full(500, 39, dtype)
    table = count(labels, labels, 40)
    assert table[39, 39] == 500 and table.sum() == 500


@pytest.mark.parametrize("host", [True, False])
def test_scores_equal_sklearn(host):
    labels, predictions = sample(2)
    table = count(labels, predictions)
    table = np.asarray(table) if host else table
    t, p = labels.reshape(-1), predictions.reshape(-1)
    tolerance: dict[str, Any] = {"rtol": 1e-12} if host else {"rtol": 2e-5}
    jaccard = reference.jaccard_score(t, p, average=None)
    np.testing.assert_allclose(metrics.iou(table), jaccard, **tolerance)
    np.testing.assert_allclose(metrics.mean_iou(table), jaccard.mean(), **tolerance)
    f1 = reference.f1_score(t, p, average=None)
    np.testing.assert_allclose(metrics.dice(table), f1, **tolerance)
    organelles = reference.jaccard_score(t, p, average="macro", labels=[2, 3, 4, 5, 6])
    found = metrics.mean_iou(table, classes=(2, 3, 4, 5, 6))
    np.testing.assert_allclose(found, organelles, **tolerance)
    np.testing.assert_allclose(metrics.accuracy(table), reference.accuracy_score(t, p), **tolerance)
    rows = reference.confusion_matrix(t, p, normalize="true")
    np.testing.assert_allclose(metrics.normalised_confusion(table), rows, **tolerance)
    ari = reference.adjusted_rand_score(t, p)
    np.testing.assert_allclose(metrics.adjusted_rand(table), ari, **tolerance)


def test_scores_are_mapped_over_leading_axes_and_traceable():
    tables = jnp.stack([count(*sample(s, right=r)) for s, r in ((3, 0.9), (4, 0.2))])
    for score in (
        metrics.iou,
        metrics.dice,
        metrics.mean_iou,
        metrics.accuracy,
        metrics.normalised_confusion,
        metrics.adjusted_rand,
    ):
        one_by_one = np.stack([score(t) for t in tables])
        np.testing.assert_allclose(score(tables), one_by_one, rtol=1e-6)
        np.testing.assert_allclose(jax.jit(jax.vmap(score))(tables), one_by_one, rtol=1e-5)
        np.testing.assert_allclose(score(np.asarray(tables)), one_by_one, rtol=1e-4)


@pytest.mark.parametrize("host", [True, False])
def test_absent_classes_are_nan_and_skipped(host):
    table = count(np.array([0, 0, 1, 1], np.int32), np.array([0, 1, 1, 1], np.int32), 4)
    table = np.asarray(table) if host else table
    np.testing.assert_allclose(metrics.iou(table), [1 / 2, 2 / 3, np.nan, np.nan], rtol=1e-6)
    np.testing.assert_allclose(metrics.dice(table), [2 / 3, 4 / 5, np.nan, np.nan], rtol=1e-6)
    np.testing.assert_allclose(metrics.mean_iou(table), 7 / 12, rtol=1e-6)
    assert np.isnan(metrics.mean_iou(table, classes=(2, 3)))
    empty = table * 0
    assert np.isnan(metrics.accuracy(empty)) and np.isnan(metrics.adjusted_rand(empty))
    assert np.isnan(metrics.normalised_confusion(empty)).all()


def test_names_of_classes_do_not_matter():
    labels, predictions = sample(5)
    order = np.random.default_rng(6).permutation(CLASSES).astype(np.int32)
    table, renamed = count(labels, predictions), count(order[labels], order[predictions])
    np.testing.assert_array_equal(np.asarray(renamed)[np.ix_(order, order)], table)
    np.testing.assert_allclose(metrics.mean_iou(renamed), metrics.mean_iou(table), rtol=1e-6)
    # The Rand index does not even mind when only one side is renamed.
    one_side = np.asarray(count(labels, order[predictions]))
    assert metrics.adjusted_rand(one_side) == metrics.adjusted_rand(np.asarray(table))


@pytest.mark.parametrize(
    ("truth", "predicted"),
    [
        ([0, 0, 0], [0, 0, 0]),
        ([0, 0, 0], [1, 1, 1]),
        ([0, 1, 2], [0, 1, 2]),
        ([0, 1, 2], [2, 0, 1]),
        ([0, 0, 1], [0, 1, 1]),
        ([0, 1, 0, 1], [0, 0, 1, 1]),
        ([0, 0, 0, 0], [0, 0, 1, 1]),
        ([2], [1]),
    ],
)
def test_rand_index_of_small_partitions(truth, predicted):
    expected = reference.adjusted_rand_score(truth, predicted)
    table = count(np.array(truth, np.int32), np.array(predicted, np.int32), 3)
    assert metrics.adjusted_rand(np.asarray(table)) == pytest.approx(expected, abs=1e-12)
    assert metrics.adjusted_rand(table) == pytest.approx(expected, abs=1e-5)


def test_merged_volumes_pass_thirty_two_bits():
    table = np.asarray(count(*sample(7)))
    large = metrics.merge_counts([np.full_like(table, 2**30), table * 100_000] * 3)
    assert large.dtype == np.int64
    assert int(large.sum()) == 3 * (2**30 * 49 + 100_000 * int(table.sum()))
    assert int(large.sum()) > 2**32
    scaled = metrics.merge_counts([table] * 4)
    np.testing.assert_allclose(metrics.iou(scaled), metrics.iou(table), rtol=1e-15)
    # 1e12 voxels: the pairs pass 64 bits; the index of equal proportions tends to a limit.
    huge = table.astype(np.int64) * 10**9
    assert metrics.adjusted_rand(huge) == pytest.approx(metrics.adjusted_rand(table), abs=5e-3)


def test_windows_merged_are_the_whole():
    labels, predictions = sample(8)
    parts = [count(a, b) for a, b in zip(labels, predictions, strict=True)]
    np.testing.assert_array_equal(metrics.merge_counts(parts), count(labels, predictions))


def test_published_rule_drops_what_lies_outside_the_cell():
    labels, predictions = sample(9)
    inside = labels != 0
    jaccard = reference.jaccard_score(
        labels[inside], predictions[inside], average="macro", labels=[2, 3, 4, 5, 6]
    )
    table = metrics.without_truth(count(labels, predictions), classes=(0,))
    np.testing.assert_allclose(metrics.mean_iou(table, classes=(2, 3, 4, 5, 6)), jaccard, rtol=1e-6)


def test_errors_say_what_was_found():
    labels, predictions = sample(10)
    with pytest.raises(ValueError, match="same shape"):
        count(labels, predictions[:1])
    with pytest.raises(ValueError, match="predictions has dtype float32"):
        count(labels, predictions.astype(np.float32))
    with pytest.raises(ValueError, match="at least 1"):
        count(labels, predictions, 0)
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        metrics.iou(np.zeros((2, 3), int))
    with pytest.raises(ValueError, match=r"0\.\.6"):
        metrics.mean_iou(count(labels, predictions), classes=(7,))
    with pytest.raises(ValueError, match="at least one"):
        metrics.merge_counts([])
    with pytest.raises(ValueError, match="first"):
        metrics.merge_counts([np.eye(2), np.eye(3)])
