"""What an optimiser is to a task: how it begins, and one step on one batch.

A gradient is not enough for all of them: SAM takes two a step and L-BFGS twenty. So a method is
given the objective of the batch itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from densejax.typing import Array, Params, Tree

Objective = Callable[[Params], tuple[jax.Array, Any]]
"""The loss of one batch, and whatever else comes with it: params -> (scalar, auxiliary)."""


class Step(NamedTuple):
    """What a step leaves: parameters and state, and loss and auxiliary of its first evaluation."""

    params: Params
    state: Tree
    loss: jax.Array
    auxiliary: Any


@dataclass(frozen=True)
class Method:
    """An optimiser as two pure functions.

    Attributes:
      init: params -> state, a tree of arrays.
      step: (objective, params, state, rate) -> ``Step``; ``rate`` is the learning rate of this
        step, a scalar that may be traced.
    """

    init: Callable[[Params], Tree]
    step: Callable[[Objective, Params, Tree, Array], Step]


def descent(transform: optax.GradientTransformation, *, own_rate: bool = False) -> Method:
    """A method from an optax transformation: params - rate * direction.

    The direction is what a ``scale_by_...`` makes of the gradient, without a learning rate, so that
    a falling rate scales the step and not what is remembered, as in PyTorch.

    Args:
      transform: makes a direction of ascent of the gradient.
      own_rate: its directions are whole steps, and the task's rate is not for them (Rprop).
    """

    def step(objective: Objective, params: Params, state: Tree, rate: Array) -> Step:
        (loss, more), gradient = jax.value_and_grad(objective, has_aux=True)(params)
        direction, state = transform.update(gradient, state, params)
        return Step(_moved(params, direction, 1 if own_rate else rate), state, loss, more)

    return Method(transform.init, step)


def sharpness_aware(transform: optax.GradientTransformation, *, radius: float = 0.05) -> Method:
    """SAM (Foret et al. 2021): the gradient is taken where a step of ``radius`` uphill leads.

    Args:
      transform: as in ``descent``.
      radius: Euclidean length of the step uphill, over all parameters.

    Raises:
      ValueError: the radius is not above 0.
    """
    if radius <= 0:
        raise ValueError(f"radius is {radius}: expected a number above 0")
    uphill = optax.chain(optax.contrib.normalize(), optax.sgd(radius))
    both = optax.contrib.sam(transform, uphill, sync_period=2, opaque_mode=True)

    def step(objective: Objective, params: Params, state: Tree, rate: Array) -> Step:
        (loss, more), gradient = jax.value_and_grad(objective, has_aux=True)(params)

        def again(there: Params, _: int) -> Params:
            return jax.grad(objective, has_aux=True)(there)[0]

        direction, state = both.update(gradient, state, params, grad_fn=again)
        return Step(_moved(params, direction, rate), state, loss, more)

    return Method(both.init, step)


def line_searched(*, memory: int = 10) -> Method:
    """L-BFGS with a zoom line search, one step a batch (``optax.lbfgs``); the rate has no part.

    Args:
      memory: pairs of past steps that are kept.
    """
    solver = optax.lbfgs(memory_size=memory)

    def step(objective: Objective, params: Params, state: Tree, rate: Array) -> Step:
        del rate
        (loss, more), gradient = jax.value_and_grad(objective, has_aux=True)(params)
        updates, state = solver.update(
            gradient,
            state,
            params,
            value=loss,
            grad=gradient,
            value_fn=lambda there: objective(there)[0],
        )
        return Step(optax.apply_updates(params, updates), state, loss, more)

    return Method(solver.init, step)


def _moved(params: Params, direction: Params, rate: Array | float) -> Params:
    return jax.tree.map(lambda p, d: (p - rate * d).astype(jnp.result_type(p)), params, direction)
