"""Pictures of labellings beside one another are written and say what they hold."""

import numpy as np
import pytest

from densejax.plots import agreement, scores, slices

NAMES = ("background", "cell", "mitochondrion")


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_class_scores_have_a_bar_each_and_absent_classes_say_so(assert_readable, tmp_path):
    path = tmp_path / "c.png"
    values = {"IoU": [0.9, 0.5, np.nan], "Dice": [0.95, 2 / 3, np.nan]}
    figure = agreement.class_scores(values, class_names=NAMES, path=path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert_readable(figure)
    (axes,) = figure.axes
    assert sorted(texts(axes)) == ["0.50", "0.67", "0.90", "0.95", "none", "none"]
    heights = sorted(patch.get_height() for patch in axes.patches if patch.get_height())
    np.testing.assert_allclose(heights, [0.5, 2 / 3, 0.9, 0.95])
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["IoU", "Dice"]


def test_matrices_show_every_two_and_nothing_on_the_diagonal(assert_readable):
    table = np.array([[1, 0.571, 0.497], [0.571, 1, np.nan], [0.497, np.nan, 1]])
    tables = {"MIoU(org)": table, "accuracy": table}
    figure = agreement.agreement_matrices(tables, names=["A1", "A2", "net"])
    assert_readable(figure)
    for axes in figure.axes:
        assert sorted(texts(axes)) == ["0.497", "0.497", "0.571", "0.571"]


def test_fractions_are_bars_of_every_labelling(assert_readable):
    parts = {"A1": [0.2, 0.05], "net": [0.25, np.nan]}
    figure = agreement.volume_fractions(parts, class_names=NAMES[1:])
    assert_readable(figure)
    (axes,) = figure.axes
    assert texts(axes) == ["20", "5.0", "25"]
    heights = [patch.get_height() for patch in axes.patches]
    np.testing.assert_allclose(heights, [0.2, 0.05, 0.25, 0])


def test_threshold_curves_mark_the_best(assert_readable):
    at = np.linspace(0, 1, 11)
    curves = {"cell": at, "both": 1 - at}
    figure = agreement.threshold_curve(at, curves, best=(0.5, 0.75), levels={"own": 0.7})
    assert_readable(figure)
    (axes,) = figure.axes
    labels = [t.get_text() for t in axes.get_legend().get_texts()]
    assert labels == ["cell", "both", "own", "best: 0.750 at 0.50"]


def test_confusion_of_two_people_names_both():
    axes = scores.confusion_matrix(np.eye(3), sides=("class by A1", "class by A2")).axes[0]
    assert axes.get_ylabel() == "class by A1" and axes.get_xlabel() == "class by A2"


def test_a_cut_without_an_image(assert_readable, tmp_path):
    labels = np.random.default_rng(0).integers(-1, 3, (4, 20, 30))
    both = {"labels": labels, "prediction": labels}
    figure = slices.orthoslices(None, both, voxel_nm=(50, 10, 10))
    assert_readable(figure)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["labels", "prediction"]
    with pytest.raises(ValueError, match="neither an image nor a labelling"):
        slices.orthoslices(None, {}, path=tmp_path / "n.png", voxel_nm=(50, 10, 10))


def test_bad_input_says_so(tmp_path):
    out = tmp_path / "x.png"
    with pytest.raises(ValueError, match=r"Dice has shape \(2,\): expected \(3,\)"):
        agreement.class_scores({"IoU": [1, 1, 1], "Dice": [1, 1]}, path=out)
    with pytest.raises(ValueError, match="0 entries: expected one or two"):
        agreement.class_scores({}, path=out)
    with pytest.raises(ValueError, match=r"m has shape \(2, 2\): expected \(3, 3\)"):
        agreement.agreement_matrices({"m": np.eye(2)}, path=out, names="abc")
    with pytest.raises(ValueError, match="matrices is empty"):
        agreement.agreement_matrices({}, path=out, names="abc")
    with pytest.raises(ValueError, match="fractions is empty"):
        agreement.volume_fractions({}, path=out, class_names=NAMES)
    with pytest.raises(ValueError, match="a has shape"):
        agreement.threshold_curve([0, 1], {"a": [1.0]}, path=out)
