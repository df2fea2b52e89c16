"""Max pooling as a maximum over strided views, and its inverse by the places of the maxima."""

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


def max_pool_places(x: Array) -> tuple[jax.Array, jax.Array]:
    """Maxima of 2x2 pixels and where in their windows they are; an odd size is rounded up.

    What is missing at the end of an odd axis is minus infinity. Ties go to the lowest place, as in
    PyTorch. Gradients as ``max_pool``.

    Args:
      x: [b, z, y, x, c], floating.

    Returns:
      [b, z, ceil(y / 2), ceil(x / 2), c], the maxima, dtype of ``x``; and uint8 of the same shape,
      2 * (row in the window) + column.

    Raises:
      ValueError: if ``x`` has another rank.
    """
    x = jnp.asarray(x)
    if x.ndim != 5:
        raise ValueError(f"max_pool_places: expected x [b, z, y, x, c], found shape {x.shape}")
    pads = ((0, 0), (0, 0), (0, x.shape[2] % 2), (0, x.shape[3] % 2), (0, 0))
    x = jnp.pad(x, pads, constant_values=-jnp.inf)
    best, place = x[:, :, ::2, ::2], jnp.zeros((), jnp.uint8)
    for i in range(1, 4):
        other = x[:, :, i // 2 :: 2, i % 2 :: 2]
        keep = (best >= other) | jnp.isnan(best)
        best, place = jnp.where(keep, best, other), jnp.where(keep, place, jnp.uint8(i))
    return best, place


def unpool(x: Array, places: Array, sizes: tuple[int, int]) -> jax.Array:
    """Put every number at its place of a 2x2 window, zeros elsewhere.

    Args:
      x: [b, z, y, x, c], floating.
      places: uint8 of the same shape, as ``max_pool_places`` returns.
      sizes: (y', x') of the result: twice that of ``x``, or one less where it was rounded up.

    Returns:
      [b, z, y', x', c], dtype of ``x``.

    Raises:
      ValueError: if the shapes differ, or the sizes were not halved to those of ``x``.
    """
    x, places = jnp.asarray(x), jnp.asarray(places)
    halved = tuple(-(-size // 2) for size in sizes)
    if x.ndim != 5 or x.shape != places.shape or x.shape[2:4] != halved:
        raise ValueError(
            f"unpool: shapes {x.shape} and {places.shape} for {sizes} pixels; expected both "
            f"[b, z, {halved[0]}, {halved[1]}, c]"
        )
    b, z, rows, columns, c = x.shape
    four = jnp.stack([jnp.where(places == i, x, 0) for i in range(4)], axis=2)
    four = four.reshape(b, z, 2, 2, rows, columns, c).transpose(0, 1, 4, 2, 5, 3, 6)
    return four.reshape(b, z, 2 * rows, 2 * columns, c)[:, :, : sizes[0], : sizes[1]]
