"""Pictures of spectra and paths: they hold what was given, and refuse what does not fit."""

import numpy as np
import pytest
from PIL import Image

from densejax.plots.basins import spectral_densities
from densejax.plots.paths import barrier_matrix, path_profiles, trajectory_losses

T = np.linspace(0, 1, 51)


def bulk(centres, width=0.3):
    grid = np.linspace(-5, 25, 600)
    weights = np.float64([0.97, *np.full(len(centres), 0.03 / len(centres))])
    places = np.float64([0, *centres])
    curves = np.exp(-0.5 * ((grid[:, None] - places) / width) ** 2) / width / np.sqrt(2 * np.pi)
    return grid, curves @ weights


def large_enough(path, least=500):
    with Image.open(path) as picture:
        return min(picture.size) > least


def test_densities_have_a_panel_a_network_on_one_scale(tmp_path, assert_readable):
    good, poisoned = bulk([4, 7, 9]), bulk([6, 14, 21])
    path = tmp_path / "two.png"
    figure = spectral_densities(
        {"natural": good, "poisoned": poisoned},
        path=path,
        errors={"natural": 0.1 * good[1], "poisoned": 0.2 * poisoned[1]},
        eigenvalues={"natural": [4, 7, 9]},
        title="Spectra of two minima",
    )
    assert large_enough(path)
    assert_readable(figure)
    panels = figure.axes
    assert len(panels) == 2 and panels[0].get_ylim() == panels[1].get_ylim()
    foot = panels[0].get_ylim()[0]
    for axes, (grid, curve) in zip(panels, (good, poisoned), strict=True):
        line = axes.lines[0]
        np.testing.assert_array_equal(line.get_xdata(), grid)
        seen = curve >= foot
        np.testing.assert_array_equal(np.asarray(line.get_ydata())[seen], curve[seen])
        assert np.isnan(np.asarray(line.get_ydata())[~seen]).all() and (~seen).any()
    labels = [text.get_text() for text in panels[0].get_legend().get_texts()]
    assert labels == ["two standard errors", "single eigenvalues"]


def test_one_density_is_drawn_alone(assert_readable):
    figure = spectral_densities({"": bulk([5])}, title="Swiss roll")
    assert_readable(figure)
    assert len(figure.axes) == 1


def test_profiles_keep_a_paths_colour_in_every_panel(assert_readable):
    rise = 2.3 * np.sin(np.pi * T) ** 2
    panels = {
        "training loss": {"straight": (T, 0.1 + rise), "Bezier": (T, 0.1 + 0.06 * rise)},
        "test accuracy": {"Bezier": (T, 0.9 - 0.02 * rise), "straight": (T, 0.9 - 0.3 * rise)},
    }
    figure = path_profiles(panels, ends=("seed 0", "seed 1"), title="Two seeds")
    assert_readable(figure)
    first, second = (
        {line.get_label(): line.get_color() for line in axes.lines if line.get_label()[0] != "_"}
        for axes in figure.axes
    )
    # 2.3 above an even line, and 0.06 times that.
    assert list(first) == ["straight (barrier 2.3)", "Bezier (barrier 0.14)"]
    assert list(first.values()) == [second["straight"], second["Bezier"]]
    assert first["straight (barrier 2.3)"] != first["Bezier (barrier 0.14)"]


def test_a_barrier_matrix_writes_every_pair_and_no_diagonal(assert_readable):
    table = np.abs(np.subtract.outer(np.arange(4.0), np.arange(4.0))) * 0.31
    figure = barrier_matrix(table, title="Barriers of four seeds")
    assert_readable(figure)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert len(texts) == 12 and set(texts) == {"0.31", "0.62", "0.93"}
    many = np.random.default_rng(0).random((30, 30))
    assert not barrier_matrix(many).axes[0].texts


def test_a_trajectory_shows_both_losses_and_its_distance(assert_readable):
    steps = np.arange(0, 500, 10)
    true, plane, away = 2 * np.exp(-steps / 90) + 0.01, 2.2 * np.exp(-steps / 60) + 0.05, steps / 99
    figure = trajectory_losses(true, plane, away, steps=steps, title="A run")
    assert_readable(figure)
    above, below = figure.axes
    for line, values in zip([*above.lines, *below.lines], (true, plane, away), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), steps)
        np.testing.assert_array_equal(line.get_ydata(), values)


def test_what_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "a.png"
    with pytest.raises(ValueError, match="natural: grid"):
        spectral_densities({"natural": ([1, 2], [1])}, path=path)
    with pytest.raises(ValueError, match="0 densities"):
        spectral_densities({}, path=path)
    with pytest.raises(ValueError, match="errors"):
        spectral_densities({"": bulk([5])}, path=path, errors={"": [1, 2]})
    with pytest.raises(ValueError, match="without a path"):
        path_profiles({"loss": {}}, path=path)
    with pytest.raises(ValueError, match="loss of straight"):
        path_profiles({"loss": {"straight": ([0, 1], [1])}}, path=path)
    with pytest.raises(ValueError, match="barriers has shape"):
        barrier_matrix(np.zeros((2, 3)), path=path)
    with pytest.raises(ValueError, match="names has 1"):
        barrier_matrix(np.zeros((2, 2)), path=path, names=["a"])
    with pytest.raises(ValueError, match="expected \\[t\\] each"):
        trajectory_losses([1, 2], [1, 2], [1], path=path)
    with pytest.raises(ValueError, match="PNG"):
        trajectory_losses([1, 2], [1, 2], [1, 2], path=tmp_path / "a.pdf")
    assert not path.exists()
