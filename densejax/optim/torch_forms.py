"""AMSGrad and Rprop in the form of PyTorch, where optax's takes other steps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from densejax.typing import Params


class AmsgradState(NamedTuple):
    """Moments of ``scale_by_amsgrad``."""

    steps: jax.Array
    mean: Params
    square: Params
    largest: Params


def scale_by_amsgrad(
    *, b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-8
) -> optax.GradientTransformation:
    """AMSGrad (Reddi et al. 2018): the largest second moment, which is corrected afterwards.

    ``optax.scale_by_amsgrad`` corrects before it compares, so that the first gradients, whose
    moments are corrected most, may bound the steps for ever.

    Args:
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      epsilon: added to the corrected root.

    Returns:
      A transformation; multiply its updates by minus the learning rate.
    """

    def init(params: Params) -> AmsgradState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AmsgradState(jnp.int32(0), zeros, zeros, zeros)

    def update(
        updates: Params, state: AmsgradState, params: Params | None = None
    ) -> tuple[Params, AmsgradState]:
        del params
        steps = state.steps + 1
        mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mean, updates)
        square = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.square, updates)
        largest = jax.tree.map(jnp.maximum, state.largest, square)
        made = steps.astype(jnp.float32)
        first, second = 1 - b1**made, jnp.sqrt(1 - b2**made)
        directions = jax.tree.map(
            lambda m, v: m / first / (jnp.sqrt(v) / second + epsilon), mean, largest
        )
        return directions, AmsgradState(steps, mean, square, largest)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


class RpropState(NamedTuple):
    """Gradients of the last step, zero where their sign had changed, and the sizes of steps."""

    gradients: Params
    sizes: Params


def scale_by_rprop(
    *,
    first: float = 1e-3,
    shrink: float = 0.5,
    grow: float = 1.2,
    smallest: float = 1e-6,
    largest: float = 50.0,
) -> optax.GradientTransformation:
    """Rprop without going back (Igel and Hüsken 2000): each parameter has a step size of its own.

    ``optax.scale_by_rprop`` (0.2.8) makes each step one update late.

    Args:
      first: size of the first steps.
      shrink: factor on a size where the gradient's sign has changed; no step is made there.
      grow: factor where it has not.
      smallest: size.
      largest: size.

    Returns:
      A transformation; its updates, times minus one, are whole steps.
    """

    def init(params: Params) -> RpropState:
        sizes = jax.tree.map(lambda p: jnp.full_like(p, first), params)
        return RpropState(jax.tree.map(jnp.zeros_like, params), sizes)

    def update(
        updates: Params, state: RpropState, params: Params | None = None
    ) -> tuple[Params, RpropState]:
        del params
        agree = jax.tree.map(lambda g, old: jnp.sign(g * old), updates, state.gradients)

        def resized(size: jax.Array, sign: jax.Array) -> jax.Array:
            factor = jnp.where(sign > 0, grow, jnp.where(sign < 0, shrink, 1.0))
            return jnp.clip(size * factor, smallest, largest)

        sizes = jax.tree.map(resized, state.sizes, agree)
        kept = jax.tree.map(lambda g, sign: jnp.where(sign < 0, 0, g), updates, agree)
        steps = jax.tree.map(lambda g, size: jnp.sign(g) * size, kept, sizes)
        return steps, RpropState(kept, sizes)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]
