"""Queries of Chen 2020, chapter 3, and one cycle of one of them: train, evaluate, score, choose."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from densejax.active.balanced import random
from densejax.active.pool import Pool, Selection, first, members
from densejax.active.scores import entropy_of, gap, most_incorrect
from densejax.active.wrappers import stride
from densejax.classification.task import ImageTask
from densejax.typing import Array, Batch, Key, Params, Tree

Kind = Literal["random", "max_softmax", "odin", "margin", "entropy", "most_incorrect", "expert"]

# What the program computes of the pool: the places of ``_branches``.
NOTHING, DOUBT, MOVED, MARGIN, ENTROPY, ERROR = range(6)


@dataclass(frozen=True)
class Query:
    """How to ask.

    Attributes:
      kind: ``expert`` is the entropy of a network that was trained on all data; the others are of
        the member's own network. ``max_softmax`` is ``odin`` at temperature 1 without a move.
      temperature: T of ODIN.
      move: epsilon of ODIN, of pictures in [0, 1].
      stride: take every n-th sample of the ranking, n the stride (stride diversity).
      inverse: whether the least uncertain come first.
    """

    kind: Kind
    temperature: float = 1.0
    move: float = 0.0
    stride: int = 1
    inverse: bool = False

    @property
    def name(self) -> str:
        """Such as ``odin-T0.1`` or ``margin-stride4``; no two queries share it."""
        name = f"inverse_{self.kind}" if self.inverse else str(self.kind)
        if self.kind == "odin":
            name += f"-T{self.temperature:g}" + (f"-e{self.move:g}" if self.move else "")
        return name + (f"-stride{self.stride}" if self.stride > 1 else "")

    @property
    def place(self) -> int:
        """Of ``_branches``."""
        if self.kind == "odin":
            return MOVED if self.move else DOUBT
        known = {"max_softmax": DOUBT, "margin": MARGIN, "entropy": ENTROPY}
        return known.get(self.kind, ERROR if self.kind == "most_incorrect" else NOTHING)


def log_others(logits: Array) -> jax.Array:
    """log(1 - max P): [..., c] -> [...], float32, for c of 2 or more.

    In the order of 1 - max P, yet without its rounding: at T = 1e-4 that is 0 of nearly all
    samples, which would be queried in the order of the file.
    """
    logits = logits - logits.max(axis=-1, keepdims=True)
    at = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=bool)
    return jax.nn.log_sigmoid(jax.nn.logsumexp(jnp.where(at, -jnp.inf, logits), axis=-1))


def one_cycle(task: ImageTask, member: Batch, shared: Batch) -> dict[str, jax.Array]:
    """Train fresh weights on a member's labelled set, evaluate, and score the pool.

    Args:
      task: what training is; its ``largest`` is the length l of ``rows``.
      member: ``key`` (data of a jax key), ``rows`` [l] int32 of which the first ``count`` count,
        ``place`` of what to compute of the pool, ``temperature``, ``move``. A ``count`` of 0 trains
        nothing: an empty place.
      shared: ``images`` [n, y, x, ch] uint8, ``labels`` [n] int32, ``evaluation_images``,
        ``evaluation_labels``.

    Returns:
      ``accuracy``, ``loss`` of the last batch, ``scores`` [n] float32, large where in doubt.
    """
    count = jnp.asarray(member["count"])
    data = dict(
        shared,
        query_sets=jnp.asarray(member["rows"])[None],
        counts=count[None],
        class_weights=jnp.ones((1, task.classes)),
    )
    state = task.init(jax.random.wrap_key_data(jnp.asarray(member["key"])), {})

    def update(_: jax.Array, carry: tuple[Tree, jax.Array]) -> tuple[Tree, jax.Array]:
        state, measures = task.step(carry[0], data)
        return state, measures["loss"]

    steps = task.epochs * -(-count // task.batch)
    state, loss = jax.lax.fori_loop(0, steps, update, (state, jnp.float32(0)))
    scores = jax.lax.switch(member["place"], _branches(task, shared), state["variables"], member)
    accuracy = task.evaluate(state, data)["accuracy"]
    return {"accuracy": accuracy, "loss": loss, "scores": scores}


def _branches(task: ImageTask, shared: Batch) -> list[Callable[[Params, Batch], jax.Array]]:
    """Scores [n] of the pool from (variables, member), one function for each place."""
    labels = jnp.asarray(shared["labels"])

    def of_pool(value: Callable, *, moved: bool = False) -> Callable[[Params, Batch], jax.Array]:
        def branch(variables: Params, member: Batch) -> jax.Array:
            # All logits first: fused into the loop over chunks, the scores took eight times
            # as long on a CPU (width 16).
            logits = _pool_logits(task, variables, shared["images"], member, moved=moved)
            return value(logits, member["temperature"])

        return branch

    def nothing(variables: Params, member: Batch) -> jax.Array:
        del variables, member
        return jnp.zeros(len(labels), jnp.float32)

    error = most_incorrect(of="logits").function
    return [
        nothing,
        of_pool(lambda logits, temperature: log_others(logits / temperature)),
        of_pool(lambda logits, temperature: log_others(logits / temperature), moved=True),
        of_pool(lambda logits, _: -gap(jax.nn.softmax(logits))),
        of_pool(lambda logits, _: entropy_of(jax.nn.softmax(logits))),
        of_pool(lambda logits, _: error(logits, labels)),
    ]


def _pool_logits(
    task: ImageTask, variables: Params, images: Array, member: Batch, *, moved: bool
) -> jax.Array:
    """[n, c], a chunk of pictures at a time; of pictures that ODIN has moved, if so."""
    images = jnp.asarray(images)
    total, size = len(images), min(task.evaluation_batch, len(images))
    if spare := -total % size:
        images = jnp.pad(images, [(0, spare), *[(0, 0)] * (images.ndim - 1)])

    def log_probability(x: jax.Array) -> jax.Array:
        logits = task.network(variables, x)[0] / member["temperature"]
        return jax.nn.log_softmax(logits).max(axis=-1).sum()

    def some(part: jax.Array) -> jax.Array:
        x = task.prepare(part)
        if moved:
            # ``odin`` of this folder, but with a temperature that may differ between members.
            x = x + member["move"] * jnp.sign(jax.grad(log_probability)(x))
        return task.network(variables, x)[0]

    return jax.lax.map(some, images.reshape(-1, size, *images.shape[1:])).reshape(-1, task.classes)[
        :total
    ]


def choose(key: Key, query: Query, scores: Array, *, labelled: Array, budget: int) -> np.ndarray:
    """What a query asks for next, by the scores of ``one_cycle``.

    Args:
      key: a jax key, which ``random`` alone draws from.
      query: how to ask.
      scores: [n] float32, large where in doubt.
      labelled: [l] integers, rows of the pool.
      budget: b.

    Returns:
      [b] int64 rows, none labelled, in the order of the query; ties by lowest index.

    Raises:
      ValueError: fewer than ``budget`` rows are left.
    """
    values = np.asarray(scores)
    pool = Pool(labels=np.zeros(len(values), np.int32), labelled=members(labelled, len(values)))
    if query.kind == "random":
        return random(key, pool, budget).indices

    def ranked(key: Key, pool: Pool, budget: int) -> Selection:
        del key
        chosen = first(values, pool.available, budget, largest_first=not query.inverse)
        return Selection(chosen, values[chosen])

    return stride(ranked, query.stride)(key, pool, budget).indices
