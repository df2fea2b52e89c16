"""Distance of a point to the region of a class of a linear head: a projection on a polyhedron.

A head gives class c on {x : (w_c - w_k) x + b_c - b_k >= 0 for all k}. With unit normals a_k and
signed distances h_k of a point beyond each plane, the displacement solves min |e|^2 / 2 subject to
A e >= h, whose dual is max h'l - l'G l / 2 over l >= 0 with G = A A': the features have gone, and
all points share the G of a class. Any l gives a lower bound of the distance, the best l gives it.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import nnls

from densejax.typing import Array

HIGHEST = jax.lax.Precision.HIGHEST
TOLERANCE = 1e-5
STEPS = 20_000


def region_distance(
    logits: jax.Array, kernel: jax.Array, empty: jax.Array, chosen: jax.Array
) -> jax.Array:
    """Distance of points to the region where a head predicts one class.

    The dual is climbed by coordinate ascent, each point along its steepest coordinate, all points
    at once, until no step is longer than 1e-5 of the largest plane distance.

    Args:
      logits: [s, c] float32 of the points.
      kernel: [d, c] float32.
      empty: [c] bool, classes without a region, see ``empty_regions``.
      chosen: int, the class.

    Returns:
      [s] float32: 0 inside the region (and on its boundary), inf if it is empty.
    """
    normals = kernel[:, chosen, None] - kernel
    # By a power of two nothing is rounded, and no square over- or underflows.
    power = jnp.frexp(jnp.abs(normals).max(initial=0.0))[1]
    normals = jnp.ldexp(normals, -power)
    lengths = jnp.sqrt(jnp.square(normals).sum(axis=0))
    apart = lengths > 0
    units = jnp.where(apart, normals / jnp.where(apart, lengths, 1), 0)
    gram = jnp.matmul(units.T, units, precision=HIGHEST)
    gram = gram.at[jnp.diag_indices(gram.shape[0])].set(1)
    # Classes with the same weights, and the class itself, bound nothing (or everything: empty).
    lengths = jnp.ldexp(lengths, power)
    beyond = (logits - logits[:, chosen, None]) / jnp.where(apart, lengths, 1)
    beyond = jnp.where(apart, beyond, -1)
    return jnp.where(empty[chosen], jnp.inf, _climb(beyond, gram))


def _climb(beyond: jax.Array, gram: jax.Array) -> jax.Array:
    """sqrt(max over l >= 0 of 2 h'l - l'G l): h [s, c], G [c, c] of unit diagonal -> [s]."""
    points = jnp.arange(beyond.shape[0])
    # In units of the largest plane distance, so that one tolerance serves all.
    scale = jnp.maximum(beyond.max(axis=1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    target = beyond / scale

    def best(weights: jax.Array, slope: jax.Array) -> tuple[jax.Array, jax.Array]:
        step = jnp.maximum(slope, -weights)
        at = jnp.argmax(jnp.abs(step), axis=1)
        return at, step[points, at]

    def unfinished(state: tuple[Any, ...]) -> jax.Array:
        count, _, _, _, step = state
        return (count < STEPS) & (jnp.abs(step).max(initial=0.0) > TOLERANCE)

    def climb(state: tuple[Any, ...]) -> tuple[Any, ...]:
        count, weights, slope, at, step = state
        weights = weights.at[points, at].add(step)
        slope = slope - step[:, None] * gram[at]
        return (count + 1, weights, slope, *best(weights, slope))

    weights = jnp.zeros_like(target)
    start = (jnp.int32(0), weights, target, *best(weights, target))
    _, weights, *_ = jax.lax.while_loop(unfinished, climb, start)
    moved = jnp.matmul(weights, gram, precision=HIGHEST)
    squared = jnp.sum(weights * (2 * target - moved), axis=1)
    # The largest plane distance bounds the distance from below, however rounding falls.
    reached = jnp.maximum(jnp.sqrt(jnp.maximum(squared, 0)), 1)
    return jnp.where(beyond.max(axis=1) > 0, scale[:, 0] * reached, 0)


def region_distances(logits: jax.Array, kernel: jax.Array, empty: jax.Array) -> jax.Array:
    """``region_distance`` to every class, one after another: [s, c] float32; arguments as there."""
    one = partial(region_distance, logits, kernel, empty)
    return jax.lax.map(one, jnp.arange(kernel.shape[1])).T


def empty_regions(kernel: Array, bias: Array) -> np.ndarray:
    """Classes that a head never gives, whatever the features.

    Most classes of most heads are seen not to be empty at a glance: they win at the origin, or far
    out along their own weights; or the weights are in general position. For the others the least
    distance problem of Lawson and Hanson (1974, ch. 23) is solved by non-negative least squares.

    Args:
      kernel: [d, c] floating.
      bias: [c] floating.

    Returns:
      [c] bool. Regions are closed: a class that only ever ties is not empty.
    """
    rows = np.asarray(kernel, np.float64).T
    offsets = np.asarray(bias, np.float64)
    classes = len(rows)
    rows = rows - rows.mean(axis=0)
    empty = np.zeros(classes, bool)
    gram = rows @ rows.T
    others = np.where(np.eye(classes, dtype=bool), -np.inf, gram)
    outward = np.diag(gram) > others.max(axis=1, initial=-np.inf) + 1e-9 * np.abs(gram).max()
    unsure = np.flatnonzero(~outward & (offsets < offsets.max(initial=-np.inf)))
    if unsure.size == 0:
        return empty
    # Only the span of the weights matters: at most c - 1 dimensions instead of d.
    _, sizes, basis = np.linalg.svd(rows, full_matrices=False)
    rank = int((sizes > 1e-9 * sizes.max(initial=0)).sum())
    if rank == classes - 1:
        return empty
    reduced = rows @ basis[:rank].T
    for chosen in unsure:
        empty[chosen] = _is_empty(reduced, offsets, int(chosen))
    return empty


def _is_empty(rows: np.ndarray, offsets: np.ndarray, chosen: int) -> bool:
    normals = rows[chosen] - rows
    lengths = np.linalg.norm(normals, axis=1)
    apart = lengths > 1e-9 * np.abs(rows).max(initial=0)
    below = offsets - offsets[chosen]
    if np.any(below[~apart] > 0):
        return True
    normals, planes = normals[apart] / lengths[apart, None], below[apart] / lengths[apart]
    planes = planes / max(np.abs(planes).max(initial=0), np.finfo(float).tiny)
    system = np.concatenate([normals.T, planes[None]])
    aim = np.zeros(len(system))
    aim[-1] = 1
    # The residual is 1 / (1 + distance^2) squared, or 0 if no point satisfies all.
    return bool(nnls(system, aim)[1] < 1e-7)
