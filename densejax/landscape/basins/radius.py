"""How wide a basin is: along random rays, the distance at which the loss first reaches a cutoff.

Source: Huang, Emam et al. 2020 (*Understanding generalization through visualizations*), section 4:
cutoff 0.1, 3000 filter-normalised directions. Departures: the *first* crossing is bracketed and
refined to a relative tolerance, and flagged where the span ends before it; the released code takes
the nearest point of a fixed grid (``experiments/benchmarks/radii.py``), whose spacing is
wider than the differences that volumes are made of.

How exact is a radius? The bracket is within ``rtol`` and the radius is interpolated in it, which
for a smooth loss leaves far less. What remains is the loss's own rounding: an error e of the loss
near the cutoff moves the radius by ``e / slope``. ``Radii.rounding`` gives that for one unit in the
last place of float32, 6e-8 of the cutoff; a mean over many samples or a sum over many parameters
that is not added up pairwise errs by several. Where the loss is flat at the cutoff, no tolerance
helps. With n dimensions a volume multiplies each relative error by n.
"""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from densejax.landscape.basins import bisection, rays
from densejax.landscape.basins.bisection import Limits
from densejax.landscape.basins.spheres import (
    Draw,
    Extent,
    Geometry,
    drawn,
    drawn_direction,
    extent,
    given,
)
from densejax.landscape.filters import Axes, Biases, Normalise, is_float, warn_of_leaves
from densejax.landscape.objective import LossFunction
from densejax.population import instance_key
from densejax.typing import Key, Params, Tree

# First steps, of the span.
FIRST_SHARE = 1e-3
# Of 2000 rays of the swiss roll's network, each to losses of 0.01, 0.1 and 1, a factor of 1.25
# misses no crossing that 1.02 finds; 1.5 misses one and 2 two. Those radii are too long by half
# and more, and in a volume the longest decides.
GROWTH = 1.25
RTOL = 1e-5


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


def radii(key: Key, loss_fn: LossFunction, params: Params, **options: Any) -> Radii:
    """Radii of one minimum along random directions.

    Args:
      key: direction number i is drawn from ``fold_in(key, i)``, whatever the other options.
      loss_fn: of parameters, pure; returns a scalar or ``{name: scalar}`` with ``loss``.
      params: tree of arrays, the minimum.
      **options: of ``radii_of_many``, such as ``directions``, ``cutoff``, ``geometry``, ``axes``.

    Returns:
      The radii; warns as ``radii_of_many``.

    Raises:
      ValueError: as in ``radii_of_many``.
    """
    return radii_of_many(key, loss_fn, _alone(params), **options)[0]


