"""Statistics against SciPy, brute force, by hand, and on samples whose shape is known."""

import itertools
import warnings

import numpy as np
import pytest
from scipy import stats

from densejax import stats as d


def normal(seed, n, mean=0.6, deviation=0.05):
    return np.random.default_rng(seed).normal(mean, deviation, n)


def test_summary_by_sorting():
    scores = normal(0, 101)
    ranked = np.sort(scores)
    found = d.five_numbers(scores)
    assert found == d.FiveNumbers(101, *ranked[[0, 25, 50, 75, 100]])


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
    assert found.value == np.median(scores)
    assert found.low == pytest.approx(expected.low, abs=2e-3)
    assert found.high == pytest.approx(expected.high, abs=2e-3)
    wider = d.bootstrap_median(scores, seed=3, confidence=0.99)
    assert wider.low <= found.low <= found.value <= found.high <= wider.high


def test_bootstrap_covers_the_true_median():
    intervals = [d.bootstrap_median(normal(s, 40), resamples=500) for s in range(200)]
    covered = np.mean([i.low <= 0.6 <= i.high for i in intervals])
    assert 0.88 < covered <= 1


def test_intervals_hang_on_no_order_of_the_scores():
    scores = [0.31, 0.42, 0.33, 0.38, 0.29, 0.45, 0.36, 0.35]
    for compute in (d.bootstrap_median, d.bootstrap_mean):
        found = {compute(order) for order in (scores, scores[::-1], sorted(scores))}
        assert len(found) == 1


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
        d.five_numbers([1.0, float("nan")])
    with pytest.raises(ValueError, match="confidence"):
        d.bootstrap_median([1.0], confidence=1.0)
    with pytest.raises(ValueError, match="at least 2"):
        d.bimodality([1.0])
    with pytest.raises(ValueError, match="floor"):
        d.bimodality([1.0, 2.0], floor=0.0)


# ---- seeds, pairs, claims, tables ----


def test_correlations_are_scipys():
    draw = np.random.default_rng(0)
    x = draw.integers(0, 5, 40).astype(float)  # with ties
    y = x + draw.normal(size=40)
    seeds = np.arange(40) % 10
    found = d.spearman_by_seed(x, y, seeds)
    assert found.value == pytest.approx(stats.spearmanr(x, y).statistic, rel=1e-12)
    assert found.low < found.value < found.high
    # The interval against a bootstrap written out: whole seeds, ranks taken anew.
    again, draws = np.random.default_rng(0).integers(0, 10, (5000, 10)), []
    for some in again[:1000]:
        rows = np.concatenate([np.flatnonzero(seeds == seed) for seed in some])
        draws.append(stats.spearmanr(x[rows], y[rows]).statistic)
    low, high = np.quantile(draws, (0.025, 0.975))
    assert found.low == pytest.approx(low, abs=0.02)
    assert found.high == pytest.approx(high, abs=0.02)
    y[3] = np.nan
    keep = np.arange(40) != 3
    expected = stats.spearmanr(x[keep], y[keep]).statistic
    assert d.spearman_by_seed(x, y, seeds).value == pytest.approx(expected, rel=1e-12)
    assert np.isnan(d.spearman_by_seed(np.ones(5), np.arange(5), np.arange(5)).value)


def test_intervals_resample_whole_seeds():
    """Ten copies of each of 8 numbers know no more of the mean than the 8 do."""
    values = np.random.default_rng(1).normal(size=8)
    alone = d.mean_by_seed(values, np.arange(8))
    copied = d.mean_by_seed(np.repeat(values, 10), np.repeat(np.arange(8), 10))
    assert copied.value == pytest.approx(values.mean())
    assert copied.high - copied.low == pytest.approx(alone.high - alone.low, rel=1e-9)
    # Percentiles of the mean of resamples are close to the normal ones.
    wide = d.mean_by_seed(np.random.default_rng(2).normal(size=400), np.arange(400))
    assert wide.high - wide.low == pytest.approx(2 * 1.96 / 20, rel=0.1)
    one = d.mean_by_seed([1.0, 2.0], [3, 3])
    assert one.value == 1.5 and np.isnan(one.low)
    with pytest.raises(ValueError, match=r"expected \[n\] each"):
        d.by_seed(lambda c, w: np.zeros(len(w)), (np.zeros(3),), np.zeros(4))


def test_verdicts():
    inside, above, below = (d.Interval(*ends) for ends in ((0, -1, 1), (2, 1, 3), (-2, -3, -1)))
    for side, expected in (("above", "seen"), ("below", "not seen")):
        assert d.judge("", above, side=side).verdict == expected
        assert d.judge("", inside, side=side).verdict == "not told apart"
    assert d.judge("", below, side="below").verdict == "seen"
    assert d.judge("", above, side="above", level=4).verdict == "not seen"
    unknown = d.Interval(1.0, float("nan"), float("nan"))
    assert d.judge("", unknown, side="above").verdict == "not told apart"


def test_interval_of_a_mean_is_students():
    values = np.array([0.5, 0.7, 0.6, np.nan])
    found = d.student_mean(values)
    low, high = stats.t.interval(0.95, 2, loc=0.6, scale=stats.sem(values[:3]))
    np.testing.assert_allclose([found.value, found.low, found.high], [0.6, low, high])
    assert np.isnan(d.student_mean([1.0]).low) and d.student_mean([1.0]).value == 1


