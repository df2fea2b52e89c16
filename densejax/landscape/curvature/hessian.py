"""Curvature of a loss at a point: products with its Hessian, and what follows from them.

The Hessian H [n, n] is never formed. A product with it is the derivative of the gradient along a
vector (forward over reverse: Pearlmutter 1994), exact to rounding, for some three gradients' time
and twice their memory; for a big data set make the loss with ``objective.over_batches``, which
needs the memory of one batch. Matrix products inside are at float32's full precision (no TF32).
H is of the loss as given: of batch norm with running moments where the loss uses those, without
the regulariser where the loss has none.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import ArrayLike

from densejax.landscape.compiled import compiled, remembered
from densejax.landscape.curvature import lanczos
from densejax.landscape.curvature.lanczos import Eigenpairs, Which
from densejax.landscape.directions import Plane
from densejax.landscape.filters import (
    check_alike,
    flat,
    is_float,
    size,
    split,
    unflat,
    warn_of_moments,
)
from densejax.landscape.objective import LossFunction, loss_of, measures_of
from densejax.typing import Key, Params, Tree

# Of the range of the spectrum: wide enough that the few dozen nodes of a continuous part join.
WIDTH = 0.01
# A Gaussian has all but 1e-8 of its mass within so many of its widths.
REACH = 6.0


def hessian_vector(loss_fn: LossFunction, params: Params, vector: Tree) -> Tree:
    """The product of the loss's Hessian with a vector. Pure; can be compiled and mapped.

    Args:
      loss_fn: of parameters; returns a scalar or ``{name: scalar}`` with ``loss`` in it.
      params: tree of arrays, where the Hessian is taken; of its floating leaves alone.
      vector: tree of the same structure and shapes.

    Returns:
      Tree like ``params``; zero where those are not floating. Warns of running moments.

    Raises:
      ValueError: the trees differ, or the loss is not a scalar.
    """
    check_alike(params, vector, names=("the parameters", "the vector"))
    warn_of_moments(params)
    moving, join = split(jax.tree.map(jnp.asarray, params))
    loss = loss_of(loss_fn)
    along = [
        jnp.asarray(v, jnp.result_type(p))
        for v, p in zip(jax.tree.leaves(vector), jax.tree.leaves(params), strict=True)
        if is_float(p)
    ]
    with jax.default_matmul_precision("highest"):
        gradient = jax.grad(lambda moving: loss(join(moving)))
        product = jax.jvp(gradient, (moving,), (along,))[1]
    still = jax.tree.map(lambda leaf: jnp.zeros(jnp.shape(leaf), jnp.result_type(leaf)), params)
    return split(still)[1](product)


def top_eigenpairs(
    key: Key,
    loss_fn: LossFunction,
    params: Params,
    *,
    k: int = 2,
    which: Which = "largest",
    steps: int = 0,
    restarts: int = 20,
    rtol: float = 1e-4,
) -> Eigenpairs:
    """The k eigenpairs of the Hessian at one end of its spectrum (``lanczos.eigenpairs``).

    Memory beside the loss's own is (m + 1) n floats, and half as much again: 11 million parameters
    and 30 steps are 2 GB. Needs up to ``steps + restarts * steps / 2`` products.

    Args:
      key: of the first vector.
      loss_fn: as in ``hessian_vector``.
      params: tree of arrays.
      k: number of pairs.
      which: 'largest', 'smallest' (most negative first) or largest 'magnitude'.
      steps: m; 0 is the larger of 2 k + 10 and 30.
      restarts: at most.
      rtol: residuals up to this times the largest ``|eigenvalue|`` found are converged.

    Returns:
      Values [k], vectors as a tree of [k, ...] float32 (of norm 1 over the whole tree), residuals
      [k], which of them converged [k], products made.

    Raises:
      ValueError: an option out of range, or a Hessian that is not finite.
    """
    found = lanczos.eigenpairs(
        key,
        _product(loss_fn),
        params,
        size(params),
        k=k,
        which=which,
        steps=steps,
        restarts=restarts,
        rtol=rtol,
    )
    return dataclasses.replace(found, vectors=jax.vmap(lambda v: unflat(v, params))(found.vectors))


def hessian_plane(
    key: Key,
    loss_fn: LossFunction,
    params: Params,
    *,
    ends: Literal["largest", "both", "magnitude"] = "largest",
    steps: int = 0,
    restarts: int = 20,
    rtol: float = 1e-4,
) -> Plane:
    """The plane of two eigenvectors of the Hessian, through the parameters.

    The directions have norm 1, so that coordinates are Euclidean distances; they are not
    filter-normalised, which would turn them away from the eigenvectors. Second derivatives of the
    loss along the axes are the eigenvalues.

    Args:
      key: of the first vector of Lanczos.
      loss_fn: as in ``hessian_vector``.
      params: tree of arrays, the centre.
      ends: the two 'largest' eigenvalues, the two of largest 'magnitude', or 'both' ends: the
        largest and the smallest (most negative), where a saddle is seen best.
      steps: as in ``top_eigenpairs``.
      restarts: as in ``top_eigenpairs``.
      rtol: as in ``top_eigenpairs``.

    Returns:
      The plane, its first axis that of the largest eigenvalue (or magnitude).

    Raises:
      ValueError: as in ``top_eigenpairs``; an eigenvector has not converged.
    """
    if ends not in ("largest", "both", "magnitude"):
        raise ValueError(f"ends={ends!r}: expected largest, both or magnitude")
    parts: list[tuple[Which, int]] = [("largest", 1), ("smallest", 1)]
    if ends != "both":
        parts = [(ends, 2)]
    directions: list[Tree] = []
    for which, k in parts:
        found = top_eigenpairs(
            key, loss_fn, params, k=k, which=which, steps=steps, restarts=restarts, rtol=rtol
        )
        if not found.converged.all():
            raise ValueError(
                f"eigenvalues {found.values} have residuals {found.residuals} after "
                f"{found.products} products: expected {rtol} of the largest; give more steps, "
                "restarts or a larger rtol"
            )
        for index in range(k):
            directions.append(jax.tree.map(lambda leaf, i=index: leaf[i], found.vectors))
    return Plane(params, *directions)


def extreme_eigenvalues(
    key: Key, loss_fn: LossFunction, params: Params, *, steps: int = 20
) -> tuple[jax.Array, jax.Array]:
    """Estimates of the smallest and the largest eigenvalue; pure, so mapped over points at will.

    From inside: the smallest is not above its estimate and the largest not below, to rounding.
    ``top_eigenpairs`` computes residuals.

    Args:
      key: of the first vector.
      loss_fn: as in ``hessian_vector``.
      params: tree of arrays.
      steps: products, and vectors in memory.

    Returns:
      Two scalars [] float32.
    """
    return lanczos.extreme_values(key, _product(loss_fn), params, size(params), steps=steps)


def convexity(
    key: Key, loss_fn: LossFunction, *, steps: int = 20
) -> Callable[[Params], dict[str, jax.Array]]:
    """The loss with how convex it is, as a loss function: a surface of it is a convexity map.

    Li, Xu, Taylor, Studer and Goldstein 2018, "Visualizing the Loss Landscape of Neural Nets",
    section 6: |smallest / largest eigenvalue| of the Hessian at each point of a plane, 0 where the
    loss is as good as convex. A point costs ``steps`` Hessian-vector products.

    Args:
      key: of the first vector of Lanczos, the same at every point.
      loss_fn: as in ``hessian_vector``.
      steps: products a point.

    Returns:
      Function of parameters: the measures of ``loss_fn`` and 'smallest', 'largest' and 'ratio', the
      ratio being negative part of the smallest to the largest: 0 where no eigenvalue is negative
      (Li et al. divide whatever the sign).
    """

    def measures(params: Params) -> dict[str, jax.Array]:
        smallest, largest = extreme_eigenvalues(key, loss_fn, params, steps=steps)
        ratio = jnp.maximum(-smallest, 0) / jnp.maximum(jnp.abs(largest), 1e-30)
        spectrum = {"smallest": smallest, "largest": largest, "ratio": ratio}
        return measures_of(loss_fn)(params) | spectrum

    return measures


class TraceEstimate(NamedTuple):
    """An unbiased estimate of a trace and its standard error."""

    mean: float
    standard_error: float


def trace(
    key: Key,
    loss_fn: LossFunction,
    params: Params,
    *,
    probes: int = 30,
    method: Literal["hutchinson", "hutch++"] = "hutchinson",
) -> TraceEstimate:
    """The trace of the Hessian, the sum of its eigenvalues.

    'hutchinson': the mean of z^T H z over vectors z of random signs (Hutchinson 1990, Commun. Stat.
    Simul. Comput. 19, 433), exact for a diagonal H; the variance of one is twice the sum of the
    squared entries off the diagonal. 'hutch++' (Meyer, Musco, Musco and Woodruff 2021, SOSA): a
    third of the products finds the directions of the largest eigenvalues, a third takes their part
    of the trace exactly, and a third estimates the rest: much less error where few eigenvalues
    stand out, for ``probes / 3`` vectors of n floats in memory, twice over.

    Args:
      key: of the vectors.
      loss_fn: as in ``hessian_vector``.
      params: tree of arrays.
      probes: Hessian-vector products; at least 2, of 'hutch++' 6. One after another.
      method: as above.

    Returns:
      Mean and standard error, the latter from the spread of the probes.

    Raises:
      ValueError: too few probes, an unknown method, or a Hessian that is not finite.
    """
    fewest = {"hutchinson": 2, "hutch++": 6}.get(method)
    if fewest is None:
        raise ValueError(f"method={method!r}: expected hutchinson or hutch++")
    if probes < fewest:
        raise ValueError(f"probes={probes}: expected at least {fewest} for {method}")
    samples, exact = _traces(loss_fn, probes, method)(key, params)
    values = np.asarray(samples, np.float64)
    if not np.isfinite(values).all() or not np.isfinite(exact):
        raise ValueError(lanczos.NOT_FINITE)
    error = values.std(ddof=1) / np.sqrt(len(values))
    return TraceEstimate(float(values.mean() + np.float64(exact)), float(error))


@dataclasses.dataclass(frozen=True)
class SpectralDensity:
    """Gauss quadratures of a spectrum by random probes; densities and moments follow from them.

    Attributes:
      nodes: [s, m] float64, a probe's Ritz values, rising. The ends converge to those of the
        spectrum.
      weights: [s, m] float64, 0 or more; a probe's sum to 1.
      dimension: n, of the matrix.
    """

    nodes: np.ndarray
    weights: np.ndarray
    dimension: int

    def __post_init__(self) -> None:
        if self.nodes.shape != self.weights.shape or self.nodes.ndim != 2 or not self.nodes.size:
            raise ValueError(
                f"nodes {self.nodes.shape} and weights {self.weights.shape}: expected [s, m] both"
            )

    def moment(self, order: int) -> tuple[float, float]:
        """Mean of the eigenvalues to a power, ``tr H^order / n``, with its standard error.

        Unbiased for orders up to 2 m - 1. The error is not-a-number of one probe alone.
        """
        return _mean_and_error((self.weights * self.nodes**order).sum(axis=1))

    def share_below(self, value: float) -> tuple[float, float]:
        """The share of the eigenvalues below a value, with its standard error.

        Where the value lies within a dense part of the spectrum (such as the many eigenvalues about
        0), the nodes are too few to part it, which the error does not tell.
        """
        return _mean_and_error((self.weights * (self.nodes < value)).sum(axis=1))

    def width(self) -> float:
        """The width that is used where none is given: ``WIDTH`` of the range of the nodes."""
        extent = float(np.ptp(self.nodes))
        return WIDTH * (extent or max(abs(float(self.nodes.max())), 1e-12))

    def grid(self, *, points: int = 2001, width: float | None = None) -> np.ndarray:
        """Eigenvalues [p], evenly spaced, beyond which the density of that width is negligible."""
        margin = REACH * (width or self.width())
        return np.linspace(self.nodes.min() - margin, self.nodes.max() + margin, points)

    def density(
        self, grid: ArrayLike, *, width: float | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The density with each node broadened to a Gaussian, and its standard error.

        Args:
          grid: [p] eigenvalues, such as ``self.grid()``; its spacing should be below the width.
          width: standard deviation of the Gaussians, in units of the eigenvalues, above 0; None
            is one hundredth of the range (Ghorbani et al. take some 1/600).

        Returns:
          Mean over the probes and its standard error, [p] float64, per unit of eigenvalue; the mean
          integrates to 1. The error is of the probes alone, not of the broadening.

        Raises:
          ValueError: the width is not above 0.
        """
        width = self.width() if width is None else width
        if not width > 0:
            raise ValueError(f"width={width}: expected more than 0")
        places = np.asarray(grid, np.float64)
        each = np.zeros((len(self.nodes), places.size))
        for node, weight in zip(self.nodes.T, self.weights.T, strict=True):
            away = (places[None] - node[:, None]) / width
            each += weight[:, None] * np.exp(-0.5 * away**2)
        each /= width * np.sqrt(2 * np.pi)
        error = np.full(places.size, np.nan)
        if len(each) > 1:
            error = each.std(axis=0, ddof=1) / np.sqrt(len(each))
        return each.mean(axis=0), error


