"""What one forward pass costs, counted from shapes and not from any compiler's estimate.

XLA counts the work of the program that it was given, padding and rearrangement included; here only
multiply-adds of convolutions and matrix products count, two operations each, as in the literature.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def gflop(model: nn.Module, input_window: Sequence[int], *, channels: int = 1) -> float:
    """Floating-point operations of one forward pass over one window.

    Args:
      model: a network called on [b, z, y, x, c].
      input_window: (z, y, x) voxels.
      channels: c.

    Returns:
      Operations / 1e9, two a multiply-add, of convolutions and matrix products only (biases,
      activations and pooling are below 1% of these networks). Products with the zeros of a padding
      count. Nothing is allocated.

    Raises:
      ValueError: if the model does not take the window.
    """
    x = jax.ShapeDtypeStruct((1, *input_window, channels), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    return 2e-9 * multiply_adds(jax.make_jaxpr(model.apply)(params, x).jaxpr)


def parameters(model: nn.Module, input_window: Sequence[int], *, channels: int = 1) -> int:
    """Number of parameters of a network called on a window (z, y, x); nothing is allocated.

    Raises:
      ValueError: if the model does not take the window.
    """
    x = jax.ShapeDtypeStruct((1, *input_window, channels), jnp.float32)
    leaves = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0), x)["params"])
    return sum(math.prod(leaf.shape) for leaf in leaves)


def multiply_adds(jaxpr: Any) -> int:
    """Multiply-adds of the convolutions and matrix products of a jaxpr, inner jaxprs included.

    The body of a ``scan`` counts once a turn, that of a ``while`` once.
    """
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> int:
    name = equation.primitive.name
    shapes = [getattr(v.aval, "shape", ()) for v in equation.invars]
    out = equation.outvars[0].aval.shape if equation.outvars else ()
    if name == "dot_general":
        (contract, _), _ = equation.params["dimension_numbers"]
        return math.prod(out) * math.prod(shapes[0][i] for i in contract)
    if name == "densejax_convolution":
        return math.prod(out) * math.prod(shapes[1][:-1])
    if name == "densejax_convolution_weight_gradient":
        return math.prod(out) * math.prod(shapes[1][:-1])
    if name == "conv_general_dilated":
        spec = equation.params["dimension_numbers"].rhs_spec
        # Every output sums over the kernel without its output channels, the first of the spec.
        return math.prod(out) * math.prod(np.delete(shapes[1], spec[0]).tolist())
    turns = equation.params["length"] if name == "scan" else 1
    return turns * sum(multiply_adds(inner) for inner in _inner(equation.params.values()))


def _inner(values: Any) -> Iterator[Any]:
    for value in values:
        if hasattr(value, "jaxpr"):
            yield value.jaxpr
        elif hasattr(value, "eqns"):
            yield value
        elif isinstance(value, list | tuple):
            yield from _inner(value)
