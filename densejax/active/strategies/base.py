"""BASE and MASE: the samples nearest to the decision boundaries of a linear head.

The head predicts p = argmax_c w_c x + b_c (the lowest such c). All distances are Euclidean, in the
space of the features, and come from logits z = x W + b and the distances D[p, c] = |w_p - w_c|
alone: (z_p - z_c) / D[p, c]. So a head costs one product with the features, and no array is larger
than [n, c].

Two classes with the same weights (D = 0) have no boundary between them: the distance is infinite
where their biases differ, and 0 where these agree too, for then every point is a tie. With one
class there is no boundary at all: infinite. Nothing is ever NaN.

The region where a head gives class c is {x : (w_c - w_k) x + b_c - b_k >= 0 for all k}. With unit
normals a_k and signed distances h_k of a point beyond each plane, the displacement to it solves
min |e|^2 / 2 subject to A e >= h, whose dual is max h'l - l'G l / 2 over l >= 0 with G = A A': the
features have gone, and all points share the G of a class. Any l gives a lower bound of the
distance, the best l gives it.
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from densejax.active.balanced import BoundedScore, ClassOrder, Order, balanced
from densejax.active.pool import Pool, Selection, check_budget, linear_head
from densejax.active.rows import first
from densejax.active.scores import Score, evaluate
from densejax.typing import Array, Key

HIGHEST = jax.lax.Precision.HIGHEST
# Of the projection on a region: the last step, in units of the largest plane distance; and steps.
TOLERANCE, STEPS = 1e-5, 20_000

Boundary = Literal["pairwise", "exact"]

# Stand for D where there is no boundary, and where everything is one: a difference of logits over
# them is infinite (NaN between equal logits, which ``_quotients`` mends), and 0.
NEVER, ALWAYS = 0.0, jnp.inf


@jax.jit
def head_distances(kernel: jax.Array) -> jax.Array:
    """Distances between the weights of classes, by their explicit differences.

    Args:
      kernel: [d, c] floating.

    Returns:
      [c, c] float32: D[p, c] = |w_p - w_c|, exactly 0 for equal weights; in O(d c) memory.
    """
    rows = jnp.asarray(kernel, jnp.float32).T
    # A power of two, so that nothing is rounded and no square over- or underflows.
    power = jnp.frexp(jnp.abs(rows).max(initial=0.0))[1]
    rows = jnp.ldexp(rows, -power)

    def to_all(row: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.square(rows - row).sum(axis=1))

    return jnp.ldexp(jax.lax.map(to_all, rows), power)


@jax.jit
def _table(kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """D, with ``NEVER`` where there is no boundary and ``ALWAYS`` where everything is one."""
    apart = head_distances(kernel)
    table = jnp.where(apart > 0, apart, jnp.where(bias[:, None] > bias, NEVER, ALWAYS))
    return table.at[jnp.diag_indices(table.shape[0])].set(NEVER)


def _quotients(table: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Distances [s, c] to the boundary with each class, inf for the predicted one: mask [s, c]."""
    classes = logits.shape[1]
    places = jnp.arange(classes)
    top = logits.max(axis=1, keepdims=True)
    # The lowest index of the largest logit. In floats: the CPU's compiler runs a row's largest
    # float seven times as fast as its smallest integer or its argmax.
    back = jnp.where(logits == top, (classes - places).astype(jnp.float32), 0).max(axis=1)
    predicted = classes - back.astype(jnp.int32)
    # Without the barriers the CPU's compiler writes ``top`` out as [s, c] before it subtracts, and
    # all that follows takes six times as long.
    top, predicted = jax.lax.optimization_barrier((top, predicted))
    quotients = (top - logits) / table[predicted]
    return jnp.where(jnp.isnan(quotients), jnp.inf, quotients), predicted[:, None] == places


def _ddb(table: jax.Array, logits: jax.Array) -> jax.Array:
    return _quotients(table, logits)[0].min(axis=1)


def _dcsdb(table: jax.Array, logits: jax.Array) -> jax.Array:
    quotients, predicted = _quotients(table, logits)
    return jnp.where(predicted, quotients.min(axis=1, keepdims=True), quotients)


