"""Distances from a minimum to a loss, one a direction: what basins are measured by."""

import dataclasses
import warnings
from typing import Any

import numpy as np

from densejax.landscape import bisection
from densejax.landscape.bisection import Crossing, Limits
from densejax.landscape.spheres import Extent


@dataclasses.dataclass(frozen=True)
class Radii:
    """Distances from one minimum to its cutoff, one a direction.

    Attributes:
      radius: [k] float64, in units of the directions (``spheres``): the first crossing, or the span
        where there is none.
      censored: [k] bool, the loss stays below the cutoff up to the span: the radius is at least so.
      slope: [k] float64, loss per unit of radius about the crossing, to some per cent or, of a
        kink, less; not-a-number where unknown.
      cutoff: of the loss.
      centre_loss: loss of the minimum.
      span: where the search ends.
      first_step: below which a crossing need not be the first.
      growth: ratio of distances between which an excursion above the cutoff can go unseen.
      dimension: effective dimension of the directions, entries less constraints; 0 if not known.
      log_scale: what a log-volume must be given in addition to be in the parameters' own units.
      evaluations: of the loss, all directions together.
    """

    radius: np.ndarray
    censored: np.ndarray
    slope: np.ndarray
    cutoff: float
    centre_loss: float
    span: float
    first_step: float
    growth: float
    dimension: int
    log_scale: float = 0.0
    evaluations: int = 0

    @property
    def log_radius(self) -> np.ndarray:
        """[k] float64, natural logarithm; minus infinity where a radius is 0."""
        with np.errstate(divide="ignore"):
            return np.log(self.radius)

    @property
    def rounding(self) -> np.ndarray:
        """[k] float64: relative error of each radius if the loss errs by float32's rounding."""
        unit = np.finfo(np.float32).eps / 2 * abs(self.cutoff)
        with np.errstate(divide="ignore", invalid="ignore"):
            return unit / (self.radius * self.slope)

    def __str__(self) -> str:
        low, middle, high = np.quantile(self.radius, (0.05, 0.5, 0.95))
        text = (
            f"{len(self.radius)} radii to loss {self.cutoff:g} (centre {self.centre_loss:.3g}): "
            f"median {middle:.6g}, 5 to 95 % {low:.6g} to {high:.6g}"
        )
        if self.censored.any():
            text += f"; {int(self.censored.sum())} reach the span {self.span:g} below the cutoff"
        return text


def radii_of(
    found: Crossing, *, limits: Limits, extent: Extent, centre_loss: float, name: str = ""
) -> Radii:
    """Radii of the brackets [k] of one minimum.

    Args:
      found: brackets on the host.
      limits: of the search.
      extent: of the directions.
      centre_loss: loss of the minimum.
      name: of the minimum, for warnings: " of minimum 3".

    Returns:
      The radii. Warns where all are censored, or some lie within the first step.
    """
    result = Radii(
        radius=bisection.crossing_point(found, float(limits.cutoff)),
        censored=np.isinf(found.high),
        slope=np.asarray(found.slope, np.float64),
        cutoff=float(limits.cutoff),
        centre_loss=centre_loss,
        span=float(limits.span),
        first_step=float(limits.first_step),
        growth=float(limits.growth),
        dimension=extent.dimension,
        log_scale=extent.log_scale,
        evaluations=int(np.sum(found.evaluations)),
    )
    _warn(result, name)
    return result


def joined(*parts: Radii) -> Radii:
    """Radii of the same minimum along more directions as one.

    Raises:
      ValueError: there are none, or they differ in anything but their directions.
    """
    if not parts:
        raise ValueError("no radii to join")
    for name in ("cutoff", "span", "first_step", "growth", "dimension", "log_scale"):
        values = {getattr(part, name) for part in parts}
        if len(values) > 1:
            raise ValueError(f"radii differ in {name}: {sorted(values)}")
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("radius", "censored", "slope")
    }
    evaluations = sum(part.evaluations for part in parts)
    return dataclasses.replace(parts[0], **arrays, evaluations=evaluations)


def _warn(found: Radii, which: str) -> None:
    """Warn of radii that say little."""
    if found.censored.all():
        warnings.warn(
            f"all {len(found.radius)} directions{which} stay below the loss {found.cutoff:g} up to "
            f"the span {found.span:g}: the radii are lower bounds; give a larger span or a lower "
            "cutoff",
            stacklevel=5,
        )
    near = int((found.radius < found.first_step).sum())
    if near:
        warnings.warn(
            f"{near} of {len(found.radius)} directions{which} cross within the first step "
            f"{found.first_step:g}, where a crossing need not be the first: lower first_step",
            stacklevel=5,
        )
