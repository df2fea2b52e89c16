"""Distances to boundaries and MASE and BASE, against loops that follow the definitions."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, nnls

from densejax.active.pool import Pool
from densejax.active.scores import evaluate
from densejax.active.strategies.base import (
    _empty_regions,
    base,
    dcsdb,
    dcsdb_score,
    ddb,
    head_distances,
    mase,
    mase_score,
)

KEY = jax.random.key(0)


def naive(features, kernel, bias):
    """DCSDB with the differences [n, c, d] written out: (predicted [n], distances [n, c])."""
    features, kernel, bias = (np.asarray(a, np.float64) for a in (features, kernel, bias))
    predicted = (features @ kernel + bias).argmax(1)
    weights = kernel.T[predicted][:, None] - kernel.T[None]
    offsets = bias[predicted][:, None] - bias[None]
    gaps = np.einsum("ncd,nd->nc", weights, features) + offsets
    lengths = np.sqrt((weights**2).sum(2))
    distances = np.full(gaps.shape, np.inf)
    there = lengths > 0
    distances[there] = np.abs(gaps[there]) / lengths[there]
    distances[~there & (offsets == 0)] = 0
    rows = np.arange(len(features))
    distances[rows, predicted] = np.inf
    distances[rows, predicted] = distances.min(1)
    return predicted, distances


def algorithm_2(distances, available, budget, order):
    """The loop of algorithm 2, one pick at a time; or classes as blocks, as released."""
    classes = distances.shape[1]
    turns = [i % classes for i in range(budget)]
    turns = sorted(turns) if order == "block" else turns
    taken = ~available.copy()
    picks = []
    for turn in turns:
        best = min((distances[i, turn], i) for i in range(len(distances)) if not taken[i])[1]
        taken[best] = True
        picks.append(best)
    return picks


def lattice(seed, n, d, c, *, low=-2, high=3):
    """Small integers: float32 is exact, and there are ties and duplicates."""
    random = np.random.default_rng(seed)
    features = random.integers(low, high, (n, d)).astype(np.float32)
    kernel = random.integers(low, high, (d, c)).astype(np.float32)
    bias = random.integers(low, high, c).astype(np.float32)
    return features, kernel, bias


def gaussian(seed, n, d, c):
    random = np.random.default_rng(seed)
    shapes = (n, d), (d, c), (c,)
    return tuple(random.normal(size=shape).astype(np.float32) for shape in shapes)


def least_distance(point, kernel, bias, chosen):
    """The projection on a class's region, by Lawson and Hanson's LDP, in float64."""
    point, kernel, bias = (np.asarray(a, np.float64) for a in (point, kernel, bias))
    others = np.arange(kernel.shape[1]) != chosen
    normals = (kernel[:, [chosen]] - kernel)[:, others].T
    planes = -(normals @ point + (bias[chosen] - bias)[others])
    scale = max(planes.max(initial=0), 1e-300)
    if planes.max(initial=0) <= 0:
        return 0.0
    system = np.concatenate([normals.T, planes[None] / scale])
    aim = np.append(np.zeros(len(point)), 1)
    residual = system @ nnls(system, aim)[0] - aim
    if residual @ residual < 1e-12:
        return np.inf
    return scale * float(np.linalg.norm(residual[:-1] / residual[-1]))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(1, 3, 1), (9, 1, 2), (9, 3, 5)]))
def test_distances_follow_their_definition(seed, shape):
    n, d, c = shape
    for features, kernel, bias in (lattice(seed, n, d, c), gaussian(seed, n, d, c)):
        predicted, expected = naive(features, kernel, bias)
        found = np.asarray(dcsdb(features, kernel, bias=bias))
        near = np.asarray(ddb(features, kernel, bias=bias))
        assert not np.isnan(found).any()
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
        rows = np.arange(n)
        np.testing.assert_allclose(near, expected[rows, predicted], rtol=2e-5, atol=2e-5)


def test_distances_of_weights_are_exact_differences():
    kernel = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32)
    kernel[:, 3] = kernel[:, 1]
    kernel[:, 4] = kernel[:, 1] + np.float32(1e-4)
    wide = kernel.astype(np.float64)
    expected = np.linalg.norm(wide.T[:, None] - wide.T[None], axis=2)
    for scale in (1.0, 2.0**-80, 2.0**80):
        found = np.asarray(head_distances(kernel * np.float32(scale)))
        np.testing.assert_allclose(found / np.float32(scale), expected, rtol=1e-5)
        assert found[1, 3] == 0


def test_classes_with_equal_weights_and_a_single_class():
    features = np.array([[1.0, 0.0], [-1.0, 2.0]], np.float32)
    kernel = np.array([[1.0, 1.0, -1.0], [0.0, 0.0, 0.0]], np.float32)
    apart = np.asarray(dcsdb(features, kernel, bias=np.array([0.5, 0.0, 0.0])))
    # Class 1 is never given; the first feature is 0, the second is 2.
    np.testing.assert_allclose(apart, [[1.25, np.inf, 1.25], [0.75, 1.0, 0.75]])
    exact = np.asarray(dcsdb(features, kernel, bias=np.array([0.5, 0, 0]), boundary="exact"))
    np.testing.assert_allclose(exact, [[1.25, np.inf, 1.25], [0.75, np.inf, 0.75]])
    tied = np.asarray(dcsdb(features, kernel))
    np.testing.assert_allclose(tied, [[0, 0, 1], [1, 1, 1]])
    for boundary in ("pairwise", "exact"):
        alone = np.asarray(dcsdb(features, kernel[:, :1], boundary=boundary))
        np.testing.assert_array_equal(alone, np.full((2, 1), np.inf))
    with pytest.raises(ValueError, match="found 1 class, expected 2 or more"):
        Pool(features=features, kernel=kernel[:, :1])


@pytest.mark.parametrize(("c", "d"), [(10, 16), (25, 40), (12, 3)])
def test_exact_is_the_projection_on_the_region(c, d):
    features, kernel, bias = gaussian(c, 12, d, c)
    bias = bias / 4
    predicted, pairwise = naive(features, kernel, bias)
    found = np.asarray(dcsdb(features, kernel, bias=bias, boundary="exact"))
    expected = np.array([[least_distance(x, kernel, bias, k) for k in range(c)] for x in features])
    rows = np.arange(len(features))
    expected[rows, predicted] = pairwise[rows, predicted]
    np.testing.assert_array_equal(np.isinf(found), np.isinf(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.all(found >= np.asarray(dcsdb(features, kernel, bias=bias)))


def test_the_reference_projection_agrees_with_another():
    features, kernel, bias = gaussian(5, 3, 6, 5)
    for x in features.astype(np.float64):
        for chosen in range(5):
            normals = (kernel[:, [chosen]] - kernel).T.astype(np.float64)
            planes = normals @ x + bias[chosen] - bias
            found = minimize(
                lambda e: e @ e,
                np.zeros(6),
                jac=lambda e: 2 * e,
                method="SLSQP",
                options={"ftol": 1e-12},
                constraints={
                    "type": "ineq",
                    "fun": lambda e, a=normals, p=planes: a @ e + p,
                    "jac": lambda e, a=normals: a,
                },
            )
            ldp = least_distance(x, kernel, bias, chosen)
            np.testing.assert_allclose(np.sqrt(found.fun), ldp, rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 3))
def test_empty_regions_are_those_that_no_point_is_in(seed, c, d):
    random = np.random.default_rng(seed)
    kernel, bias = random.normal(size=(d, c)), random.normal(size=c)
    expected = [np.isinf(least_distance(np.zeros(d), kernel, bias, k)) for k in range(c)]
    np.testing.assert_array_equal(_empty_regions(kernel, bias), expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(1, 2), (40, 2), (40, 7)]))
def test_mase_is_the_nearest(seed, shape):
    n, c = shape
    features, kernel, bias = lattice(seed, n, 3, c)
    random = np.random.default_rng(seed)
    # As many in every example, so that few programs are compiled.
    kind = random.permutation(n) * 5 // n
    labelled, held_out = kind == 1, kind == 2
    pool = Pool(features=features, kernel=kernel, bias=bias, labelled=labelled, held_out=held_out)
    free = np.flatnonzero(pool.available)
    near = np.asarray(ddb(features, kernel, bias=bias))
    ranked = free[np.lexsort((free, near[free]))]
    for budget in {0, len(free) // 2, len(free)}:
        found = mase(KEY, pool, budget)
        np.testing.assert_array_equal(found.indices, ranked[:budget])
        np.testing.assert_array_equal(found.scores, near[found.indices])


@pytest.mark.parametrize("order", ["round_robin", "block"])
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(1, 2), (3, 7), (60, 3), (60, 7)]))
def test_base_is_algorithm_2(order, seed, shape):
    n, c = shape
    features, kernel, bias = lattice(seed, n, 3, c)
    labelled = np.random.default_rng(seed).permutation(n) < n // 4
    pool = Pool(features=features, kernel=kernel, bias=bias, labelled=labelled)
    distances = np.asarray(dcsdb(features, kernel, bias=bias))
    size = int(pool.available.sum())
    for budget in {0, min(2, size), size // 2, size}:
        found = base(KEY, pool, budget, order=order)
        expected = algorithm_2(distances, pool.available, budget, order)
        np.testing.assert_array_equal(found.indices, expected)
        turns = np.arange(budget) % c
        turns = np.sort(turns) if order == "block" else turns
        np.testing.assert_array_equal(found.scores, distances[found.indices, turns])


def test_base_with_exact_boundaries():
    features, kernel, bias = gaussian(1, 150, 6, 9)
    pool = Pool(features=features, kernel=kernel, bias=bias)
    distances = np.asarray(dcsdb(features, kernel, bias=bias, boundary="exact"))
    for budget, order in ((5, "block"), (149, "block"), (150, "round_robin")):
        found = base(KEY, pool, budget, order=order, boundary="exact")
        expected = algorithm_2(distances, pool.available, budget, order)
        np.testing.assert_array_equal(found.indices, expected)


def test_classes_in_random_order_share_what_is_left_over():
    features, kernel, bias = gaussian(3, 80, 5, 6)
    pool = Pool(features=features, kernel=kernel, bias=bias)
    distances = np.asarray(dcsdb(features, kernel, bias=bias))
    firsts = set()
    for seed in range(8):
        found = base(jax.random.key(seed), pool, 1, class_order="random")
        firsts.add(int(found.indices[0]))
        assert found.indices[0] in distances.argmin(0)
    assert len(firsts) > 1
    whole = base(KEY, pool, 80, class_order="random").indices
    np.testing.assert_array_equal(np.sort(whole), np.arange(80))


def test_chunks_and_files_change_nothing(tmp_path, monkeypatch):
    features, kernel, bias = lattice(11, 500, 6, 8)
    np.save(tmp_path / "features.npy", features)
    stored = np.load(tmp_path / "features.npy", mmap_mode="r")
    options = [{}, {"order": "block"}, {"boundary": "exact"}]
    rest = {"kernel": kernel, "bias": bias, "labelled": np.arange(500) % 5 == 2}
    memory = Pool(features=features, **rest)
    expected = [base(KEY, memory, 90, **o).indices for o in options]
    near = mase(KEY, memory, 90).indices
    for cache in (1, 2**11):
        monkeypatch.setattr("densejax.active.scores.CACHE_BYTES", cache * 2**6)
        for source in (features, stored):
            pool = Pool(features=source, **rest)
            for o, e in zip(options, expected, strict=True):
                np.testing.assert_array_equal(base(KEY, pool, 90, **o).indices, e)
            np.testing.assert_array_equal(mase(KEY, pool, 90).indices, near)


def test_logits_serve_as_well_as_features():
    features, kernel, bias = lattice(4, 60, 4, 5)
    both = Pool(features=features, kernel=kernel, bias=bias)
    logits = Pool(logits=features @ kernel + bias, kernel=kernel, bias=bias)
    for pick in (mase, base):
        np.testing.assert_array_equal(pick(KEY, both, 20).indices, pick(KEY, logits, 20).indices)
    np.testing.assert_array_equal(
        evaluate(dcsdb_score(both), both), np.asarray(dcsdb(features, kernel, bias=bias))
    )
    np.testing.assert_array_equal(
        evaluate(mase_score(both), both), np.asarray(ddb(features, kernel, bias=bias))
    )


def test_refused():
    features, kernel, bias = lattice(4, 20, 4, 5)
    pool = Pool(features=features, kernel=kernel, bias=bias)
    broken = features.copy()
    broken[7, 2] = np.nan
    for pick in (mase, base):
        with pytest.raises(ValueError, match="the first is row 7"):
            pick(KEY, Pool(features=broken, kernel=kernel, bias=bias), 3)
        with pytest.raises(ValueError, match="kernel"):
            pick(KEY, Pool(logits=features @ kernel), 3)
        for budget in (-1, 21):
            with pytest.raises(ValueError, match="budget"):
                pick(KEY, pool, budget)
    with pytest.raises(ValueError, match="boundary"):
        base(KEY, pool, 3, boundary="nearest")
    with pytest.raises(ValueError, match="order"):
        base(KEY, pool, 3, order="backwards")
    with pytest.raises(ValueError, match="class_order"):
        base(KEY, pool, 3, class_order="size")
