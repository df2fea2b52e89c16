"""What radii are measured in: directions on spheres and ellipsoids, and how many are free."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.landscape.basins.spheres import Extent, drawn_direction, extent

KEY = jax.random.key(0)


def params():
    """Kernels [4, 3] (one filter zero) and [3, 2], a bias, a counter."""
    random = np.random.default_rng(0)
    first = random.normal(size=(4, 3)).astype(np.float32)
    first[:, 1] = 0
    return {
        "a": first,
        "b": np.float32([[1, -2], [2, 0], [2, 0]]),
        "bias": np.float32([3, 4, 0]),
        "steps": np.int32(7),
    }


def norms(kernel):
    return np.linalg.norm(np.asarray(kernel, np.float64), axis=0)


def test_on_spheres_every_filter_keeps_its_norm():
    found = drawn_direction(KEY, params())
    for name in ("a", "b"):
        np.testing.assert_allclose(norms(found[name]), norms(params()[name]), rtol=1e-6)
    assert not np.any(found["bias"]) and not np.any(found["steps"])


@pytest.mark.parametrize("biases", ["zero", "random"])
def test_an_ellipsoid_is_one_sphere_scaled(biases):
    options = {"geometry": "ellipsoid", "biases": biases}
    kernels = []
    for seed in range(200):
        found = drawn_direction(jax.random.key(seed), params(), **options)
        scales = [norms(params()[name]) / np.sqrt(len(params()[name])) for name in ("a", "b")]
        moved = [found["a"][:, [0, 2]] / scales[0][[0, 2]], found["b"] / scales[1]]
        if biases == "random":
            moved.append(np.asarray(found["bias"]) / (5 / np.sqrt(3)))
        flat = np.concatenate([np.asarray(part, np.float64).ravel() for part in moved])
        assert np.linalg.norm(flat) == pytest.approx(1, rel=1e-5)
        assert not np.any(found["a"][:, 1]) and not np.any(found["steps"])
        kernels.append(flat)
    # Uniform: every entry has mean square 1 / n.
    square = np.mean(np.square(kernels), axis=0)
    assert np.all(np.abs(square * flat.size - 1) < 0.5)


def test_extents_by_hand():
    sizes = norms(params()["a"])[[0, 2]] / 2
    two = norms(params()["b"]) / np.sqrt(3)
    log_scale = 4 * np.log(sizes).sum() + 3 * np.log(two).sum()
    assert extent(params()) == Extent(14, 4, 0.0, 1.0)
    assert extent(params(), normalise="layer") == Extent(18, 2, 0.0, 1.0)
    assert extent(params(), biases="random").dimension == 14 + 3 - 5
    assert extent(params(), biases="weights") == extent(params())
    found = extent(params(), geometry="ellipsoid")
    assert (found.dimension, found.reach) == (14, np.sqrt(14))
    assert found.log_scale == pytest.approx(log_scale, rel=1e-6)
    whole = np.sqrt(np.sum(params()["a"] ** 2.0) + 13)
    found = extent(params(), geometry="ellipsoid", normalise="none")
    assert (found.entries, found.log_scale) == (18, 0)
    assert found.reach == pytest.approx(whole, rel=1e-6)
    assert extent(params(), normalise="none").reach == pytest.approx(whole / 18**0.5, rel=1e-6)
    # The first axis: a filter for each row.
    assert extent(params(), axes={"['a']": 0}).constraints == 4 + 2


def test_the_number_of_moved_entries_is_counted():
    for options in ({}, {"biases": "random"}, {"normalise": "layer"}, {"geometry": "ellipsoid"}):
        found = drawn_direction(KEY, params(), **options)
        moved = sum(int(jnp.count_nonzero(leaf)) for leaf in jax.tree.leaves(found))
        expected = extent(params(), **options).entries
        # An entry of a bias that is zero moves with the others.
        assert moved == expected, options


def test_a_direction_can_be_mapped(assert_modes_agree):
    assert_modes_agree(
        lambda key, tree: drawn_direction(key, tree, geometry="ellipsoid", biases="random"),
        KEY,
        {name: leaf for name, leaf in params().items() if name != "steps"},
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"geometry": "cube"}, "geometry 'cube': expected spheres or ellipsoid"),
        ({"normalise": "weights"}, "normalise 'weights'"),
        ({"biases": "all"}, "biases 'all'"),
        ({"geometry": "ellipsoid", "biases": "weights"}, "'weights' are not random"),
    ],
)
def test_unknown_options_are_refused(options, message):
    for call in (
        lambda: extent(params(), **options),
        lambda: drawn_direction(KEY, params(), **options),
    ):
        with pytest.raises(ValueError, match=message):
            call()
