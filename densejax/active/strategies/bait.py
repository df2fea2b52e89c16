"""BAIT: the batch after which the last layer's parameters are known best, by Fisher information."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from densejax.active.pool import Pool, Selection, check_budget, chunks, refuse_overflow
from densejax.typing import Key

# Floats of the products of classes and features of a chunk.
BLOCK = 2**22


def bait(
    key: Key,
    pool: Pool,
    budget: int,
    *,
    regularisation: float = 1.0,
    oversample: float = 2.0,
    rank: int | None = None,
    width: int = 2048,
) -> Selection:
    """Minimise the expected loss of the last layer over the pool, as its Fisher matrices bound it.

    BAIT of Ash, Goel, Krishnamurthy and Kakade, "Gone Fishing: Neural Active Learning with Fisher
    Embeddings", 2021 (arXiv 2106.09675), algorithm 1. The Fisher matrix of the linear head's kernel
    at a sample with features x and probabilities p is

        I(x) = (diag(p) - p p^T) (x) x x^T = V^T V,   V = A (x) x^T,   A_y = sqrt(p_y) (e_y - p),

    a Kronecker product of [c, c] and [d, d]. With F the mean of I over the pool, and M the
    regularised sum over what is labelled and selected, a sample changes the objective tr(M^-1 F) by

        tr((M + V^T V)^-1 F) = tr(M^-1 F) - tr((1 + V M^-1 V^T)^-1 V M^-1 F M^-1 V^T)

    (Woodbury): it takes [c, c] matrices alone, and V is never formed for the pool. ``oversample``
    times the budget is selected greedily by it; then, one at a time, samples are removed for which
    the objective rises least (the same form with minus signs).

    Weights are those of the released code: M starts from ``regularisation`` * 1 plus l / (l + b)
    times the mean of I over the l labelled samples, each selected sample adds b / (l + b) I(x), and
    F is the mean over labelled and available samples.

    Departures: at most ``width`` parameters: where d c is more, features are projected on their
    first width // c principal directions (about the origin); optionally A is cut to its first
    singular values. The head's bias is not a parameter (as in the released code). M^-1 is float64,
    the gains of the pool float32. Ties go to the lowest index.

    With w = c d' parameters, a pick costs O(n c w d') for the pool and O(c w^2) for the update, and
    there are ``oversample`` * budget of them; each of the removals costs O(b c w^2).

    Args:
      key: unused, nothing is drawn.
      pool: with features, and probabilities (or logits or a head).
      budget: number of samples.
      regularisation: positive.
      oversample: at least 1; as far as samples are available.
      rank: at most c, of A; all where None.
      width: of the matrices, at least c.

    Returns:
      The selection, in the order of the forward pass; scores are the falls of the objective then.

    Raises:
      ValueError: budget or an option out of range, an array missing or not finite.
    """
    budget = check_budget(pool, budget)
    if not (regularisation > 0 and oversample >= 1):
        raise ValueError(
            f"regularisation {regularisation}, oversample {oversample}: expected more than 0, and "
            "at least 1"
        )
    if pool.features is None:
        raise ValueError("this selector needs the pool's features")
    c = pool.classes
    if width < c or (rank is not None and not 1 <= rank <= c):
        raise ValueError(f"width {width}, rank {rank}: expected {c} or more, and 1 to {c}")
    if budget == 0:
        return Selection(np.zeros(0, np.int64), np.zeros(0, np.float32))
    reader = _Reader(pool, rank, width)
    labelled, free = np.flatnonzero(pool.is_labelled), pool.available
    everything = reader.information(np.flatnonzero(free | pool.is_labelled))
    share = budget / (len(labelled) + budget)
    known = regularisation * np.eye(len(everything))
    if labelled.size:
        known += (1 - share) * reader.information(labelled)
    state = _State(np.linalg.inv(known), everything)

    picks: list[int] = []
    factors: list[np.ndarray] = []
    scores: list[float] = []
    for _ in range(min(int(np.ceil(oversample * budget)), int(free.sum()))):
        gains = np.where(free, reader.gains(state, share), -np.inf)
        pick = int(np.argmax(gains))
        picks.append(pick)
        scores.append(float(gains[pick]))
        factors.append(np.sqrt(share) * reader.factor(pick))
        state.update(factors[-1], 1)
        free[pick] = False
    while len(picks) > budget:
        worst = int(np.argmin([state.rise(factor) for factor in factors]))
        state.update(factors.pop(worst), -1)
        del picks[worst], scores[worst]
    return Selection(np.array(picks, np.int64), np.array(scores, np.float32))


class _State:
    """M^-1 and M^-1 F M^-1, [w, w] float64, as samples come and go."""

    def __init__(self, inverse: np.ndarray, everything: np.ndarray) -> None:
        self.inverse = inverse
        self.target = inverse @ everything @ inverse

    def update(self, v: np.ndarray, sign: int) -> None:
        """M + sign V^T V; v [r, w]."""
        r = len(v)
        half = self.inverse @ v.T
        inner = np.linalg.inv(sign * np.eye(r) + v @ half)
        shrink = half @ inner
        across = shrink @ (v @ self.target)
        middle = shrink @ (v @ self.target @ v.T) @ shrink.T
        inverse = self.inverse - shrink @ half.T
        target = self.target - across - across.T + middle
        # Rounding must not make them less and less symmetric.
        self.inverse = (inverse + inverse.T) / 2
        self.target = (target + target.T) / 2

    def rise(self, v: np.ndarray) -> float:
        """By how much the objective rises when V^T V is taken from M."""
        inner = np.eye(len(v)) - v @ self.inverse @ v.T
        return float(np.trace(np.linalg.solve(inner, v @ self.target @ v.T)))


class _Reader:
    """The pool's features, projected, and factors A, in chunks."""

    def __init__(self, pool: Pool, rank: int | None, width: int) -> None:
        self.pool, self.rank = pool, rank
        self.basis: jax.Array | None = None
        for ids, arrays in chunks(pool, ("features",), rows=_kept(pool)):
            refuse_overflow(ids, arrays["features"])
        d, c = pool.features.shape[1], pool.classes
        if d * c > width:
            self.basis = jnp.asarray(_directions(pool, width // c), jnp.float32)
        self.shape = (c, min(d, width // c))

    def read(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, jax.Array, jax.Array]]:
        """([s] rows, [s', d'] features, [s', r, c] factors), s' at least s."""
        c, d = self.shape
        size = max(1, BLOCK // (c * max(c, d)))
        needs = ("features", "probabilities")
        for ids, arrays in chunks(self.pool, needs, rows=rows, size=size):
            x = arrays["features"]
            yield (
                ids,
                x if self.basis is None else _dot(x, self.basis),
                _root(arrays["probabilities"], rank=self.rank),
            )

    def information(self, rows: np.ndarray) -> np.ndarray:
        """The mean of I over some rows: [w, w] float64."""
        c, d = self.shape
        total = np.zeros((c * d, c * d))
        for ids, x, root in self.read(rows):
            real = jnp.arange(x.shape[0]) < len(ids)
            total += np.asarray(_sum(x, root, real)).reshape(total.shape)
        return (total + total.T) / (2 * len(rows))

    def gains(self, state: _State, share: float) -> np.ndarray:
        """[n] float32, the falls of the objective; zero where not available."""
        blocks = (*self.shape, *self.shape)
        inverse = jnp.asarray(state.inverse.reshape(blocks), jnp.float32)
        target = jnp.asarray(state.target.reshape(blocks), jnp.float32)
        out = np.zeros(self.pool.size, np.float32)
        for ids, x, root in self.read(np.flatnonzero(self.pool.available)):
            out[ids] = np.asarray(_falls(x, root, inverse, target, share))[: len(ids)]
        return out

    def factor(self, row: int) -> np.ndarray:
        """V of one sample: [r, w] float64."""
        _, x, root = next(self.read(np.array([row])))
        return np.kron(np.asarray(root[0], np.float64), np.asarray(x[:1], np.float64))


def _directions(pool: Pool, count: int) -> np.ndarray:
    """[d, count], orthonormal, of the largest second moments of the features."""
    d = pool.features.shape[1]
    moments = np.zeros((d, d))
    for ids, arrays in chunks(pool, ("features",), rows=_kept(pool)):
        x = arrays["features"][: len(ids)]
        moments += np.asarray(_dot(x.T, x))
    return np.linalg.eigh(moments)[1][:, ::-1][:, :count]


def _kept(pool: Pool) -> np.ndarray:
    return np.flatnonzero(pool.available | pool.is_labelled)


@jax.jit
def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


@partial(jax.jit, static_argnames="rank")
def _root(p: jax.Array, *, rank: int | None) -> jax.Array:
    """A with A^T A = diag(p) - p p^T, or its best approximation of a rank: [s, r, c]."""
    c = p.shape[1]
    root = jnp.sqrt(p)[:, :, None] * (jnp.eye(c) - p[:, None, :])
    if rank is None or rank == c:
        return root
    values, vectors = jnp.linalg.eigh(jnp.einsum("syi,syj->sij", root, root, precision="highest"))
    values, vectors = values[:, -rank:], vectors[:, :, -rank:]
    return jnp.sqrt(jnp.maximum(values, 0))[:, :, None] * jnp.swapaxes(vectors, 1, 2)


@jax.jit
def _sum(x: jax.Array, root: jax.Array, real: jax.Array) -> jax.Array:
    """[s, d], [s, r, c], [s] bool -> sum of (A^T A) (x) (x x^T): [c, d, c, d]."""
    kernel = jnp.einsum("syi,syj->sij", root, root, precision="highest")
    kernel = jnp.where(real[:, None, None], kernel, 0)

    def of_class(row: jax.Array) -> jax.Array:
        return jnp.einsum("sa,sj,sb->ajb", x, row, x, precision="highest")

    return jax.lax.map(of_class, jnp.swapaxes(kernel, 0, 1))


def _sandwich(x: jax.Array, root: jax.Array, matrix: jax.Array) -> jax.Array:
    """V matrix V^T for V = A (x) x^T: [s, d], [s, r, c], [c, d, c, d] -> [s, r, r]."""

    def of_class(rows: jax.Array) -> jax.Array:
        half = jnp.einsum("sa,ajb->sjb", x, rows, precision="highest")
        return jnp.einsum("sjb,sb->sj", half, x, precision="highest")

    inner = jax.lax.map(of_class, matrix)
    return jnp.einsum("syi,isj,szj->syz", root, inner, root, precision="highest")


@jax.jit
def _falls(
    x: jax.Array, root: jax.Array, inverse: jax.Array, target: jax.Array, share: float
) -> jax.Array:
    """tr((1 + V M^-1 V^T)^-1 V M^-1 F M^-1 V^T), V times sqrt(share): [s] float32."""
    inner = jnp.eye(root.shape[1]) + share * _sandwich(x, root, inverse)
    outer = share * _sandwich(x, root, target)
    return jnp.trace(jnp.linalg.solve(inner, outer), axis1=1, axis2=2)
