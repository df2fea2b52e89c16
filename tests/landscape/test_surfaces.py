"""Surfaces: exact on quadratics, the same in any company, refined from coarse to fine."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from surface_losses import network_loss, quadratic, quiet, relu_network

from densejax.landscape.directions import Line, Plane, random_line, random_plane
from densejax.landscape.surfaces import (
    evaluate,
    line_profile,
    seeds_surface,
    surface,
)
from densejax.landscape.surfaces.grid import axis_levels, levels
from densejax.landscape.surfaces.points import Evaluator


@pytest.mark.parametrize("chunk", [0, 1, 3, 16])
def test_surface_of_a_quadratic_is_exact(chunk):
    loss, plane, exact = quadratic()
    found = quiet(loss, plane, points=(7, 12), span=((-1, 2), (0.5, 1)), chunk=chunk)
    assert found.values["loss"].shape == (7, 12)
    np.testing.assert_allclose(found.x, np.linspace(-1, 2, 7))
    np.testing.assert_allclose(found.y, np.linspace(0.5, 1, 12))
    # Coordinates are rounded to float32 before the exact value is taken.
    expected = [[exact(np.float32(x), np.float32(y)) for y in found.y] for x in found.x]
    np.testing.assert_allclose(found.values["loss"], expected, rtol=3e-6)


def test_line_of_a_quadratic_is_exact():
    loss, plane, exact = quadratic()
    t, values = line_profile(loss, Line(plane.centre, plane.second), points=21, span=(-0.5, 2))
    expected = [exact(0, np.float32(y)) for y in t]
    np.testing.assert_allclose(values["loss"], expected, rtol=3e-6)
    assert t[0] == -0.5
    assert t[-1] == 2
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), plane)
        values = evaluate(loss, wide, np.array([[0.1, 0.7]]))
        assert values["loss"].dtype == np.float64
        np.testing.assert_allclose(values["loss"], [exact(0.1, 0.7)], rtol=1e-13)


def test_evaluate_at_any_points():
    loss, plane, exact = quadratic()
    where = np.random.default_rng(0).uniform(-1, 1, size=(33, 2)).astype(np.float32)
    found = evaluate(loss, plane, where, chunk=4)
    np.testing.assert_allclose(found["loss"], [exact(*point) for point in where], rtol=3e-6)
    with pytest.raises(ValueError, match=r"coordinates \[33\]: expected \[p, 2\]"):
        evaluate(loss, plane, where[:, 0])


def test_a_loss_with_more_measures():
    params, loss = relu_network(), network_loss()
    plane = random_plane(jax.random.key(0), params)
    found = quiet(loss, plane, points=5)
    at = jax.jit(loss)(plane.at(found.x[1], found.y[3]))
    for name in ("loss", "accuracy"):
        assert found.values[name][1, 3] == pytest.approx(float(at[name]), rel=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 12, 51, 100])
def test_levels_of_an_axis_are_nested(n):
    found = axis_levels(n)
    assert [len(level) for level in found[:2]] == (
        [3, 5] if n >= 5 else [len(x) for x in found[:2]]
    )
    for coarse, fine in itertools.pairwise(found):
        assert set(coarse) < set(fine)
        # No gap is left more than about twice as wide as another.
        assert np.diff(fine).max() <= 2 * np.diff(fine).min() or len(fine) == n
    np.testing.assert_array_equal(found[-1], np.arange(n))


@pytest.mark.parametrize("shape", [(51, 51), (5, 20), (20, 4), (2, 2), (17, 2)])
def test_levels_of_a_grid_have_every_place_once(shape):
    places = np.concatenate(levels(*shape))
    assert len(places) == shape[0] * shape[1]
    assert len({tuple(place) for place in places}) == len(places)
    assert places.max(axis=0).tolist() == [shape[0] - 1, shape[1] - 1]


def test_coarse_to_fine():
    loss, plane, _ = quadratic()
    seen = []
    found = quiet(loss, plane, points=(9, 6), on_level=seen.append)
    known = [np.isfinite(level.values["loss"]) for level in seen]
    assert [int(k.sum()) for k in known] == [9, 25, 54]
    for coarse, fine in itertools.pairwise(known):
        assert np.all(fine[coarse])
    for level, k in zip(seen, known, strict=True):
        np.testing.assert_array_equal(level.values["loss"][k], found.values["loss"][k])


def test_one_program_for_all_levels_calls_planes_and_devices(tmp_path):
    loss, plane, _ = quadratic()
    other = Plane(plane.first, plane.centre, plane.second)
    quiet(loss, plane, points=20, on_level=lambda level: None, file=tmp_path / "a.npz")
    quiet(loss, other, points=(3, 31))
    evaluate(loss, plane, np.zeros((2500, 2)))
    programs = Evaluator(loss, plane).programs
    assert programs.compilations == 1


def test_the_loss_is_traced_once():
    loss, plane, _ = quadratic()
    traces = []

    def counted(params):
        traces.append(1)
        return loss(params)

    quiet(counted, plane, points=9)
    quiet(counted, plane, points=9, span=2.0)
    assert len(traces) == 1


def test_eight_devices_give_the_bits_of_one():
    assert len(jax.local_devices()) == 8
    params, loss = relu_network(), network_loss()
    plane = random_plane(jax.random.key(0), params)
    for chunk in (1, 4):
        all_of, three, one = (
            quiet(loss, plane, points=(13, 11), chunk=chunk, devices=jax.local_devices()[:count])
            for count in (8, 3, 1)
        )
        for name in ("loss", "accuracy"):
            np.testing.assert_array_equal(all_of.values[name], one.values[name])
            np.testing.assert_array_equal(three.values[name], one.values[name])


def test_a_point_does_not_depend_on_its_company():
    params, loss = relu_network(), network_loss()
    plane = random_plane(jax.random.key(0), params)
    where = np.random.default_rng(0).uniform(-1, 1, size=(40, 2))
    together = evaluate(loss, plane, where, chunk=1)["loss"]
    alone = [evaluate(loss, plane, where[i : i + 1], chunk=1)["loss"][0] for i in range(0, 40, 7)]
    np.testing.assert_array_equal(together[::7], alone)


def test_many_calls_carry_what_one_can_not():
    loss, plane, exact = quadratic()
    where = np.random.default_rng(0).uniform(-1, 1, size=(20_000, 2)).astype(np.float32)
    assert Evaluator(loss, plane).programs.capacity(1) < len(where)
    found = evaluate(loss, plane, where)["loss"]
    chosen = slice(None, None, 1999)
    np.testing.assert_allclose(found[chosen], [exact(*w) for w in where[chosen]], rtol=3e-6)


def test_permuted_hidden_units_have_the_same_surface():
    """With the direction permuted as well; filter norms go with their units."""
    params, loss = relu_network(), network_loss()
    plane = random_plane(jax.random.key(0), params, biases="random")
    order = np.array([3, 1, 0, 2, 4, 8, 7, 5, 6])

    def permuted(tree):
        first, second = tree["layer0"], tree["layer1"]
        return tree | {
            "layer0": {"kernel": first["kernel"][:, order], "bias": first["bias"][order]},
            "layer1": {"kernel": second["kernel"][order], "bias": second["bias"]},
        }

    other = Plane(permuted(plane.centre), permuted(plane.first), permuted(plane.second))
    found = [quiet(loss, one, points=7).values["loss"] for one in (plane, other)]
    np.testing.assert_allclose(*found, rtol=1e-5)


@pytest.mark.parametrize("factor", [4.0, 1 / 32])
def test_rescaled_relu_layers_have_the_same_surface(factor):
    """w1 a, b1 a, w2 / a is the same function; filter normalisation rescales directions alike.

    So the same Gaussian draw gives the same picture, which an unnormalised direction does not.
    """
    params, loss = relu_network(), network_loss()
    first, second = params["layer0"], params["layer1"]
    scaled = params | {
        "layer0": {"kernel": first["kernel"] * factor, "bias": first["bias"] * factor},
        "layer1": {"kernel": second["kernel"] / factor, "bias": second["bias"]},
    }
    pictures = {
        normalise: [
            quiet(loss, random_plane(jax.random.key(5), w, normalise=normalise), points=7)
            for w in (params, scaled)
        ]
        for normalise in ("filter", "none")
    }
    a, b = (one.values["loss"] for one in pictures["filter"])
    np.testing.assert_allclose(a, b, rtol=1e-5)
    a, b = (one.values["loss"] for one in pictures["none"])
    assert np.abs(a - b).max() > 0.1


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda p: p["w"] ** 2, r"loss of the loss function has shape \[40\]: expected a scalar"),
        (lambda p: {"cost": p["w"].sum()}, "expected a 'loss'"),
        (lambda p: jnp.log(-jnp.sum(p["w"] ** 2)), "the loss at the centre is nan"),
        (lambda p: jnp.sum(p["w"] ** 2) / 0.0, "the loss at the centre is inf"),
    ],
)
def test_losses_that_are_none(loss, message):
    _, plane, _ = quadratic()
    with pytest.raises(ValueError, match=message):
        quiet(loss, plane)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 1}, "1 points along x: expected at least 2"),
        ({"points": (3, 0)}, "0 points along y: expected at least 2"),
        ({"span": 0.0}, "span of x from"),
        ({"span": ((0, 1), (1, 1))}, "span of y from 1 to 1: expected an increasing one"),
        ({"chunk": -1}, "chunk is -1: expected"),
    ],
)
def test_grids_that_are_none(options, message):
    loss, plane, _ = quadratic()
    with pytest.raises(ValueError, match=message):
        quiet(loss, plane, **options)


def test_a_spot_without_a_value_does_not_stop_the_rest(tmp_path):
    loss = lambda p: jnp.log(1.5 + p["w"].sum())  # noqa: E731
    plane = Plane(*({"w": jnp.asarray(w)} for w in ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0])))
    file = tmp_path / "grid.npz"
    found = quiet(loss, plane, points=3, file=file)
    expected = np.log(1.5 + np.add.outer(found.x[1:], found.y))
    np.testing.assert_allclose(found.values["loss"][1:], expected, rtol=1e-6)
    assert np.isnan(found.values["loss"][0, 0])
    again = quiet(loss, plane, points=3, file=file)
    np.testing.assert_array_equal(again.values["loss"], found.values["loss"])


def test_seeds_on_their_planes():
    loss = network_loss()
    planes = [random_plane(jax.random.key(seed), relu_network(seed)) for seed in range(3)]
    found = seeds_surface(loss, planes, points=(5, 4), progress=False)
    assert found.values["loss"].shape == (3, 5, 4)
    for seed, plane in enumerate(planes):
        one = quiet(loss, plane, points=(5, 4)).values["loss"]
        np.testing.assert_array_equal(found.values["loss"][seed], one)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *planes)
    again = seeds_surface(loss, stacked, points=(5, 4), progress=False)
    np.testing.assert_array_equal(again.values["loss"], found.values["loss"])
    assert Evaluator(loss, planes[0]).programs.compilations == 1


def test_chunks_are_probed_on_real_points(monkeypatch):
    """Where laps are worth it; the choice is the fastest, and is remembered."""
    loss, plane, _ = quadratic()
    costs = {1: 1.0, 4: 0.5, 16: 0.2, 64: 0.4}
    tried = []

    def lap(self, coordinates, chunk):
        tried.append(chunk)
        return costs[chunk]

    monkeypatch.setattr(Evaluator, "_lap", lap)
    monkeypatch.setattr(Evaluator, "estimate", lambda self, points: 1e6)
    where = np.zeros((5000, 2))
    evaluator = Evaluator(loss, plane)
    evaluator.probe(where)
    assert tried == [1, 4, 16, 64]
    assert evaluator.chunk == 16
    assert Evaluator(loss, plane).chunk == 16
    tried.clear()
    Evaluator(loss, plane).probe(where)
    Evaluator(loss, plane, chunk=2).probe(where)
    assert not tried


def test_a_small_grid_is_not_worth_a_probe():
    loss, plane, _ = quadratic(1)
    quiet(loss, plane, points=5)
    programs = Evaluator(loss, plane).programs
    assert programs.compilations == 1
    assert programs.probed == 0


def test_cost_and_rate_are_told(capsys):
    loss, plane, _ = quadratic()
    surface(loss, plane, points=(5, 4))
    told = capsys.readouterr().out
    assert "5 x 4 points of loss; on 8 devices, 1 at a time: at most about" in told
    assert "20 of 20 points in" in told
    quiet(loss, plane, points=(5, 4))
    assert not capsys.readouterr().out


@pytest.mark.parametrize("compiled", [False, True])
def test_data_are_arguments_of_the_program(compiled):
    """Eight megabytes that the loss closes over are not copied into the program."""
    data = jnp.asarray(np.random.default_rng(0).normal(size=(1000, 2000)), jnp.float32)
    loss = lambda p: jnp.mean((data @ p["w"]) ** 2)  # noqa: E731
    loss = jax.jit(loss) if compiled else loss
    line = random_line(jax.random.key(0), {"w": jnp.ones((2000, 1))})
    where, one = np.linspace(0, 1, 3, dtype=np.float32), jax.local_devices()[:1]
    found = evaluate(loss, line, where, devices=one)["loss"]
    c, d = (np.asarray(part["w"], np.float64) for part in (line.centre, line.direction))
    expected = [np.mean((np.asarray(data, np.float64) @ (c + t * d)) ** 2) for t in where]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    programs = Evaluator(loss, line, devices=one).programs
    assert len(programs._mapped[1]._compiled.as_text()) < 1e5
    assert [constant.shape for constant in programs._constants] == [(1, *data.shape)]
