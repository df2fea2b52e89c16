"""Adam and the schedule of the published segmentation networks, in the form of TensorFlow 1."""

import jax
import jax.numpy as jnp
import optax

from densejax.typing import Array, Params

# The thesis searched exponents: beta = 1 - 10^-1.5 and 1 - 10^-2.1, decays every 10^3.4 steps.
PUBLISHED_BETA1 = 1 - 10**-1.5
PUBLISHED_BETA2 = 1 - 10**-2.1
PUBLISHED_DECAY_STEPS = 10**3.4


def scale_by_adam_epsilon_hat(
    *, b1: float = PUBLISHED_BETA1, b2: float = PUBLISHED_BETA2, epsilon: float = 1e-7
) -> optax.GradientTransformation:
    """Adam's direction in the form of TensorFlow 1, which trained the published networks.

    ``sqrt(1-b2^t) / (1-b1^t) * m / (sqrt(v) + epsilon)``: the "epsilon hat" form of section 2 of
    Kingma and Ba (2015). ``optax.scale_by_adam`` adds epsilon after the bias correction instead.

    Args:
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      epsilon: added to the uncorrected root of the second moment.

    Returns:
      A transformation; multiply its updates by minus the learning rate.
    """

    def init(params: Params) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(
            count=jnp.zeros((), jnp.int32), mu=zeros, nu=jax.tree.map(jnp.zeros_like, params)
        )

    def update(
        updates: Params, state: optax.ScaleByAdamState, params: Params | None = None
    ) -> tuple[Params, optax.ScaleByAdamState]:
        del params
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, updates)
        steps = count.astype(jnp.float32)
        correction = jnp.sqrt(1 - b2**steps) / (1 - b1**steps)
        directions = jax.tree.map(lambda m, v: correction * m / (jnp.sqrt(v) + epsilon), mu, nu)
        return directions, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def staircase_decay(
    learning_rate: Array | float,
    step: Array | int,
    *,
    rate: Array | float = 0.75,
    every: Array | float = PUBLISHED_DECAY_STEPS,
) -> jax.Array:
    """The published schedule: the learning rate times ``rate ** floor(step / every)``.

    Every argument may be an array, so that each instance of a population has its own schedule.

    Args:
      learning_rate: initial rate.
      step: number of updates already made.
      rate: factor at each stair; 1 is no decay (as the released notebook trains).
      every: updates between stairs; the published 10^3.4 is no integer.

    Returns:
      The learning rate at ``step``, float32.
    """
    stairs = jnp.floor(jnp.asarray(step, jnp.float32) / every)
    return jnp.asarray(learning_rate, jnp.float32) * jnp.power(rate, stairs)
