"""Directions, lines and planes against plain NumPy and scikit-learn."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import PCA

from densejax.landscape.directions import (
    Line,
    Plane,
    filter_axes,
    first_axis,
    line_through,
    normalise_direction,
    pca_plane,
    plane_through,
    random_direction,
    random_line,
    random_plane,
    zero_norm_filters,
)


def network(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {
        "conv": {"kernel": (3, 3, 2, 4), "bias": (4,)},
        "dense": {"kernel": (6, 5), "bias": (5,)},
        "norm": {"scale": (4,)},
    }
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def flat(tree):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def plain_filter_normalised(d, w):
    """Li et al.'s formula, one output unit after another."""
    d, w = np.asarray(d, np.float64), np.asarray(w, np.float64)
    out = np.zeros_like(d)
    for unit in range(w.shape[-1]):
        norms = np.linalg.norm(w[..., unit]), np.linalg.norm(d[..., unit])
        out[..., unit] = d[..., unit] * norms[0] / (norms[1] + 1e-10)
    return out


def test_filter_normalisation_is_the_papers_formula():
    params, draw = network(), network(1)
    found = normalise_direction(draw, params)
    for layer in ("conv", "dense"):
        expected = plain_filter_normalised(draw[layer]["kernel"], params[layer]["kernel"])
        np.testing.assert_allclose(found[layer]["kernel"], expected, rtol=2e-6)
    for path in (("conv", "bias"), ("dense", "bias"), ("norm", "scale")):
        assert not np.any(found[path[0]][path[1]])


def test_layer_normalisation_and_none():
    params, draw = network(), network(1)
    found = normalise_direction(draw, params, normalise="layer", biases="random")
    for layer, name in (("conv", "kernel"), ("dense", "kernel"), ("norm", "scale")):
        w, d = (np.asarray(tree[layer][name], np.float64) for tree in (params, draw))
        expected = d * np.linalg.norm(w) / np.linalg.norm(d)
        np.testing.assert_allclose(found[layer][name], expected, rtol=2e-6)
    plain = normalise_direction(draw, params, normalise="none", biases="random")
    np.testing.assert_array_equal(flat(plain), flat(draw))


@pytest.mark.parametrize("normalise", ["filter", "layer", "none"])
def test_biases_along_themselves_as_in_the_released_code(normalise):
    params = network()
    found = random_direction(jax.random.key(0), params, normalise=normalise, biases="weights")
    np.testing.assert_array_equal(found["conv"]["bias"], params["conv"]["bias"])
    np.testing.assert_array_equal(found["norm"]["scale"], params["norm"]["scale"])


def test_filters_of_every_kind_of_parameter():
    params = {
        "attention": np.ones((6, 2, 3)),
        "depthwise": np.ones((3, 3, 1, 4)),
        "embedding": np.ones((7, 5)),
        "scale": np.ones(4),
        "step": np.ones(()),
    }
    rule = {"['attention']": (1, 2), "['embedding']": 0}
    assert filter_axes(params, axes=rule) == {
        "['attention']": (1, 2),
        "['depthwise']": 3,
        "['embedding']": 0,
        "['scale']": None,
        "['step']": None,
    }
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=w.shape).astype(np.float32) for name, w in params.items()}
    found = random_direction(jax.random.key(1), params, axes=rule)
    for name, axis in (("attention", 0), ("depthwise", (0, 1, 2)), ("embedding", 1)):
        norms = (
            [np.linalg.norm(np.asarray(tree[name]), axis=axis) for tree in (found, params)]
            if not isinstance(axis, tuple)
            else [np.sqrt((np.asarray(tree[name]) ** 2).sum(axis)) for tree in (found, params)]
        )
        np.testing.assert_allclose(*norms, rtol=1e-5)


