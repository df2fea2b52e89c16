"""Which entries of a parameter are one filter, and directions normalised by them (Li et al. 2018).

A *filter* is all parameters that lead into one output unit: ``kernel[..., j]`` in Flax,
``weight[j]`` in PyTorch and Equinox. The rule is a mapping from a parameter's path, as
``jax.tree_util.keystr`` writes it, to the axis (or axes) that count its filters; None says that the
parameter has none, as biases and the scales of norms, and goes by the rule for biases.

Only floating leaves move. As one vector they stand end to end; leaves of other dtypes (counters)
have no entries in it, and are zero in a tree of directions.
"""

import re
import warnings
from collections.abc import Callable, Mapping
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
# What has no filters, whatever its axes: Equinox's convolutions have biases [out, 1, 1], attention
# [heads, d], Haiku's norms factors [1, 1, 1, c].
WITHOUT_FILTERS = re.compile(r"(^|[._])(bias|scale|offset)(_|$)")
# Names of PyTorch (``conv1.weight``, ``weight_ih_l0``), whose filters are on the first axis.
FIRST_AXIS = re.compile(r"(^|[._])weight(_|$)")
MOMENTS = re.compile(r"(^|[.])running_(mean|var)$")


def filter_axes(params: Params, *, axes: Axes | None = None) -> dict[str, Any]:
    """The axis of every parameter that counts its filters.

    Without a rule of its own a parameter of two or more axes has its filters on the last one (Flax
    kernels ``[..., in, out]``, depthwise ones ``[y, x, 1, out]`` included), or on the first where
    it belongs to a layer of ``equinox.nn``; one of fewer axes has none, and so a bias or a norm's
    factor (by its name) of any number. What that is wrong for needs a rule: PyTorch's ``weight`` 0
    (``first_axis``), an embedding ``[words, d]`` 0 for a filter a word, a DenseGeneral kernel
    ``[in, heads, d]`` (1, 2) for a filter a unit of a head.

    Args:
      params: tree of real arrays.
      axes: path to axis, axes or None, for the parameters that the rule above is wrong for.

    Returns:
      Path to non-negative axis, tuple of axes, or None, for every leaf, in the order of
      ``jax.tree.leaves``.

    Raises:
      ValueError: a leaf is no array of numbers or complex, a path is none of the tree's, or an axis
        is none of its parameter's.
    """
    leaves = _leaves(params)
    given = dict(axes or {})
    unknown = [path for path in given if path not in leaves]
    if unknown:
        raise ValueError(f"axes: no parameter at {unknown[0]}; there are {', '.join(leaves)}")
    equinox = _inside(params, lambda node: _defined_in(node, "equinox.nn"))
    norms = _inside(
        params, lambda node: _defined_in(node, "equinox.nn") and _class(node).endswith("Norm")
    )
    found: dict[str, Any] = {}
    for path, (name, leaf) in leaves.items():
        ndim = len(np.shape(leaf))
        usual: int | None = 0 if path in equinox else -1
        if ndim < 2 or path in norms or WITHOUT_FILTERS.search(name):
            usual = None
        found[path] = _checked(path, given.get(path, usual), ndim)
    return found


def first_axis(params: Params) -> dict[str, Any]:
    """``axes`` for PyTorch's parameters, whose filters are on axis 0: ``[out, in, ...]``.

    A transposed convolution's ``[in, out, ...]`` needs a rule of its own, 1.

    Args:
      params: tree of arrays, such as a state dict.

    Returns:
      Path to 0 for parameters of two or more axes that are no biases, None for the others.
    """
    return {
        path: 0 if len(np.shape(leaf)) >= 2 and not WITHOUT_FILTERS.search(name) else None
        for path, (name, leaf) in _leaves(params).items()
    }


