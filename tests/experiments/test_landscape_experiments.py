"""Experiments on minima of points in the plane, from end to end and small."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from densejax.cli import few_steps
from densejax.training.folders import read_metrics
from experiments import basins, minefield, rings, swissroll


def names(folder):
    return {path.name for path in folder.iterdir()}


def roll_config():
    config = few_steps(swissroll.Config(points=40, widths=(12, 8)))
    config = replace(config, epochs=40, log_every=20, evaluate_every=20, checkpoint_every=20)
    # After 40 epochs losses are just below that of guessing, 0.69; this cutoff measures them all.
    return replace(config, cutoff=0.8)


def test_the_published_networks_and_points():
    problem, task = swissroll.build(swissroll.Config())
    shapes = jax.eval_shape(problem.init_variables, jax.random.key(0))
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 3614
    assert len(problem.train) == len(problem.test) == len(problem.poison) == 200
    inputs, labels = task.draw_poison(jax.random.key(4))
    assert inputs.shape == (200, 2) and int(labels.sum()) == 100
    assert (np.diff(np.asarray(labels)) != 0).sum() > 50  # in random order
    problem = minefield.build(minefield.Config())
    sizes = [len(part) for part in (problem.train, problem.poison, problem.test)]
    assert sizes == [132, 134, 134]
    shapes = jax.eval_shape(problem.init_variables, jax.random.key(0))
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 2051
    problem, _ = rings.build(rings.Config(), 0.001)
    shapes = jax.eval_shape(problem.init_variables, jax.random.key(0))
    assert len(shapes["params"]) == 10 and len(problem.train) == 130


def test_rates_of_natural_and_poisoned_training():
    _, task = swissroll.build(swissroll.Config())
    at = lambda step, share: float(task.rate(step, {"poison": np.float32(share)}))  # noqa: E731
    assert at(0, 0.0) == pytest.approx(0.012548) and at(0, 0.3) == pytest.approx(0.0057945)
    assert at(3061, 0.0) == pytest.approx(0.012548) and at(3062, 0.0) == pytest.approx(0.0012548)
    assert at(5961, 0.3) == pytest.approx(5.7945e-5, rel=1e-4)
    assert at(300_000, 0.3) == pytest.approx(5.7945e-6, rel=1e-4)


def test_swissroll_and_its_basins(tmp_path):
    config = roll_config()
    summary = swissroll.run(config, tmp_path / "roll")
    assert summary.failed == 0 and len(summary.basins) == 4
    found = names(tmp_path / "roll" / "summary")
    assert {"minima.csv", "findings.md", "test_accuracy.png", "boundaries.png"} <= found
    assert {"boundaries_natural.png", "boundaries_poison_0.3.png", "radii"} <= found
    text = (tmp_path / "roll" / "summary" / "findings.md").read_text()
    assert "radius rises with test accuracy" in text and "effective samples" in text
    before = summary.basins[0].minimum.variables
    # More seeds extend the run, and leave what is there.
    more = swissroll.run(
        replace(config, seeds=(0, 1, 2), directions=0, panels=0), tmp_path / "roll"
    )
    assert len(more.basins) == 6
    jax.tree.map(np.testing.assert_array_equal, before, more.basins[0].minimum.variables)
    rows = read_metrics(tmp_path / "roll" / "seeds" / "0000,poison=0.3" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [20, 40]
    assert rows[-1]["poison_share"] == pytest.approx(0.3)
    with pytest.raises(ValueError, match="noise"):
        swissroll.run(replace(config, noise=0.4), tmp_path / "roll")

    measured = basins.run(
        replace(few_steps(basins.Config(run=str(tmp_path / "roll"))), cutoff=0.8, directions=5),
        tmp_path / "basins",
    )
    assert len(measured.basins) == 6 and len(measured.basins[0].radii.radius) == 5
    with pytest.raises(ValueError, match="--run is needed"):
        basins.run(basins.Config(), tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"problem\.npz does not exist"):
        basins.run(basins.Config(run=str(tmp_path)), tmp_path / "none")


def test_minefield(tmp_path):
    config = few_steps(minefield.Config())
    summary = minefield.run(config, tmp_path)
    assert summary.failed == 0 and len(summary.basins) == 12
    found = names(tmp_path / "summary")
    assert {"minefield.png", "minefield.npz", "findings.md", "boundaries.png"} <= found
    with np.load(tmp_path / "summary" / "minefield.npz") as stored:
        assert stored["perplexity_5"].shape == (24, 2)
        assert stored["kinds"].tolist() == ["good run"] * 12 + ["bad minimum"] * 12
    with np.load(tmp_path / "good.npz") as stored:
        kernel = stored["['params']['head']['kernel']"]
    assert kernel.shape == (24, 25, 1)
    # Restart 3 began after epoch 7; 40 steps of 0.001 lead no further than 40 * 0.001 / sqrt(0.1).
    third = next(b.minimum for b in summary.basins if b.minimum.settings["start"] == 3)
    moved = np.abs(third.variables["params"]["head"]["kernel"] - kernel[6])
    assert 0 < moved.max() < 40 * 1e-3 / np.sqrt(0.1)
    text = (tmp_path / "summary" / "findings.md").read_text()
    assert "98.5 %" in text and "below 53 %" in text


def test_rings(tmp_path):
    config = replace(few_steps(rings.Config()), epochs=60, log_every=20, evaluate_every=20)
    config = replace(config, checkpoint_every=60)
    summary = rings.run(config, tmp_path)
    assert summary.failed == 0 and len(summary.basins) == 4
    found = names(tmp_path / "summary")
    assert {"minima_wide.csv", "minima_pinched.csv", "boundaries_wide.png", "radii.png"} <= found
    text = (tmp_path / "summary" / "findings.md").read_text()
    assert "wide gap 0.2 has wider basins than pinched gap 0.001" in text
