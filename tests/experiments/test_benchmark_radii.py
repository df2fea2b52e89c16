"""The contenders of the benchmark of radii find the same, and a fault in one is seen."""

import jax
import numpy as np
import pytest

from densejax.landscape import basins

torch = pytest.importorskip("torch")

from experiments.benchmarks import measure, radii  # noqa: E402


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


def test_released_grids(trained):
    world, _ = trained
    grid = radii.SWISS_ROLL_GRID
    assert (len(grid), grid[0], grid[-1]) == (100, 0, 0.5)
    assert radii.SVHN_GRID[[1, -1]] == pytest.approx([0.75 / 121, 0.75])
    options = {"directions": 8, "chunk": 4, "progress": False}
    losses = radii.ray_losses(radii.key(), world.loss, world.params, grid, **options)
    drawn = [basins.direction(radii.key(), world.params, i) for i in range(8)]
    for row, d in zip(losses, drawn, strict=True):
        for column in (0, 60, 99):
            far = np.float32(grid[column])
            moved = jax.tree.map(lambda w, u, far=far: w + far * u, world.params, d)
            assert row[column] == pytest.approx(float(world.loss(moved)), rel=1e-4, abs=1e-9)
    cutoff = 0.1
    nearest, censored = radii.grid_radii(losses, grid, cutoff=cutoff)
    brute = [grid[np.argmin([abs(float(v) - cutoff) for v in row])] for row in losses]
    np.testing.assert_array_equal(nearest, brute)
    exact = basins.radii(
        radii.key(), world.loss, world.params, cutoff=cutoff, span=0.5, growth=1.05, **options
    )
    first, _ = radii.grid_radii(losses, grid, cutoff=cutoff, rule="first")
    assert np.all(first >= exact.radius) and np.all(first < 1.4 * exact.radius)
    assert np.all(np.abs(np.log(nearest / exact.radius)) < 0.2) and not censored.any()


def test_grid_rules_by_hand():
    losses = [[0, 0.7, 1.2, 0.99], [0, 0.1, 0.2, 0.3], [0, np.nan, 1.1, 2]]
    grid = [0, 1, 2, 3]
    nearest, censored = radii.grid_radii(losses, grid, cutoff=1.0)
    assert (nearest.tolist(), censored.tolist()) == ([3, 3, 2], [False, True, False])
    first, _ = radii.grid_radii(losses, grid, cutoff=1.0, rule="first")
    assert first.tolist() == [2, 3, 1]
    with pytest.raises(ValueError, match="does not rise"):
        radii.grid_radii(losses, [0, 2, 1, 3])
    with pytest.raises(ValueError, match=r"shape \[3, 4\] and the grid \[3\]"):
        radii.grid_radii(losses, [0, 1, 2])


def test_another_network_is_seen(trained):
    world, found = trained
    wrong = {radii.BISECTION: lambda: (found.radius * 1.001, 100)}
    with pytest.raises(ValueError, match=r"bisection: a radius differs from densejax's by 0[.]001"):
        radii.agreement(world, found, wrong)


def test_loops_by_hand():
    limits = radii.Limits(0.1, 1e-3, 1.25, 2.0, 1e-5)
    for radius in (radii.bisected, lambda f, l: radii.same_search(f, l, 0.0)):
        assert radius(lambda t: 0.4 * t * t, limits)[0] == pytest.approx(0.5, rel=1e-5)
        assert radius(lambda t: 0.0 * t, limits)[0] == 2.0
    assert radii.nearest(lambda t: t, [0.0, 0.06, 0.2], 0.1) == (0.06, 3)


def test_goals_and_rows(trained):
    _, found = trained
    laps = {radii.OURS: [(0.01, 0.02)] * 3, radii.GRID: [(1.5, 1.5)] * 3}
    agreed = {"difference": {radii.GRID: 0.0}, "losses": {radii.GRID: 100.0}}
    rows = radii.rows_of(laps, found, agreed, {radii.OURS: 8, radii.GRID: 2})
    assert rows[1]["us a loss"] == pytest.approx(1.5e6 / 800)
    judged = measure.judged(rows, radii.GOALS, at=lambda row: row["case"])
    assert [(line["at"], line["met"]) for line in judged] == [(radii.GRID, "yes")]
    assert np.isclose(rows[1]["over densejax"]["median"], 150)
