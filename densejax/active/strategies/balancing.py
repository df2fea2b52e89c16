"""The balancing sampler: a baseline that asks for labels one by one."""

from collections.abc import Callable, Iterable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from densejax.active.pool import Pool, Selection, check_budget, chunks, refuse_overflow
from densejax.active.rows import first
from densejax.typing import UNLABELLED, Key

# Bytes of features that are kept in memory over the picks.
RESIDENT = 2 * 2**30


def balancing(
    key: Key,
    pool: Pool,
    budget: int,
    *,
    reveal: Callable[[int], int] | None = None,
    far: Literal["max", "min"] = "max",
) -> Selection:
    """The balancing sampler: after each pick, towards the class that has the fewest labels.

    With the counts of labels of all classes, those above the mean count are the majority. As long
    as the picks left are more than the minority's size times the difference of the two groups' mean
    counts, a sample is picked at random. Else the one of least |x - m|^2 / max_k |x - m_k|^2, where
    m is the mean of the labelled features of the rarest class (the lowest such; the numerator is 1
    if it has none) and k runs over the majority. Follows the released code, which calls the
    denominator a minimum but takes the maximum.

    The label of each pick is asked for before the next: methods that choose a batch are at a
    disadvantage beside it. Each pick reads the features of the pool once or twice, to renew the
    distances to the means that moved: from memory if they take less than 2 GiB, else from disk.
    Distances to a class [n] are kept for the rarest and the majority.

    Args:
      key: a jax key, for the random picks.
      pool: with features, and labels of the labelled samples (if any).
      budget: b, how many to select.
      reveal: gives the class of a row when it is asked; the pool's labels where None.
      far: ``max``, or ``min`` over the majority in the denominator.

    Returns:
      A selection; its scores are the quotients (inf where the denominator is 0), NaN for picks at
      random.

    Raises:
      ValueError: features or a label are missing, or a label is outside the classes; or the budget
        can't be served.
    """
    budget = check_budget(pool, budget)
    if far not in ("max", "min"):
        raise ValueError(f"far: expected max or min, found {far!r}")
    rows = np.flatnonzero(pool.available)
    means = _Means(pool, rows)
    shuffled = iter(np.asarray(jax.random.permutation(key, len(rows))))
    free = np.ones(len(rows), bool)
    picks, scores = [], []
    for left in range(budget, 0, -1):
        quotients = _quotients(means, left, far)
        if quotients is None:
            place, score = next(at for at in shuffled if free[at]), np.nan
        else:
            place = int(first(quotients, free, 1, largest_first=False)[0])
            score = quotients[place]
        free[place] = False
        picks.append(rows[place])
        scores.append(score)
        if left > 1:
            means.reveal(int(rows[place]), reveal)
    return Selection(np.array(picks, np.int64), np.array(scores, np.float32))


def _quotients(means: "_Means", left: int, far: str) -> np.ndarray | None:
    """What the balancing sampler makes least, [r]; None if it picks at random."""
    counts = means.counts
    majority = counts > counts.mean()
    if not majority.any():
        return None
    gap = counts[majority].mean() - counts[~majority].mean()
    if left > (~majority).sum() * gap:
        return None
    rarest = int(counts.argmin())
    near = means.squared(rarest) if counts[rarest] else np.float32(1)
    reduce = np.maximum if far == "max" else np.minimum
    below = means.squared(int(majority.argmax())).copy()
    for k in np.flatnonzero(majority)[1:]:
        reduce(below, means.squared(int(k)), out=below)
    there = below > 0
    return np.where(there, near / np.where(there, below, 1), np.inf)


class _Means:
    """Means of the labelled features of each class, and the samples' distances to them."""

    def __init__(self, pool: Pool, rows: np.ndarray) -> None:
        labelled = np.flatnonzero(pool.is_labelled)
        labels = np.zeros(0, np.int64) if pool.labels is None else np.asarray(pool.labels)
        try:
            classes = pool.classes
        except ValueError:
            classes = int(labels.max(initial=-1)) + 1
        if classes < 2:
            raise ValueError(
                f"the balancing sampler needs 2 classes or more; the pool's labels have {classes}"
            )
        self.pool, self.labels, self.rows = pool, labels, rows
        self.counts = np.zeros(classes, np.int64)
        if pool.features is None:
            raise ValueError("the balancing sampler needs the pool's features")
        self._sums = np.zeros((classes, pool.features.shape[1]))
        self._columns: dict[int, np.ndarray] = {}
        self._held: list[tuple[np.ndarray, dict[str, jax.Array]]] | None = None
        for ids, read in self._read(labelled):
            for row, x in zip(ids, np.asarray(read["features"]), strict=False):
                self._count(int(row), self._known(int(row)), x)

    def _known(self, row: int) -> int:
        return int(self.labels[row]) if row < len(self.labels) else UNLABELLED

    def _count(self, row: int, label: int, x: np.ndarray) -> None:
        if not 0 <= label < len(self.counts):
            raise ValueError(
                f"the label of sample {row}: expected one of {len(self.counts)} classes, "
                f"found {label}"
            )
        self.counts[label] += 1
        self._sums[label] += x
        self._columns.pop(label, None)

    def reveal(self, row: int, oracle: Callable[[int], int] | None) -> None:
        """Take the label of a row that was picked."""
        _, read = next(chunks(self.pool, ("features",), rows=np.array([row])))
        label = self._known(row) if oracle is None else int(oracle(row))
        self._count(row, label, np.asarray(read["features"])[0])

    def squared(self, k: int) -> np.ndarray:
        """[r] float32: |x - m_k|^2."""
        if k not in self._columns:
            mean = jnp.asarray(self._sums[k] / self.counts[k], jnp.float32)
            parts = [
                np.asarray(_squared(read["features"], mean))[: len(ids)]
                for ids, read in self._features()
            ]
            self._columns[k] = np.concatenate(parts)
        return self._columns[k]

    def _read(self, rows: np.ndarray) -> Iterable[tuple[np.ndarray, dict[str, jax.Array]]]:
        for ids, read in chunks(self.pool, ("features",), rows=rows):
            refuse_overflow(ids, read["features"])
            yield ids, read

    def _features(self) -> Iterable[tuple[np.ndarray, dict[str, jax.Array]]]:
        if self._held is not None:
            return self._held
        source = self._read(self.rows)
        if 4 * len(self.rows) * self._sums.shape[1] > RESIDENT:
            return source
        self._held = list(source)
        return self._held


@jax.jit
def _squared(features: jax.Array, mean: jax.Array) -> jax.Array:
    return jnp.square(features - mean).sum(axis=1)
