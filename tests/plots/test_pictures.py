"""Pictures: they are written, say what they hold, hold true proportions, and touch no global."""

import itertools
import subprocess
import sys

import matplotlib
import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from densejax.plots import curves, scales, scores, slices, style

NAMES = ("background", "cell", "mitochondrion")


def volume(shape=(6, 20, 30), classes=3):
    generator = np.random.default_rng(0)
    return generator.normal(size=shape), generator.integers(0, classes, shape).astype(np.int32)


def draw_all(folder):
    """One of each picture, by the function's name."""
    generator = np.random.default_rng(0)
    image, labels = volume()
    part = np.array([[0.5, 0.5, 0], [0.0004, 0.9996, 0], [np.nan] * 3])
    return {
        "learning_curves": curves.learning_curves(
            np.arange(9), generator.random((5, 9)), path=folder / "learning.png", title="Five"
        ),
        "top_k_curve": curves.top_k_curve(
            [1, 2, 4],
            [0.5, 0.6, 0.55],
            path=folder / "k.png",
            best_single=0.5,
            low=[0.4] * 3,
            high=[0.7] * 3,
        ),
        "score_histogram": scores.score_histogram(
            {"a": generator.random(30), "b": [0.5]},
            path=folder / "h.png",
            intervals={"a": (0.4, 0.6)},
        ),
        "strips": scores.strips(
            {"a": [0.2, np.nan, 0.4], "b": [0.5]},
            path=folder / "p.png",
            intervals={"a": (0.1, 0.3)},
        ),
        "scores_over_settings": scores.scores_over_settings(
            {"width": [4, 8, 6], "rate": [1e-4, 1e-3, 1e-2]},
            [0.3, np.nan, 0.4],
            path=folder / "s.png",
            correlations={"width": -0.5, "rate": np.nan},
        ),
        "class_iou": scores.class_iou(
            generator.random((4, 3)), path=folder / "c.png", ensemble=[0.5] * 3, class_names=NAMES
        ),
        "confusion_matrix": scores.confusion_matrix(part, path=folder / "m.png", class_names=NAMES),
        "orthoslices": slices.orthoslices(
            image,
            {"truth": labels - 1, "ensemble": labels},
            path=folder / "o.png",
            voxel_nm=(50, 10, 10),
            entropy=np.abs(image),
            class_names=NAMES,
            title="A volume",
        ),
    }


def test_every_picture_is_a_readable_png_and_leaves_settings_alone(tmp_path, assert_readable):
    before = dict(matplotlib.rcParams)
    for figure in draw_all(tmp_path / "made").values():
        assert_readable(figure)
    for path in (tmp_path / "made").iterdir():
        pixels = matplotlib.image.imread(path)
        assert min(pixels.shape[:2]) > 300 and pixels.std() > 0.01, path.name
    assert dict(matplotlib.rcParams) == before


def test_a_picture_without_a_path_is_written_nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert isinstance(scores.strips({"a": [0.2]}), Figure)
    assert not list(tmp_path.iterdir())


