"""Balanced selections and the balanced baselines, against plain loops."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densejax.active.balanced import _Shortlist, balanced, water_fill
from densejax.active.pool import Pool, Selection
from densejax.active.scores import Score
from densejax.active.strategies.balancing import balancing
from densejax.active.strategies.base import base, dcsdb_score
from densejax.active.strategies.random import balanced_random, random

KEY = jax.random.key(0)


def confidence(probabilities):
    return probabilities.max(axis=1)


def itself(logits):
    return logits


CONFIDENCE = Score("confidence", ("probabilities",), confidence, largest_first=False)
LOGITS = Score("logits", ("logits",), itself, classwise=True)


def released_shares(counts, budget):
    """The released code's loop: raise the threshold from b // C until the shares add up."""
    threshold = budget // len(counts)
    while True:
        shares = [min(count, threshold) for count in counts]
        left = budget - sum(shares)
        larger = [c for c in range(len(counts)) if counts[c] > threshold]
        if left <= len(larger):
            for c in sorted(larger, key=lambda c: -counts[c])[:left]:
                shares[c] += 1
            if sum(shares) == budget:
                return shares
        threshold += 1


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.floats(0, 1))
def test_shares_are_those_of_the_released_loop(counts, share):
    budget = round(share * sum(counts))
    found = water_fill(np.array(counts), budget)
    np.testing.assert_array_equal(found, released_shares(counts, budget))


def test_shares_out_of_range_are_refused():
    for budget in (-1, 4):
        with pytest.raises(ValueError, match="expected 0 to 3"):
            water_fill(np.array([1, 2]), budget)


def test_random_draws_each_available_sample_as_often():
    labelled = np.arange(10) < 2
    pool = Pool(features=np.zeros((10, 1), np.float32), labelled=labelled)
    counts = np.zeros(10)
    for seed in range(300):
        found = random(jax.random.key(seed), pool, 4)
        assert len(set(found.indices.tolist())) == 4
        counts[found.indices] += 1
    assert not counts[:2].any()
    # 300 draws of 4 of 8: 150 each, standard deviation 8.7.
    assert np.all(np.abs(counts[2:] - 150) < 40)
    np.testing.assert_array_equal(np.sort(random(KEY, pool, 8).indices), np.arange(2, 10))
    assert random(KEY, pool, 0).indices.size == 0


def test_balanced_random_takes_small_classes_whole():
    labels = np.repeat([0, 1, 2, 3], [3, 20, 0, 20]).astype(np.int32)[::-1].copy()
    held_out = np.zeros(43, bool)
    held_out[0] = True
    pool = Pool(labels=labels, held_out=held_out)
    found = balanced_random(KEY, pool, 14).indices
    np.testing.assert_array_equal(np.bincount(labels[found]), [3, 6, 0, 5])
    assert len(set(found.tolist())) == 14 and 0 not in found
    other = balanced_random(jax.random.key(1), pool, 14).indices
    assert set(other.tolist()) != set(found.tolist())
    assert balanced_random(KEY, pool, 42).indices.size == 42
    assert balanced_random(KEY, pool, 0).indices.size == 0
    labels[5] = -1
    with pytest.raises(ValueError, match="1 available samples have no label, the first is 5"):
        balanced_random(KEY, pool, 3)
    with pytest.raises(ValueError, match="labels"):
        balanced_random(KEY, Pool(features=np.zeros((3, 1))), 1)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 12), st.sampled_from(["ties", "worse"])
)
def test_shortlists_are_the_best_of_each_class(seed, classes, length, kind):
    generator = np.random.default_rng(seed)
    values = generator.integers(-3, 4, (57, classes)).astype(np.float32)
    values[generator.random(values.shape) < 0.2] = np.inf
    values[generator.random(values.shape) < 0.1] = -0.0
    if kind == "worse":
        values = np.sort(generator.normal(size=(57, classes)), axis=0)[::-1].astype(np.float32)
    rows = np.sort(generator.choice(200, 57, replace=False))
    shortlist = _Shortlist(classes, length)
    # Blocks as short as those of a stream whose candidates would not fit.
    limit = mock.patch("densejax.active.balanced.PENDING", 5 if kind == "worse" else 2**22)
    cuts = np.sort(generator.integers(0, 57, 3))
    with limit:
        for part in np.split(np.arange(57), cuts):
            shortlist.add(rows[part], values[part])
    assert shortlist.complete == (length >= 57)
    for c, (best, found) in enumerate(shortlist.lists()):
        expected = np.lexsort((rows, values[:, c]))[:length]
        np.testing.assert_array_equal(best, rows[expected])
        np.testing.assert_array_equal(found, values[expected, c])


def by_column(values, budget, order):
    """Each class in turn takes the row of its column's largest value that is left."""
    turns = np.arange(budget) % values.shape[1]
    turns = np.sort(turns) if order == "block" else turns
    left = list(range(len(values)))
    picks = []
    for turn in turns:
        picks.append(max(left, key=lambda i: (values[i, turn], -i)))
        left.remove(picks[-1])
    return picks


