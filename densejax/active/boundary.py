"""Distances to the decision boundaries of a linear head, and the selectors MASE and BASE.

The head predicts p = argmax_c w_c x + b_c (the lowest such c). All distances are Euclidean, in the
space of the features, and come from logits z = x W + b and the distances D[p, c] = |w_p - w_c|
alone: (z_p - z_c) / D[p, c]. So a head costs one product with the features, and no array is larger
than [n, c].

Two classes with the same weights (D = 0) have no boundary between them: the distance is infinite
where their biases differ, and 0 where these agree too, for then every point is a tie. With one
class there is no boundary at all: infinite. Nothing is ever NaN.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from densejax.active.balanced import ClassOrder, Order, balanced
from densejax.active.deriving import linear_head
from densejax.active.pool import Pool, Score, Selection, check_budget, evaluate, first
from densejax.active.projection import empty_regions, region_distance, region_distances
from densejax.active.shortlist import BoundedScore
from densejax.typing import Array, Key

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
    beyond = jnp.maximum(quotients, region_distances(logits, kernel, empty))
    return jnp.where(predicted, within, beyond)


def _exact_one(
    table: jax.Array, kernel: jax.Array, empty: jax.Array, chosen: jax.Array, logits: jax.Array
) -> jax.Array:
    quotients, predicted = (array[:, chosen] for array in _quotients(table, logits))
    within = _ddb(table, logits)
    beyond = jnp.maximum(quotients, region_distance(logits, kernel, empty, chosen))
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
    return jnp.matmul(features, kernel, precision=jax.lax.Precision.HIGHEST) + bias


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
    fixed = table, kernel, jnp.asarray(empty_regions(kernel, bias))
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
