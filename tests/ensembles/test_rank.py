"""Ranking: best first, ties to the lowest index, whatever has no score last."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from densejax.ensembles.rank import rank_members


def test_ties_go_to_the_lowest_index_and_missing_scores_last():
    scores = [0.5, math.nan, 0.9, 0.5, -math.inf, 0.9]
    assert rank_members(scores).tolist() == [2, 5, 0, 3, 1, 4]
    assert rank_members([math.nan, math.nan]).tolist() == [0, 1]


@given(st.lists(st.sampled_from([0.0, -1.0, 0.25, 0.5, math.nan, math.inf]), min_size=1))
def test_ranking_is_a_sort_by_score_then_index(scores):
    def worst_first(index):
        finite = math.isfinite(scores[index])
        return (not finite, -scores[index] if finite else 0.0, index)

    assert rank_members(scores).tolist() == sorted(range(len(scores)), key=worst_first)
    assert np.issubdtype(rank_members(scores).dtype, np.integer)