def _exact(table: jax.Array, kernel: jax.Array, empty: jax.Array, logits: jax.Array) -> jax.Array:
    quotients, predicted = _quotients(table, logits)
    within = quotients.min(axis=1, keepdims=True)
    # However rounding falls, the region is no nearer than one of its planes.
    beyond = jnp.maximum(quotients, _region_distances(logits, kernel, empty))
    return jnp.where(predicted, within, beyond)


def _exact_one(
    table: jax.Array, kernel: jax.Array, empty: jax.Array, chosen: jax.Array, logits: jax.Array
) -> jax.Array:
    quotients, predicted = (array[:, chosen] for array in _quotients(table, logits))
    within = _ddb(table, logits)
    beyond = jnp.maximum(quotients, _region_distance(logits, kernel, empty, chosen))
    return jnp.where(predicted, within, beyond)


def ddb(features: Array, kernel: Array, *, bias: Array | None = None) -> jax.Array:
    """Distance of features to the nearest boundary of their predicted class.

    min over c != p of (z_p - z_c) / |w_p - w_c| (DDB of the thesis): exact.

    Args:
      features: [n, d] floating.
      kernel: [d, c] floating, the weights of the head.
      bias: [c] floating; zero where None.

    Returns:
      [n] float32, at least 0; inf where there is no boundary.

    Raises:
      ValueError: the head is not finite.
    """
    head = linear_head(kernel, bias)
    return _ddb(_table(*head), _logits(jnp.asarray(features, jnp.float32), *head))


def dcsdb(
    features: Array,
    kernel: Array,
    *,
    bias: Array | None = None,
    boundary: Boundary = "pairwise",
) -> jax.Array:
    """Distance of features to the boundary of every class.

    For the predicted class, to the nearest other class, as ``ddb``. For another class c, how far
    the features must move to be given c (DCSDB of the thesis, equation 5.3).

    Args:
      features: [n, d] floating.
      kernel: [d, c] floating, the weights of the head.
      bias: [c] floating; zero where None.
      boundary: ``pairwise``, as the released code: the distance to the plane between c and the
        predicted class, a lower bound; or ``exact``: the projection on the whole region of c, in
        O(c^2 d) operations for each class and O(n c^2) for each of some hundred steps.

    Returns:
      [n, c] float32, at least 0; inf where there is no boundary.

    Raises:
      ValueError: the head is not finite, or ``boundary`` is something else.
    """
    kernel, offsets = linear_head(kernel, bias)
    score = _dcsdb_score(kernel, offsets, boundary)
    return score.function(_logits(jnp.asarray(features, jnp.float32), kernel, offsets))


