"""What random directions are drawn on, and so what a radius is measured in.

Two geometries around a minimum w, whose filters f are scaled as ``filters`` says:

- ``spheres``: the product of one sphere a filter, ``d_f = |w_f| z_f / |z_f|`` (Li et al. 2018, and
  the published radii). A radius is the relative length by which every filter has moved. Not the
  sphere of the volume's formula: of N drawn entries in F filters, ``N - F`` are free.
- ``ellipsoid``: ``d = D z / |z|`` with z over all entries at once and ``D_f = |w_f| / sqrt(size of
  f)``. The basin in the coordinates ``D^-1 (w' - w)`` is then measured from uniform directions on
  one sphere, as the formula wants; a radius is about sqrt(N) times that of ``spheres``. Adding the
  sum of log D over all entries to the log-volume gives Euclid's, in the parameters' own units.

Filter-normalised radii are the same in networks that differ by a permutation of hidden units (with
their directions permuted alike), or by a positive factor on a whole layer of ReLU units that the
next layer takes back. A factor for each unit on its own is no such symmetry: it changes the shape
of the next layer's filters.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from densejax import trees
from densejax.landscape.directions import draw_direction
from densejax.landscape.filters import Axes, Biases, Normalise, check_options, filters_of, is_float
from densejax.population import instance_key
from densejax.typing import Key, Params, Tree

Geometry = Literal["spheres", "ellipsoid"]
# Operand, parameters, the direction's number [] int32: pure, and with a hash. What a direction is
# drawn by are arrays in the operand, so that another key needs no other program.
Draw = Callable[[Tree, Params, jax.Array], Tree]


@dataclass(frozen=True)
class Extent:
    """How many numbers of a minimum random directions move, and how far they reach.

    Attributes:
      entries: parameters that are drawn; those of all-zero filters are not.
      constraints: norms that are held fixed, one a filter (or a layer); 0 of an ellipsoid.
      log_scale: sum of log D over the entries of an ellipsoid, float64; 0 of spheres.
      reach: the radius at which the drawn entries have moved by their own norm.
    """

    entries: int
    constraints: int
    log_scale: float
    reach: float

    @property
    def dimension(self) -> int:
        """Entries less constraints: the effective dimension of the directions."""
        return self.entries - self.constraints


def _check_geometry(geometry: str, normalise: str, biases: str) -> None:
    check_options(normalise, biases)
    if geometry not in ("spheres", "ellipsoid"):
        raise ValueError(f"geometry {geometry!r}: expected spheres or ellipsoid")
    if geometry == "ellipsoid" and biases == "weights":
        raise ValueError("biases 'weights' are not random: no part of an ellipsoid (zero, random)")


def drawn_direction(
    key: Key,
    params: Params,
    *,
    geometry: Geometry = "spheres",
    normalise: Normalise = "filter",
    biases: Biases = "zero",
    axes: Axes | None = None,
) -> Tree:
    """A random direction on the spheres, or from the centre to the surface of the ellipsoid.

    Pure: can be compiled and mapped over keys. Options as in ``directions.random_direction``; in an
    ellipsoid D is 1 without a norm, and biases that move along themselves are refused.
    """
    _check_geometry(geometry, normalise, biases)
    if geometry == "spheres":
        return draw_direction(key, params, normalise, biases, axes)
    gauss = draw_direction(key, params, "none", biases, axes)
    scales = [
        _scale(leaf, rule, normalise)
        if moves and (rule is not None or biases == "random")
        else jnp.zeros((), jnp.float32)
        for leaf, rule, moves in filters_of(params, axes=axes)
    ]
    # Entries that cannot move are no part of the sphere either.
    free = [
        jnp.where(scale > 0, z, 0) for scale, z in zip(scales, jax.tree.leaves(gauss), strict=True)
    ]
    length = trees.norm([z for z in free if is_float(z)])
    moved = [
        (scale * z / length).astype(z.dtype) if is_float(z) else z
        for scale, z in zip(scales, free, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), moved)


def extent(
    params: Params,
    *,
    geometry: Geometry = "spheres",
    normalise: Normalise = "filter",
    biases: Biases = "zero",
    axes: Axes | None = None,
) -> Extent:
    """Count what the directions of ``drawn_direction`` move, on the host in float64.

    Raises:
      ValueError: an unknown option, ``axes`` does not fit, or nothing would move: all filters are
        zero, or there are none.
    """
    _check_geometry(geometry, normalise, biases)
    entries, constraints, log_scale, square = 0, 0, 0.0, 0.0
    for leaf, rule, moves in filters_of(params, axes=axes):
        if not moves or (rule is None and biases != "random"):
            continue
        norms, size = _norms(np.asarray(leaf, np.float64), rule, normalise)
        square += float(np.sum(norms**2))
        moved = np.ones_like(norms, bool) if normalise == "none" else norms > 0
        entries += size * int(moved.sum())
        if geometry == "ellipsoid" and normalise != "none":
            log_scale += size * float(np.sum(np.log(norms[moved] / math.sqrt(size))))
        elif normalise != "none":
            constraints += int(moved.sum())
    if not entries:
        raise ValueError(
            "no parameter moves along a random direction: every filter is zero, or no parameter "
            "has filters (biases='random' moves the others)"
        )
    reach = 1.0 if normalise != "none" else math.sqrt(square / entries)
    if geometry == "ellipsoid":
        reach *= math.sqrt(entries)
    return Extent(entries, constraints, log_scale, reach)


def _others(ndim: int, rule: Any, normalise: str) -> tuple[int, ...]:
    """Axes within one filter."""
    whole = rule is None or normalise == "layer"
    kept = () if whole else rule if isinstance(rule, tuple) else (rule,)
    return tuple(axis for axis in range(ndim) if axis not in kept)


def _scale(leaf: Any, rule: Any, normalise: str) -> jax.Array:
    """D of a parameter, of a shape that goes with it."""
    if normalise == "none":
        return jnp.ones((), jnp.float32)
    w = jnp.asarray(leaf, jnp.promote_types(jnp.result_type(leaf), jnp.float32))
    others = _others(w.ndim, rule, normalise)
    return jnp.sqrt(jnp.mean(w * w, axis=others, keepdims=True))


def _norms(leaf: np.ndarray, rule: Any, normalise: str) -> tuple[np.ndarray, int]:
    """Norms of a parameter's filters, and how many entries one has."""
    norms = np.sqrt(np.sum(leaf * leaf, axis=_others(leaf.ndim, rule, normalise)))
    return norms, leaf.size // max(norms.size, 1)


