"""ProbCover, MaxHerding and UHerding against the objective written out in float64."""

from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from densejax.active.pool import Pool
from densejax.active.strategies import coverage
from densejax.active.strategies.coverage import (
    covering_radius,
    max_herding,
    probcover,
    uncertainty_herding,
)
from densejax.active.wrappers import partitioned

KEY = jax.random.key(0)


def distances(x, normalize):
    x = np.asarray(x, np.float64)
    if normalize:
        length = np.linalg.norm(x, axis=1, keepdims=True)
        x = x / np.where(length > 0, length, 1)
    return np.linalg.norm(x[:, None] - x[None], axis=2)


def gain_of_each(similarity, u, selected, kept):
    """[n] gains by definition; similarity [n, n]."""
    best = similarity[selected].max(axis=0) if len(selected) else np.zeros(len(u))
    beyond = np.maximum(similarity - best, 0)
    return (beyond * u * kept).sum(axis=1)


def check_greedy(selection, similarity, u, pool, budget, tolerance):
    """Each pick is best, given those before, but for rounding; equal ones by the lowest index."""
    assert selection.indices.shape == (budget,) and selection.indices.dtype == np.int64
    assert selection.scores.dtype == np.float32
    assert len(set(selection.indices.tolist())) == budget
    kept = pool.available | pool.is_labelled
    selected = list(np.flatnonzero(pool.is_labelled))
    free = pool.available.copy()
    for index, score in zip(selection.indices, selection.scores, strict=True):
        assert free[index]
        gains = gain_of_each(similarity, u, selected, kept)
        best = gains[free].max()
        assert gains[index] >= best - tolerance
        np.testing.assert_allclose(score, gains[index], atol=tolerance, rtol=1e-5)
        if tolerance == 0:
            assert index == np.flatnonzero(free & (gains == best))[0]
        free[index] = False
        selected.append(index)


