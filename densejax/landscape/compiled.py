"""Compilation of functions that close over data: captured arrays become arguments.

Left where they are, they would be written into the program, which takes the compiler a copy of the
data and a walk over it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from densejax.typing import Tree


def hoisted(
    function: Callable[..., Tree], *arguments: Tree
) -> tuple[list[Any], Callable[..., Tree]]:
    """A pure function traced for arguments of some shapes, with its captured arrays apart.

    Args:
      function: of trees of arrays.
      *arguments: trees of arrays or ``jax.ShapeDtypeStruct``.

    Returns:
      The arrays that it closes over (keys excepted, which stay inside), and ``run(arrays,
      *arguments)``, which is the function and can be compiled, mapped and differentiated.
    """
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    structure = jax.tree.structure(shapes)
    inside = [jnp.issubdtype(c.dtype, jax.dtypes.extended) for c in traced.consts]
    arrays = [c for c, stays in zip(traced.consts, inside, strict=True) if not stays]

    def run(arrays: Sequence[Any], *arguments: Tree) -> Tree:
        given = iter(arrays)
        captured = [
            own if stays else next(given) for own, stays in zip(traced.consts, inside, strict=True)
        ]
        evaluate = core.jaxpr_as_fun(core.ClosedJaxpr(traced.jaxpr, captured))
        return jax.tree.unflatten(structure, evaluate(*jax.tree.leaves(arguments)))

    return arrays, run


def compiled(function: Callable[..., Tree], *, donate: Sequence[int] = ()) -> Callable[..., Tree]:
    """``jax.jit`` of a pure function that closes over data.

    Args:
      function: of trees of arrays; what it closes over must not change.
      donate: positions of arguments whose memory the results may take over.

    Returns:
      The function, compiled once for all arguments of the same structure, shapes and dtypes.
    """
    programs: dict[Any, tuple[list[Any], Callable[..., Tree]]] = {}
    moved = tuple(position + 1 for position in donate)

    def call(*arguments: Tree) -> Tree:
        leaves, structure = jax.tree.flatten(arguments)
        shapes = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
        if (structure, shapes) not in programs:
            arrays, run = hoisted(function, *arguments)
            programs[structure, shapes] = arrays, jax.jit(run, donate_argnums=moved)
        arrays, program = programs[structure, shapes]
        return program(arrays, *arguments)

    return call


def unjitted(function: Callable[..., Tree]) -> Callable[..., Tree]:
    """The function that was handed to ``jax.jit``: inside a compiled one data are out of reach."""
    kind: Any = type(jax.jit(lambda: None))
    return vars(function)["__wrapped__"] if isinstance(function, kind) else function
