"""DropQuery: samples whose prediction changes when features are dropped, from every cluster."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from densejax.active.pool import Pool, Selection, check_budget, chunks
from densejax.active.strategies.k_means import k_means
from densejax.typing import Key


def dropquery(
    key: Key,
    pool: Pool,
    budget: int,
    *,
    passes: int = 3,
    rate: float = 0.75,
    iterations: int = 100,
) -> Selection:
    """Samples whose prediction changes when features are dropped, one from each of their clusters.

    DropQuery of Gupte, Aklilu, Nirschl and Yeung-Levy, "Revisiting Active Learning in the Era of
    Vision Foundation Models", 2024 (arXiv 2401.14555), section 4: features are dropped ``passes``
    times before the linear head; samples for which more than half of these predictions differ from
    the one without dropout are candidates; they are clustered into as many clusters as the budget,
    and the sample nearest to each centre is selected (``k_means``).

    Departures: where there are fewer candidates than the budget, all are selected, by index, and
    ``k_means`` on the other samples gives the rest (the released code fails); a sample's dropout
    depends on the key and its row alone, not on how the pool is read.

    Args:
      key: of the dropout and the clustering.
      pool: with features and the head's kernel (and bias).
      budget: number of samples.
      passes: with dropout, at least 1.
      rate: probability that a feature is dropped, in [0, 1); others are divided by 1 - rate.
      iterations: of k-means.

    Returns:
      The selection; scores are the shares of passes that disagree.

    Raises:
      ValueError: budget out of range, features or kernel missing, not finite, an option out of
        range.
    """
    budget = check_budget(pool, budget)
    if passes < 1 or not 0 <= rate < 1:
        raise ValueError(f"passes {passes}, rate {rate}: expected at least 1, and 0 <= rate < 1")
    if pool.kernel is None:
        raise ValueError("dropquery needs the kernel of a linear head on the pool's features")
    dropout, centres = jax.random.split(key)
    differ = _disagreements(dropout, pool, passes, rate)
    candidates = pool.available & (2 * differ > passes)
    chosen = np.zeros(0, np.int64)
    if candidates.sum() < budget:
        chosen = np.flatnonzero(candidates)
        candidates = pool.available & ~candidates
    some = replace(pool, held_out=~candidates & ~pool.is_labelled)
    others = k_means(centres, some, budget - chosen.size, iterations=iterations).indices
    indices = np.concatenate([chosen, others])
    return Selection(indices, (differ[indices] / passes).astype(np.float32))


def _disagreements(key: Key, pool: Pool, passes: int, rate: float) -> np.ndarray:
    """[n] int32: how many passes predict another class; zero where not available."""
    assert pool.kernel is not None
    kernel = jnp.asarray(pool.kernel, jnp.float32)
    bias = jnp.zeros(kernel.shape[1]) if pool.bias is None else jnp.asarray(pool.bias, jnp.float32)
    out = np.zeros(pool.size, np.int32)
    for ids, arrays in chunks(pool, ("features",), rows=np.flatnonzero(pool.available)):
        x = arrays["features"]
        row = jnp.asarray(np.pad(ids, (0, x.shape[0] - len(ids)))).astype(jnp.uint32)
        out[ids] = np.asarray(_differ(key, x, row, kernel, bias, rate, passes=passes))[: len(ids)]
    return out


@partial(jax.jit, static_argnames="passes")
def _differ(
    key: Key,
    x: jax.Array,
    row: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    rate: float,
    *,
    passes: int,
) -> jax.Array:
    """[s, d] features of the rows [s] -> [s] int32."""

    def predict(features: jax.Array) -> jax.Array:
        logits = jnp.matmul(features, kernel, precision=jax.lax.Precision.HIGHEST) + bias
        return jnp.argmax(logits, axis=1)

    def dropped(number: jax.Array) -> jax.Array:
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, number)))(row)
        keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - rate, (x.shape[1],)))(keys)
        return predict(jnp.where(keep, x / (1 - rate), 0))

    return jnp.sum(jax.lax.map(dropped, jnp.arange(passes)) != predict(x), axis=0, dtype=jnp.int32)
