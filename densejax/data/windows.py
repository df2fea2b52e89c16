"""Windows of a volume: where they start in training and in evaluation, and how they are cut.

A network reads an *input window* and predicts an *output window*, which is the same or smaller and
lies in the middle of it. Corners always mean the first voxel of the output window, so that a label
is drawn equally often whatever the network's margin; the input window starts
``(input - output) // 2`` voxels earlier and may hang over the volume's border, where the volume is
mirrored.

Training windows come from a jittered grid (Emam 2021, ch. 4): each axis is divided into bins of
``spacing`` voxels, an epoch visits every bin once, in random order, and the corner is uniform in
its bin. Everything with a key runs on the device, with a traced step, and keeps no state: the
window of step 1000 is a function of the key and of 1000.
"""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from densejax.typing import Array, Key

Sizes = tuple[int, int, int]


def _check_fit(volume_shape: Sequence[int], window: Sequence[int]) -> None:
    if len(volume_shape) != len(window):
        raise ValueError(
            f"volume of shape {tuple(volume_shape)} and window {tuple(window)} differ in their "
            "number of axes; expected one entry per axis (z, y, x)"
        )
    if any(w < 1 or w > v for v, w in zip(volume_shape, window, strict=True)):
        raise ValueError(
            f"window {tuple(window)} does not fit into the volume of shape {tuple(volume_shape)}; "
            "expected 1 <= window <= volume along every axis"
        )


def _usable(volume_shape: Sequence[int], window: Sequence[int]) -> tuple[int, ...]:
    _check_fit(volume_shape, window)
    return tuple(v - w + 1 for v, w in zip(volume_shape, window, strict=True))


def grid_bins(
    volume_shape: Sequence[int], window: Sequence[int], spacing: Sequence[int]
) -> tuple[int, ...]:
    """Numbers of bins per axis of the jittered grid; their product is the windows of an epoch.

    An axis of V voxels has V - window + 1 usable corners and ceil(usable / spacing) bins.

    Args:
      volume_shape: (z, y, x) in voxels.
      window: output window (z, y, x) in voxels.
      spacing: edge lengths (z, y, x) of a bin in voxels, at least 1.

    Returns:
      One positive int per axis.

    Raises:
      ValueError: if the window does not fit into the volume, or a spacing is below 1.

    Source: Emam 2021, ch. 4, gives 33120 windows in 40 epochs of a (50, 800, 800) volume with
    output window (5, 296, 296) and spacing (2, 100, 100): 23 * 6 * 6 = 828 per epoch.
    """
    usable = _usable(volume_shape, window)
    if len(spacing) != len(usable) or any(s < 1 for s in spacing):
        raise ValueError(
            f"spacing {tuple(spacing)} given for a volume of shape {tuple(volume_shape)}; "
            "expected one positive number of voxels per axis"
        )
    return tuple(math.ceil(u / s) for u, s in zip(usable, spacing, strict=True))


def epoch_of_step(
    step: int | Array,
    *,
    volume_shape: Sequence[int],
    output_window: Sequence[int],
    spacing: Sequence[int],
) -> Array:
    """Zero-based epoch to which a training step belongs.

    Args:
      step: int or int32 [], the zero-based number of the window; may be traced.
      volume_shape: (z, y, x) in voxels.
      output_window: (z, y, x) in voxels.
      spacing: (z, y, x) in voxels.

    Returns:
      int32 [].

    Raises:
      ValueError: as `grid_bins`.
    """
    total = math.prod(grid_bins(volume_shape, output_window, spacing))
    return jnp.asarray(step, jnp.int32) // total


