"""The vote of nearest neighbours against scikit-learn's."""

import numpy as np
import pytest

from densejax.classification.contrastive import knn_accuracy, knn_votes


def features(seed, n, d=6):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def labels(seed, n, classes=4):
    return np.random.default_rng(seed).integers(0, classes, n).astype(np.int32)


@pytest.mark.parametrize("neighbours", [1, 7, 40])
def test_votes_are_those_of_scikit_learn(neighbours):
    neighbors = pytest.importorskip("sklearn.neighbors")
    queries, bank, bank_labels = features(0, 31), features(1, 40), labels(2, 40)
    theirs = neighbors.KNeighborsClassifier(
        neighbours, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.1), algorithm="brute"
    ).fit(bank, bank_labels)
    votes = np.asarray(knn_votes(queries, bank, bank_labels, classes=4, neighbours=neighbours))
    shares = votes / votes.sum(1, keepdims=True)
    np.testing.assert_allclose(shares, theirs.predict_proba(queries), rtol=1e-3, atol=1e-5)
    truth = labels(3, 31)
    found = knn_accuracy(queries, truth, bank, bank_labels, classes=4, neighbours=neighbours)
    assert float(found) == pytest.approx(theirs.score(queries, truth))


def test_what_is_not_labelled_neither_votes_nor_counts():
    queries, bank, bank_labels = features(0, 9), features(1, 20), labels(2, 20)
    hidden = bank_labels.copy()
    hidden[::3] = -1
    kept = hidden >= 0
    all_of = knn_votes(queries, bank, hidden, classes=4, neighbours=20)
    some = knn_votes(queries, bank[kept], hidden[kept], classes=4, neighbours=20)
    np.testing.assert_allclose(all_of, some, rtol=1e-5)
    truth = labels(3, 9)
    truth[4:] = -1
    found = knn_accuracy(queries, truth, bank, bank_labels, classes=4)
    expected = knn_accuracy(queries[:4], truth[:4], bank, bank_labels, classes=4)
    assert float(found) == float(expected)


def test_equal_neighbours_are_taken_from_below():
    bank = np.ones((4, 2), np.float32)
    votes = knn_votes(bank[:1], bank, np.int32([2, 1, 0, 0]), classes=3, neighbours=2)
    np.testing.assert_allclose(votes, [[0, 1, 1]], rtol=1e-5)


def test_votes_compile_and_map(assert_modes_agree):
    def of_arrays(queries, bank):
        return knn_votes(queries, bank, labels(2, 12), classes=4, neighbours=5)

    assert_modes_agree(of_arrays, features(0, 5), features(1, 12), rtol=1e-4)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"\(3, 6\).*\(4, 5\)"):
        knn_votes(features(0, 3), features(0, 4, 5), labels(0, 4), classes=4)
