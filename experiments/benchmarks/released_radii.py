"""Losses at fixed distances along random rays, and radii read off them as the released code does.

The released code of Huang, Emam et al. 2020 evaluates a grid of distances and takes, as the radius,
the point where the loss is nearest to the threshold: not the first crossing, and with the grid's
spacing as its error, which in the logarithm of a volume is multiplied by the dimension. Kept for
comparison; ``densejax.landscape.radii`` is what to use. (The released code also leaves out rays
whose loss at the centre is not the common one; here the centre is computed once.)
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from densejax.landscape.basins import rays
from densejax.landscape.basins.spheres import drawn
from densejax.landscape.objective import LossFunction
from densejax.typing import Array, Key, Params, Tree

# As released: 100 distances to 0.5 for the swiss roll, 12 to 0.75 for SVHN; one-sided.
SWISS_ROLL_GRID = 0.5 * np.linspace(0, 1, 100) ** 5
SVHN_GRID = 0.75 * np.linspace(0, 1, 12) ** 2

Rule = Literal["nearest", "first"]


def ray_losses(
    key: Key, loss_fn: LossFunction, params: Params, grid: Array, *, directions: int, **options: Any
) -> np.ndarray:
    """Losses [k, p] float32 at the distances ``grid`` [p] along k random rays.

    The rays are those of ``landscape.radii`` by the same key; ``options`` are of ``rays.run``.
    """
    draw, operand = drawn(key, geometry="spheres", normalise="filter", biases="zero", axes=None)
    return rays.run(
        _on_grid,
        draw,
        loss_fn,
        jax.tree.map(lambda leaf: np.asarray(leaf)[None], params),
        own=None,
        operand=operand | {"grid": np.asarray(grid, np.float32)},
        directions=directions,
        **options,
    )[0]


def grid_radii(
    losses: Array, grid: Array, *, cutoff: float = 0.1, rule: Rule = "nearest"
) -> tuple[np.ndarray, np.ndarray]:
    """Radii on a grid.

    Args:
      losses: [k, p] along rays.
      grid: [p], distances, rising.
      cutoff: of the loss. The released code has 1.0, the thesis says 0.1.
      rule: "nearest", the distance whose loss is nearest to the cutoff, the smaller of two as
        near, as released; or "first", the first whose loss is not below it.

    Returns:
      radius: [k] float64. "nearest" may be 0; "first" is the last distance where all are below.
      censored: [k] bool, whether all losses are below the cutoff.

    Raises:
      ValueError: the shapes or the rule are not as above, or the grid does not rise.
    """
    values, distances = np.asarray(losses, np.float64), np.asarray(grid, np.float64)
    if distances.ndim != 1 or values.ndim != 2 or values.shape[1] != distances.size:
        raise ValueError(
            f"losses have shape {list(values.shape)} and the grid {list(distances.shape)}: "
            "expected [k, p] and [p]"
        )
    if np.any(np.diff(distances) <= 0):
        raise ValueError("the grid does not rise")
    above = ~(np.isfinite(values) & (values < cutoff))
    censored = np.logical_not(above.any(axis=1))
    if rule == "nearest":
        gap = np.where(np.isfinite(values), np.abs(values - cutoff), np.inf)
        return distances[gap.argmin(axis=1)], censored
    if rule != "first":
        raise ValueError(f"rule {rule!r}: expected nearest or first")
    return distances[np.where(censored, -1, above.argmax(axis=1))], censored


def _on_grid(losses: Any, own: Tree, live: jax.Array, operand: Tree) -> jax.Array:
    """The search of ``rays.run`` that looks everywhere: [c, p]."""
    del own
    zeros = jnp.zeros(live.shape, jnp.float32)
    return lax.map(lambda distance: losses(zeros + distance), operand["grid"]).T
