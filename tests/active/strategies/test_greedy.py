"""Core-set and BADGE against brute force in float64 with every distance written out."""

from itertools import combinations, permutations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densejax.active.pool import Pool
from densejax.active.strategies import greedy
from densejax.active.strategies.badge import _bins, _exponential, badge
from densejax.active.strategies.core_set import core_set

KEY = jax.random.key(0)


def squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return ((x[:, None].astype(np.float64) - y[None].astype(np.float64)) ** 2).sum(axis=-1)


def furthest_first(x: np.ndarray, picked: list[int], free: np.ndarray, budget: int) -> list[int]:
    """Core-set from the full matrix of distances."""
    matrix, free, out = squares(x, x), free.copy(), []
    reference = list(picked)
    for _ in range(budget):
        near = matrix[:, reference].min(axis=1)
        out.append(int(np.argmax(np.where(free, near, -1))))
        free[out[-1]] = False
        reference.append(out[-1])
    return out


def masks(rng: np.random.Generator, n: int, labelled: int, held: int) -> dict[str, np.ndarray]:
    order = rng.permutation(n)
    marks = {"labelled": np.zeros(n, bool), "held_out": np.zeros(n, bool)}
    marks["labelled"][order[:labelled]] = True
    marks["held_out"][order[labelled : labelled + held]] = True
    return marks


@pytest.mark.parametrize("d", [1, 3, 40])
@pytest.mark.parametrize("front", [None, 2, 17])
def test_core_set_is_furthest_first(d: int, front: int | None) -> None:
    rng = np.random.default_rng(d)
    x = (100 + rng.normal(size=(300, d))).astype(np.float32)
    pool = Pool(features=x, **masks(rng, 300, 11, 40))
    found = core_set(KEY, pool, 90, front=front)
    expected = furthest_first(x, list(np.flatnonzero(pool.is_labelled)), pool.available, 90)
    np.testing.assert_array_equal(found.indices, expected)
    near = [
        squares(x[[i]], x[[*np.flatnonzero(pool.is_labelled), *expected[:t]]]).min()
        for t, i in enumerate(expected)
    ]
    np.testing.assert_allclose(found.scores, np.sqrt(near), rtol=1e-4, atol=1e-6)


def test_core_set_breaks_ties_by_the_lowest_index() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 4, size=(200, 3)).astype(np.float32)  # at most 64 distinct, many ties
    pool = Pool(features=x, **masks(rng, 200, 5, 0))
    labelled = list(np.flatnonzero(pool.is_labelled))
    for front in (None, 3, 30):
        found = core_set(KEY, pool, 195, front=front)
        expected = furthest_first(x, labelled, pool.available, 195)
        np.testing.assert_array_equal(found.indices, expected)


def test_core_set_starts() -> None:
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(700, 4)) + 3).astype(np.float32)
    pool = Pool(features=x, **masks(rng, 700, 0, 30))
    free = np.flatnonzero(pool.available)
    y = x[free].astype(np.float64)
    firsts = {
        "nearest_mean": free[((y - y.mean(axis=0)) ** 2).sum(axis=1).argmin()],
        "one_centre": free[squares(y, y).max(axis=1).argmin()],
        "largest_norm": free[(y**2).sum(axis=1).argmax()],
    }
    for start, first in firsts.items():
        found = core_set(KEY, pool, 10, start=start)
        free_after = pool.available.copy()
        free_after[first] = False
        rest = furthest_first(x, [first], free_after, 9)
        np.testing.assert_array_equal(found.indices, [first, *rest], err_msg=start)
        assert np.isinf(found.scores[0]) and (np.diff(found.scores[1:]) <= 0).all()
    drawn = {int(core_set(jax.random.key(i), pool, 1, start="random").indices[0]) for i in range(9)}
    assert len(drawn) > 1 and drawn <= set(free.tolist())


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 3))
def test_core_set_knows_no_order_of_the_pool(seed: int, labelled: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(40, 3)).astype(np.float32)
    marks = masks(rng, 40, labelled, 5)
    order = rng.permutation(40)
    found = core_set(KEY, Pool(features=x, **marks), 12)
    other = core_set(
        KEY, Pool(features=x[order], **{name: m[order] for name, m in marks.items()}), 12
    )
    np.testing.assert_array_equal(order[other.indices], found.indices)


