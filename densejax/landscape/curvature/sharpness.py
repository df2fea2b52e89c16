"""Sharpness: by how much the loss can rise within a small step, without second derivatives.

Neither is invariant to a rescaling of ReLU layers that leaves the network's function as it is (Dinh
et al. 2017); compare networks of one architecture, or filter-normalised pictures.
"""

import jax
import jax.numpy as jnp
from jax import lax

from densejax import trees
from densejax.landscape.filters import split, warn_of_moments
from densejax.landscape.objective import LossFunction, loss_of
from densejax.typing import Array, Key, Params


def ascent_sharpness(
    loss_fn: LossFunction, params: Params, *, radius: Array | float = 0.05
) -> jax.Array:
    """The rise of the loss by one step along its gradient. Pure.

    What sharpness-aware minimisation takes for the largest rise in a ball (Foret, Kleiner, Mobahi
    and Neyshabur 2021, equation 2): ``L(w + radius g / ||g||) - L(w)``. To first order
    ``radius ||g||``; where the gradient vanishes its direction is rounding, and the value tells
    little.

    Args:
      loss_fn: of parameters; returns a scalar or ``{name: scalar}`` with ``loss`` in it.
      params: tree of arrays.
      radius: Euclidean length of the step, 0 or more.

    Returns:
      Scalar [], in units of the loss. Warns of running moments among the parameters.

    Raises:
      ValueError: the loss is not a scalar.
    """
    loss = loss_of(loss_fn)
    warn_of_moments(params)
    moving, join = split(params)
    value, gradient = jax.value_and_grad(lambda moving: loss(join(moving)))(moving)
    length = trees.norm(gradient)
    step = jnp.where(length > 0, radius / jnp.where(length > 0, length, 1), 0)
    return loss(join(trees.axpy(step, gradient, moving))) - value


def box_sharpness(
    key: Key,
    loss_fn: LossFunction,
    params: Params,
    *,
    epsilon: Array | float = 1e-3,
    steps: int = 20,
) -> jax.Array:
    """The largest relative rise of the loss found in a box about the parameters. Pure.

    Keskar, Mudigere, Nocedal, Smelyanskiy and Tang 2017 (metric 2.1, in the full space):
    ``100 (max L(w + z) - L(w)) / (1 + L(w))`` over ``|z_i| <= epsilon (|w_i| + 1)``. The maximum is
    sought by steps along the sign of the gradient, a quarter of the box each and clipped to it,
    from a random point of the box (Keskar et al.: ten iterations of L-BFGS-B), so the value is a
    lower bound.

    Args:
      key: of the random point.
      loss_fn: as in ``ascent_sharpness``.
      params: tree of arrays.
      epsilon: size of the box, above 0; Keskar et al. take 1e-3 and 5e-4.
      steps: gradients computed.

    Returns:
      Scalar [], in per cent of ``1 + L(w)``; 0 or more.

    Raises:
      ValueError: as in ``ascent_sharpness``.
    """
    loss = loss_of(loss_fn)
    warn_of_moments(params)
    moving, join = split(params)
    box = [epsilon * (jnp.abs(leaf) + 1) for leaf in moving]
    offset = [b * jnp.tanh(d) for b, d in zip(box, trees.random_like(key, moving), strict=True)]
    centre = loss(params)

    def moved(offset: list[jax.Array]) -> jax.Array:
        there = [p + o.astype(p.dtype) for p, o in zip(moving, offset, strict=True)]
        return loss(join(there))

    def step(_: Array, state: tuple) -> tuple[list[jax.Array], jax.Array]:
        offset, best = state
        value, gradient = jax.value_and_grad(moved)(offset)

        def ascend(o: jax.Array, g: jax.Array, b: jax.Array) -> jax.Array:
            return jnp.clip(o + 0.25 * b * jnp.sign(g), -b, b)

        return jax.tree.map(ascend, offset, gradient, box), jnp.maximum(best, value)

    offset, best = lax.fori_loop(0, steps, step, (offset, centre))
    best = jnp.maximum(best, moved(offset))
    return 100 * (best - centre) / (1 + centre)
