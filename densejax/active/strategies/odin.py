"""ODIN: probabilities at a temperature, of images that were first moved towards certainty."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from densejax.active.pool import Pool, Selection
from densejax.active.scores import Score, ranked
from densejax.classification.task import ImageTask
from densejax.data.images import standardise
from densejax.typing import Array, Key, Params

# Settings that Chen 2020 tries; 0.0014 with T = 1000 only, and that is the worst of his rows.
TEMPERATURES = (0.01, 0.1, 10.0, 100.0, 1000.0)
STEPS = (0.0, 0.0014)


def odin(
    network: Callable[[jax.Array], jax.Array], *, temperature: float, step: float
) -> Callable[[jax.Array], jax.Array]:
    """The network's logits at a temperature, on images moved by ``step`` (Liang et al. 2018).

    Each pixel of an image x is moved to ``x + step sign(grad_x log P_y(x; T))``, y the class of the
    largest probability: images that the network knows gain more certainty by it than others. Of a
    segmentation the log probabilities of all pixels of an image are added up before the gradient
    (the reading of Chen 2020 here; the paper does not say).

    Args:
      network: images [s, ...] -> logits [s, c] or [s, (z,) y, x, c], each image alone (batch
        statistics frozen).
      temperature: T > 0.
      step: epsilon from 0, in the unit of the images; at 0 no gradient is taken.

    Returns:
      A pure function: images [s, ...] float32 -> logits / T at the moved images, of the network's
      shape. Its softmax is the P of ODIN; a pool takes them as its logits.

    Raises:
      ValueError: a temperature that is not above 0, or a negative step.
    """
    if not temperature > 0:
        raise ValueError(f"temperature {temperature}: expected above 0")
    if not step >= 0:
        raise ValueError(f"step {step}: expected from 0")

    def logits(images: jax.Array) -> jax.Array:
        if step:
            images = move(network, images, temperature=temperature, step=step)
        return network(images) / temperature

    return logits


def move(
    network: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    *,
    temperature: Array | float,
    step: Array | float,
) -> jax.Array:
    """Images [s, ...] moved towards certainty, as of ``odin``; all numbers may be traced."""

    def log_probability(images: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(network(images) / temperature, axis=-1).max(axis=-1).sum()

    return images + step * jnp.sign(jax.grad(log_probability)(images))


def odin_score(
    network: Callable[[jax.Array], jax.Array], *, temperature: float, step: float
) -> Score:
    """1 - max P of ``odin`` for the pool's images, averaged over pixels; largest first.

    As the sum of the other classes' probabilities, so that it doesn't round to 0 at small
    temperatures until it is below 1e-38.

    Args:
      network: as of ``odin``. Make the score once for each network: its function is compiled.
      temperature: T > 0.
      step: epsilon from 0, in the unit of the images.

    Raises:
      ValueError: as of ``odin``.
    """
    logits = odin(network, temperature=temperature, step=step)

    def function(images: jax.Array) -> jax.Array:
        values = others(logits(images))
        return values.mean(axis=tuple(range(1, values.ndim))) if values.ndim > 1 else values

    return Score(f"odin T={temperature:g} step={step:g}", ("images",), function)


def others(logits: jax.Array) -> jax.Array:
    """1 - max P from logits, exact also where max P rounds to 1: [..., c] -> [...]."""
    at = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=bool)
    ratio = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    rest = jnp.where(at, 0, ratio).sum(axis=-1)
    return rest / (1 + rest)


def log_others(logits: Array) -> jax.Array:
    """log(1 - max P): [..., c] -> [...], float32, for c of 2 or more.

    In the order of 1 - max P, yet without its rounding: at T = 1e-4 that is 0 of nearly all
    samples, which would be queried in the order of the file.
    """
    logits = logits - logits.max(axis=-1, keepdims=True)
    at = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=bool)
    return jax.nn.log_sigmoid(jax.nn.logsumexp(jnp.where(at, -jnp.inf, logits), axis=-1))


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