def spectral_density(
    key: Key, loss_fn: LossFunction, params: Params, *, probes: int = 10, steps: int = 80
) -> SpectralDensity:
    """The density of the Hessian's eigenvalues, by stochastic Lanczos quadrature.

    Ghorbani, Krishnan and Xiao 2019, "An Investigation into Neural Net Optimization via Hessian
    Eigenvalue Density" (ICML, algorithm 1): ten probes of eighty or ninety steps tell the density
    of millions of eigenvalues. Probes are uniform on the sphere; the basis is orthogonalised in
    full. Costs ``probes * steps`` products and (steps + 1) n floats of memory.

    Args:
      key: of the probes.
      loss_fn: as in ``hessian_vector``.
      params: tree of arrays.
      probes: at least 1; one after another.
      steps: at least 1.

    Returns:
      The quadratures; ``density(grid())`` broadens them.

    Raises:
      ValueError: an option out of range, or a Hessian that is not finite.
    """
    if min(probes, steps) < 1:
        raise ValueError(f"probes={probes}, steps={steps}: expected at least 1 each")
    n = size(params)
    nodes, weights = lanczos.quadrature(
        key, _product(loss_fn), params, n, probes=probes, steps=steps
    )
    return SpectralDensity(nodes, weights, n)


@remembered
def _product(loss_fn: LossFunction) -> lanczos.Product:
    """The Hessian-vector product on flat vectors, of parameters that are given each time."""

    def product(params: Params, vector: jax.Array) -> jax.Array:
        return flat(hessian_vector(loss_fn, params, unflat(vector, params)))

    return product


