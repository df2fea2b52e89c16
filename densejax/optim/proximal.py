"""Proximal backpropagation: a layer's step from a regularised least-squares problem."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from densejax.typing import Array, Params, Tree

Layer = Callable[[Params, Array], jax.Array]


def proximal(
    layer: Layer,
    *,
    tau: float = 0.5,
    iterations: int = 10,
    tolerance: float = 1e-2,
    epsilon: float = 1e-6,
    by_unit: bool | None = None,
) -> Layer:
    """The same layer with the proximal step of ProxProp in place of its parameters' gradient.

    Source: Frerix et al. 2018, equation 9, in the form of their code: with ``A`` the layer at its
    input, ``z = A theta`` its values and ``g`` the gradient at ``z``,

        theta' = argmin over X of |A X - (z - g)|^2 / 2 + |X - theta|^2 / (2 tau),

    by conjugate gradients from ``theta``. What is handed on as the "gradient" is ``theta - theta'``
    (the published runs feed it to Adam); it solves ``(A^T A + 1 / tau) D = A^T g``. The input's
    gradient is the ordinary one.

    Args:
      layer: linear in its parameters, ``({"kernel": [..., d], "bias": [d]}, x) -> z``.
      tau: step length of the proximal step, above 0; the smaller, the nearer to the gradient.
      iterations: of conjugate gradients, at least 1.
      tolerance: they end where the largest residual falls below this part of the first ones' mean.
      epsilon: added to the denominators, as released; it damps the steps of tiny gradients.
      by_unit: whether each output unit has a system of its own, which converges no more slowly, or
        one common step length. None is as released: products by unit, convolutions in common.

    Returns:
      A layer like ``layer``, for reverse-mode gradients of the first order.

    Raises:
      ValueError: ``tau`` is not above 0, or ``iterations`` is below 1.
    """
    if tau <= 0 or iterations < 1:
        raise ValueError(
            f"tau {tau}, iterations {iterations}: expected a tau above 0 and 1 iteration or more"
        )

    @jax.custom_vjp
    def run(params: Params, x: Array) -> jax.Array:
        return layer(params, x)

    def forward(params: Params, x: Array) -> tuple[jax.Array, tuple[Params, Array]]:
        return layer(params, x), (params, x)

    def backward(saved: tuple[Params, Array], gradient: jax.Array) -> tuple[Params, jax.Array]:
        params, x = saved
        _, pull = jax.vjp(layer, params, x)
        plain, input_gradient = pull(gradient)

        def normal(direction: Params) -> Params:
            values = jax.jvp(lambda p: layer(p, x), (params,), (direction,))[1]
            return jax.tree.map(lambda a, d: a + d / tau, pull(values)[0], direction)

        units = params["kernel"].ndim == 2 if by_unit is None else by_unit
        step = conjugate_gradients(
            normal,
            plain,
            iterations=iterations,
            tolerance=tolerance,
            epsilon=epsilon,
            by_unit=units,
        )
        return step, input_gradient

    run.defvjp(forward, backward)
    return run


def conjugate_gradients(
    matrix: Callable[[Tree], Tree],
    right: Tree,
    *,
    iterations: int,
    tolerance: float = 1e-2,
    epsilon: float = 1e-6,
    by_unit: bool = False,
) -> Tree:
    """Solve ``matrix(X) = right`` from X = 0 (Hestenes and Stiefel 1952).

    Args:
      matrix: symmetric, positive definite; with ``by_unit`` it must not mix entries of different
        last index.
      right: tree of floating arrays.
      iterations: at most.
      tolerance: ends where the largest squared residual is below ``tolerance ** 2`` of the mean of
        the first ones.
      epsilon: added to the denominators.
      by_unit: one system for each index of the last axis (the same in all leaves), side by side.

    Returns:
      X, a tree like ``right``.
    """

    def product(a: Tree, b: Tree) -> jax.Array:
        parts = [
            jnp.sum(p * q, axis=tuple(range(p.ndim - by_unit)))
            for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        ]
        return functools.reduce(jnp.add, parts)

    def plus(a: Tree, factor: jax.Array, b: Tree) -> Tree:
        return jax.tree.map(lambda p, q: p + factor * q, a, b)

    first = product(right, right)
    enough = tolerance**2 * jnp.mean(first)

    def body(at: dict[str, Any]) -> dict[str, Any]:
        image = matrix(at["direction"])
        length = _quotient(at["square"], product(at["direction"], image) + epsilon)
        residual = plus(at["residual"], -length, image)
        square = product(residual, residual)
        return {
            "solution": plus(at["solution"], length, at["direction"]),
            "residual": residual,
            "direction": plus(residual, _quotient(square, at["square"] + epsilon), at["direction"]),
            "square": square,
            "made": at["made"] + 1,
        }

    def going(at: dict[str, Any]) -> jax.Array:
        unsolved = (at["made"] == 0) | (jnp.max(at["square"]) >= enough)
        return (at["made"] < iterations) & unsolved

    start = {"solution": jax.tree.map(jnp.zeros_like, right), "residual": right}
    start |= {"direction": right, "square": first, "made": jnp.int32(0)}
    return jax.lax.while_loop(going, body, start)["solution"]


def _quotient(above: jax.Array, below: jax.Array) -> jax.Array:
    """Zero where ``below`` is: a system that is solved exactly makes no more steps."""
    return jnp.where(below == 0, 0, above / jnp.where(below == 0, 1, below))
