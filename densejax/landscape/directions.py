"""Lines and planes through the space of parameters, random or through points that are known.

Parameters are any pytree of arrays: a dict of Flax, Haiku or PyTorch parameters, an Equinox network
without its functions. A random direction is a function of its key, so it is drawn again where it is
needed and never stored. What depends on few numbers of a whole tree (angles, coordinates, principal
components) is computed on the host in float64.
"""

import dataclasses
import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densejax.landscape.filters import (
    Axes,
    Biases,
    Normalise,
    check_alike,
    check_options,
    filter_axes,
    first_axis,
    is_float,
    normalise_direction,
    scale_direction,
    unflat,
    warn_of_leaves,
    zero_norm_filters,
)
from densejax.typing import Array, Key, Params, Tree

__all__ = [
    "Line",
    "Plane",
    "filter_axes",
    "first_axis",
    "line_through",
    "normalise_direction",
    "pca_plane",
    "plane_through",
    "random_direction",
    "random_line",
    "random_plane",
    "zero_norm_filters",
]

# Two directions that enclose less than this make a plane that shows little more than a line.
PARALLEL_DEGREES = 10.0


def random_direction(
    key: Key,
    params: Params,
    *,
    normalise: Normalise = "filter",
    biases: Biases = "zero",
    axes: Axes | None = None,
) -> Tree:
    """A Gaussian direction scaled to the parameters (``normalise_direction``).

    Pure: can be compiled and mapped over keys. Warns as ``random_line`` of leaves that stay and of
    PyTorch's weights without ``axes``.

    Args:
      key: a jax key.
      params: tree of arrays, the point that one goes away from.
      normalise: "filter", "layer" or "none".
      biases: "zero", "weights" or "random": what parameters without filters do.
      axes: as in ``filter_axes``.

    Returns:
      Tree like ``params``.

    Raises:
      ValueError: an unknown option, or ``axes`` does not fit.
    """
    warn_of_leaves(params, axes=axes, normalise=normalise)
    return draw_direction(key, params, normalise, biases, axes)


def draw_direction(
    key: Key, params: Params, normalise: Normalise, biases: Biases, axes: Axes | None
) -> Tree:
    """``random_direction`` without its warnings."""
    check_options(normalise, biases)
    direction = _like(jax.random.normal(key, *_moving(params)), params)
    return scale_direction(direction, params, normalise, biases, axes, jnp)


@dataclasses.dataclass(frozen=True)
class Line:
    """A centre and a direction, trees of the same structure; a pytree itself."""

    centre: Tree
    direction: Tree

    def at(self, t: Array | float) -> Params:
        """Parameters at ``centre + t * direction``, in the centre's dtypes; t is a scalar []."""
        return _combine(self.centre, [(t, self.direction)])


