"""Where a loss first reaches a cutoff along rays: geometric bracketing, then a safe interpolation.

Each ray is one lane of arrays [c]; all lanes take a step together, and a lane that has its answer
waits for the others. A step evaluates the loss once per lane:

1. Bracket. From ``first_step`` the distance grows by the factor ``growth`` until the loss is no
   longer below the cutoff (what is not finite counts as above). An excursion above the cutoff
   that begins and ends between two of these points is not seen: ``growth`` is the resolution of
   *first*. Where ``first_step`` itself is above, the distance is halved until it is below.
2. Refine. ITP (Oliveira and Takahashi 2020, ACM Trans. Math. Softw. 47, 5) with kappa1 = 0.2 of the
   first bracket, kappa2 = 2, n0 = 1, and a truncation of half the tolerance at least: at most one
   evaluation more than bisection on any loss, a third of them on a smooth one. The bracket always
   holds a crossing.

The answer is a bracket whose ends are within ``rtol`` of one another, and the loss at both ends.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from densejax.typing import Array

# Below this share of the first step a crossing is at the centre, to all purposes.
SMALLEST = 1e-6
# Across so much of the distance a difference of losses is not their rounding.
WIDE = 1e-3
# Float32 holds brackets no narrower.
LEAST_RTOL = 1e-6


class Crossing(NamedTuple):
    """Brackets of first crossings, [c] each.

    Attributes:
      low: farthest distance seen below the cutoff before the crossing; 0 if none is.
      high: nearest distance seen not below it; infinity where the span was reached.
      loss_low: loss at ``low``.
      loss_high: loss at ``high``; not-a-number where there is none.
      slope: loss per unit of distance across the last bracket that was wider than 1e-3 of the
        distance (a narrower one shows the loss's rounding); not-a-number where unknown.
      evaluations: int32, of the loss on this ray.
    """

    low: Array
    high: Array
    loss_low: Array
    loss_high: Array
    slope: Array
    evaluations: Array


class Limits(NamedTuple):
    """Scalars of a search, of the ranges that ``check_limits`` names."""

    cutoff: Any
    first_step: Any
    growth: Any
    span: Any
    rtol: Any


class _State(NamedTuple):
    found: Crossing
    # Of the bracket as it was when it was found, 0 before: its width, the width sought, and half
    # the width that bisection could still leave at this step.
    width: jax.Array
    tolerance: jax.Array
    allowed: jax.Array
    done: jax.Array


def check_limits(limits: Limits) -> None:
    """Raises: ValueError where a search cannot be made, naming what is out of its range."""
    cutoff, first_step, growth, span, rtol = (float(value) for value in limits)
    if not np.isfinite(cutoff):
        raise ValueError(f"cutoff is {cutoff}: expected a finite loss")
    if not 0 < first_step <= span < np.inf:
        raise ValueError(
            f"first_step is {first_step:g} and span {span:g}: expected 0 < first_step <= span"
        )
    if not 1.001 <= growth < np.inf:
        raise ValueError(f"growth is {growth:g}: expected a factor of 1.001 or more")
    if not LEAST_RTOL <= rtol <= 0.1:
        raise ValueError(f"rtol is {rtol:g}: expected {LEAST_RTOL:g} (float32) to 0.1")


def first_crossing(
    losses: Callable[[jax.Array], jax.Array],
    centre_loss: Array,
    limits: Limits,
    live: Array,
) -> Crossing:
    """Bracket the first crossing of every lane: a pure function, one ``while_loop``.

    Args:
      losses: distances [c] float32, above 0, to losses [c]; one ray a lane.
      centre_loss: [] or [c], loss at distance 0, below the cutoff.
      limits: of the search.
      live: [c] bool; a lane that is not has ``low`` 0 and ``high`` infinity.
    """
    limits = Limits(*(jnp.asarray(value, jnp.float32) for value in limits))
    live = jnp.asarray(live)
    zeros = jnp.zeros(live.shape, jnp.float32)
    start = Crossing(
        low=zeros,
        high=zeros + jnp.inf,
        loss_low=zeros + centre_loss,
        loss_high=zeros + jnp.nan,
        slope=zeros + jnp.nan,
        evaluations=jnp.zeros(live.shape, jnp.int32),
    )

    def step(state: _State) -> _State:
        distance = _next_distance(state, limits)
        return _updated(state, distance, losses(distance).astype(jnp.float32), limits)

    state = _State(start, zeros, zeros, zeros, ~live)
    return lax.while_loop(lambda state: ~jnp.all(state.done), step, state).found


def _next_distance(state: _State, limits: Limits) -> jax.Array:
    """[c]: where to evaluate next."""
    low, high = state.found.low, state.found.high
    growing = jnp.where(low == 0, limits.first_step, low * limits.growth)
    shrinking = high / 2
    refined = jnp.where(low == 0, shrinking, _interpolated(state, limits.cutoff))
    return jnp.where(jnp.isinf(high), jnp.minimum(growing, limits.span), refined)


def _interpolated(state: _State, cutoff: jax.Array) -> jax.Array:
    """[c]: ITP's point in a bracket: interpolate, truncate towards the middle, project onto it."""
    low, high, loss_low, loss_high = state.found[:4]
    width = high - low
    middle = low + width / 2
    # An infinite loss at the far end says nothing of where the crossing is.
    share = jnp.where(jnp.isfinite(loss_high), (cutoff - loss_low) / (loss_high - loss_low), 0.5)
    falsi = low + width * share
    towards = jnp.sign(middle - falsi)
    truncation = 0.2 * width * width / jnp.where(state.width > 0, state.width, 1)
    # A point next to the crossing leaves the other end where it is: step over it.
    truncation = jnp.maximum(truncation, state.tolerance / 2)
    point = jnp.where(truncation <= jnp.abs(middle - falsi), falsi + towards * truncation, middle)
    reach = jnp.maximum(state.allowed - width / 2, 0)
    point = jnp.where(jnp.abs(point - middle) <= reach, point, middle - towards * reach)
    return jnp.where((point > low) & (point < high), point, middle)


def _updated(state: _State, distance: jax.Array, loss: jax.Array, limits: Limits) -> _State:
    """The state after the lanes that are not done have seen the loss at a distance."""
    found = state.found
    crossed = ~((loss < limits.cutoff) & jnp.isfinite(loss))
    above, below = ~state.done & crossed, ~state.done & ~crossed
    found = Crossing(
        low=jnp.where(below, distance, found.low),
        high=jnp.where(above, distance, found.high),
        loss_low=jnp.where(below, loss, found.loss_low),
        loss_high=jnp.where(above, loss, found.loss_high),
        slope=found.slope,
        evaluations=found.evaluations + ~state.done,
    )
    width = found.high - found.low
    bracketed = jnp.isfinite(found.high) & (found.low > 0)
    fresh = bracketed & (state.width == 0)
    telling = fresh | (bracketed & (width > WIDE * found.low))
    slope = (found.loss_high - found.loss_low) / jnp.where(telling, width, 1)
    slope = jnp.where(jnp.isfinite(slope), slope, jnp.nan)
    found = found._replace(slope=jnp.where(telling, slope, found.slope))
    tolerance = jnp.where(fresh, limits.rtol * found.low, state.tolerance)
    # Bisection needs this many steps to the tolerance; one more is granted (n0 = 1).
    steps = jnp.ceil(jnp.log2(jnp.where(fresh, width / tolerance, 1)))
    allowed = jnp.where(fresh, tolerance / 2 * jnp.exp2(steps + 1), state.allowed / 2)
    done = (
        state.done
        | (bracketed & (width <= tolerance))
        | (below & (distance >= limits.span))
        | (found.high <= SMALLEST * limits.first_step)
    )
    return _State(found, jnp.where(fresh, width, state.width), tolerance, allowed, done)


def crossing_point(found: Crossing, cutoff: float) -> np.ndarray:
    """The crossing within each bracket by linear interpolation, float64.

    The middle where the loss at the far end is not finite, the span where the cutoff was not
    reached.
    """
    low, high, loss_low, loss_high = (np.asarray(leaf, np.float64) for leaf in found[:4])
    cutoff = float(np.float32(cutoff))
    known = np.isfinite(high) & np.isfinite(loss_high)
    width = np.where(np.isfinite(high), high - low, 0)
    rise = np.where(known, loss_high - loss_low, 1)
    share = np.where(known, (cutoff - loss_low) / rise, 0.5)
    return low + width * share
