"""A batch of a step: its loss and labels, and the order of its epoch."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from densejax.typing import Key, Params


class Drawn(NamedTuple):
    """A batch of a step.

    Attributes:
      loss: what is trained -> (mean loss, (logits [b, c], changed collections of the network)).
      labels: [b] int32, -1 for a picture that only fills the batch up.
      order: [l] int32, the order of the epoch.
      epoch: number of the epoch, 0 up.
      turn: number of the batch in it, 0 up.
    """

    loss: Callable[[Params], tuple[jax.Array, tuple[jax.Array, Params]]]
    labels: jax.Array
    order: jax.Array
    epoch: jax.Array
    turn: jax.Array


def shuffled(key: Key, size: int, count: jax.Array) -> jax.Array:
    """[size] int32 of which the first ``count`` are 0..count-1 in random order."""
    drawn = jax.random.bits(key, (size,), jnp.uint32)
    # The padding sorts behind every sample, whatever was drawn.
    return jnp.lexsort((drawn, jnp.arange(size) >= count)).astype(jnp.int32)
