"""Pictures of rounds: they are drawn, say what they should, and refuse what does not fit."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from densejax.plots import style
from densejax.plots.curves import class_histograms, round_curves, score_of_setting

LABELLED = [100, 200, 300]


def test_curves_are_drawn_with_their_bands_and_published_ones(assert_readable):
    figure = round_curves(
        LABELLED,
        {"base": [0.5, 0.6, np.inf], "random": [0.5, 0.55, 0.6]},
        intervals={"base": ([0.4, 0.5, 0.6], [0.6, 0.7, 0.8])},
        published={"base": ([100, 400], [0.5, 0.9])},
    )
    assert_readable(figure)
    lines = figure.axes[0].lines
    assert [line.get_label() for line in lines] == ["base", "random", "base, published"]
    np.testing.assert_array_equal(lines[0].get_ydata(), [0.5, 0.6, np.nan])


def test_a_reference_is_grey_and_what_is_in_order_goes_from_light_to_dark():
    curves = {name: [0.1, 0.2, 0.3] for name in ("random", "s 1", "s 2", "s 4")}
    lines = round_curves(LABELLED, curves, reference="random", ordered=True).axes[0].lines
    assert lines[0].get_color() == style.FAINT and lines[0].get_linestyle() == "--"
    light = [sum(to_rgb(line.get_color())) for line in lines[1:]]
    assert light == sorted(light, reverse=True) and len(set(light)) == 3


@pytest.mark.parametrize("top", [3.0, 700.0])
def test_a_logarithmic_axis_has_numbers_that_lie_apart(assert_readable, top):
    curves = {"base": [top, 2.0, 1.7], "random": [2.5, 2.2, 2.0]}
    figure = round_curves(LABELLED, curves, logarithmic=True, title="t")
    assert_readable(figure)
    assert figure.axes[0].get_yscale() == "log" and len(figure.axes[0].get_yticks()) > 1


def test_a_logarithm_of_infinities_alone_is_drawn_empty(assert_readable):
    # The imbalance of small sets, as long as every strategy lacks a class.
    nothing = {name: [np.inf] * 3 for name in ("base", "random")}
    bands = dict.fromkeys(nothing, ([np.nan] * 3, [np.nan] * 3))
    assert_readable(round_curves(LABELLED, nothing, intervals=bands, logarithmic=True, title="t"))


def test_settings_have_a_tick_each_and_levels_are_lines(assert_readable):
    settings = [0.1, 1, 10, 1000]
    scores = {name: np.array([[0.5], [0.4], [0.6]]) + np.arange(4) for name in ("a", "b")}
    figure = score_of_setting(settings, scores, levels={"random": 0.5}, x_label="temperature")
    assert_readable(figure)
    np.testing.assert_array_equal(figure.axes[0].get_xticks(), settings)
    assert [line.get_label() for line in figure.axes[0].lines] == ["random", "a", "b"]


@pytest.mark.parametrize("strategies", [1, 5])
def test_histograms_have_a_panel_a_strategy(assert_readable, strategies):
    counts = {f"s{i}": np.arange(4) for i in range(strategies)}
    figure = class_histograms(counts, class_names=list("abcd"), title="t")
    assert_readable(figure)
    assert sum(axes.get_visible() for axes in figure.axes) == strategies


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="curves of \\['base'\\]"):
        round_curves(LABELLED, {"base": [1, 2]})
    with pytest.raises(ValueError, match="curves of nobody"):
        round_curves(LABELLED, {})
    with pytest.raises(ValueError, match="expected \\[c\\]"):
        class_histograms({"a": [1, 2], "b": [1]})
    with pytest.raises(ValueError, match=r"expected \[p\], \[3, p\]"):
        score_of_setting([1, 2], {"a": [1, 2]})
