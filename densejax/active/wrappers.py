"""Selectors made of others: noise for diversity, strides, parts of a pool, stochastic passes."""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from densejax.active.pool import READABLE, Pool, Selection, Selector, check_budget, linear_head
from densejax.active.rows import first, take_rows
from densejax.active.scores import Score, evaluate, ranked
from densejax.typing import Key

# Subsampling of the thesis' ImageNet jobs, as released.
PUBLISHED_SUBSAMPLE = {"max_labelled": 50_000, "max_unlabelled": 80_000}


def power(
    score: Score, *, beta: float = 1.0, kind: Literal["power", "softmax", "softrank"] = "power"
) -> Selector:
    """Samples drawn without replacement by their score: PowerBALD of any score.

    Kirsch et al. 2023, "Stochastic batch acquisition": the first of the samples by
    ``beta log s + g``, g a draw of the standard Gumbel distribution, have the distribution of draws
    proportional to s^beta. Of a score whose smallest comes first, to s^-beta.

    Args:
      score: one value a sample, from 0 (``power``).
      beta: from 0 (uniform) up; the larger, the nearer to the plain ranking.
      kind: ``power``; ``softmax``, with ``beta s`` in place of ``beta log s``; or ``softrank``,
        with ``-beta log r``, r = 1 the rank of the first.

    Returns:
      ``selector(key, pool, budget)``; its scores are the perturbed values, descending.

    Raises:
      ValueError: the score is classwise, beta is negative or not finite or the kind unknown. When
        used: a score is negative (``power``).
    """
    if score.classwise:
        raise ValueError(f"score {score.name} has a value for every class; it orders no samples")
    if kind not in ("power", "softmax", "softrank"):
        raise ValueError(f"kind {kind!r}: expected power, softmax or softrank")
    if not 0 <= beta < np.inf:
        raise ValueError(f"beta {beta}: expected a finite number from 0")

    def select(key: Key, pool: Pool, budget: int) -> Selection:
        if not check_budget(pool, budget):
            return _nothing()
        values = evaluate(score, pool).astype(np.float64)
        sign = 1 if score.largest_first else -1
        if kind == "softmax":
            weights = sign * values
        elif kind == "power":
            weights = sign * _logs(values, pool, score)
        else:
            order = first(
                values, pool.available, pool.available.sum(), largest_first=score.largest_first
            )
            weights = np.zeros(pool.size)
            weights[order] = -np.log(np.arange(1, order.size + 1))
        noise = np.asarray(jax.random.gumbel(key, (pool.size,)), np.float64)
        # beta = 0 makes nothing of a weight, even of an infinite one.
        perturbed = (beta * weights if beta else 0) + noise
        chosen = first(perturbed, pool.available, budget)
        return Selection(chosen, perturbed[chosen].astype(np.float32))

    return select


def _logs(values: np.ndarray, pool: Pool, score: Score) -> np.ndarray:
    negative = np.flatnonzero(pool.available & (values < 0))
    if negative.size:
        raise ValueError(
            f"power needs scores from 0: {score.name} has {negative.size} below, the first is "
            f"{values[negative[0]]:.4g} of sample {negative[0]}"
        )
    with np.errstate(divide="ignore"):
        return np.log(np.maximum(values, 0))


def stride(of: Score | Selector, step: int) -> Selector:
    """Every ``step``-th sample of a ranking: Chen 2020, "stride diversity".

    Ranks d, 2d, ... (the first rank is 1); at the end of the ranking again over the samples that
    remain, and where fewer than d remain, the last of them. d = 1 is the ranking itself.

    Args:
      of: what ranks all available samples; a selector is asked for all of them.
      step: d, at least 1.

    Returns:
      ``selector(key, pool, budget)``; its scores are the values of the ranking.

    Raises:
      ValueError: the step is below 1.
    """
    if step < 1:
        raise ValueError(f"step {step}: expected at least 1")
    selector = ranked(of) if isinstance(of, Score) else of

    def select(key: Key, pool: Pool, budget: int) -> Selection:
        if not check_budget(pool, budget):
            return _nothing()
        # What the strides never reach need not be ranked.
        available = int(pool.available.sum())
        whole = selector(key, pool, available if budget * step > available else budget * step)
        places = _strides(len(whole.indices), step, budget)
        return Selection(whole.indices[places], whole.scores[places])

    return select


