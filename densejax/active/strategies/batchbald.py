"""BatchBALD: the batch whose labels say most about the parameters, duplicates counted once."""

import jax
import jax.numpy as jnp
import numpy as np

from densejax.active.pool import Pool, Selection, check_budget, chunks
from densejax.typing import Key

# Floats of the conditional probabilities of a block of samples, given each configuration.
BLOCK = 2**22
# Gains are rounded to 2^-20 nats: what float32 can't tell apart is equal.
RESOLUTION = 2.0**-20


def batch_bald(key: Key, pool: Pool, budget: int, *, samples: int = 10_000) -> Selection:
    """Greedy maximisation of the mutual information of a batch's labels and the parameters.

    BatchBALD of Kirsch, van Amersfoort and Gal, "BatchBALD: Efficient and Diverse Batch Acquisition
    for Deep Bayesian Active Learning", 2019 (arXiv 1906.08158), algorithm 1. By the chain rule the
    next sample x is that of the largest

        I(y_x; w | y_S) = E_{y_S} H(y_x | y_S) - E_w H(y_x | w),

    S being the batch so far, and p(y_x | y_S) the mean of the m passes' probabilities, weighted by
    their posteriors given y_S. The expectation over the configurations y_S is exact while there are
    at most ``samples`` of them (c^|S|), and over samples // m draws from each pass thereafter
    (section 3.3), drawn anew for every pick.

    Departures: the paper and its code compute joint entropies H(y_x, y_S), products of |S|
    probabilities that underflow; here posteriors are taken from sums of logarithms in float64, and
    nothing underflows, however large the batch. It is the same number, less a constant. Gains are
    rounded to 2^-20 nats; ties go to the lowest index.

    The cost of a pick is O(n q m c) for q <= ``samples`` configurations, one pass over the pool.

    Args:
      key: of the drawn configurations; unused while they are enumerated.
      pool: with passes.
      budget: number of samples.
      samples: at most so many configurations, at least 1.

    Returns:
      The selection; scores are I(y_x; w | y_S) in nats, the first that of BALD.

    Raises:
      ValueError: budget out of range, no or non-finite passes, samples below 1.
    """
    budget = check_budget(pool, budget)
    if samples < 1:
        raise ValueError(f"samples {samples}: expected at least 1")
    if pool.passes is None:
        raise ValueError("this selector needs the pool's passes")
    _, m, c = pool.passes.shape
    free = pool.available
    batch = np.zeros((0, m, c))
    chosen, scores = np.zeros(budget, np.int64), np.zeros(budget, np.float32)
    for t in range(budget):
        posterior, weight = _configurations(jax.random.fold_in(key, t), batch, samples)
        gains = np.where(free, _gains(pool, free, posterior, weight), -np.inf)
        chosen[t] = np.argmax(gains)
        scores[t], free[chosen[t]] = gains[chosen[t]], False
        _, arrays = next(chunks(pool, ("passes",), rows=chosen[t : t + 1]))
        batch = np.concatenate([batch, np.asarray(arrays["passes"], np.float64)[:1]])
    return Selection(chosen, scores)


def _configurations(key: Key, batch: np.ndarray, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Label configurations of the batch [t, m, c], their posteriors [q, m] and weights [q]."""
    t, m, c = batch.shape
    with np.errstate(divide="ignore"):
        logs = np.log(batch)
    if c**t <= samples:
        joint = np.zeros((1, m))
        for log in logs:
            joint = (joint[:, None] + log.T).reshape(-1, m)
        return _posterior(joint)
    each = max(1, samples // m)
    member = np.repeat(np.arange(m), each)
    joint = np.zeros((member.size, m))
    # On the host: a program of the device would be compiled anew for each size of the batch.
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    for log, p in zip(logs, batch, strict=True):
        total = np.cumsum(p, axis=1)
        total /= total[:, -1:]
        y = (total[member] <= random.random((member.size, 1))).sum(axis=1)
        joint += log[:, y].T
    return _posterior(joint)[0], np.full(member.size, 1 / member.size)


def _posterior(joint: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log p(y | w) [q, m] -> p(w | y) [q, m] (uniform where y is impossible) and p(y) [q]."""
    largest = joint.max(axis=1, keepdims=True)
    largest = np.where(np.isfinite(largest), largest, 0)
    relative = np.exp(joint - largest)
    total = relative.sum(axis=1, keepdims=True)
    posterior = np.where(total > 0, relative / np.where(total > 0, total, 1), 1 / joint.shape[1])
    return posterior, (total * np.exp(largest))[:, 0] / joint.shape[1]


def _gains(pool: Pool, free: np.ndarray, posterior: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """[n] float32, I(y_x; w | y_S) of the free samples; zero for the others."""
    out = np.zeros(pool.size, np.float32)
    q, w = jnp.asarray(posterior, jnp.float32), jnp.asarray(weight, jnp.float32)
    # The same rows each time, so that all picks run the same program.
    for ids, arrays in chunks(pool, ("passes",), rows=np.flatnonzero(pool.available)):
        out[ids] = np.asarray(_information(arrays["passes"], q, w))[: len(ids)]
    return np.where(free, out, 0)


@jax.jit
def _information(passes: jax.Array, posterior: jax.Array, weight: jax.Array) -> jax.Array:
    """[s, m, c], [q, m], [q] -> [s] float32."""

    def one(p: jax.Array) -> jax.Array:
        given = jnp.matmul(posterior, p, precision=jax.lax.Precision.HIGHEST)
        conditional = jnp.sum(weight * jnp.sum(jax.scipy.special.entr(given), axis=1))
        return conditional - jnp.mean(jnp.sum(jax.scipy.special.entr(p), axis=1))

    side = max(1, min(passes.shape[0], BLOCK // (posterior.shape[0] * passes.shape[2])))
    gain = jax.lax.map(one, passes, batch_size=side)
    return jnp.round(gain / RESOLUTION) * RESOLUTION