def test_core_set_is_within_twice_the_best_radius() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(12, 2)).astype(np.float32)
    matrix = np.sqrt(squares(x, x))
    best = min(matrix[:, list(s)].min(axis=1).max() for s in combinations(range(12), 3))
    for start in ("nearest_mean", "one_centre", "largest_norm", "random"):
        found = core_set(KEY, Pool(features=x), 3, start=start).indices
        assert matrix[:, found].min(axis=1).max() <= 2 * best + 1e-5


def test_core_set_from_disk_in_chunks_and_on_several_devices(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(500, 6)).astype(np.float32)
    marks = masks(rng, 500, 7, 20)
    expected = core_set(KEY, Pool(features=x, **marks), 60)
    shared = core_set(KEY, Pool(features=x, **marks), 60, devices=jax.devices()[:8], front=30)
    np.testing.assert_array_equal(shared.indices, expected.indices)
    np.save(tmp_path / "x.npy", x)
    stored = Pool(features=np.load(tmp_path / "x.npy", mmap_mode="r"), **marks)
    monkeypatch.setattr(greedy, "RESIDENT_BYTES", 100)
    monkeypatch.setattr(greedy, "CHUNK_ROWS", 64)
    found = core_set(KEY, stored, 60, front=30)
    np.testing.assert_array_equal(found.indices, expected.indices)


def embeddings(h: np.ndarray, z: np.ndarray) -> np.ndarray:
    """[n, c * d] float64: the gradient of the cross-entropy at the predicted class."""
    z = z.astype(np.float64)
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    g = p - np.eye(z.shape[1])[z.argmax(axis=1)]
    return (g[:, :, None] * h.astype(np.float64)[:, None]).reshape(len(h), -1)


def race(
    e: np.ndarray, reference: list[int], free: np.ndarray, draws: np.ndarray, budget: int
) -> list[int]:
    """D^2 sampling by clocks: a sample fires when the integral of its rate reaches its draw."""
    free, matrix, out = free.copy(), squares(e, e), []
    integral, reference = np.zeros(len(e)), list(reference)
    for _ in range(budget):
        rate = np.where(free, matrix[:, reference].min(axis=1), 0)
        wait = np.full(len(e), np.inf)
        live = rate > 1e-12
        wait[live] = (draws[live] - integral[live]) / rate[live]
        i = int(np.argmin(wait)) if live.any() else int(np.flatnonzero(free)[0])
        if live.any():
            integral += rate * wait[i]
        out.append(i)
        reference.append(i)
        free[i] = False
    return out


