"""BatchBALD against joint entropies by enumeration of all configurations, in float64."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densejax.active import pool as pool_module
from densejax.active.pool import Pool
from densejax.active.strategies.batchbald import _configurations, batch_bald

KEY = jax.random.key(5)


def entropy(p):
    p = np.asarray(p)[np.asarray(p) > 0]
    return float(-(p * np.log(p)).sum())


def information(passes):
    """I(y_1 ... y_t; w) of [t, m, c], by its definition."""
    t, m, c = passes.shape
    joint = [
        np.mean([np.prod([passes[i, k, y[i]] for i in range(t)]) for k in range(m)])
        for y in itertools.product(range(c), repeat=t)
    ]
    return entropy(joint) - sum(entropy(passes[i, k]) for i in range(t) for k in range(m)) / m


@st.composite
def pools(draw):
    n, m, c = draw(st.sampled_from([(1, 1, 2), (6, 3, 3), (12, 4, 2), (5, 3, 2)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    passes = rng.dirichlet(np.full(c, 0.5), (n, m))
    kind = draw(st.sampled_from(["random", "duplicates", "certain", "agree"]))
    if kind == "duplicates":
        passes = passes[rng.integers(0, max(1, n // 3), n)]
    if kind == "certain":
        passes = np.eye(c)[rng.integers(0, c, (n, m))]
    if kind == "agree":
        passes = np.repeat(passes[:, :1], m, axis=1)
    state = rng.integers(0, draw(st.sampled_from([1, 3, 8])), n)
    return Pool(passes=passes.astype(np.float32), labelled=state == 1, held_out=state == 2)


def check_valid(pool, budget, found):
    assert found.indices.shape == found.scores.shape == (budget,)
    assert found.indices.dtype == np.int64 and found.scores.dtype == np.float32
    assert len(set(found.indices.tolist())) == budget
    assert pool.available[found.indices].all()


@settings(max_examples=30, deadline=None)
@given(pools(), st.integers(0, 4))
def test_batch_bald_is_greedy_in_the_joint_information(pool, budget):
    budget = min(budget, int(pool.available.sum()))
    found = batch_bald(KEY, pool, budget)
    check_valid(pool, budget, found)
    passes = pool.passes.astype(np.float64)
    passes /= passes.sum(axis=2, keepdims=True)
    free, before = pool.available.copy(), 0.0
    for t in range(budget):
        picks = list(found.indices[:t])
        gains = np.full(pool.size, -np.inf)
        for i in np.flatnonzero(free):
            gains[i] = information(passes[[*picks, i]]) - before
        index = found.indices[t]
        assert gains[index] >= gains.max() - 3e-6
        assert abs(found.scores[t] - gains[index]) < 3e-6
        # Where nothing is to be learned, the lowest index comes first.
        if gains.max() < 1e-7:
            assert index == np.flatnonzero(free)[0]
        before += gains[index]
        free[index] = False


def test_all_of_the_pool():
    rng = np.random.default_rng(0)
    pool = Pool(passes=rng.dirichlet(np.ones(2), (7, 3)).astype(np.float32))
    assert sorted(batch_bald(KEY, pool, 7).indices) == list(range(7))


def test_drawn_configurations_estimate_the_enumerated():
    rng = np.random.default_rng(1)
    passes = rng.dirichlet(np.full(4, 0.3), (30, 5)).astype(np.float32)
    pool = Pool(passes=passes)
    exact = batch_bald(KEY, pool, 4)
    batch = passes[exact.indices[:3]].astype(np.float64)
    _, weight = _configurations(KEY, batch, 64)
    assert len(weight) == 64 and abs(weight.sum() - 1) < 1e-6
    drawn, equal = _configurations(KEY, batch, 63)
    assert drawn.shape == (60, 5) and np.allclose(equal, 1 / 60)
    drawn, equal = _configurations(KEY, np.repeat(batch, 3, axis=0), 50_000)
    # Posteriors are right on average, whatever is drawn: E p(w | y) = p(w).
    np.testing.assert_allclose(drawn.mean(axis=0), np.full(5, 0.2), atol=0.01)
    # And with few draws the gains are those of the enumeration, but for their spread.
    sampled = batch_bald(KEY, pool, 4, samples=60)
    assert abs(sampled.scores.sum() - exact.scores.sum()) < 0.1


def test_a_drawn_entropy_is_the_enumerated_one():
    rng = np.random.default_rng(2)
    passes = rng.dirichlet(np.full(3, 0.5), (6, 4))
    expected = information(passes[:6]) - information(passes[:5])
    # 3^5 = 243 configurations: one fewer, and they are drawn.
    gains = []
    for i in range(50):
        posterior, weight = _configurations(jax.random.fold_in(KEY, i), passes[:5], 242)
        given = posterior @ passes[5]
        gains.append(
            (weight * -(given * np.log(given)).sum(axis=1)).sum()
            + (passes[5] * np.log(passes[5])).sum(axis=1).mean()
        )
    error = np.std(gains) / np.sqrt(len(gains))
    assert abs(np.mean(gains) - expected) < 4 * error


def test_large_batches_do_not_underflow():
    rng = np.random.default_rng(0)
    passes = rng.dirichlet(np.full(10, 0.02), (60, 4)).astype(np.float32)
    found = batch_bald(KEY, Pool(passes=passes), 50, samples=200)
    assert np.isfinite(found.scores).all() and (found.scores >= 0).all()
    # log 4 nats tell the four passes apart, and no more can be learned.
    assert 0.9 * np.log(4) < found.scores.sum() < 1.1 * np.log(4)


def test_duplicates_say_nothing_new():
    passes = np.zeros((3, 2, 2), np.float32)
    passes[:2] = np.eye(2)
    passes[2] = [[0.9, 0.1], [0.1, 0.9]]
    pool = Pool(passes=passes[[0, 1, 2]])
    found = batch_bald(KEY, pool, 2)
    np.testing.assert_array_equal(found.indices, [0, 1])
    np.testing.assert_allclose(found.scores, [np.log(2), 0], atol=1e-6)


def test_chunks_do_not_matter(monkeypatch):
    rng = np.random.default_rng(0)
    pool = Pool(passes=rng.dirichlet(np.ones(3), (50, 4)).astype(np.float32))
    whole = [batch_bald(KEY, pool, 6), batch_bald(KEY, pool, 6, samples=40)]
    monkeypatch.setattr(pool_module, "CHUNK_BYTES", 4 * 12 * 7)
    parts = [batch_bald(KEY, pool, 6), batch_bald(KEY, pool, 6, samples=40)]
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(a.indices, b.indices)
        np.testing.assert_allclose(a.scores, b.scores, atol=2e-6)


def test_bad_input():
    pool = Pool(passes=np.full((3, 2, 2), 0.5, np.float32))
    with pytest.raises(ValueError, match="budget 4"):
        batch_bald(KEY, pool, 4)
    with pytest.raises(ValueError, match="passes"):
        batch_bald(KEY, Pool(features=np.zeros((3, 2))), 1)
    with pytest.raises(ValueError, match="samples"):
        batch_bald(KEY, pool, 1, samples=0)
    with pytest.raises(ValueError, match="not finite"):
        batch_bald(KEY, Pool(passes=np.full((3, 2, 2), np.nan)), 1)