def _running_moments(params: Params) -> set[str]:
    """Paths of batch norm's running moments, which no direction moves: they are no parameters."""
    named = {
        path
        for path, (name, leaf) in _leaves(params).items()
        if is_float(leaf) and ("['batch_stats']" in path or MOMENTS.search(name))
    }
    return named | _inside(
        params,
        lambda node: (
            (_defined_in(node, "flax.nnx") and _class(node) == "BatchStat")
            or (_defined_in(node, "equinox.nn") and _class(node) == "StateIndex")
        ),
    )


def filters_of(params: Params, *, axes: Axes | None = None) -> list[tuple[Any, Any, bool]]:
    """Every leaf, the axes that count its filters (or None), and whether directions move it."""
    rules, moments = filter_axes(params, axes=axes), _running_moments(params)
    leaves = jax.tree.leaves(params)
    return [
        (leaf, rule, is_float(leaf) and path not in moments)
        for leaf, (path, rule) in zip(leaves, rules.items(), strict=True)
    ]


def warn_of_leaves(
    params: Params, *, axes: Axes | None = None, normalise: str = "filter", stacklevel: int = 2
) -> None:
    """Warn of leaves that stay as they are, and of weights whose filters seem to be read wrongly.

    Args:
      params: tree of real arrays.
      axes: as in ``filter_axes``.
      normalise: only of "filter" does a layout matter.
      stacklevel: of the warnings, as seen from the caller.

    Raises:
      ValueError: as ``filter_axes``.
    """
    leaves, moments = _leaves(params), _running_moments(params)
    fixed = [
        f"{path} ({'running moments' if path in moments else jnp.result_type(leaf)})"
        for path, (_, leaf) in leaves.items()
        if path in moments or not is_float(leaf)
    ]
    if fixed:
        warnings.warn(
            f"{len(fixed)} leaves stay as they are, being no parameters: {_few(fixed)}",
            stacklevel=stacklevel + 1,
        )
    if normalise != "filter":
        return
    equinox = _inside(params, lambda node: _defined_in(node, "equinox.nn"))
    odd = [
        f"{path} {list(np.shape(leaf))}"
        for path, (name, leaf) in leaves.items()
        if len(np.shape(leaf)) >= 2
        and FIRST_AXIS.search(name)
        and path not in (axes or {})
        and path not in equinox
    ]
    if odd:
        warnings.warn(
            f"{len(odd)} leaves are named as PyTorch names its weights, whose filters are on the "
            f"first axis, and are read with their filters on the last: {_few(odd)}; give "
            "axes=first_axis(params), or axes={path: axis} for what is right here",
            stacklevel=stacklevel + 1,
        )


def zero_norm_filters(params: Params, *, axes: Axes | None = None) -> list[str]:
    """Filters whose parameters are all zero: a filter-normalised direction does not move them.

    Args:
      params: tree of concrete arrays.
      axes: as in ``filter_axes``.

    Returns:
      Names such as ``['conv']['kernel'][..., 3]``; empty where there is none.
    """
    names = []
    paths = filter_axes(params, axes=axes)
    for path, (leaf, rule, moves) in zip(paths, filters_of(params, axes=axes), strict=True):
        if rule is None or not moves:
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
    direction. Counters and running moments never move; warns as ``warn_of_leaves``.

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
    warn_of_leaves(params, axes=axes, normalise=normalise)
    return scale_direction(direction, params, normalise, biases, axes, jnp)


def warn_of_moments(params: Params, *, stacklevel: int = 2) -> None:
    """Warn of running moments among parameters that a loss is differentiated by."""
    if names := sorted(_running_moments(params)):
        warnings.warn(
            f"{len(names)} leaves are running moments, by which the loss is differentiated as by "
            f"parameters: {_few(names)}; give the parameters alone and a loss that closes over the "
            "moments",
            stacklevel=stacklevel + 1,
        )


def size(tree: Tree) -> int:
    """n, the number of entries of the floating leaves; raises ValueError where there is none."""
    leaves = [leaf for _, leaf in _leaves(tree).values()]
    n = sum(int(np.prod(jnp.shape(leaf))) for leaf in leaves if is_float(leaf))
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


