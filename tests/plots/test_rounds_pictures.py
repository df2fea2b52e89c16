"""Pictures of rounds: they are drawn, say what they should, and refuse what does not fit."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from densejax.plots.rounds import class_histograms, round_curves

LABELLED = [100, 200, 300]


def test_curves_are_drawn_with_their_bands_and_published_ones(tmp_path, monkeypatch):
    drawn = []
    real = Axes.plot

    def plot(self, x, y, *rest, **options):
        drawn.append((options["label"], np.asarray(y)))
        return real(self, x, y, *rest, **options)

    monkeypatch.setattr(Axes, "plot", plot)
    curves = {"base": [0.5, 0.6, np.inf], "random": [0.5, 0.55, 0.6]}
    path = round_curves(
        LABELLED,
        curves,
        tmp_path / "a.png",
        intervals={"base": ([0.4, 0.5, 0.6], [0.6, 0.7, 0.8])},
        published={"base": ([100, 400], [0.5, 0.9])},
    )
    assert [name for name, _ in drawn] == ["base", "random", "base, published"]
    np.testing.assert_array_equal(drawn[0][1], [0.5, 0.6, np.nan])
    with Image.open(path) as picture:
        assert min(picture.size) > 500


def test_a_logarithm_of_infinities_alone_is_drawn_empty(tmp_path):
    # The imbalance of small sets, as long as every strategy lacks a class.
    nothing = {name: [np.inf] * 3 for name in ("base", "random")}
    bands = dict.fromkeys(nothing, ([np.nan] * 3, [np.nan] * 3))
    path = round_curves(
        LABELLED, nothing, tmp_path / "a.png", intervals=bands, logarithmic=True, title="t"
    )
    with Image.open(path) as picture:
        assert min(picture.size) > 300


@pytest.mark.parametrize("strategies", [1, 5])
def test_histograms_have_a_panel_a_strategy(tmp_path, strategies):
    counts = {f"s{i}": np.arange(4) for i in range(strategies)}
    path = class_histograms(counts, tmp_path / "b.png", class_names=list("abcd"), title="t")
    with Image.open(path) as picture:
        assert min(picture.size) > 300


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="curves of \\['base'\\]"):
        round_curves(LABELLED, {"base": [1, 2]}, tmp_path / "a.png")
    with pytest.raises(ValueError, match="curves of nobody"):
        round_curves(LABELLED, {}, tmp_path / "a.png")
    with pytest.raises(ValueError, match="expected \\[c\\]"):
        class_histograms({"a": [1, 2], "b": [1]}, tmp_path / "a.png")
