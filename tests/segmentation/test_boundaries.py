"""Regions between membranes: against scikit-image, and cases whose answer is known."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.metrics import adapted_rand_error, variation_of_information

from densejax.segmentation.evaluation.partitions import boundary_class, boundary_scores


def rooms(gap=False):
    """Two rooms of 9 x 4 voxels and a wall (class 0) between them, perhaps with a gap."""
    plane = np.ones((9, 9), np.int32)
    plane[:, 4] = 0
    if gap:
        plane[4, 4] = 1
    return plane[None]


def test_a_perfect_prediction_scores_one_and_costs_no_information():
    scores = boundary_scores(rooms(), rooms(), 0)
    assert scores.rand == 1 and scores.split == scores.merge == scores.pixel_error == 0


def test_a_gap_of_one_voxel_merges_two_rooms():
    scores = boundary_scores(rooms(), rooms(gap=True), 0)
    # All 72 voxels of the rooms are one object: pairs 2 * C(36, 2) of C(72, 2).
    precision = 2 * (36 * 35) / (72 * 71)
    assert scores.rand == pytest.approx(2 * precision / (precision + 1))
    assert scores.merge == pytest.approx(1.0) and scores.split == 0
    assert scores.pixel_error == pytest.approx(1 / 81)


def test_one_section_agrees_with_scikit_image():
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.normal(size=(2, 64, 64)), (0, 2, 2))
    truth, predicted = (smooth > -0.02).astype(np.int32)
    scores = boundary_scores(truth[None], predicted[None], 0)
    first, second = ndimage.label(truth)[0], ndimage.label(predicted)[0]
    error = adapted_rand_error(first, second)[0]
    assert scores.rand == pytest.approx(1 - error)
    # Id 0 is a region of its own in the prediction, here and there.
    parts = variation_of_information(first, second + 1, ignore_labels=(0,))
    assert sorted((scores.split, scores.merge)) == pytest.approx(sorted(parts))


def test_sections_are_divided_each_for_itself():
    both = np.concatenate([rooms(), rooms(gap=True)])
    scores = boundary_scores(both, both, 0)
    assert scores.rand == 1 and scores.merge == 0


def test_unlabelled_voxels_count_nowhere():
    truth = rooms()
    truth[:, :, 5:] = -1
    scores = boundary_scores(truth, rooms(gap=True), 0)
    assert scores.rand == 1 and scores.merge == 0
    assert scores.pixel_error == pytest.approx(1 / 45)


def test_the_boundary_is_the_one_class_of_that_name():
    assert boundary_class(("cell", "Membrane")) == 1
    assert boundary_class(("cell boundary", "inside")) == 0
    assert boundary_class(("inner membrane", "outer membrane")) is None
    assert boundary_class(("cell", "nucleus")) is None


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 9, 9\).*\(1, 9, 8\)"):
        boundary_scores(rooms(), rooms()[:, :, :8], 0)
