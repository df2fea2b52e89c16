"""What is measured at a point: the loss in either of its forms, and its mean over batches.

A loss of the landscape is ``loss_fn(params) -> scalar``, or ``-> {name: scalar}`` with ``loss``
among the names (loss and accuracy in one pass); pure, of any pytree of arrays.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from densejax.typing import Params, Tree

LossFunction = Callable[[Params], Any]


def measures_of(loss_fn: LossFunction) -> Callable[[Params], dict[str, jax.Array]]:
    """A loss function that returns a dictionary: a scalar becomes ``{"loss": scalar}``.

    Raises:
      ValueError: (the returned function) no ``loss`` among the measures, or one is not a scalar.
    """

    def measures(params: Params) -> dict[str, jax.Array]:
        values = loss_fn(params)
        values = dict(values) if isinstance(values, Mapping) else {"loss": values}
        if "loss" not in values:
            raise ValueError(f"the loss function returns {sorted(values)}: expected a 'loss'")
        for name, value in values.items():
            if jnp.shape(value) != ():
                raise ValueError(
                    f"{name} of the loss function has shape {list(jnp.shape(value))}: expected a "
                    "scalar"
                )
        return values

    return measures


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