@remembered
def _traces(
    loss_fn: LossFunction, probes: int, method: str
) -> Callable[[Key, Params], tuple[jax.Array, jax.Array]]:
    """Program that returns samples of a trace [m] and the part [] that is known exactly."""
    product = _product(loss_fn)
    highest = lax.Precision.HIGHEST

    def signs(key: Key, params: Params) -> jax.Array:
        return jax.random.rademacher(key, (size(params),), jnp.float32)

    def hutchinson(key: Key, params: Params) -> tuple[jax.Array, jax.Array]:
        def sample(key: Key) -> jax.Array:
            vector = signs(key, params)
            return jnp.sum(vector * product(params, vector))

        return lax.map(sample, jax.random.split(key, probes)), jnp.zeros(())

    def hutch_plus_plus(key: Key, params: Params) -> tuple[jax.Array, jax.Array]:
        third = probes // 3
        first, second = jax.random.split(key)

        def image(key: Key) -> jax.Array:
            return product(params, signs(key, params))

        images = lax.map(image, jax.random.split(first, third))
        basis = jnp.linalg.qr(images.T)[0].T

        def sample(key: Key) -> jax.Array:
            vector = signs(key, params)
            along = jnp.matmul(basis, vector, precision=highest)
            vector = vector - jnp.matmul(along, basis, precision=highest)
            return jnp.sum(vector * product(params, vector))

        known = lax.map(lambda vector: jnp.sum(vector * product(params, vector)), basis)
        samples = lax.map(sample, jax.random.split(second, probes - 2 * third))
        return samples, known.sum()

    return compiled(hutchinson if method == "hutchinson" else hutch_plus_plus)


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(values.mean()), float(error)
