"""The contenders of the benchmark of radii find the same, and a fault in one is seen."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from experiments.benchmarks import radii, torch_radii  # noqa: E402


@pytest.fixture(scope="module")
def trained():
    world = radii.world()
    torch.set_num_threads(1)
    return world, radii.ours(world, 8, 1.25)


def test_loops_agree(trained):
    world, found = trained
    agreed = radii.agreement(world, found, radii.peers(world, 3, 1.25))
    assert max(agreed["difference"].values()) < radii.TOLERANCE
    assert agreed["losses"][radii.GRID] == agreed["losses"][radii.LOADER] == 100
    # Means over the first three and all eight.
    assert agreed["losses"][radii.SEARCH] == pytest.approx(found.evaluations / 8, abs=3)
    assert agreed["losses"][radii.BISECTION] > agreed["losses"][radii.SEARCH] + 5


def test_another_network_is_seen(trained):
    world, found = trained
    wrong = {radii.BISECTION: lambda: (found.radius * 1.001, 100)}
    with pytest.raises(ValueError, match=r"bisection: a radius differs from densejax's by 0[.]001"):
        radii.agreement(world, found, wrong)


def test_loops_by_hand():
    limits = torch_radii.Limits(0.1, 1e-3, 1.25, 2.0, 1e-5)
    for radius in (torch_radii.bisected, lambda f, l: torch_radii.same_search(f, l, 0.0)):
        assert radius(lambda t: 0.4 * t * t, limits)[0] == pytest.approx(0.5, rel=1e-5)
        assert radius(lambda t: 0.0 * t, limits)[0] == 2.0
    assert torch_radii.nearest(lambda t: t, [0.0, 0.06, 0.2], 0.1) == (0.06, 3)


def test_goals_and_rows(trained):
    _, found = trained
    laps = {radii.OURS: [(0.01, 0.02)] * 3, radii.GRID: [(1.5, 1.5)] * 3}
    agreed = {"difference": {radii.GRID: 0.0}, "losses": {radii.GRID: 100.0}}
    rows = radii.rows_of(laps, found, agreed, {radii.OURS: 8, radii.GRID: 2})
    assert rows[1]["us a loss"] == pytest.approx(1.5e6 / 800)
    assert [(line["at"], line["met"]) for line in radii.judged(rows)] == [(radii.GRID, "yes")]
    assert np.isclose(rows[1]["over densejax"]["median"], 150)
