"""Queries of rounds that need more than a pool: the network itself, or a training of their own."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from densejax.active.odin import odin, others
from densejax.active.pool import Pool, Score, Selection, Selector
from densejax.active.scores import ranked
from densejax.active.vaal import WIDTHS, WINDOW, vaal
from densejax.classification.task import ImageTask
from densejax.data.images import standardise
from densejax.typing import Array, Key, Params


def odin_query(
    task: ImageTask, images: Array, *, temperature: float, step: float
) -> Callable[..., Selection]:
    """1 - max P of ODIN by the network of a round, largest first.

    Args:
      task: what the networks are.
      images: [n, ...] of the pool, of which the dtype alone is looked at.
      temperature: T > 0.
      step: epsilon from 0, of pictures in [0, 1], before they are standardised (as the released
        code of ODIN moves them); of features, in their unit.

    Returns:
      ``select(key, pool, budget, *, variables)``: a pool with images, and the variables of the
      network. One compiled program serves all networks of the task.

    Raises:
      ValueError: a temperature that is not above 0, or a negative step.
    """
    scale = 1 / 255 if images.dtype == np.uint8 else 1.0
    moved = partial(odin, temperature=temperature, step=step)
    moved(lambda x: x)  # refuses what it cannot use, before any training

    def logits(variables: Params, x: jax.Array) -> jax.Array:
        seen = standardise(x, mean=task.mean, std=task.std) if len(task.mean) else x
        return task.network(variables, seen)[0]

    def doubt(variables: Params, pixels: jax.Array) -> jax.Array:
        # A ranking hangs on it: no rounding to shorter numbers in products.
        with jax.default_matmul_precision("highest"):
            return others(moved(partial(logits, variables))(pixels * scale))

    def select(key: Key, pool: Pool, budget: int, *, variables: Params) -> Selection:
        function = Partial(doubt, jax.tree.map(jnp.asarray, variables))
        return ranked(Score("odin", ("images",), function))(key, pool, budget)

    return select


def vaal_query(task: ImageTask, images: Array, *, options: Mapping[str, Any]) -> Selector:
    """``vaal`` of a round: autoencoder and discriminator learn when the query is made.

    Published, they learn beside the classifier, a step of theirs after each of its own, over the
    same epochs; nothing of them reaches the classifier or the other way round, so that training
    them afterwards on the round's labelled and unlabelled pictures makes the same query but for
    the draws. Their steps are by default the classifier's without early stop: its epochs
    times its batches of the labelled set. Networks of several seeds are trained one after another.

    Pictures below 64 pixels whose side is no multiple of 16 (MNIST's 28) are seen by an autoencoder
    with fewer levels: a departure, as the published one takes 32 or 64 pixels.

    Args:
      task: for the length of its training and for the moments of its pictures.
      images: [n, ...] of the pool, of which shape and dtype are looked at.
      options: of ``vaal``; ``width`` is the first of its ``widths``, each twice the one before;
        ``steps`` may be left out.

    Raises:
      ValueError: images that are not uint8 [n, y, x, c], a side that cannot be halved twice, or
        steps or a width below 1.
    """
    if images.ndim != 4 or images.dtype != np.uint8:
        raise ValueError(
            f"vaal learns from pictures uint8 [n, y, x, c]; found {images.dtype} {images.shape}"
        )
    options = dict(options)
    steps, width = options.pop("steps", None), options.pop("width", WIDTHS[0])
    if width < 1 or (steps is not None and steps < 1):
        raise ValueError(f"vaal: steps are {steps} and the width is {width}; expected 1 or more")
    widths = tuple(width * 2**level for level in range(_levels(*images.shape[1:3])))
    moments = {"mean": task.mean, "std": task.std} if len(task.mean) else {}

    def select(key: Key, pool: Pool, budget: int) -> Selection:
        own = task.epochs * task.steps_of(int(pool.is_labelled.sum()))
        return vaal(key, pool, budget, steps=steps or own, widths=widths, **(moments | options))

    return select


def _levels(y: int, x: int) -> int:
    """How often the autoencoder halves its window."""
    if min(y, x) >= WINDOW:
        return len(WIDTHS)
    levels = next((k for k in range(len(WIDTHS), 1, -1) if y % 2**k == 0), 0)
    if y != x or not levels:
        raise ValueError(
            f"vaal: pictures of {y} x {x} pixels; expected 64 or more, or square of a multiple of 4"
        )
    return levels