@st.composite
def pools(draw):
    """Random and degenerate pools: duplicates, few distinct values, any labelled and held out."""
    # Few shapes, so that few programs are compiled.
    n, d = draw(st.sampled_from([1, 2, 5, 40])), draw(st.sampled_from([1, 3]))
    seed = draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    kind = draw(st.sampled_from(["random", "duplicates", "one", "lattice"]))
    if kind == "duplicates":
        x = x[rng.integers(0, max(1, n // 3), n)]
    if kind == "one":
        x = np.repeat(x[:1], n, axis=0)
    if kind == "lattice":
        x = rng.integers(0, 3, (n, d)).astype(float)
    state = draw(hnp.arrays(np.int8, n, elements=st.integers(0, 3)))
    probabilities = rng.dirichlet(np.ones(3), n)
    return Pool(
        features=x.astype(np.float32),
        probabilities=probabilities.astype(np.float32),
        labelled=state == 1,
        held_out=state == 2,
    )


def budget_of(pool, share):
    return round(share * int(pool.available.sum()))


def middle_radius(d, share):
    """A radius that no distance is near to."""
    values = np.unique(np.round(d, 5))
    at = min(int(share * len(values)), len(values) - 1)
    return 2 * values[-1] + 1 if at == len(values) - 1 else (values[at] + values[at + 1]) / 2


@settings(max_examples=60, deadline=None)
@given(pools(), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_probcover_is_the_greedy_cover_exactly(pool, share, where, normalize):
    d = distances(pool.features, normalize)
    radius = middle_radius(d, where)
    budget = budget_of(pool, share)
    selection = probcover(KEY, pool, budget, radius=radius, normalize=normalize)
    check_greedy(selection, (d <= radius).astype(float), np.ones(pool.size), pool, budget, 0)


@settings(max_examples=40, deadline=None)
@given(pools(), st.floats(0, 1), st.sampled_from([0.3, 1.0, 5.0]), st.booleans())
def test_max_herding_is_greedy(pool, share, radius, normalize):
    d = distances(pool.features, normalize)
    budget = budget_of(pool, share)
    selection = max_herding(KEY, pool, budget, radius=radius, normalize=normalize)
    similarity = np.exp(-((d / radius) ** 2))
    check_greedy(selection, similarity, np.ones(pool.size), pool, budget, 2e-6 * pool.size)


@settings(max_examples=40, deadline=None)
@given(pools(), st.floats(0, 1), st.booleans())
def test_uncertainty_herding_is_greedy_with_the_papers_radius(pool, share, given_weights):
    d = distances(pool.features, True)
    p = np.sort(pool.probabilities.astype(np.float64), axis=1)
    u = 1 - (p[:, -1] - p[:, -2])
    weights = (5 * u).astype(np.float32) if given_weights else None
    u = 5 * u if given_weights else u
    between = d[np.ix_(pool.is_labelled, pool.is_labelled)]
    positive = between[between > 1e-3]
    radius = positive.min() if positive.size else 1.0
    budget = budget_of(pool, share)
    selection = uncertainty_herding(KEY, pool, budget, weights=weights)
    # The smaller the radius, the more a rounded distance matters.
    tolerance = 2e-6 * pool.size * 5 * max(1, radius**-2)
    check_greedy(selection, np.exp(-((d / radius) ** 2)), u, pool, budget, tolerance)


def random_pool(n=300, d=6, seed=0):
    rng = np.random.default_rng(seed)
    state = rng.integers(0, 8, n)
    return Pool(
        features=rng.normal(size=(n, d)).astype(np.float32),
        probabilities=rng.dirichlet(np.ones(4), n).astype(np.float32),
        labelled=state == 0,
        held_out=state == 1,
    )


def everything(pool):
    return [
        probcover(KEY, pool, 40, radius=0.6),
        max_herding(KEY, pool, 20),
        uncertainty_herding(KEY, pool, 20),
        probcover(KEY, pool, 40, radius=0.6, targets=50),
    ]


def test_blocks_do_not_matter(monkeypatch):
    pool = random_pool()
    whole = everything(pool)
    monkeypatch.setattr(coverage, "ROWS", 32)
    monkeypatch.setattr(coverage, "TARGETS", (3, 8))
    for a, b in zip(whole, everything(pool), strict=True):
        np.testing.assert_array_equal(a.indices, b.indices)
        np.testing.assert_allclose(a.scores, b.scores, rtol=1e-5, atol=1e-5)


def test_a_pool_on_disk_gives_the_same(tmp_path):
    pool = random_pool()
    path = tmp_path / "features.dat"
    disk = np.memmap(path, np.float32, "w+", shape=pool.features.shape)
    disk[:] = pool.features
    other = Pool(
        features=disk,
        probabilities=pool.probabilities,
        labelled=pool.labelled,
        held_out=pool.held_out,
    )
    for a, b in zip(everything(pool), everything(other), strict=True):
        np.testing.assert_array_equal(a.indices, b.indices)


def test_targets_are_the_sum_over_a_subset():
    pool = random_pool(60)
    rows = np.flatnonzero(~pool.held_out)
    mask = coverage._targets(KEY, len(rows), 20)
    assert mask.sum() == 20
    u = np.zeros(pool.size)
    u[rows[mask]] = 1
    similarity = np.exp(-(distances(pool.features, True) ** 2))
    selection = max_herding(KEY, pool, 15, targets=20)
    check_greedy(selection, similarity, u, pool, 15, 1e-4)


def test_gains_do_not_drift():
    """After many updates a gain is that of the definition, down to the rounding of one sum."""
    pool = Pool(features=random_pool(400, 3).features)
    selection = max_herding(KEY, pool, 400, radius=0.5)
    similarity = np.exp(-((distances(pool.features, True) / 0.5) ** 2))
    for t in (200, 300, 399):
        gains = gain_of_each(similarity, np.ones(400), selection.indices[:t], np.ones(400))
        found = selection.scores[t]
        np.testing.assert_allclose(found, gains[selection.indices[t]], atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(pools(), st.floats(0, 1), st.integers(1, 3))
def test_covering_radius_is_the_largest_that_is_pure(pool, purity, groups):
    group = np.arange(pool.size) % groups
    kept = pool.available | pool.is_labelled
    if not kept.any():
        return
    d = distances(pool.features, True)[np.ix_(kept, kept)]
    other = group[kept][:, None] != group[kept]
    radius = covering_radius(pool, group.astype(np.int32), purity=purity)

    def pure(r):
        return np.mean([not (other[i] & (d[i] <= r)).any() for i in range(len(d))])

    if np.isinf(radius):
        assert pure(np.inf) >= purity - 1e-9
        return
    if radius > 2e-3:
        assert pure(radius * (1 - 1e-3)) >= purity - 1e-9
    assert pure(max(radius * (1 + 1e-3), 2e-3)) < purity + 1e-9 or purity == 0


def test_bad_input():
    pool = random_pool(20)
    with pytest.raises(ValueError, match="budget 21"):
        max_herding(KEY, pool, 21)
    with pytest.raises(ValueError, match="radius"):
        probcover(KEY, pool, 1, radius=-1)
    with pytest.raises(ValueError, match="radius"):
        max_herding(KEY, pool, 1, radius=0)
    with pytest.raises(ValueError, match="features"):
        max_herding(KEY, Pool(labels=np.zeros(3, np.int32)), 1)
    with pytest.raises(ValueError, match="not finite"):
        max_herding(KEY, Pool(features=np.full((3, 2), np.nan)), 1)
    with pytest.raises(ValueError, match="weights"):
        uncertainty_herding(KEY, pool, 1, weights=np.ones(3))
    with pytest.raises(ValueError, match="negative"):
        uncertainty_herding(KEY, pool, 1, weights=-np.ones(20))


def test_a_partitioned_cover():
    pool = random_pool()
    found = partitioned(partial(probcover, radius=0.6), partitions=4)(KEY, pool, 18)
    assert len(set(found.indices.tolist())) == 18
    assert pool.available[found.indices].all()
