"""Cluster-Margin: uncertain samples from every cluster of the feature space."""

import jax
import numpy as np

from densejax.active.pool import Pool, Selection, check_budget
from densejax.active.rows import first
from densejax.active.scores import evaluate, margin
from densejax.active.strategies.distances import resident
from densejax.active.strategies.k_means import cluster
from densejax.typing import UNLABELLED, Array, Key

# Agglomerative clustering holds the distances of all pairs: 400 MB at so many samples.
AGGLOMERATED = 10_000


def cluster_margin(
    key: Key,
    pool: Pool,
    budget: int,
    *,
    ratio: float = 10.0,
    clusters: int = 20,
    groups: Array | None = None,
    within: str = "random",
) -> Selection:
    """Samples of small margin, in turn from each of their clusters, the smallest cluster first.

    Cluster-Margin of Citovsky, DeSalvo, Gentile, Karydas, Rajagopalan, Rostamizadeh and Kumar,
    "Batch Active Learning at Scale", 2021 (arXiv 2107.14263): the samples are clustered once; of
    the k_m = ``ratio`` * budget samples of the smallest margins, the clusters that they fall into
    are sorted by how many of them they hold, and give one sample each in turn, smallest first.

    Departures: the number of clusters is given, instead of a threshold of the linkage; k-means
    stands for agglomerative clustering where the pool is large (``agglomerate``); of clusters of
    one size the lower group comes first.

    Args:
      key: of the order within clusters, and of ``agglomerate``.
      pool: with probabilities (or logits or a head), and features where ``groups`` is None.
      budget: number of samples.
      ratio: k_m / budget, at least 1.
      clusters: at least 1, where ``groups`` is None.
      groups: [n] int32, a clustering made before ("once", for all rounds); ``agglomerate`` of this
        pool where None. Any integers; what is held out is not looked at.
      within: ``random``, any sample of a cluster, as in the paper, or ``margin``, that of the
        smallest margin.

    Returns:
      The selection; scores are the margins, p1 - p2.

    Raises:
      ValueError: budget or an option out of range, an array missing, not finite or of another
        shape.
    """
    budget = check_budget(pool, budget)
    if not ratio >= 1:
        raise ValueError(f"ratio {ratio}: expected at least 1")
    if within not in ("random", "margin"):
        raise ValueError(f"within {within!r}: expected 'random' or 'margin'")
    if groups is not None and np.shape(groups) != (pool.size,):
        raise ValueError(f"groups: expected [{pool.size}], found shape {np.shape(groups)}")
    if budget == 0:
        return Selection(np.zeros(0, np.int64), np.zeros(0, np.float32))
    order, clustering = jax.random.split(key)
    groups = agglomerate(clustering, pool, clusters) if groups is None else np.asarray(groups)
    free = np.flatnonzero(pool.available)
    gap = np.ones(pool.size, np.float32)
    gap[free] = evaluate(margin(), pool, rows=free)
    few = min(int(np.ceil(ratio * budget)), free.size)
    candidates = first(gap, pool.available, few, largest_first=False)
    if within == "random":
        candidates = candidates[np.asarray(jax.random.permutation(order, few))]
    chosen = candidates[_round_robin(groups[candidates])[:budget]]
    return Selection(chosen, gap[chosen])


def _round_robin(groups: np.ndarray) -> np.ndarray:
    """[q] groups -> [q] places: the first of each group, the second of each, ...

    Within a round groups come by size, smallest first, and the lower of one size first.
    """
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    by_group = np.argsort(group, kind="stable")
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    turn = np.empty(groups.size, np.int64)
    turn[by_group] = np.arange(groups.size) - starts[group[by_group]]
    return np.lexsort((group, sizes[group], turn))


def agglomerate(
    key: Key, pool: Pool, clusters: int, *, limit: int = AGGLOMERATED, normalize: bool = False
) -> np.ndarray:
    """Clusters by average linkage of Euclidean distances, or by k-means where there are many.

    Args:
      key: of k-means; agglomerative clustering draws nothing.
      pool: with features.
      clusters: how many, at least 1; each sample is its own where there are no more of them.
      limit: up to so many samples agglomerative, whose memory and time are quadratic.
      normalize: whether features are divided by their length.

    Returns:
      [n] int32, -1 for what is held out.

    Raises:
      ValueError: fewer than one cluster, no or non-finite features.
    """
    if clusters < 1:
        raise ValueError(f"clusters {clusters}: expected at least 1")
    rows = np.flatnonzero(pool.available | pool.is_labelled)
    groups = np.full(pool.size, UNLABELLED, np.int32)
    if not rows.size:
        return groups
    x = resident(pool, rows, normalize=normalize)
    if len(rows) <= clusters:
        groups[rows] = np.arange(len(rows))
    elif len(rows) > limit:
        groups[rows] = np.asarray(cluster(key, x, clusters)[1])
    else:
        from sklearn.cluster import AgglomerativeClustering

        model = AgglomerativeClustering(clusters, linkage="average")
        groups[rows] = model.fit_predict(np.asarray(x, np.float64))
    return groups
