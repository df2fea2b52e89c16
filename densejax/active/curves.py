"""Statistics of rounds: balance of the labelled classes, areas under curves, break-even, tests."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from densejax.ensembles.distributions import holm


def class_entropy(counts: ArrayLike, *, relative: bool = False) -> np.ndarray:
    """Entropy of the labelled classes, -sum q log q with q = n_c / l, in nats (thesis, 5.5).

    Args:
      counts: [..., c] samples of each class.
      relative: divide by log c: 1 is perfectly balanced.

    Returns:
      [...] float64; 0 where there is one class only, nan without any sample.

    Raises:
      ValueError: a count is negative.
    """
    counts = _counts(counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        q = counts / counts.sum(axis=-1, keepdims=True)
        entropy = -np.where(q > 0, q * np.log(q), q).sum(axis=-1)
    entropy = np.where(counts.sum(axis=-1) > 0, np.maximum(entropy, 0), np.nan)
    return entropy / np.log(counts.shape[-1]) if relative and counts.shape[-1] > 1 else entropy


def imbalance_ratio(counts: ArrayLike, *, empty: Literal["inf", "plus_one"] = "inf") -> np.ndarray:
    """Largest class / smallest class of the labelled samples (thesis, 5.5).

    Args:
      counts: [..., c] samples of each class.
      empty: a class without any sample makes it infinite, or all counts are taken one larger; the
        thesis does not say.

    Returns:
      [...] float64 from 1; nan without any sample.

    Raises:
      ValueError: a count is negative, or ``empty`` is unknown.
    """
    if empty not in ("inf", "plus_one"):
        raise ValueError(f"empty {empty!r}: expected inf or plus_one")
    counts = _counts(counts) + (empty == "plus_one")
    with np.errstate(divide="ignore", invalid="ignore"):
        return counts.max(axis=-1) / counts.min(axis=-1)


def _counts(counts: ArrayLike) -> np.ndarray:
    counts = np.asarray(counts, np.float64)
    if counts.ndim < 1 or counts.shape[-1] < 1 or (counts < 0).any():
        raise ValueError(f"counts {counts.shape}: expected [..., c] numbers from 0")
    return counts


def alc(labelled: ArrayLike, scores: ArrayLike) -> np.ndarray:
    """Area under the learning curve (trapezoids) / its width: a mean score.

    Args:
      labelled: [t] numbers of labelled samples, ascending.
      scores: [..., t].

    Returns:
      [...] float64, in the range of the scores; the score itself where t is 1.

    Raises:
      ValueError: shapes do not agree, or ``labelled`` does not ascend.
    """
    x, y = _curve(labelled, scores)
    return y[..., 0] if len(x) == 1 else np.trapezoid(y, x, axis=-1) / (x[-1] - x[0])


def normalised_alc(
    labelled: ArrayLike, scores: ArrayLike, *, lowest: float, highest: float
) -> np.ndarray:
    """(area - lowest X) / (highest - lowest), X being the width: the form of Chen 2020.

    In units of ``labelled``: not divided by X. Recovered by regression from Chen's tables 2.1 and
    2.2 (X = 400 images, lowest 0.506, highest 0.75), for the paper gives no formula.

    Args:
      labelled: [t] numbers of labelled samples, ascending.
      scores: [..., t].
      lowest: the score of the smallest labelled set.
      highest: the score with all labels.

    Returns:
      [...] float64.

    Raises:
      ValueError: as ``alc``, or ``highest`` is not above ``lowest``.
    """
    if not highest > lowest:
        raise ValueError(f"highest {highest}: expected above the lowest, {lowest}")
    x, y = _curve(labelled, scores)
    return (np.trapezoid(y, x, axis=-1) - lowest * (x[-1] - x[0])) / (highest - lowest)


def _curve(labelled: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(labelled, np.float64), np.asarray(scores, np.float64)
    if x.ndim != 1 or not x.size or y.shape[-1:] != x.shape:
        raise ValueError(f"labelled {x.shape} and scores {y.shape}: expected [t] and [..., t]")
    if (np.diff(x) <= 0).any():
        raise ValueError(f"labelled {x.tolist()}: expected ascending numbers")
    return x, y


@dataclass(frozen=True)
class Estimate:
    """A number and its interval."""

    value: float
    low: float
    high: float


def mean_interval(scores: ArrayLike, *, confidence: float = 0.95) -> Estimate:
    """Mean of the finite scores [k] and its interval by Student's t; nan ends below two scores."""
    values = np.asarray(scores, np.float64).ravel()
    values = values[np.isfinite(values)]
    if not values.size:
        return Estimate(np.nan, np.nan, np.nan)
    mean = float(values.mean())
    if values.size == 1:
        return Estimate(mean, np.nan, np.nan)
    half = float(stats.t.ppf((1 + confidence) / 2, values.size - 1) * stats.sem(values))
    return Estimate(mean, mean - half, mean + half)


