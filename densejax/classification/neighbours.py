"""Nearest neighbours: how well features alone tell the classes apart, without any training."""

import jax
import jax.numpy as jnp

from densejax.losses import unit_rows
from densejax.typing import UNLABELLED, Array


def knn_votes(
    queries: Array,
    bank: Array,
    bank_labels: Array,
    *,
    classes: int,
    neighbours: int = 200,
    temperature: float = 0.1,
) -> jax.Array:
    """Votes of the nearest neighbours by cosine, each weighing exp(cosine / temperature).

    Source: Wu, Xiong, Yu and Lin 2018, section 3.4; 200 neighbours at 0.1 as in MoCo's CIFAR-10
    notebook. Of equal cosines the lower row of the bank is nearer. At full float32 precision, a
    few hundred queries at a time.

    Args:
      queries: [n, d] floating.
      bank: [m, d] floating.
      bank_labels: int32 [m], 0..c-1, or -1 for a row that never votes.
      classes: c.
      neighbours: at most m vote.
      temperature: above 0.

    Returns:
      [n, c] float32; the largest is the class.

    Raises:
      ValueError: the shapes do not go together.
    """
    if (
        queries.ndim != 2
        or bank.shape[1:] != queries.shape[1:]
        or (bank_labels.shape != bank.shape[:1])
    ):
        raise ValueError(
            f"knn_votes: expected [n, d], [m, d] and [m], found {queries.shape}, {bank.shape} and "
            f"{bank_labels.shape}"
        )
    queries, bank, labels = unit_rows(queries), unit_rows(bank), jnp.asarray(bank_labels)
    nearest = min(neighbours, bank.shape[0])

    def vote(query: jax.Array) -> jax.Array:
        cosines = jnp.matmul(bank, query, precision=jax.lax.Precision.HIGHEST)
        cosines, rows = jax.lax.top_k(jnp.where(labels == UNLABELLED, -jnp.inf, cosines), nearest)
        # A common factor changes no vote, and keeps the exponential in range.
        weights = jnp.exp((cosines - 1) / temperature)
        chosen = labels[rows][:, None] == jnp.arange(classes)
        return jnp.sum(jnp.where(chosen, weights[:, None], 0.0), axis=0)

    return jax.lax.map(vote, queries, batch_size=min(256, queries.shape[0]))


def knn_accuracy(
    queries: Array,
    labels: Array,
    bank: Array,
    bank_labels: Array,
    *,
    classes: int,
    neighbours: int = 200,
) -> jax.Array:
    """Share of the labelled queries whose class wins the vote of ``knn_votes``.

    Args:
      queries: [n, d] floating.
      labels: int32 [n], -1 does not count.
      bank: [m, d] floating.
      bank_labels: int32 [m], -1 never votes.
      classes: c.
      neighbours: at most m vote.

    Returns:
      float32 scalar, 0 to 1; 0 where nothing is labelled.

    Raises:
      As ``knn_votes``.
    """
    votes = knn_votes(queries, bank, bank_labels, classes=classes, neighbours=neighbours)
    counts = jnp.asarray(labels) != UNLABELLED
    right = counts & (jnp.argmax(votes, axis=1) == jnp.asarray(labels))
    return (jnp.sum(right) / jnp.maximum(jnp.sum(counts), 1)).astype(jnp.float32)
