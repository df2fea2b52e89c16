"""L-BFGS with a fixed step length, in the form of PyTorch: many iterations on each batch."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from densejax.optim.method import Method, Objective, Step
from densejax.typing import Array, Params, Tree

# Constants of ``torch.optim.LBFGS``: where a gradient, a change or a curvature counts as nothing.
GRADIENT_TOLERANCE = 1e-7
CHANGE_TOLERANCE = 1e-9
LEAST_CURVATURE = 1e-10


def quasi_newton(*, memory: int = 100, iterations: int = 20) -> Method:
    """L-BFGS (Liu and Nocedal 1989) as ``torch.optim.LBFGS`` runs it without a line search.

    Every batch gets up to ``iterations`` steps of length ``rate`` (the very first one shorter, by
    the gradient's 1-norm). What is remembered goes on from batch to batch, so that some differences
    of gradients are between two batches; pairs without positive curvature are left out.

    Departure: a norm's running moments (the objective's auxiliary) move once a batch, with its
    first evaluation, and not at every evaluation.

    Args:
      memory: pairs of steps and differences of gradients; they take 2 * memory times the
        parameters' memory.
      iterations: steps a batch, at least 1 (``max_iter``; evaluations are never what ends it).

    Raises:
      ValueError: a number is below 1.
    """
    for name, value in (("memory", memory), ("iterations", iterations)):
        if value < 1:
            raise ValueError(f"{name} is {value}: expected 1 or more")

    def init(params: Params) -> Tree:
        size = ravel_pytree(params)[0].size
        vector, rows = jnp.zeros(size), jnp.zeros((memory, size))
        state: dict[str, Any] = {name: vector for name in ("direction", "gradient")}
        state |= {"steps": rows, "changes": rows, "inverse": jnp.zeros(memory)}
        state |= {"scale": jnp.float32(1), "length": jnp.float32(0)}
        return state | {"stored": jnp.int32(0), "count": jnp.int32(0)}

    def step(objective: Objective, params: Params, state: Tree, rate: Array) -> Step:
        start, unravel = ravel_pytree(params)

        def evaluate(flat: jax.Array) -> tuple[jax.Array, jax.Array]:
            (loss, _), gradient = jax.value_and_grad(objective, has_aux=True)(unravel(flat))
            return loss, ravel_pytree(gradient)[0]

        def body(at: dict[str, Any]) -> dict[str, Any]:
            state = _directed(at["state"], at["gradient"], rate)
            moved = at["flat"] + state["length"] * state["direction"]
            downhill = at["gradient"] @ state["direction"] <= -CHANGE_TOLERANCE
            made = at["made"] + 1
            loss, gradient = jax.lax.cond(
                downhill & (made < iterations),
                lambda: evaluate(moved),
                lambda: (at["loss"], at["gradient"]),
            )
            change = jnp.max(jnp.abs(state["length"] * state["direction"]))
            going = downhill & (made < iterations) & (change > CHANGE_TOLERANCE)
            going &= _large(gradient) & (jnp.abs(loss - at["loss"]) >= CHANGE_TOLERANCE)
            flat = jnp.where(downhill, moved, at["flat"])
            return {
                "flat": flat,
                "loss": loss,
                "gradient": gradient,
                "state": state,
                "made": made,
                "going": going,
            }

        (loss, more), gradient = jax.value_and_grad(objective, has_aux=True)(params)
        gradient = ravel_pytree(gradient)[0]
        first = {"flat": start, "loss": loss, "gradient": gradient, "state": state}
        first |= {"made": jnp.int32(0), "going": _large(gradient)}
        last = jax.lax.while_loop(lambda at: at["going"], body, first)
        return Step(unravel(last["flat"]), last["state"], loss, more)

    return Method(init, step)


def _large(gradient: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(gradient)) > GRADIENT_TOLERANCE


def _directed(state: Tree, gradient: jax.Array, rate: Array) -> Tree:
    """Remember the last step, then find the next direction and its length."""
    begins = state["count"] == 0
    step, change = state["length"] * state["direction"], gradient - state["gradient"]
    curvature = step @ change
    useful = ~begins & (curvature > LEAST_CURVATURE)
    place = state["stored"] % state["inverse"].size

    def put(rows: jax.Array, row: jax.Array) -> jax.Array:
        return rows.at[place].set(jnp.where(useful, row, rows[place]))

    state = dict(
        state,
        steps=put(state["steps"], step),
        changes=put(state["changes"], change),
        inverse=put(state["inverse"], 1 / jnp.where(useful, curvature, 1)),
        stored=state["stored"] + useful,
        scale=jnp.where(useful, curvature / jnp.where(useful, change @ change, 1), state["scale"]),
        gradient=gradient,
        count=state["count"] + 1,
    )
    shortened = jnp.minimum(1, 1 / jnp.sum(jnp.abs(gradient))) * rate
    length = jnp.where(begins, shortened, rate).astype(jnp.float32)
    return dict(state, direction=_two_loops(state, -gradient), length=length)


def _two_loops(state: Tree, vector: jax.Array) -> jax.Array:
    """The approximate inverse Hessian times a vector (Nocedal and Wright 2006, algorithm 7.4)."""
    memory = state["inverse"].size
    known = jnp.minimum(state["stored"], memory)

    def backward(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        q, factors = carry
        place = (state["stored"] - 1 - i) % memory
        factor = (state["steps"][place] @ q) * state["inverse"][place]
        return q - factor * state["changes"][place], factors.at[place].set(factor)

    def forward(i: jax.Array, r: jax.Array) -> jax.Array:
        place = (state["stored"] - known + i) % memory
        factor = (state["changes"][place] @ r) * state["inverse"][place]
        return r + (factors[place] - factor) * state["steps"][place]

    q, factors = jax.lax.fori_loop(0, known, backward, (vector, jnp.zeros(memory)))
    return jax.lax.fori_loop(0, known, forward, state["scale"] * q)
