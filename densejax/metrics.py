"""Scores of a labelling, all from one table: how often truth i was called j.

The table is made once with ``confusion_counts`` and everything else is derived from it, so windows,
batches and volumes are added as whole numbers and divided once at the end (``merge_counts``).

A table may be a JAX array or a NumPy array, and its scores stay in that library. JAX tables are
int32, traceable, and give float32; a table, and so each sum over it, must stay below 2**31 voxels.
NumPy tables are int64, for the sum over whole volumes, and give float64. ``[..., c, c]`` below
means that leading axes (instances) are mapped over.
"""

from collections.abc import Iterable, Sequence
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np

from densejax.typing import Array

# A float32 accumulator counts ones exactly below 2**24; chunks of the matrix product stay below.
_CHUNK = 2**20


def confusion_counts(labels: Array, predictions: Array, *, classes: int) -> jax.Array:
    """Count how often each true class was given each predicted class.

    A voxel counts where both its label and its prediction are in 0..c-1. Labels of -1 (not
    labelled) therefore never count; nor does any other value out of range, which shows as a sum of
    the table below the number of labelled voxels.

    Args:
      labels: ``[...]`` int, truth in 0..c-1, or -1 for not labelled.
      predictions: ``[...]`` int in 0..c-1, the same shape.
      classes: c, at least 1.

    Returns:
      ``[c, c]`` int32, rows truth, columns prediction; exact below 2**31 voxels.

    Raises:
      ValueError: the shapes differ, a dtype is not an integer, or ``classes`` is below 1.
    """
    labels, predictions = jnp.asarray(labels), jnp.asarray(predictions)
    if labels.shape != predictions.shape:
        raise ValueError(
            f"labels has shape {labels.shape} and predictions has shape {predictions.shape}: "
            "expected the same shape"
        )
    for name, array in (("labels", labels), ("predictions", predictions)):
        if not jnp.issubdtype(array.dtype, jnp.integer):
            raise ValueError(f"{name} has dtype {array.dtype}: expected an integer dtype")
    if classes < 1:
        raise ValueError(f"classes is {classes}: expected at least 1")
    if labels.size == 0:
        return jnp.zeros((classes, classes), jnp.int32)
    # Unsigned or narrow types would wrap when combined, so both become int32 first.
    truth, predicted = (a.reshape(-1).astype(jnp.int32) for a in (labels, predictions))
    counted = (truth >= 0) & (truth < classes) & (predicted >= 0) & (predicted < classes)
    truth = jnp.where(counted, truth, classes)
    predicted = jnp.where(counted, predicted, classes)
    # A CPU adds to a table in cache faster than it multiplies matrices; an accelerator whose
    # threads would all wait for the same few cells is the other way round.
    return jax.lax.platform_dependent(
        truth,
        predicted,
        cpu=lambda t, p: _counts_by_scatter(t, p, classes),
        default=lambda t, p: _counts_by_product(t, p, classes),
    )


def _counts_by_scatter(truth: jax.Array, predicted: jax.Array, classes: int) -> jax.Array:
    """``[n]`` int32 with ``classes`` for voxels that do not count -> ``[c, c]`` int32."""
    width = classes + 1
    table = jnp.zeros(width * width, jnp.int32).at[truth * width + predicted].add(1)
    return table.reshape(width, width)[:classes, :classes]


def _counts_by_product(truth: jax.Array, predicted: jax.Array, classes: int) -> jax.Array:
    """As ``_counts_by_scatter``, by a product of one-hot matrices in chunks."""
    chunk = min(_CHUNK, truth.size)
    padding = -truth.size % chunk

    def one_hot(values: jax.Array) -> jax.Array:
        values = jnp.pad(values, (0, padding), constant_values=classes).reshape(-1, chunk, 1)
        return (values == jnp.arange(classes)).astype(jnp.float32)

    # Zeros and ones are exact in every reduced precision, so no precision has to be asked for.
    counts = jnp.einsum(
        "nvi,nvj->nij", one_hot(truth), one_hot(predicted), preferred_element_type=jnp.float32
    )
    return jnp.sum(counts.astype(jnp.int32), axis=0, dtype=jnp.int32)