def test_pyplot_is_never_imported():
    code = (
        "import sys; from densejax.plots import curves, scores, slices; "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_planes_keep_the_proportions_of_the_tissue():
    image, labels = volume((7, 40, 60))
    figure = slices.orthoslices(image, {"truth": labels}, voxel_nm=(50, 8, 10))
    across, down = figure.get_size_inches()
    shapes = [
        (a.get_position().width * across, a.get_position().height * down) for a in figure.axes
    ]
    (xy_width, xy_height), (zx_width, zx_height) = shapes[:2]
    assert xy_height / xy_width == pytest.approx(40 * 8 / (60 * 10))
    assert zx_height / zx_width == pytest.approx(7 * 50 / (60 * 10))
    np.testing.assert_array_equal(figure.axes[2].images[0].get_array(), labels[3])
    np.testing.assert_array_equal(figure.axes[3].images[0].get_array(), labels[:, 20])


def test_classes_have_their_colour_in_every_picture():
    image, labels = volume()
    figure = slices.orthoslices(image, {"truth": labels}, voxel_nm=(50, 10, 10))
    shown = figure.axes[2].images[0]
    for value, colour in enumerate(style.class_colours(3)):
        found = shown.cmap(shown.norm(value))
        np.testing.assert_allclose(found, matplotlib.colors.to_rgba(colour), atol=1e-6)
    white = shown.cmap(shown.norm(-1))
    assert white == (1, 1, 1, 1)
    assert len(set(style.class_colours(12))) == 12 and len(style.class_colours(40)) == 40


def test_histogram_bars_are_parts_of_each_population():
    many = np.random.default_rng(0).normal(size=90)
    figure = scores.score_histogram({"many": many, "few": many[:7]}, bins=10)
    outlines = [p.get_xy()[:, 1] for p in figure.axes[0].patches]
    # Steps touch each bar's height twice; a filled outline of all bars sums to one.
    assert all(np.max(heights) <= 1 for heights in outlines)
    counts, _ = np.histogram(many, 10)
    np.testing.assert_allclose(outlines[1].max(), counts.max() / 90)
    scores.score_histogram({"equal": [0.5, 0.5]}).canvas.draw()


def test_curves_skip_what_was_not_evaluated():
    values = np.array([[0.1, np.nan, 0.3, np.nan], [0.2, np.nan, np.nan, 0.4]])
    lines = curves.learning_curves([0, 1, 2, 3], values).axes[0].get_lines()
    assert [list(l.get_xdata()) for l in lines] == [[0, 2], [0, 3], [0, 2, 3], [0, 2, 3]]
    np.testing.assert_allclose(lines[-1].get_ydata(), [0.15, 0.3, 0.4])


def test_errors_name_what_was_wrong(tmp_path):
    image, labels = volume()
    path = tmp_path / "o.png"
    with pytest.raises(ValueError, match=r"truth has shape \(3,"):
        slices.orthoslices(image, {"truth": labels[:3]}, path=path, voxel_nm=(1, 1, 1))
    with pytest.raises(ValueError, match="three positive"):
        slices.orthoslices(image, {}, path=path, voxel_nm=(1, 0, 1))
    with pytest.raises(ValueError, match=r"z is 6: expected a plane in 0\.\.5"):
        slices.orthoslices(image, {}, path=path, voxel_nm=(1, 1, 1), z=6)
    with pytest.raises(ValueError, match=r"truth has labels 0\.\.2"):
        slices.orthoslices(image, {"truth": labels}, path=path, voxel_nm=(1, 1, 1), classes=2)
    with pytest.raises(ValueError, match="2 names"):
        scores.class_iou(np.ones((2, 3)), path=path, class_names=("a", "b"))
    with pytest.raises(ValueError, match=r"expected \[c, c\]"):
        scores.confusion_matrix(np.ones((2, 3)), path=path)
    with pytest.raises(ValueError, match=r"\['a'\]"):
        scores.score_histogram({"a": [float("nan")]}, path=path)
    with pytest.raises(ValueError, match="both or neither"):
        curves.top_k_curve([1], [0.5], path=path, low=[0.1])
    with pytest.raises(ValueError, match=r"expected \[t\] and \[k, t\]"):
        curves.learning_curves([1, 2], np.ones((3, 3)), path=path)
    with pytest.raises(ValueError, match=r"\.png"):
        scores.confusion_matrix(np.eye(2), path=tmp_path / "m.pdf")


@pytest.mark.parametrize("limits", [(0.232, 0.311), (0.5, 30.0), (2e-6, 4e3)])
def test_ticks_of_a_logarithmic_axis_are_few_round_and_told_apart(limits):
    axes = style.new_figure(3, 2).add_subplot()
    axes.set_xlim(limits)
    scales.logarithmic_axis(axes.xaxis)
    ticks = axes.get_xticks()
    texts = [text.get_text() for text in axes.get_xticklabels()]
    assert axes.get_xscale() == "log" and 3 <= len(ticks) <= 8
    assert limits[0] <= min(ticks) and max(ticks) <= limits[1]
    assert len(set(texts)) == len(ticks) and not axes.get_xticks(minor=True).size
    for value in ticks:
        assert float(f"{value:.2g}") == pytest.approx(value)


def test_names_below_bars_do_not_run_into_one_another():
    names = ["membrane", "glia/extracellular", "mitochondria", "synapse", "intracellular"]
    figure = scores.class_iou(np.full((3, 5), 0.5), class_names=names)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].get_xticklabels()]
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))


def test_settings_that_do_not_match_their_scores_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'width': \(2,\)"):
        scores.scores_over_settings({"width": [1, 2]}, [0.5], path=tmp_path / "s.png")
    with pytest.raises(ValueError, match="no score is finite"):
        scores.scores_over_settings({"width": [1]}, [np.nan], path=tmp_path / "s.png")


@pytest.mark.parametrize("length", [3, 20, 32, 60])
def test_a_legend_takes_as_many_columns_as_fit(length):
    figure = style.new_figure(5.4, 3.5)
    axes = figure.add_subplot()
    for index in range(5):
        axes.plot([0, 1], [index, 0], label=f"{index} " + "n" * length)
    style.legend(axes, title="a title", columns=3)
    figure.canvas.draw()
    box = axes.get_legend().get_window_extent()
    columns = len(axes.get_legend()._legend_handle_box.get_children())
    assert columns == {3: 3, 20: 2, 32: 1, 60: 1}[length]
    if length < 60:
        assert box.x1 <= figure.bbox.x1
        assert axes.get_window_extent().width > 0.75 * figure.bbox.width
