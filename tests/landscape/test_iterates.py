"""Parameters along a run: the same as of a plain loop, and kept in a file."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from densejax.landscape.iterates import iterates, kept_iterates
from densejax.landscape.poisoning import PoisonTask
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
