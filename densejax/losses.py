"""Losses: weighted cross-entropy that never counts unlabelled voxels, and the L2 penalty."""

from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from densejax.typing import UNLABELLED, Array, Params

Reduction = Literal["mean", "sum"]


def weighted_cross_entropy(
    logits: Array, labels: Array, *, weights: Array | None = None, reduction: Reduction = "mean"
) -> jax.Array:
    """Cross-entropy of integer labels, each voxel times its error weight.

    The data term of equation 4.3 (Emam 2022): ``(1/N) sum_i W_i H(x_i, p_i)`` with N the number of
    labelled voxels. Departure: the thesis divides by all voxels; the two agree where every voxel
    is labelled. ``reduction="sum"`` leaves the division out, as the released code does.

    Args:
      logits: ``[..., c]`` float.
      labels: ``[...]`` int32 in 0..c-1, or -1 for not labelled.
      weights: ``[...]`` float, not negative; None is one everywhere.
      reduction: ``mean`` over labelled voxels or ``sum``.

    Returns:
      The scalar loss, float32; 0 where no voxel is labelled.
    """
    labels = jnp.asarray(labels)
    counts = labels != UNLABELLED
    safe = jnp.where(counts, labels, 0)
    log_probabilities = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32), axis=-1)
    # A comparison with iota instead of a gather: its gradient is a product, not a scatter.
    picked = safe[..., None] == jnp.arange(log_probabilities.shape[-1])
    losses = -jnp.sum(jnp.where(picked, log_probabilities, 0.0), axis=-1)
    if weights is not None:
        losses = losses * weights
    total = jnp.sum(jnp.where(counts, losses, 0.0))
    if reduction == "sum":
        return total
    return total / jnp.maximum(jnp.sum(counts), 1)


def grouped_l2(
    params: Params, factors: Mapping[str, float], group_of: Callable[[tuple[str, ...]], str | None]
) -> jax.Array:
    """Sum over parameters of ``factor of its group * sum(theta^2)``: the penalty of equation 4.3.

    Args:
      params: tree of arrays.
      factors: the penalty factor of each group.
      group_of: the group of a parameter from its path of names; None is not penalised.

    Returns:
      The scalar penalty, float32.

    Raises:
      KeyError: a parameter's group has no factor.
    """
    total = jnp.zeros((), jnp.float32)
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        group = group_of(tuple(str(getattr(part, "key", part)) for part in path))
        if group is not None and factors[group] != 0.0:
            total = total + factors[group] * jnp.sum(jnp.square(leaf))
    return total
