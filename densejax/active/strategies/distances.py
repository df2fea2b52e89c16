"""Features of a pool on the device, and distances between them: what geometric selectors share."""

import jax
import jax.numpy as jnp
import numpy as np

from densejax.active.pool import Pool, chunks, refuse_overflow
from densejax.typing import Array

# |x|^2 + |y|^2 - 2xy of nearby points is a small difference of large numbers: below this share of
# |x|^2 + |y|^2 float32 can't tell it from zero, so that it is zero, and duplicates are at distance
# zero exactly.
RESOLUTION = 1e-6


def resident(pool: Pool, rows: Array, *, normalize: bool) -> jax.Array:
    """The features of some rows, on the device.

    Args:
      pool: a pool with features.
      rows: [r] ascending rows.
      normalize: whether each row is divided by its length (a row of zeros stays); else the mean of
        the rows is subtracted, which changes no distance and keeps their rounding small.

    Returns:
      [r, d] float32.

    Raises:
      ValueError: the pool has no features, or one that is not finite; or its square is not, and
        nothing is normalised.
    """
    parts = []
    for ids, read in chunks(pool, ("features",), rows=rows):
        if not normalize:
            refuse_overflow(ids, read["features"])
        parts.append(read["features"][: len(ids)])
    if not parts:
        return jnp.zeros((0, pool.features.shape[1] if pool.features is not None else 0))
    x = jnp.concatenate(parts) if len(parts) > 1 else parts[0]
    return _unit(x) if normalize else _centred(x)


@jax.jit
def _unit(x: jax.Array) -> jax.Array:
    # Scaled by its largest entry first: squares must neither overflow nor vanish.
    x = x / jnp.maximum(jnp.abs(x).max(axis=1, keepdims=True), jnp.finfo(x.dtype).tiny)
    length = jnp.sqrt(jnp.sum(x * x, axis=1, keepdims=True))
    return x / jnp.where(length > 0, length, 1)


@jax.jit
def _centred(x: jax.Array) -> jax.Array:
    return x - x.mean(axis=0)


def squared_distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """|x_i - y_j|^2, from the matrix product at full float32 precision.

    Args:
      x: [s, d] float32.
      y: [q, d] float32.

    Returns:
      [s, q] float32, zero where it is less than ``RESOLUTION`` of |x_i|^2 + |y_j|^2.
    """
    scale = jnp.sum(x * x, axis=1)[:, None] + jnp.sum(y * y, axis=1)
    product = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
    squared = scale - 2 * product
    return jnp.where(squared <= RESOLUTION * scale, 0.0, squared)


def in_blocks(x: jax.Array, size: int) -> jax.Array:
    """[r, d] -> [ceil(r / size), size, d], the last block filled with zeros."""
    missing = -x.shape[0] % size
    return jnp.pad(x, ((0, missing), (0, 0))).reshape(-1, size, x.shape[1])


def padded(ids: np.ndarray, size: int) -> np.ndarray:
    """[q] -> [size], filled with the last entry; q is 1 to size."""
    return np.concatenate([ids, np.repeat(ids[-1:], size - len(ids))])
