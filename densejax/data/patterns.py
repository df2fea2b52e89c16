"""A synthetic set of labelled pictures: gratings whose direction is the class."""

import jax
import jax.numpy as jnp
import numpy as np

from densejax.data.vision import LabelledImages
from densejax.typing import Key


def gratings(
    key: Key, number: int, *, classes: int = 4, size: int = 16, noise: float = 0.35
) -> LabelledImages:
    """Pictures of waves in noise; class c of C runs at an angle of pi c / C.

    Phase, wavelength (4 to 8 pixels) and colour are drawn for each picture, so that no pixel alone
    tells a class.

    Args:
      key: a jax key.
      number: of pictures, n; classes are as equal as can be, in random order.
      classes: C, at least 1.
      size: y and x, pixels.
      noise: standard deviation beside an amplitude of 0.25, of a range of 1.

    Returns:
      uint8 [n, size, size, 3].

    Raises:
      ValueError: ``number``, ``classes`` or ``size`` is below 1.
    """
    if min(number, classes, size) < 1:
        raise ValueError(f"{number} pictures of {classes} classes and {size} pixels: expected 1 up")
    order, phase, length, colour, grain = jax.random.split(key, 5)
    labels = jax.random.permutation(order, jnp.arange(number) % classes)
    angles = jnp.pi * labels / classes
    waves = 2 * jnp.pi / jax.random.uniform(length, (number,), minval=4.0, maxval=8.0)
    y, x = jnp.meshgrid(jnp.arange(size), jnp.arange(size), indexing="ij")
    along = jnp.cos(angles)[:, None, None] * x + jnp.sin(angles)[:, None, None] * y
    start = jax.random.uniform(phase, (number, 1, 1), maxval=2 * jnp.pi)
    wave = 0.25 * jnp.sin(waves[:, None, None] * along + start)
    tint = jax.random.uniform(colour, (number, 1, 1, 3), minval=0.5, maxval=1.0)
    drawn = 0.5 + tint * wave[..., None]
    drawn = drawn + noise * jax.random.normal(grain, (number, size, size, 3))
    pixels = np.asarray(jnp.round(255 * jnp.clip(drawn, 0, 1)), np.uint8)
    names = tuple(f"{180 * c / classes:.0f} degrees" for c in range(classes))
    return LabelledImages(pixels, np.asarray(labels, np.int32), names, "gratings")
