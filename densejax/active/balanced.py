"""Selections that are balanced over classes: of any score or selector, and the baselines."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from densejax.active.pool import (
    Pool,
    Score,
    Selection,
    Selector,
    check_budget,
    evaluate,
    first,
)
from densejax.active.shortlist import pick
from densejax.typing import Array, Key

Order = Literal["round_robin", "block"]
ClassOrder = Literal["index", "random"]


def random(key: Key, pool: Pool, budget: int) -> Selection:
    """Samples at random, each set of ``budget`` available ones as likely.

    Scores are the uniform numbers in [0, 1) of which the largest are taken.

    Args:
      key: a jax key.
      pool: any.
      budget: b, how many to select.

    Raises:
      ValueError: the budget can't be served.
    """
    budget = check_budget(pool, budget)
    values = _uniform(key, pool.size)
    indices = first(values, pool.available, budget)
    return Selection(indices, values[indices].astype(np.float32))


def balanced_random(key: Key, pool: Pool, budget: int) -> Selection:
    """Samples at random within each class, as many of every class, by the true labels.

    Shares by ``water_fill`` of the available samples, as in the released code; samples come class
    by class. It cheats: it knows the labels before they are asked for. Scores as of ``random``.

    Args:
      key: a jax key.
      pool: with the labels of all available samples.
      budget: b, how many to select.

    Raises:
      ValueError: an available sample has no label, or the budget can't be served.
    """
    budget = check_budget(pool, budget)
    available = pool.available
    if pool.labels is None:
        raise ValueError("balanced random needs the labels of all available samples (pool labels)")
    labels = np.asarray(pool.labels)
    missing = np.flatnonzero(available & (labels < 0))
    if missing.size:
        raise ValueError(
            f"{missing.size} available samples have no label, the first is {missing[0]}"
        )
    values = _uniform(key, pool.size)
    shares = water_fill(np.bincount(labels[available]), budget)
    chosen = [first(values, available & (labels == c), int(k)) for c, k in enumerate(shares)]
    indices = np.concatenate([np.zeros(0, np.int64), *chosen])
    return Selection(indices, values[indices].astype(np.float32))


def _uniform(key: Key, size: int) -> np.ndarray:
    # 32 bits, not the 24 of a float: ties would favour low indices.
    return np.asarray(jax.random.bits(key, (size,), jnp.uint32)) / 2**32


def water_fill(counts: Array, budget: int) -> np.ndarray:
    """Shares of a budget among classes, as equal as their sizes allow.

    Every class gets the same, or all that it has; what is then left over, less than there are
    classes with more, goes to the largest of these, one each (the lowest class first where they are
    as large), as in the released code.

    Args:
      counts: [c] int, how many each class has.
      budget: 0 to their sum.

    Returns:
      [c] int64, summing to the budget, nowhere above ``counts``.

    Raises:
      ValueError: the budget is out of range.
    """
    counts = np.asarray(counts, np.int64)
    if not 0 <= budget <= counts.sum():
        raise ValueError(f"budget {budget}: expected 0 to {counts.sum()}, what the classes have")
    low, high = 0, int(counts.max(initial=0))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high) if np.minimum(counts, middle).sum() <= budget else (low, middle - 1)
        )
    shares = np.minimum(counts, low)
    left = budget - int(shares.sum())
    largest = np.argsort(-counts, kind="stable")[:left]
    shares[largest] += 1
    return shares


def balanced(
    inner: Score | Selector,
    *,
    order: Order = "round_robin",
    class_order: ClassOrder = "index",
) -> Selector:
    """Make a score or a selector choose as many samples for each class.

    A classwise score is served as BASE serves DCSDB: every class picks the best sample by its own
    column that no class has picked before, b // c times, and the first b % c classes once more. One
    pass over the pool keeps a shortlist of each class; only if others have taken all of it is the
    pool read again.

    Any other score or selector chooses among the samples of each predicted class apart, with
    shares by ``water_fill``; a selector is called once for each class, with the others held out.
    The prediction is the largest of the pool's logits, else its probabilities, else the logits that
    its head gives, else the mean of its passes.

    Args:
      inner: a score, or a selector ``(key, pool, budget) -> Selection``.
      order: ``round_robin``, classes pick one each in turn; or ``block``, one class after another.
      class_order: classes in order of their ``index``, or in ``random`` order.

    Returns:
      A selector. Its scores are those of ``inner``. It raises ValueError where ``inner`` does, and
      where the pool has nothing that predicts a class.

    Raises:
      ValueError: an option is unknown.
    """
    for name, value, known in (("order", order, Order), ("class_order", class_order, ClassOrder)):
        if value not in get_args(known):
            raise ValueError(f"{name}: expected one of {get_args(known)}, found {value!r}")

    def select(key: Key, pool: Pool, budget: int) -> Selection:
        budget = check_budget(pool, budget)
        if budget == 0:
            return Selection(np.zeros(0, np.int64), np.zeros(0, np.float32))
        classes = np.arange(pool.classes)
        if class_order == "random":
            classes = np.asarray(jax.random.permutation(jax.random.fold_in(key, 0), pool.classes))
        if isinstance(inner, Score) and inner.classwise:
            return pick(inner, pool, _schedule(classes, budget, order))
        chosen = _by_prediction(jax.random.fold_in(key, 1), inner, pool, budget)
        return _merge([chosen[c] for c in classes], order)

    return select


def _schedule(classes: np.ndarray, budget: int, order: Order) -> np.ndarray:
    """The class of each pick: [budget]."""
    turns = np.resize(classes, budget)
    if order == "round_robin":
        return turns
    place = np.empty_like(classes)
    place[classes] = np.arange(len(classes))
    return turns[np.argsort(place[turns], kind="stable")]


def _by_prediction(key: Key, inner: Score | Selector, pool: Pool, budget: int) -> list[Selection]:
    """A selection within each predicted class."""
    rows = np.flatnonzero(pool.available)
    predicted = np.full(pool.size, -1, np.int32)
    predicted[rows] = evaluate(_prediction(pool), pool, rows=rows)
    counts = np.bincount(predicted[rows], minlength=pool.classes)
    shares = water_fill(counts, budget)
    if isinstance(inner, Score):
        values = np.zeros(pool.size, np.float32)
        values[rows] = evaluate(inner, pool, rows=rows)
        best = [
            first(values, predicted == c, int(share), largest_first=inner.largest_first)
            for c, share in enumerate(shares)
        ]
        return [Selection(indices, values[indices]) for indices in best]
    none = Selection(np.zeros(0, np.int64), np.zeros(0, np.float32))
    labelled = pool.is_labelled
    return [
        inner(
            jax.random.fold_in(key, c),
            replace(pool, held_out=~labelled & (predicted != c)),
            int(share),
        )
        if share
        else none
        for c, share in enumerate(shares)
    ]


def _largest(values: jax.Array) -> jax.Array:
    values = values.mean(axis=1) if values.ndim == 3 else values
    return jnp.argmax(values, axis=-1).astype(jnp.int32)


def _prediction(pool: Pool) -> Score:
    head = pool.features is not None and pool.kernel is not None
    there = {
        "logits": pool.logits is not None or (head and pool.probabilities is None),
        "probabilities": pool.probabilities is not None,
        "passes": pool.passes is not None,
    }
    name = next((name for name, present in there.items() if present), "logits")
    return Score("prediction", (name,), _largest)


def _merge(chosen: Sequence[Selection], order: Order) -> Selection:
    indices = np.concatenate([one.indices for one in chosen])
    scores = np.concatenate([one.scores for one in chosen])
    if order == "round_robin":
        turn = np.argsort(
            np.concatenate([np.arange(len(one.indices)) for one in chosen]), kind="stable"
        )
        indices, scores = indices[turn], scores[turn]
    return Selection(indices, scores)
