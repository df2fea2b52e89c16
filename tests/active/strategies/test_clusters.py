"""DropQuery and Cluster-Margin against the algorithms written out, and SciPy's linkage."""

from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage

from densejax.active import pool as pool_module
from densejax.active.pool import Pool
from densejax.active.scores import evaluate
from densejax.active.scores import margin as margin_score
from densejax.active.strategies.cluster_margin import agglomerate, cluster_margin
from densejax.active.strategies.dropquery import dropquery
from densejax.active.strategies.k_means import k_means

KEY = jax.random.key(1)


@st.composite
def pools(draw):
    n, d, c = draw(st.sampled_from([1, 3, 50])), 4, draw(st.sampled_from([2, 5]))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    x = rng.normal(size=(n, d))
    kind = draw(st.sampled_from(["random", "duplicates", "one"]))
    if kind == "duplicates":
        x = x[rng.integers(0, max(1, n // 4), n)]
    if kind == "one":
        x = np.repeat(x[:1], n, axis=0)
    state = rng.integers(0, draw(st.sampled_from([1, 3, 8])), n)
    return Pool(
        features=x.astype(np.float32),
        kernel=rng.normal(size=(d, c)).astype(np.float32),
        bias=rng.normal(size=c).astype(np.float32),
        labelled=state == 1,
        held_out=state == 2,
    )


def shares(pool, share):
    return round(share * int(pool.available.sum()))


def check_valid(pool, budget, found):
    assert found.indices.shape == found.scores.shape == (budget,)
    assert found.indices.dtype == np.int64 and found.scores.dtype == np.float32
    assert len(set(found.indices.tolist())) == budget
    assert pool.available[found.indices].all()


@partial(jax.jit, static_argnums=2)
def masks(key, rows, d):
    """The features that a pass keeps, by the documented keys: a row and a pass have their own."""
    keep = partial(jax.random.bernoulli, p=0.25, shape=(d,))
    return jax.vmap(lambda i: keep(jax.random.fold_in(key, i)))(rows)


def reference_disagreements(pool, passes):
    dropout, centres = jax.random.split(KEY)
    x, w = pool.features.astype(np.float64), pool.kernel.astype(np.float64)
    clean = (x @ w + pool.bias).argmax(axis=1)
    differ = np.zeros(pool.size, int)
    for t in range(passes):
        keep = np.asarray(masks(jax.random.fold_in(dropout, t), np.arange(len(x)), x.shape[1]))
        differ += (x * keep / 0.25 @ w + pool.bias).argmax(axis=1) != clean
    return differ, centres


@settings(max_examples=8, deadline=None)
@given(pools(), st.sampled_from([0, 0.1, 0.5, 1]), st.sampled_from([3, 4]))
def test_dropquery(pool, share, passes):
    budget = shares(pool, share)
    found = dropquery(KEY, pool, budget, passes=passes)
    check_valid(pool, budget, found)
    differ, centres = reference_disagreements(pool, passes)
    np.testing.assert_allclose(found.scores, differ[found.indices] / passes, rtol=1e-6)
    candidates = np.flatnonzero(pool.available & (differ > passes / 2))
    if candidates.size < budget:
        np.testing.assert_array_equal(found.indices[: candidates.size], candidates)
    else:
        assert set(found.indices) <= set(candidates)
        alone = k_means(centres, Pool(features=pool.features[candidates]), budget).indices
        np.testing.assert_array_equal(found.indices, candidates[alone])


def test_dropquery_without_dropout_is_k_means():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 4)).astype(np.float32)
    pool = Pool(features=x, kernel=np.eye(4, dtype=np.float32))
    found = dropquery(KEY, pool, 5, rate=0.0)
    expected = k_means(jax.random.split(KEY)[1], Pool(features=x), 5)
    np.testing.assert_array_equal(found.indices, expected.indices)
    assert (found.scores == 0).all()


def test_chunks_do_not_matter(monkeypatch):
    rng = np.random.default_rng(0)
    pool = Pool(
        features=rng.normal(size=(70, 6)).astype(np.float32),
        kernel=rng.normal(size=(6, 5)).astype(np.float32),
        held_out=np.arange(70) % 9 == 0,
    )
    whole = [dropquery(KEY, pool, 10), cluster_margin(KEY, pool, 10, ratio=3)]
    monkeypatch.setattr(pool_module, "CHUNK_BYTES", 4 * 6 * 8)
    parts = [dropquery(KEY, pool, 10), cluster_margin(KEY, pool, 10, ratio=3)]
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(a.indices, b.indices)
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-6)


def reference_margins(pool):
    z = pool.features.astype(np.float64) @ pool.kernel + pool.bias
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p = np.sort(p / p.sum(axis=1, keepdims=True), axis=1)
    return p[:, -1] - p[:, -2] if p.shape[1] > 1 else np.ones(pool.size)


