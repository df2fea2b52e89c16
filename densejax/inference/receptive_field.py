"""What a network cannot see at the faces of its window, and the overlap of windows that follows.

Not-a-number in an input voxel spreads to every output voxel whose value depends on it, whatever the
parameters: products, sums, maxima and rectifiers all pass it on. So a forward pass of a window that
is framed by it shows which voxels miss what lies outside, without knowing the architecture.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from densejax.inference.tiles import Sizes, Windowing
from densejax.typing import Params

Overlap = Literal["auto", "receptive", "third"]
Blind = tuple[int | None, int | None, int | None]


def blind_margin(
    network: Callable[..., Any],
    params: Params,
    windowing: Windowing,
    *,
    factor: Sizes = (1, 1, 1),
) -> Blind:
    """Voxels at the faces of an output window that depend on voxels outside the input window.

    None at all for a network without padding, the receptive radius for one that keeps its window's
    size. One forward pass an axis, of a window that is wider by twice the pooling factor.

    Args:
      network: ``(params, [1, z, y, x, 1]) -> (logits [1, z', y', x', c], out)``.
      params: of one member.
      windowing: windows of the input and of the output.
      factor: (z, y, x) by which the network pools.

    Returns:
      (z, y, x) voxels, the larger of both faces; None along an axis where every voxel of the window
      depends on something outside.
    """
    window, output = windowing.window, windowing.output
    wide = tuple(size + 2 * pool for size, pool in zip(window, factor, strict=True))

    @jax.jit
    def lost(params: Params, image: jax.Array) -> jax.Array:
        return jnp.isnan(network(params, image)[0]).any(-1)

    found: list[int | None] = []
    for axis in range(3):
        # Wider by whole pooling steps, so that the inner window is pooled as it is alone.
        place = np.arange(wide[axis])
        outside = (place < factor[axis]) | (place >= factor[axis] + window[axis])
        shape = [1] * 5
        shape[1 + axis] = -1
        line = np.where(outside, np.float32(np.nan), np.float32(0)).reshape(shape)
        hit = np.asarray(lost(params, np.broadcast_to(line, (1, *wide, 1))))[0]
        lines = np.asarray(hit.any(tuple(a for a in range(3) if a != axis)))
        blind = lines[factor[axis] :][: output[axis]]
        seeing = np.flatnonzero(~blind)
        found.append(int(max(seeing[0], output[axis] - 1 - seeing[-1])) if len(seeing) else None)
    return found[0], found[1], found[2]


def choose_overlap(wish: Overlap | Sizes, *, output: Sizes, blind: Blind) -> Sizes:
    """The overlap of output windows, (z, y, x) voxels.

    Where neighbours share twice the blind margin, no voxel is taken from a window that does not
    hold all that the voxel depends on, and the seams are exact.

    Args:
      wish: ``receptive`` is twice the blind margin, at most what leaves a stride of half the
        window; ``third`` a third of the window, as released; ``auto`` the smaller of the two; or
        the overlap itself.
      output: (z, y, x) of the output window.
      blind: as ``blind_margin`` found it.
    """
    if not isinstance(wish, str):
        return wish
    third = [size // 3 for size in output]
    half = [size // 2 for size in output]
    needed = [
        most if margin is None else min(2 * margin, most)
        for margin, most in zip(blind, half, strict=True)
    ]
    if wish == "receptive":
        chosen = needed
    elif wish == "third":
        chosen = third
    elif wish == "auto":
        chosen = [min(pair) for pair in zip(needed, third, strict=True)]
    else:
        raise ValueError(f"overlap {wish!r}; expected auto, receptive, third or z,y,x")
    return chosen[0], chosen[1], chosen[2]
