"""Compilation of functions that close over data: captured arrays become arguments.

Left where they are, they would be written into the program, which takes the compiler a copy of the
data and a walk over it. What a function closes over must not change once it is compiled.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.extend import core

from densejax.typing import Tree

Built = TypeVar("Built")
# Structure, shapes and dtypes of a tree of arrays: what has a hash, and makes a program.
Signature = tuple[Any, tuple[tuple[tuple[int, ...], str], ...]]

# Compiled programs of so many losses are kept, with the data that the losses close over.
REMEMBERED = 8


def remembered(build: Callable[..., Built]) -> Callable[..., Built]:
    """``build`` with its last results kept, so that programs are compiled once a loss.

    Nothing is kept of arguments that have no hash.
    """
    kept = lru_cache(maxsize=REMEMBERED)(build)

    def built(*arguments: Any) -> Built:
        try:
            hash(arguments)
        except TypeError:
            return build(*arguments)
        return kept(*arguments)

    return built


def signature_of(tree: Tree) -> Signature:
    """The signature of a tree of arrays."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((jnp.shape(leaf), str(jnp.result_type(leaf))) for leaf in leaves)


def shapes_of(signature: Signature, *, stacked: bool = False) -> Tree:
    """A tree of ``jax.ShapeDtypeStruct``; of one instance where the signature is of many."""
    structure, leaves = signature
    shapes = [(shape[1:] if stacked else shape, dtype) for shape, dtype in leaves]
    return jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*one) for one in shapes])


def hoisted(
    function: Callable[..., Tree], *arguments: Tree
) -> tuple[list[Any], Callable[..., Tree]]:
    """The arrays that a pure function closes over, and ``run(arrays, *arguments)``: the function.

    ``run`` can be compiled, mapped and differentiated. Keys are no such arrays: they stay inside.
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
    """``jax.jit`` of a pure function that closes over data; ``donate`` is ``donate_argnums``."""
    programs: dict[Any, tuple[list[Any], Callable[..., Tree]]] = {}
    moved = tuple(position + 1 for position in donate)

    def call(*arguments: Tree) -> Tree:
        signature = signature_of(arguments)
        if signature not in programs:
            arrays, run = hoisted(function, *arguments)
            programs[signature] = arrays, jax.jit(run, donate_argnums=moved)
        arrays, program = programs[signature]
        return program(arrays, *arguments)

    return call


def unjitted(function: Callable[..., Tree]) -> Callable[..., Tree]:
    """The function that was handed to ``jax.jit``: inside a compiled one data are out of reach."""
    kind: Any = type(jax.jit(lambda: None))
    return vars(function)["__wrapped__"] if isinstance(function, kind) else function
