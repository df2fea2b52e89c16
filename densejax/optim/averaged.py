"""Averaged stochastic gradient descent, in the form of PyTorch."""

import jax
import jax.numpy as jnp

from densejax.optim.method import Method, Objective, Step
from densejax.typing import Array, Params, Tree


def averaged(*, decay: float = 1e-4, power: float = 0.75, average_after: float = 1e6) -> Method:
    """ASGD (Polyak and Juditsky 1992), with the decays of ``torch.optim.ASGD``.

    Step t, from 1, with eta_1 the learning rate: ``p <- (1 - decay * eta_t) p - eta_t * gradient``,
    then ``eta_{t+1} = rate / (1 + decay * rate * t) ** power``. So a new rate takes effect one step
    late, as there. The average over all steps after ``average_after`` is ``state["average"]`` (the
    newest parameters before); like there, nobody but its reader uses it, and networks are evaluated
    at their parameters. At PyTorch's default of a million steps the published runs (58,650 steps)
    never average.

    Args:
      decay: shrinks the parameters at each step, and the rate over time (``lambd``).
      power: of the falling rate (``alpha``).
      average_after: steps before the average begins (``t0``).

    Raises:
      ValueError: a number is negative.
    """
    for name, value in (("decay", decay), ("power", power), ("average_after", average_after)):
        if value < 0:
            raise ValueError(f"{name} is {value}: expected 0 or more")

    def init(params: Params) -> Tree:
        return {
            "average": jax.tree.map(jnp.zeros_like, params),
            "weight": jnp.float32(1),
            "eta": jnp.float32(0),
            "count": jnp.float32(0),
        }

    def step(objective: Objective, params: Params, state: Tree, rate: Array) -> Step:
        (loss, more), gradient = jax.value_and_grad(objective, has_aux=True)(params)
        rate = jnp.asarray(rate, jnp.float32)
        eta = jnp.where(state["count"] == 0, rate, state["eta"])
        weight, count = state["weight"], state["count"] + 1
        params = jax.tree.map(lambda p, g: p * (1 - decay * eta) - eta * g, params, gradient)
        average = jax.tree.map(
            lambda a, p: jnp.where(weight == 1, p, a + weight * (p - a)), state["average"], params
        )
        state = {
            "average": average,
            "weight": 1 / jnp.maximum(1, count - average_after),
            "eta": rate / (1 + decay * rate * count) ** power,
            "count": count,
        }
        return Step(params, state, loss, more)

    return Method(init, step)
