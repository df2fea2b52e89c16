"""Statistics over seeds: intervals, tests, one population or two; claims with verdicts; tables.

A score is one number a seed, such as its peak MIoU. Everything here runs on the host on a few
hundred numbers. ``n`` in docstrings is the number of scores, ``r`` of resamples.

Rows that share a seed are not independent (minima with one initialisation, say). ``by_seed``
resamples whole seeds: a resample is a weight of each row, how often its seed was drawn, so that a
statistic is a function of columns [n] and weights [r, n] and all resamples are one computation.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import scipy
from numpy.typing import ArrayLike

from densejax.io import markdown

LEVEL = 0.95
APART = 0.05  # adjusted p below which two populations are told apart
RESAMPLES = 5000
# Below this many scores two Gaussians, five numbers, can be fitted to nearly anything.
FEWEST_FOR_BIMODALITY = 8

# Columns [n] each, weights [r, n] -> [r].
Statistic = Callable[[Sequence[np.ndarray], np.ndarray], np.ndarray]
# A claim, its source, and scores by seed of what is claimed to lie above and of the other.
Pair = tuple[str, str, Mapping[int, float] | None, Mapping[int, float] | None]


@dataclasses.dataclass(frozen=True)
class Interval:
    """A number and its interval, of 95 % where nothing else is asked for.

    Attributes:
      value: of all scores.
      low: lower end; not-a-number where there are too few seeds to tell.
      high: upper end.
    """

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        """Such as ``0.81 (0.70 to 0.90)`` by ``.2f``."""
        return f"{self.value:{spec}} ({self.low:{spec}} to {self.high:{spec}})"

    def text(self, *, digits: int = 3) -> str:
        """As formatted; the number alone without an interval, ``none`` without a number."""
        if not np.isfinite(self.value):
            return "none"
        return f"{self:.{digits}f}" if np.isfinite(self.low) else f"{self.value:.{digits}f}"


NO_INTERVAL = Interval(float("nan"), float("nan"), float("nan"))


@dataclasses.dataclass(frozen=True)
class FiveNumbers:
    """Order statistics of one population, in the unit of its scores."""

    count: int
    minimum: float
    lower_quartile: float
    median: float
    upper_quartile: float
    maximum: float


@dataclasses.dataclass(frozen=True)
class RankComparison:
    """Two populations a and b by the Mann-Whitney test.

    ``u`` counts the pairs in which a is above b, ties as one half. ``common_language`` is that
    part of all pairs, 0.5 where neither is better. ``rank_biserial`` puts it on -1..1, positive
    where a is better. ``p_value`` is two-sided.
    """

    u: float
    p_value: float
    common_language: float
    rank_biserial: float


@dataclasses.dataclass(frozen=True)
class Bimodality:
    """One Gaussian against two.

    ``delta_bic`` is the criterion of one minus that of two: positive speaks for two. ``means``,
    ``deviations`` and ``weights`` are of the two components, lower mean first, in the unit of the
    scores. ``modes`` is how many peaks their sum has: a skewed population also wants two Gaussians
    but has one peak. ``bimodal`` is two peaks and a difference above the threshold.
    """

    delta_bic: float
    means: tuple[float, float]
    deviations: tuple[float, float]
    weights: tuple[float, float]
    modes: int
    bimodal: bool


def five_numbers(scores: ArrayLike) -> FiveNumbers:
    """Compute the order statistics of a population; quartiles interpolate linearly.

    Args:
      scores: ``[n]`` float, finite, n at least 1.

    Raises:
      ValueError: the scores are not ``[n]``, none are given, or one is not finite.
    """
    values = _checked(scores, "scores")
    low, lower, middle, upper, high = np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist()
    return FiveNumbers(values.size, low, lower, middle, upper, high)


def mann_whitney(a: ArrayLike, b: ArrayLike) -> RankComparison:
    """Test whether a score of one population tends to lie above one of another.

    Mann and Whitney (1947), two-sided; exact for up to eight scores without ties, else the normal
    approximation with the corrections for ties and continuity. Effect sizes: McGraw and Wong
    (1992), Kerby (2014).

    Args:
      a: ``[n]`` float, finite, at least 1.
      b: ``[n']`` float, finite, at least 1.

    Raises:
      ValueError: as ``five_numbers``, naming ``a`` or ``b``.
    """
    first, second = _checked(a, "a"), _checked(b, "b")
    if np.ptp(np.concatenate([first, second])) == 0:
        # Every pair is a tie: the variance of U is zero, and nothing speaks for a difference.
        return RankComparison(first.size * second.size / 2, 1.0, 0.5, 0.0)
    result = scipy.stats.mannwhitneyu(first, second, alternative="two-sided", method="auto")
    part = float(result.statistic) / (first.size * second.size)
    return RankComparison(float(result.statistic), float(result.pvalue), part, 2 * part - 1)


def holm(p_values: ArrayLike) -> np.ndarray:
    """Adjust the p of several tests so that together they err no more often than one (Holm 1979).

    Args:
      p_values: ``[n]`` float in 0..1.

    Returns:
      ``[n]`` float64 in 0..1, each at least its own p, in the order given.

    Raises:
      ValueError: as ``five_numbers``, or a value is outside 0..1.
    """
    values = _checked(p_values, "p_values")
    if values.min() < 0 or values.max() > 1:
        raise ValueError(f"p_values go from {values.min()} to {values.max()}: expected 0..1")
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(values.size, 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


# ---- intervals ----


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray],
    n: int,
    *,
    seed: int | Sequence[int] = 0,
    resamples: int = RESAMPLES,
    confidence: float = LEVEL,
    ends: Literal["linear", "nearest"] = "linear",
) -> Interval:
    """Compute a statistic of n rows with its percentile bootstrap interval (Efron 1979).

    Args:
      statistic: of row numbers [r, n] int -> [r] float. The interval hangs on the order of its
        rows: sort them where they are only numbers.
      n: rows, at least 1, independent of each other.
      seed: of the resampling; the same seed gives the same interval.
      resamples: how many populations are drawn, at least 1.
      confidence: strictly between 0 and 1.
      ends: ``linear`` between two draws; the ``nearest`` draw where draws may be infinite.

    Returns:
      The interval; ends are not-a-number where no draw is a number.

    Raises:
      ValueError: ``resamples`` or ``confidence`` is out of range.
    """
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}: expected at least 1")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}: expected a number between 0 and 1")
    value = float(statistic(np.arange(n)[None])[0])
    drawn = statistic(np.random.default_rng(seed).integers(0, n, (resamples, n)))
    drawn = np.sort(drawn[~np.isnan(drawn)])
    if not drawn.size:
        return Interval(value, float("nan"), float("nan"))
    tail = (1 - confidence) / 2
    if ends == "nearest":
        low, high = (float(drawn[round(q * (drawn.size - 1))]) for q in (tail, 1 - tail))
    else:
        low, high = np.quantile(drawn, (tail, 1 - tail)).tolist()
    return Interval(value, low, high)


def bootstrap_median(
    scores: ArrayLike, *, seed: int = 0, resamples: int = 10_000, confidence: float = LEVEL
) -> Interval:
    """Compute the median with its bootstrap interval; in whatever order the scores come.

    The bias-corrected form is not used: its jackknife fails for a median (Efron and Tibshirani
    1993, section 11.6). Few scores give a median few values to take, and so a coarse interval.

    Args:
      scores: ``[n]`` float, finite, n at least 1.
      seed: as ``bootstrap``.
      resamples: as ``bootstrap``.
      confidence: as ``bootstrap``.

    Raises:
      ValueError: as ``five_numbers`` and ``bootstrap``.
    """
    values = _ranked(scores)
    options: dict[str, Any] = {"seed": seed, "resamples": resamples, "confidence": confidence}
    return bootstrap(lambda rows: np.median(values[rows], axis=1), values.size, **options)


def bootstrap_mean(scores: ArrayLike) -> Interval:
    """Compute the mean of ``[n]`` finite scores with its bootstrap interval.

    With five seeds it is narrower than it should be; tests use Student's t instead.
    """
    values = _ranked(scores)
    return bootstrap(lambda rows: values[rows].mean(axis=1), values.size)


def student_mean(scores: ArrayLike, *, confidence: float = LEVEL) -> Interval:
    """Compute the mean of the finite scores ``[n]`` with its interval by Student's t.

    Ends are not-a-number below two finite scores, and so is the mean without any.
    """
    values = np.asarray(scores, np.float64).ravel()
    values = values[np.isfinite(values)]
    if not values.size:
        return NO_INTERVAL
    mean = float(values.mean())
    if values.size == 1:
        return Interval(mean, np.nan, np.nan)
    quantile = scipy.stats.t.ppf((1 + confidence) / 2, values.size - 1)
    half = float(quantile * scipy.stats.sem(values))
    return Interval(mean, mean - half, mean + half)


def by_seed(statistic: Statistic, columns: Sequence[ArrayLike], seeds: ArrayLike) -> Interval:
    """Compute a statistic of columns ``[n]`` with its interval, whole seeds resampled.

    Args:
      statistic: of columns ``[n]`` and weights ``[r, n]`` -> ``[r]``, see the module.
      columns: ``[n]`` float each; rows where one is not finite are left out.
      seeds: ``[n]`` int.

    Returns:
      The interval; ends are not-a-number with fewer than two seeds.

    Raises:
      ValueError: the shapes differ.
    """
    arrays = [np.asarray(column, np.float64) for column in columns]
    numbers = np.asarray(seeds)
    shapes = [array.shape for array in (*arrays, numbers)]
    if len(set(shapes)) != 1 or numbers.ndim != 1:
        raise ValueError(f"columns and seeds have shapes {shapes}: expected [n] each")
    told = np.all([np.isfinite(array) for array in arrays], axis=0)
    arrays, numbers = [array[told] for array in arrays], numbers[told]
    different, group = np.unique(numbers, return_inverse=True)
    count = len(different)
    if count < 2:
        nan, weights = float("nan"), np.ones((1, len(numbers)))
        return Interval(float(statistic(arrays, weights)[0]), nan, nan) if count else NO_INTERVAL

    def of_seeds(drawn: np.ndarray) -> np.ndarray:
        places = np.arange(len(drawn))[:, None] * count + drawn
        often = np.bincount(places.ravel(), minlength=drawn.size).reshape(drawn.shape)
        return statistic(arrays, often[:, group].astype(np.float64))

    return bootstrap(of_seeds, count)


def mean_by_seed(values: ArrayLike, seeds: ArrayLike) -> Interval:
    """Compute the mean of ``[n]`` float or bool; rows that are not finite are left out."""
    return by_seed(lambda columns, weights: weighted_mean(columns[0], weights), (values,), seeds)


def spearman_by_seed(first: ArrayLike, second: ArrayLike, seeds: ArrayLike) -> Interval:
    """Compute Spearman's rank correlation of two numbers of each row, ties at their mean rank.

    Args:
      first: ``[n]`` float; rows where either is not finite are left out.
      second: ``[n]`` float.
      seeds: ``[n]`` int.

    Returns:
      -1 to 1; not-a-number where a number is the same for all, or with fewer than three rows.

    Raises:
      ValueError: the shapes differ.
    """
    return by_seed(_rank_correlation, (first, second), seeds)


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``[r]`` means of ``[n]`` values under ``[r, n]`` weights; nan where all weights are 0."""
    with np.errstate(invalid="ignore"):
        return weights @ values / weights.sum(axis=1)


def _rank_correlation(columns: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    if len(columns[0]) < 3:
        return np.full(len(weights), np.nan)
    ranks = [_weighted_ranks(column, weights) for column in columns]
    total = weights.sum(axis=1, keepdims=True)
    spreads = [rank - (weights * rank).sum(axis=1, keepdims=True) / total for rank in ranks]
    products = [
        (weights * a * b).sum(axis=1)
        for a, b in ((spreads[0], spreads[0]), (spreads[1], spreads[1]), spreads)
    ]
    # Ranks are halves of whole numbers below 2^20: a spread of none is one of rounding.
    flat = np.minimum(products[0], products[1]) < 1e-6
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(flat, np.nan, products[2] / np.sqrt(products[0] * products[1]))


def _weighted_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[r, n] ranks of a sample in which each value stands as often as its weight, less a half."""
    _, group = np.unique(values, return_inverse=True)
    member = group[:, None] == np.arange(group.max() + 1)
    totals = weights @ member
    return (np.cumsum(totals, axis=1) - totals / 2)[:, group]


# ---- tests ----


@dataclasses.dataclass(frozen=True)
class PairedTest:
    """Scores against a reference over the same seeds: mean difference, p, p adjusted by Holm."""

    difference: Interval
    p: float
    p_holm: float


def paired_tests(values: Mapping[str, ArrayLike], reference: ArrayLike) -> dict[str, PairedTest]:
    """Test scores against a reference by paired t tests, two-sided, with Holm's adjustment.

    Args:
      values: ``[n]`` float by name, such as an area of each seed; not-a-number where there is none.
      reference: ``[n]`` of the same seeds.

    Returns:
      By name the mean difference with its interval, p, and p adjusted for their number;
      p is nan below two seeds, and 1 where all differences are 0.

    Raises:
      ValueError: lengths differ.
    """
    base = np.asarray(reference, np.float64)
    found, ps = {}, []
    for name, one in values.items():
        if np.shape(one) != base.shape or base.ndim != 1:
            raise ValueError(f"{name}: {np.shape(one)} values; expected {base.shape}")
        gaps = np.asarray(one, np.float64) - base
        gaps = gaps[np.isfinite(gaps)]
        found[name] = student_mean(gaps)
        ps.append(_paired_p(gaps))
    known = [p for p in ps if np.isfinite(p)]
    adjusted = iter(holm(known) if known else [])
    return {
        name: PairedTest(found[name], p, float(next(adjusted)) if np.isfinite(p) else np.nan)
        for name, p in zip(found, ps, strict=True)
    }


def _paired_p(gaps: np.ndarray) -> float:
    if gaps.size < 2:
        return float("nan")
    if np.ptp(gaps) == 0:
        return 0.0 if gaps[0] else 1.0
    return float(scipy.stats.ttest_1samp(gaps, 0).pvalue)


def sign_flip_p(gaps: ArrayLike, *, resamples: int = 10_000) -> float:
    """Compute the two-sided p of a mean of paired differences by flipping their signs.

    Fisher (1935). Exact where ``resamples`` are enough for every way of flipping, so up to 13
    differences; beyond, of that many random ways.

    Args:
      gaps: ``[n]`` float, finite, n at least 1.
      resamples: ways at most.

    Returns:
      p; 1 for a single difference.

    Raises:
      ValueError: as ``five_numbers``.
    """
    values = _checked(gaps, "gaps")
    if values.size == 1:
        return 1.0
    found = scipy.stats.permutation_test(
        (values,),
        np.mean,
        permutation_type="samples",
        n_resamples=resamples,
        random_state=np.random.default_rng(0),
    )
    return float(found.pvalue)


# ---- one population or two ----


def bimodality(
    scores: ArrayLike,
    *,
    seed: int = 0,
    restarts: int = 10,
    floor: float = 0.1,
    threshold: float = 6.0,
) -> Bimodality:
    """Ask whether a population is better described by two Gaussians than by one.

    The Bayesian information criterion (Schwarz 1978) of maximum-likelihood fits with 2 and 5 free
    numbers. A difference above 6 is strong and above 10 very strong evidence (Kass and Raftery
    1995). Fits can fall onto one score, whose likelihood has no bound; so scores are first divided
    by their deviation, and ``floor**2`` is added to the variance of every component of both fits.

    Args:
      scores: ``[n]`` float, finite, n at least 2. Below 8 a warning is given.
      seed: of the starting points of the fits.
      restarts: starting points; the likeliest fit is kept.
      floor: smallest deviation of a component, in deviations of the whole population.
      threshold: difference of the criterion from which ``bimodal`` may be true.

    Returns:
      The comparison; for scores that are all equal, ``delta_bic`` is the penalty of the three
      needless numbers, ``-3 ln n``.

    Raises:
      ValueError: as ``five_numbers``, fewer than 2 scores, or an option that is not positive.
    """
    values = _checked(scores, "scores")
    if values.size < 2:
        raise ValueError(f"scores has {values.size} entry: expected at least 2")
    for name, option in (("restarts", restarts), ("floor", floor)):
        if option <= 0:
            raise ValueError(f"{name} is {option}: expected a positive number")
    if values.size < FEWEST_FOR_BIMODALITY:
        warnings.warn(
            f"bimodality of {values.size} scores: two Gaussians have 5 free numbers, so fewer than "
            f"{FEWEST_FOR_BIMODALITY} scores cannot tell them from one; read the result as a hint",
            stacklevel=2,
        )
    centre, scale = float(values.mean()), float(values.std())
    if np.ptp(values) == 0 or scale == 0:
        penalty = -3 * float(np.log(values.size))
        return Bimodality(penalty, (centre, centre), (0.0, 0.0), (0.5, 0.5), 1, False)
    from sklearn.mixture import GaussianMixture

    standard = ((values - centre) / scale)[:, None]
    one, two = (
        GaussianMixture(n, n_init=restarts, reg_covar=floor**2, random_state=seed).fit(standard)
        for n in (1, 2)
    )
    order = np.argsort(two.means_[:, 0])
    means = two.means_[order, 0]
    deviations = np.sqrt(two.covariances_[order, 0, 0])
    weights = two.weights_[order]
    delta = float(one.bic(standard) - two.bic(standard))
    modes = _modes(means, deviations, weights)
    return Bimodality(
        delta,
        _pair(centre + scale * means),
        _pair(scale * deviations),
        _pair(weights),
        modes,
        modes == 2 and delta > threshold,
    )


def _modes(means: np.ndarray, deviations: np.ndarray, weights: np.ndarray) -> int:
    """Peaks of the sum of two Gaussians; all of them lie between the two means."""
    grid = np.linspace(means[0] - deviations.max(), means[1] + deviations.max(), 4001)
    density = (weights * scipy.stats.norm.pdf(grid[:, None], means, deviations)).sum(axis=1)
    inner = density[1:-1]
    return max(1, int(np.sum((inner > density[:-2]) & (inner >= density[2:]))))


def _pair(values: np.ndarray) -> tuple[float, float]:
    return float(values[0]), float(values[1])


def _ranked(scores: ArrayLike) -> np.ndarray:
    """From the highest, as the tables of a run list them."""
    return np.sort(_checked(scores, "scores"))[::-1]


def _checked(scores: ArrayLike | Sequence[float], name: str) -> np.ndarray:
    values = np.asarray(scores, np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"{name} has shape {values.shape}: expected [n] with n at least 1")
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(f"{name}[{bad}] is {values[bad]}: expected finite numbers")
    return values


# ---- claims ----


@dataclasses.dataclass(frozen=True)
class Finding:
    """A claim and what is seen of it.

    Attributes:
      claim: in words.
      published: where and what; empty for an observation that no source foretells.
      verdict: ``seen``, ``not seen`` or ``not told apart``; of an observation that was tested
        ``above`` or ``below``.
      found: the number behind it, with its interval.
      test: whose p are told with it.
    """

    claim: str
    published: str
    verdict: str
    found: str
    test: PairedTest | None = None


def judge(
    claim: str,
    found: Interval,
    *,
    side: Literal["above", "below"],
    level: float = 0.0,
    published: str = "",
    digits: int = 3,
) -> Finding:
    """Judge a claim that a number lies above or below a level, by its interval.

    Args:
      claim: what is claimed.
      found: the number with its interval.
      side: of the level, on which the number is claimed to lie.
      level: in units of the number.
      published: what the source reports; empty for an observation that nobody published.
      digits: of the number in the finding's text.

    Returns:
      The finding: ``seen`` where the whole interval lies on the claimed side, ``not seen`` where it
      lies on the other, ``not told apart`` where it holds the level or cannot be computed.
    """
    sign = 1 if side == "above" else -1
    low, high = sorted((sign * (found.low - level), sign * (found.high - level)))
    verdict = "seen" if low > 0 else "not seen" if high < 0 else "not told apart"
    return Finding(claim, published, verdict, found.text(digits=digits))


def judge_all(claim: str, part: Interval, *, published: str = "all") -> Finding:
    """Judge a claim of every row by the part of the rows that it is true of."""
    return Finding(claim, published, "seen" if part.value == 1 else "not seen", part.text())


def judge_pairs(pairs: Iterable[Pair]) -> list[Finding]:
    """Judge claims that one population lies above another, paired by seed.

    Args:
      pairs: claim, source, scores by seed of the one and of the other; Holm's adjustment is over
        these. Pairs without a common seed are left out.

    Returns:
      Findings in order, told apart below an adjusted p of 0.05. Without a source the verdict is
      ``above`` or ``below``: what was tried, not what was claimed.
    """
    gaps, sources = {}, {}
    for claim, published, above, below in pairs:
        if above and below and above.keys() & below.keys():
            gaps[claim] = [above[seed] - below[seed] for seed in above if seed in below]
            sources[claim] = published
    longest = max(map(len, gaps.values()), default=0)
    # Not a number is no seed to ``paired_tests``.
    padded = {claim: gap + [float("nan")] * (longest - len(gap)) for claim, gap in gaps.items()}
    found = []
    for claim, test in paired_tests(padded, np.zeros(longest)).items():
        words = ("seen", "not seen") if sources[claim] else ("above", "below")
        apart = test.p_holm < APART  # not of a nan
        verdict = words[test.difference.value <= 0] if apart else "not told apart"
        found.append(Finding(claim, sources[claim], verdict, f"{test.difference:.4f}", test))
    return found


# ---- tables ----


def findings_table(findings: Sequence[Finding], *, found: str = "found (95 %)") -> list[str]:
    """Write findings in lines of Markdown, with p where they were tested; ``found`` is a head."""
    tested = any(one.test for one in findings)
    head = ["claim", "published", "verdict", found, *(["p", "p (Holm)"] if tested else [])]
    rows = []
    for one in findings:
        p = [f"{one.test.p:.2g}", f"{one.test.p_holm:.2g}"] if one.test else [""] * 2 * tested
        rows.append([one.claim, one.published or "no", one.verdict, one.found, *p])
    return markdown(head, rows)
