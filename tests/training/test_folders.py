"""Members by their score: best first, ties to the lowest index, no score last."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from densejax.training.checkpoint import save_tree
from densejax.training.folders import Member, Outcome, best_parameters, rank_members, ranked


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


def test_members_that_failed_are_not_ranked():
    def outcome(seed, status, score):
        return Outcome(Member(seed), status, 1, score, 1, "", Path("."))

    given = [outcome(0, "FAILED", 0.9), outcome(1, "DONE", 0.2), outcome(2, "DONE", 0.4)]
    assert [one.member.seed for one in ranked(given)] == [2, 1]


def test_the_best_of_each_is_stacked_in_the_order_asked_for(tmp_path):
    for seed in range(3):
        save_tree(tmp_path / str(seed) / "best", {"w": np.full(2, seed, np.float32)})
    folders = [tmp_path / name for name in ("2", "0")]
    found = best_parameters(folders, lambda key: {"w": jnp.zeros(2)})
    np.testing.assert_array_equal(found["w"], [[2, 2], [0, 0]])
    with pytest.raises(ValueError, match=r"found float32\[2\], expected float32\[3\]"):
        best_parameters(folders, lambda key: {"w": jax.random.normal(key, (3,))})