def test_paired_tests_are_scipys_with_holm():
    rng = np.random.default_rng(1)
    base = rng.normal(size=6)
    values = {"a": base + rng.normal(0.5, 0.2, 6), "b": base + rng.normal(0, 1, 6), "c": base}
    found = d.paired_tests(values, base)
    for name in "ab":
        np.testing.assert_allclose(found[name].p, stats.ttest_rel(values[name], base).pvalue)
    assert found["c"].p == 1
    assert found["a"].p_holm == pytest.approx(min(1, 3 * found["a"].p))
    alone = d.paired_tests({"a": values["a"][:1]}, base[:1])
    assert np.isnan(alone["a"].p) and np.isnan(alone["a"].p_holm)
    with pytest.raises(ValueError, match="a: "):
        d.paired_tests({"a": base[:3]}, base)


def test_pairs_are_judged_by_seed():
    rng = np.random.default_rng(2)
    base = dict(enumerate(rng.normal(0, 0.1, 8)))
    high = {seed: value + 1 + rng.normal(0, 0.1) for seed, value in base.items() if seed != 3}
    found = d.judge_pairs(
        [
            ("high above base", "table 1", high, base),
            ("base above high", "", base, high),
            ("base above base", "table 1", base, base),
            ("nobody above base", "table 1", None, base),
            ("others above base", "table 1", {99: 1.0}, base),
        ]
    )
    assert [one.verdict for one in found] == ["seen", "below", "not told apart"]
    gaps = [high[seed] - base[seed] for seed in high]
    p = stats.ttest_1samp(gaps, 0).pvalue
    assert found[0].test.p == pytest.approx(p) and found[2].test.p == 1
    assert found[0].test.p_holm == pytest.approx(3 * p)
    assert found[0].found.startswith(f"{np.mean(gaps):.4f} (")
    one = d.judge_pairs([("one seed", "", {0: 2.0}, {0: 1.0})])
    assert one[0].verdict == "not told apart" and d.judge_pairs([]) == []


def test_infinite_draws_have_nearest_ends():
    scores = np.array([1.0, 2.0, np.inf])
    found = d.bootstrap(lambda rows: scores[rows].max(axis=1), 3, resamples=1001, ends="nearest")
    drawn = np.random.default_rng(0).integers(0, 3, (1001, 3))
    ordered = np.sort(scores[drawn].max(axis=1))
    assert found == d.Interval(np.inf, ordered[25], ordered[975])
    none = d.bootstrap(lambda rows: np.full(len(rows), np.nan), 3)
    assert np.isnan(none.low) and np.isnan(none.high)


def test_mean_is_the_bootstrap_of_scipy():
    scores = normal(13, 30)
    expected = stats.bootstrap(
        (scores,), np.mean, method="percentile", n_resamples=5000, rng=np.random.default_rng(0)
    ).confidence_interval
    found = d.bootstrap_mean(scores)
    assert found.value == scores.mean()
    np.testing.assert_allclose([found.low, found.high], expected, atol=2e-3)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_sign_flips_by_flipping_them_all(n):
    gaps = normal(n, n, 0.03)
    sums = [abs(np.dot(signs, gaps)) for signs in itertools.product((-1, 1), repeat=n)]
    assert d.sign_flip_p(gaps) == pytest.approx(np.mean(np.array(sums) >= abs(gaps.sum()) - 1e-12))


def test_many_sign_flips_are_drawn():
    # Of many differences the sum is normal under the hypothesis.
    gaps = normal(5, 60, 0.01)
    expected = 2 * stats.norm.sf(abs(gaps.sum()) / np.sqrt((gaps**2).sum()))
    assert d.sign_flip_p(gaps) == pytest.approx(expected, abs=0.02) == d.sign_flip_p(gaps)
    with pytest.raises(ValueError, match=r"gaps\[1\] is nan"):
        d.sign_flip_p([0.1, np.nan])


def test_text_of_intervals_and_tables(tmp_path):
    nan = float("nan")
    assert f"{d.Interval(0.5, 0.25, nan):.1f}" == "0.5 (0.2 to nan)"
    assert d.Interval(0.5, 0.25, 0.75).text(digits=2) == "0.50 (0.25 to 0.75)"
    assert d.Interval(0.5, nan, nan).text() == "0.500" and d.NO_INTERVAL.text() == "none"
    exact = d.judge_all("all fit", d.Interval(1.0, 1.0, 1.0))
    assert d.findings_table([exact]) == [
        "| claim | published | verdict | found (95 %) |",
        "|---|---|---|---|",
        "| all fit | all | seen | 1.000 (1.000 to 1.000) |",
    ]
    tested = d.Finding("a", "", "above", "1", d.PairedTest(d.NO_INTERVAL, 0.012, 0.024))
    assert d.findings_table([tested, exact])[2:] == [
        "| a | no | above | 1 | 0.012 | 0.024 |",
        "| all fit | all | seen | 1.000 (1.000 to 1.000) |  |  |",
    ]
