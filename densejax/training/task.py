"""What one instance is, and the compiled programs of a sweep over slots of them.

The task protocol stands between an experiment's subject and the sweep that runs it. Three programs
run it: fill a slot, advance all slots, judge the due ones. A slot is a tree of arrays: the task's
state, the best parameters so far and their score, the instance's own step counter and how many
steps it has to make. A slot with nothing left to do takes part in the program at no cost under
``map``: its loop has length zero.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from densejax.population import Mapped, Population
from densejax.typing import Batch, Key, Measures, Params, Tree

SCORE_OF_NOTHING = -jnp.inf


class Task(Protocol):
    """Pure functions of one instance; it knows nothing of seeds, devices, files or time.

    ``state`` is any tree of arrays. It carries whatever the instance needs to go on: parameters,
    optimiser state, its own key and its own step counter, and ``settings``.
    """

    @property
    def score(self) -> str:
        """Name of the evaluated measure that ranks instances; larger is better."""
        ...

    def init(self, key: Key, settings: Tree) -> Tree:
        """A fresh state; ``settings`` maps names to scalars that differ between instances."""
        ...

    def step(self, state: Tree, data: Batch) -> tuple[Tree, Measures]:
        """One update; measures are float scalars and include ``loss``."""
        ...

    def evaluate(self, state: Tree, data: Batch) -> Measures:
        """Measures of the current parameters; includes the score, may include count arrays."""
        ...

    def parameters(self, state: Tree) -> Params:
        """The part of the state that the best and the last of are kept."""
        ...

    def stop(self, step: int, measures: Measures) -> bool:
        """Whether to give the instance up after this evaluation (host side)."""
        ...


def empty_slot(key: jax.Array, task: Task, settings: Tree) -> dict[str, Tree]:
    """The slot of an instance that has made no step.

    Args:
      key: the instance's own key, raw uint32 ``[2]`` (keys travel as plain arrays).
      task: what an instance is.
      settings: scalars of this instance.
    """
    state = task.init(jax.random.wrap_key_data(key), settings)
    return {
        "state": state,
        "best": task.parameters(state),
        "best_score": jnp.float32(SCORE_OF_NOTHING),
        "best_step": jnp.int32(0),
        "step": jnp.int32(0),
    }


class Programs:
    """The three programs, mapped over one population and compiled once each."""

    def __init__(self, task: Task, population: Population, *, later_wins: bool = False) -> None:
        self.fill: Mapped = population.map(_fill(task), donate=(0,), name="fill")
        self.advance: Mapped = population.map(_advance(task), shared=(2,), donate=(0,), name="step")
        self.judge: Mapped = population.map(
            _judge(task, later_wins), shared=(2,), donate=(0,), name="evaluation"
        )

    def renew_fill(self, task: Task, population: Population) -> None:
        """Fill slots as another task begins its members; the other programs stay."""
        self.fill = population.map(_fill(task), donate=(0,), name="fill")


def _fill(task: Task) -> Callable[..., Tree]:
    def fill(slot: Tree, key: jax.Array, settings: Tree, enters: jax.Array) -> Tree:
        return jax.lax.cond(enters, lambda: empty_slot(key, task, settings), lambda: slot)

    return fill


def _advance(task: Task) -> Callable[..., Any]:
    def advance(slot: Tree, steps: jax.Array, data: Batch) -> tuple[Tree, Tree]:
        shapes = jax.eval_shape(lambda: task.step(slot["state"], data)[1])
        sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shapes)

        def body(_: jax.Array, carry: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
            state, sums = carry
            state, measures = task.step(state, data)
            return state, jax.tree.map(jnp.add, sums, measures)

        # A loop of a length that is data: slots with fewer steps left, or none, share the program.
        state, sums = jax.lax.fori_loop(0, steps, body, (slot["state"], sums))
        means = jax.tree.map(lambda leaf: leaf / jnp.maximum(steps, 1), sums)
        slot = dict(slot, state=state, step=slot["step"] + steps)
        finite = jnp.isfinite(means["loss"])
        for leaf in jax.tree.leaves(task.parameters(state)):
            finite = finite & jnp.all(jnp.isfinite(leaf))
        return slot, dict(means, finite=finite)

    return advance


def _judge(task: Task, later_wins: bool) -> Callable[..., Any]:
    def judge(slot: Tree, due: jax.Array, data: Batch) -> tuple[Tree, Tree]:
        def evaluate() -> tuple[Tree, Tree]:
            measures = task.evaluate(slot["state"], data)
            score = jnp.asarray(measures[task.score], jnp.float32)
            best_score = slot["best_score"]
            better = score >= best_score if later_wins else score > best_score
            best = jax.tree.map(
                lambda new, old: jnp.where(better, new, old),
                task.parameters(slot["state"]),
                slot["best"],
            )
            judged = dict(
                slot,
                best=best,
                best_score=jnp.where(better, score, slot["best_score"]),
                best_step=jnp.where(better, slot["step"], slot["best_step"]),
            )
            return judged, measures

        def leave() -> tuple[Tree, Tree]:
            shapes = jax.eval_shape(lambda: evaluate()[1])
            return slot, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        return jax.lax.cond(due, evaluate, leave)

    return judge
