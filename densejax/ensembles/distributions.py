"""Populations of scores: their shape, how two of them differ, and whether one is really two.

A score is one number a seed, such as its peak MIoU. Everything here runs on the host on a few
hundred numbers. ``n`` in docstrings is the number of scores.
"""

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np
import scipy
from numpy.typing import ArrayLike

# Below this many scores two Gaussians, five numbers, can be fitted to nearly anything.
FEWEST_FOR_BIMODALITY = 8


@dataclasses.dataclass(frozen=True)
class Summary:
    """Order statistics of one population, in the unit of its scores."""

    count: int
    minimum: float
    lower_quartile: float
    median: float
    upper_quartile: float
    maximum: float


@dataclasses.dataclass(frozen=True)
class Interval:
    """A median and the interval that holds it with the given confidence."""

    median: float
    low: float
    high: float
    confidence: float


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


def summarise(scores: ArrayLike) -> Summary:
    """Order statistics of a population; quartiles interpolate linearly.

    Args:
      scores: ``[n]`` float, finite, n at least 1.

    Raises:
      ValueError: the scores are not ``[n]``, none are given, or one is not finite.
    """
    values = _checked(scores, "scores")
    low, lower, middle, upper, high = np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist()
    return Summary(values.size, low, lower, middle, upper, high)


def mann_whitney(a: ArrayLike, b: ArrayLike) -> RankComparison:
    """Test whether a score of one population tends to lie above one of another.

    Mann and Whitney (1947), two-sided; exact for up to eight scores without ties, else the normal
    approximation with the corrections for ties and continuity. Effect sizes: McGraw and Wong
    (1992), Kerby (2014).

    Args:
      a: ``[n]`` float, finite, at least 1.
      b: ``[n']`` float, finite, at least 1.

    Raises:
      ValueError: as ``summarise``, naming ``a`` or ``b``.
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
      ValueError: as ``summarise``, or a value is outside 0..1.
    """
    values = _checked(p_values, "p_values")
    if values.min() < 0 or values.max() > 1:
        raise ValueError(f"p_values go from {values.min()} to {values.max()}: expected 0..1")
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(values.size, 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def bootstrap_median(
    scores: ArrayLike, *, seed: int = 0, resamples: int = 10_000, confidence: float = 0.95
) -> Interval:
    """Interval of the median by the percentile bootstrap (Efron 1979).

    The bias-corrected form is not used: its jackknife fails for a median (Efron and Tibshirani
    1993, section 11.6). Few scores give a median few values to take, and so a coarse interval.

    Args:
      scores: ``[n]`` float, finite, n at least 1.
      seed: of the resampling; the same seed gives the same interval.
      resamples: how many populations are drawn.
      confidence: strictly between 0 and 1.

    Raises:
      ValueError: as ``summarise``, or ``resamples`` or ``confidence`` is out of range.
    """
    values = _checked(scores, "scores")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}: expected at least 1")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}: expected a number between 0 and 1")
    generator = np.random.default_rng(seed)
    drawn = values[generator.integers(0, values.size, (resamples, values.size))]
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.median(drawn, axis=1), (tail, 1 - tail)).tolist()
    return Interval(float(np.median(values)), low, high, confidence)


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
      ValueError: as ``summarise``, fewer than 2 scores, or an option that is not positive.
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


def _checked(scores: ArrayLike | Sequence[float], name: str) -> np.ndarray:
    values = np.asarray(scores, np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"{name} has shape {values.shape}: expected [n] with n at least 1")
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(f"{name}[{bad}] is {values[bad]}: expected finite numbers")
    return values
