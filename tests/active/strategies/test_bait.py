"""BAIT against explicit Fisher matrices, inverted anew for every candidate, in float64."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densejax.active.pool import Pool
from densejax.active.strategies.bait import bait

KEY = jax.random.key(7)


def fisher_matrix(x, p):
    """sum_y p_y g_y g_y^T with g_y the gradient of log p_y by the kernel [c, d]."""
    total = 0
    for y in range(len(p)):
        g = np.outer(np.eye(len(p))[y] - p, x).ravel()
        total = total + p[y] * np.outer(g, g)
    return total


def reference(pool, budget, regularisation, oversample):
    """The selection, and by how little it was decided (relative)."""
    x, p = pool.features.astype(np.float64), pool.probabilities.astype(np.float64)
    p = p / p.sum(axis=1, keepdims=True)
    matrices = np.array([fisher_matrix(a, b) for a, b in zip(x, p, strict=True)])
    kept = pool.available | pool.is_labelled
    everything = matrices[kept].mean(axis=0)
    l = int(pool.is_labelled.sum())
    share = budget / (l + budget)
    m = regularisation * np.eye(len(everything))
    if l:
        m = m + (1 - share) * matrices[pool.is_labelled].mean(axis=0)

    def value(matrix):
        return np.trace(np.linalg.inv(matrix) @ everything)

    picks, free, gap = [], list(np.flatnonzero(pool.available)), np.inf
    for _ in range(min(int(np.ceil(oversample * budget)), len(free))):
        values = np.array([value(m + share * matrices[i]) for i in free])
        best = int(np.argmin(values))
        fall = value(m) - values
        rest = np.delete(fall, best)
        gap = min(gap, (fall[best] - rest.max(initial=-np.inf)) / max(value(m), 1e-30))
        picks.append(free.pop(best))
        m = m + share * matrices[picks[-1]]
    while len(picks) > budget:
        values = np.array([value(m - share * matrices[i]) for i in picks])
        worst = int(np.argmin(values))
        gap = min(gap, (np.delete(values, worst).min() - values[worst]) / max(values[worst], 1e-30))
        m = m - share * matrices[picks.pop(worst)]

    def value_of(selection):
        rest = m - share * matrices[picks].sum(axis=0)
        return value(rest + share * matrices[selection].sum(axis=0))

    return np.array(picks, int), gap, value(m), value_of


@st.composite
def pools(draw):
    n, d, c = draw(st.sampled_from([(1, 1, 2), (10, 2, 3), (14, 3, 2), (6, 3, 2)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    x, p = rng.normal(size=(n, d)), rng.dirichlet(np.ones(c), n)
    kind = draw(st.sampled_from(["random", "random", "duplicates", "certain", "zero"]))
    if kind == "duplicates":
        some = rng.integers(0, max(1, n // 3), n)
        x, p = x[some], p[some]
    if kind == "certain":
        p = np.eye(c)[rng.integers(0, c, n)]
    if kind == "zero":
        x *= 0
    state = rng.integers(0, draw(st.sampled_from([1, 3, 8])), n)
    return Pool(
        features=x.astype(np.float32),
        probabilities=p.astype(np.float32),
        labelled=state == 1,
        held_out=state == 2,
    )


@settings(max_examples=25, deadline=None)
@given(pools(), st.integers(0, 5), st.sampled_from([0.1, 1.0]), st.sampled_from([1.0, 1.5, 2.0]))
def test_bait_is_that_of_explicit_matrices(pool, budget, regularisation, oversample):
    budget = min(budget, int(pool.available.sum()))
    found = bait(KEY, pool, budget, regularisation=regularisation, oversample=oversample)
    assert found.indices.shape == found.scores.shape == (budget,)
    assert found.indices.dtype == np.int64 and found.scores.dtype == np.float32
    assert len(set(found.indices.tolist())) == budget
    assert pool.available[found.indices].all()
    if budget == 0:
        return
    expected, gap, value, value_of = reference(pool, budget, regularisation, oversample)
    if gap > 1e-4:
        np.testing.assert_array_equal(found.indices, expected)
        np.testing.assert_allclose(value_of(found.indices), value, rtol=1e-8)


def test_random_pools_are_decided_clearly():
    """The equality above is not vacuous."""
    clear = 0
    for seed in range(5):
        rng = np.random.default_rng(seed)
        pool = Pool(
            features=rng.normal(size=(12, 2)).astype(np.float32),
            probabilities=rng.dirichlet(np.ones(3), 12).astype(np.float32),
            labelled=np.arange(12) < 2,
        )
        expected, gap, *_ = reference(pool, 3, 1.0, 2.0)
        clear += gap > 1e-4
        if gap > 1e-4:
            np.testing.assert_array_equal(bait(KEY, pool, 3).indices, expected)
    assert clear >= 3


def random_pool(n=40, d=6, c=3):
    rng = np.random.default_rng(0)
    return Pool(
        features=rng.normal(size=(n, d)).astype(np.float32),
        probabilities=rng.dirichlet(np.ones(c), n).astype(np.float32),
        labelled=np.arange(n) % 7 == 0,
        held_out=np.arange(n) % 7 == 1,
    )


def test_chunks_do_not_matter(monkeypatch):
    pool = random_pool()
    whole = bait(KEY, pool, 6)
    monkeypatch.setattr("densejax.active.strategies.bait.BLOCK", 3 * 6 * 5)
    parts = bait(KEY, pool, 6)
    np.testing.assert_array_equal(whole.indices, parts.indices)
    np.testing.assert_allclose(whole.scores, parts.scores, rtol=1e-4)


def test_scores_are_the_falls_of_the_objective():
    pool = random_pool(12, 2, 2)
    found = bait(KEY, pool, 3, oversample=1.0)
    *_, value_of = reference(pool, 3, 1.0, 1.0)
    values = [value_of(found.indices[:t]) for t in range(4)]
    np.testing.assert_allclose(found.scores, -np.diff(values), rtol=1e-4)


def test_a_cap_that_does_not_bind_changes_nothing():
    pool = random_pool()
    whole = bait(KEY, pool, 5)
    np.testing.assert_array_equal(whole.indices, bait(KEY, pool, 5, rank=3, width=18).indices)
    # Of c classes the factor has rank c - 1.
    np.testing.assert_array_equal(whole.indices, bait(KEY, pool, 5, rank=2).indices)


def test_a_projection_on_all_directions_there_are():
    """Features in a plane: a width of two dimensions loses nothing."""
    pool = random_pool(40, 2)
    plane = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 2)))[0]
    wide = Pool(
        features=(pool.features @ plane.T).astype(np.float32),
        probabilities=pool.probabilities,
        labelled=pool.labelled,
        held_out=pool.held_out,
    )
    whole, cut = bait(KEY, pool, 5), bait(KEY, wide, 5, width=6)
    np.testing.assert_array_equal(whole.indices, cut.indices)
    np.testing.assert_allclose(whole.scores, cut.scores, rtol=1e-3)


def test_bad_input():
    pool = random_pool()
    with pytest.raises(ValueError, match="budget 41"):
        bait(KEY, pool, 41)
    with pytest.raises(ValueError, match="regularisation"):
        bait(KEY, pool, 1, regularisation=0.0)
    with pytest.raises(ValueError, match="width"):
        bait(KEY, pool, 1, width=2)
    with pytest.raises(ValueError, match="rank"):
        bait(KEY, pool, 1, rank=4)
    with pytest.raises(ValueError, match="features"):
        bait(KEY, Pool(probabilities=np.full((3, 2), 0.5)), 1)