def break_even(labelled: ArrayLike, scores: ArrayLike, reference: ArrayLike) -> float:
    """From how many labelled samples on a curve is nowhere below a reference.

    The smallest number at and after which ``scores >= reference``, linear between rounds. The
    thesis gives no definition.

    Args:
      labelled: [t] numbers of labelled samples, ascending.
      scores: [t] of a strategy, a mean over seeds.
      reference: [t] of random sampling.

    Returns:
      The number; 0 where it is never below, infinity where it ends below.

    Raises:
      ValueError: shapes do not agree, or ``labelled`` does not ascend.
    """
    x, y = _curve(labelled, np.stack([np.asarray(scores), np.asarray(reference)]))
    return float(_break_even(x, (y[0] - y[1])[None])[0])


def _break_even(x: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """Of gaps [r, t] to the reference: [r]."""
    found = np.zeros(len(gaps))
    for row, gap in enumerate(gaps):
        below = np.flatnonzero(gap < 0)
        if below.size and below[-1] == len(x) - 1:
            found[row] = np.inf
        elif below.size:
            last = below[-1]
            share = -gap[last] / (gap[last + 1] - gap[last])
            found[row] = x[last] + share * (x[last + 1] - x[last])
    return found


def break_even_interval(
    labelled: ArrayLike,
    scores: ArrayLike,
    reference: ArrayLike,
    *,
    seed: int = 0,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Estimate:
    """``break_even`` of means over seeds, with a percentile bootstrap over the seeds.

    Seeds are drawn in pairs, as a strategy and the reference share each seed's initial pool.

    Args:
      labelled: [t] numbers of labelled samples, ascending.
      scores: [k, t] of a strategy.
      reference: [k, t] of random sampling, the same seeds.
      seed: of the resampling.
      resamples: how many populations are drawn.
      confidence: strictly between 0 and 1.

    Raises:
      ValueError: shapes do not agree, or ``labelled`` does not ascend.
    """
    scores, reference = np.asarray(scores, np.float64), np.asarray(reference, np.float64)
    if scores.ndim != 2 or scores.shape != reference.shape:
        raise ValueError(f"scores {scores.shape}, reference {reference.shape}: expected [k, t]")
    x, gaps = _curve(labelled, scores - reference)
    drawn = np.random.default_rng(seed).integers(len(gaps), size=(resamples, len(gaps)))
    found = np.sort(_break_even(x, gaps[drawn].mean(axis=1)))
    # Order statistics, for a mean of two infinities is none.
    ends = [round(q * (resamples - 1)) for q in ((1 - confidence) / 2, (1 + confidence) / 2)]
    value = float(_break_even(x, gaps.mean(axis=0)[None])[0])
    return Estimate(value, float(found[ends[0]]), float(found[ends[1]]))


@dataclass(frozen=True)
class PairedTest:
    """A strategy against a reference over the same seeds."""

    difference: Estimate
    p: float
    p_holm: float


def paired_tests(values: Mapping[str, ArrayLike], reference: ArrayLike) -> dict[str, PairedTest]:
    """Paired t tests of strategies against a reference, two-sided, with Holm's adjustment.

    Args:
      values: [k] float of each strategy, such as its ALC of each seed.
      reference: [k] of the same seeds.

    Returns:
      For each strategy the mean difference with its interval, p, and p adjusted for their number;
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
        found[name] = mean_interval(gaps)
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
    return float(stats.ttest_1samp(gaps, 0).pvalue)
