"""A loss as a program whose data are arguments, so that the compiler need not process them."""

from typing import Any

import jax
import jax.numpy as jnp

from densejax.landscape.compiled import hoisted, unjitted
from densejax.landscape.objective import LossFunction, loss_of
from densejax.typing import Params, Tree

Signature = tuple[Any, tuple[tuple[tuple[int, ...], str], ...]]


def signature_of(tree: Tree) -> Signature:
    """Structure, shapes and dtypes of a tree of arrays: what has a hash, and makes a program."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((jnp.shape(leaf), str(jnp.result_type(leaf))) for leaf in leaves)


class TracedLoss:
    """The loss of one minimum as ``(constants, params, settings) -> [] float32``.

    Matrix products are traced at full float32 precision (no TF32) unless the loss asks for another.

    Attributes:
      constants: list of the arrays that the loss closes over.
    """

    def __init__(
        self, loss_fn: LossFunction, minima: Signature, settings: Signature | None
    ) -> None:
        """Trace.

        Args:
          loss_fn: of parameters, or of parameters and settings where these are given.
          minima: of stacked parameters [k, ...].
          settings: of stacked settings, or None.

        Raises:
          ValueError: the loss is no scalar.
        """

        plain = unjitted(loss_fn)

        def loss(params: Params, values: Tree) -> jax.Array:
            if settings is None:
                return jnp.asarray(loss_of(plain)(params), jnp.float32)
            with_values = loss_of(lambda moved: plain(moved, values))  # type: ignore[call-arg]
            return jnp.asarray(with_values(params), jnp.float32)

        params, values = _one(minima), None if settings is None else _one(settings)
        with jax.default_matmul_precision("highest"):
            self.constants, self._run = hoisted(loss, params, values)
        # The loss is kept as well: a key of the store of programs must not outlive what it names.
        self._loss_fn = loss_fn

    def __call__(self, constants: list[Any], params: Params, settings: Tree) -> jax.Array:
        return self._run(constants, params, settings)


def _one(signature: Signature) -> Tree:
    """Shapes of one instance of stacked arrays."""
    structure, leaves = signature
    shapes = [jax.ShapeDtypeStruct(shape[1:], dtype) for shape, dtype in leaves]
    return jax.tree.unflatten(structure, shapes)
