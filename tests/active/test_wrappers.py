"""Wrappers: the distribution of drawn samples, strides by hand, parts that cover the pool."""

import jax
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from densejax.active import scores, wrappers
from densejax.active.pool import Pool, Selection
from densejax.active.rows import members
from densejax.active.scores import Score, evaluate

KEY = jax.random.key(0)
settings.register_profile("wrappers", deadline=None, max_examples=30)
settings.load_profile("wrappers")


def only(features):
    return features[:, 0]


VALUE = Score("value", ("features",), only)


def pool_of(values, **known):
    return Pool(features=np.asarray(values, np.float32)[:, None], **known)


@pytest.mark.parametrize(
    ("beta", "kind"), [(1, "power"), (2, "power"), (0, "power"), (1, "softmax")]
)
@pytest.mark.parametrize("largest_first", [True, False])
def test_the_first_drawn_has_the_stated_distribution(beta, kind, largest_first):
    values = np.array([0.5, 1.0, 2.0, 4.0])
    score = Score("value", ("features",), only, largest_first=largest_first)
    selector = wrappers.power(score, beta=beta, kind=kind)
    sign = 1 if largest_first else -1
    weights = values ** (sign * beta) if kind == "power" else np.exp(sign * beta * values)
    keys = jax.random.split(KEY, 400)
    pool = pool_of(values)
    drawn = np.array([selector(key, pool, 1).indices[0] for key in keys])
    counts = np.bincount(drawn, minlength=4)
    assert scipy.stats.chisquare(counts, 400 * weights / weights.sum()).pvalue > 1e-3


def test_power_of_zero_comes_last_and_below_zero_is_refused():
    selector = wrappers.power(VALUE)
    values = [0.0, 1.0, 0.0, 2.0, 3.0]
    for key in jax.random.split(KEY, 5):
        found = selector(key, pool_of(values), 5)
        assert set(found.indices[3:]) == {0, 2}
        assert (np.diff(found.scores[:3]) <= 0).all()
    with pytest.raises(ValueError, match="1 below, the first is -1 of sample 2"):
        selector(KEY, pool_of([1.0, 1.0, -1.0]), 1)
    labelled = np.array([False, False, True])
    assert len(selector(KEY, pool_of([1.0, 1.0, -1.0], labelled=labelled), 2).indices) == 2


def test_a_large_beta_is_the_plain_ranking():
    values = np.random.default_rng(0).permutation(30) + 1.0
    plain = scores.ranked(VALUE)(KEY, pool_of(values), 10)
    for kind in ("power", "softmax", "softrank"):
        found = wrappers.power(VALUE, beta=1e6, kind=kind)(KEY, pool_of(values), 10)
        np.testing.assert_array_equal(found.indices, plain.indices)


@pytest.mark.parametrize(
    ("options", "match"),
    [({"kind": "rank"}, "expected power"), ({"beta": -1}, "beta -1"), ({"beta": np.nan}, "beta")],
)
def test_power_refuses(options, match):
    with pytest.raises(ValueError, match=match):
        wrappers.power(VALUE, **options)


@pytest.mark.parametrize(
    ("size", "step", "budget", "expected"),
    [
        (10, 1, 3, [0, 1, 2]),
        (10, 3, 3, [2, 5, 8]),
        # What remains is 0 1 3 4 6 7 9; its ranks 3 and 6 are 3 and 7; then 0 1 4 6 9.
        (10, 3, 10, [2, 5, 8, 3, 7, 4, 6, 9, 1, 0]),
        (3, 10, 3, [2, 1, 0]),
        (5, 2, 0, []),
    ],
)
def test_strides_by_hand(size, step, budget, expected):
    found = wrappers._strides(size, step, budget)
    assert found.tolist()[:7] == expected[:7]
    assert sorted(found.tolist()) == sorted(expected)


@given(st.integers(1, 30), st.integers(1, 40), st.data())
def test_stride_takes_ranks_once_each(size, step, data):
    budget = data.draw(st.integers(0, size))
    values = np.random.default_rng(size).permutation(size)
    found = wrappers.stride(VALUE, step)(KEY, pool_of(values), budget)
    ranks = size - 1 - values[found.indices]
    assert len(set(found.indices.tolist())) == budget
    whole = [d for d in range(step, size + 1, step)][:budget]
    assert (ranks[: len(whole)] + 1).tolist() == whole
    np.testing.assert_array_equal(ranks, wrappers._strides(size, step, budget))


def test_stride_of_a_selector_and_of_nothing():
    pool = pool_of(np.arange(20), labelled=np.arange(20) > 16)
    of_selector = wrappers.stride(scores.ranked(VALUE), 4)(KEY, pool, 6)
    of_score = wrappers.stride(VALUE, 4)(KEY, pool, 6)
    np.testing.assert_array_equal(of_selector.indices, of_score.indices)
    assert of_score.indices.tolist()[:4] == [13, 9, 5, 1]
    with pytest.raises(ValueError, match="step 0"):
        wrappers.stride(VALUE, 0)


