"""Populations against SciPy, brute force, and samples whose shape is known."""

import itertools
import warnings

import numpy as np
import pytest
from scipy import stats

from densejax.ensembles import distributions as d


def normal(seed, n, mean=0.6, deviation=0.05):
    return np.random.default_rng(seed).normal(mean, deviation, n)


def test_summary_by_sorting():
    scores = normal(0, 101)
    ranked = np.sort(scores)
    found = d.summarise(scores)
    assert found == d.Summary(101, *ranked[[0, 25, 50, 75, 100]])


@pytest.mark.parametrize("sizes", [(4, 5), (8, 30), (40, 60)])
def test_mann_whitney_by_counting_pairs(sizes):
    a, b = normal(1, sizes[0]), normal(2, sizes[1], 0.57)
    found = d.mann_whitney(a, b)
    above = sum(float(x > y) + 0.5 * (x == y) for x, y in itertools.product(a, b))
    assert found.u == above
    assert found.common_language == pytest.approx(above / (a.size * b.size))
    assert found.rank_biserial == pytest.approx(2 * found.common_language - 1)
    assert found.p_value == stats.mannwhitneyu(a, b).pvalue


def test_mann_whitney_exact_by_all_rearrangements():
    a, b = np.array([0.5, 0.9, 0.8]), np.array([0.1, 0.2, 0.6, 0.3])
    both, middle = np.concatenate([a, b]), a.size * b.size / 2

    def u(chosen):
        rest = np.delete(both, chosen)
        return sum(x > y for x in both[list(chosen)] for y in rest)

    observed = abs(u((0, 1, 2)) - middle)
    every = [abs(u(c) - middle) >= observed for c in itertools.combinations(range(7), 3)]
    assert d.mann_whitney(a, b).p_value == pytest.approx(np.mean(every))


def test_mann_whitney_is_antisymmetric_and_blind_to_scale():
    a, b = normal(3, 20), normal(4, 25)
    forward, backward = d.mann_whitney(a, b), d.mann_whitney(b, a)
    assert forward.rank_biserial == pytest.approx(-backward.rank_biserial)
    assert forward.p_value == pytest.approx(backward.p_value)
    assert d.mann_whitney(np.exp(a), np.exp(b)) == forward
    assert d.mann_whitney([1.0, 1.0], [1.0, 1.0, 1.0]) == d.RankComparison(3.0, 1.0, 0.5, 0.0)


def test_holm_by_its_definition():
    np.testing.assert_allclose(d.holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(d.holm([0.9, 0.8]), [1, 1])
    with pytest.raises(ValueError, match=r"0\.\.1"):
        d.holm([0.5, 1.5])


def test_bootstrap_agrees_with_scipy_and_with_its_seed():
    scores = normal(5, 60)
    found = d.bootstrap_median(scores, seed=3)
    assert found == d.bootstrap_median(scores, seed=3)
    expected = stats.bootstrap(
        (scores,), np.median, method="percentile", n_resamples=10_000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert found.median == np.median(scores)
    assert found.low == pytest.approx(expected.low, abs=2e-3)
    assert found.high == pytest.approx(expected.high, abs=2e-3)
    wider = d.bootstrap_median(scores, seed=3, confidence=0.99)
    assert wider.low <= found.low <= found.median <= found.high <= wider.high


def test_bootstrap_covers_the_true_median():
    intervals = [d.bootstrap_median(normal(s, 40), resamples=500) for s in range(200)]
    covered = np.mean([i.low <= 0.6 <= i.high for i in intervals])
    assert 0.88 < covered <= 1


def test_two_populations_are_found():
    scores = np.concatenate([normal(6, 40, 0.45, 0.02), normal(7, 60, 0.62, 0.03)])
    found = d.bimodality(np.random.default_rng(0).permutation(scores))
    assert found.bimodal and found.modes == 2 and found.delta_bic > 10
    np.testing.assert_allclose(found.means, (0.45, 0.62), atol=0.015)
    np.testing.assert_allclose(found.deviations, (0.02, 0.03), atol=0.012)
    np.testing.assert_allclose(found.weights, (0.4, 0.6), atol=0.03)


def test_one_population_is_left_whole():
    assert not any(d.bimodality(normal(s, 60), restarts=5).bimodal for s in range(20))


def test_skew_is_not_two_peaks():
    skewed = np.random.default_rng(0).exponential(0.1, 200)
    found = d.bimodality(skewed)
    assert found.delta_bic > 6
    close = d.bimodality(np.random.default_rng(1).gamma(4.0, 0.1, 200))
    assert close.modes == 1 and not close.bimodal


def test_bic_of_one_gaussian_by_hand():
    scores = normal(8, 50)
    floor = 1e-3
    with_floor = scores.std() * np.sqrt(1 + floor**2)
    one = -2 * stats.norm.logpdf(scores, scores.mean(), with_floor).sum() + 2 * np.log(50)
    found = d.bimodality(scores, floor=floor)
    density = sum(
        w * stats.norm.pdf(scores, m, s)
        for w, m, s in zip(found.weights, found.means, found.deviations, strict=True)
    )
    two = -2 * np.log(density).sum() + 5 * np.log(50)
    assert found.delta_bic == pytest.approx(one - two, abs=1e-6)


def test_bimodality_does_not_mind_unit_or_order():
    scores = np.concatenate([normal(9, 20, 0.4, 0.03), normal(10, 20, 0.6, 0.03)])
    found, scaled = d.bimodality(scores), d.bimodality(1000 * scores + 7)
    assert scaled.delta_bic == pytest.approx(found.delta_bic, abs=1e-3)
    assert d.bimodality(scores[::-1]).delta_bic == pytest.approx(found.delta_bic, abs=0.05)


def test_ties_do_not_make_a_population_of_one_score():
    scores = np.concatenate([normal(11, 40), [0.6, 0.6, 0.6]])
    assert not d.bimodality(scores).bimodal
    equal = d.bimodality(np.full(30, 0.1))
    assert equal.delta_bic == pytest.approx(-3 * np.log(30)) and not equal.bimodal


def test_few_scores_warn():
    with pytest.warns(UserWarning, match="7 scores"):
        d.bimodality(normal(12, 7))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        d.bimodality(normal(12, 8))


def test_errors_name_the_array():
    with pytest.raises(ValueError, match="b has shape"):
        d.mann_whitney([1.0], [])
    with pytest.raises(ValueError, match=r"scores\[1\] is nan"):
        d.summarise([1.0, float("nan")])
    with pytest.raises(ValueError, match="confidence"):
        d.bootstrap_median([1.0], confidence=1.0)
    with pytest.raises(ValueError, match="at least 2"):
        d.bimodality([1.0])
    with pytest.raises(ValueError, match="floor"):
        d.bimodality([1.0, 2.0], floor=0.0)
