"""Batch norm away from a minimum: its moments are the minimum's, or computed again at each point.

*Frozen* is the plain loss, ``lambda params: loss({"params": params, "batch_stats": moments})``:
what Li et al. 2018 draw. Away from the minimum the moments fit no more, and what is seen is partly
that; *recalibrated* computes them again at each point, as is done for averaged weights (Izmailov et
al. 2018) and on paths between minima (Garipov et al. 2018).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from densejax.typing import Params, Tree

# Moments far above any batch's, so that their share in a mean is seen to full precision.
LARGE = 2.0**20


def recalibrated(
    apply_fn: Callable[..., Any],
    batches: Tree,
    loss: Callable[[Tree], Any],
    batch_stats: Tree,
) -> Callable[[Params], Any]:
    """A loss of the parameters whose batch-norm moments are computed from batches at each point.

    The moments are means, over the batches, of each batch's own mean and variance (the unbiased one
    where the network keeps that), as ``torch.optim.swa_utils.update_bn`` computes them. Each point
    costs a pass over the batches in training mode beside the loss.

    Args:
      apply_fn: ``apply_fn(variables, batch, train=True, mutable=["batch_stats"])`` returns anything
        and ``{"batch_stats": moments}``, a weighted mean of the moments given and the batch's with
        any fixed weights: a Flax network's ``apply`` (of one whose argument is called otherwise,
        a lambda).
      batches: [t, b, ...], t batches of b samples, or a tree of such.
      loss: ``{"params": ..., "batch_stats": ...}`` to a scalar, or to ``{name: scalar}`` with
        ``loss`` in it; in evaluation mode.
      batch_stats: moments as the network has them: their structure and shapes.

    Returns:
      ``loss_fn(params)``, as every function of the landscape takes it.

    Raises:
      ValueError: no batches. When used: the network puts out other moments than it takes, or leaves
        them as they are (batch norm that is frozen).
    """
    batches = jax.tree.map(jnp.asarray, batches)
    counts = {leaf.shape[:1] for leaf in jax.tree.leaves(batches)}
    if len(counts) != 1 or counts & {(), (0,)}:
        raise ValueError(
            f"batches of lengths {sorted(counts)}: expected [t, b, ...], one t of at least 1"
        )
    count = counts.pop()[0]

    def update(moments: Tree, params: Params, batch: Tree) -> Tree:
        variables = {"params": params, "batch_stats": moments}
        _, changed = apply_fn(variables, batch, train=True, mutable=["batch_stats"])
        return dict(changed)["batch_stats"]

    def loss_fn(params: Params) -> Any:
        first = jax.tree.map(lambda leaf: leaf[0], batches)
        _check_update(update, batch_stats, params, first)
        zeros, large = (
            jax.tree.map(lambda leaf, fill=fill: jnp.full_like(leaf, fill), batch_stats)
            for fill in (0, LARGE)
        )

        def add(total: Tree, batch: Tree) -> tuple[Tree, None]:
            # The network returns s * old + (1 - s) * batch, with an s that it alone knows. What
            # depends on the batch is the same in both passes, and compiled once.
            from_zeros, from_large = (update(old, params, batch) for old in (zeros, large))
            of_batch = jax.tree.map(lambda a, b: a / (1 - (b - a) / LARGE), from_zeros, from_large)
            return jax.tree.map(jnp.add, total, of_batch), None

        total, _ = jax.lax.scan(add, zeros, batches)
        moments = jax.tree.map(lambda leaf: leaf / count, total)
        return loss({"params": params, "batch_stats": moments})

    return loss_fn


def _check_update(
    update: Callable[..., Tree], batch_stats: Tree, params: Params, batch: Tree
) -> None:
    """Raise ValueError unless the moments that come out are new ones like those that go in."""
    changed = jax.eval_shape(update, batch_stats, params, batch)
    structures: list[Any] = [jax.tree.structure(tree) for tree in (batch_stats, changed)]
    if structures[0] != structures[1]:
        raise ValueError(f"batch_stats are {structures[0]}, the network puts out {structures[1]}")
    jaxpr = jax.make_jaxpr(update)(batch_stats, params, batch).jaxpr
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(batch_stats)]
    for path, out in zip(paths, jaxpr.outvars, strict=True):
        if any(out is given for given in jaxpr.invars):
            raise ValueError(
                f"the network leaves the moments {jax.tree_util.keystr(path)} as they are: "
                "expected batch norm that is not frozen"
            )
