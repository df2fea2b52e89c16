"""Training windows around corrected voxels: small labelled blocks of other volumes, on the device.

An annotator corrects blocks of a few sections inside a volume that may be far larger than memory.
Each block becomes a *patch*: its labels and the image around them that any window may need. Patches
are stacked to one shape, so that a window is a slice and one compiled program serves all blocks. A
window is drawn around an *anchor*, a corrected voxel drawn uniformly from all of them, so none is
drawn in vain; with a loss that is a mean over labelled voxels, corrected voxels then have the same
expected influence, however sparse the corrections are (a window with few of them is drawn as much
more rarely as each counts more in it). Voxels near a block's edge have less, because fewer windows
hold them, as near the border of a training volume.

`draw_mixed_window` shares training windows between a training volume and the patches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densejax.data.augment import NO_AUGMENTATION, Augmentation, augment_window, draw_window
from densejax.data.sampling import Sampling
from densejax.data.windows import check_windows, margins, reflect_index
from densejax.typing import UNLABELLED, Array, Batch, Key

MOST_ANCHORS = 65536
# The stream of random numbers of extra windows: no number that `draw_window` splits or folds in.
_STREAM = 0x7FFFFFFF


@dataclass(frozen=True)
class Patch:
    """One corrected block with the image that its windows may reach.

    Attributes:
      image: [z, y, x] float32, standardised; mirrored beyond the volume.
      labels: [z', y', x'] int32, what output windows may reach; -1 where not corrected.
      reach: highest corner (z, y, x) of an output window in ``labels``; the lowest is 0.
    """

    image: np.ndarray
    labels: np.ndarray
    reach: tuple[int, int, int]


def patch_corners(
    offset: Sequence[int],
    shape: Sequence[int],
    *,
    volume_shape: Sequence[int],
    output_window: Sequence[int],
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Lowest and highest corner of the output windows that belong to a block.

    Along an axis on which the block is as long as the window or longer, windows lie inside it;
    otherwise the block lies inside every window. No window leaves the volume.

    Args:
      offset: (z, y, x) of the block's first voxel in the volume.
      shape: (z, y, x) of the block.
      volume_shape: (z, y, x).
      output_window: (z, y, x).

    Returns:
      Two corners (z, y, x) in voxels of the volume, both inclusive.

    Raises:
      ValueError: the block does not lie in the volume, or the window is larger than the volume.
    """
    low, high = [], []
    for at, size, length, window in zip(offset, shape, volume_shape, output_window, strict=True):
        if size < 1 or at < 0 or at + size > length:
            raise ValueError(
                f"a block at {tuple(offset)} of shape {tuple(shape)} does not lie in a volume of "
                f"shape {tuple(volume_shape)}"
            )
        if window > length:
            raise ValueError(
                f"output window {tuple(output_window)} is larger than the volume of shape "
                f"{tuple(volume_shape)} around a corrected block"
            )
        spare = at + size - window
        low.append(max(0, min(at, spare)))
        high.append(min(length - window, max(at, spare)))
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])


def cut_patch(
    volume: Any,
    labels: np.ndarray,
    offset: Sequence[int],
    *,
    input_window: Sequence[int],
    output_window: Sequence[int],
    mean: float = 0.0,
    deviation: float = 1.0,
    name: str = "the volume",
) -> Patch:
    """The patch of one block; only what it needs is read from the volume.

    Args:
      volume: [z, y, x] grey levels, an array or what ``volumes.open_volume`` gives.
      labels: int [z', y', x'], the block: 0..c-1, -1 where not corrected.
      offset: (z, y, x) of the block's first voxel in the volume.
      input_window: (z, y, x) of the network's input.
      output_window: (z, y, x) of its output.
      mean: of the grey levels, as the network's predictions of this volume took it.
      deviation: of the grey levels.
      name: what messages call the volume.

    Returns:
      The patch.

    Raises:
      ValueError: as `patch_corners`, the volume is too small for the window's margin, or holds NaN
        or infinity there.
    """
    check_windows(volume.shape, input_window, output_window)
    low, high = patch_corners(
        offset, labels.shape, volume_shape=volume.shape, output_window=output_window
    )
    extent = tuple(h - c + o for c, h, o in zip(low, high, output_window, strict=True))
    wide = np.full(extent, UNLABELLED, np.int32)
    place = tuple(
        slice(at - first, at - first + size)
        for at, first, size in zip(offset, low, labels.shape, strict=True)
    )
    wide[place] = labels
    edges = margins(input_window, output_window)
    starts = [c - before for c, (before, _) in zip(low, edges, strict=True)]
    sizes = [e + before + after for e, (before, after) in zip(extent, edges, strict=True)]
    grey = read_mirrored(volume, starts, sizes)
    if not np.isfinite(grey).all():
        raise ValueError(f"{name}: NaN or infinity near the block at {tuple(offset)}")
    image = (grey.astype(np.float32) - np.float32(mean)) / np.float32(deviation)
    reach = tuple(h - c for c, h in zip(low, high, strict=True))
    return Patch(image, wide, (reach[0], reach[1], reach[2]))