def _strides(size: int, step: int, budget: int) -> np.ndarray:
    """Places (from 0) of a ranking of ``size`` that strides of ``step`` take: [budget] int64."""
    remaining = np.arange(size)
    taken: list[np.ndarray] = []
    while sum(map(len, taken)) < budget:
        reached = np.arange(min(step, len(remaining)) - 1, len(remaining), step)
        taken.append(remaining[reached])
        remaining = np.delete(remaining, reached)
    return np.concatenate([*taken, np.zeros(0, np.int64)])[:budget]


def partitioned(
    selector: Selector,
    *,
    partitions: int = 10,
    max_labelled: int | None = None,
    max_unlabelled: int | None = None,
) -> Selector:
    """The selector on random parts of the pool, each with its share of the budget (thesis, 5.4).

    Labelled and unlabelled samples are shuffled into p parts each; part i of both makes a pool of
    its own, of which ``b // p + [i < b mod p]`` samples are selected. Held-out samples are in none.
    A part's arrays are read into memory.

    Args:
      selector: what selects in each part, with a key of its own.
      partitions: p, at least 1.
      max_labelled: labelled samples that are drawn first; all where None.
      max_unlabelled: unlabelled samples that are drawn first; all where None. With both, what there
        is too little of labelled ones is made up by unlabelled ones. The released ImageNet jobs
        take ``PUBLISHED_SUBSAMPLE``, which the thesis does not mention.

    Returns:
      ``selector(key, pool, budget)``: selections of the parts, one after another.

    Raises:
      ValueError: fewer than one partition. When used: the budget exceeds ``max_unlabelled``.
    """
    if partitions < 1:
        raise ValueError(f"partitions {partitions}: expected at least 1")

    def select(key: Key, pool: Pool, budget: int) -> Selection:
        if not check_budget(pool, budget):
            return _nothing()
        parts = _divide(
            key,
            pool,
            partitions=partitions,
            max_labelled=max_labelled,
            max_unlabelled=max_unlabelled,
        )
        drawn = sum(int(pool.available[rows].sum()) for rows in parts)
        if budget > drawn:
            raise ValueError(
                f"budget {budget}: expected at most {drawn}, the unlabelled samples that are drawn"
            )
        found = []
        for number, rows in enumerate(parts):
            share = budget // partitions + (number < budget % partitions)
            if share:
                part = selector(jax.random.fold_in(key, number + 1), subset(pool, rows), share)
                found.append(Selection(rows[part.indices], part.scores))
        return Selection(*map(np.concatenate, zip(*found, strict=True)))

    return select


def _divide(
    key: Key,
    pool: Pool,
    *,
    partitions: int,
    max_labelled: int | None = None,
    max_unlabelled: int | None = None,
) -> list[np.ndarray]:
    """The parts of ``partitioned``: ascending int64 rows of each, labelled and unlabelled."""
    key = jax.random.fold_in(key, 0)
    labelled, free = (
        np.asarray(jax.random.permutation(jax.random.fold_in(key, i), np.flatnonzero(mask)))
        for i, mask in enumerate((pool.is_labelled, pool.available))
    )
    labelled = labelled[:max_labelled]
    if max_unlabelled is not None:
        spare = 0 if max_labelled is None else max_labelled - len(labelled)
        free = free[: max_unlabelled + spare]
    shares = zip(
        np.array_split(labelled, partitions), np.array_split(free, partitions), strict=True
    )
    return [np.sort(np.concatenate(share)).astype(np.int64) for share in shares]


def subset(pool: Pool, rows: np.ndarray) -> Pool:
    """The pool of some rows, read into memory; the head is the same.

    Args:
      pool: of n samples.
      rows: [r] ascending integers.
    """
    names = (*READABLE, "labelled", "held_out")
    present = {name: array for name in names if (array := getattr(pool, name)) is not None}
    parts: dict[str, Any] = {name: take_rows(array, rows) for name, array in present.items()}
    if pool.columns is not None:
        parts["columns"] = {name: np.asarray(a)[rows] for name, a in pool.columns.items()}
    return dataclasses.replace(pool, **parts)


