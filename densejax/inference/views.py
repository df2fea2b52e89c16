"""Test-time augmentation: a window is seen reflected and turned, and the answers are averaged."""

import itertools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from densejax.typing import Array

Views = Literal["one", "flips", "turns"]

_CODES: dict[str, tuple[tuple[bool, ...], ...]] = {
    # (reflect z, reflect y, reflect x, swap y and x)
    "one": ((False, False, False, False),),
    "flips": tuple((*code, False) for code in itertools.product((False, True), repeat=3)),
    "turns": tuple((False, *code) for code in itertools.product((False, True), repeat=3)),
}


def view_count(views: Views) -> int:
    """How many views are averaged: 1, the 8 reflections, or the 8 turns and reflections of planes.

    Raises:
      ValueError: the name is unknown.
    """
    if views not in _CODES:
        raise ValueError(f"views {views!r}; expected one of {', '.join(_CODES)}")
    return len(_CODES[views])


def average_views(
    probabilities: Callable[[jax.Array], jax.Array], image: Array, *, views: Views
) -> jax.Array:
    """Average what a function of a window says of all its views.

    Args:
      probabilities: of a window, [z, y, x] -> [z', y', x', c], its output in the window's middle.
      image: [z, y, x].
      views: ``one`` as it is, ``flips`` the eight reflections along z, y and x, ``turns`` the eight
        reflections and quarter turns within planes, for windows that are square there.

    Returns:
      [z', y', x', c] float32.

    Raises:
      ValueError: ``turns`` of a window that is not square, or the name is unknown.
    """
    count = view_count(views)
    image = jnp.asarray(image)
    if count == 1:
        return probabilities(image)
    if views == "turns" and image.shape[1] != image.shape[2]:
        raise ValueError(
            f"quarter turns of a window {image.shape}; expected as many voxels along y as along x"
        )

    def seen(total: jax.Array, code: jax.Array) -> tuple[jax.Array, None]:
        turned = _swap(image, code[3]) if views == "turns" else image
        answer = _reflect(probabilities(_reflect(turned, code)), code)
        return total + (_swap(answer, code[3]) if views == "turns" else answer), None

    start = jnp.zeros(jax.eval_shape(probabilities, image).shape, jnp.float32)
    return jax.lax.scan(seen, start, jnp.array(_CODES[views]))[0] / count


def _reflect(block: jax.Array, code: jax.Array) -> jax.Array:
    for axis in range(3):
        block = jnp.where(code[axis], jnp.flip(block, axis), block)
    return block


def _swap(block: jax.Array, chosen: jax.Array) -> jax.Array:
    return jnp.where(chosen, jnp.swapaxes(block, 1, 2), block)