def merge_counts(tables: Iterable[Array]) -> np.ndarray:
    """Add tables on the host, where 64 bits hold any volume.

    Args:
      tables: ``[..., c, c]`` int each, the same shape.

    Returns:
      ``[..., c, c]`` int64 NumPy.

    Raises:
      ValueError: there is no table, or two have different shapes.
    """
    total: np.ndarray | None = None
    for table in tables:
        table = np.asarray(table).astype(np.int64)
        if total is not None and total.shape != table.shape:
            raise ValueError(
                f"a table has shape {table.shape}: expected {total.shape} as the first"
            )
        total = table if total is None else total + table
    if total is None:
        raise ValueError("no tables to merge: expected at least one")
    return total


def without_truth(confusion: Array, *, classes: Sequence[int]) -> Array:
    """Drop the voxels whose truth is one of ``classes``, whatever was predicted there.

    The published test score drops voxels outside the labelled cell (class 0) so: what is found
    there is free, and an organelle called background inside the cell is still a miss.

    Args:
      confusion: ``[..., c, c]`` int.
      classes: the true classes to drop, in 0..c-1.

    Returns:
      ``[..., c, c]``, the same dtype, those rows zero.

    Raises:
      ValueError: the table is not square or a class is not in it.
    """
    library, confusion = _checked(confusion)
    keep = np.ones(confusion.shape[-1], bool)
    keep[_indices(classes, confusion)] = False
    return library.where(keep[:, None], confusion, 0)


def iou(confusion: Array) -> Array:
    """Intersection over union of each class, ``n_ii / (row_i + column_i - n_ii)``.

    Args:
      confusion: ``[..., c, c]`` int.

    Returns:
      ``[..., c]`` float in 0..1; nan for a class that is in neither truth nor prediction.

    Raises:
      ValueError: the table is not square.
    """
    library, confusion = _checked(confusion)
    hits = _diagonal(library, confusion)
    return _ratio(library, hits, confusion.sum(-1) + confusion.sum(-2) - hits)


def dice(confusion: Array) -> Array:
    """Dice coefficient (F1 score) of each class, ``2 n_ii / (row_i + column_i)``.

    Args:
      confusion: ``[..., c, c]`` int.

    Returns:
      ``[..., c]`` float in 0..1; nan for a class that is in neither truth nor prediction.

    Raises:
      ValueError: the table is not square.
    """
    # By way of the other score, because row_i + column_i may be twice what int32 holds.
    scores = iou(confusion)
    return 2 * scores / (1 + scores)


def mean_iou(confusion: Array, *, classes: Sequence[int] | None = None) -> Array:
    """Unweighted mean over classes of the intersection over union (MIoU).

    A class that is in neither truth nor prediction is left out of the mean (it is not a zero and
    not a one), as ``tf.metrics.mean_iou`` does. MIoU(all) of the platelet data is every class and
    MIoU(org) is ``classes=(2, 3, 4, 5, 6)``; the whole table still decides each union.

    Args:
      confusion: ``[..., c, c]`` int.
      classes: the classes to average; None is all.

    Returns:
      ``[...]`` float in 0..1; nan where none of the classes occurs.

    Raises:
      ValueError: the table is not square, or ``classes`` is empty or not in it.
    """
    library, confusion = _checked(confusion)
    scores = iou(confusion)
    if classes is not None:
        scores = scores[..., _indices(classes, confusion)]
    present = ~library.isnan(scores)
    return _ratio(library, library.where(present, scores, 0).sum(-1), present.sum(-1))


def accuracy(confusion: Array) -> Array:
    """Part of the counted voxels that were called what they are.

    Args:
      confusion: ``[..., c, c]`` int.

    Returns:
      ``[...]`` float in 0..1; nan for an empty table.

    Raises:
      ValueError: the table is not square.
    """
    library, confusion = _checked(confusion)
    return _ratio(library, _diagonal(library, confusion).sum(-1), confusion.sum((-2, -1)))


def normalised_confusion(confusion: Array) -> Array:
    """The table with each row (true class) divided by its sum; the diagonal is the recall.

    Args:
      confusion: ``[..., c, c]`` int.

    Returns:
      ``[..., c, c]`` float in 0..1, rows sum to 1; nan in the row of a class with no true voxel.

    Raises:
      ValueError: the table is not square.
    """
    library, confusion = _checked(confusion)
    return _ratio(library, confusion, confusion.sum(-1, keepdims=True))


