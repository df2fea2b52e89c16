"""Stochastic passes of a network whose dropout stands in front of its linear head."""

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from densejax.active.deriving import linear_head
from densejax.active.pool import Pool, Score, Selection, Selector, check_budget, evaluate
from densejax.active.scores import ranked
from densejax.typing import Key


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
            return Selection(np.zeros(0, np.int64), np.zeros(0, np.float32))
        mask_key, inner_key = jax.random.split(key)
        kernel, bias = linear_head(pool.kernel, pool.bias)
        kernels = dropped_kernels(mask_key, kernel, rate=rate, passes=passes)
        if isinstance(inner, Score):
            return ranked(_of_features(inner, kernels, bias))(inner_key, pool, budget)
        function = Partial(_after(_themselves), kernels, bias)
        whole = evaluate(Score("passes", ("features",), function), pool)
        return inner(inner_key, Pool(passes=whole, **_membership(pool)), budget)

    return select


def dropped_kernels(key: Key, kernel: jax.Array, *, rate: float, passes: int) -> jax.Array:
    """The heads of m passes: features that are dropped have rows of zeros.

    Args:
      key: a jax key.
      kernel: [d, c] float32.
      rate: chance that a feature is dropped, in [0, 1).
      passes: m.

    Returns:
      [m, d, c] float32, rows that stay divided by 1 - rate.
    """
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


def _membership(pool: Pool) -> dict[str, np.ndarray | None]:
    held_out = None if pool.held_out is None else np.asarray(pool.held_out)
    return {"labelled": pool.is_labelled, "held_out": held_out}