@dataclasses.dataclass(frozen=True)
class Plane:
    """A centre and two directions, trees of the same structure; a pytree itself."""

    centre: Tree
    first: Tree
    second: Tree

    def at(self, x: Array | float, y: Array | float) -> Params:
        """Parameters at ``centre + x * first + y * second``; x and y are scalars []."""
        return _combine(self.centre, [(x, self.first), (y, self.second)])

    def angle(self) -> float:
        """Degrees between the directions, 0 (parallel) to 180 (opposite).

        Raises:
          ValueError: a direction is zero.
        """
        gram = _gram([_flat(self.first), _flat(self.second)])
        for name, square in zip(("first", "second"), np.diag(gram), strict=True):
            if not square > 0:
                raise ValueError(f"the plane's {name} direction is zero: it has no angle")
        cosine = gram[0, 1] / math.sqrt(gram[0, 0]) / math.sqrt(gram[1, 1])
        return math.degrees(math.acos(min(1.0, max(-1.0, cosine))))

    def coordinates(self, params: Params) -> tuple[np.ndarray, float]:
        """The nearest point of the plane, by least squares.

        Cosines with the directions are its coordinates only where the directions are orthogonal.

        Args:
          params: tree like ``centre``.

        Returns:
          [2] float64 (x, y), and the distance from that point to ``params``, at least 0.

        Raises:
          ValueError: the trees differ, or the directions are parallel.
        """
        check_alike(self.centre, params, names=("the plane's centre", "the parameters"))
        first, second = _flat(self.first), _flat(self.second)
        offset = [w - c for w, c in zip(_flat(params), _flat(self.centre), strict=True)]
        gram = _gram([first, second, offset])
        lengths = np.sqrt(np.diag(gram)[:2])
        scaled = gram[:2, :2] / np.outer(lengths, lengths) if lengths.all() else np.zeros((2, 2))
        if not abs(scaled[0, 1]) < 1 - 1e-12 or not lengths.all():
            raise ValueError("the plane's directions are parallel or zero: no coordinates")
        solved = np.linalg.solve(scaled, gram[:2, 2] / lengths) / lengths
        left = [
            o - solved[0] * a - solved[1] * b for o, a, b in zip(offset, first, second, strict=True)
        ]
        return solved, math.sqrt(sum(float(np.vdot(part, part)) for part in left))


jax.tree_util.register_dataclass(Line, ["centre", "direction"], [])
jax.tree_util.register_dataclass(Plane, ["centre", "first", "second"], [])


def random_line(
    key: Key,
    params: Params,
    *,
    normalise: Normalise = "filter",
    biases: Biases = "zero",
    axes: Axes | None = None,
) -> Line:
    """A line from ``params`` along a random direction; arguments as in ``random_direction``.

    Warns of filters that are zero, where the direction is zero; of leaves that stay as they are
    (integers, running moments of batch norm); and of weights that are named as PyTorch's are and
    have no rule in ``axes``.
    """
    _warn(params, normalise, axes)
    (direction,) = _drawn(key, 1, params, normalise, biases, axes)
    return Line(params, direction)


def random_plane(
    key: Key,
    params: Params,
    *,
    normalise: Normalise = "filter",
    biases: Biases = "zero",
    axes: Axes | None = None,
) -> Plane:
    """A plane from ``params`` along two independent random directions.

    They are not made orthogonal, as Li et al. 2018 do not: in many dimensions they nearly are.

    Args:
      key: a jax key.
      params: tree of arrays.
      normalise: as in ``random_direction``.
      biases: as in ``random_direction``.
      axes: as in ``filter_axes``.

    Returns:
      The plane. Warns as ``random_line``, and where the directions enclose less than 10 degrees.
    """
    _warn(params, normalise, axes)
    first, second = _drawn(key, 2, params, normalise, biases, axes)
    return _warn_if_parallel(Plane(params, first, second))


def line_through(first: Params, second: Params) -> Line:
    """The line with ``first`` at t = 0 and ``second`` at t = 1.

    Raises:
      ValueError: the trees differ (the first differing leaf is named), or are equal.
    """
    check_alike(first, second, names=("the first", "the second"))
    offset = _difference(second, first)
    if not any(np.any(part) for part in offset):
        raise ValueError("the two points are equal: no line goes through them alone")
    return Line(first, _tree_of(offset, first))