def adjusted_rand(confusion: Array) -> Array:
    """Adjusted Rand index of the labelling of voxels by class (Hubert and Arabie 1985).

    Equals ``sklearn.metrics.adjusted_rand_score`` on the labels, but is nan where nothing was
    counted. It compares semantic classes, not separate objects, and ignores how classes are named.

    A NumPy table is evaluated in whole numbers of any size and is exact to the last division. A JAX
    table is evaluated in float32: right to about 1e-5, and worse (by 1 / part) where all but a part
    below one in a thousand of the voxels are one class; merge on the host where that matters.

    Args:
      confusion: ``[..., c, c]`` int; for NumPy any contingency table.

    Returns:
      ``[...]`` float, 1 for the same partition, about 0 for chance, possibly negative.

    Raises:
      ValueError: the table is not square.
    """
    library, confusion = _checked(confusion)
    if library is np:
        tables = confusion.reshape(-1, *confusion.shape[-2:])
        return np.array([_adjusted_rand_exact(t) for t in tables]).reshape(confusion.shape[:-2])
    total = confusion.sum((-2, -1)).astype(jnp.float32)
    one = 1 / jnp.maximum(total, 1)

    def pairs(counts: Array, axes: tuple[int, ...]) -> jax.Array:
        # Parts of the whole, not counts: the square of a count overflows, of a part does not.
        scale = one.reshape(one.shape + (1,) * len(axes))
        parts = counts.astype(jnp.float32) * scale
        return jnp.sum(parts * (parts - scale), axis=axes)

    both = pairs(confusion, (-2, -1))
    rows, columns = pairs(confusion.sum(-1), (-1,)), pairs(confusion.sum(-2), (-1,))
    expected = rows * columns / jnp.maximum(1 - one, one)
    spread = (rows + columns) / 2 - expected
    trivial = spread <= 0  # both partitions are one class, or all singletons: they agree
    score = jnp.where(trivial, 1.0, (both - expected) / jnp.where(trivial, 1.0, spread))
    return jnp.where(total > 0, score, jnp.nan)


def _adjusted_rand_exact(table: np.ndarray) -> float:
    counts = [[int(v) for v in row] for row in table]
    total = sum(map(sum, counts))
    if total == 0:
        return float("nan")
    both = sum(v * v for row in counts for v in row)
    rows = sum(sum(row) ** 2 for row in counts)
    columns = sum(sum(column) ** 2 for column in zip(*counts, strict=True))
    # Ordered pairs: together in both, in the truth only, in the prediction only, in neither.
    together, truth, predicted = both - total, rows - both, columns - both
    apart = total * total - rows - columns + both
    if truth == 0 and predicted == 0:
        return 1.0
    agreement = 2 * (together * apart - truth * predicted)
    return agreement / (
        (together + truth) * (truth + apart) + (together + predicted) * (predicted + apart)
    )


def _checked(confusion: Array) -> tuple[ModuleType, Array]:
    """The library of a table and the table, whose sums on the host are 64 bits wide."""
    library = jnp if isinstance(confusion, jax.Array) else np
    confusion = confusion if library is jnp else np.asarray(confusion)
    if confusion.ndim < 2 or confusion.shape[-1] != confusion.shape[-2]:
        raise ValueError(f"confusion has shape {confusion.shape}: expected [..., c, c]")
    if library is np and np.issubdtype(confusion.dtype, np.integer):
        confusion = confusion.astype(np.int64)
    return library, confusion


def _indices(classes: Sequence[int], confusion: Array) -> np.ndarray:
    indices = np.asarray(classes, int)
    if indices.size == 0 or indices.min() < 0 or indices.max() >= confusion.shape[-1]:
        raise ValueError(
            f"classes is {tuple(classes)}: expected one or more of 0..{confusion.shape[-1] - 1}"
        )
    return indices


def _diagonal(library: ModuleType, confusion: Array) -> Array:
    return library.diagonal(confusion, axis1=-2, axis2=-1)


def _ratio(library: ModuleType, above: Array, below: Array) -> Array:
    """``above / below``, and nan without a warning where ``below`` is zero."""
    dtype = library.float64 if library is np else library.float32
    quotient = above.astype(dtype) / library.maximum(below, 1).astype(dtype)
    return library.where(below > 0, quotient, library.nan)
