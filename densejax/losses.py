"""Losses: cross-entropy that never counts unlabelled voxels, the L2 penalty, contrastive losses."""

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


def soft_dice(logits: Array, labels: Array, *, epsilon: Array | float = 1e-5) -> jax.Array:
    """Compute one minus the classes' mean soft Dice coefficient, its sums over the whole batch.

    ``1 - mean_c (2 sum_i p_ic g_ic + eps) / (sum_i p_ic + sum_i g_ic + eps)`` over labelled voxels
    i, with p the softmax and g one-hot labels: Milletari et al. 2016 (arXiv 1606.04797) without
    squares, as nnU-Net's batch Dice. All classes count, the background too (MONAI's ``DiceLoss``
    with ``batch=True``, ``softmax=True``, ``to_onehot_y=True``).

    Args:
      logits: ``[b, ..., c]`` float.
      labels: ``[b, ...]`` int32 in 0..c-1, or -1 for not labelled, which never count.
      epsilon: smooths both sums, above 0.

    Returns:
      The scalar loss in 0 to 1, float32; 0 where no voxel is labelled.
    """
    labels = jnp.asarray(labels)
    counts = (labels != UNLABELLED)[..., None]
    # Selections, not products with a float mask: what is not labelled may hold no number, and the
    # gradient of its softmax would hold none either.
    shares = jax.nn.softmax(jnp.where(counts, jnp.asarray(logits, jnp.float32), 0.0), axis=-1)
    truth = (labels[..., None] == jnp.arange(shares.shape[-1])) & counts
    axes = tuple(range(labels.ndim))
    common = jnp.sum(jnp.where(truth, shares, 0.0), axes)
    sizes = jnp.sum(truth, axes).astype(jnp.float32)
    seen = jnp.sum(jnp.where(counts, shares, 0.0), axes)
    dice = (2 * common + epsilon) / (seen + sizes + epsilon)
    return jnp.where(jnp.any(counts), 1 - jnp.mean(dice), 0.0)


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


def nt_xent(first: Array, second: Array, *, temperature: Array | float = 0.5) -> jax.Array:
    """Normalised temperature-scaled cross-entropy of pairs of views.

    Source: Chen, Kornblith, Norouzi and Hinton 2020 (SimCLR), equation 1: row i of one view has to
    find row i of the other among the 2 b - 1 other rows, by cosine similarity.

    Args:
      first: [b, d] floating, projections of the first views; of any length.
      second: [b, d] floating, of the second views of the same pictures.
      temperature: what similarities are divided by, above 0; a scalar.

    Returns:
      The mean over all 2 b rows, float32.

    Raises:
      ValueError: the shapes are not one [b, d].
    """
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(
            f"nt_xent: expected two arrays of one shape [b, d], found {first.shape} and "
            f"{second.shape}"
        )
    b = first.shape[0]
    rows = unit_rows(jnp.concatenate([first, second]))
    itself = jnp.eye(2 * b, dtype=bool)
    logits = jnp.where(itself, -jnp.inf, rows @ rows.T / temperature)
    partners = jnp.sum(rows[:b] * rows[b:], axis=1) / temperature
    return jnp.mean(jax.nn.logsumexp(logits, axis=1)) - jnp.mean(partners)


def info_nce(
    queries: Array, keys: Array, queue: Array, *, temperature: Array | float = 0.2
) -> jax.Array:
    """Cross-entropy of finding a query's own key among it and a queue of others' keys.

    Source: He et al. 2020 (MoCo), equation 1; temperature of Chen, Fan et al. 2020 (v2). The other
    keys of the batch are no negatives, as released. No gradient goes into keys or queue.

    Args:
      queries: [b, d] floating, of any length.
      keys: [b, d] floating, of any length; row i belongs to query i.
      queue: [n, d] floating, keys of earlier batches, rows of length 1.
      temperature: what similarities are divided by, above 0; a scalar.

    Returns:
      The mean over queries, float32.

    Raises:
      ValueError: the shapes do not go together.
    """
    shapes = (queries.shape, keys.shape, queue.shape)
    if [len(shape) for shape in shapes] != [2, 2, 2] or (
        queries.shape != keys.shape or queue.shape[1] != queries.shape[1]
    ):
        raise ValueError(f"info_nce: expected [b, d], [b, d] and [n, d], found {shapes}")
    queries = unit_rows(queries)
    keys, queue = jax.lax.stop_gradient((unit_rows(keys), jnp.asarray(queue, jnp.float32)))
    own = jnp.sum(queries * keys, axis=1, keepdims=True)
    logits = jnp.concatenate([own, queries @ queue.T], axis=1) / temperature
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - logits[:, 0])


def unit_rows(x: Array, *, epsilon: float = 1e-12) -> jax.Array:
    """Rows of ``x`` [..., d] divided by their length, float32; a row of zeros stays zeros.

    Lengths below ``epsilon`` count as ``epsilon``, as in PyTorch's ``normalize``; the gradient of a
    row of zeros is zero.
    """
    x = jnp.asarray(x, jnp.float32)
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    # The root's gradient is infinite at zero, and infinity times zero is no number.
    short = squares <= epsilon**2
    return x / jnp.where(short, epsilon, jnp.sqrt(jnp.where(short, 1.0, squares)))
