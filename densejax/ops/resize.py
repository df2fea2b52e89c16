"""Bilinear resizing whose corners stay in place, as two matrix products."""

import jax
import jax.numpy as jnp
import numpy as np

from densejax.typing import Array


def resize_aligned(x: Array, sizes: tuple[int, int]) -> jax.Array:
    """Resize y and x bilinearly with aligned corners: the first and last pixels keep their values.

    Output pixel i reads place i * (n - 1) / (m - 1) of n pixels resized to m, as PyTorch's
    ``interpolate(align_corners=True)`` and TensorFlow's ``resize_bilinear(align_corners=True)``;
    one pixel is spread over all. Both directions are products with a fixed matrix, and so are
    their derivatives.

    Args:
      x: [b, z, y, x, c], floating.
      sizes: (y', x') pixels, at least 1.

    Returns:
      [b, z, y', x', c], dtype of ``x``.

    Raises:
      ValueError: if ``x`` has another rank, or a size is below 1.
    """
    x = jnp.asarray(x)
    if x.ndim != 5 or min(sizes) < 1:
        raise ValueError(
            f"resize_aligned: expected x [b, z, y, x, c] and sizes of 1 or more, found shape "
            f"{x.shape} and sizes {sizes}"
        )
    if x.shape[2] != sizes[0]:
        x = jnp.einsum("bzyxc,Yy->bzYxc", x, _aligned(x.shape[2], sizes[0]).astype(x.dtype))
    if x.shape[3] != sizes[1]:
        x = jnp.einsum("bzyxc,Xx->bzyXc", x, _aligned(x.shape[3], sizes[1]).astype(x.dtype))
    return x


def _aligned(n: int, m: int) -> np.ndarray:
    """[m, n]: the weights of n pixels in each of m."""
    places = np.arange(m) * ((n - 1) / max(m - 1, 1))
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(n))).astype(np.float32)