@jax.jit
def _logits(features: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return jnp.matmul(features, kernel, precision=HIGHEST) + bias


def mase_score(pool: Pool) -> Score:
    """DDB as a score: the nearest to a boundary is queried first.

    Args:
      pool: with a head, and features or logits.

    Raises:
      ValueError: the pool has no head.
    """
    table = _table(*_head(pool))
    return Score("mase", ("logits",), Partial(_ddb, table), largest_first=False)


def dcsdb_score(pool: Pool, *, boundary: Boundary = "pairwise") -> Score:
    """DCSDB as a score of every class: the nearest to a class's boundary is queried first.

    Args:
      pool: with a head, and features or logits.
      boundary: as of ``dcsdb``.

    Raises:
      ValueError: the pool has no head, or ``boundary`` is something else.
    """
    return _dcsdb_score(*_head(pool), boundary)


def _dcsdb_score(kernel: jax.Array, bias: jax.Array, boundary: Boundary) -> Score:
    table = _table(kernel, bias)
    pairwise = Partial(_dcsdb, table)
    if boundary == "pairwise":
        return Score("dcsdb", ("logits",), pairwise, largest_first=False, classwise=True)
    if boundary != "exact":
        raise ValueError(f"boundary: expected pairwise or exact, found {boundary!r}")
    fixed = table, kernel, jnp.asarray(_empty_regions(kernel, bias))
    return BoundedScore(
        "dcsdb exact",
        ("logits",),
        Partial(_exact, *fixed),
        largest_first=False,
        classwise=True,
        bound=pairwise,
        one=Partial(_exact_one, *fixed),
    )


def _head(pool: Pool) -> tuple[jax.Array, jax.Array]:
    if pool.kernel is None:
        raise ValueError("distances to boundaries need the pool's kernel, the head's weights")
    return linear_head(pool.kernel, pool.bias)


def mase(key: Key, pool: Pool, budget: int) -> Selection:
    """MASE: the samples nearest to a decision boundary (algorithm 1 of the thesis).

    Deterministic: the key is not used. Scores are distances (``ddb``), ascending.

    Args:
      key: a jax key, as every selector takes.
      pool: with a head, and features or logits.
      budget: b, how many to select.

    Raises:
      ValueError: the pool has no head, a value is not finite, or the budget can't be served.
    """
    del key
    budget = check_budget(pool, budget)
    score = mase_score(pool)
    rows = np.flatnonzero(pool.available) if budget else np.zeros(0, np.int64)
    values = evaluate(score, pool, rows=rows)
    best = first(values, np.ones(len(rows), bool), budget, largest_first=False)
    return Selection(rows[best], values[best])


def base(
    key: Key,
    pool: Pool,
    budget: int,
    *,
    order: Order = "round_robin",
    boundary: Boundary = "pairwise",
    class_order: ClassOrder = "index",
) -> Selection:
    """BASE: for every class, the samples nearest to its decision boundary.

    ``balanced`` DCSDB: b // c samples for each class and one more for the first b % c. The thesis
    (algorithm 2) goes round the classes, one pick each in turn; the released code serves a class
    after another, so that the first win what several want: ``order``. Departures from algorithm 2:
    exactly b are picked in every round of labelling, nothing is picked twice, labelled and held
    out samples never, and ties go to the lowest index. Scores are the distances to the boundary of
    the class for which a sample was picked.

    Args:
      key: a jax key; used for a random ``class_order`` alone.
      pool: with a head, and features or logits.
      budget: b, how many to select.
      order: ``round_robin`` (the thesis) or ``block`` (the released code).
      boundary: ``pairwise`` (the released code) or ``exact`` (equation 5.3), as of ``dcsdb``.
        The exact one is computed for those samples alone that, by the other, may be picked.
      class_order: in which order classes pick: by ``index`` (both sources; favours low indices
        where c does not divide b), or ``random``.

    Raises:
      ValueError: the pool has no head, a value is not finite, an option is unknown, or the budget
        can't be served.
    """
    score = dcsdb_score(pool, boundary=boundary)
    return balanced(score, order=order, class_order=class_order)(key, pool, budget)


def _region_distance(
    logits: jax.Array, kernel: jax.Array, empty: jax.Array, chosen: jax.Array
) -> jax.Array:
    """Distance [s] to the region of one class: 0 inside and on its boundary, inf if it is empty.

    The dual is climbed by coordinate ascent, each point along its steepest coordinate, all points
    at once, until no step is longer than ``TOLERANCE``.
    """
    normals = kernel[:, chosen, None] - kernel
    # By a power of two nothing is rounded, and no square over- or underflows.
    power = jnp.frexp(jnp.abs(normals).max(initial=0.0))[1]
    normals = jnp.ldexp(normals, -power)
    lengths = jnp.sqrt(jnp.square(normals).sum(axis=0))
    apart = lengths > 0
    units = jnp.where(apart, normals / jnp.where(apart, lengths, 1), 0)
    gram = jnp.matmul(units.T, units, precision=HIGHEST)
    gram = gram.at[jnp.diag_indices(gram.shape[0])].set(1)
    # Classes with the same weights, and the class itself, bound nothing (or everything: empty).
    lengths = jnp.ldexp(lengths, power)
    beyond = (logits - logits[:, chosen, None]) / jnp.where(apart, lengths, 1)
    beyond = jnp.where(apart, beyond, -1)
    return jnp.where(empty[chosen], jnp.inf, _climb(beyond, gram))


def _climb(beyond: jax.Array, gram: jax.Array) -> jax.Array:
    """sqrt(max over l >= 0 of 2 h'l - l'G l): h [s, c], G [c, c] of unit diagonal -> [s]."""
    points = jnp.arange(beyond.shape[0])
    # In units of the largest plane distance, so that one tolerance serves all.
    scale = jnp.maximum(beyond.max(axis=1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    target = beyond / scale

    def best(weights: jax.Array, slope: jax.Array) -> tuple[jax.Array, jax.Array]:
        step = jnp.maximum(slope, -weights)
        at = jnp.argmax(jnp.abs(step), axis=1)
        return at, step[points, at]

    def unfinished(state: tuple[Any, ...]) -> jax.Array:
        count, _, _, _, step = state
        return (count < STEPS) & (jnp.abs(step).max(initial=0.0) > TOLERANCE)

    def climb(state: tuple[Any, ...]) -> tuple[Any, ...]:
        count, weights, slope, at, step = state
        weights = weights.at[points, at].add(step)
        slope = slope - step[:, None] * gram[at]
        return (count + 1, weights, slope, *best(weights, slope))

    weights = jnp.zeros_like(target)
    start = (jnp.int32(0), weights, target, *best(weights, target))
    _, weights, *_ = jax.lax.while_loop(unfinished, climb, start)
    moved = jnp.matmul(weights, gram, precision=HIGHEST)
    squared = jnp.sum(weights * (2 * target - moved), axis=1)
    # The largest plane distance bounds the distance from below, however rounding falls.
    reached = jnp.maximum(jnp.sqrt(jnp.maximum(squared, 0)), 1)
    return jnp.where(beyond.max(axis=1) > 0, scale[:, 0] * reached, 0)


def _region_distances(logits: jax.Array, kernel: jax.Array, empty: jax.Array) -> jax.Array:
    """``_region_distance`` to every class, one after another: [s, c] float32."""
    one = partial(_region_distance, logits, kernel, empty)
    return jax.lax.map(one, jnp.arange(kernel.shape[1])).T


def _empty_regions(kernel: Array, bias: Array) -> np.ndarray:
    """Classes [c] bool that a head never gives, whatever the features.

    Most classes of most heads are seen not to be empty at a glance: they win at the origin, or far
    out along their own weights; or the weights are in general position. For the others the least
    distance problem of Lawson and Hanson (1974, ch. 23) is solved by non-negative least squares.

    Regions are closed: a class that only ever ties is not empty.
    """
    rows = np.asarray(kernel, np.float64).T
    offsets = np.asarray(bias, np.float64)
    classes = len(rows)
    rows = rows - rows.mean(axis=0)
    empty = np.zeros(classes, bool)
    gram = rows @ rows.T
    others = np.where(np.eye(classes, dtype=bool), -np.inf, gram)
    outward = np.diag(gram) > others.max(axis=1, initial=-np.inf) + 1e-9 * np.abs(gram).max()
    unsure = np.flatnonzero(~outward & (offsets < offsets.max(initial=-np.inf)))
    if unsure.size == 0:
        return empty
    # Only the span of the weights matters: at most c - 1 dimensions instead of d.
    _, sizes, basis = np.linalg.svd(rows, full_matrices=False)
    rank = int((sizes > 1e-9 * sizes.max(initial=0)).sum())
    if rank == classes - 1:
        return empty
    reduced = rows @ basis[:rank].T
    for chosen in unsure:
        empty[chosen] = _is_empty(reduced, offsets, int(chosen))
    return empty


def _is_empty(rows: np.ndarray, offsets: np.ndarray, chosen: int) -> bool:
    from scipy.optimize import nnls

    normals = rows[chosen] - rows
    lengths = np.linalg.norm(normals, axis=1)
    apart = lengths > 1e-9 * np.abs(rows).max(initial=0)
    below = offsets - offsets[chosen]
    if np.any(below[~apart] > 0):
        return True
    normals, planes = normals[apart] / lengths[apart, None], below[apart] / lengths[apart]
    planes = planes / max(np.abs(planes).max(initial=0), np.finfo(float).tiny)
    system = np.concatenate([normals.T, planes[None]])
    aim = np.zeros(len(system))
    aim[-1] = 1
    # The residual is 1 / (1 + distance^2) squared, or 0 if no point satisfies all.
    return bool(nnls(system, aim)[1] < 1e-7)
