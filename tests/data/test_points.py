"""Point sets against their formulas in NumPy, drawn statistics and hand-made counts."""

import math

import jax
import numpy as np
import pytest
from scipy import stats

from densejax.data.points import Points, rings, spirals, split, swiss_roll


def test_swiss_roll_lies_on_its_arms():
    found = swiss_roll(jax.random.key(0), 1000, noise=0.0)
    points = np.asarray(found.points, np.float64)
    assert points.shape == (2000, 2) and found.points.dtype == np.float32
    np.testing.assert_array_equal(found.labels, np.repeat([0, 1], 1000))
    np.testing.assert_array_equal(points[1000:], -points[:1000])
    # On the arm the radius tells the angle, and the angle the direction.
    angles = np.linalg.norm(points[:1000], axis=1) / 1.5
    arm = np.stack([-np.cos(angles), np.sin(angles)], axis=1) * 1.5 * angles[:, None]
    np.testing.assert_allclose(points[:1000], arm, atol=2e-4)
    largest = 600 * 2 * math.pi / 360
    assert angles.max() < largest * (1 + 1e-6)
    # sqrt(U): the square of the angle is uniform.
    assert stats.kstest((angles / largest) ** 2, "uniform").pvalue > 1e-3


def test_swiss_roll_noise_is_shared_by_a_pair():
    key = jax.random.key(1)
    still, noisy = swiss_roll(key, 3000, noise=0.0), swiss_roll(key, 3000, noise=0.5)
    shift = np.asarray(noisy.points - still.points)
    np.testing.assert_allclose(shift[3000:], -shift[:3000], atol=1e-5)
    assert stats.kstest(shift[:3000].ravel() / 0.5, "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(shift[:3000].T)[0, 1]) < 0.06


def test_spirals():
    found = spirals(jax.random.key(0), 200)
    t = np.arange(200) * 1.5 * 2 * math.pi / 200
    expected = [
        [5 * math.sqrt(one) * math.cos(one), 5 * math.sqrt(one) * math.sin(one)] for one in t
    ]
    np.testing.assert_allclose(found.points[:200], expected, atol=1e-5)
    np.testing.assert_allclose(found.points[200:], -np.array(expected), atol=1e-5)
    np.testing.assert_array_equal(found.labels, np.repeat([1, 0], 200))
    assert not np.any(np.asarray(found.points)[[0, 200]]) and found.labels[0] != found.labels[200]
    noisy = spirals(jax.random.key(0), 1000, noise=0.3).points
    shift = np.asarray(noisy - spirals(jax.random.key(0), 1000).points) / 0.3
    assert stats.kstest(shift.ravel(), "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(shift[:1000].ravel(), shift[1000:].ravel())[0, 1]) < 0.06


def test_rings():
    found = rings(gap=0.001)
    assert len(found) == 130 and np.bincount(found.labels).tolist() == [40, 90]
    radii = np.linalg.norm(found.points, axis=1)
    np.testing.assert_allclose(radii, [0.4] * 40 + [0.95] * 80 + [0.401] * 10, rtol=1e-6)
    assert np.all(found.labels[:40] == 0)
    np.testing.assert_allclose(found.points[0], [0, 0.4], atol=1e-7)
    phase = math.pi / 40
    ring = 0.401 * np.array([math.sin(phase), math.cos(phase)])
    np.testing.assert_allclose(found.points[120], ring, rtol=1e-6)
    # Halfway between two of class 0.
    gaps = np.linalg.norm(found.points[:40] - found.points[120], axis=1)
    assert np.sort(gaps)[1] == pytest.approx(np.sort(gaps)[0], rel=1e-3)


def test_split_is_disjoint_and_random():
    points = swiss_roll(jax.random.key(0), 200)
    train, test = split(jax.random.key(1), points, (200, 150))
    assert (len(train), len(test)) == (200, 150)
    rows = np.concatenate([train.points, test.points])
    assert len(np.unique(rows, axis=0)) == 350
    points, train = (jax.tree.map(np.asarray, one) for one in (points, train))
    classes = {tuple(p): c for p, c in zip(points.points, points.labels, strict=True)}
    assert all(classes[tuple(p)] == c for p, c in zip(train.points, train.labels, strict=True))
    assert 60 < int(train.labels.sum()) < 140
    assert isinstance(train, Points) and train.points.dtype == np.float32


def test_modes(assert_modes_agree):
    assert_modes_agree(lambda key: swiss_roll(key, 5), jax.random.key(3))
    assert_modes_agree(lambda key: spirals(key, 5, noise=0.1), jax.random.key(3))


def test_errors():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="0 points of each class"):
        swiss_roll(key, 0)
    with pytest.raises(ValueError, match="noise is -1"):
        spirals(key, 3, noise=-1)
    with pytest.raises(ValueError, match="cycles is 0"):
        spirals(key, 3, cycles=0)
    with pytest.raises(ValueError, match="gap is 0"):
        rings(gap=0)
    with pytest.raises(ValueError, match="between is 0"):
        rings(between=0)
    with pytest.raises(ValueError, match=r"sizes \[5, 6\] of a set of 10"):
        split(key, swiss_roll(key, 5), (5, 6))
