"""Transposed convolution whose kernel equals its stride: a matrix product and a rearrangement."""

import jax
import jax.numpy as jnp

from densejax.typing import Array


def transposed_convolution(x: Array, w: Array) -> jax.Array:
    """Upsample by a transposed convolution with stride = kernel, no bias.

    Output voxel (kz * i + dz, ...) is x[i, ...] @ w[dz, ...], as in PyTorch's ``conv_transpose3d``.

    Args:
      x: [b, z, y, x, c_in], floating.
      w: [kz, ky, kx, c_in, c_out], floating, for instance (1, 2, 2, ...). Promoted with ``x``.

    Returns:
      [b, kz * z, ky * y, kx * x, c_out], of the promoted dtype.

    Raises:
      ValueError: if a rank or the channel count is wrong.
    """
    x, w = jnp.asarray(x), jnp.asarray(w)
    if x.ndim != 5 or w.ndim != 5 or x.shape[-1] != w.shape[3]:
        raise ValueError(
            f"transposed_convolution: expected x [b, z, y, x, c_in] and "
            f"w [kz, ky, kx, c_in, c_out], found shapes {x.shape} and {w.shape}"
        )
    b, z, y, x_, _ = x.shape
    kz, ky, kx, c_in, c_out = w.shape
    # One product for all taps, so that XLA sees a single large matrix.
    matrix = w.transpose(3, 0, 1, 2, 4).reshape(c_in, -1)
    out = (x.reshape(-1, c_in) @ matrix).reshape(b, z, y, x_, kz, ky, kx, c_out)
    out = out.transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return out.reshape(b, z * kz, y * ky, x_ * kx, c_out)