def problem(seed: int, n: int, d: int, c: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    h = rng.normal(size=(n, d)) + 2
    return h.astype(np.float32), (2 * rng.normal(size=(n, c))).astype(np.float32)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("front", [None, 3])
@pytest.mark.parametrize("given_as", ["logits", "probabilities", "head"])
def test_badge_is_the_race_of_explicit_embeddings(
    relative: bool, front: int | None, given_as: str
) -> None:
    n, d, c = 250, 5, 4
    h, z = problem(7, n, d, c)
    marks = masks(np.random.default_rng(7), n, 9, 20)
    head = np.random.default_rng(8).normal(size=(d, c)).astype(np.float32)
    if given_as == "head":
        z = h @ head
        pool = Pool(features=h, kernel=head, **marks)
    elif given_as == "logits":
        pool = Pool(features=h, logits=z, **marks)
    else:
        pool = Pool(features=h, probabilities=np.asarray(jax.nn.softmax(z)), **marks)
    e = embeddings(h, z)
    _, key = jax.random.split(KEY)
    draws = np.asarray(_exponential(key, n), np.float64)
    found = badge(KEY, pool, 60, relative_to_labelled=relative, front=front)
    free = pool.available.copy()
    if relative:
        expected = race(e, list(np.flatnonzero(pool.is_labelled)), free, draws, 60)
    else:
        norms = (e**2).sum(axis=1)
        first = int(np.argmax(np.where(free, norms, -1)))
        np.testing.assert_allclose(found.scores[0], np.sqrt(norms[first]), rtol=1e-5)
        free[first] = False
        expected = [first, *race(e, [first], free, draws, 59)]
    np.testing.assert_array_equal(found.indices, expected)


def test_badge_draws_by_squared_distance() -> None:
    """Frequencies of ordered queries against their exact probabilities, chi-squared."""
    h, z = problem(3, 5, 2, 3)
    e = embeddings(h, z)
    matrix, first = squares(e, e), int((e**2).sum(axis=1).argmax())
    probability = {}
    for a, b in permutations(set(range(5)) - {first}, 2):
        near = np.minimum(matrix[:, first], matrix[:, a])
        probability[a, b] = matrix[a, first] / matrix[:, first].sum() * near[b] / near.sum()
    np.testing.assert_allclose(sum(probability.values()), 1)
    pool, runs = Pool(features=h, logits=z), 600
    counts = dict.fromkeys(probability, 0)
    for i in range(runs):
        i0, a, b = badge(jax.random.key(i), pool, 3).indices.tolist()
        assert i0 == first
        counts[a, b] += 1
    chi = sum((counts[q] - runs * p) ** 2 / (runs * p) for q, p in probability.items())
    assert chi < 31.3  # 0.1 % of chi-squared with 11 degrees of freedom


def test_exponential_draws_are_exponential_and_fine() -> None:
    draws = np.asarray(_exponential(KEY, 400_000), np.float64)
    assert draws.min() > 0 and np.isfinite(draws).all()
    stats = pytest.importorskip("scipy.stats")
    assert stats.kstest(draws, "expon").pvalue > 1e-3
    # Small ones do not tie.
    small = np.sort(draws)[:1000]
    assert (np.diff(small) > 0).all()


def test_badge_of_certain_samples_keeps_their_gradient() -> None:
    """1 - p rounds to 0 in float32 beyond 17 logits; the gradient does not vanish."""
    h, z = problem(4, 60, 3, 3)
    z = z + 20 * np.eye(3, dtype=np.float32)[z.argmax(axis=1)]
    e = embeddings(h, z)
    exact = np.asarray(z, np.float64)
    p = np.exp(exact - exact.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    g = np.where(np.eye(3, dtype=bool)[exact.argmax(axis=1)], 0, p)
    g -= g.sum(axis=1, keepdims=True) * np.eye(3)[exact.argmax(axis=1)]
    e = (g[:, :, None] * h[:, None]).reshape(60, -1)
    found = badge(KEY, Pool(features=h, logits=z), 2)
    norms = np.linalg.norm(e, axis=1)
    assert found.indices[0] == norms.argmax()
    np.testing.assert_allclose(found.scores[0], norms.max(), rtol=1e-4)
    gap = np.sqrt(squares(e[found.indices[:1]], e[found.indices[1:]]))[0, 0]
    np.testing.assert_allclose(found.scores[1], gap, rtol=1e-3)


@pytest.mark.parametrize("c, d", [(10, 64), (3, 700), (20, 50)])
def test_badge_pooling_is_that_of_torch(c: int, d: int) -> None:
    torch = pytest.importorskip("torch")
    h, z = problem(5, 40, d, c)
    e = embeddings(h, z).reshape(40, c, d)
    bins = min(c, 16)
    pooled = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(e), (bins, 512 // bins))
    g_bins, h_bins = np.asarray(_bins(c, bins)), np.asarray(_bins(d, 512 // bins))
    np.testing.assert_allclose(np.einsum("ncd,ci,dj->nij", e, g_bins, h_bins), pooled, atol=1e-6)
    flat = pooled.numpy().reshape(40, -1)
    _, key = jax.random.split(KEY)
    first = int((flat**2).sum(axis=1).argmax())
    free = np.ones(40, bool)
    free[first] = False
    draws = np.asarray(_exponential(key, 40), np.float64)
    expected = [first, *race(flat, [first], free, draws, 19)]
    found = badge(KEY, Pool(features=h, logits=z), 20, pooled=True)
    np.testing.assert_array_equal(found.indices, expected)


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from(["random", "equal", "two classes", "pairs"]),
    st.integers(0, 6),
    st.booleans(),
)
def test_no_sample_twice_nor_a_forbidden_one(
    seed: int, kind: str, labelled: int, whole: bool
) -> None:
    rng = np.random.default_rng(seed)
    n = 30
    h, z = problem(seed, n, 3, 2 if kind == "two classes" else 3)
    if kind == "equal":
        h[:], z[:] = h[0], z[0]
    if kind == "pairs":
        h, z = h[np.arange(n) // 2], z[np.arange(n) // 2]
    pool = Pool(features=h, logits=z, **masks(rng, n, labelled, 4))
    budget = int(pool.available.sum()) if whole else int(rng.integers(0, 10))
    key = jax.random.key(seed)
    for found in (
        core_set(key, pool, budget, front=8),
        core_set(key, pool, budget, start="one_centre"),
        badge(key, pool, budget, front=8),
        badge(key, pool, budget, relative_to_labelled=True),
        badge(key, pool, budget, first="random", pooled=True),
    ):
        assert found.indices.dtype == np.int64 and found.scores.dtype == np.float32
        assert len(np.unique(found.indices)) == len(found.indices) == len(found.scores) == budget
        assert pool.available[found.indices].all()
        assert not np.isnan(found.scores).any()


def test_equal_samples_come_by_the_lowest_index() -> None:
    h, z = np.ones((20, 3), np.float32), np.tile(np.float32([1, 2, 0]), (20, 1))
    pool = Pool(features=0.1 * h, logits=z)
    np.testing.assert_array_equal(badge(KEY, pool, 20, front=4).indices, np.arange(20))
    np.testing.assert_array_equal(core_set(KEY, pool, 20, front=4).indices, np.arange(20))


def test_pairs_are_exhausted_before_a_duplicate_is_picked() -> None:
    h, z = problem(9, 40, 4, 3)
    pool = Pool(features=np.tile(h, (2, 1)), logits=np.tile(z, (2, 1)))
    for found in (core_set(KEY, pool, 80).indices, badge(KEY, pool, 80).indices):
        assert len(np.unique(found[:40] % 40)) == 40
        np.testing.assert_array_equal(np.sort(found[40:]), found[40:])


def test_refusals() -> None:
    h, z = problem(1, 10, 3, 2)
    pool = Pool(features=h, logits=z)
    for selector in (core_set, badge):
        for budget in (-1, 11):
            with pytest.raises(ValueError, match="budget"):
                selector(KEY, pool, budget)
        bad = h.copy()
        bad[4, 1] = np.nan
        with pytest.raises(ValueError, match="4"):
            selector(KEY, Pool(features=bad, logits=z), 3)
        assert len(selector(KEY, pool, 0).indices) == 0
    with pytest.raises(ValueError, match="start"):
        core_set(KEY, pool, 1, start="middle")
    with pytest.raises(ValueError, match="first"):
        badge(KEY, pool, 1, first="middle")
    with pytest.raises(ValueError, match="features"):
        core_set(KEY, Pool(logits=z), 1)
    with pytest.raises(ValueError, match="features"):
        badge(KEY, Pool(logits=z), 1, pooled=True)
    with pytest.raises(ValueError, match="probabilities"):
        badge(KEY, Pool(features=h), 1)


def test_one_program_serves_all_budgets() -> None:
    h, z = problem(2, 300, 3, 3)
    pool = Pool(features=h, logits=z)
    badge(KEY, pool, 100, front=40)
    before = greedy._race._cache_size(), greedy._apply._cache_size()
    for budget in (5, 31, 99):
        badge(jax.random.key(1), pool, budget, front=40)
    race_programs, apply_programs = greedy._race._cache_size(), greedy._apply._cache_size()
    assert race_programs == before[0]
    assert apply_programs <= before[1] + len(greedy.BATCHES)
