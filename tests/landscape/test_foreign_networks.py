"""Losses and networks of other libraries: each is read rightly, or refused with what to do."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

from densejax.landscape.basins import radii
from densejax.landscape.curvature import ascent_sharpness, hessian_vector, top_eigenpairs
from densejax.landscape.directions import (
    filter_axes,
    first_axis,
    normalise_direction,
    random_direction,
    random_line,
    random_plane,
)
from densejax.landscape.paths import linear_barrier, train_curve
from densejax.landscape.surfaces import line_profile, surface

KEY = jax.random.key(0)


def norms(tree, axis):
    """Norm of every slice of an array along an axis."""
    array = np.moveaxis(np.asarray(tree, np.float64), axis, 0)
    return np.linalg.norm(array.reshape(len(array), -1), axis=1)


def quadratic(params):
    return sum(jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(params))


# ---- losses ----

PARAMS = {"w": np.arange(1, 19, dtype=np.float32).reshape(6, 3) / 18}
LOSSES = {
    "returns a tuple of 2: expected a scalar, or a dictionary": lambda p: (
        quadratic(p),
        {"a": 1.0},
    ),
    "returns a list of 1": lambda p: [quadratic(p)],
    "loss of the loss function is complex64: expected a scalar": lambda p: quadratic(p) * 1j,
    "aux of the loss function is a dict": lambda p: {"loss": quadratic(p), "aux": {"a": 1.0}},
    "a of the loss function is complex64": lambda p: {"loss": quadratic(p), "a": quadratic(p) * 1j},
    "loss of the loss function is a NoneType": lambda p: None,
}
USES = {
    "surface": lambda loss: surface(loss, random_plane(KEY, PARAMS), points=3, progress=False),
    "line": lambda loss: line_profile(loss, random_line(KEY, PARAMS), points=3),
    "eigenpairs": lambda loss: top_eigenpairs(KEY, loss, PARAMS),
    "radii": lambda loss: radii(KEY, loss, PARAMS, directions=2, progress=False),
    "barrier": lambda loss: linear_barrier(loss, PARAMS, PARAMS, points=3),
    "curve": lambda loss: train_curve(KEY, loss, PARAMS, PARAMS, steps=1),
    "sharpness": lambda loss: ascent_sharpness(loss, PARAMS),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("message", LOSSES)
def test_what_is_no_scalar_is_refused_by_name(use, message):
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        with pytest.raises(ValueError, match=message):
            USES[use](LOSSES[message])


# ---- leaves ----


@pytest.mark.parametrize("use", USES)
def test_complex_parameters_are_refused_by_path(use, monkeypatch):
    monkeypatch.setitem(globals(), "PARAMS", PARAMS | {"z": np.ones((6, 8), np.complex64)})
    with pytest.raises(ValueError, match="complex64; expected real parameters: give the real"):
        USES[use](quadratic)


def test_the_complex_leaf_is_named():
    with pytest.raises(ValueError, match=r"\['layer'\]\['z'\] is complex64"):
        random_plane(KEY, {"layer": {"z": np.ones((2, 3), np.complex64)}, "w": np.ones((2, 3))})


def test_leaves_that_stay_are_named_once():
    moments = {"mean": np.zeros((2, 3), np.float32), "var": np.ones(3, np.float32)}
    variables = {
        "params": {"kernel": np.ones((2, 3), np.float32), "count": np.int32(3)},
        "batch_stats": moments,
    }
    message = (
        r"3 leaves stay as they are, being no parameters: \['batch_stats'\]\['mean'\] "
        r"\(running moments\), \['batch_stats'\]\['var'\] \(running moments\), "
        r"\['params'\]\['count'\] \(int32\)"
    )
    with pytest.warns(UserWarning, match=message) as told:
        plane = random_plane(KEY, variables, biases="random")
    assert len(told) == 1
    assert not np.any(plane.first["batch_stats"]["mean"])
    assert not np.any(plane.second["batch_stats"]["var"])
    assert np.all(np.asarray(plane.first["params"]["kernel"]) != 0)
    with pytest.warns(UserWarning, match="3 leaves stay as they are"):
        found = radii(
            KEY,
            lambda v: jnp.sum((v["params"]["kernel"] - 1) ** 2),
            variables,
            directions=2,
            biases="random",
            progress=False,
        )
    assert found.dimension == 3  # six entries in three filters; moments are none
    with pytest.warns(UserWarning, match=r"running moments, by which .* \['batch_stats'\]"):
        top_eigenpairs(KEY, quadratic, variables, k=1)


def test_biases_of_several_axes_have_no_filters():
    """Of attention [heads, d] and of Haiku's norms [1, 1, 1, c]; kernels of such shapes have."""
    tree = {
        "attention": {"bias": np.ones((2, 4)), "kernel": np.ones((3, 2, 4))},
        "norm": {"scale": np.ones((1, 1, 1, 3)), "offset": np.ones((1, 1, 1, 3))},
        "conv": {"w": np.ones((3, 1, 1))},
    }
    assert filter_axes(tree) == {
        "['attention']['bias']": None,
        "['attention']['kernel']": 2,
        "['conv']['w']": 2,
        "['norm']['offset']": None,
        "['norm']['scale']": None,
    }