def _nothing() -> Selection:
    return Selection(np.zeros(0, np.int64), np.zeros(0, np.float32))


def stochastic(inner: Score | Selector, *, rate: float, passes: int = 10) -> Selector:
    """A score or selector of stochastic passes, on a pool that has features and a head.

    A network whose only dropout is in front of its head (``ResNet``, ``ViT``, an ``MLP`` with one
    hidden layer) needs no further pass over the pictures: dropping features of one pass in
    evaluation mode is a stochastic pass with the norm's running moments (Gal and Ghahramani 2016),
    and m of them are m linear heads. A score never holds the passes of more than a chunk.

    Departure: the features that a pass drops are the same for all samples, as in the consistent
    dropout of Kirsch et al. 2019 (BatchBALD), so that a pass is one network; the others draw them
    for each sample apart. What a score of one sample is distributed like does not differ.

    Args:
      inner: what takes ``passes``, such as ``scores.bald()`` or ``batch_bald``. A selector is given
        the pool with [n, m, c] float32 passes in memory.
      rate: chance that a feature is dropped, above 0 and below 1; the others are divided by
        1 - rate, as in training.
      passes: m, at least 1.

    Returns:
      ``selector(key, pool, budget)``; its scores are those of ``inner``.

    Raises:
      ValueError: the rate or the number of passes is out of range. When used: the pool has no
        features or no kernel, or whatever ``inner`` refuses.
    """
    if not 0 < rate < 1 or passes < 1:
        raise ValueError(
            f"stochastic passes: dropout is {rate} and passes {passes}; expected a dropout above 0 "
            "and below 1, and 1 pass or more"
        )

    def select(key: Key, pool: Pool, budget: int) -> Selection:
        if pool.features is None or pool.kernel is None:
            raise ValueError("stochastic passes need the pool's features and the head's kernel")
        if not check_budget(pool, budget):
            return _nothing()
        mask_key, inner_key = jax.random.split(key)
        kernel, bias = linear_head(pool.kernel, pool.bias)
        kernels = _dropped_kernels(mask_key, kernel, rate=rate, passes=passes)
        if isinstance(inner, Score):
            return ranked(_of_features(inner, kernels, bias))(inner_key, pool, budget)
        function = Partial(_after(_themselves), kernels, bias)
        whole = evaluate(Score("passes", ("features",), function), pool)
        return inner(inner_key, Pool(passes=whole, **_membership(pool)), budget)

    return select


def _dropped_kernels(key: Key, kernel: jax.Array, *, rate: float, passes: int) -> jax.Array:
    """The heads [m, d, c] of m passes: features that are dropped have rows of zeros."""
    kept = jax.random.bernoulli(key, 1 - rate, (passes, kernel.shape[0]))
    return jnp.where(kept[..., None], kernel / (1 - rate), 0)


def _of_features(score: Score, kernels: jax.Array, bias: jax.Array) -> Score:
    if score.needs != ("passes",):
        raise ValueError(f"score {score.name} takes {', '.join(score.needs)}; expected passes")
    function = Partial(_after(score.function), kernels, bias)
    return Score(score.name, ("features",), function, largest_first=score.largest_first)


@cache
def _after(function: Callable[[jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    """One function for the same score, so that it is compiled once."""

    def of_features(kernels: jax.Array, bias: jax.Array, features: jax.Array) -> jax.Array:
        # A ranking hangs on it: no rounding to shorter numbers in products.
        logits = jnp.einsum("sd,mdc->smc", features, kernels, precision="highest") + bias
        return function(jax.nn.softmax(logits, axis=-1))

    return of_features


def _themselves(passes: jax.Array) -> jax.Array:
    return passes


def _membership(pool: Pool) -> dict[str, Any]:
    held_out = None if pool.held_out is None else np.asarray(pool.held_out)
    return {"labelled": pool.is_labelled, "held_out": held_out}
