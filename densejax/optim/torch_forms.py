"""AMSGrad, Rprop, averaged gradient descent and L-BFGS in the form of PyTorch.

optax lacks them, or takes other steps.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from densejax.optim.method import Method, Objective, Step
from densejax.typing import Array, Params, Tree

# Constants of ``torch.optim.LBFGS``: where a gradient, a change or a curvature counts as nothing.
GRADIENT_TOLERANCE = 1e-7
CHANGE_TOLERANCE = 1e-9
LEAST_CURVATURE = 1e-10


class AmsgradState(NamedTuple):
    """Moments of ``scale_by_amsgrad``."""

    steps: jax.Array
    mean: Params
    square: Params
    largest: Params


def scale_by_amsgrad(
    *, b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-8
) -> optax.GradientTransformation:
    """AMSGrad (Reddi et al. 2018): the largest second moment, which is corrected afterwards.

    ``optax.scale_by_amsgrad`` corrects before it compares, so that the first gradients, whose
    moments are corrected most, may bound the steps for ever.

    Args:
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      epsilon: added to the corrected root.

    Returns:
      A transformation; multiply its updates by minus the learning rate.
    """

    def init(params: Params) -> AmsgradState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AmsgradState(jnp.int32(0), zeros, zeros, zeros)

    def update(
        updates: Params, state: AmsgradState, params: Params | None = None
    ) -> tuple[Params, AmsgradState]:
        del params
        steps = state.steps + 1
        mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mean, updates)
        square = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.square, updates)
        largest = jax.tree.map(jnp.maximum, state.largest, square)
        made = steps.astype(jnp.float32)
        first, second = 1 - b1**made, jnp.sqrt(1 - b2**made)
        directions = jax.tree.map(
            lambda m, v: m / first / (jnp.sqrt(v) / second + epsilon), mean, largest
        )
        return directions, AmsgradState(steps, mean, square, largest)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


class RpropState(NamedTuple):
    """Gradients of the last step, zero where their sign had changed, and the sizes of steps."""

    gradients: Params
    sizes: Params


def scale_by_rprop(
    *,
    first: float = 1e-3,
    shrink: float = 0.5,
    grow: float = 1.2,
    smallest: float = 1e-6,
    largest: float = 50.0,
) -> optax.GradientTransformation:
    """Rprop without going back (Igel and Hüsken 2000): each parameter has a step size of its own.

    ``optax.scale_by_rprop`` (0.2.8) makes each step one update late.

    Args:
      first: size of the first steps.
      shrink: factor on a size where the gradient's sign has changed; no step is made there.
      grow: factor where it has not.
      smallest: size.
      largest: size.

    Returns:
      A transformation; its updates, times minus one, are whole steps.
    """

    def init(params: Params) -> RpropState:
        sizes = jax.tree.map(lambda p: jnp.full_like(p, first), params)
        return RpropState(jax.tree.map(jnp.zeros_like, params), sizes)

    def update(
        updates: Params, state: RpropState, params: Params | None = None
    ) -> tuple[Params, RpropState]:
        del params
        agree = jax.tree.map(lambda g, old: jnp.sign(g * old), updates, state.gradients)

        def resized(size: jax.Array, sign: jax.Array) -> jax.Array:
            factor = jnp.where(sign > 0, grow, jnp.where(sign < 0, shrink, 1.0))
            return jnp.clip(size * factor, smallest, largest)

        sizes = jax.tree.map(resized, state.sizes, agree)
        kept = jax.tree.map(lambda g, sign: jnp.where(sign < 0, 0, g), updates, agree)
        steps = jax.tree.map(lambda g, size: jnp.sign(g) * size, kept, sizes)
        return steps, RpropState(kept, sizes)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def averaged(*, decay: float = 1e-4, power: float = 0.75, average_after: float = 1e6) -> Method:
    """ASGD (Polyak and Juditsky 1992), with the decays of ``torch.optim.ASGD``.

    Step t, from 1, with eta_1 the learning rate: ``p <- (1 - decay * eta_t) p - eta_t * gradient``,
    then ``eta_{t+1} = rate / (1 + decay * rate * t) ** power``. So a new rate takes effect one step
    late, as there. The average over all steps after ``average_after`` is ``state["average"]`` (the
    newest parameters before); like there, nobody but its reader uses it, and networks are evaluated
    at their parameters. At PyTorch's default of a million steps the published runs (58,650 steps)
    never average.

    Args:
      decay: shrinks the parameters at each step, and the rate over time (``lambd``).
      power: of the falling rate (``alpha``).
      average_after: steps before the average begins (``t0``).

    Raises:
      ValueError: a number is negative.
    """
    for name, value in (("decay", decay), ("power", power), ("average_after", average_after)):
        if value < 0:
            raise ValueError(f"{name} is {value}: expected 0 or more")

    def init(params: Params) -> Tree:
        return {
            "average": jax.tree.map(jnp.zeros_like, params),
            "weight": jnp.float32(1),
            "eta": jnp.float32(0),
            "count": jnp.float32(0),
        }

    def step(objective: Objective, params: Params, state: Tree, rate: Array) -> Step:
        (loss, more), gradient = jax.value_and_grad(objective, has_aux=True)(params)
        rate = jnp.asarray(rate, jnp.float32)
        eta = jnp.where(state["count"] == 0, rate, state["eta"])
        weight, count = state["weight"], state["count"] + 1
        params = jax.tree.map(lambda p, g: p * (1 - decay * eta) - eta * g, params, gradient)
        average = jax.tree.map(
            lambda a, p: jnp.where(weight == 1, p, a + weight * (p - a)), state["average"], params
        )
        state = {
            "average": average,
            "weight": 1 / jnp.maximum(1, count - average_after),
            "eta": rate / (1 + decay * rate * count) ** power,
            "count": count,
        }
        return Step(params, state, loss, more)

    return Method(init, step)


# ---- L-BFGS ----


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
