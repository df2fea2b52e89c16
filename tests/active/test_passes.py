"""Stochastic passes of dropped features: those of the network, and what scores make of them."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.active import scores
from densejax.active.pool import Pool, Selection
from densejax.active.strategies.batchbald import batch_bald
from densejax.active.wrappers import _dropped_kernels, stochastic
from densejax.models.mlp import MLP

N, D, C, RATE = 23, 3, 4, 0.4
KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def world():
    """A network with dropout, pictures, and the pool that its evaluation makes."""
    model = MLP(C, widths=(D,), dropout=RATE)
    images = np.random.default_rng(0).normal(size=(N, 5)).astype(np.float32)
    variables = model.init(jax.random.key(1), images)
    variables = jax.tree.map(lambda leaf: 3 * leaf + 0.1, variables)
    _, out = model.apply(variables, images)
    head = variables["params"]["head"]
    labelled = np.arange(N) % 5 == 0
    held_out = np.arange(N) % 7 == 3
    pool = Pool(
        features=np.asarray(out["features"]),
        kernel=np.asarray(head["kernel"]),
        bias=np.asarray(head["bias"]),
        labelled=labelled,
        held_out=held_out & ~labelled,
    )
    return model, variables, images, pool


def caught(pool, *, key=KEY, rate=RATE, count=10):
    """The passes that a selector is given."""
    found = []

    def inner(key, pool, budget):
        found.append((np.asarray(pool.passes), pool.available))
        return Selection(np.flatnonzero(pool.available)[:budget], np.zeros(budget, np.float32))

    stochastic(inner, rate=rate, passes=count)(key, pool, 2)
    return found[0]


def of_masks(pool):
    """Probabilities [2^d, n, c] by every set of dropped features, in float64."""
    masks = np.array(list(itertools.product((0, 1), repeat=D)), float) / (1 - RATE)
    logits = np.einsum("nd,md,dc->mnc", pool.features, masks, pool.kernel) + pool.bias
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


def test_each_pass_is_one_that_the_network_can_make(world):
    model, variables, images, pool = world
    possible = of_masks(pool)
    given, available = caught(pool, count=40)
    assert given.shape == (N, 40, C) and (available == pool.available).all()
    distance = np.abs(given.transpose(1, 0, 2)[:, None] - possible).max(axis=(2, 3))
    # The same features are dropped of all samples, and all sets of them come up.
    assert (distance.min(axis=1) < 1e-5).all()
    assert len(set(distance.argmin(axis=1).tolist())) > 4
    one = jax.jit(lambda key: model.apply(variables, images, train=True, rngs={"dropout": key})[0])
    for number in range(5):
        theirs = jax.nn.softmax(one(jax.random.key(number)))
        apart = np.abs(np.asarray(theirs) - possible).max(axis=-1).min(axis=0)
        assert (apart < 1e-5).all()


def test_as_many_features_stay_as_the_rate_says():
    kernels = _dropped_kernels(KEY, jnp.ones((50, 2)), rate=0.3, passes=400)
    values = np.asarray(kernels)
    assert set(np.unique(values.round(5)).tolist()) == {0.0, np.float32(1 / 0.7).round(5)}
    np.testing.assert_array_equal(values[..., 0], values[..., 1])
    # Six deviations of 20,000 draws.
    assert abs((values[..., 0] > 0).mean() - 0.7) < 6 * np.sqrt(0.21 / 20_000)


def entropy(p, axis):
    return -(p * np.log(p)).sum(axis=axis)


def test_scores_are_those_of_the_passes(world):
    *_, pool = world
    given = caught(pool)[0].astype(np.float64)
    mean = entropy(given.mean(axis=1), -1)
    votes = np.eye(C)[given.argmax(axis=-1)].mean(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        votes = -np.nansum(votes * np.log(votes), axis=-1)
    expected = {
        "bald": mean - entropy(given, -1).mean(axis=1),
        "mean_entropy": mean,
        "vote_entropy": votes,
    }
    for name, values in expected.items():
        score = getattr(scores, name)()
        found = stochastic(score, rate=RATE)(KEY, pool, 6)
        free = np.flatnonzero(pool.available)
        np.testing.assert_allclose(found.scores, values[found.indices], atol=1e-5)
        np.testing.assert_allclose(found.scores, np.sort(values[free])[::-1][:6], atol=1e-5)
        assert pool.available[found.indices].all() and len(set(found.indices.tolist())) == 6


def test_a_batch_is_chosen_among_what_is_free(world):
    *_, pool = world
    found = stochastic(batch_bald, rate=RATE)(KEY, pool, 4)
    assert pool.available[found.indices].all() and len(set(found.indices.tolist())) == 4
    assert len(stochastic(batch_bald, rate=RATE)(KEY, pool, 0).indices) == 0
    other = stochastic(scores.bald(), rate=RATE)(jax.random.key(6), pool, 6).scores
    assert not np.array_equal(other, stochastic(scores.bald(), rate=RATE)(KEY, pool, 6).scores)


def test_a_program_serves_other_heads(world):
    *_, pool = world
    selector = stochastic(scores.bald(), rate=RATE)
    selector(KEY, pool, 6)
    compiled = scores._score._cache_size()
    other = replace(pool, kernel=2 * pool.kernel)
    stochastic(scores.bald(), rate=RATE)(jax.random.key(6), other, 6)
    assert scores._score._cache_size() == compiled


def test_what_cannot_be_is_refused(world):
    *_, pool = world
    for rate, count in ((0.0, 10), (1.0, 10), (0.5, 0)):
        with pytest.raises(ValueError, match=f"dropout is {rate} and passes {count}"):
            stochastic(scores.bald(), rate=rate, passes=count)
    with pytest.raises(ValueError, match="need the pool's features and the head's kernel"):
        stochastic(scores.bald(), rate=0.5)(KEY, Pool(logits=np.zeros((4, 2))), 1)
    with pytest.raises(ValueError, match="margin takes probabilities; expected passes"):
        stochastic(scores.margin(), rate=0.5)(KEY, pool, 1)