def plane_through(
    origin: Params, first: Params, second: Params, *, orthogonal: bool = True
) -> Plane:
    """The plane through three points; ``coordinates`` tells where each of them is.

    Args:
      origin: tree of arrays, at (0, 0).
      first: tree of the same structure, on the x axis.
      second: another.
      orthogonal: two orthogonal directions of length 1 (Garipov et al. 2018), so that the picture
        keeps distances: the points are at (0, 0), (a, 0) and (b, c), with a, c > 0. Otherwise
        the directions are the differences: the points are at (0, 0), (1, 0) and (0, 1).

    Returns:
      The plane. Warns where the differences enclose less than 10 degrees.

    Raises:
      ValueError: the trees differ (the first differing leaf is named), or the points are on one
        line.
    """
    check_alike(origin, first, names=("the origin", "the first point"))
    check_alike(origin, second, names=("the origin", "the second point"))
    a, b = _difference(first, origin), _difference(second, origin)
    gram = _gram([a, b])
    if not gram[0, 0] > 0 or not gram[1, 1] > 0:
        raise ValueError("two of the three points are equal: no one plane goes through them")
    along = gram[0, 1] / gram[0, 0]
    off = [y - along * x for x, y in zip(a, b, strict=True)]
    height = math.sqrt(_gram([off])[0, 0])
    if height < 1e-6 * math.sqrt(gram[1, 1]):
        raise ValueError("the three points are on one line: no one plane goes through them")
    plane = Plane(origin, _tree_of(a, origin), _tree_of(b, origin))
    _warn_if_parallel(plane)
    if not orthogonal:
        return plane
    length = math.sqrt(gram[0, 0])
    units = [x / length for x in a], [y / height for y in off]
    return Plane(origin, _tree_of(units[0], origin), _tree_of(units[1], origin))


def pca_plane(
    iterates: Tree, centre: Params, *, mean_centred: bool = True
) -> tuple[Plane, np.ndarray]:
    """The plane through ``centre`` along the two principal components of a trajectory.

    Source: Li et al. 2018, section 7: the rows are ``w_t - centre`` (there the last iterate), not
    filter-normalised; scikit-learn's PCA subtracts their mean. Exact: from the eigenvectors of the
    [t, t] Gram matrix of the rows, in float64.

    Args:
      iterates: tree like ``centre`` with a leading axis, [t, ...], at least 3 of them.
      centre: tree of arrays.
      mean_centred: subtract the rows' mean, as the source. Otherwise the components are those
        about ``centre``: of all planes through it, the one that is nearest to the iterates.

    Returns:
      The plane, its directions of length 1, so that coordinates are distances, each pointing to
      the side of the first iterate; and [2] float64, the shares of the variance (mean-centred) or
      of the squared distances that they explain.

    Raises:
      ValueError: the trees differ, or the iterates are on one line.
    """
    count = {len(leaf) for leaf in jax.tree.leaves(iterates) if np.ndim(leaf)}
    if len(count) != 1 or min(count) < 3:
        raise ValueError(f"expected at least 3 iterates on the leading axis, found {sorted(count)}")
    one = jax.tree.map(lambda leaf: np.zeros(np.shape(leaf)[1:]), iterates)
    check_alike(centre, one, names=("the centre", "the iterates"))
    t = count.pop()
    rows = [
        np.asarray(w, np.float64).reshape(t, -1) - np.asarray(c, np.float64).reshape(1, -1)
        for w, c in zip(jax.tree.leaves(iterates), jax.tree.leaves(centre), strict=True)
        if is_float(c)
    ]
    offsets = rows
    if mean_centred:
        offsets = [part - part.mean(axis=0) for part in rows]
    gram = sum((part @ part.T for part in offsets), np.zeros((t, t)))
    values, vectors = np.linalg.eigh(gram)
    top, coefficients = values[:-3:-1], vectors[:, :-3:-1]
    # Eigenvalues are squares of lengths, so this is a second component of a millionth of the first.
    if not top[1] > 1e-12 * top[0]:
        raise ValueError("the iterates are on one line through their centre: no plane")
    directions = []
    for value, weights in zip(top, coefficients.T, strict=True):
        parts = [weights @ part / math.sqrt(value) for part in offsets]
        start = sum(float(part @ row[0]) for part, row in zip(parts, rows, strict=True))
        sign = -1.0 if start < 0 else 1.0
        directions.append(_tree_of([sign * part for part in parts], centre))
    return Plane(centre, *directions), top / np.trace(gram)