def check_options(normalise: str, biases: str) -> None:
    """Raises: ValueError where an option is none of its values."""
    if normalise not in ("filter", "layer", "none"):
        raise ValueError(f"normalise {normalise!r}: expected filter, layer or none")
    if biases not in ("zero", "weights", "random"):
        raise ValueError(f"biases {biases!r}: expected zero, weights or random")


def check_alike(first: Tree, second: Tree, *, names: tuple[str, str]) -> None:
    """Raise ValueError, naming the first leaf that differs, unless two trees are of one shape."""
    left, right = (
        {path: np.shape(leaf) for path, (_, leaf) in _leaves(tree).items()}
        for tree in (first, second)
    )
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
      ValueError: the leaf is complex, a random key, or no array of numbers (a function, say, in a
        network that is a tree).
    """
    _check_leaf("a leaf of the parameters", leaf)
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating))


def _check_leaf(where: str, leaf: Any) -> None:
    """Raise ValueError, saying what to do, unless a leaf is an array of real numbers."""
    try:
        dtype = jnp.result_type(leaf)
    except (TypeError, ValueError):
        raise ValueError(
            f"{where} is {leaf!r}; expected arrays only (of an Equinox network, the first half of "
            "eqx.partition(network, eqx.is_inexact_array); of a PyTorch tensor, "
            "tensor.detach().numpy())"
        ) from None
    if jnp.issubdtype(dtype, jax.dtypes.extended):
        raise ValueError(
            f"{where} is a random key ({dtype}); expected parameters alone (of an NNX module, "
            "nnx.split(module, nnx.Param, ...), put together again by nnx.merge in the loss)"
        )
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise ValueError(
            f"{where} is {dtype}; expected real parameters: give the real and the imaginary part "
            "as two arrays, and the loss their jax.lax.complex(real, imaginary)"
        )


def _leaves(tree: Tree) -> dict[str, tuple[str, Any]]:
    """Path to name and leaf, in order; raises ValueError where a leaf is no real array."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        where = jax.tree_util.keystr(path)
        _check_leaf(where or "the only leaf", leaf)
        words = [getattr(entry, "key", getattr(entry, "name", None)) for entry in path]
        names = [word for word in words if isinstance(word, str) and word not in ("value",)]
        found[where] = (names[-1] if names else "", leaf)
    return found


def _inside(tree: Tree, chosen: Callable[[Any], bool]) -> set[str]:
    """Paths of the leaves of all nodes that are chosen."""
    nodes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=chosen)
    return {
        jax.tree_util.keystr((*path, *below))
        for path, node in nodes
        if chosen(node)
        for below, _ in jax.tree_util.tree_leaves_with_path(node)
    }


def _defined_in(node: Any, package: str) -> bool:
    return f"{type(node).__module__}.".startswith(f"{package}.")


def _class(node: Any) -> str:
    return type(node).__name__


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


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


def scale_direction(
    direction: Tree,
    params: Params,
    normalise: Normalise,
    biases: Biases,
    axes: Axes | None,
    numpy: ModuleType,
) -> Tree:
    """``normalise_direction`` by jax.numpy, or by NumPy, which has nothing to compile."""
    scaled = [
        _normalised(d, w, rule, normalise, biases, numpy)
        if moves
        else numpy.zeros(jnp.shape(w), jnp.result_type(w))
        for d, (w, rule, moves) in zip(
            jax.tree.leaves(direction), filters_of(params, axes=axes), strict=True
        )
    ]
    return jax.tree.unflatten(jax.tree.structure(params), scaled)


def _normalised(
    d: Array, w: Array, rule: Any, normalise: str, biases: str, numpy: ModuleType
) -> Array:
    """One parameter's direction, by jax.numpy or by NumPy."""
    dtype = jnp.result_type(w)
    if rule is None and biases == "zero":
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
