"""Algebra on pytrees of arrays: what optimisers, directions and curvature do to parameters.

A tree here is any pytree whose leaves are floating-point arrays. Numbers that come out of a whole
tree are accumulated in float32 at least (float64 leaves keep float64), whatever the leaves' dtype,
because a sum over millions of bfloat16 entries stops growing long before it is complete. Products
are element by element and so never see a matrix unit's reduced precision (TF32). All functions are
pure and can be compiled, mapped and differentiated.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from densejax.typing import Array, Key, Tree


def dot(first: Tree, second: Tree) -> jax.Array:
    """Inner product of two trees, the sum over all entries of ``first * second``.

    Args:
      first: tree of real arrays of any shapes.
      second: tree of the same structure and shapes.

    Returns:
      Scalar []; float32, or float64 where a leaf is float64. 0 for a tree without leaves.

    Raises:
      ValueError: the structures or the shapes of two leaves differ.
    """
    _check_alike(first, second)
    parts = [
        jnp.sum(_wide(a) * _wide(b))
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    ]
    return sum(parts, jnp.zeros((), jnp.float32))


def norm(tree: Tree) -> jax.Array:
    """Euclidean norm of all entries of a tree; its gradient at a tree of zeros is zero.

    The entries are scaled by their largest magnitude first, so that neither a tree of tiny entries
    (differences between neighbouring minima) nor one of huge entries leaves float32's range.

    Args:
      tree: tree of real arrays of any shapes.

    Returns:
      Scalar [], at least 0; dtype as in ``dot``. Not-a-number where an entry is.
    """
    leaves = [_wide(leaf) for leaf in jax.tree.leaves(tree) if jnp.size(leaf)]
    if not leaves:
        return jnp.zeros((), jnp.float32)
    largest = jnp.stack([jnp.max(jnp.abs(leaf)).astype(jnp.float32) for leaf in leaves]).max()
    # The scale cancels in the result, so it carries no gradient; where it is not a positive finite
    # number nothing is scaled, and zeros, infinities and not-a-numbers pass through.
    usable = jnp.isfinite(largest) & (largest > 0)
    scale = jax.lax.stop_gradient(jnp.where(usable, largest, 1))
    scaled = [leaf / scale for leaf in leaves]
    square = sum([jnp.sum(leaf * leaf) for leaf in scaled], jnp.zeros((), jnp.float32))
    is_zero = square == 0
    # A square root under ``where`` still has an infinite derivative at zero unless its argument is
    # replaced as well.
    return jnp.where(is_zero, 0, scale * jnp.sqrt(jnp.where(is_zero, 1, square)))


def axpy(scalar: Array | float, tree: Tree, base: Tree) -> Tree:
    """``scalar * tree + base``, leaf by leaf: a step from ``base`` along ``tree``.

    Args:
      scalar: real scalar [], such as a step length.
      tree: tree of real arrays.
      base: tree of the same structure and shapes.

    Returns:
      Tree like ``base``, in the dtypes of ``base``; computed in float32 at least and rounded once.

    Raises:
      ValueError: the structures or the shapes of two leaves differ, or ``scalar`` has axes.
    """
    if jnp.shape(scalar) != ():
        raise ValueError(f"axpy: expected a scalar, found shape {list(jnp.shape(scalar))}")
    _check_alike(tree, base)

    def one(direction: Array, origin: Array) -> jax.Array:
        moved = jnp.asarray(scalar, jnp.float32) * _wide(direction) + _wide(origin)
        return moved.astype(jnp.result_type(origin))

    return jax.tree.map(one, tree, base)


def random_like(key: Key, tree: Tree) -> Tree:
    """Independent standard normal entries in the shape of a tree.

    Leaf number i draws from ``fold_in(key, i)``, i counting in the order of ``jax.tree.leaves``, so
    a leaf's draw does not depend on the shapes of the others.

    Args:
      key: a jax key.
      tree: tree of floating-point arrays (or ``jax.ShapeDtypeStruct``); only shapes and dtypes
        are read.

    Returns:
      Tree of the same structure, shapes and dtypes.

    Raises:
      ValueError: a leaf is not of a real floating-point dtype.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    drawn = []
    for index, (path, leaf) in enumerate(paths):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            name = jax.tree_util.keystr(path)
            raise ValueError(f"random_like: leaf {name} is {dtype}, expected a floating dtype")
        drawn.append(jax.random.normal(jax.random.fold_in(key, index), jnp.shape(leaf), dtype))
    return jax.tree.unflatten(structure, drawn)


def count(tree: Tree) -> int:
    """Number of entries of all leaves of a tree, the number of parameters of a network.

    Args:
      tree: tree of arrays or ``jax.ShapeDtypeStruct``.

    Returns:
      A Python integer (shapes are known when a program is compiled).
    """
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree))


def all_finite(tree: Tree) -> jax.Array:
    """Whether no entry of a tree is infinite or not-a-number.

    Args:
      tree: tree of arrays of any dtypes; integers and booleans are always finite.

    Returns:
      Scalar [] bool, an array so that it can decide inside a compiled program. True without leaves.
    """
    parts = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(parts)) if parts else jnp.asarray(True)


def _wide(leaf: Array) -> jax.Array:
    """A leaf in float32, or in its own dtype where that is wider."""
    return jnp.asarray(leaf, jnp.promote_types(jnp.result_type(leaf), jnp.float32))


def _check_alike(first: Tree, second: Tree) -> None:
    """Raise ValueError unless two trees have one structure and equal shapes, leaf by leaf."""
    structures: list[Any] = [jax.tree.structure(first), jax.tree.structure(second)]
    if structures[0] != structures[1]:
        raise ValueError(f"trees differ in structure: {structures[0]} and {structures[1]}")
    pairs = zip(jax.tree_util.tree_leaves_with_path(first), jax.tree.leaves(second), strict=True)
    for (path, a), b in pairs:
        if jnp.shape(a) != jnp.shape(b):
            name = jax.tree_util.keystr(path) or "the only leaf"
            raise ValueError(
                f"trees differ in shape at {name}: {list(jnp.shape(a))} and {list(jnp.shape(b))}"
            )
