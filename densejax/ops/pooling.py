"""Max pooling with window equal to stride, as a maximum over strided views."""

import functools
import itertools

import jax
import jax.numpy as jnp

from densejax.typing import Array


def max_pool(x: Array, window: tuple[int, int, int]) -> jax.Array:
    """Maximum over disjoint windows; what is left over at the end of an odd axis is dropped.

    The gradient goes to the first maximum of a window in the order z, y, x, as in
    ``lax.reduce_window`` and PyTorch; a NaN in a window is its maximum. XLA's scatter of the
    gradient is slow on a CPU; selections between views are not.

    Args:
      x: [b, z, y, x, c], floating.
      window: (kz, ky, kx) voxels, window and stride, for instance (1, 2, 2).

    Returns:
      [b, z // kz, y // ky, x // kx, c], dtype of ``x``.

    Raises:
      ValueError: if ``x`` has another rank or is smaller than one window.
    """
    x = jnp.asarray(x)
    if x.ndim != 5:
        raise ValueError(f"max_pool: expected x [b, z, y, x, c], found shape {x.shape}")
    counts = [n // k for n, k in zip(x.shape[1:4], window, strict=True)]
    if min(counts) < 1:
        raise ValueError(f"max_pool: a window of {window} does not fit in x of {x.shape[1:4]}")
    (nz, ny, nx), (kz, ky, kx) = counts, window
    x = x[:, : nz * kz, : ny * ky, : nx * kx]
    x = x.reshape(x.shape[0], nz, kz, ny, ky, nx, kx, x.shape[-1])
    offsets = itertools.product(range(kz), range(ky), range(kx))
    return functools.reduce(_first_maximum, [x[:, :, i, :, j, :, l] for i, j, l in offsets])


def _first_maximum(a: jax.Array, b: jax.Array) -> jax.Array:
    # Not jnp.maximum, whose gradient is split between equals.
    return jnp.where((a >= b) | jnp.isnan(a), a, b)
