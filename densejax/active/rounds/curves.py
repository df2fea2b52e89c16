"""Statistics of rounds: balance of the labelled classes, areas under curves, break-even."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from densejax.stats import Interval, bootstrap


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
) -> Interval:
    """``break_even`` of means over seeds, with a percentile bootstrap over the seeds.

    Seeds are drawn in pairs, as a strategy and the reference share each seed's initial pool.

    Args:
      labelled: [t] numbers of labelled samples, ascending.
      scores: [k, t] of a strategy.
      reference: [k, t] of random sampling, the same seeds.

    Raises:
      ValueError: shapes do not agree, or ``labelled`` does not ascend.
    """
    scores, reference = np.asarray(scores, np.float64), np.asarray(reference, np.float64)
    if scores.ndim != 2 or scores.shape != reference.shape:
        raise ValueError(f"scores {scores.shape}, reference {reference.shape}: expected [k, t]")
    x, gaps = _curve(labelled, scores - reference)
    # The nearest draws are its ends, for a mean of two infinities is none.
    return bootstrap(
        lambda rows: _break_even(x, gaps[rows].mean(axis=1)),
        len(gaps),
        resamples=2000,
        ends="nearest",
    )