def radii_of_many(
    key: Key,
    loss_fn: LossFunction,
    minima: Params,
    *,
    settings: Tree = None,
    directions: int = 3000,
    first: int = 0,
    cutoff: float = 0.1,
    span: float | None = None,
    first_step: float | None = None,
    growth: float = GROWTH,
    rtol: float = RTOL,
    geometry: Geometry = "spheres",
    normalise: Normalise = "filter",
    biases: Biases = "zero",
    axes: Axes | None = None,
    chunk: int = 0,
    devices: Sequence[jax.Device] | None = None,
    progress: bool = True,
) -> list[Radii]:
    """Radii of several minima of one structure along random directions, in one program.

    All minima have the same keys: their directions are the same normal numbers, scaled to each
    one's filters. Differences between minima are so freed of some noise; for independent radii
    call ``radii`` with a key each.

    Args:
      key: direction number i is drawn from ``fold_in(key, i)``, whatever the other options.
      loss_fn: pure; of parameters, or of parameters and settings where these are given; returns a
        scalar or ``{name: scalar}`` with ``loss``.
      minima: tree of arrays [k, ...], stacked parameters.
      settings: tree of arrays [k, ...] that differ between minima, such as a poisoning factor.
      directions: how many of each minimum.
      first: number of the first one; more directions can be added later (``joined``).
      cutoff: of the loss; the published 0.1.
      span: largest distance; where the moved entries have moved by their own norm if None (1 for
        filter-normalised spheres).
      first_step: smallest distance that is looked at; 1e-3 of the span if None. Where the loss is
        above the cutoff there already, a crossing below it is found, not always the first.
      growth: factor from one distance to the next until the cutoff is crossed: the resolution of
        *first*, at the price of log(span / first_step) / log(growth) evaluations at most.
      rtol: width of the final bracket relative to the radius, 1e-6 to 0.1.
      geometry: "spheres" as published or "ellipsoid", what the volume's formula means.
      normalise: "filter", "layer" or "none".
      biases: "zero", "weights" or "random": what parameters without filters do.
      axes: which axis counts the filters, where it is not the last (``filters.filter_axes``),
        of one minimum's parameters.
      chunk: directions side by side on a device; 0 times a few sizes. Results of two chunk sizes
        agree to rounding, those of one are the same bits on any number of devices of a kind.
      devices: all local ones if None.
      progress: show a bar with directions/s and the time left.

    Returns:
      The radii of every minimum. Warns where all directions of one are censored, where some cross
      within the first step, and of leaves as ``directions.random_line`` does.

    Raises:
      ValueError: the loss at a centre is not below the cutoff (both are given, and the number of
        the minimum) or no scalar, an option is out of its range, or no parameter would move.
    """
    drawing: Any = {"geometry": geometry, "normalise": normalise, "biases": biases, "axes": axes}
    for leaf in jax.tree.leaves(minima):
        is_float(leaf)
    counts = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(minima)}
    if len(counts) != 1 or counts == {()}:
        raise ValueError(f"minima have leading axes {sorted(counts)}: expected one number of them")
    host = jax.device_get(minima)
    each = [jax.tree.map(lambda leaf, k=k: leaf[k], host) for k in range(counts.pop()[0])]
    warn_of_leaves(each[0], axes=axes, normalise=normalise)
    extents = [extent(one, **drawing) for one in each]
    limits = [_limits(one, cutoff, span, first_step, growth, rtol) for one in extents]
    centres = _checked_centres(loss_fn, minima, settings, cutoff, devices)
    return _radii(
        *drawn(key, **drawing),
        loss_fn,
        minima,
        extents,
        limits,
        centres,
        settings=settings,
        directions=directions,
        first=first,
        chunk=chunk,
        devices=devices,
        progress=progress,
    )


def radii_along(
    loss_fn: LossFunction,
    params: Params,
    directions: Tree,
    *,
    span: float,
    cutoff: float = 0.1,
    first_step: float | None = None,
    growth: float = GROWTH,
    rtol: float = RTOL,
    chunk: int = 0,
    devices: Sequence[jax.Device] | None = None,
    progress: bool = False,
) -> Radii:
    """Radii along directions that are known, such as eigenvectors of the Hessian.

    Args:
      loss_fn: of parameters.
      params: tree of arrays, the minimum.
      directions: tree of arrays [k, ...]; a radius is in units of a direction's own length.
      span: largest distance, in the same units.
      cutoff: as in ``radii``, and so all that follow; each device holds all directions.

    Returns:
      The radii; their ``dimension`` is 0, which stands for unknown.

    Raises:
      ValueError: as in ``radii``, or the directions do not fit the parameters.
    """
    shapes = jax.tree.map(lambda leaf: tuple(np.shape(leaf)[1:]), directions)
    wanted = jax.tree.map(lambda leaf: tuple(np.shape(leaf)), params)
    counts = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(directions)}
    if shapes != wanted or len(counts) != 1 or counts == {()}:
        raise ValueError(
            f"directions of shapes {shapes} after their leading axis {sorted(counts)}: expected "
            f"{wanted} and one number of directions"
        )
    known = Extent(entries=0, constraints=0, log_scale=0.0, reach=span)
    return _radii(
        given,
        {"directions": directions},
        loss_fn,
        _alone(params),
        [known],
        [_limits(known, cutoff, span, first_step, growth, rtol)],
        _checked_centres(loss_fn, _alone(params), None, cutoff, devices),
        directions=counts.pop()[0],
        chunk=chunk,
        devices=devices,
        progress=progress,
    )[0]