@pytest.mark.parametrize("order", ["round_robin", "block"])
def test_classes_that_want_the_same_samples(order, monkeypatch):
    """All columns agree, so that shortlists run out and the pool is read again."""
    monkeypatch.setattr("densejax.active.balanced.CANDIDATES", 1)
    monkeypatch.setattr("densejax.active.balanced.SPARE", 0)
    column = np.random.default_rng(0).integers(0, 50, 120).astype(np.float32)
    values = np.repeat(column[:, None], 6, axis=1)
    select = balanced(LOGITS, order=order)
    for budget in (0, 3, 6, 50, 120):
        found = select(KEY, Pool(logits=values), budget)
        np.testing.assert_array_equal(found.indices, by_column(values, budget, order))
        np.testing.assert_array_equal(found.scores, column[found.indices])


def test_short_lists_of_bounds_are_enough(monkeypatch):
    """Exact boundaries, with so short a list that bounds alone can't tell the best."""
    generator = np.random.default_rng(5)
    features = generator.normal(size=(80, 3)).astype(np.float32)
    kernel = generator.normal(size=(3, 12)).astype(np.float32)
    pool = Pool(features=features, kernel=kernel)
    expected = base(KEY, pool, 30, boundary="exact")
    monkeypatch.setattr("densejax.active.balanced.CANDIDATES", 1)
    monkeypatch.setattr("densejax.active.balanced.SPARE", 0)
    found = base(KEY, pool, 30, boundary="exact")
    np.testing.assert_array_equal(found.indices, expected.indices)


def test_base_is_balanced_dcsdb():
    generator = np.random.default_rng(2)
    pool = Pool(
        features=generator.normal(size=(90, 4)).astype(np.float32),
        kernel=generator.normal(size=(4, 5)).astype(np.float32),
    )
    for options in ({"order": "block"}, {"class_order": "random"}):
        found = base(KEY, pool, 33, **options)
        expected = balanced(dcsdb_score(pool), **options)(KEY, pool, 33)
        np.testing.assert_array_equal(found.indices, expected.indices)


def prediction_pool(seed=0):
    """Predicted classes 0 to 3 with 2, 0, 30 and 28 samples, 7 of them labelled."""
    generator = np.random.default_rng(seed)
    predicted = generator.permutation(np.repeat([0, 2, 3], [2, 30, 28]))
    logits = generator.normal(size=(60, 4)).astype(np.float32)
    logits[np.arange(60), predicted] = 5 + generator.random(60)
    labelled = np.zeros(60, bool)
    labelled[generator.choice(np.flatnonzero(predicted == 2), 7, replace=False)] = True
    return Pool(logits=logits, labelled=labelled), predicted


@pytest.mark.parametrize("order", ["round_robin", "block"])
def test_a_score_is_balanced_by_prediction(order):
    pool, predicted = prediction_pool()
    values = np.asarray(jax.nn.softmax(pool.logits, axis=1).max(axis=1))
    for budget in (0, 1, 5, 21, 53):
        found = balanced(CONFIDENCE, order=order)(KEY, pool, budget)
        free = pool.available
        shares = released_shares([(free & (predicted == c)).sum() for c in range(4)], budget)
        ranked = [
            sorted(np.flatnonzero(free & (predicted == c)), key=lambda i: (values[i], i))[:share]
            for c, share in enumerate(shares)
        ]
        picks = [
            (turn if order == "round_robin" else c, c, i)
            for c, best in enumerate(ranked)
            for turn, i in enumerate(best)
        ]
        picks.sort(key=lambda pick: pick[:2])
        np.testing.assert_array_equal(found.indices, [i for _, _, i in picks])
        np.testing.assert_allclose(found.scores, values[found.indices], rtol=1e-6)


def test_a_selector_is_balanced_by_prediction():
    pool, predicted = prediction_pool()
    seen = []

    def lowest(key, pool, budget):
        seen.append(int(pool.available.sum()))
        indices = np.flatnonzero(pool.available)[:budget]
        return Selection(indices, np.zeros(budget, np.float32))

    found = balanced(lowest)(KEY, pool, 20).indices
    np.testing.assert_array_equal(np.bincount(predicted[found]), [2, 0, 9, 9])
    assert seen == [2, 23, 28]
    assert len(set(found.tolist())) == 20 and not pool.labelled[found].any()
    drawn = balanced(random)(KEY, pool, 20).indices
    np.testing.assert_array_equal(np.bincount(predicted[drawn]), [2, 0, 9, 9])
    passes = Pool(passes=np.asarray(jax.nn.softmax(pool.logits))[:, None], labelled=pool.labelled)
    np.testing.assert_array_equal(balanced(lowest)(KEY, passes, 20).indices, found)
    with pytest.raises(ValueError, match="classes unknown"):
        balanced(lowest)(KEY, Pool(features=np.zeros((5, 2))), 2)


