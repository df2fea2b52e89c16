"""Lanczos: the spectrum of a symmetric matrix that is known by its products with vectors.

The basis is kept whole and every new vector is orthogonalised against all of it, twice (classical
Gram-Schmidt; once is not enough in float32), so no eigenvalue appears twice. What is projected
onto the basis is solved in float64 on the host. Eigenpairs that have not converged when the basis
is full are sought on from the best half of it (thick restart: Wu and Simon 2000, SIAM J. Matrix
Anal. Appl. 22, 602; for symmetric matrices Stewart's Krylov-Schur), so memory does not grow.

A product is ``product(operand, vector [n]) -> [n]``, the operand being any tree of arrays: it is an
argument of the compiled programs, which are kept for the products of the last few losses.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from densejax.landscape.compiled import compiled, remembered
from densejax.typing import Array, Key, Tree

Product = Callable[[Tree, jax.Array], jax.Array]
Which = Literal["largest", "smallest", "magnitude"]

NOT_FINITE = "a product with a vector is not finite: the loss has no finite curvature there"


@dataclasses.dataclass(frozen=True)
class Eigenpairs:
    """Some eigenvalues, their vectors, and how far to trust them.

    Attributes:
      values: [k] float64, in the order asked for.
      vectors: tree of [k, ...] (of ``eigenpairs``: one array [k, n]); each of norm 1. The sign is
        arbitrary: the entry of largest magnitude is positive.
      residuals: [k] float64, ||A v - value v||, from a product made for it: an eigenvalue of A lies
        within that distance of the value.
      converged: [k] bool, whether the residual is below the tolerance.
      products: matrix-vector products made.
    """

    values: np.ndarray
    vectors: Any
    residuals: np.ndarray
    converged: np.ndarray
    products: int


def start(vector: jax.Array, *, steps: int) -> tuple[jax.Array, jax.Array]:
    """Basis [m + 1, n] and projection [m, m] for ``extend``, zero but for the first vector [n]."""
    basis = jnp.zeros((steps + 1, vector.size), vector.dtype)
    first = vector / jnp.linalg.norm(vector)
    return basis.at[0].set(first), jnp.zeros((steps, steps), vector.dtype)


def extend(
    key: Key,
    product: Product,
    operand: Tree,
    basis: jax.Array,
    projection: jax.Array,
    first: Array | int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Fill a basis from its vector number ``first`` on: one product a vector.

    Where the vectors found span an invariant subspace, the next one is random, by the key.

    Args:
      key: of those random vectors.
      product: of operand and vector [n].
      operand: tree of arrays.
      basis: [m + 1, n], orthonormal up to and including row ``first``, zero beyond.
      projection: [m, m], known up to row ``first``; only its lower triangle is read or written.
      first: scalar int, 0 for a new basis.

    Returns:
      basis, orthonormal; projection, in whose lower triangle is that of ``V A V^T``, V being the
      first m vectors; coupling [], the norm by which A leaves the span of V.
    """
    steps = len(projection)
    smallest = jnp.finfo(basis.dtype).eps

    def orthogonal(vector: jax.Array, basis: jax.Array) -> tuple[jax.Array, jax.Array]:
        along = _dot(basis, vector)
        vector = vector - _dot(along, basis)
        more = _dot(basis, vector)
        return vector - _dot(more, basis), along + more

    def body(index: jax.Array, state: tuple) -> tuple:
        basis, projection, _, scale = state
        image = product(operand, basis[index]).astype(basis.dtype)
        image, along = orthogonal(image, basis)
        coupling = jnp.linalg.norm(image)
        scale = jnp.maximum(scale, jnp.maximum(coupling, jnp.abs(along).max()))

        def fresh() -> jax.Array:
            drawn = jax.random.normal(jax.random.fold_in(key, index), image.shape, image.dtype)
            drawn, _ = orthogonal(drawn, basis)
            return drawn / jnp.linalg.norm(drawn)

        # Not-a-number must go on into the projection, where the host finds it.
        invariant = coupling <= smallest * scale
        coupling = jnp.where(invariant, 0, coupling)
        following = lax.cond(
            invariant, fresh, lambda: image / jnp.where(coupling == 0, 1, coupling)
        )
        projection = projection.at[index].set(along[:steps])
        return basis.at[index + 1].set(following), projection, coupling, scale

    zero = jnp.zeros((), basis.dtype)
    basis, projection, coupling, _ = lax.fori_loop(
        first, steps, body, (basis, projection, zero, zero)
    )
    return basis, projection, coupling


def ritz(projection: Array) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [m], rising, and vectors [m, m] of a projection, in float64 on the host.

    Raises ValueError where the projection is not finite, as its products were not.
    """
    lower = np.tril(np.asarray(projection, np.float64))
    if not np.isfinite(lower).all():
        raise ValueError(NOT_FINITE)
    return np.linalg.eigh(lower + np.tril(lower, -1).T)


def extreme_values(
    key: Key, product: Product, operand: Tree, dimension: int, *, steps: int
) -> tuple[jax.Array, jax.Array]:
    """The smallest and the largest eigenvalue, [] float32 each: ``hessian.extreme_eigenvalues``."""
    steps = min(steps, dimension)
    vector = jax.random.normal(key, (dimension,))
    _, projection, _ = extend(
        jax.random.fold_in(key, 1), product, operand, *start(vector, steps=steps), 0
    )
    lower = jnp.tril(projection)
    values = jnp.linalg.eigvalsh(lower + jnp.tril(lower, -1).T)
    return values[0], values[-1]


def quadrature(
    key: Key, product: Product, operand: Tree, dimension: int, *, probes: int, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Gauss quadratures of the spectrum as random vectors see it, by m products each.

    Of a probe v, uniform on the unit sphere, ``sum(weights * f(nodes))`` is ``v^T f(A) v``, exact
    for polynomials of degree up to 2 m - 1, and on average over probes ``tr f(A) / n``.

    Returns nodes and weights, [s, m] float64, s being ``probes`` and m ``steps``, but no more than
    the dimension n; the weights of a probe sum to 1. Memory is (m + 1) n floats.
    """
    steps = min(steps, dimension)
    programs = _programs(product, dimension, steps)
    nodes, weights = [], []
    for index in range(probes):
        probe = jax.random.fold_in(key, index)
        begun = programs.start(probe)
        _, projection, _ = programs.extend(probe, operand, *begun, jnp.int32(0))
        values, vectors = ritz(projection)
        nodes.append(values)
        weights.append(vectors[0] ** 2)
    return np.array(nodes), np.array(weights)