def reference_turns(candidates, groups, rank, budget):
    """``candidates`` in the order of preference ``rank`` within their groups."""
    waiting: dict[int, list] = {g: [] for g in groups[candidates]}
    for i in sorted(candidates, key=lambda i: rank[i]):
        waiting[groups[i]].append(i)
    order = sorted(waiting, key=lambda g: (len(waiting[g]), g))
    chosen: list[int] = []
    while len(chosen) < budget:
        for g in order:
            if waiting[g] and len(chosen) < budget:
                chosen.append(waiting[g].pop(0))
    return chosen


@settings(max_examples=40, deadline=None)
@given(pools(), st.sampled_from([0, 0.1, 0.5, 1]), st.sampled_from([1, 2, 10]))
def test_cluster_margin_with_given_groups(pool, share, ratio):
    budget = shares(pool, share)
    groups = np.random.default_rng(0).integers(-3, 4, pool.size).astype(np.int32)
    found = cluster_margin(KEY, pool, budget, ratio=ratio, groups=groups, within="margin")
    check_valid(pool, budget, found)
    expected = reference_margins(pool)
    np.testing.assert_allclose(found.scores, expected[found.indices], atol=1e-5)
    # The order of equal margins is that of float32, so that duplicates agree.
    margin = evaluate(margin_score(), pool)
    np.testing.assert_allclose(margin, expected, atol=1e-5)
    free = np.flatnonzero(pool.available)
    few = free[np.argsort(margin[free], kind="stable")][: int(np.ceil(ratio * budget))]
    rank = {i: t for t, i in enumerate(few)}
    np.testing.assert_array_equal(found.indices, reference_turns(few, groups, rank, budget))


@settings(max_examples=12, deadline=None)
@given(pools(), st.sampled_from([0.1, 0.5, 1]))
def test_cluster_margin_draws_within_a_cluster(pool, share):
    """The groups of the picks are those of the round robin, whichever sample is drawn."""
    budget = shares(pool, share)
    groups = np.random.default_rng(0).integers(0, 4, pool.size).astype(np.int32)
    drawn = cluster_margin(KEY, pool, budget, ratio=2, groups=groups)
    least = cluster_margin(KEY, pool, budget, ratio=2, groups=groups, within="margin")
    check_valid(pool, budget, drawn)
    np.testing.assert_array_equal(groups[drawn.indices], groups[least.indices])


def test_draws_are_uniform():
    pool = Pool(probabilities=np.full((4, 2), 0.5, np.float32))
    groups = np.zeros(4, np.int32)
    picks = [
        cluster_margin(k, pool, 1, groups=groups).indices[0] for k in jax.random.split(KEY, 200)
    ]
    assert np.bincount(picks, minlength=4).min() > 25


def test_agglomerate_is_average_linkage():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3)).astype(np.float32)
    held = np.arange(40) % 7 == 0
    found = agglomerate(KEY, Pool(features=x, held_out=held), 6)
    assert (found[held] == -1).all()
    expected = fcluster(linkage(x[~held].astype(np.float64), "average"), 6, "maxclust")
    same = found[~held][:, None] == found[~held]
    np.testing.assert_array_equal(same, expected[:, None] == expected)


def test_agglomerate_of_a_large_pool_is_k_means():
    x = np.repeat(np.array([[0, 0], [9, 0], [0, 9]], np.float32), 20, axis=0)
    found = agglomerate(KEY, Pool(features=x), 3, limit=30)
    np.testing.assert_array_equal(found[::20][:, None] == found, np.eye(3).repeat(20, 1) == 1)


@pytest.mark.parametrize("n", [1, 2])
def test_agglomerate_of_almost_nothing(n):
    found = agglomerate(KEY, Pool(features=np.zeros((n, 2), np.float32)), 5)
    assert sorted(found) == list(range(n))


def test_bad_input():
    x = np.zeros((4, 2), np.float32)
    pool = Pool(features=x, kernel=np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="budget 5"):
        dropquery(KEY, pool, 5)
    with pytest.raises(ValueError, match="kernel"):
        dropquery(KEY, Pool(features=x), 1)
    with pytest.raises(ValueError, match="rate"):
        dropquery(KEY, pool, 1, rate=1.0)
    with pytest.raises(ValueError, match="ratio"):
        cluster_margin(KEY, pool, 1, ratio=0.5)
    with pytest.raises(ValueError, match="within"):
        cluster_margin(KEY, pool, 1, within="nearest")
    with pytest.raises(ValueError, match="groups"):
        cluster_margin(KEY, pool, 1, groups=np.zeros(3, np.int32))
    with pytest.raises(ValueError, match="probabilities"):
        cluster_margin(KEY, Pool(features=x), 1)
