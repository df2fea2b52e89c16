"""TypiClust: a typical sample of every part of the feature space, for the smallest budgets."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from densejax.active.pool import Pool, Selection, check_budget
from densejax.active.strategies.distances import padded, resident, squared_distances
from densejax.active.strategies.k_means import cluster
from densejax.typing import Key

# The paper's: at most so many clusters; those of at most so many samples come last; neighbours.
CLUSTERS, SMALL, NEIGHBOURS = 500, 5, 20
# Entries of a block of distances.
BLOCK = 2**22


def typiclust(
    key: Key,
    pool: Pool,
    budget: int,
    *,
    clusters: int = CLUSTERS,
    neighbours: int = NEIGHBOURS,
    normalize: bool = True,
    iterations: int = 100,
) -> Selection:
    """The most typical sample of each cluster, of the clusters with fewest labels first.

    TypiClust of Hacohen, Dekel and Weinshall, "Active Learning on a Budget: Opposite Strategies
    Suit High and Low Budgets", 2022 (arXiv 2202.02794), algorithm 1 (TP_RP). The samples, labelled
    ones too, are put into min(labelled + budget, ``clusters``) clusters by k-means. The clusters,
    ordered by their number of labelled samples and then by size, largest first, give one sample
    each in turn: that of the highest typicality, 1 / (mean distance to its nearest neighbours). As
    in the released code, neighbours are looked for among what is left of the cluster (m samples not
    labelled and not yet selected), there are min(20, m / 2) of them, and clusters of at most 5
    samples are left out.

    Departures: distances as in the paper (the released code averages their squares); the small
    clusters follow, in the same order, when the large ones hold nothing more (the released code
    fails); no mini-batches in k-means.

    Args:
      key: of the clustering.
      pool: with features. What is held out is neither clustered nor selected.
      budget: number of samples.
      clusters: at most so many, at least 1.
      neighbours: at most so many, at least 1.
      normalize: whether features are divided by their length, as in the released code.
      iterations: of k-means.

    Returns:
      The selection; scores are the typicalities, 1 / (mean distance + 1e-5).

    Raises:
      ValueError: budget out of range, no or non-finite features, an option below 1.
    """
    budget = check_budget(pool, budget)
    if min(clusters, neighbours) < 1:
        raise ValueError(f"clusters {clusters}, neighbours {neighbours}: expected at least 1")
    if budget == 0:
        return Selection(np.zeros(0, np.int64), np.zeros(0, np.float32))
    rows = np.flatnonzero(pool.available | pool.is_labelled)
    x = resident(pool, rows, normalize=normalize)
    labelled = pool.is_labelled[rows]
    k = min(int(labelled.sum()) + budget, clusters, len(rows))
    assignment = np.asarray(cluster(key, x, k, iterations=iterations)[1])
    members = [np.flatnonzero((assignment == c) & ~labelled) for c in range(k)]

    chosen, scores = np.zeros(budget, np.int64), np.zeros(budget, np.float32)
    turns = _turns(assignment, labelled, [ids.size for ids in members])
    for t, c in zip(range(budget), turns, strict=False):
        typical = _typicality(x, members[c], neighbours)
        best = int(np.argmax(typical))
        chosen[t], scores[t] = rows[members[c][best]], typical[best]
        members[c] = np.delete(members[c], best)
    return Selection(chosen, scores)


def _turns(assignment: np.ndarray, labelled: np.ndarray, left: list[int]) -> Iterator[int]:
    """The cluster of each pick, until every cluster is empty."""
    sizes = np.bincount(assignment, minlength=len(left))
    labels = np.bincount(assignment[labelled], minlength=len(left))
    order = np.lexsort((np.arange(len(left)), -sizes, labels))
    left = list(left)
    for turn in (order[sizes[order] > SMALL], order[sizes[order] <= SMALL]):
        while waiting := [int(c) for c in turn if left[c]]:
            for c in waiting:
                left[c] -= 1
                yield c


def _typicality(x: jax.Array, ids: np.ndarray, neighbours: int) -> np.ndarray:
    """[m] float32 for the samples of one cluster: rows ``ids`` [m] of x [r, d], m at least 1."""
    # A few sizes only, so that few programs are compiled.
    size = 1 << max(5, (ids.size - 1).bit_length(), neighbours.bit_length())
    near = min(neighbours, ids.size // 2)
    mean = _mean_distance(x[padded(ids, size)], ids.size, near, neighbours=neighbours)
    return 1 / (np.asarray(mean)[: ids.size] + np.float32(1e-5))


@partial(jax.jit, static_argnames="neighbours")
def _mean_distance(x: jax.Array, count: int, near: int, *, neighbours: int) -> jax.Array:
    """[m, d], of which ``count`` rows are real -> [m], over the ``near`` nearest others."""
    m = x.shape[0]
    s = min(m, max(1, BLOCK // m))
    s = 1 << (s.bit_length() - 1)
    columns = jnp.arange(m)

    def block(step: tuple[jax.Array, jax.Array]) -> jax.Array:
        rows, own = step
        other = (columns < count) & (columns != own[:, None])
        squared = jnp.where(other, squared_distances(rows, x), jnp.inf)
        nearest = jnp.sqrt(-jax.lax.top_k(-squared, neighbours)[0])
        real = jnp.arange(neighbours) < near
        return jnp.sum(jnp.where(real, nearest, 0), axis=1) / jnp.maximum(near, 1)

    return jax.lax.map(block, (x.reshape(-1, s, x.shape[1]), columns.reshape(-1, s))).reshape(-1)
