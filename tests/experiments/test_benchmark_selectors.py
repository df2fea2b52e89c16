"""The benchmark's peers pick what densejax picks, and the replay knows a wrong query."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from experiments.benchmarks import selectors, torch_selectors  # noqa: E402
from experiments.benchmarks.selectors import CASES, Sizes, agreement  # noqa: E402

TINY = Sizes(samples=400, features=24, classes=7, labelled=30, budget=45)


@pytest.mark.parametrize("name", CASES)
def test_contenders_agree_on_a_tiny_pool(name: str) -> None:
    case = CASES[name][1](TINY)
    found = agreement(case, tolerance=1e-5)
    assert set(found["set"]) == {"densejax", "published", "closed form"}
    assert set(found["order"].values()) == {1.0}
    assert case.floor["gflop"] > 0


@pytest.mark.parametrize("name", CASES)
def test_replay_knows_a_wrong_query(name: str) -> None:
    case = CASES[name][1](TINY)
    picks = np.array(case.calls["densejax"]())
    assert case.regret(picks) < 1e-5
    free = selectors.world(TINY).free
    wrong = np.setdiff1d(np.flatnonzero(free), picks)[: len(picks)]
    assert case.regret(wrong) > 1e-2


def test_published_badge_draws_each_pick_once() -> None:
    case = CASES["badge"][1](TINY)
    picks = case.calls["published"]()
    assert len(np.unique(picks)) == TINY.budget
    assert selectors.world(TINY).free[picks].all()


def test_clocks_draw_in_proportion_to_the_weights() -> None:
    weights = torch.tensor([0.0, 1.0, 3.0, 6.0])
    rng = np.random.default_rng(0)
    draws = torch.from_numpy(rng.exponential(size=(4000, 4)))
    counts = np.bincount([torch_selectors.Clocks(d)(weights) for d in draws], minlength=4)
    np.testing.assert_allclose(counts / 4000, [0, 0.1, 0.3, 0.6], atol=0.03)
