"""Moved positions by their geometry, what is read there against SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from densejax.data.resampling import moved_positions, read_plane

SIZE = (9, 14)
STILL = {"rotation": 0.0, "scaling": 0.0, "warp": 0.0}


def own_positions(size=SIZE):
    return np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in size), indexing="ij"))


def positions(seed, size=SIZE, **options):
    return np.asarray(moved_positions(jax.random.key(seed), size, **(STILL | options)))


@pytest.mark.parametrize("size", [SIZE, (8, 8), (1, 5)])
def test_positions_that_do_not_move_are_those_of_the_window(size):
    for seed in range(3):
        np.testing.assert_allclose(positions(seed, size), own_positions(size), atol=1e-6)


def test_rotation_turns_about_the_middle_and_keeps_distances():
    own, angles = own_positions(), []
    for seed in range(150):
        found = positions(seed, rotation=30.0)
        lengths = np.hypot(*found)
        np.testing.assert_allclose(lengths, np.hypot(*own), rtol=1e-5)
        turned = np.einsum("ihw,jhw->ij", found, own)
        # A turn, no reflection: both axes by the same angle.
        angle = np.arctan2(turned[1, 0] / turned[0, 0], 1)
        np.testing.assert_allclose(
            found,
            np.einsum(
                "ij,jhw->ihw",
                [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]],
                own,
            ),
            atol=1e-4,
        )
        angles.append(np.rad2deg(angle))
    assert -30 <= min(angles) < -27 and 27 < max(angles) <= 30 + 1e-4
    assert abs(np.mean(angles)) < 5 * 30 / np.sqrt(3 * 150)


def test_scaling_is_even_about_the_middle_and_bounded_either_way():
    own, factors = own_positions(), []
    for seed in range(150):
        found = positions(seed, scaling=0.25)
        factor = (found * own).sum() / (own * own).sum()
        np.testing.assert_allclose(found, factor * own, rtol=1e-5)
        factors.append(np.log(factor) / np.log(1.25))
    assert -1 - 1e-5 <= min(factors) < -0.9 and 0.9 < max(factors) <= 1 + 1e-5
    assert abs(np.mean(factors)) < 5 / np.sqrt(3 * 150)


def test_a_warp_is_smooth_and_as_strong_as_it_says():
    size, moved = (64, 96), []
    for seed in range(40):
        found = positions(seed, size, warp=2.0) - own_positions(size)
        moved.append(found)
        # Linear between points many voxels apart: neighbours are moved nearly alike.
        for axis in (1, 2):
            assert np.abs(np.diff(found, axis=axis)).max() < 1.5
            assert np.abs(np.diff(found, 2, axis=axis)).mean() < 0.02
    moved = np.stack(moved)
    corners = moved[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    # At its points the deviation is 2; 320 numbers.
    assert abs(corners.std() - 2) < 5 * 2 / np.sqrt(2 * corners.size)
    assert abs(corners.mean()) < 5 * 2 / np.sqrt(corners.size)
    # y and x are moved by themselves.
    assert abs(np.corrcoef(corners[:, 0].ravel(), corners[:, 1].ravel())[0, 1]) < 0.4


def test_what_moves_a_window_is_drawn_independently():
    options = {"rotation": 30.0, "scaling": 0.25}
    found = []
    for seed in range(200):
        corner = positions(seed, (3, 3), **options)[:, 0, 1]
        found.append([np.arctan2(*corner), np.log(np.hypot(*corner))])
    assert abs(np.corrcoef(np.transpose(found))[0, 1]) < 5 / np.sqrt(200)


def places(seed=0, shape=(9, 7)):
    """Rows and columns inside a plane of 12 by 15 and up to its size outside."""
    random = np.random.default_rng(seed)
    y, x = random.uniform(-11, 22, shape), random.uniform(-14, 28, shape)
    return y.astype(np.float32), x.astype(np.float32)


@pytest.mark.parametrize("linear", [False, True])
def test_reading_a_plane_against_scipy(linear):
    volume = np.random.default_rng(1).normal(size=(4, 12, 15)).astype(np.float32)
    y, x = places()
    sections = np.array([2, 0, 2])
    found = read_plane(volume, sections, jnp.asarray(y), jnp.asarray(x), linear=linear)
    expected = [
        scipy.ndimage.map_coordinates(volume[s], [y, x], order=int(linear), mode="mirror")
        for s in sections
    ]
    np.testing.assert_allclose(found, np.stack(expected), atol=2e-5)


@pytest.mark.parametrize("linear", [False, True])
def test_whole_positions_are_voxels_and_mirrored_without_their_edge(linear):
    volume = np.arange(2 * 4 * 3, dtype=np.float32).reshape(2, 4, 3)
    y, x = jnp.arange(-3.0, 7), jnp.arange(-2.0, 5)
    found = read_plane(volume, np.array([1]), *jnp.meshgrid(y, x, indexing="ij"), linear=linear)
    rows, columns = [3, 2, 1, 0, 1, 2, 3, 2, 1, 0], [2, 1, 0, 1, 2, 1, 0]
    np.testing.assert_array_equal(found[0], volume[1][np.ix_(rows, columns)])


def test_a_plane_of_one_row_is_that_row_everywhere():
    volume = np.arange(5, dtype=np.float32).reshape(1, 1, 5)
    y = jnp.asarray([[-0.7, 0.0, 0.4, 0.9]])
    x = jnp.asarray([[0.0, 1.0, 2.5, 4.0]])
    found = read_plane(volume, np.array([0]), y, x, linear=True)
    np.testing.assert_allclose(found[0, 0], [0, 1, 2.5, 4], atol=1e-6)


def test_labels_keep_their_type_and_are_never_mixed():
    labels = np.array([[[-1, 5, 9], [5, 5, 200]]], np.int32)
    y, x = (jnp.asarray(np.random.default_rng(0).uniform(-1, 3, (20, 20))) for _ in range(2))
    found = read_plane(labels, np.array([0]), y, x, linear=False)
    assert found.dtype == jnp.int32 and set(np.unique(found)) <= {-1, 5, 9, 200}