def eigenpairs(
    key: Key,
    product: Product,
    operand: Tree,
    dimension: int,
    *,
    k: int,
    which: Which = "largest",
    steps: int = 0,
    restarts: int = 20,
    rtol: float = 1e-4,
) -> Eigenpairs:
    """The k eigenpairs at one end of the spectrum [k, n], as ``hessian.top_eigenpairs`` says.

    By thick-restart Lanczos. Memory is (m + 1) n floats for the basis of m = ``steps`` vectors, and
    up to half as much when it restarts or ends. Float32 products reach an ``rtol`` of some 1e-6.

    Raises:
      ValueError: ``k``, ``which`` or ``steps`` is out of its range, or a product is not finite.
    """
    if which not in ("largest", "smallest", "magnitude"):
        raise ValueError(f"which={which!r}: expected largest, smallest or magnitude")
    full = min(steps or max(2 * k + 10, 30), dimension)
    if not 1 <= k <= dimension or (full <= k and full < dimension):
        raise ValueError(
            f"k={k} eigenpairs of {dimension} dimensions in {full} steps: expected 1 to "
            f"{dimension} pairs and more steps than pairs"
        )
    programs = _programs(product, dimension, full)
    basis, projection = programs.start(key)
    first, size, products = 0, 0.0, 0
    for restart in range(restarts + 1):
        begin = jax.random.fold_in(key, restart + 1)
        basis, projection, coupling = programs.extend(
            begin, operand, basis, projection, jnp.int32(first)
        )
        products += full - first
        values, vectors = ritz(projection)
        order = _order(values, which)
        size = max(size, float(np.abs(values).max()))
        # What the residuals are if rounding added nothing; half the tolerance leaves it some.
        estimate = abs(float(coupling)) * np.abs(vectors[-1, order[:k]])
        if full == dimension or restart == restarts or estimate.max() <= rtol * size / 2:
            break
        kept = order[: k + (full - k) // 2]
        basis = programs.restart(basis, jnp.asarray(vectors[:, kept].T, basis.dtype))
        diagonal = np.zeros(full)
        diagonal[: len(kept)] = values[kept]
        projection = jnp.diag(jnp.asarray(diagonal, basis.dtype))
        first = len(kept)
    chosen = order[:k]
    found = programs.combine(basis, jnp.asarray(vectors[:, chosen].T, basis.dtype))
    del basis
    left = programs.residuals(operand, found, jnp.asarray(values[chosen], found.dtype))
    residuals = np.asarray(left, np.float64)
    return Eigenpairs(values[chosen], found, residuals, residuals <= rtol * size, products + k)


def _order(values: np.ndarray, which: Which) -> np.ndarray:
    rank = {"largest": -values, "smallest": values, "magnitude": -np.abs(values)}[which]
    return np.argsort(rank, kind="stable")


def _dot(first: jax.Array, second: jax.Array) -> jax.Array:
    """A product at float32's own precision, where an accelerator would round to TF32."""
    return jnp.matmul(first, second, precision=lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True)
class _Programs:
    start: Callable[..., tuple[jax.Array, jax.Array]]
    extend: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]
    restart: Callable[..., jax.Array]
    combine: Callable[..., jax.Array]
    residuals: Callable[..., jax.Array]


@remembered
def _programs(product: Product, dimension: int, steps: int) -> _Programs:
    """The compiled programs of a product; a basis that is given away is overwritten."""

    def begun(key: Key) -> tuple[jax.Array, jax.Array]:
        return start(jax.random.normal(key, (dimension,)), steps=steps)

    def extended(key: Key, operand: Tree, basis: jax.Array, projection: jax.Array, first: Array):
        return extend(key, product, operand, basis, projection, first)

    def restart(basis: jax.Array, weights: jax.Array) -> jax.Array:
        kept, last = _dot(weights, basis[:-1]), basis[-1]
        basis = basis.at[: len(kept)].set(kept).at[len(kept)].set(last)
        return basis.at[len(kept) + 1 :].set(0)

    def combine(basis: jax.Array, weights: jax.Array) -> jax.Array:
        vectors = _dot(weights, basis[:-1])
        vectors = vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)
        largest = jnp.argmax(jnp.abs(vectors), axis=1)[:, None]
        return vectors * jnp.sign(jnp.take_along_axis(vectors, largest, axis=1))

    def residuals(operand: Tree, vectors: jax.Array, values: jax.Array) -> jax.Array:
        def one(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
            vector, value = pair
            return jnp.linalg.norm(product(operand, vector) - value * vector)

        return lax.map(one, (vectors, values))

    return _Programs(
        jax.jit(begun),
        compiled(extended, donate=(2,)),
        jax.jit(restart, donate_argnums=(0,)),
        jax.jit(combine),
        compiled(residuals),
    )