@given(st.integers(0, 10_000), st.integers(1, 12))
def test_partitions_take_their_share(seed, partitions):
    draw = np.random.default_rng(seed)
    n = int(draw.integers(5, 40))
    order = draw.permutation(n)
    labelled, held_out = members(order[:2], n), members(order[2:4], n)
    pool = pool_of(draw.standard_normal(n), labelled=labelled, held_out=held_out)
    budget = int(draw.integers(0, pool.available.sum() + 1))
    seen = []

    def spy(key, part, share):
        seen.append((part, share))
        return scores.ranked(VALUE)(key, part, share)

    found = wrappers.partitioned(spy, partitions=partitions)(jax.random.key(seed), pool, budget)
    assert len(set(found.indices.tolist())) == budget == len(found.scores)
    assert pool.available[found.indices].all()
    np.testing.assert_array_equal(found.scores, evaluate(VALUE, pool)[found.indices])
    shares = [budget // partitions + (i < budget % partitions) for i in range(partitions)]
    assert [share for _, share in seen] == [s for s in shares if s]
    assert not any(part.held_out is not None and part.held_out.any() for part, _ in seen)


def test_parts_are_disjoint_cover_all_and_depend_on_the_key():
    pool = pool_of(np.arange(103), labelled=np.arange(103) < 20, held_out=np.arange(103) > 99)
    parts = wrappers._divide(KEY, pool, partitions=10)
    assert sorted(np.concatenate(parts).tolist()) == list(range(100))
    for rows in parts:
        assert (np.diff(rows) > 0).all()
        assert (rows < 20).sum() == 2
        assert (rows >= 20).sum() == 8
    other = wrappers._divide(jax.random.key(1), pool, partitions=10)
    assert any(a.tolist() != b.tolist() for a, b in zip(parts, other, strict=True))


@pytest.mark.parametrize(
    ("labelled", "limits", "expected"),
    [
        (30, {"max_labelled": 10, "max_unlabelled": 40}, (10, 40)),
        (4, {"max_labelled": 10, "max_unlabelled": 40}, (4, 46)),
        (30, {"max_labelled": 10}, (10, 70)),
        (30, {"max_unlabelled": 40}, (30, 40)),
    ],
)
def test_published_subsampling(labelled, limits, expected):
    pool = pool_of(np.arange(100), labelled=np.arange(100) < labelled)
    rows = np.concatenate(wrappers._divide(KEY, pool, partitions=3, **limits))
    assert ((rows < labelled).sum(), (rows >= labelled).sum()) == expected
    if "max_unlabelled" in limits:
        selector = wrappers.partitioned(scores.ranked(VALUE), partitions=3, **limits)
        assert len(selector(KEY, pool, expected[1]).indices) == expected[1]
        with pytest.raises(ValueError, match=f"expected at most {expected[1]}"):
            selector(KEY, pool, expected[1] + 1)


def test_a_part_is_the_rows_of_every_array(tmp_path):
    draw = np.random.default_rng(0)
    np.save(tmp_path / "f.npy", draw.standard_normal((12, 3)).astype(np.float32))
    pool = Pool(
        features=np.load(tmp_path / "f.npy", mmap_mode="r"),
        logits=jax.numpy.asarray(draw.standard_normal((12, 4))),
        passes=draw.random((12, 2, 4)),
        kernel=np.zeros((3, 4)),
        labels=np.arange(12) % 4,
        labelled=np.arange(12) < 4,
    )
    rows = np.array([0, 3, 7, 11])
    part = wrappers.subset(pool, rows)
    assert part.size == 4
    for name in ("features", "logits", "passes", "labels", "labelled"):
        np.testing.assert_array_equal(getattr(part, name), np.asarray(getattr(pool, name))[rows])
    assert part.kernel is pool.kernel


def test_wrappers_are_repeatable_and_can_be_nested():
    pool = pool_of(np.random.default_rng(0).random(200), labelled=np.arange(200) < 20)
    selector = wrappers.partitioned(wrappers.power(VALUE, beta=2.0), partitions=4)
    a, b = selector(KEY, pool, 30), selector(KEY, pool, 30)
    np.testing.assert_array_equal(a.indices, b.indices)
    assert set(a.indices) != set(selector(jax.random.key(5), pool, 30).indices)
    assert isinstance(a, Selection)
    for each in (wrappers.power(VALUE), wrappers.stride(VALUE, 3), selector):
        nothing = each(KEY, pool, 0)
        assert (nothing.indices.shape, nothing.indices.dtype) == ((0,), np.int64)
        with pytest.raises(ValueError, match="budget 181"):
            each(KEY, pool, 181)
