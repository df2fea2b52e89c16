"""Elastic deformation of sections, evaluated only for the voxels of a window.

A map displaces every voxel of a section within its plane and is the same for all sections. It is
drawn on a coarse grid, smoothed, and magnified to the section. Smoothing and magnifying are linear
and separable, so both together are one small constant matrix per axis, and the displacement of a
window is two matrix products with the rows of that matrix which the window needs; no map of the
whole section is ever made.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from densejax.typing import Array, Key

KINDS = ("published", "released")
"""``released``: U(-1, 1) on the grid, Gaussian filter of 0.6 grid cells, times 20 voxels, cubic
magnification. ``published``: the thesis read literally, N(20, 0.6) voxels on the grid, linear
magnification, which is a shift by about 20 voxels."""

GRID_CELL = 40
AMPLITUDE = 20.0
SMOOTHING = 0.6


@functools.lru_cache(maxsize=32)
def elastic_basis(size: int, kind: str) -> np.ndarray:
    """Matrix that turns values on the coarse grid of one axis into values at every voxel of it.

    Args:
      size: voxels along the axis. The grid has one point per 40 voxels, at least 2.
      kind: one of `KINDS`.

    Returns:
      np.float32 [size, g].

    Raises:
      ValueError: if `kind` is unknown.

    Source: the released code of Emam 2021, ch. 4: ``scipy.ndimage.gaussian_filter`` (mode
    reflect) and ``scipy.ndimage.zoom``. Departure: the released code magnifies 40 times exactly
    and so needs multiples of 40 voxels; here the grid is magnified to the axis whatever its size.
    """
    if kind not in KINDS:
        raise ValueError(f"elastic kind {kind!r}; expected one of {KINDS}")
    points = max(2, size // GRID_CELL)
    basis = np.eye(points)
    if kind == "released":
        basis = scipy.ndimage.gaussian_filter1d(basis, SMOOTHING, axis=0, mode="reflect")
    # Mode mirror is what a cubic spline uses within its bounds; it never yields the constant that
    # other modes give when the last coordinate is rounded to just outside.
    order = 3 if kind == "released" else 1
    basis = scipy.ndimage.zoom(basis, (size / points, 1), order=order, mode="mirror")
    if basis.shape[0] != size:
        raise ValueError(f"elastic basis has {basis.shape[0]} rows; expected {size}")
    return basis.astype(np.float32)


def elastic_displacement(
    key: Key, rows: Array, columns: Array, *, section_shape: Sequence[int], kind: str
) -> jax.Array:
    """Displacement of some voxels of a section, under the map that belongs to a key.

    Args:
      key: a jax key; the same key is the same map, whichever voxels are asked for.
      rows: int32 [y], voxel indices inside the section; may be traced.
      columns: int32 [x], voxel indices inside the section; may be traced.
      section_shape: (y, x) of the whole section in voxels.
      kind: one of `KINDS`.

    Returns:
      float32 [2, y, x], displacement along y and x in voxels.

    Raises:
      ValueError: if `kind` is unknown.
    """
    along_y, along_x = (jnp.asarray(elastic_basis(int(s), kind)) for s in section_shape)
    shape = (2, along_y.shape[1], along_x.shape[1])
    if kind == "released":
        grid = AMPLITUDE * jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
    else:
        grid = AMPLITUDE + SMOOTHING * jax.random.normal(key, shape)
    return jnp.einsum(
        "yi,cij,xj->cyx", along_y[rows], grid, along_x[columns], precision=jax.lax.Precision.HIGHEST
    )


def sample_window(
    volume: Array, sections: Array, y: Array, x: Array, *, linear: bool = False
) -> jax.Array:
    """Values of a volume at in-plane positions, the same positions in every section.

    Positions outside the section are clipped to its edge.

    Args:
      volume: [z, y, x], any dtype (float where `linear`).
      sections: int32 [d], indices of sections inside the volume.
      y: float [h, w] in voxels.
      x: float [h, w] in voxels.
      linear: interpolate bilinearly; otherwise the nearest voxel, as released even for images.

    Returns:
      [d, h, w], the volume's dtype.
    """
    volume = jnp.asarray(volume)
    sections = jnp.asarray(sections)[:, None, None]
    y = jnp.clip(y, 0, volume.shape[1] - 1)
    x = jnp.clip(x, 0, volume.shape[2] - 1)
    if not linear:
        row, column = (jnp.floor(p + 0.5).astype(jnp.int32) for p in (y, x))
        return volume[sections, row, column]
    top, left = (jnp.floor(p).astype(jnp.int32) for p in (y, x))
    bottom = jnp.minimum(top + 1, volume.shape[1] - 1)
    right = jnp.minimum(left + 1, volume.shape[2] - 1)
    down, across = y - top, x - left
    upper = (1 - across) * volume[sections, top, left] + across * volume[sections, top, right]
    lower = (1 - across) * volume[sections, bottom, left] + across * volume[sections, bottom, right]
    return (1 - down) * upper + down * lower