# ---- Equinox ----


def equinox_network():
    eqx = pytest.importorskip("equinox")

    class Network(eqx.Module):
        conv: eqx.nn.Conv2d
        norm: eqx.nn.LayerNorm
        attention: eqx.nn.MultiheadAttention
        head: eqx.nn.Linear
        activation: object

        def __call__(self, x):
            y = self.norm(self.activation(self.conv(x)))
            rows = y.reshape(4, -1).T
            return self.head(self.attention(rows, rows, rows).mean(axis=0))

    keys = jax.random.split(KEY, 4)
    network = Network(
        eqx.nn.Conv2d(2, 4, 3, key=keys[0]),
        eqx.nn.LayerNorm((4, 3, 3)),
        eqx.nn.MultiheadAttention(2, 4, use_query_bias=True, key=keys[1]),
        eqx.nn.Linear(4, 3, key=keys[2]),
        jax.nn.tanh,
    )
    x = jax.random.normal(keys[3], (6, 2, 5, 5))
    params, rest = eqx.partition(network, eqx.is_inexact_array)

    def loss(params):
        logits = jax.vmap(eqx.combine(params, rest))(x)
        return -jax.nn.log_softmax(logits)[:, 0].mean()

    return network, params, loss


def test_equinox_filters_are_rows_and_biases_stay():
    _, params, _ = equinox_network()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plane = random_plane(KEY, params)
    for found in (plane.first, plane.second):
        for layer in ("conv", "head"):
            pair = [norms(getattr(tree, layer).weight, 0) for tree in (found, params)]
            np.testing.assert_allclose(*pair, rtol=1e-5)
        pair = [norms(tree.attention.query_proj.weight, 0) for tree in (found, params)]
        np.testing.assert_allclose(*pair, rtol=1e-5)
        assert params.conv.bias.shape == (4, 1, 1)
        for still in (found.conv.bias, found.head.bias, found.norm.weight, found.norm.bias):
            assert not np.any(still)
    by_rule = random_plane(KEY, params, axes=first_axis(params) | {".norm.weight": None})
    for a, b in zip(jax.tree.leaves(plane), jax.tree.leaves(by_rule), strict=True):
        np.testing.assert_array_equal(a, b)


def test_equinox_surface_is_the_loop_over_its_points():
    eqx = pytest.importorskip("equinox")
    network, params, loss = equinox_network()
    plane = random_plane(KEY, params)
    found = surface(loss, plane, points=3, progress=False)
    for i, a in enumerate(found.x):
        for j, b in enumerate(found.y):
            moved = jax.tree.map(
                lambda w, u, v, a=a, b=b: w + a * u + b * v, params, plane.first, plane.second
            )
            assert float(found.values["loss"][i, j]) == pytest.approx(float(loss(moved)), rel=1e-5)
    with pytest.raises(ValueError, match="expected arrays only"):
        random_plane(KEY, network)
    ends = eqx.tree_at(lambda p: p.head.weight, params, params.head.weight + 0.1)
    assert linear_barrier(loss, params, ends, points=3).barrier >= 0


def test_equinox_curvature_is_the_difference_of_its_gradients():
    _, params, loss = equinox_network()
    vector = random_direction(KEY, params, biases="random")
    step, gradient = 1e-2, jax.jit(jax.grad(loss))
    ahead, behind = (
        gradient(jax.tree.map(lambda w, v, s=side: w + s * step * v, params, vector))
        for side in (1, -1)
    )
    expected, _ = ravel_pytree(jax.tree.map(lambda a, b: (a - b) / (2 * step), ahead, behind))
    found, _ = ravel_pytree(jax.jit(lambda v: hessian_vector(loss, params, v))(vector))
    np.testing.assert_allclose(found, expected, atol=0.03 * float(jnp.abs(expected).max()))