def test_first_axis_is_the_transpose_of_the_last():
    w = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    d = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
    torch = {"0.weight": w, "0.bias": np.ones(4, np.float32)}
    draw = {"0.weight": d, "0.bias": np.ones(4, np.float32)}
    found = normalise_direction(draw, torch, axes=first_axis(torch))
    expected = plain_filter_normalised(d.T, w.T).T
    np.testing.assert_allclose(found["0.weight"], expected, rtol=2e-6)
    assert first_axis(torch) == {"['0.weight']": 0, "['0.bias']": None}


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"['no']": 0}, r"no parameter at \['no'\]"),
        ({"['conv']['kernel']": 4}, r"\['conv'\]\['kernel'\] has 4 axes, found axis 4"),
    ],
)
def test_rules_that_do_not_fit(axes, message):
    with pytest.raises(ValueError, match=message):
        filter_axes(network(), axes=axes)


def test_unknown_options():
    with pytest.raises(ValueError, match="normalise 'filters': expected"):
        random_direction(jax.random.key(0), network(), normalise="filters")
    with pytest.raises(ValueError, match="biases 'none': expected"):
        random_direction(jax.random.key(0), network(), biases="none")


def test_zero_filters_are_named_and_do_not_move():
    params = network()
    params["conv"]["kernel"] = params["conv"]["kernel"].at[..., 2].set(0)
    assert zero_norm_filters(params) == ["['conv']['kernel'][:, :, :, 2]"]
    with pytest.warns(UserWarning, match=r"1 filters have norm zero: \['conv'\]\['kernel'\]"):
        line = random_line(jax.random.key(0), params)
    assert not np.any(line.direction["conv"]["kernel"][..., 2])
    assert np.all(np.isfinite(flat(line.direction)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        random_line(jax.random.key(0), params, normalise="layer")


def test_direction_is_a_function_of_its_key(assert_modes_agree):
    params = network()
    assert_modes_agree(random_direction, jax.random.key(3), params, rtol=1e-5, atol=1e-6)
    one, two = (random_direction(jax.random.key(seed), params) for seed in (0, 1))
    again = random_direction(jax.random.key(0), params)
    np.testing.assert_array_equal(flat(one), flat(again))
    assert np.abs(flat(one) - flat(two)).max() > 0.1


def test_entries_are_gaussian():
    params = {"w": jnp.ones((400, 100))}
    found = random_direction(jax.random.key(0), params, normalise="none")["w"]
    assert abs(float(found.mean())) < 0.02
    assert abs(float(found.std()) - 1) < 0.02
    # A uniform draw has kurtosis 1.8, a normal one 3.
    assert abs(float((found**4).mean()) - 3) < 0.15


def test_counters_stay():
    params = {"w": jnp.ones((2, 3)), "count": jnp.asarray(7, jnp.int32)}
    plane = random_plane(jax.random.key(0), params, normalise="none")
    assert int(plane.at(0.5, -3.0)["count"]) == 7
    assert plane.at(0.5, -3.0)["count"].dtype == jnp.int32


def test_a_function_among_the_leaves_is_named():
    with pytest.raises(ValueError, match="expected arrays only"):
        random_direction(jax.random.key(0), {"w": jnp.ones((2, 3)), "activation": jax.nn.relu})


def test_permuted_units_have_permuted_directions():
    """Of a network with permuted hidden units the directions have the same distribution of norms.

    Filter by filter the norm is the parameters' own, so it goes with the unit exactly.
    """
    params, order = network(), np.array([3, 1, 0, 2, 4])
    permuted = jax.tree.map(lambda leaf: leaf, params)
    permuted["dense"]["kernel"] = params["dense"]["kernel"][:, order]
    a = random_direction(jax.random.key(0), params)["dense"]["kernel"]
    b = random_direction(jax.random.key(1), permuted)["dense"]["kernel"]
    norms = [np.linalg.norm(np.asarray(d), axis=0) for d in (a, b)]
    np.testing.assert_allclose(norms[0][order], norms[1], rtol=1e-5)
    draw = network(1)
    moved = dict(draw, dense=dict(draw["dense"], kernel=draw["dense"]["kernel"][:, order]))
    first = normalise_direction(draw, params)["dense"]["kernel"]
    second = normalise_direction(moved, permuted)["dense"]["kernel"]
    np.testing.assert_array_equal(np.asarray(first)[:, order], second)


def test_line_and_plane_are_points_of_the_formula():
    c, a, b = network(0), network(1), network(2)
    expected = flat(c) + 0.3 * flat(a) - 0.7 * flat(b)
    np.testing.assert_allclose(flat(Plane(c, a, b).at(0.3, -0.7)), expected, rtol=1e-6, atol=1e-6)
    expected = flat(c) + 0.3 * flat(a)
    np.testing.assert_allclose(flat(Line(c, a).at(0.3)), expected, rtol=1e-6, atol=1e-6)
    mapped = jax.vmap(lambda t: Line(c, a).at(t))(jnp.asarray([0.0, 0.3]))
    np.testing.assert_allclose(mapped["norm"]["scale"][1], Line(c, a).at(0.3)["norm"]["scale"])
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), c)
    assert Plane(half, a, b).at(0.3, 0.1)["norm"]["scale"].dtype == jnp.bfloat16


