"""ODIN: probabilities at a temperature, of images that were first moved towards certainty."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from densejax.active.pool import Score

# Settings that Chen 2020 tries; the published pair for segmentation is 0.1 and 0.0014.
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

    def log_probability(images: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(network(images) / temperature, axis=-1).max(axis=-1).sum()

    def logits(images: jax.Array) -> jax.Array:
        if step:
            images = images + step * jnp.sign(jax.grad(log_probability)(images))
        return network(images) / temperature

    return logits


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
