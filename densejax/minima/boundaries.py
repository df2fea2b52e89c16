"""What networks say of every place of a plane: class probabilities on a grid of two inputs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from densejax.minima.poisoning import class_logits
from densejax.typing import Array, Params


def plane_grid(
    *, span: float = 18.0, points: int = 500, centre: tuple[float, float] = (0.0, 0.0)
) -> tuple[np.ndarray, np.ndarray]:
    """Evenly spaced places of both axes, ends included; the published grid is 500 x 500 on +-18.

    Args:
      span: distance of the ends from the centre, in units of the inputs, above 0.
      points: along each axis, p = q, at least 2.
      centre: x and y.

    Returns:
      x [p] and y [q], float64.

    Raises:
      ValueError: ``span`` or ``points`` is out of its range.
    """
    if span <= 0 or points < 2:
        raise ValueError(f"grid of {points} points on +-{span}: expected at least 2 on more than 0")
    x, y = (np.linspace(c - span, c + span, points) for c in centre)
    return x, y


def class_probabilities(
    logits_of: Callable[[Params, jax.Array], jax.Array],
    params: Params,
    grid_x: Array,
    grid_y: Array,
    *,
    stacked: bool = False,
    chunk: int = 5000,
) -> np.ndarray:
    """Class probabilities at every place of a grid.

    Args:
      logits_of: ``(params, inputs [b, 2]) -> logits [b, c]``; one logit is the log-odds of class 1.
      params: of one network, or of many with ``stacked``: every leaf [k, ...].
      grid_x: [p] first inputs.
      grid_y: [q] second inputs.
      stacked: whether ``params`` are of many; they are evaluated one after another.
      chunk: places at once.

    Returns:
      [p, q, c], or [k, p, q, c], float32; [..., i, j, :] is at (grid_x[i], grid_y[j]).

    Raises:
      ValueError: a grid has not one axis, or ``chunk`` is below 1.
    """
    x, y = np.asarray(grid_x, np.float32), np.asarray(grid_y, np.float32)
    if x.ndim != 1 or y.ndim != 1 or not x.size or not y.size:
        raise ValueError(f"grid_x {x.shape} and grid_y {y.shape}: expected [p] and [q]")
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; expected at least 1")
    places = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1).reshape(-1, 2)
    number, size = len(places), min(chunk, len(places))
    # The last chunk repeats places in front of it, so that all have one shape.
    starts = np.minimum(np.arange(0, number, size), number - size)

    @jax.jit
    def some(one: Params, part: jax.Array) -> jax.Array:
        return jax.nn.softmax(class_logits(logits_of(one, part)), axis=-1)

    def whole(one: Params) -> np.ndarray:
        found: np.ndarray | None = None
        for start in starts:
            part = np.asarray(some(one, jnp.asarray(places[start : start + size])))
            found = np.empty((number, part.shape[-1]), np.float32) if found is None else found
            found[start : start + size] = part
        assert found is not None
        return found.reshape(len(x), len(y), -1)

    if not stacked:
        return whole(params)
    count = jax.tree.leaves(params)[0].shape[0]
    return np.stack([whole(jax.tree.map(lambda leaf, i=i: leaf[i], params)) for i in range(count)])