def window_corner(
    key: Key,
    *,
    step: int | Array,
    volume_shape: Sequence[int],
    output_window: Sequence[int],
    spacing: Sequence[int],
) -> jax.Array:
    """First voxel of the output window of one training step, on the jittered grid.

    Every epoch visits every bin of the grid exactly once, in an order drawn from
    ``fold_in(key, epoch)``; the corner is uniform among the corners of its bin. The last bin of an
    axis is shorter where the spacing does not divide the usable corners, so its corners are drawn
    more often, as published. The order is drawn anew at each call, at the cost of sorting as many
    numbers as an epoch has windows.

    Args:
      key: a jax key.
      step: int or int32 [], the zero-based number of the window since training began; may be
        traced.
      volume_shape: (z, y, x) in voxels.
      output_window: (z, y, x) in voxels.
      spacing: edge lengths (z, y, x) of a bin in voxels.

    Returns:
      int32 [3], in 0 ... volume - window inclusive.

    Raises:
      ValueError: as `grid_bins`.

    Source: Emam 2021, ch. 4, and its released code (an epoch's windows shuffled, batch 1).
    """
    bins = grid_bins(volume_shape, output_window, spacing)
    usable = jnp.asarray(_usable(volume_shape, output_window), jnp.int32)
    total = math.prod(bins)
    step = jnp.asarray(step, jnp.int32)
    order_key, jitter_key = jax.random.split(jax.random.fold_in(key, step // total))
    flat = jax.random.permutation(order_key, total)[step % total]
    index = jnp.stack(jnp.unravel_index(flat, bins)).astype(jnp.int32)
    low = index * jnp.asarray(spacing, jnp.int32)
    high = jnp.minimum(low + jnp.asarray(spacing, jnp.int32), usable)
    jitter_key = jax.random.fold_in(jitter_key, flat)
    return jax.random.randint(jitter_key, (len(bins),), low, high, jnp.int32)


def reflect_index(index: Array, size: int, *, as_released: bool = True) -> jax.Array:
    """Index inside an axis for an index that may lie outside it, by one mirroring.

    Args:
      index: int, any shape, in -size + 1 ... 2 * size - 2.
      size: number of voxels of the axis.
      as_released: True follows the released code, whose low side leaves the edge voxel out
        (-1 -> 1) and whose high side repeats it (size -> size - 1); False leaves it out on both
        sides (size -> size - 2).

    Returns:
      int32, the shape of `index`, in 0 ... size - 1 where `index` is in its range.
    """
    index = jnp.asarray(index, jnp.int32)
    mirror = 2 * size - 1 if as_released else 2 * size - 2
    return jnp.where(index < 0, -index, jnp.where(index >= size, mirror - index, index))


def margins(size: Sequence[int], output_window: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Voxels of the input window before and after the output window, per axis.

    Args:
      size: input window (z, y, x) in voxels.
      output_window: (z, y, x) in voxels.

    Returns:
      (before, after) per axis, with before = (input - output) // 2.

    Raises:
      ValueError: if the input window is smaller than the output window.
    """
    if len(size) != len(output_window) or any(
        i < o for i, o in zip(size, output_window, strict=True)
    ):
        raise ValueError(
            f"input window {tuple(size)} is smaller than the output window "
            f"{tuple(output_window)}; expected input >= output along every axis"
        )
    gaps = [i - o for i, o in zip(size, output_window, strict=True)]
    return tuple((gap // 2, gap - gap // 2) for gap in gaps)


def check_windows(
    volume_shape: Sequence[int], size: Sequence[int], output_window: Sequence[int]
) -> None:
    """Check, on the host, that windows of these shapes can be cut from a volume.

    Args:
      volume_shape: (z, y, x) in voxels.
      size: input window (z, y, x) in voxels.
      output_window: (z, y, x) in voxels.

    Raises:
      ValueError: if the output window is larger than the volume, the input window smaller than
        the output window, or the margin so wide that one mirroring does not fill it.
    """
    _check_fit(volume_shape, output_window)
    edges = margins(size, output_window)
    if any(after >= v for v, (_, after) in zip(volume_shape, edges, strict=True)):
        raise ValueError(
            f"input window {tuple(size)} reaches {edges} voxels (before, after) beyond the output "
            f"window {tuple(output_window)}; expected less than the volume {tuple(volume_shape)}, "
            "because the border is mirrored once"
        )


def _mirror_pad(block: jax.Array, axis: int, before: int, after: int, repeat: bool) -> jax.Array:
    size = block.shape[axis]

    def part(start: int, count: int) -> jax.Array:
        return jnp.flip(jax.lax.slice_in_dim(block, start, start + count, axis=axis), axis)

    low = [part(1, before)] if before else []
    high = [part(size - after - (0 if repeat else 1), after)] if after else []
    return jnp.concatenate([*low, block, *high], axis)


def cut_window(
    volume: Array,
    corner: Array,
    size: Sequence[int],
    *,
    output_window: Sequence[int] | None = None,
    as_released: bool = True,
) -> jax.Array:
    """Cut one window out of a volume, mirrored where it hangs over the border.

    Made of slices and no gathers: a block inside the volume is cut, its margin mirrored, and the
    window cut from that, so the cost is that of the window and not of the volume.

    Args:
      volume: [z, y, x] or [z, y, x, c], any dtype.
      corner: int32 [3], first voxel of the output window, inside the volume together with it;
        may be traced.
      size: (z, y, x) of the window to cut in voxels: the network's input window, or for labels
        the output window itself.
      output_window: (z, y, x) in voxels; None means `size`. The cut starts at
        ``corner - (size - output_window) // 2``.
      as_released: which mirroring, see `reflect_index`.

    Returns:
      [*size] or [*size, c], the volume's dtype.

    Raises:
      ValueError: if the volume has not 3 or 4 axes, or as `check_windows`.
    """
    volume = jnp.asarray(volume)
    if volume.ndim not in (3, 4):
        raise ValueError(f"volume has shape {volume.shape}; expected [z, y, x] or [z, y, x, c]")
    output = tuple(size) if output_window is None else tuple(output_window)
    shape = volume.shape[:3]
    check_windows(shape, size, output)
    edges = margins(size, output)
    block_shape = tuple(min(s, v) for s, v in zip(size, shape, strict=True))
    start = jnp.asarray(corner, jnp.int32) - jnp.asarray([before for before, _ in edges], jnp.int32)
    room = jnp.asarray([v - b for v, b in zip(shape, block_shape, strict=True)], jnp.int32)
    inside = jnp.clip(start, 0, room)
    rest = volume.shape[3:]
    zeros = (jnp.int32(0),) * len(rest)
    block = jax.lax.dynamic_slice(volume, (*inside, *zeros), (*block_shape, *rest))
    if tuple(size) == output:
        return block
    for axis, (before, after) in enumerate(edges):
        block = _mirror_pad(block, axis, before, after, as_released)
    offset = start - inside + jnp.asarray([before for before, _ in edges], jnp.int32)
    return jax.lax.dynamic_slice(block, (*offset, *zeros), (*size, *rest))


def input_tile(volume: np.ndarray, corner: Array, output: Sizes, window: Sizes) -> np.ndarray:
    """The input of a window whose output starts at ``corner``; mirrored beyond the volume.

    Args:
      volume: [z, y, x].
      corner: int [3], first voxel of the output.
      output: (z, y, x) of the output window, centred in the input window.
      window: (z, y, x) of the input window.

    Returns:
      [z, y, x] float32.
    """
    indexes = []
    for start, out, size, length in zip(corner, output, window, volume.shape, strict=True):
        index = np.arange(size) + int(start) - (size - out) // 2
        indexes.append(np.asarray(reflect_index(index, length)))
    return np.asarray(volume[np.ix_(*indexes)], np.float32)


def evaluation_corners(
    volume_shape: Sequence[int], window: Sequence[int], overlap: Sequence[int]
) -> np.ndarray:
    """Corners of windows that together cover a volume, the last of each axis flush to its end.

    Args:
      volume_shape: (z, y, x) in voxels.
      window: output window (z, y, x) in voxels.
      overlap: (z, y, x) in voxels that neighbouring windows share at least, below the window. As
        released it is a third of the window for same-padded networks and 0 for valid ones.

    Returns:
      np.int32 [p, 3], z slowest; no corner occurs twice.

    Raises:
      ValueError: if the window does not fit, or an overlap is negative or not below the window.
    """
    _check_fit(volume_shape, window)
    if len(overlap) != len(window) or any(
        o < 0 or o >= w for o, w in zip(overlap, window, strict=True)
    ):
        raise ValueError(
            f"overlap {tuple(overlap)} of windows {tuple(window)}; expected one entry per axis "
            "with 0 <= overlap < window"
        )
    axes = [
        [*range(0, v - w, w - o), v - w]
        for v, w, o in zip(volume_shape, window, overlap, strict=True)
    ]
    return np.array(list(itertools.product(*axes)), np.int32)
