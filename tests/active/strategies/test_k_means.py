"""K-means against scikit-learn and brute force."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from densejax.active.pool import Pool
from densejax.active.strategies import k_means as kmeans
from densejax.active.strategies.k_means import cluster, k_means

KEY = jax.random.key(0)


def blobs(seed: int, n: int, d: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, k, n)
    x = 10 * rng.normal(size=(k, d))[truth] + rng.normal(size=(n, d))
    return x.astype(np.float32), truth


def inertia(x: np.ndarray, centres: np.ndarray, assignment: np.ndarray) -> float:
    return float(((x - np.asarray(centres)[np.asarray(assignment)]) ** 2).sum())


@pytest.mark.parametrize("weighted", [False, True])
def test_lloyd_from_one_start_ends_where_scikit_learn_does(
    weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, _ = blobs(0, 500, 4, 6)
    weights = np.random.default_rng(1).uniform(0, 3, 500).astype(np.float32) if weighted else None
    start, _ = cluster(KEY, x, 12, weights=weights, iterations=0)
    monkeypatch.setattr(kmeans, "BLOCK_BYTES", 12 * 4 * 70)  # several blocks, the last padded
    centres, assignment = cluster(KEY, x, 12, weights=weights, iterations=300)
    assert centres.shape == (12, 4) and assignment.dtype == np.int32
    reference = KMeans(12, init=np.asarray(start), n_init=1, max_iter=300, tol=0, algorithm="lloyd")
    reference.fit(x, sample_weight=weights)
    np.testing.assert_array_equal(assignment, reference.labels_)
    np.testing.assert_allclose(centres, reference.cluster_centers_, rtol=1e-4, atol=1e-4)


def test_clusters_far_from_the_origin_are_found() -> None:
    x, truth = blobs(2, 400, 3, 5)
    centres, assignment = cluster(KEY, x + 1000, 5)
    pairs = np.unique(np.stack([truth, np.asarray(assignment)]), axis=1)
    assert pairs.shape[1] == 5
    for c in range(5):
        members = np.asarray(assignment) == c
        np.testing.assert_allclose(centres[c], x[members].mean(axis=0) + 1000, atol=1e-2)


def test_as_good_as_scikit_learn_from_its_own_start() -> None:
    x = np.random.default_rng(3).normal(size=(600, 5)).astype(np.float32)
    ours = [inertia(x, *cluster(jax.random.key(i), x, 25)) for i in range(5)]
    theirs = [KMeans(25, n_init=1, random_state=i).fit(x).inertia_ for i in range(5)]
    assert np.mean(ours) < 1.03 * np.mean(theirs)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["random", "equal", "few"]))
def test_assignment_is_the_nearest_and_centres_are_means(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(40, 2)).astype(np.float32)
    if kind == "equal":
        x[:] = x[0]
    if kind == "few":
        x = x[rng.integers(0, 3, 40)]
    centres, assignment = cluster(jax.random.key(seed), x, 6, iterations=200)
    centres, assignment = np.asarray(centres), np.asarray(assignment)
    distances = ((x[:, None] - centres) ** 2).sum(axis=-1)
    np.testing.assert_allclose(distances[np.arange(40), assignment], distances.min(1), atol=1e-4)
    for c in np.unique(assignment):
        np.testing.assert_allclose(centres[c], x[assignment == c].mean(axis=0), atol=1e-4)
    if kind == "random":
        assert len(np.unique(assignment)) == 6


def test_samples_without_weight_pull_nothing() -> None:
    x, _ = blobs(4, 100, 2, 3)
    far = np.concatenate([x, np.full((5, 2), 1e3, np.float32)])
    weights = np.r_[np.ones(100), np.zeros(5)].astype(np.float32)
    centres, assignment = cluster(KEY, far, 3, weights=weights)
    assert np.abs(np.asarray(centres)).max() < 100 and assignment.shape == (105,)


def test_an_empty_cluster_restarts_at_the_furthest_sample() -> None:
    x = np.float32([[0], [1], [10], [11], [50]])
    centres = np.float32([[5.5], [1000.0], [50.0]])
    moved = kmeans._refill(x[None], ((x - 5.5) ** 2).T, centres, np.float32([4, 0, 1]))
    np.testing.assert_array_equal(moved, [[5.5], [50.0], [50.0]])
    stay = kmeans._refill(x[None], np.zeros((1, 5)), centres, np.float32([4, 0, 1]))
    np.testing.assert_array_equal(stay, centres)


def test_the_query_is_the_nearest_of_each_centre() -> None:
    x, _ = blobs(5, 300, 3, 8)
    labelled = np.arange(300) % 7 == 0
    pool = Pool(features=x, labelled=labelled)
    found = k_means(KEY, pool, 20)
    free = np.flatnonzero(~labelled)
    reference, _ = cluster(KEY, x[free], 20)
    distances = np.sqrt(((x[free][:, None] - np.asarray(reference)) ** 2).sum(axis=-1))
    # Greedy on the whole matrix: the closest pair of a centre and a sample goes first.
    expected = np.full(20, -1)
    for flat in np.argsort(distances.T, axis=None, kind="stable"):
        c, i = divmod(int(flat), len(free))
        if expected[c] < 0 and free[i] not in expected:
            expected[c] = free[i]
    np.testing.assert_array_equal(found.indices, expected)
    nearest = np.linalg.norm(x[expected] - np.asarray(reference), axis=1)
    np.testing.assert_allclose(found.scores, nearest, rtol=1e-4, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.booleans(), st.booleans())
def test_each_sample_once_and_none_forbidden(seed: int, equal: bool, whole: bool) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(30, 2)).astype(np.float32)
    if equal:
        x[:] = 1
    labelled, held_out = np.arange(30) % 5 == 0, np.arange(30) % 5 == 1
    pool = Pool(features=x, labelled=labelled, held_out=held_out)
    budget = 18 if whole else 5
    found = k_means(jax.random.key(seed), pool, budget)
    assert found.indices.dtype == np.int64 and found.scores.dtype == np.float32
    assert len(np.unique(found.indices)) == budget and pool.available[found.indices].all()


def test_refusals() -> None:
    x = np.ones((10, 2), np.float32)
    for k in (0, 11):
        with pytest.raises(ValueError, match="k "):
            cluster(KEY, x, k)
    with pytest.raises(ValueError, match="features"):
        cluster(KEY, x[0], 1)
    with pytest.raises(ValueError, match="row 3"):
        cluster(KEY, np.where(np.arange(10)[:, None] == 3, np.nan, x), 2)
    for weights in (np.zeros(10), -np.ones(10), np.ones(9), np.full(10, np.nan)):
        with pytest.raises(ValueError, match="weights"):
            cluster(KEY, x, 2, weights=weights)
    with pytest.raises(ValueError, match="iterations"):
        cluster(KEY, x, 2, iterations=-1)
    with pytest.raises(ValueError, match="budget"):
        k_means(KEY, Pool(features=x), 11)
    with pytest.raises(ValueError, match="features"):
        k_means(KEY, Pool(logits=x), 2)
    assert len(k_means(KEY, Pool(features=x), 0).indices) == 0
