"""Which entries of a parameter are one filter, and directions normalised by them (Li et al. 2018).

A *filter* is all weights that lead into one output unit: ``kernel[..., j]`` in Flax, ``weight[j]``
in PyTorch. The rule is a mapping from a parameter's path, as ``jax.tree_util.keystr`` writes it, to
the axis (or axes) that count its filters; None says that the parameter has none, as biases and the
scales of norms, and goes by the rule for biases.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from densejax.typing import Array, Params, Tree

Axes: TypeAlias = Mapping[str, int | tuple[int, ...] | None]
Normalise = Literal["filter", "layer", "none"]
Biases = Literal["zero", "weights", "random"]

# Li et al.'s released code divides by |d| + 1e-10.
TINY = 1e-10


def filter_axes(params: Params, *, axes: Axes | None = None) -> dict[str, Any]:
    """The axis of every parameter that counts its filters.

    Without a rule of its own a parameter of two or more axes has its filters on the last one (Flax
    kernels ``[..., in, out]``, depthwise ones ``[y, x, 1, out]`` included) and one of fewer axes
    has none. What the last axis is wrong for needs a rule: PyTorch weights 0 (``first_axis``), an
    embedding ``[words, d]`` 0 for a filter a word, a DenseGeneral kernel ``[in, heads, d]`` (1, 2)
    for a filter a unit of a head.

    Args:
      params: tree of arrays.
      axes: path to axis, axes or None, for the parameters that the rule above is wrong for.

    Returns:
      Path to non-negative axis, tuple of axes, or None, for every leaf, in the order of
      ``jax.tree.leaves``.

    Raises:
      ValueError: a path is none of the tree's, or an axis is none of its parameter's.
    """
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in _with_paths(params)}
    given = dict(axes or {})
    unknown = [path for path in given if path not in leaves]
    if unknown:
        raise ValueError(f"axes: no parameter at {unknown[0]}; there are {', '.join(leaves)}")
    found: dict[str, Any] = {}
    for path, leaf in leaves.items():
        ndim = np.ndim(leaf) if not hasattr(leaf, "ndim") else leaf.ndim
        rule = given.get(path, -1 if ndim >= 2 else None)
        found[path] = _checked(path, rule, ndim)
    return found


def first_axis(params: Params) -> dict[str, Any]:
    """``axes`` for PyTorch weights, whose filters are on axis 0: ``[out, in, ...]``.

    Args:
      params: tree of arrays, such as a state dict.

    Returns:
      Path to 0 for parameters of two or more axes, None for the others.
    """
    paths = [(jax.tree_util.keystr(path), leaf) for path, leaf in _with_paths(params)]
    return {path: 0 if len(np.shape(leaf)) >= 2 else None for path, leaf in paths}


def zero_norm_filters(params: Params, *, axes: Axes | None = None) -> list[str]:
    """Filters whose weights are all zero: a filter-normalised direction does not move them.

    Args:
      params: tree of concrete arrays.
      axes: as in ``filter_axes``.

    Returns:
      Names such as ``['conv']['kernel'][..., 3]``; empty where there is none.
    """
    rules = filter_axes(params, axes=axes)
    names = []
    for (path, rule), leaf in zip(rules.items(), jax.tree.leaves(params), strict=True):
        if rule is None or not is_float(leaf):
            continue
        array = np.asarray(leaf)
        kept = _tuple(rule)
        others = tuple(axis for axis in range(array.ndim) if axis not in kept)
        for place in np.argwhere(~np.any(array != 0, axis=others)):
            index = [":"] * array.ndim
            for axis, at in zip(sorted(kept), place, strict=True):
                index[axis] = str(at)
            names.append(f"{path}[{', '.join(index)}]")
    return names


def normalise_direction(
    direction: Tree,
    params: Params,
    *,
    normalise: Normalise = "filter",
    biases: Biases = "zero",
    axes: Axes | None = None,
) -> Tree:
    """Scale a direction to the parameters: ``d * |w| / (|d| + 1e-10)``, filter by filter.

    Source: Li et al. 2018, section 4, and its released code. Where a filter is all zeros, so is its
    direction. Parameters that are not floating-point (counters) never move.

    Args:
      direction: tree like ``params``.
      params: tree of floating arrays, the minimum that one goes away from.
      normalise: each filter to the norm of the parameters' own, each parameter as a whole
        ("layer"), or nothing.
      biases: parameters without filters (biases, scales of norms) stay ("zero"), move along
        themselves ("weights", what the released code does unless told to ignore them), or are
        treated as one filter each ("random").
      axes: as in ``filter_axes``.

    Returns:
      Tree like ``params``, in its dtypes.

    Raises:
      ValueError: an unknown option, the trees differ, or ``axes`` does not fit.
    """
    check_options(normalise, biases)
    check_alike(params, direction, names=("the parameters", "the direction"))
    return _normalise(direction, params, normalise, biases, axes, jnp)


def normalise_on_host(
    direction: Tree, params: Params, *, normalise: Normalise, biases: Biases, axes: Axes | None
) -> Tree:
    """``normalise_direction`` of concrete arrays by NumPy, which has nothing to compile."""
    direction, params = (jax.tree.map(np.asarray, tree) for tree in (direction, params))
    return _normalise(direction, params, normalise, biases, axes, np)


def check_options(normalise: str, biases: str) -> None:
    """Raises: ValueError where an option is none of its values."""
    if normalise not in ("filter", "layer", "none"):
        raise ValueError(f"normalise {normalise!r}: expected filter, layer or none")
    if biases not in ("zero", "weights", "random"):
        raise ValueError(f"biases {biases!r}: expected zero, weights or random")


def check_alike(first: Tree, second: Tree, *, names: tuple[str, str]) -> None:
    """Raise ValueError, naming the first leaf that differs, unless two trees are of one shape."""
    left = {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in _with_paths(first)}
    right = {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in _with_paths(second)}
    for path, shape in left.items():
        if path not in right:
            raise ValueError(f"{path} is in {names[0]} and not in {names[1]}")
        if shape != right[path]:
            raise ValueError(
                f"{path} is {list(shape)} in {names[0]}, {list(right[path])} in {names[1]}"
            )
    for path in right:
        if path not in left:
            raise ValueError(f"{path} is in {names[1]} and not in {names[0]}")
    structures: list[Any] = [jax.tree.structure(tree) for tree in (first, second)]
    if structures[0] != structures[1]:
        raise ValueError(f"{names[0]} are {structures[0]}, {names[1]} {structures[1]}")


def is_float(leaf: Any) -> bool:
    """Whether a leaf is of a real floating dtype, and so has a direction.

    Raises:
      ValueError: the leaf is no array of numbers (a function, say, in a network that is a tree).
    """
    try:
        dtype = jnp.result_type(leaf)
    except TypeError:
        raise ValueError(
            f"a leaf of the parameters is {leaf!r}; expected arrays only (of an Equinox network, "
            "the first half of eqx.partition(network, eqx.is_inexact_array))"
        ) from None
    return bool(jnp.issubdtype(dtype, jnp.floating))


def _with_paths(tree: Tree) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree)


def _tuple(rule: int | tuple[int, ...]) -> tuple[int, ...]:
    return rule if isinstance(rule, tuple) else (rule,)


def _checked(path: str, rule: Any, ndim: int) -> int | tuple[int, ...] | None:
    if rule is None:
        return None
    for axis in _tuple(rule):
        if not -ndim <= axis < ndim:
            raise ValueError(f"axes: {path} has {ndim} axes, found axis {axis}")
    whole = tuple(axis % ndim for axis in _tuple(rule))
    return whole if isinstance(rule, tuple) else whole[0]


def _normalise(
    direction: Tree,
    params: Params,
    normalise: str,
    biases: str,
    axes: Axes | None,
    numpy: ModuleType,
) -> Tree:
    rules = filter_axes(params, axes=axes)
    leaves, structure = jax.tree.flatten(params)
    scaled = [
        _normalised(d, w, rule, normalise, biases, numpy)
        for d, w, rule in zip(jax.tree.leaves(direction), leaves, rules.values(), strict=True)
    ]
    return jax.tree.unflatten(structure, scaled)


def _normalised(
    d: Array, w: Array, rule: Any, normalise: str, biases: str, numpy: ModuleType
) -> Array:
    """One parameter's direction, by jax.numpy or by NumPy."""
    dtype = jnp.result_type(w)
    if not is_float(w) or (rule is None and biases == "zero"):
        return numpy.zeros(jnp.shape(w), dtype)
    if rule is None and biases == "weights":
        return numpy.asarray(w)
    wide = jnp.promote_types(dtype, jnp.float32)
    d, w = numpy.asarray(d, wide), numpy.asarray(w, wide)
    if normalise == "none":
        return d.astype(dtype)
    kept = () if rule is None or normalise == "layer" else _tuple(rule)
    others = tuple(axis for axis in range(w.ndim) if axis not in kept)
    length = [numpy.sqrt(numpy.sum(a * a, axis=others, keepdims=True)) for a in (w, d)]
    return (d * (length[0] / (length[1] + TINY))).astype(dtype)
