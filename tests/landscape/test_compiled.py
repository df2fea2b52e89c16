"""Functions that close over data are compiled without them, once for arguments of one shape."""

import jax
import jax.numpy as jnp
import numpy as np

from densejax.landscape.compiled import compiled, hoisted

DATA = np.random.default_rng(0).normal(size=(300, 40)).astype(np.float32)


def test_data_are_arguments_of_the_program_and_not_in_it():
    def loss(params):
        def add(total, row):
            return total + jnp.sum((row * params["w"]) ** 2), None

        return {"loss": jax.lax.scan(add, jnp.float32(0), jnp.asarray(DATA))[0]}

    params = {"w": np.ones(40, np.float32)}
    arrays, run = hoisted(loss, params)
    text = jax.jit(run).lower(arrays, params).as_text()
    assert len(text) < 20_000 < len(jax.jit(loss).lower(params).as_text())
    np.testing.assert_allclose(jax.jit(run)(arrays, params)["loss"], np.sum(DATA**2), rtol=1e-5)
    slope = jax.grad(lambda p: run(arrays, p)["loss"])(params)["w"]
    np.testing.assert_allclose(slope, 2 * np.sum(DATA**2, axis=0), rtol=1e-5)


def test_a_program_is_traced_once_a_shape_and_takes_keys_along():
    traced, key = [], jax.random.key(0)

    def noisy(x, number):
        traced.append(x.shape)
        return x @ DATA.T * number + jax.random.normal(key, (300,))

    program = compiled(noisy)
    noise = jax.random.normal(key, (300,))
    for number in (1.0, 2.0):
        x = np.full(40, number, np.float32)
        expected = x @ DATA.T * number + noise
        np.testing.assert_allclose(program(x, number), expected, rtol=1e-4, atol=1e-4)
    assert program(np.ones((2, 40), np.float32), 1.0).shape == (2, 300)
    assert traced == [(40,), (2, 40)]


def test_memory_that_is_given_away_is_taken():
    program = compiled(lambda x, y: (x + y, y), donate=(0,))
    given = jnp.zeros(5)
    assert program(given, jnp.ones(5))[0].sum() == 5
    assert given.is_deleted()
