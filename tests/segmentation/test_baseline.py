"""The forest on filters: its features against SciPy's meaning, its scores, and what it keeps."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from densejax.data.datasets import LabelledVolume
from densejax.segmentation import baseline
from densejax.segmentation.sources import Parts


def discs(seed, depth=3):
    """Bright discs on a dark ground: what any filter tells apart."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:48, :48]
    labels = np.zeros((depth, 48, 48), np.int32)
    for z in range(depth):
        cy, cx = rng.uniform(12, 36, 2)
        labels[z] = (y - cy) ** 2 + (x - cx) ** 2 < 81
    images = (100 + 80 * labels + rng.normal(0, 10, labels.shape)).astype(np.float32)
    return LabelledVolume("discs", images, labels, None, (50.0, 5.0, 5.0), ("ground", "disc"))


@pytest.fixture(scope="module")
def parts():
    return Parts(discs(0), discs(1), discs(2, depth=4))


def test_the_features_of_a_parabola_are_its_curvature_and_slope():
    x = np.arange(-32, 33, dtype=np.float32)
    bowl = np.broadcast_to(0.01 * x**2 + 0.25 * x, (65, 65)).copy()
    features = baseline.section_features(bowl)
    assert features.shape == (65, 65, 1 + 3 * len(baseline.SIGMAS))
    middle = features[32, 32]
    assert middle[0] == bowl[32, 32]
    for index, sigma in enumerate(baseline.SIGMAS[:4]):
        smooth, curvature, gradient = middle[1 + 3 * index : 4 + 3 * index]
        # A Gaussian adds its variance times half the curvature to a parabola.
        assert smooth == pytest.approx(0.01 * sigma**2, rel=0.02)
        assert curvature == pytest.approx(0.02, rel=0.1)
        assert gradient == pytest.approx(0.25, rel=0.02)


def test_discs_are_found_scored_and_kept(parts, tmp_path):
    said = []
    forest = baseline.compare(parts, tmp_path, say=said.append)
    expected = jaccard_score(parts.test.labels.ravel(), forest.labels.ravel(), average="macro")
    assert forest.miou == pytest.approx(expected, abs=1e-6)
    assert forest.miou > 0.9
    assert f"{forest.miou:.3f}" in said[0]
    stamp = (tmp_path / baseline.FILE).stat().st_mtime_ns
    again = baseline.compare(parts, tmp_path, say=said.append)
    np.testing.assert_array_equal(again.labels, forest.labels)
    np.testing.assert_array_equal(again.confusion, forest.confusion)
    assert (tmp_path / baseline.FILE).stat().st_mtime_ns == stamp


def test_unlabelled_voxels_neither_train_nor_count(parts, tmp_path):
    labels = parts.train.labels.copy()
    labels[:, :24] = -1
    test = parts.test.labels.copy()
    test[0] = -1
    partial = replace(
        parts,
        train=replace(parts.train, labels=labels),
        test=replace(parts.test, labels=test),
    )
    forest = baseline.compare(partial, tmp_path, say=lambda line: None)
    assert forest.confusion.sum() == (test >= 0).sum()


def test_of_a_large_volume_sections_are_left_out_and_that_is_said(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(baseline, "MOST_VOXELS", 2 * 48 * 48)
    said = []
    forest = baseline.compare(parts, tmp_path, say=said.append)
    assert forest.sections == (2, 4) and "2 of 4 sections" in said[0]
    left_out = [(plane == -1).all() for plane in forest.labels]
    assert left_out == [False, True, True, False]
    assert forest.confusion.sum() == 2 * 48 * 48


def test_a_forest_of_other_data_is_refused(parts, tmp_path):
    baseline.compare(parts, tmp_path, say=lambda line: None)
    with pytest.raises(ValueError, match=r"forest\.npz.*\(4, 48, 48\).*\(3, 48, 48\)"):
        baseline.compare(replace(parts, test=parts.train), tmp_path, say=lambda line: None)
