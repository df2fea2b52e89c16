"""Pictures of basins: they are drawn, show what they are given, and refuse what does not fit."""

import numpy as np
import pytest
from PIL import Image

from densejax.plots.basins import radius_histograms, volume_curves, volume_scatter

RANDOM = np.random.default_rng(0)


def radii(count):
    return {f"minimum {i}": RANDOM.normal(0.3 - 0.02 * i, 0.02, 400 - 10 * i) for i in range(count)}


def is_a_picture(path):
    with Image.open(path) as picture:
        colours = np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)
        return min(picture.size) > 300 and len(colours) > 20


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_a_row_a_minimum_with_its_median(tmp_path, assert_readable, count, logarithmic):
    given = radii(count)
    groups = ["natural" if i < 2 else "poisoned" for i in range(count)]
    last = f"minimum {count - 1}"
    path = tmp_path / "a.png"
    figure = radius_histograms(
        given,
        path=path,
        groups=groups,
        censored={last: given[last] > np.quantile(given[last], 0.9)},
        title="Radii",
        logarithmic=logarithmic,
    )
    assert is_a_picture(path)
    assert_readable(figure, least=2)
    axes = figure.axes[0]
    dots = [line for line in axes.lines if line.get_marker() == "o" and len(line.get_xdata())]
    found = [(float(line.get_xdata()[0]), int(line.get_ydata()[0])) for line in dots]
    assert found == [(np.median(one), -i) for i, one in enumerate(given.values())]
    hidden = int(0.1 * len(given[last])) + 1
    assert f"{hidden - 1} reach the span" in str([t.get_text() for t in axes.texts])
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == list(dict.fromkeys(groups))
    # Bars are parts of every row's highest.
    outline = axes.patches[0].get_data()
    counts, _ = np.histogram(given["minimum 0"], outline.edges)
    np.testing.assert_allclose(outline.values - outline.baseline, 0.85 * counts / counts.max())


def test_equal_radii_and_no_groups(tmp_path):
    path = tmp_path / "a.png"
    radius_histograms({"a": [0.5, 0.5]}, title="T", path=path)
    assert is_a_picture(path)


@pytest.mark.parametrize("intervals", [False, True])
def test_a_point_a_minimum(assert_readable, intervals):
    x, y = RANDOM.random(7), RANDOM.normal(-9e5, 3e3, 7)
    ends = {"low": y - 500, "high": y + 900} if intervals else {}
    groups = list("aabbbcc")
    figure = volume_scatter(x, y, groups=groups, note="Spearman 0.5", title="V", **ends)
    assert_readable(figure)
    axes = figure.axes[0]
    points = [line.get_xydata()[0] for line in axes.lines if len(line.get_xdata())]
    np.testing.assert_array_equal(points, np.stack([x, y], axis=1))
    assert len(axes.collections) == (7 if intervals else 0)


def test_a_curve_a_minimum(assert_readable):
    sizes = [1, 10, 100]
    curves = {name: (sizes, [1.0, 2, 3], [0, 1.5, 3], [2, 2.5, 3]) for name in ("a", "b")}
    figure = volume_curves(curves, title="K")
    assert_readable(figure)
    lines = figure.axes[0].lines
    assert [line.get_xdata().tolist() for line in lines] == [sizes, sizes]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: radius_histograms({}, path=p), "radii of nobody"),
        (lambda p: radius_histograms({"a": [1, np.nan]}, path=p), r"radii of \['a'\]"),
        (lambda p: radius_histograms({"a": [1, 0.0]}, path=p), r"radii of \['a'\]"),
        (lambda p: radius_histograms({"a": [1]}, path=p, groups=["x", "y"]), "groups has 2 names"),
        (
            lambda p: radius_histograms({"a": [1]}, path=p, censored={"a": [True, False]}),
            r"censored of \['a'\]",
        ),
        (lambda p: radius_histograms({"a": [1]}, path=p, censored={"b": [True]}), r"of \['b'\]"),
        (lambda p: volume_scatter([1], [1, 2], path=p), "expected \\[k\\] all"),
        (lambda p: volume_scatter([1], [1], path=p, low=[0]), "only one of low and high"),
        (lambda p: volume_scatter([1], [1], path=p, groups=[]), "groups has 0 names"),
        (lambda p: volume_curves({}, path=p), "curves of nobody"),
        (lambda p: volume_curves({"a": ([1], [1], [1], [1, 2])}, path=p), r"curves of \['a'\]"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, call, message):
    with pytest.raises(ValueError, match=message):
        call(tmp_path / "a.png")
    with pytest.raises(ValueError, match="not a name of a PNG"):
        radius_histograms({"a": [1, 2]}, path=tmp_path / "a.jpg")
