"""Rank the members of a sweep by their evaluation score."""

from collections.abc import Sequence

import numpy as np


def rank_members(scores: Sequence[float]) -> np.ndarray:
    """Positions of members from the best score to the worst, [k] int; ties to the lowest index.

    Members without a finite score come last.
    """
    values = np.asarray(scores, np.float64)
    return np.argsort(np.where(np.isfinite(values), -values, np.inf), kind="stable")
