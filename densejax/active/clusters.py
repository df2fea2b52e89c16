"""Uncertain samples from every part of the feature space: DropQuery and Cluster-Margin."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.cluster import AgglomerativeClustering

from densejax.active.distances import resident
from densejax.active.kmeans import cluster, k_means
from densejax.active.pool import Pool, Selection, check_budget, chunks, evaluate, first
from densejax.active.scores import margin
from densejax.typing import UNLABELLED, Array, Key

# Agglomerative clustering holds the distances of all pairs: 400 MB at so many samples.
AGGLOMERATED = 10_000


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
        model = AgglomerativeClustering(clusters, linkage="average")
        groups[rows] = model.fit_predict(np.asarray(x, np.float64))
    return groups