def direction(
    key: Key,
    params: Params,
    number: int,
    *,
    geometry: Geometry = "spheres",
    normalise: Normalise = "filter",
    biases: Biases = "zero",
    axes: Axes | None = None,
) -> Tree:
    """Direction number ``number`` of ``radii``, drawn again from the same key.

    Args:
      key: as ``radii`` had it.
      params: the minimum.
      number: of the direction.
      geometry: as ``radii`` had it, and so all that follow.

    Returns:
      Tree like ``params``.
    """
    return drawn_direction(
        instance_key(key, number),
        params,
        geometry=geometry,
        normalise=normalise,
        biases=biases,
        axes=axes,
    )


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


def _checked_centres(
    loss_fn: LossFunction,
    minima: Params,
    settings: Tree,
    cutoff: float,
    devices: Sequence[jax.Device] | None,
) -> np.ndarray:
    """The loss of every minimum, [k] float32; raises ValueError unless all are below the cutoff."""
    centres = rays.centre_losses(loss_fn, minima, settings, devices=devices)
    bad = np.flatnonzero(~((centres < np.float32(cutoff)) & np.isfinite(centres)))
    if bad.size:
        which = "the minimum" if len(centres) == 1 else f"minimum {bad[0]} of {len(centres)}"
        raise ValueError(
            f"the loss of {which} is {centres[bad[0]]:g} and the cutoff {cutoff:g}: expected a "
            "minimum below the cutoff (train further, or raise the cutoff)"
        )
    return centres


def _alone(params: Params) -> Params:
    """One minimum, stacked; raises ValueError where a leaf is no array."""
    for leaf in jax.tree.leaves(params):
        is_float(leaf)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[None], params)


def _limits(
    one: Extent,
    cutoff: float,
    span: float | None,
    first_step: float | None,
    growth: float,
    rtol: float,
) -> Limits:
    """The limits of a search from one minimum; raises ValueError where one is out of its range."""
    reach = one.reach if span is None else span
    if not reach > 0:
        raise ValueError(
            f"the span is {reach:g}: expected more (parameters of norm 0 need one given)"
        )
    step = FIRST_SHARE * reach if first_step is None else first_step
    limits = Limits(cutoff, step, growth, reach, rtol)
    bisection.check_limits(limits)
    return limits


def _search(losses: Any, own: Tree, live: jax.Array, operand: Tree) -> Tree:
    """The search of ``rays.run``."""
    del operand
    return bisection.first_crossing(losses, own["centre"], own["limits"], live)


def _radii(
    draw: Draw,
    operand: Tree,
    loss_fn: LossFunction,
    minima: Params,
    extents: Sequence[Extent],
    limits: Sequence[Limits],
    centres: np.ndarray,
    **options: Any,
) -> list[Radii]:
    """Search and make radii of the brackets; ``options`` are those of ``rays.run``."""
    stacked = Limits(*(np.array(column, np.float32) for column in zip(*limits, strict=True)))
    own = {"centre": centres, "limits": stacked}
    found = rays.run(_search, draw, loss_fn, minima, own=own, operand=operand, **options)
    results = []
    for k, (one, limit) in enumerate(zip(extents, limits, strict=True)):
        brackets = bisection.Crossing(*(leaf[k] for leaf in found))
        result = Radii(
            radius=bisection.crossing_point(brackets, float(limit.cutoff)),
            censored=np.isinf(brackets.high),
            slope=np.asarray(brackets.slope, np.float64),
            cutoff=float(limit.cutoff),
            centre_loss=float(centres[k]),
            span=float(limit.span),
            first_step=float(limit.first_step),
            growth=float(limit.growth),
            dimension=one.dimension,
            log_scale=one.log_scale,
            evaluations=int(np.sum(brackets.evaluations)),
        )
        _warn(result, "" if len(extents) == 1 else f" of minimum {k}")
        results.append(result)
    return results


def _warn(found: Radii, which: str) -> None:
    """Warn of radii that say little."""
    if found.censored.all():
        warnings.warn(
            f"all {len(found.radius)} directions{which} stay below the loss {found.cutoff:g} up to "
            f"the span {found.span:g}: the radii are lower bounds; give a larger span or a lower "
            "cutoff",
            stacklevel=4,
        )
    near = int((found.radius < found.first_step).sum())
    if near:
        warnings.warn(
            f"{near} of {len(found.radius)} directions{which} cross within the first step "
            f"{found.first_step:g}, where a crossing need not be the first: lower first_step",
            stacklevel=4,
        )