def greedy_balance(features, labels, labelled, budget, farthest):
    """The balancing sampler as loops; None stands for a pick at random, which must be given."""
    classes = labels.max() + 1
    known = {int(i): int(labels[i]) for i in np.flatnonzero(labelled)}
    picks = []
    for left in range(budget, 0, -1):
        counts = np.array([sum(v == c for v in known.values()) for c in range(classes)])
        large = [c for c in range(classes) if counts[c] > counts.mean()]
        small = [c for c in range(classes) if c not in large]
        gap = counts[large].mean() - counts[small].mean() if large else 0
        if not large or left > len(small) * gap:
            picks.append(None)
            given = yield picks
            known[given] = int(labels[given])
            continue
        means = {
            c: np.mean([features[i] for i, v in known.items() if v == c], axis=0)
            for c in range(classes)
            if counts[c]
        }
        rarest = int(np.argmin(counts))
        best = (np.inf, None)
        for i in range(len(features)):
            if i in known:
                continue
            above = ((features[i] - means[rarest]) ** 2).sum() if counts[rarest] else 1
            below = farthest(((features[i] - means[c]) ** 2).sum() for c in large)
            quotient = above / below if below else np.inf
            if best[1] is None or quotient < best[0]:
                best = (quotient, i)
        picks.append(best[1])
        given = yield picks
        known[given] = int(labels[given])


@pytest.mark.parametrize("far", ["max", "min"])
@pytest.mark.parametrize("held", [True, False])
def test_balancing_is_its_loop(far, held, monkeypatch):
    if not held:
        monkeypatch.setattr("densejax.active.strategies.balancing.RESIDENT", 0)
    for seed in range(3):
        generator = np.random.default_rng(seed)
        labels = generator.choice(4, 50, p=[0.6, 0.25, 0.1, 0.05]).astype(np.int32)
        labels[:4] = 3, 2, 1, 0
        features = (generator.normal(size=(50, 3)) + 2 * labels[:, None]).astype(np.float32)
        labelled = generator.permutation(50) < 15
        asked = []

        def oracle(row, labels=labels, asked=asked):
            asked.append(row)
            return labels[row]

        known = np.where(labelled, labels, -1)
        pool = Pool(features=features, labels=known, labelled=labelled, logits=np.zeros((50, 4)))
        found = balancing(KEY, pool, 12, reveal=oracle, far=far)
        loop = greedy_balance(
            features.astype(np.float64), labels, labelled, 12, max if far == "max" else min
        )
        expected = next(loop)
        for place, pick in enumerate(found.indices):
            assert np.isnan(found.scores[place]) == (expected[-1] is None)
            assert expected[-1] in (None, pick)
            if place < 11:
                expected = loop.send(int(pick))
        assert asked == found.indices[:-1].tolist()
        assert len(set(found.indices.tolist())) == 12 and not labelled[found.indices].any()
        whole = Pool(features=features, labels=labels, labelled=labelled)
        np.testing.assert_array_equal(balancing(KEY, whole, 12, far=far).indices, found.indices)


def test_balancing_of_degenerate_pools():
    features = np.zeros((6, 2), np.float32)
    labels = np.array([0, 0, 0, 1, 1, 2], np.int32)
    labelled = np.array([True, True, True, False, False, False])
    pool = Pool(features=features, labels=labels, labelled=labelled)
    assert sorted(balancing(KEY, pool, 3).indices.tolist()) == [3, 4, 5]
    fresh = Pool(features=features, labels=labels)
    assert sorted(balancing(KEY, fresh, 6).indices.tolist()) == list(range(6))
    assert balancing(KEY, pool, 0).indices.size == 0
    with pytest.raises(ValueError, match="the label of sample"):
        balancing(KEY, pool, 3, reveal=lambda row: 7)
    with pytest.raises(ValueError, match="features"):
        balancing(KEY, Pool(labels=labels), 3)
    with pytest.raises(ValueError, match="far"):
        balancing(KEY, pool, 3, far="median")


def test_values_may_be_infinite_for_all():
    values = jnp.full((7, 3), jnp.inf)

    def all_infinite(logits):
        return jnp.full_like(logits, jnp.inf)

    score = Score("far", ("logits",), all_infinite, largest_first=False, classwise=True)
    found = balanced(score)(KEY, Pool(logits=jnp.zeros_like(values)), 7)
    np.testing.assert_array_equal(found.indices, np.arange(7))


@pytest.mark.parametrize("given", ["features", "probabilities"])
def test_what_predicts(given):
    pool, predicted = prediction_pool()
    if given == "features":
        pool = Pool(
            features=pool.logits, kernel=np.eye(4, dtype=np.float32), labelled=pool.labelled
        )
    else:
        pool = Pool(probabilities=np.asarray(jax.nn.softmax(pool.logits)), labelled=pool.labelled)
    found = balanced(random)(KEY, pool, 20).indices
    np.testing.assert_array_equal(np.bincount(predicted[found]), [2, 0, 9, 9])
