"""Radii of basins: closed forms, a bisection in NumPy, and what must leave them unchanged."""

import dataclasses
import warnings
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.landscape import basins
from densejax.landscape.basins import joined, radii, radii_along, radii_of_many, rays
from densejax.population import Mapped

KEY = jax.random.key(3)
QUIET = {"progress": False}
# Every entry drawn, in Euclid's units.
EUCLID = {"geometry": "ellipsoid", "normalise": "none", "biases": "random"}


def quadratic(n, seed=0):
    """A quadratic of n parameters in two arrays: (loss, minimum, curvatures), centre not at 0."""
    random = np.random.default_rng(seed)
    curvature = np.exp(random.normal(0, 0.5, n))
    centre = random.normal(size=n)
    half = n // 2

    def tree(flat):
        flat = flat.astype(np.float32)
        return {"kernel": flat[:half].reshape(5, -1), "shift": flat[half:]}

    scales, origin = tree(curvature), tree(centre)

    def loss(params):
        parts = jax.tree.map(lambda w, c, a: jnp.sum(a * (w - c) ** 2), params, origin, scales)
        return sum(jax.tree.leaves(parts)) / 2

    return loss, origin, scales


def flat64(tree):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def numpy_bisection(loss, cutoff, high, *, points=4000, steps=60):
    """The first crossing on a fine grid, then halved until float64 ends."""
    grid = np.linspace(0, high, points + 1)
    above = np.flatnonzero(~(np.array([loss(t) for t in grid]) < cutoff))
    if not above.size:
        return np.inf
    low, high = grid[above[0] - 1], grid[above[0]]
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if loss(middle) < cutoff else (low, middle)
    return (low + high) / 2


@pytest.mark.parametrize(("n", "directions"), [(10, 40), (3000, 12), (300_000, 3)])
def test_radii_of_a_quadratic(n, directions):
    loss, minimum, scales = quadratic(n)
    options = EUCLID | QUIET | {"directions": directions, "chunk": 3, "first_step": 0.01}
    found = radii(KEY, loss, minimum, **options)
    drawn = [flat64(basins.direction(KEY, minimum, i, **EUCLID)) for i in range(directions)]
    np.testing.assert_allclose([np.linalg.norm(u) for u in drawn], 1, rtol=1e-5)
    expected = [np.sqrt(0.2 / np.sum(flat64(scales) * u * u)) for u in drawn]
    np.testing.assert_allclose(found.radius, expected, rtol=1e-5)
    # d loss / d r = 2 cutoff / r
    np.testing.assert_allclose(found.slope, 0.2 / np.array(expected), rtol=0.15)
    assert (found.dimension, found.log_scale, found.censored.any()) == (n, 0, False)
    assert found.rounding == pytest.approx(2.98e-8, rel=0.2)


def wavy(params):
    """Along x: up through 1 at 0.3, below it from 0.5 to 0.7, and up for good."""
    x = params["x"]
    return 1 + (x[0] - 0.3) * (x[0] - 0.5) * (x[0] - 0.7) * 8 + 10 * x[1] ** 2


def along_x(loss, start=(0.0, 0.0), **options):
    params = {"x": jnp.array(start, jnp.float32)}
    given = {"x": jnp.array([[1.0, 0.0]])}
    return radii_along(loss, params, given, **{"span": 2.0, "cutoff": 1.0, "chunk": 1} | options)


def test_the_first_of_three_crossings():
    assert along_x(wavy, growth=1.2).radius == pytest.approx([0.3], rel=1e-6)
    # A first step beyond the excursion cannot see it; one within it is followed back.
    assert along_x(wavy, first_step=0.6, growth=1.1).radius == pytest.approx([0.7], rel=1e-6)
    assert along_x(wavy, first_step=0.25, growth=2.5).radius == pytest.approx([0.7], rel=1e-6)
    with pytest.warns(UserWarning, match="1 of 1 directions cross within the first step 0.45"):
        assert along_x(wavy, first_step=0.45).radius == pytest.approx([0.3], rel=1e-6)


@pytest.mark.parametrize("cutoff", [0.95, 1.0, 1.3, 4.0])
def test_cutoffs_against_numpy(cutoff):
    def loss(t):
        return 1 + (t - 0.3) * (t - 0.5) * (t - 0.7) * 8

    found = along_x(wavy, cutoff=cutoff, growth=1.05).radius[0]
    assert found == pytest.approx(numpy_bisection(loss, cutoff, 2.0), rel=1e-5)


def test_a_loss_that_never_reaches_the_cutoff_is_censored():
    with pytest.warns(UserWarning, match="all 1 directions stay below the loss 5 up to the span 1"):
        found = along_x(wavy, cutoff=5.0, span=1.0)
    assert found.censored.tolist() == [True] and found.radius.tolist() == [1.0]
    assert np.isnan(found.slope).all() and "1 reach the span 1" in str(found)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_has_crossed(bad):
    def loss(params):
        return jnp.where(params["x"][0] < 0.25, 0.5 * params["x"][0], bad)

    found = along_x(loss)
    assert found.radius == pytest.approx([0.25], rel=1e-5) and not found.censored[0]
    assert np.isnan(found.slope[0])


