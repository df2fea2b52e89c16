"""Nearness against SciPy's distance transform of the whole volume."""

import numpy as np
import pytest
from scipy import ndimage

from densejax.segmentation.evaluation.streaming import within


@pytest.mark.parametrize("distance", [0.0, 3.0, 10.0, 50.0, 100.0, 1000.0])
@pytest.mark.parametrize("share", [0.001, 0.05, 0.5])
def test_the_same_as_the_distance_transform(distance, share):
    voxel = (50.0, 4.6, 10.0)
    mask = np.random.default_rng(0).random((7, 40, 30)) < share
    mask[3, 20, 15] = True
    expected = ndimage.distance_transform_edt(~mask, sampling=voxel) <= distance * (1 + 1e-9)
    np.testing.assert_array_equal(within(mask, distance, voxel_nm=voxel), expected)


def test_a_sphere_in_nanometres():
    mask = np.zeros((9, 41, 41), bool)
    mask[4, 20, 20] = True
    z, y, x = np.indices(mask.shape) - np.array([4, 20, 20])[:, None, None, None]
    expected = (50 * z) ** 2 + (10 * y) ** 2 + (10 * x) ** 2 <= 150**2
    found = within(mask, 150.0, voxel_nm=(50.0, 10.0, 10.0))
    np.testing.assert_array_equal(found, expected)
    assert not within(np.zeros_like(mask), 1e6, voxel_nm=(50.0, 10.0, 10.0)).any()
