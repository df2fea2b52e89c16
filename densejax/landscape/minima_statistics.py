"""Statistics over a population of minima, resampled by seed.

Minima of one seed share their initial parameters, so they are not independent: every interval
resamples whole seeds.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

RESAMPLES = 5000
LEVEL = 0.95


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
    """Mean over minima.

    Args:
      values: [k] float.
      seeds: [k] int.

    Raises:
      ValueError: the shapes differ.
    """
    return by_seed(lambda columns: float(np.mean(columns[0])), (values,), seeds)


def spearman(first: ArrayLike, second: ArrayLike, seeds: ArrayLike) -> Interval:
    """Spearman's rank correlation of two numbers of each minimum.

    Args:
      first: [k] float; minima where either is not finite are left out.
      second: [k] float.
      seeds: [k] int.

    Returns:
      -1 to 1; not-a-number where a number is the same for all, or with fewer than three minima.

    Raises:
      ValueError: the shapes differ.
    """
    return by_seed(lambda columns: rank_correlation(*columns), (first, second), seeds)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's correlation of the ranks, ties at their mean; not-a-number without spread."""
    if len(first) < 3:
        return float("nan")
    ranks = [rankdata(column) for column in (first, second)]
    spreads = [rank - rank.mean() for rank in ranks]
    lengths = [np.sqrt((spread**2).sum()) for spread in spreads]
    if min(lengths) == 0:
        return float("nan")
    return float((spreads[0] * spreads[1]).sum() / (lengths[0] * lengths[1]))


def by_seed(
    statistic: Callable[[tuple[np.ndarray, ...]], float],
    columns: tuple[ArrayLike, ...],
    seeds: ArrayLike,
) -> Interval:
    """A statistic of columns [k] with its interval, whole seeds resampled.

    Args:
      statistic: of the columns.
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
    groups = [np.flatnonzero(numbers == seed) for seed in np.unique(numbers)]
    nan = float("nan")
    if not groups:
        return Interval(nan, nan, nan, 0)
    value = statistic(tuple(arrays))
    if len(groups) < 2:
        return Interval(value, nan, nan, len(groups))
    draw = np.random.default_rng(0)
    found = []
    for _ in range(RESAMPLES):
        rows = np.concatenate([groups[g] for g in draw.integers(0, len(groups), len(groups))])
        found.append(statistic(tuple(array[rows] for array in arrays)))
    tail = (1 - LEVEL) / 2
    # A resample without spread has no correlation.
    low, high = np.nanquantile(found, (tail, 1 - tail)) if np.isfinite(found).any() else (nan, nan)
    return Interval(value, float(low), float(high), len(groups))