@dataclass(frozen=True)
class _Drawn:
    """Directions by ``fold_in(key, number)``; the operand holds ``key``, a key's data.

    Every minimum has the same keys: the same normal numbers, scaled to its own filters. So minima
    of one architecture are compared on common random numbers.
    """

    geometry: Geometry
    normalise: Normalise
    biases: Biases
    axes: tuple[tuple[str, Any], ...]
    implementation: Any

    def __call__(self, operand: Tree, params: Params, number: jax.Array) -> Tree:
        key = jax.random.wrap_key_data(operand["key"], impl=self.implementation)
        return drawn_direction(
            instance_key(key, number),
            params,
            geometry=self.geometry,
            normalise=self.normalise,
            biases=self.biases,
            axes=dict(self.axes),
        )


def drawn(
    key: Key, *, geometry: Geometry, normalise: Normalise, biases: Biases, axes: Axes | None
) -> tuple[Draw, dict[str, Any]]:
    """The draw of a key, and the operand that it reads."""
    data, implementation = key_data(key)
    rules = tuple(sorted((axes or {}).items()))
    return _Drawn(geometry, normalise, biases, rules, implementation), {"key": data}


def given(operand: Tree, params: Params, number: jax.Array) -> Tree:
    """A direction that is known: number i of the operand's ``directions``, stacked [k, ...]."""
    del params

    def take(leaf: jax.Array) -> jax.Array:
        # Lanes that are not live may ask beyond the last one, and get it.
        return lax.dynamic_index_in_dim(leaf, number, keepdims=False)

    return jax.tree.map(take, operand["directions"])


def key_data(key: Key) -> tuple[np.ndarray, Any]:
    """A key's numbers and its implementation, whether it is a typed key or an old one."""
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(key)), jax.random.key_impl(key)
    return np.asarray(key), None
