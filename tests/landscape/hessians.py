"""Losses whose Hessians are known, and the dense ones of a small network."""

import jax
import jax.numpy as jnp
import numpy as np

from densejax.landscape.curvature import hessian_vector
from densejax.landscape.filters import flat, unflat

ROWS, INPUTS, HIDDEN, CLASSES = 40, 3, 6, 4


def data(rows=ROWS):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, INPUTS)).astype(np.float32)
    return {"x": x, "label": rng.integers(0, CLASSES, rows).astype(np.int32)}


def batch_loss(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["in"]["kernel"] + params["in"]["bias"])
    logits = hidden @ params["out"]["kernel"] + params["out"]["bias"]
    logs = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(logs, batch["label"][:, None], axis=1).mean()


def loss_fn(params):
    return batch_loss(params, data())


def parameters(dtype=np.float32):
    rng = np.random.default_rng(1)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32).astype(dtype)

    return {
        "in": {"kernel": draw(INPUTS, HIDDEN), "bias": draw(HIDDEN)},
        "out": {"kernel": draw(HIDDEN, CLASSES), "bias": draw(CLASSES)},
    }


def dense_hessian():
    """The Hessian [n, n] in float64."""
    with jax.enable_x64(True):
        params = parameters(np.float64)
        hessian = jax.jit(jax.hessian(lambda v: loss_fn(unflat(v, params))))
        return np.asarray(hessian(numbers(params)))


def quadratic(matrix):
    """Half x^T A x of a tree with a kernel and a bias, and its parameters."""
    n = len(matrix)
    params = {"kernel": np.ones((n // 2, 2), np.float32), "bias": np.ones(n % 2, np.float32)}
    matrix = np.asarray(matrix, np.float32)
    return lambda p: 0.5 * flat(p) @ matrix @ flat(p), params


def symmetric(values, seed=0):
    """A matrix [n, n] of the given eigenvalues, and their vectors as columns."""
    rng = np.random.default_rng(seed)
    vectors = np.linalg.qr(rng.normal(size=(len(values), len(values))))[0]
    return (vectors * values) @ vectors.T, vectors


def by_matrix(matrix, vector):
    return jnp.matmul(matrix, vector, precision="highest")


product_of = jax.jit(lambda params, vector: hessian_vector(loss_fn, params, vector))


def vector_like(params, seed=2):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), params)


def numbers(tree):
    """The entries of a tree [n], in float64."""
    return np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(tree)])
