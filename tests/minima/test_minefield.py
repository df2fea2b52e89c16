"""Minefields: which numbers are embedded, neighbours that stay neighbours, the rule of outliers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from densejax.minima.minefield import embed, kernel_vectors, outliers
from densejax.models.mlp import MLP


def test_kernels_without_biases():
    model = MLP(1, widths=(25,) * 4)
    keys = jax.random.split(jax.random.key(0), 3)
    stacked = jax.vmap(lambda key: model.init(key, jnp.zeros((1, 2))))(keys)
    found = kernel_vectors(stacked)
    assert found.shape == (3, 1950)  # 2,051 parameters less 101 biases
    moved = jax.tree.map(lambda leaf: leaf + 1 if leaf.ndim == 2 else leaf, stacked)
    np.testing.assert_array_equal(kernel_vectors(moved), found)
    params = jax.tree.map(lambda leaf: np.asarray(leaf[1]), stacked["params"])
    # Sorted names: the head before the linear layers.
    names = ["head", *(f"linear{i}" for i in range(4))]
    expected = np.concatenate([params[name]["kernel"].ravel() for name in names])
    np.testing.assert_array_equal(found[1], expected)
    with pytest.raises(ValueError, match="no leaf has two axes"):
        kernel_vectors({"bias": np.zeros((3, 4))})


def test_neighbours_stay_neighbours():
    """Three clusters of 80 dimensions come out as three clusters, at every perplexity."""
    draw = np.random.default_rng(0)
    centres = 4 * draw.normal(size=(3, 80))
    labels = np.repeat(np.arange(3), 30)
    found = embed(centres[labels] + 0.3 * draw.normal(size=(90, 80)), perplexities=(5, 20))
    assert list(found) == [5, 20]
    for picture in found.values():
        assert picture.shape == (90, 2)
        nearest = NearestNeighbors(n_neighbors=2).fit(picture).kneighbors(return_distance=False)
        assert (labels[nearest[:, 0]] == labels).mean() > 0.95
    again = embed(np.repeat(centres, 4, axis=0), perplexities=(3,), seed=1)
    np.testing.assert_array_equal(
        again[3], embed(np.repeat(centres, 4, axis=0), perplexities=(3,), seed=1)[3]
    )


def test_outliers_are_far_in_both_coordinates():
    # Mean 0 by symmetry; the standard deviation of each coordinate is below 2.
    points = np.array([[0, 0]] * 8 + [[4, 4], [-4, -4], [4, 0], [-4, 0]], float)
    found = outliers(points)
    np.testing.assert_array_equal(np.flatnonzero(found), [8, 9])
    candidates = np.arange(12) != 9
    np.testing.assert_array_equal(np.flatnonzero(outliers(points, candidates=candidates)), [8])
    assert not outliers(points, deviations=3.0).any()


def test_errors():
    points = np.zeros((10, 3))
    with pytest.raises(ValueError, match="perplexity 10 of 10 points"):
        embed(points, perplexities=(5, 10))
    points[4, 1] = np.nan
    with pytest.raises(ValueError, match="row 4 is not finite"):
        embed(points, perplexities=(5,))
    with pytest.raises(ValueError, match=r"\(3,\): expected \[n, d\]"):
        embed(np.zeros(3))
    with pytest.raises(ValueError, match=r"candidates \(2,\)"):
        outliers(np.zeros((3, 2)), candidates=np.ones(2, bool))
