"""The minefield: many networks as points of a plane, by PCA and t-SNE of their kernels.

After the minefield of Huang, Emam et al. 2020 (figure 1) and of the thesis' chapter 3. What such a
picture can show is which points are neighbours. Sizes of clusters and distances between them carry
no meaning, and clusters appear in noise at small perplexities (Wattenberg et al. 2016, How to use
t-SNE effectively): look at several perplexities, and at more than one seed.
"""

from collections.abc import Sequence

import jax
import numpy as np

from densejax.typing import Array, Params

PUBLISHED_PERPLEXITIES = (5, 30, 50, 100)


def kernel_vectors(params: Params) -> np.ndarray:
    """All kernels of many networks side by side; biases and norms' factors are left out.

    Args:
      params: stacked, every leaf [k, ...]; leaves with two axes of their own or more are kernels.

    Returns:
      [k, d] float32, kernels in the order of the tree, each in row-major order.

    Raises:
      ValueError: no leaf is a kernel.
    """
    kernels = [np.asarray(leaf) for leaf in jax.tree.leaves(params) if np.ndim(leaf) >= 3]
    if not kernels:
        raise ValueError("no leaf has two axes beside the instances': expected stacked kernels")
    flat = [leaf.reshape(len(leaf), -1) for leaf in kernels]
    return np.concatenate(flat, axis=1).astype(np.float32)


def embed(
    vectors: Array,
    *,
    perplexities: Sequence[float] = PUBLISHED_PERPLEXITIES,
    components: int = 50,
    seed: int = 0,
) -> dict[float, np.ndarray]:
    """Principal components, then t-SNE from a random start, at several perplexities.

    With the learning rate, 200, of the library that the released code names.

    Args:
      vectors: [n, d] floating.
      perplexities: of t-SNE, each below n; about the number of neighbours that count.
      components: kept of the principal ones; fewer where n or d is smaller.
      seed: of both, an integer.

    Returns:
      [n, 2] float32 by perplexity, in units without meaning.

    Raises:
      ValueError: ``vectors`` is not [n, d], not finite, or a perplexity is not in (0, n).
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    points = np.asarray(vectors)
    if points.ndim != 2 or min(points.shape) < 1:
        raise ValueError(f"vectors has shape {points.shape}: expected [n, d]")
    if not np.isfinite(points).all():
        row = int(np.flatnonzero(~np.isfinite(points).all(axis=1))[0])
        raise ValueError(f"vectors: row {row} is not finite")
    for perplexity in perplexities:
        if not 0 < perplexity < len(points):
            raise ValueError(
                f"perplexity {perplexity} of {len(points)} points: expected more than 0 and less "
                "than the number of points"
            )
    kept = min(components, *points.shape)
    reduced = PCA(n_components=kept, random_state=seed).fit_transform(points)
    return {
        perplexity: TSNE(
            n_components=2,
            init="random",
            learning_rate=200.0,
            perplexity=perplexity,
            random_state=seed,
        ).fit_transform(reduced)
        for perplexity in perplexities
    }


def outliers(
    embedding: Array, *, candidates: Array | None = None, deviations: float = 1.5
) -> np.ndarray:
    """Points that the published picture leaves out: far off in both coordinates.

    A point is an outlier if it is more than ``deviations`` standard deviations from the mean in the
    first coordinate and in the second. The released code says 2 in a comment and takes 1.5, and
    carries the points left out at one perplexity on to the next; here each picture stands alone.

    Args:
      embedding: [n, 2] of all points.
      candidates: [n] bool, which may be left out (published: the bad minima); None is all.
      deviations: in standard deviations of each coordinate, over all points.

    Returns:
      [n] bool.

    Raises:
      ValueError: the shapes do not match.
    """
    points = np.asarray(embedding, np.float64)
    may = np.ones(len(points), bool) if candidates is None else np.asarray(candidates, bool)
    if points.ndim != 2 or may.shape != points.shape[:1]:
        raise ValueError(
            f"embedding {points.shape} and candidates {may.shape}: expected [n, 2] and [n]"
        )
    far = np.abs(points - points.mean(axis=0)) > deviations * points.std(axis=0)
    return far.all(axis=1) & may
