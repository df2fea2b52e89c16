"""Where the directions of many rays come from: a key and a number, or arrays that are given.

A draw is ``(operand, params, number) -> direction``, pure, with a hash: what it is drawn by are
arrays in the operand, so that another key needs no other program.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from densejax.instances import instance_key
from densejax.landscape.filters import Axes, Biases, Normalise
from densejax.landscape.spheres import Geometry, drawn_direction
from densejax.typing import Key, Params, Tree

# Operand, parameters, the direction's number [] int32.
Draw = Callable[[Tree, Params, jax.Array], Tree]


@dataclass(frozen=True)
class Drawn:
    """Directions by ``fold_in(key, number)``; the operand holds ``key``, a key's data.

    Every minimum has the same keys: the same normal numbers, scaled to its own filters. So minima
    of one architecture are compared on common random numbers.
    """

    geometry: Geometry
    normalise: Normalise
    biases: Biases
    axes: tuple[tuple[str, Any], ...]
    implementation: Any = None

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
    key: Key,
    *,
    geometry: Geometry,
    normalise: Normalise,
    biases: Biases,
    axes: Axes | None,
) -> tuple[Drawn, dict[str, Any]]:
    """The draw of a key, and the operand that it reads."""
    data, implementation = key_data(key)
    rules = tuple(sorted((axes or {}).items()))
    return Drawn(geometry, normalise, biases, rules, implementation), {"key": data}


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
