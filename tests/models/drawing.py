"""Parameters and shapes for the tests of models."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def shapes(model, window, *, batch=2):
    """((logits, out), variables) of a model, nothing computed."""
    x = jax.ShapeDtypeStruct((batch, *window, 1), jnp.float32)
    return jax.eval_shape(lambda a: model.init_with_output(jax.random.key(0), a), x)


def drawn(model, x):
    """Parameters of unit gain from numpy: compiling an initialisation takes far longer."""
    rng = np.random.default_rng(0)
    tree = jax.eval_shape(model.init, jax.random.key(0), x)

    def draw(p):
        gain = math.sqrt(2 / math.prod(p.shape[:-1])) if len(p.shape) > 1 else 0.1
        return (gain * rng.standard_normal(p.shape)).astype(np.float32)

    return jax.tree.map(draw, tree)
