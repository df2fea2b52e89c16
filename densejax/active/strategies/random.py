"""Samples at random, and at random within each class: the baselines."""

import jax
import jax.numpy as jnp
import numpy as np

from densejax.active.balanced import water_fill
from densejax.active.pool import Pool, Selection, check_budget
from densejax.active.rows import first
from densejax.typing import Key


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
