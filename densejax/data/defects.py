"""What goes wrong in electron microscopy of sections, imitated on one window.

Lost sections, sections shifted against each other, sections out of focus, and noise: the defects
that gunpowder (``DefectAugment``) and PyTorch Connectomics (``MissingParts``, ``MisAlignment``,
``MotionBlur``) train against. All are pure functions of a key and a window, of static shape.
"""

import jax
import jax.numpy as jnp
import numpy as np

from densejax.typing import UNLABELLED, Array, Key


def missing_sections(key: Key, image: Array, *, probability: float, fill: float | Array) -> Array:
    """Lose each section with some probability.

    Args:
      key: a jax key.
      image: float [z, y, x].
      probability: of losing a section, in 0 ... 1; each section by itself.
      fill: scalar value of a lost section, such as the minimum of the volume.

    Returns:
      [z, y, x], the image's dtype.
    """
    image = jnp.asarray(image)
    lost = jax.random.bernoulli(key, probability, (image.shape[0], 1, 1))
    return jnp.where(lost, jnp.asarray(fill, image.dtype), image)


def blur_sections(key: Key, image: Array, *, probability: float, sigma: float) -> Array:
    """Put each section out of focus with some probability: a Gaussian filter in its plane.

    Args:
      key: a jax key.
      image: float [z, y, x].
      probability: of blurring a section, in 0 ... 1; each section by itself.
      sigma: standard deviation of the filter in voxels, above 0; cut off at 4 sigma, borders
        mirrored with the edge voxel repeated (``scipy.ndimage.gaussian_filter``, mode reflect).

    Returns:
      [z, y, x], the image's dtype.

    Raises:
      ValueError: if sigma is not above 0.
    """
    if sigma <= 0:
        raise ValueError(f"blur of sigma {sigma} voxels; expected above 0")
    image = jnp.asarray(image)
    reach = int(4 * sigma + 0.5)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    blurred = image
    for axis in (1, 2):
        width = [(0, 0)] * 3
        width[axis] = (reach, reach)
        padded = jnp.pad(blurred, width, mode="symmetric")
        size = image.shape[axis]
        slices = (
            t * jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i, t in enumerate(taps)
        )
        blurred = sum(slices, jnp.zeros_like(image))
    chosen = jax.random.bernoulli(key, probability, (image.shape[0], 1, 1))
    return jnp.where(chosen, blurred, image)


def add_noise(key: Key, image: Array, *, probability: float, deviation: float) -> Array:
    """Add Gaussian noise to the whole window with some probability.

    Args:
      key: a jax key.
      image: float [z, y, x].
      probability: of adding noise to this window, in 0 ... 1.
      deviation: standard deviation of the noise, in the image's units.

    Returns:
      [z, y, x], the image's dtype.
    """
    image = jnp.asarray(image)
    chosen_key, noise_key = jax.random.split(key)
    noise = deviation * jax.random.normal(noise_key, image.shape, image.dtype)
    return jnp.where(jax.random.bernoulli(chosen_key, probability), image + noise, image)


def _shift(block: jax.Array, shift: jax.Array, reach: int, mode: str, fill: float) -> jax.Array:
    width = ((0, 0), (reach, reach), (reach, reach))
    # A constant only for what is unlabelled; images go on mirrored.
    filling = {"constant_values": fill} if mode == "constant" else {}
    padded = jnp.pad(block, width, mode=mode, **filling)  # type: ignore[arg-type]
    start = (jnp.int32(0), reach + shift[0], reach + shift[1])
    return jax.lax.dynamic_slice(padded, start, block.shape)


def misalign(
    key: Key, image: Array, labels: Array, weights: Array, *, probability: float, reach: int
) -> tuple[Array, Array, Array]:
    """Shift all sections from a random one on against those before it, with some probability.

    What comes in from outside the window is mirrored in the image, and not labelled (weight 0) in
    the labels. The labels are the middle of the image and are shifted with it. A window of one
    section stays as it is.

    Args:
      key: a jax key.
      image: float [z, y, x], the input window.
      labels: int32 [z, y, x], the output window, not larger than the image.
      weights: float32 [z, y, x], the output window.
      probability: of a shift in this window, in 0 ... 1.
      reach: the shift along y and along x is uniform in -reach ... reach voxels; below the window.

    Returns:
      Image, labels and weights, shapes and dtypes as given.

    Raises:
      ValueError: if the reach is not positive and below the window.
    """
    image, labels, weights = jnp.asarray(image), jnp.asarray(labels), jnp.asarray(weights)
    depth = image.shape[0]
    if not 0 < reach < min(image.shape[1:]):
        raise ValueError(
            f"misalignment of up to {reach} voxels in a window of shape {image.shape}; expected "
            "more than 0 and less than the window"
        )
    if depth == 1:
        return image, labels, weights
    chosen_key, section_key, shift_key = jax.random.split(key, 3)
    chosen = jax.random.bernoulli(chosen_key, probability)
    first = jax.random.randint(section_key, (), 1, depth)
    shift = jax.random.randint(shift_key, (2,), -reach, reach + 1)

    def shifted(block: jax.Array, before: int, mode: str, fill: float) -> jax.Array:
        section = before + jnp.arange(block.shape[0])[:, None, None]
        moved = _shift(block, shift, reach, mode, fill)
        return jnp.where(chosen & (section >= first), moved, block)

    before = (depth - labels.shape[0]) // 2
    return (
        shifted(image, 0, "reflect", 0.0),
        shifted(labels, before, "constant", UNLABELLED),
        shifted(weights, before, "constant", 0.0),
    )