def test_few_evaluations():
    """At most one more than bisection, whatever the loss; fewer on smooth ones."""

    def step(params):
        return (params["x"][0] > 0.3141).astype(jnp.float32)

    grow = 1 + np.ceil(np.log(0.3141 / 2e-3) / np.log(1.25))
    halve = np.ceil(np.log2(0.25 / 1e-5))
    assert along_x(step, cutoff=0.5).evaluations <= grow + halve + 1
    assert along_x(lambda p: 0.1 * jnp.exp(p["x"][0] * 8)).evaluations <= grow + 8


def relu_net(seed=0):
    """Three layers, 64 points: (loss, minimum)."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(64, 5)).astype(np.float32)
    widths = (5, 12, 9, 3)
    layers = [
        {
            "kernel": random.normal(size=(a, b)).astype(np.float32) / np.float32(a**0.5),
            "bias": random.normal(size=b).astype(np.float32) * np.float32(0.1),
        }
        for a, b in pairwise(widths)
    ]

    def outputs(params):
        y = jnp.asarray(x)
        for i, layer in enumerate(params):
            y = y @ layer["kernel"] + layer["bias"]
            y = jax.nn.relu(y) if i < 2 else y
        return y

    target = np.asarray(outputs(layers))
    return lambda params: {"loss": jnp.mean((outputs(params) - target) ** 2)}, layers


LOSS, LAYERS = relu_net()
# The same program for as many tests as can be.
EIGHT = {"directions": 8, "chunk": 4, **QUIET}


def test_hidden_units_may_change_places():
    order = np.random.default_rng(1).permutation(12)

    def permuted(params):
        first, second, last = params
        return [
            {"kernel": first["kernel"][:, order], "bias": first["bias"][order]},
            {"kernel": second["kernel"][order], "bias": second["bias"]},
            last,
        ]

    drawn = [basins.direction(KEY, LAYERS, i) for i in range(8)]
    turned = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[permuted(d) for d in drawn])
    found = radii(KEY, LOSS, LAYERS, **EIGHT)
    again = radii_along(LOSS, permuted(LAYERS), turned, span=1.0, chunk=4)
    assert not found.censored.any() and found.dimension == 5 * 12 + 12 * 9 + 9 * 3 - 24
    np.testing.assert_allclose(again.radius, found.radius, rtol=1e-6)


def test_rescaled_layers_have_the_same_radii_in_filter_normalised_units_only():
    first, second, last = LAYERS
    rescaled = [
        {"kernel": 4 * first["kernel"], "bias": 4 * first["bias"]},
        {"kernel": second["kernel"] / 4, "bias": second["bias"]},
        last,
    ]
    pair = jax.tree.map(lambda *leaves: np.stack(leaves), [first, second, last], rescaled)

    def of(**options):
        return radii_of_many(KEY, LOSS, pair, **options, **EIGHT)

    for options in ({}, {"geometry": "ellipsoid", "biases": "random"}):
        before, after = of(**options)
        np.testing.assert_allclose(after.radius, before.radius, rtol=1e-5)
    grown = np.log(4) * (5 * 12 + 12 - 12 * 9)
    assert after.log_scale == pytest.approx(before.log_scale + grown, rel=1e-6)
    before, after = of(**EUCLID, span=10.0)
    assert np.all(np.abs(after.radius / before.radius - 1) > 0.01)


def test_bits_do_not_depend_on_devices():
    minima = jax.tree.map(lambda leaf: np.stack([leaf, 1.1 * leaf, 0.9 * leaf]), LAYERS)
    options = {"directions": 37, "chunk": 4, "cutoff": 0.5, **QUIET}
    one = radii_of_many(KEY, LOSS, minima, devices=jax.devices()[:1], **options)
    eight = radii_of_many(KEY, LOSS, minima, devices=jax.devices()[:8], **options)
    alone = radii(KEY, LOSS, LAYERS, devices=jax.devices()[:5], **options)
    for a, b in [*zip(one, eight, strict=True), (one[0], alone)]:
        np.testing.assert_array_equal(a.radius, b.radius)
        np.testing.assert_array_equal(a.slope, b.slope)
        assert a.evaluations == b.evaluations
    assert len({found.radius[0] for found in one}) == 3


def test_more_directions_are_joined_and_chunks_agree():
    whole = radii(KEY, LOSS, LAYERS, directions=16, chunk=1, **QUIET)
    again = joined(*(radii(KEY, LOSS, LAYERS, first=first, **EIGHT) for first in (0, 8)))
    np.testing.assert_allclose(again.radius, whole.radius, rtol=1e-6)
    assert again.evaluations > 16 and len(again.censored) == 16
    with pytest.raises(ValueError, match=r"radii differ in span: \[1.0, 2.0\]"):
        joined(whole, dataclasses.replace(whole, span=2.0))


def test_settings_differ_between_minima_and_programs_are_compiled_once(monkeypatch):
    compiled = []
    real = Mapped.compile

    def compile_(self, *arguments):
        compiled.append(self.name)
        return real(self, *arguments)

    monkeypatch.setattr(Mapped, "compile", compile_)

    def loss(params, settings):
        return settings["stiffness"] * jnp.sum(params["w"] ** 2)

    minima = {"w": np.zeros((3, 4), np.float32)}
    settings = {"stiffness": np.float32([1, 4, 25])}

    def run(**options):
        options = {"span": 2.0, "directions": 5, "chunk": 2, "cutoff": 1.0} | options
        return radii_of_many(KEY, loss, minima, settings=settings, **options, **EUCLID, **QUIET)

    for cutoff in (0.25, 1.0):
        found = run(cutoff=cutoff)
        for stiffness, one in zip((1, 4, 25), found, strict=True):
            np.testing.assert_allclose(one.radius, np.sqrt(cutoff / stiffness), rtol=1e-6)
    assert compiled == ["centre", "rays"]
    with pytest.warns(UserWarning, match="all 5 directions of minimum 0 stay below") as seen:
        found = run(span=0.4)
    assert [one.censored.all() for one in found] == [True, True, False] and len(seen) == 2


def test_the_probe_takes_the_fastest(monkeypatch):
    # One evaluation, then many, of 1, 4 and 16 lanes.
    laps = iter([0.01, 8.0, 0.01, 16.0, 0.01, 80.0])
    monkeypatch.setattr(rays, "_lap", lambda call: call() is not None and next(laps))
    one = {"devices": jax.devices()[:1], "directions": 40, **QUIET}
    radii(KEY, LOSS, LAYERS, **one)
    assert next(laps, None) is None
    again = radii(KEY, LOSS, LAYERS, **one)
    chosen = radii(KEY, LOSS, LAYERS, **one, chunk=4)
    np.testing.assert_array_equal(again.radius, chosen.radius)
    monkeypatch.setattr(rays, "_lap", lambda call: 1.0)
    assert radii(KEY, LOSS, LAYERS, **one | {"directions": 41}).radius.shape == (41,)


def zero(params):
    return jnp.sum(params["w"] ** 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cutoff": 1.5}, "the loss of the minimum is 2 and the cutoff 1.5: expected a minimum"),
        ({"cutoff": 2.0}, "the loss of the minimum is 2 and the cutoff 2"),
        ({"cutoff": np.nan}, "cutoff is nan"),
        ({"rtol": 1e-8}, "rtol is 1e-08: expected 1e-06"),
        ({"growth": 1.0}, "growth is 1: expected a factor"),
        ({"span": 0.0}, "the span is 0"),
        ({"first_step": 3.0}, "first_step is 3 and span 1"),
        ({"directions": 0}, "directions=0"),
        ({"chunk": -1}, "chunk=-1"),
        ({"geometry": "cube"}, "geometry 'cube'"),
        ({"geometry": "ellipsoid", "biases": "weights"}, "are not random"),
        ({"axes": {"['v']": 0}}, r"no parameter at \['v'\]"),
    ],
)
def test_bad_options_are_refused(options, message):
    params = {"w": jnp.ones((1, 2))}
    with pytest.raises(ValueError, match=message):
        radii(KEY, zero, params, **{"cutoff": 3.0, "directions": 2, **QUIET} | options)


def test_bad_minima_are_refused():
    with pytest.raises(ValueError, match=r"loss of minimum 1 of 2 is 2 and the cutoff 1"):
        minima = {"w": np.stack([np.zeros((1, 2)), np.ones((1, 2))]).astype(np.float32)}
        radii_of_many(KEY, zero, minima, cutoff=1.0, span=1.0, normalise="none", **QUIET)
    with pytest.raises(ValueError, match="loss of the minimum is nan"):
        radii(KEY, lambda p: jnp.nan * zero(p), {"w": jnp.ones((1, 2))}, **QUIET)
    with pytest.raises(ValueError, match=r"shape \[2\]: expected a scalar"):
        radii(KEY, lambda p: p["w"][0], {"w": jnp.ones((1, 2))}, **QUIET)
    with pytest.raises(ValueError, match="no parameter moves"):
        radii(KEY, zero, {"w": jnp.zeros((3, 2))}, **QUIET)
    with pytest.raises(ValueError, match="no parameter moves"):
        radii(KEY, zero, {"w": jnp.ones(3)}, **QUIET)
    with pytest.raises(ValueError, match="expected arrays only"):
        radii(KEY, zero, {"w": jnp.ones((1, 2)), "f": jnp.tanh}, **QUIET)
    with pytest.raises(ValueError, match="of shapes"):
        radii_along(zero, {"w": jnp.zeros(2)}, {"w": jnp.ones((4, 3))}, span=1.0)


def test_no_warning_of_good_radii():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = radii(KEY, LOSS, LAYERS, **EIGHT)
    assert str(found).startswith("8 radii to loss 0.1 (centre ")