def test_equinox_radii_are_along_its_rows():
    _, params, _ = equinox_network()
    found = radii(
        KEY,
        lambda p: sum(
            jnp.sum((a - b) ** 2)
            for a, b in zip(jax.tree.leaves(p), jax.tree.leaves(params), strict=True)
        ),
        params,
        cutoff=0.1,
        directions=4,
        progress=False,
    )
    # The loss is the squared distance, and a direction is as long as the weights that move.
    weights = [
        leaf for path, leaf in _paths(params) if path.endswith("weight") and "norm" not in path
    ]
    length = np.sqrt(sum(float(jnp.sum(w * w)) for w in weights))
    np.testing.assert_allclose(found.radius, np.sqrt(0.1) / length, rtol=1e-4)
    rows = sum(len(w) for w in weights)
    assert found.dimension == sum(w.size for w in weights) - rows


def _paths(tree):
    return [
        (jax.tree_util.keystr(p), leaf) for p, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


# ---- NNX ----


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        y = jax.nn.relu(self.norm(self.conv(x), use_running_average=True))
        return self.head(self.dropout(y.mean(axis=(1, 2)), deterministic=True))


def test_an_nnx_state_with_random_keys_is_refused_with_what_to_do():
    state = nnx.state(Net(nnx.Rngs(0)))
    for use in (random_plane, random_direction):
        with pytest.raises(ValueError, match=r"is a random key .*nnx\.split\(module, nnx\.Param"):
            use(KEY, state)
    with pytest.raises(ValueError, match="is a random key"):
        radii(KEY, quadratic, state, directions=2, progress=False)


def test_nnx_parameters_are_what_the_message_says():
    module = Net(nnx.Rngs(0))
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    x = jax.random.normal(KEY, (5, 6, 6, 2))

    def loss(params):
        return -jax.nn.log_softmax(nnx.merge(graph, params, rest)(x))[:, 0].mean()

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        line = random_line(KEY, params)
    for layer in ("conv", "head"):
        pair = [norms(tree[layer]["kernel"][...], -1) for tree in (line.direction, params)]
        np.testing.assert_allclose(*pair, rtol=1e-5)
        assert not np.any(line.direction[layer]["bias"][...])
    t, values = line_profile(loss, line, points=5)
    expected = [
        float(loss(jax.tree.map(lambda w, d, t=t: w + t * d, params, line.direction))) for t in t
    ]
    np.testing.assert_allclose(values["loss"], expected, rtol=1e-5)
    assert np.isfinite(top_eigenpairs(KEY, loss, params, k=1).values).all()


def test_nnx_moments_of_batch_norm_stay():
    _, state, _ = nnx.split(Net(nnx.Rngs(0)), (nnx.Param, nnx.BatchStat), ...)
    with pytest.warns(UserWarning, match="2 leaves stay as they are.*running moments"):
        line = random_line(KEY, state, biases="random")
    assert not np.any(line.direction["norm"]["var"][...])
    assert np.any(line.direction["norm"]["bias"][...]) or np.any(
        line.direction["norm"]["scale"][...]
    )


# ---- PyTorch ----


@pytest.mark.parametrize(
    "make", [random_plane, random_line, random_direction], ids=lambda f: f.__name__
)
def test_pytorchs_weights_without_axes_are_told(make):
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3), torch.nn.Linear(4, 3), torch.nn.LSTM(3, 2)
    )
    weights = {name: value.detach().numpy() for name, value in model.named_parameters()}
    message = r"4 leaves are named as PyTorch .*\['0.weight'\] \[4, 2, 3, 3\].*axes=first_axis\("
    with pytest.warns(UserWarning, match=message):
        make(KEY, weights)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(KEY, weights, axes=first_axis(weights))
        make(KEY, weights, normalise="layer")
    with pytest.warns(UserWarning, match="named as PyTorch"):
        normalise_direction(weights, weights)


def test_pytorchs_radii_without_axes_are_told():
    torch = pytest.importorskip("torch")
    weights = {n: v.detach().numpy() for n, v in torch.nn.Linear(4, 3).named_parameters()}

    def loss(moved):
        return sum(jnp.sum((moved[name] - weights[name]) ** 2) for name in weights)

    with pytest.warns(UserWarning, match="named as PyTorch"):
        radii(KEY, loss, weights, directions=2, progress=False)


def test_pytorchs_tensors_are_refused_with_what_to_do():
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match=r"tensor\.detach\(\)\.numpy\(\)"):
        random_plane(KEY, dict(torch.nn.Linear(3, 2).named_parameters()))