def read_mirrored(volume: Any, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """A box of a volume, [*size], that may hang over its border, where the volume is mirrored."""
    box, inside = [], []
    for first, count, length in zip(start, size, volume.shape, strict=True):
        index = np.asarray(reflect_index(np.arange(first, first + count), length))
        box.append(slice(int(index.min()), int(index.max()) + 1))
        inside.append(index - index.min())
    return np.asarray(volume[tuple(box)])[np.ix_(*inside)]


def extra_arrays(
    patches: Sequence[Patch], *, class_weights: Array, anchors: int = MOST_ANCHORS
) -> dict[str, np.ndarray]:
    """The arrays `draw_extra_window` reads, patches padded to one shape.

    Args:
      patches: at least one, with at least one corrected voxel in all.
      class_weights: [c] float, the error weight of a corrected voxel of each class.
      anchors: at most so many corrected voxels are anchors; of more, an even random sample that is
        the same for the same corrections.

    Returns:
      ``extra_images`` [n, z, y, x] float32, ``extra_labels`` [n, z', y', x'] int8 (int32 for 128
      classes and more), ``extra_reach`` [n, 3] int32, ``extra_anchors`` [a, 4] int32 (patch, z, y,
      x), ``extra_class_weights`` [c] float32, and ``extra_minimum``, ``extra_maximum`` of the
      images, float32 [].

    Raises:
      ValueError: there is no patch, no corrected voxel, or a label out of range.
    """
    if not patches:
        raise ValueError("no corrected block; expected at least one")
    weights = np.asarray(class_weights, np.float32)
    places = _anchors(patches, anchors)
    highest = max(int(patch.labels.max()) for patch in patches)
    if highest >= len(weights):
        raise ValueError(f"a corrected label is {highest}; expected 0..{len(weights) - 1}")
    kept = np.int8 if len(weights) < 128 else np.int32
    return {
        "extra_images": _stack([patch.image for patch in patches], 0, np.float32),
        "extra_labels": _stack([patch.labels for patch in patches], UNLABELLED, kept),
        "extra_reach": np.array([patch.reach for patch in patches], np.int32),
        "extra_anchors": places,
        "extra_class_weights": weights,
        "extra_minimum": np.array(min(patch.image.min() for patch in patches), np.float32),
        "extra_maximum": np.array(max(patch.image.max() for patch in patches), np.float32),
    }


def _anchors(patches: Sequence[Patch], most: int) -> np.ndarray:
    """Corrected voxels as (patch, z, y, x), int32 [a, 4]."""
    counts = [int(np.sum(patch.labels >= 0)) for patch in patches]
    total = sum(counts)
    if not total:
        raise ValueError(f"no corrected voxel in {len(patches)} blocks; expected at least one")
    chosen = np.arange(total)
    if total > most:
        # Not at equal distances, which may always meet the same column of a block.
        chosen = np.sort(np.random.default_rng(0).choice(total, most, replace=False, shuffle=False))
    places, start = [], 0
    for number, (patch, count) in enumerate(zip(patches, counts, strict=True)):
        mine = chosen[(chosen >= start) & (chosen < start + count)] - start
        flat = np.flatnonzero(patch.labels >= 0)[mine]
        voxels = np.stack(np.unravel_index(flat, patch.labels.shape), axis=1)
        places.append(np.insert(voxels, 0, number, axis=1))
        start += count
    return np.concatenate(places).astype(np.int32)


def _stack(arrays: Sequence[np.ndarray], fill: float, dtype: Any) -> np.ndarray:
    """Arrays of several shapes as one, [n, ...], each at the start of its row."""
    largest = np.max([array.shape for array in arrays], axis=0)
    stacked = np.full((len(arrays), *largest), fill, dtype)
    for row, array in zip(stacked, arrays, strict=True):
        row[tuple(slice(size) for size in array.shape)] = array
    return stacked


def draw_extra_window(
    key: Key,
    step: int | Array,
    data: Batch,
    *,
    input_window: Sequence[int],
    output_window: Sequence[int],
    augmentation: Augmentation = NO_AUGMENTATION,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The extra window of a number: around a corrected voxel, augmented as any training window.

    A corrected voxel is drawn uniformly, with replacement, then the window uniformly among those
    of its patch in which the voxel lies. Windows of patches are not deformed elastically, whatever
    ``augmentation.elastic`` says: that map belongs to a whole training volume.

    Args:
      key: a jax key, the instance's own, the same for all steps.
      step: int or int32 [], the zero-based number of the extra window; may be traced.
      data: as `extra_arrays` gives.
      input_window: (z, y, x), that of the patches.
      output_window: (z, y, x), that of the patches.
      augmentation: what may happen to the window.

    Returns:
      Image float32 [*input_window], labels int32 [*output_window] and weights float32
      [*output_window], 0 where not corrected.

    Raises:
      ValueError: as ``augment.augment_window``.
    """
    key = jax.random.fold_in(jax.random.fold_in(key, _STREAM), step)
    anchor_key, corner_key, window_key = jax.random.split(key, 3)
    anchors = jnp.asarray(data["extra_anchors"])
    anchor = anchors[jax.random.randint(anchor_key, (), 0, len(anchors))]
    patch, voxel = anchor[0], anchor[1:]
    output = jnp.asarray(output_window, jnp.int32)
    low = jnp.maximum(0, voxel - output + 1)
    high = jnp.minimum(jnp.asarray(data["extra_reach"])[patch], voxel)
    corner = jax.random.randint(corner_key, (3,), low, high + 1, jnp.int32)
    cut = {}
    for name, size in (("extra_images", input_window), ("extra_labels", output_window)):
        start = (patch, corner[0], corner[1], corner[2])
        cut[name] = jax.lax.dynamic_slice(jnp.asarray(data[name]), start, (1, *size))[0]
    labels = cut["extra_labels"].astype(jnp.int32)
    table = jnp.asarray(data["extra_class_weights"])
    weights = jnp.where(labels >= 0, table[jnp.maximum(labels, 0)], 0.0)
    drawn = augment_window(
        window_key,
        cut["extra_images"],
        labels,
        weights,
        augmentation=augmentation,
        minimum=data["extra_minimum"],
        maximum=data["extra_maximum"],
    )
    return jnp.asarray(drawn[0]), jnp.asarray(drawn[1]), jnp.asarray(drawn[2])


def extra_windows_before(step: int | Array, *, percent: int) -> jax.Array:
    """How many of the windows 0 .. step - 1 are extra: the whole part of their share.

    Args:
      step: int or int32 [], 0 or more; may be traced.
      percent: share of extra windows, 0 .. 100.

    Returns:
      int32 [].
    """
    step = jnp.asarray(step, jnp.int32)
    # Hundreds and the rest apart, because step * percent leaves int32 after 21 million windows.
    return step // 100 * percent + step % 100 * percent // 100


def draw_mixed_window(
    key: Key,
    step: int | Array,
    data: Mapping[str, Array],
    *,
    percent: int,
    input_window: Sequence[int],
    output_window: Sequence[int],
    spacing: Sequence[int],
    augmentation: Augmentation = NO_AUGMENTATION,
    sampling: Sampling | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The window of a step, from the training volume or around a corrected voxel, in turn.

    Extra windows come at even distances, ``percent`` of a hundred. The training volume's windows
    are those that it has without corrections, in the same order, so that its epochs stay whole.

    Args:
      key: a jax key, the instance's own, the same for all steps.
      step: int or int32 [], the zero-based number of the window since training began.
      data: what ``augment.draw_window`` and `draw_extra_window` read.
      percent: share of extra windows, 1 .. 100.
      input_window: (z, y, x).
      output_window: (z, y, x).
      spacing: (z, y, x), bin of the training volume's window grid.
      augmentation: what may happen to the window; windows around corrected voxels are not
        resampled.
      sampling: of the training volume's windows, in place of the grid.

    Returns:
      Image, labels and weights, as ``augment.draw_window``.

    Raises:
      ValueError: ``percent`` is out of range, or as ``augment.draw_window``.
    """
    if not 1 <= percent <= 100:
        raise ValueError(f"{percent} percent of the windows; expected 1 to 100")
    before = extra_windows_before(step, percent=percent)
    extra = extra_windows_before(jnp.asarray(step) + 1, percent=percent) > before
    windows: dict[str, Any] = {
        "input_window": input_window,
        "output_window": output_window,
        "augmentation": augmentation,
    }

    def from_volume() -> tuple[jax.Array, jax.Array, jax.Array]:
        number = jnp.asarray(step, jnp.int32) - before
        image, labels, weights = draw_window(
            key, number, data, spacing=spacing, sampling=sampling, **windows
        )
        return jnp.asarray(image), jnp.asarray(labels), jnp.asarray(weights)

    return jax.lax.cond(extra, lambda: draw_extra_window(key, before, data, **windows), from_volume)
