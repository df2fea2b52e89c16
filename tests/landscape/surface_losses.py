"""Losses whose surfaces the tests compute."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from densejax.landscape.directions import Plane
from densejax.landscape.surfaces import (
    surface,
)

N = 40


def quadratic(seed=0):
    """A quadratic with its plane, and its exact values on coordinates in float64."""
    rng = np.random.default_rng(seed)
    half = rng.normal(size=(N, N)) / np.sqrt(N)
    hessian = (half @ half.T).astype(np.float32)
    slope, centre, first, second = rng.normal(size=(4, N)).astype(np.float32)

    def loss(params):
        w = params["w"]
        return 0.5 * w @ jnp.asarray(hessian) @ w + jnp.asarray(slope) @ w + 3.0

    def exact(x, y):
        c, a, b = (part.astype(np.float64) for part in (centre, first, second))
        w = c + float(x) * a + float(y) * b
        return 0.5 * w @ hessian.astype(np.float64) @ w + slope.astype(np.float64) @ w + 3.0

    plane = Plane(*({"w": jnp.asarray(part)} for part in (centre, first, second)))
    return loss, plane, exact


def relu_network(seed=0, widths=(2, 9, 7, 3)):
    rng = np.random.default_rng(seed)
    return {
        f"layer{i}": {
            "kernel": jnp.asarray(rng.normal(size=(a, b)) / np.sqrt(a), jnp.float32),
            "bias": jnp.asarray(0.1 * rng.normal(size=b), jnp.float32),
        }
        for i, (a, b) in enumerate(itertools.pairwise(widths))
    }


def network_loss(seed=0, samples=50):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(samples, 2)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 3, samples))

    def loss(params):
        y = x
        for i in range(len(params)):
            layer = params[f"layer{i}"]
            y = (jax.nn.relu(y) if i else y) @ layer["kernel"] + layer["bias"]
        true = jnp.take_along_axis(jax.nn.log_softmax(y), labels[:, None], axis=1)
        right = (y.argmax(axis=1) == labels).mean()
        return {"loss": -true.mean(), "accuracy": right}

    return loss


def quiet(*arguments, **options):
    return surface(*arguments, progress=False, **options)
