"""Scores against NumPy and SciPy in float64, on random and degenerate distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from densejax.active import scores
from densejax.active.pool import Pool
from densejax.active.rows import members
from densejax.active.scores import evaluate
from densejax.active.strategies import odin

KEY = jax.random.key(0)
settings.register_profile("scores", deadline=None, max_examples=25)
settings.load_profile("scores")


def probabilities(*shape, seed=0, sharp=3.0):
    logits = np.random.default_rng(seed).standard_normal(shape) * sharp
    return scipy.special.softmax(logits, axis=-1).astype(np.float32)


def degenerate(c):
    """Uniform, one-hot, two equal, nearly one-hot."""
    rows = [np.full(c, 1 / c), np.eye(c)[0], np.eye(c)[c - 1], (np.eye(c)[0] + np.eye(c)[1]) / 2]
    return np.array(rows, np.float32)


ONE = {
    "confidence": (scores.confidence, lambda p: np.sort(p)[:, -1], False),
    "margin": (scores.margin, lambda p: np.sort(p)[:, -1] - np.sort(p)[:, -2], False),
    "least confidence": (scores.least_confidence, lambda p: 1 - p.max(1), True),
    "max softmax": (scores.max_softmax, lambda p: 1 - p.max(1), True),
    "entropy": (scores.entropy, lambda p: scipy.stats.entropy(p, axis=1), True),
}


@pytest.mark.parametrize("name", ONE)
@pytest.mark.parametrize("c", [2, 3, 10])
def test_scores_of_probabilities(name, c):
    make, reference, largest_first = ONE[name]
    p = np.concatenate([probabilities(50, c), degenerate(c)])
    score = make()
    assert (score.name, score.largest_first) == (name, largest_first)
    found = evaluate(score, Pool(probabilities=p))
    np.testing.assert_allclose(found, reference(p.astype(np.float64)), rtol=1e-5, atol=2e-7)
    # A Score is the same object each time, so that its program is compiled once.
    assert make() is score


@pytest.mark.parametrize("name", ["confidence", "margin"])
def test_logits_rank_as_the_thesis_writes(name):
    z = np.random.default_rng(1).standard_normal((60, 5)).astype(np.float32) * 3
    ordered = np.sort(z.astype(np.float64))
    expected = {"confidence": ordered[:, -1], "margin": ordered[:, -1] - ordered[:, -2]}[name]
    by_logits = getattr(scores, name)(of="logits")
    pool = Pool(logits=z)
    np.testing.assert_allclose(evaluate(by_logits, pool), expected, rtol=1e-5, atol=1e-6)
    a = scores.ranked(by_logits)(KEY, pool, 60).indices
    b = scores.ranked(getattr(scores, name)())(KEY, pool, 60).indices
    assert a.tolist() == np.argsort(expected, kind="stable").tolist()
    assert a.tolist() != b.tolist()
    with pytest.raises(ValueError, match="expected probabilities or logits"):
        getattr(scores, name)(of="votes")


@pytest.mark.parametrize("m", [1, 2, 7])
def test_scores_of_passes(m):
    p = probabilities(40, m, 4, seed=2)
    p = np.concatenate([p, np.repeat(degenerate(4)[:, None], m, axis=1)])
    wide = p.astype(np.float64)
    mean = scipy.stats.entropy(wide.mean(1), axis=1)
    votes = np.stack([(p.argmax(-1) == c).mean(1) for c in range(4)], axis=1)
    expected = {
        scores.bald(): np.maximum(mean - scipy.stats.entropy(wide, axis=2).mean(1), 0),
        scores.mean_entropy(): mean,
        scores.vote_entropy(): scipy.stats.entropy(votes, axis=1),
    }
    for score, values in expected.items():
        found = evaluate(score, Pool(passes=p))
        np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-6, err_msg=score.name)
        assert (found >= 0).all()
    if m == 1:
        assert not evaluate(scores.bald(), Pool(passes=p)).any()


@given(st.integers(0, 10_000), st.integers(0, 12), st.booleans())
def test_ranked_is_a_stable_sort_without_what_is_known(seed, budget, turned):
    draw = np.random.default_rng(seed)
    # Few values, so that there are ties and duplicates.
    p = probabilities(3, 4, seed=seed)[draw.integers(0, 3, 20)]
    labelled = members(draw.permutation(20)[:5], 20)
    held_out = members(np.flatnonzero(~labelled)[:3], 20)
    pool = Pool(probabilities=p, labelled=labelled, held_out=held_out)
    score = scores.inverse(scores.entropy()) if turned else scores.entropy()
    found = scores.ranked(score)(KEY, pool, budget)
    values = evaluate(score, pool)
    sign = 1 if turned else -1
    free = [i for i in range(20) if not labelled[i] and not held_out[i]]
    assert found.indices.tolist() == sorted(free, key=lambda i: (sign * values[i], i))[:budget]
    assert found.indices.dtype == np.int64
    np.testing.assert_array_equal(found.scores, values[found.indices])


def test_the_order_of_the_pool_does_not_matter():
    p = probabilities(200, 6, seed=5)
    order = np.random.default_rng(0).permutation(200)
    for score in (scores.margin(), scores.entropy(), scores.confidence()):
        straight = scores.ranked(score)(KEY, Pool(probabilities=p), 30).indices
        mixed = scores.ranked(score)(KEY, Pool(probabilities=p[order]), 30).indices
        np.testing.assert_array_equal(order[mixed], straight)


def test_most_incorrect_is_by_the_true_labels():
    z = np.random.default_rng(3).standard_normal((30, 4)).astype(np.float32) * 4
    labels = np.random.default_rng(4).integers(0, 4, 30).astype(np.int32)
    true = -scipy.special.log_softmax(z.astype(np.float64), axis=1)[np.arange(30), labels]
    pool = Pool(logits=z, labels=labels)
    for of, expected in (("logits", true), ("probabilities", 1 - np.exp(-true))):
        score = scores.most_incorrect(of=of)
        np.testing.assert_allclose(evaluate(score, pool), expected, rtol=1e-4, atol=1e-6)
        found = scores.ranked(score)(KEY, pool, 10)
        np.testing.assert_array_equal(found.indices, np.argsort(-true)[:10])


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (None, "true labels of all samples"),
        ([0, -1, 1, 0], "1 that may be chosen have none, the first is 1"),
        ([0, 1, 7, 0], "label 7: expected fewer than 3"),
    ],
)
def test_most_incorrect_refuses_missing_labels(labels, match):
    labels = None if labels is None else np.array(labels, np.int32)
    pool = Pool(probabilities=probabilities(4, 3), labels=labels)
    with pytest.raises(ValueError, match=match):
        scores.ranked(scores.most_incorrect())(KEY, pool, 1)
    if labels is not None and (labels < 0).any():
        allowed = Pool(probabilities=probabilities(4, 3), labels=labels, labelled=labels < 0)
        assert len(scores.ranked(scores.most_incorrect())(KEY, allowed, 3).indices) == 3


MAPS = {
    "entropy": lambda p: scipy.stats.entropy(p, axis=-1),
    "max_softmax": lambda p: 1 - p.max(-1),
    "margin": lambda p: 1 - (np.sort(p)[..., -1] - np.sort(p)[..., -2]),
}


@pytest.mark.parametrize("space", [(6, 5), (2, 4, 3)])
@pytest.mark.parametrize("measure", MAPS)
@pytest.mark.parametrize("masked", [False, True])
def test_pixels_are_averaged_and_counted(space, measure, masked):
    p = probabilities(9, *space, 5, seed=6, sharp=1.0)
    mask = np.random.default_rng(1).random((9, *space)) < 0.7
    mask[4] = False
    weights = mask if masked else np.ones_like(mask)
    pool = Pool(probabilities=p, mask=mask if masked else None)
    values = MAPS[measure](p.astype(np.float64))
    axes = tuple(range(1, values.ndim))
    number = np.maximum(weights.sum(axes), 1)
    average = scores.over_pixels(measure, masked=masked)
    expected = (values * weights).sum(axes) / number
    np.testing.assert_allclose(evaluate(average, pool), expected, rtol=1e-5, atol=1e-6)
    for options, level in [
        ({}, scores.THRESHOLDS[measure]),
        ({"threshold": 0.4}, 0.4),
        ({"threshold": 0.6, "relative": True}, 0.6 * scores.largest_value(measure, 5)),
    ]:
        count = scores.over_pixels(measure, aggregation="count", masked=masked, **options)
        expected = ((values > level) * weights).sum(axes) / number
        np.testing.assert_allclose(evaluate(count, pool), expected, atol=1e-6)


def test_pixels_of_passes_and_errors():
    passes = probabilities(6, 3, 4, 5, 3, seed=7)
    wide = passes.astype(np.float64)
    mean = scipy.stats.entropy(wide.mean(1), axis=-1)
    information = mean - scipy.stats.entropy(wide, axis=-1).mean(1)
    pool = Pool(passes=passes)
    for measure, values in (("mean_entropy", mean), ("bald", information)):
        found = evaluate(scores.over_pixels(measure), pool)
        np.testing.assert_allclose(found, values.mean((1, 2)), rtol=1e-4, atol=1e-6)
    labels = np.random.default_rng(2).integers(-1, 3, (6, 4, 5)).astype(np.int32)
    p = passes[:, 0]
    true = np.take_along_axis(p, np.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    known = labels >= 0
    expected = ((1 - true) * known).sum((1, 2)) / known.sum((1, 2))
    found = evaluate(scores.over_pixels("error"), Pool(probabilities=p, labels=labels))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("measure", ["entropy", "max_softmax"])
def test_published_thresholds_say_nothing_of_two_classes(measure):
    p = probabilities(8, 16, 16, 2, seed=8)
    pool = Pool(probabilities=p)
    with pytest.raises(ValueError, match="of 2 classes exceeds"):
        evaluate(scores.over_pixels(measure, aggregation="count"), pool)
    level = scores.pixel_quantile(measure, pool, 0.9)
    values = MAPS[measure](p.astype(np.float64))
    assert (
        abs(level - np.quantile(values, 0.9)) < 2 * scores.largest_value(measure, 2) / 4096 + 1e-3
    )
    count = scores.over_pixels(measure, aggregation="count", threshold=level)
    found = evaluate(count, pool)
    assert abs(found.mean() - 0.1) < 2e-3
    assert len(set(found.tolist())) > 1


def test_pixel_quantile_follows_mask_and_availability():
    p = probabilities(6, 8, 8, 4, seed=9, sharp=1.0)
    mask = np.random.default_rng(0).random((6, 8, 8)) < 0.5
    labelled = np.arange(6) < 2
    pool = Pool(probabilities=p, mask=mask, labelled=labelled)
    values = MAPS["entropy"](p.astype(np.float64))[2:][mask[2:]]
    for q in (0.1, 0.5, 0.99):
        found = scores.pixel_quantile("entropy", pool, q, masked=True)
        assert abs((values <= found).mean() - q) < 0.01
    empty = Pool(probabilities=p, mask=np.zeros_like(mask))
    with pytest.raises(ValueError, match="no pixel of the 6 images counts"):
        scores.pixel_quantile("entropy", empty, 0.5, masked=True)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"measure": "surprise"}, "expected one of entropy"),
        ({"measure": "entropy", "aggregation": "sum"}, "expected average or count"),
        ({"measure": "entropy", "threshold": 0.1}, "only with a count"),
        ({"measure": "bald", "aggregation": "count"}, "needs a threshold"),
    ],
)
def test_pixel_scores_refuse(options, match):
    with pytest.raises(ValueError, match=match):
        scores.over_pixels(options.pop("measure"), **options)


def test_classwise_scores_rank_nothing():
    with pytest.raises(ValueError, match="orders no samples"):
        scores.ranked(scores.Score("c", ("logits",), jnp.asarray, classwise=True))


def test_scores_agree_in_all_modes(assert_modes_agree):
    p = jnp.asarray(probabilities(12, 5))
    for function in (scores.gap, scores._doubt, scores._closeness, scores.entropy_of):
        assert_modes_agree(function, p)
    assert_modes_agree(scores._mutual_information, jnp.asarray(probabilities(6, 3, 5)))


@pytest.mark.parametrize(
    ("temperature", "step"),
    # At T = 1e-4 the gradients of most images are below what float32 holds.
    [(1e-4, 0.0), *[(t, s) for t in (0.5, 1.0, 1000.0) for s in (0.0, 0.0014, 0.1)]],
)
@pytest.mark.parametrize("dense", [False, True])
def test_odin_against_torch(temperature, step, dense):
    torch = pytest.importorskip("torch")
    draw = np.random.default_rng(11)
    images = draw.standard_normal((40, 4, 3)).astype(np.float32)
    weights = draw.standard_normal((3, 8)).astype(np.float32)
    head = draw.standard_normal((8, 5)).astype(np.float32)

    def network(x):
        z = jnp.tanh(x @ weights) @ head
        return z if dense else z.mean(axis=1)

    def torch_network(x):
        z = torch.tanh(x @ torch.tensor(weights, dtype=torch.float64)) @ torch.tensor(
            head, dtype=torch.float64
        )
        return z if dense else z.mean(dim=1)

    x = torch.tensor(images, dtype=torch.float64, requires_grad=True)
    log_p = torch.log_softmax(torch_network(x) / temperature, dim=-1)
    log_p.max(dim=-1)[0].sum().backward()
    # The sign of a gradient that is zero but for rounding says nothing: those images are left out.
    sure = (x.grad.abs().numpy() > 1e-5 / temperature).all(axis=(1, 2)) | (step == 0)
    assert sure.sum() > 20
    moved = x.detach() + step * torch.sign(x.grad)
    z = torch_network(moved) / temperature
    expected = torch.softmax(z, dim=-1).numpy()
    logits = odin.odin(network, temperature=temperature, step=step)(jnp.asarray(images))
    assert logits.shape == expected.shape
    tolerance = 1e-5 if temperature >= 0.1 else 2e-2
    found = jax.nn.softmax(logits)
    np.testing.assert_allclose(found[sure], expected[sure], atol=tolerance)
    score = odin.odin_score(network, temperature=temperature, step=step)
    doubt = 1 - expected.max(-1)
    doubt = doubt.mean(-1) if dense else doubt
    found = evaluate(score, Pool(images=images))
    np.testing.assert_allclose(found[sure], doubt[sure], atol=tolerance)


def test_odin_moves_towards_certainty_and_tells_apart_what_rounds():
    images = np.random.default_rng(12).standard_normal((40, 6)).astype(np.float32)
    weights = np.random.default_rng(13).standard_normal((6, 4)).astype(np.float32)

    def network(x):
        return x @ weights

    still = evaluate(odin.odin_score(network, temperature=1.0, step=0.0), Pool(images=images))
    moved = evaluate(odin.odin_score(network, temperature=1.0, step=0.05), Pool(images=images))
    assert (moved <= still + 1e-6).all()
    assert moved.mean() < still.mean()
    sharp = evaluate(odin.odin_score(network, temperature=0.1, step=0.0), Pool(images=images))
    z = images.astype(np.float64) @ weights / 0.1
    rest = np.exp(scipy.special.logsumexp(np.sort(z)[:, :-1], axis=1) - z.max(1))
    np.testing.assert_allclose(sharp, rest / (1 + rest), rtol=1e-3, atol=1e-30)
    assert (1 - scipy.special.softmax(z, axis=1).astype(np.float32).max(1) == 0).any()


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0, "step": 0.0}, {"temperature": 1, "step": -1}]
)
def test_odin_refuses(options):
    with pytest.raises(ValueError, match="expected"):
        odin.odin(jnp.asarray, **options)
