"""What is measured at a point: the loss in either of its forms, over batches, with batch norm.

A loss of the landscape is ``loss_fn(params) -> scalar``, or ``-> {name: scalar}`` with ``loss``
among the names (loss and accuracy in one pass); pure, of any pytree of arrays.

Batch norm away from a minimum: *frozen* moments are the plain loss,
``lambda params: loss({"params": params, "batch_stats": moments})``, what Li et al. 2018 draw. They
fit no more, and what is seen is partly that; *recalibrated* computes them again at each point, as
is done for averaged parameters (Izmailov et al. 2018) and on paths (Garipov et al. 2018).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from densejax.typing import Params, Tree

LossFunction = Callable[[Params], Any]

# Moments far above any batch's, so that their share in a mean is seen to full precision.
LARGE = 2.0**20


def measures_of(loss_fn: LossFunction) -> Callable[[Params], dict[str, jax.Array]]:
    """A loss function that returns a dictionary: a scalar becomes ``{"loss": scalar}``.

    Raises:
      ValueError: (the returned function) a tuple such as ``(loss, aux)``, no ``loss`` among the
        measures, or one is not a real scalar.
    """

    def measures(params: Params) -> dict[str, jax.Array]:
        values = loss_fn(params)
        if isinstance(values, tuple | list):
            raise ValueError(
                f"the loss function returns a {type(values).__name__} of {len(values)}: expected a "
                "scalar, or a dictionary of scalars with 'loss' among them (of a loss with "
                "auxiliary values, {'loss': loss, 'accuracy': accuracy}, or the loss alone)"
            )
        values = dict(values) if isinstance(values, Mapping) else {"loss": values}
        if "loss" not in values:
            raise ValueError(f"the loss function returns {sorted(values)}: expected a 'loss'")
        for name, value in values.items():
            _check_scalar(name, value)
        return values

    return measures


def _check_scalar(name: str, value: Any) -> None:
    try:
        dtype = None if value is None else jnp.result_type(value)
    except (TypeError, ValueError):
        dtype = None
    if dtype is None or jnp.issubdtype(dtype, jax.dtypes.extended):
        found = f"is a {type(value).__name__}"
    elif jnp.shape(value) != ():
        found = f"has shape {list(jnp.shape(value))}"
    elif jnp.issubdtype(dtype, jnp.complexfloating):
        found = f"is {dtype}"
    else:
        return
    raise ValueError(f"{name} of the loss function {found}: expected a scalar of a real dtype")


def loss_of(loss_fn: LossFunction) -> Callable[[Params], jax.Array]:
    """The loss alone, as a function that can be differentiated; as ``measures_of`` refuses."""
    measures = measures_of(loss_fn)
    return lambda params: measures(params)["loss"]


def over_batches(
    loss_fn: Callable[[Params, Tree], Any], data: Tree, *, size: int
) -> Callable[[Params], Any]:
    """The mean of a loss over data that are read in batches, one after another.

    Exact where ``loss_fn`` is a mean over the rows of its batch, the last of which may be smaller.
    Memory is a batch's, derivatives of any order included: each batch is computed again on the way
    back (rematerialised), at the price of one more forward pass.

    Args:
      loss_fn: of parameters and a batch, a tree like ``data`` with up to ``size`` rows; returns a
        scalar or ``{name: scalar}``, means over the rows.
      data: tree of arrays [n, ...] with one n.
      size: rows of a batch, at least 1.

    Returns:
      ``loss_fn(params)``, as every function of the landscape takes it.

    Raises:
      ValueError: ``size`` is below 1, there are no rows, or the arrays differ in length.
    """
    data = jax.tree.map(jnp.asarray, data)
    lengths = sorted({len(leaf) if leaf.ndim else 0 for leaf in jax.tree.leaves(data)})
    if len(lengths) != 1 or 0 in lengths or size < 1:
        raise ValueError(
            f"data of {lengths} rows in batches of {size}: expected one number of rows for all "
            "arrays, and at least 1 of both"
        )
    n = lengths[0]
    whole = n // size

    def blocks(leaf: jax.Array) -> jax.Array:
        return leaf[: whole * size].reshape(whole, size, *leaf.shape[1:])

    batches = jax.tree.map(blocks, data)
    rest = jax.tree.map(lambda leaf: leaf[whole * size :], data)

    once = jax.checkpoint(loss_fn, prevent_cse=False)

    def mean(params: Params) -> Any:
        def add(total: Any, batch: Tree) -> tuple[Any, None]:
            return _add(total, once(params, batch), size / n), None

        if not whole:
            return loss_fn(params, rest)
        first = jax.tree.map(lambda leaf: leaf[0], batches)
        shapes = jax.eval_shape(loss_fn, params, first)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        total, _ = lax.scan(add, zeros, batches)
        if whole * size == n:
            return total
        return _add(total, once(params, rest), (n - whole * size) / n)

    return mean


def _add(total: Any, values: Any, share: float) -> Any:
    return jax.tree.map(lambda sum_of, value: sum_of + share * value, total, values)


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
        any fixed shares: a Flax network's ``apply`` (of one whose argument is called otherwise,
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