def test_angle():
    plane = Plane({"w": jnp.zeros(2)}, {"w": jnp.asarray([2.0, 0])}, {"w": jnp.asarray([3.0, 3.0])})
    assert plane.angle() == pytest.approx(45)
    back = Plane(plane.centre, plane.first, {"w": jnp.asarray([-1.0, 0])})
    assert back.angle() == pytest.approx(180)
    with pytest.raises(ValueError, match="second direction is zero"):
        Plane(plane.centre, plane.first, plane.centre).angle()


def test_nearly_parallel_directions_are_told_with_their_angle():
    a, b = {"w": np.zeros(3)}, {"w": np.array([1.0, 0, 0])}
    c = {"w": np.array([2.0, 2 * np.tan(np.radians(4)), 0])}
    with pytest.warns(UserWarning, match="enclose 4 degrees: nearly parallel"):
        plane_through(a, b, c)
    opposite = {"w": -c["w"]}
    with pytest.warns(UserWarning, match="enclose 176 degrees: nearly parallel"):
        plane_through(a, b, opposite, orthogonal=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        random_plane(jax.random.key(0), network())


def test_parallel_random_directions_of_a_single_weight():
    with pytest.warns(UserWarning, match="nearly parallel"):
        random_plane(jax.random.key(0), {"w": jnp.ones((1, 1))})


def test_coordinates_are_least_squares_not_cosines():
    c, a, b, w = (network(seed) for seed in range(4))
    b = jax.tree.map(lambda x, y: x + 0.8 * y, b, a)
    basis = np.stack([flat(a), flat(b)], axis=1)
    expected, square, *_ = np.linalg.lstsq(basis, flat(w) - flat(c), rcond=None)
    found, residual = Plane(c, a, b).coordinates(w)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert residual == pytest.approx(np.sqrt(square[0]), rel=1e-10)
    on, nothing = Plane(c, a, b).coordinates(Plane(c, a, b).at(0.25, -1.5))
    np.testing.assert_allclose(on, [0.25, -1.5], atol=1e-6)
    assert nothing < 1e-5


def test_coordinates_on_parallel_directions():
    a = network(1)
    twice = jax.tree.map(lambda leaf: 2 * leaf, a)
    with pytest.raises(ValueError, match="parallel or zero: no coordinates"):
        Plane(network(), a, twice).coordinates(a)


def test_line_through_two_minima():
    a, b = network(0), network(1)
    line = line_through(a, b)
    np.testing.assert_array_equal(flat(line.at(0.0)), flat(a))
    np.testing.assert_allclose(flat(line.at(1.0)), flat(b), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="the two points are equal"):
        line_through(a, a)


@pytest.mark.parametrize("orthogonal", [True, False])
def test_plane_through_three_minima(orthogonal):
    o, a, b = network(0), network(1), network(2)
    plane = plane_through(o, a, b, orthogonal=orthogonal)
    places = [plane.coordinates(w) for w in (o, a, b)]
    assert max(residual for _, residual in places) < 1e-5
    found = np.stack([place for place, _ in places])
    if orthogonal:
        assert plane.angle() == pytest.approx(90, abs=1e-4)
        for i, j in ((0, 1), (0, 2), (1, 2)):
            true = np.linalg.norm(flat((o, a, b)[i]) - flat((o, a, b)[j]))
            assert np.linalg.norm(found[i] - found[j]) == pytest.approx(true, rel=1e-5)
        assert abs(found[1, 1]) < 1e-5
        assert found[1, 0] > 0
        assert found[2, 1] > 0
    else:
        np.testing.assert_allclose(found, [[0, 0], [1, 0], [0, 1]], atol=1e-6)


def test_points_on_one_line_have_no_plane():
    o, a = network(0), network(1)
    beyond = jax.tree.map(lambda x, y: x + 2 * (y - x), o, a)
    with pytest.raises(ValueError, match="on one line"):
        plane_through(o, a, beyond)
    with pytest.raises(ValueError, match="two of the three points are equal"):
        plane_through(o, o, a)


def test_minima_of_different_structure():
    a, b = network(), network(1)
    del b["norm"]
    with pytest.raises(
        ValueError, match=r"\['norm'\]\['scale'\] is in the first and not in the second"
    ):
        line_through(a, b)
    c = network(1)
    c["dense"]["kernel"] = c["dense"]["kernel"][:, :3]
    message = r"\['dense'\]\['kernel'\] is \[6, 5\] in the origin, \[6, 3\] in the second point"
    with pytest.raises(ValueError, match=message):
        plane_through(a, network(1), c)


@pytest.mark.parametrize("mean_centred", [True, False])
def test_pca_of_a_trajectory(mean_centred):
    """Against scikit-learn (which subtracts the mean), or NumPy's SVD of the rows as they are."""
    rng = np.random.default_rng(0)
    centre = network()
    path = np.cumsum(rng.normal(size=(12, len(flat(centre)))), axis=0)[::-1]
    rows = path * np.geomspace(1, 0.01, 12)[:, None]
    iterates = _stacked(rows + flat(centre), centre)
    exact = np.stack([flat(jax.tree.map(lambda leaf, t=t: leaf[t], iterates)) for t in range(12)])
    exact = exact - flat(centre)
    if mean_centred:
        reference = PCA(2, svd_solver="full").fit(exact)
        components, shares = reference.components_, reference.explained_variance_ratio_
    else:
        _, s, v = np.linalg.svd(exact, full_matrices=False)
        components, shares = v[:2], s[:2] ** 2 / (s**2).sum()
    plane, found = pca_plane(iterates, centre, mean_centred=mean_centred)
    np.testing.assert_allclose(found, shares, rtol=1e-9)
    for direction, expected in zip((plane.first, plane.second), components, strict=True):
        direction = flat(direction)
        expected = expected * np.sign(expected @ exact[0])
        np.testing.assert_allclose(direction, expected, atol=1e-6)
        assert np.linalg.norm(direction) == pytest.approx(1, rel=1e-6)
    np.testing.assert_array_equal(flat(plane.centre), flat(centre))


def test_pca_separates_components_that_float32_would_lose():
    """The second component is a thousandth of the first, in 100 000 parameters."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(100_000, 2)))[0].T
    t = np.linspace(0, 1, 20)
    rows = (1000 * t[:, None] * basis[0] + np.sin(9 * t)[:, None] * basis[1]).astype(np.float32)
    plane, _ = pca_plane({"w": rows}, {"w": np.zeros(100_000, np.float32)})
    _, _, v = np.linalg.svd(rows - rows.astype(np.float64).mean(axis=0), full_matrices=False)
    assert abs(flat(plane.second) @ v[1]) == pytest.approx(1, abs=1e-6)


def test_iterates_on_a_line_have_no_plane():
    rows = np.arange(5.0)[:, None] * np.ones(8)
    with pytest.raises(ValueError, match="on one line"):
        pca_plane({"w": rows}, {"w": np.zeros(8)})
    with pytest.raises(ValueError, match="at least 3 iterates"):
        pca_plane({"w": rows[:2]}, {"w": np.zeros(8)})
    with pytest.raises(ValueError, match=r"\['w'\] is \[9\] in the centre, \[8\] in the iterates"):
        pca_plane({"w": rows}, {"w": np.zeros(9)})


def _stacked(rows, like):
    leaves, structure = jax.tree.flatten(like)
    made, start = [], 0
    for leaf in leaves:
        part = rows[:, start : start + leaf.size].reshape(len(rows), *leaf.shape)
        made.append(jnp.asarray(part, jnp.float32))
        start += leaf.size
    return jax.tree.unflatten(structure, made)
