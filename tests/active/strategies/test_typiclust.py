"""TypiClust against the algorithm written out in float64, given the same clustering."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densejax.active.pool import Pool
from densejax.active.strategies import typiclust as module
from densejax.active.strategies.distances import resident
from densejax.active.strategies.k_means import cluster
from densejax.active.strategies.typiclust import typiclust

KEY = jax.random.key(3)


def unit(x):
    x = np.asarray(x, np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1)


def typicality(x, neighbours):
    d = np.linalg.norm(x[:, None] - x[None], axis=2)
    near = min(neighbours, len(x) // 2)
    np.fill_diagonal(d, np.inf)
    mean = np.sort(d, axis=1)[:, :near].mean(axis=1) if near else np.zeros(len(x))
    return 1 / (mean + 1e-5)


def check(pool, budget, clusters, neighbours, selection):
    """Walks through the reference's clusters and asks of each pick that it be a most typical."""
    assert selection.indices.shape == selection.scores.shape == (budget,)
    if not budget:
        return
    kept = np.flatnonzero(pool.available | pool.is_labelled)
    k = min(int(pool.is_labelled.sum()) + budget, clusters, len(kept))
    _, groups = cluster(KEY, resident(pool, kept, normalize=True), k)
    group = np.full(pool.size, -1)
    group[kept] = np.asarray(groups)
    size = {c: int((group == c).sum()) for c in range(k)}
    labels = {c: int(((group == c) & pool.is_labelled).sum()) for c in range(k)}
    order = sorted(range(k), key=lambda c: (labels[c], -size[c], c))
    x, free, picks = unit(pool.features), pool.available.copy(), list(selection.indices)
    while picks:
        large = [c for c in order if size[c] > 5 and (free & (group == c)).any()]
        small = [c for c in order if (free & (group == c)).any()]
        for c in large or small:
            if not picks:
                return
            index = picks.pop(0)
            ids = np.flatnonzero(free & (group == c))
            assert index in ids
            typical = typicality(x[ids], neighbours)
            mine = typical[np.flatnonzero(ids == index)[0]]
            # In terms of distance: float32 can't tell apart what differs by 1e-3 here.
            assert 1 / mine <= 1 / typical.max() + 2e-3
            score = selection.scores[budget - len(picks) - 1]
            assert abs(1 / score - 1 / mine) < 2e-3
            free[index] = False


@st.composite
def pools(draw):
    n, d = draw(st.sampled_from([1, 2, 7, 60])), draw(st.sampled_from([1, 3]))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    x = rng.normal(size=(n, d)) + 1
    kind = draw(st.sampled_from(["random", "duplicates", "one", "zero"]))
    if kind == "duplicates":
        x = x[rng.integers(0, max(1, n // 4), n)]
    if kind == "one":
        x = np.repeat(x[:1], n, axis=0)
    if kind == "zero":
        x *= 0
    state = rng.integers(0, draw(st.sampled_from([1, 3, 8])), n)
    return Pool(features=x.astype(np.float32), labelled=state == 1, held_out=state == 2)


@settings(max_examples=15, deadline=None)
@given(
    pools(),
    st.sampled_from([0, 0.1, 0.5, 1]),
    st.sampled_from([3, 500]),
    st.sampled_from([3, 20]),
)
def test_typiclust_is_that_of_the_paper(pool, share, clusters, neighbours):
    budget = round(share * int(pool.available.sum()))
    found = typiclust(KEY, pool, budget, clusters=clusters, neighbours=neighbours)
    assert len(set(found.indices.tolist())) == budget
    assert pool.available[found.indices].all()
    check(pool, budget, clusters, neighbours, found)


def test_blocks_do_not_matter(monkeypatch):
    rng = np.random.default_rng(0)
    pool = Pool(features=rng.normal(size=(200, 5)).astype(np.float32))
    whole = typiclust(KEY, pool, 12)
    monkeypatch.setattr(module, "BLOCK", 2**8)
    jax.clear_caches()
    parts = typiclust(KEY, pool, 12)
    jax.clear_caches()
    np.testing.assert_array_equal(whole.indices, parts.indices)
    np.testing.assert_allclose(whole.scores, parts.scores, rtol=1e-4)


def test_a_clear_case():
    """Three heaps, one with a label: the other two come first, the larger first, their middles."""
    rng = np.random.default_rng(0)
    heap = np.concatenate([[[0, 0]], 0.05 * rng.normal(size=(29, 2))])
    far = heap + np.array([8, 0])
    third = heap[:20] + np.array([0, 8])
    x = np.concatenate([heap, far, third])
    labelled = np.arange(80) == 5
    pool = Pool(features=x.astype(np.float32), labelled=labelled)
    found = typiclust(KEY, pool, 2, normalize=False).indices
    assert 30 <= found[0] < 60 <= found[1]


def test_bad_input():
    pool = Pool(features=np.zeros((4, 2), np.float32))
    with pytest.raises(ValueError, match="budget 5"):
        typiclust(KEY, pool, 5)
    with pytest.raises(ValueError, match="clusters"):
        typiclust(KEY, pool, 1, clusters=0)
    with pytest.raises(ValueError, match="features"):
        typiclust(KEY, Pool(labels=np.zeros(3, np.int32)), 1)
