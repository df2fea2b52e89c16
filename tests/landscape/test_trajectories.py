"""Parameters along a run: the same as of a plain loop, kept in a file, and seen on a plane."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from densejax.landscape.directions import Plane
from densejax.landscape.trajectories import iterates, kept_iterates, trajectory_on_plane
from densejax.minima.poisoning import PoisonTask
from densejax.models.mlp import MLP


def make(**options):
    model = MLP(1, widths=(5,))
    draw = np.random.default_rng(0)
    data = {
        "inputs": draw.normal(size=(12, 2)).astype(np.float32),
        "labels": draw.integers(0, 2, 12).astype(np.int32),
    }
    options = {"optimiser": optax.adam(0.01), "batch": 5} | options
    return data, PoisonTask(lambda key: model.init(key, jnp.zeros((1, 2))), model.apply, **options)


def test_same_as_a_loop():
    data, task = make()
    found = iterates(jax.random.key(3), task, data, steps=9, every=4)
    state, advance = task.init(jax.random.key(3), {}), jax.jit(task.step)
    for step in range(8):
        state, _ = advance(state, data)
        if step in (3, 7):
            kept = jax.tree.map(lambda leaf, step=step: leaf[step // 4], found)
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
                kept,
                state["variables"],
            )
    assert {len(leaf) for leaf in jax.tree.leaves(found)} == {2}


def test_restarts_begin_from_them():
    data, task = make()
    found = iterates(jax.random.key(3), task, data, steps=6, every=2)
    _, again = make(starts=found["params"])
    for row in range(3):
        begun = again.init(jax.random.key(0), {"start": row})["variables"]
        jax.tree.map(lambda a, b, row=row: np.testing.assert_array_equal(a, b[row]), begun, found)


def test_kept_in_a_file(tmp_path):
    data, task = make()
    options = {"steps": 6, "every": 2, "path": tmp_path / "run.npz"}
    found = kept_iterates(jax.random.key(0), task, data, **options)
    # Another key would give another run: these come from the file.
    again = kept_iterates(jax.random.key(1), task, data, **options)
    jax.tree.map(np.testing.assert_array_equal, found, again)
    assert jax.tree.structure(found) == jax.tree.structure(again)
    with pytest.raises(ValueError, match=r"run\.npz holds"):
        kept_iterates(jax.random.key(0), task, data, **(options | {"steps": 8}))


def test_errors():
    data, task = make()
    with pytest.raises(ValueError, match="steps=3 and every=4"):
        iterates(jax.random.key(0), task, data, steps=3, every=4)
    _, task = make(optimiser=optax.sgd(float("inf")))
    with pytest.raises(ValueError, match="diverged"):
        iterates(jax.random.key(0), task, data, steps=4, every=2)


def test_a_trajectory_tells_what_its_plane_hides():
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.5, 2, 6).astype(np.float32)
    corner = np.eye(6, dtype=np.float32)
    centre = rng.normal(size=6).astype(np.float32)

    def tree(vector):
        return {"a": vector[..., :4].reshape(*vector.shape[:-1], 2, 2), "b": vector[..., 4:]}

    def loss(params):
        vector = jnp.concatenate([params["a"].reshape(-1), params["b"]])
        return {"loss": jnp.sum(scale * vector**2), "sum": jnp.sum(vector)}

    plane = Plane(*(tree(one) for one in (centre, corner[0] + corner[1], corner[1])))
    offsets = rng.normal(size=(10, 6)).astype(np.float32)
    found = trajectory_on_plane(plane, tree(centre + offsets), loss, block=4)
    whole = trajectory_on_plane(plane, tree(centre + offsets), loss)
    np.testing.assert_allclose(found.values["loss"], whole.values["loss"], rtol=1e-6)
    x, y = offsets[:, 0], offsets[:, 1] - offsets[:, 0]
    np.testing.assert_allclose(found.coordinates, np.stack([x, y], axis=1), atol=1e-5)
    np.testing.assert_allclose(found.residual, np.linalg.norm(offsets[:, 2:], axis=1), rtol=1e-5)
    nearest = np.where(np.arange(6) < 2, centre + offsets, centre)
    for at, values in ((centre + offsets, found.values), (nearest, found.plane_values)):
        np.testing.assert_allclose(values["loss"], (scale * at**2).sum(axis=1), rtol=1e-5)
        np.testing.assert_allclose(values["sum"], at.sum(axis=1), rtol=1e-4, atol=1e-5)


def test_iterates_that_do_not_fit_a_plane_are_refused():
    def loss(params):
        return jnp.sum(params["w"] ** 2)

    plane = Plane(*({"w": np.float32(w)} for w in ([-1, 0], [1, 0], [0, 1])))
    with pytest.raises(ValueError, match="0 iterates"):
        trajectory_on_plane(plane, {"w": np.zeros((0, 2), np.float32)}, loss)
    with pytest.raises(ValueError, match=r"\['w'\]"):
        trajectory_on_plane(plane, {"w": np.zeros((4, 3), np.float32)}, loss)
