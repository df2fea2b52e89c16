"""The volume of a basin from its radii, in logarithms, and how far to trust it.

Source: Huang, Emam et al. 2020, section 4. Of a star-shaped body of n dimensions with radii r_k
along K uniform directions,

    log V = (n / 2) log pi - log gamma(1 + n / 2) + log mean_k r_k^n

natural, float64 on the host. Read the estimate with these in mind; all are printed with it.

- *A tiny effect is a huge number.* 10 000 orders of magnitude at n = 270 000 are a ratio of radii
  of 1.089. ``LogVolume.radius`` says it in those terms: the radius of a ball of that volume.
- *The largest radius decides.* Where n log r varies by much more than 1 between directions, the
  mean of r^n is its largest term, over K. The effective sample size then is about 1, and neither
  the estimate nor its bootstrap interval says anything of the basin: with log r of standard
  deviation 0.01 and n = 270 000 the estimate from 3000 directions is too low by millions. What is
  well determined is the Jensen bound, from the mean of n log r, and ``jensen_error`` says how well:
  compare basins by it. Always ``jensen <= estimate <= maximum``.
- *More directions, more volume.* Where ``curve`` still rises, K is too small.
- *An error of a radius counts n times.* The spacing of a grid exceeds the effect.
- *Censored radii* are lower bounds, and so is the volume then.
- *The formula is of uniform directions.* Radii on a product of spheres (the published ones) are
  not; take ``geometry="ellipsoid"`` for a volume, and read the published form as a score.
- The basin is taken for star-shaped; the loss for the one that was given: its data, its mode of
  batch norm, its cutoff. Scales of ReLU layers change Euclid's volume and no prediction.
"""

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln, logsumexp

from densejax import stats
from densejax.landscape.basins.radius import Radii
from densejax.landscape.basins.spheres import key_data
from densejax.typing import Key

# Below so many effective directions an estimate says little of the basin.
FEW = 10.0


@dataclasses.dataclass(frozen=True)
class Curve:
    """The estimate as it depends on the number of directions.

    Attributes:
      sizes: [s] int, rising, 1 to K.
      estimate: [s] float64, median of the estimates from random subsets of that size.
      low: [s] float64, lower quantile of these.
      high: [s] float64, upper quantile.
    """

    sizes: np.ndarray
    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclasses.dataclass(frozen=True)
class LogVolume:
    """A log-volume and how far to trust it; natural logarithms (nats), float64.

    Attributes:
      estimate: log V.
      jensen: lower bound of the estimate, from the mean of n log r.
      jensen_error: standard error of that bound over directions; not-a-number of one.
      maximum: upper bound, the ball of the largest radius.
      effective_samples: (sum w)^2 / sum w^2 of w = r^n: 1 (one direction decides) to K (all count).
      interval: bootstrap interval of the estimate at ``level``.
      level: of the interval and of the curve's band.
      curve: the estimate over the number of directions.
      dimension: n.
      directions: K.
      censored: how many radii are lower bounds.
      log_scale: what was added to change units.
    """

    estimate: float
    jensen: float
    jensen_error: float
    maximum: float
    effective_samples: float
    interval: tuple[float, float]
    level: float
    curve: Curve
    dimension: int
    directions: int
    censored: int
    log_scale: float

    @property
    def log10(self) -> float:
        """The estimate in decimal orders of magnitude."""
        return self.estimate / math.log(10)

    @property
    def radius(self) -> float:
        """Radius of the ball whose volume is the estimate, in the units of the radii."""
        ball = log_unit_ball(self.dimension)
        return math.exp((self.estimate - self.log_scale - ball) / self.dimension)

    def __str__(self) -> str:
        low, high = self.interval
        lines = [
            f"log-volume {self.estimate:.6g} nats (10^{self.log10:.5g}), "
            f"{100 * self.level:g} % bootstrap {low:.6g} to {high:.6g}; "
            f"ball of radius {self.radius:.6g} in {self.dimension} dimensions",
            f"{self.directions} directions, effective {self.effective_samples:.3g}; "
            f"Jensen bound {self.jensen:.6g} +- {self.jensen_error:.2g}, "
            f"maximum {self.maximum:.6g}",
        ]
        if self.censored:
            lines.append(
                f"a lower bound: {self.censored} of {self.directions} directions reach the span"
            )
        if self.effective_samples < FEW:
            lines.append(
                "not to be trusted: a few largest radii decide it, and the interval with it; "
                "compare Jensen bounds"
            )
        return "\n".join(lines)


def log_unit_ball(dimension: int) -> float:
    """Log-volume of the unit ball in n dimensions, (n / 2) log pi - log gamma(1 + n / 2)."""
    return dimension / 2 * math.log(math.pi) - float(gammaln(1 + dimension / 2))