def _warn_if_parallel(plane: Plane) -> Plane:
    """The plane; warns, with the angle, where its directions are nearly parallel."""
    angle = plane.angle()
    if min(angle, 180 - angle) < PARALLEL_DEGREES:
        warnings.warn(
            f"the plane's directions enclose {angle:.3g} degrees: nearly parallel, so the picture "
            "shows little more than a line",
            stacklevel=3,
        )
    return plane


def _warn(params: Params, normalise: str, axes: Axes | None) -> None:
    """Warn, from the caller's caller, of what a random direction leaves where it is."""
    warn_of_leaves(params, axes=axes, normalise=normalise, stacklevel=3)
    names = zero_norm_filters(params, axes=axes) if normalise == "filter" else []
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        warnings.warn(
            f"{len(names)} filters have norm zero: {', '.join(names[:5])}{more}; a filter-"
            "normalised direction is zero there",
            stacklevel=3,
        )


def _drawn(
    key: Key, count: int, params: Params, normalise: Normalise, biases: Biases, axes: Axes | None
) -> list[Tree]:
    """Directions of concrete parameters: all but the draw on the host, with nothing to compile."""
    check_options(normalise, biases)
    (size,), dtype = _moving(params)
    draws = np.asarray(jax.random.normal(key, (count, size), dtype))
    directions = []
    for draw in draws:
        there, host = (jax.tree.map(np.asarray, tree) for tree in (_like(draw, params), params))
        scaled = scale_direction(there, host, normalise, biases, axes, np)
        directions.append(jax.tree.map(jnp.asarray, scaled))
    return directions


def _moving(params: Params) -> tuple[tuple[int], Any]:
    """Shape and dtype of one draw for all parameters that move: one a parameter would take long."""
    moving = [leaf for leaf in jax.tree.leaves(params) if is_float(leaf)]
    dtype = jnp.result_type(jnp.float32, *(jnp.result_type(leaf) for leaf in moving))
    return (sum(math.prod(jnp.shape(leaf)) for leaf in moving),), dtype


def _like(vector: Array, params: Params) -> Tree:
    """A vector [n] of all floating entries as a tree in the parameters' dtypes."""
    made = unflat(vector, params)
    return jax.tree.map(lambda part, leaf: part.astype(jnp.result_type(leaf)), made, params)


def _combine(centre: Tree, steps: list[tuple[Array | float, Tree]]) -> Tree:
    """``centre + sum of scalar * direction``, in float32 at least, rounded once."""

    def one(origin: Array, *directions: Array) -> jax.Array:
        if not is_float(origin):
            return jnp.asarray(origin)
        dtype = jnp.result_type(origin)
        wide = jnp.promote_types(dtype, jnp.float32)
        moved = jnp.asarray(origin, wide)
        for (scalar, _), direction in zip(steps, directions, strict=True):
            moved = moved + jnp.asarray(scalar, wide) * jnp.asarray(direction, wide)
        return moved.astype(dtype)

    return jax.tree.map(one, centre, *(direction for _, direction in steps))


def _flat(tree: Tree) -> list[np.ndarray]:
    """The floating leaves, flattened, in float64 on the host."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if is_float(leaf)]
    return [np.asarray(leaf).astype(np.float64).ravel() for leaf in leaves]


def _difference(first: Tree, second: Tree) -> list[np.ndarray]:
    return [a - b for a, b in zip(_flat(first), _flat(second), strict=True)]


def _tree_of(parts: list[np.ndarray], like: Tree) -> Tree:
    """Flat floating leaves as a tree of arrays; leaves of other dtypes are zero."""
    return jax.tree.map(jnp.asarray, _like(np.concatenate(parts), like))


def _gram(vectors: list[list[np.ndarray]]) -> np.ndarray:
    """Inner products of flattened trees, [v, v] float64."""
    return np.array(
        [
            [sum(float(a @ b) for a, b in zip(one, other, strict=True)) for other in vectors]
            for one in vectors
        ]
    )
