"""Statistics over a population of minima, resampled by seed.

Minima of one seed share their initial parameters, so they are not independent: every interval
resamples whole seeds. A resample is a weight for each minimum, how often its seed was drawn; so a
statistic is a function of columns [k] and weights [r, k], and all resamples are one computation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 5000
LEVEL = 0.95

# Columns [k] each, weights [r, k] -> [r].
Statistic = Callable[[Sequence[np.ndarray], np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Interval:
    """A number and its 95 % percentile bootstrap interval over seeds.

    Attributes:
      value: of the whole sample.
      low: lower end; not-a-number with fewer than two seeds.
      high: upper end.
      seeds: how many different ones were resampled.
    """

    value: float
    low: float
    high: float
    seeds: int

    def text(self, *, digits: int = 3) -> str:
        """Such as ``0.812 (0.701 to 0.903)``; without an interval, the number alone."""
        if not np.isfinite(self.value):
            return "none"
        if not np.isfinite(self.low):
            return f"{self.value:.{digits}f}"
        value, low, high = (f"{v:.{digits}f}" for v in (self.value, self.low, self.high))
        return f"{value} ({low} to {high})"


def mean_interval(values: ArrayLike, seeds: ArrayLike) -> Interval:
    """Mean over minima; those whose value is not finite are left out.

    Args:
      values: [k] float or bool.
      seeds: [k] int.

    Raises:
      ValueError: the shapes differ.
    """
    return by_seed(lambda columns, weights: weighted_mean(columns[0], weights), (values,), seeds)


def spearman(first: ArrayLike, second: ArrayLike, seeds: ArrayLike) -> Interval:
    """Spearman's rank correlation of two numbers of each minimum, ties at their mean rank.

    Args:
      first: [k] float; minima where either is not finite are left out.
      second: [k] float.
      seeds: [k] int.

    Returns:
      -1 to 1; not-a-number where a number is the same for all, or with fewer than three minima.

    Raises:
      ValueError: the shapes differ.
    """
    return by_seed(_rank_correlation, (first, second), seeds)


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[r] means of [k] values under [r, k] weights; not-a-number where all weights are zero."""
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
    """[r, k] ranks of a sample in which each value stands as often as its weight, less a half."""
    _, group = np.unique(values, return_inverse=True)
    member = group[:, None] == np.arange(group.max() + 1)
    totals = weights @ member
    return (np.cumsum(totals, axis=1) - totals / 2)[:, group]


def by_seed(statistic: Statistic, columns: Sequence[ArrayLike], seeds: ArrayLike) -> Interval:
    """A statistic of columns [k] with its interval, whole seeds resampled.

    Args:
      statistic: of columns and weights, see the module.
      columns: [k] float each; minima where one is not finite are left out.
      seeds: [k] int.

    Raises:
      ValueError: the shapes differ.
    """
    arrays = [np.asarray(column, np.float64) for column in columns]
    numbers = np.asarray(seeds)
    shapes = [array.shape for array in (*arrays, numbers)]
    if len(set(shapes)) != 1 or numbers.ndim != 1:
        raise ValueError(f"columns and seeds have shapes {shapes}: expected [k] each")
    told = np.all([np.isfinite(array) for array in arrays], axis=0)
    arrays, numbers = [array[told] for array in arrays], numbers[told]
    different, group = np.unique(numbers, return_inverse=True)
    count, nan = len(different), float("nan")
    if not count:
        return Interval(nan, nan, nan, 0)
    value = float(statistic(arrays, np.ones((1, len(numbers))))[0])
    if count < 2:
        return Interval(value, nan, nan, count)
    drawn = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    places = np.arange(RESAMPLES)[:, None] * count + drawn
    often = np.bincount(places.ravel(), minlength=RESAMPLES * count).reshape(RESAMPLES, count)
    found = statistic(arrays, often[:, group].astype(np.float64))
    # A resample without spread has no correlation.
    if not np.isfinite(found).any():
        return Interval(value, nan, nan, count)
    low, high = np.nanquantile(found, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(value, float(low), float(high), count)
