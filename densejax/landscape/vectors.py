"""Parameters as one vector: the floating leaves of a tree end to end; the others stay as they are.

Leaves of other dtypes (counters) never move, as in ``directions``: a vector has no entries for
them, and as a tree of directions they are zero.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densejax.landscape.filters import is_float
from densejax.typing import Array, Params, Tree


def size(tree: Tree) -> int:
    """n, the number of entries of the floating leaves; raises ValueError where there is none."""
    n = sum(int(np.prod(jnp.shape(leaf))) for leaf in jax.tree.leaves(tree) if is_float(leaf))
    if not n:
        raise ValueError("the parameters have no floating-point entry")
    return n


def flat(tree: Tree) -> jax.Array:
    """All floating entries of a tree, leaf after leaf, as one vector [n], float32 at least."""
    size(tree)
    leaves = [jnp.ravel(jnp.asarray(leaf)) for leaf in jax.tree.leaves(tree) if is_float(leaf)]
    dtype = jnp.result_type(jnp.float32, *leaves)
    return jnp.concatenate([leaf.astype(dtype) for leaf in leaves])


def unflat(vector: Array, like: Tree) -> Tree:
    """A vector [n] as a tree: floating leaves in the vector's dtype, the others zero."""
    if vector.shape != (size(like),):
        raise ValueError(f"a vector of shape {vector.shape} for {size(like)} floating entries")
    leaves, structure = jax.tree.flatten(like)
    made: list[Array] = []
    start = 0
    for leaf in leaves:
        shape = jnp.shape(leaf)
        if not is_float(leaf):
            made.append(jnp.zeros(shape, jnp.result_type(leaf)))
            continue
        end = start + int(np.prod(shape))
        made.append(vector[start:end].reshape(shape))
        start = end
    return jax.tree.unflatten(structure, made)


def split(tree: Tree) -> tuple[list[Any], Callable[[list[Any]], Tree]]:
    """The floating leaves, to differentiate by, and what makes a tree of such a list again."""
    leaves, structure = jax.tree.flatten(tree)
    moves = [is_float(leaf) for leaf in leaves]
    moving = [leaf for leaf, does in zip(leaves, moves, strict=True) if does]

    def join(moving: list[Any]) -> Params:
        remaining = iter(moving)
        both = zip(leaves, moves, strict=True)
        return jax.tree.unflatten(
            structure, [next(remaining) if does else leaf for leaf, does in both]
        )

    return moving, join