def log_volume(
    key: Key,
    radii: Radii | ArrayLike,
    *,
    dimension: int | None = None,
    bootstrap: int = 200,
    level: float = 0.95,
    log_scale: float | None = None,
) -> LogVolume:
    """The log-volume of one basin; see the module for how far to trust it.

    Args:
      key: of the bootstrap and of the curve's subsets.
      radii: ``Radii``, or [k] float64 natural logarithms of radii (minus infinity for 0).
      dimension: n; that of ``Radii`` if None.
      bootstrap: resamples, and subsets a point of the curve; at least 1.
      level: of the interval, in (0, 1).
      log_scale: nats added, to change units; that of ``Radii`` if None: 0 for spheres, the sum of
        log D for an ellipsoid, whose volume is then in the parameters' own units. 0 leaves the
        units of the radii.

    Returns:
      The log-volume.

    Raises:
      ValueError: no radii, one that is not a number or infinite, all zero, all censored; a
        dimension below 1 or unknown; another argument out of its range.
    """
    censored = 0
    if isinstance(radii, Radii):
        logs, censored = radii.log_radius, int(radii.censored.sum())
        dimension = radii.dimension if dimension is None else dimension
        log_scale = radii.log_scale if log_scale is None else log_scale
        if censored == len(logs):
            raise ValueError(
                f"all {censored} radii are censored at the span {radii.span:g}: the basin has no "
                "measured edge; give a larger span or a lower cutoff"
            )
    else:
        logs = np.asarray(radii, np.float64)
    _check(logs, dimension, bootstrap, level)
    assert dimension is not None
    offset = log_unit_ball(dimension) + (log_scale or 0.0)
    terms = dimension * logs
    seed, rising = key_data(key)[0].ravel().tolist(), np.sort(terms)
    resampled = stats.bootstrap(
        lambda rows: logsumexp(rising[rows], axis=1) - math.log(len(terms)),
        len(terms),
        seed=seed,
        resamples=bootstrap,
        confidence=level,
        ends="nearest",  # a resample of zero radii is minus infinity
    )
    finite = np.isfinite(terms).all() and len(terms) > 1
    spread = float(terms.std(ddof=1)) if finite else math.nan
    return LogVolume(
        estimate=offset + _log_mean_exp(terms),
        jensen=offset + float(terms.mean()),
        jensen_error=spread / math.sqrt(len(terms)),
        maximum=offset + float(terms.max()),
        effective_samples=effective_samples(terms),
        interval=(offset + resampled.low, offset + resampled.high),
        level=level,
        curve=_curve(np.random.default_rng(seed), rising, offset, bootstrap, level),
        dimension=dimension,
        directions=len(terms),
        censored=censored,
        log_scale=log_scale or 0.0,
    )


def effective_samples(log_weights: ArrayLike) -> float:
    """Kish's (sum w)^2 / sum w^2 of weights given by their logarithms, [k]: 1 to k."""
    logs = np.asarray(log_weights, np.float64)
    weights = np.exp(logs - logs.max())
    return float(weights.sum() ** 2 / np.sum(weights**2))


def _log_mean_exp(terms: np.ndarray) -> float:
    """Of [k]; minus infinity where all terms are."""
    return float(logsumexp(terms)) - math.log(len(terms))


def _curve(
    random: np.random.Generator, terms: np.ndarray, offset: float, subsets: int, level: float
) -> Curve:
    """Estimates from the first directions of random orders, at sizes 1, 2, 3, 5, 10, 20 ... K."""
    count = len(terms)
    rounded = [m * 10**e for e in range(len(str(count))) for m in (1, 2, 3, 5)]
    sizes = np.array(sorted({size for size in rounded if size < count} | {count}))
    sums = [np.logaddexp.accumulate(random.permutation(terms))[sizes - 1] for _ in range(subsets)]
    estimates = offset + np.array(sums) - np.log(sizes)
    ends = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(estimates, ends, axis=0, method="nearest")
    return Curve(sizes, np.median(estimates, axis=0), low, high)


def _check(logs: np.ndarray, dimension: int | None, bootstrap: int, level: float) -> None:
    if logs.ndim != 1 or not logs.size:
        raise ValueError(f"log radii have shape {list(logs.shape)}: expected [k], at least one")
    bad = np.flatnonzero(np.isnan(logs) | (logs == np.inf))
    if bad.size:
        raise ValueError(f"log radius {bad[0]} is {logs[bad[0]]}: expected a number or -inf")
    if not np.isfinite(logs).any():
        raise ValueError(f"all {logs.size} radii are 0: no volume")
    if dimension is None or dimension < 1:
        raise ValueError(f"dimension is {dimension}: expected 1 or more (it is not in these radii)")
    if bootstrap < 1 or not 0 < level < 1:
        raise ValueError(
            f"bootstrap={bootstrap}, level={level:g}: expected 1 or more, and in (0, 1)"
        )
