"""The spectral density of a Hessian, kept as the quadratures that it is an estimate from."""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

# Of the range of the spectrum: wide enough that the few dozen nodes of a continuous part join.
WIDTH = 0.01
# A Gaussian has all but 1e-8 of its mass within so many of its widths.
REACH = 6.0


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


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(values.mean()), float(error)
