"""Rotation, scaling and smooth warps of a training window, in one interpolation of its planes.

The positions of a window's voxels are moved, and image and labels read there: the image
bilinearly, labels and weights at the nearest voxel. Beyond the volume it is mirrored. All sections
of a window move alike.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from densejax.typing import Array, Key

WARP_CELL = 32  # voxels between the points at which a warp is drawn


def moved_positions(
    key: Key,
    size: Sequence[int],
    *,
    rotation: float,
    scaling: float,
    warp: float,
) -> jax.Array:
    """Where the voxels of a window are read, relative to its centre.

    Args:
      key: a jax key.
      size: (y, x) of the window in voxels.
      rotation: largest angle either way, degrees; uniform.
      scaling: largest factor less one, 0 or more; its logarithm is uniform either way.
      warp: standard deviation of the displacement at points ``WARP_CELL`` voxels apart, voxels;
        linear between them.

    Returns:
      float32 [2, y, x], rows and columns in voxels from the centre of the window.
    """
    turn, stretch, bend = jax.random.split(key, 3)
    angle = jnp.deg2rad(jax.random.uniform(turn, (), minval=-rotation, maxval=rotation))
    factor = jnp.exp(jax.random.uniform(stretch, (), minval=-1, maxval=1) * math.log1p(scaling))
    rows, columns = (jnp.arange(n, dtype=jnp.float32) - (n - 1) / 2 for n in size)
    y, x = rows[:, None], columns[None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    place = jnp.stack([factor * (cos * y - sin * x), factor * (sin * y + cos * x)])
    if warp > 0:
        points = [max(2, n // WARP_CELL) for n in size]
        drawn = warp * jax.random.normal(bend, (2, *points))
        place = place + jax.image.resize(drawn, (2, *size), "linear")
    return place


def read_plane(volume: Array, sections: Array, y: Array, x: Array, *, linear: bool) -> jax.Array:
    """Values of a volume's sections at in-plane positions, mirrored beyond the border.

    Args:
      volume: [z, y, x], any dtype (floating where ``linear``).
      sections: int32 [d], indices inside the volume.
      y: float [h, w], rows in voxels, at most one volume's size outside.
      x: float [h, w], columns.
      linear: interpolate bilinearly; otherwise the nearest voxel.

    Returns:
      [d, h, w], the volume's dtype.
    """
    volume = jnp.asarray(volume)
    height, width = volume.shape[1:]

    def at(row: Array, column: Array) -> jax.Array:
        return volume[sections[:, None, None], _mirrored(row, height), _mirrored(column, width)]

    if not linear:
        return at(*(jnp.floor(p + 0.5).astype(jnp.int32) for p in (y, x)))
    top, left = jnp.floor(y), jnp.floor(x)
    down, across = y - top, x - left
    top, left = top.astype(jnp.int32), left.astype(jnp.int32)
    upper = (1 - across) * at(top, left) + across * at(top, left + 1)
    lower = (1 - across) * at(top + 1, left) + across * at(top + 1, left + 1)
    return jnp.asarray((1 - down) * upper + down * lower, volume.dtype)


def _mirrored(index: Array, size: int) -> jax.Array:
    """Reflect without repeating the edge, as often as it takes."""
    if size == 1:
        return jnp.zeros_like(jnp.asarray(index))
    period = 2 * (size - 1)
    inside: jax.Array = jnp.remainder(index, period)
    return jnp.where(inside * 2 > period, period - inside, inside)
