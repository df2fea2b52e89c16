"""The training window of a step: drawn, deformed, reflected, lit and damaged on the device.

`draw_window` is the whole pipeline of Emam 2021, ch. 4, as one pure function of a key and a step.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densejax.data import defects, elastic, resampling, windows
from densejax.data.sampling import Sampling, sampled_corner, sampled_place
from densejax.typing import Array, Key


def _field(default: Any, help: str, unit: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, "unit": unit})


# Folded into keys that are split as well: ``fold_in(key, 1)`` is ``split(key)[1]``, so that small
# numbers would tie what is drawn to another draw.
_STREAM = 0x3C5A
CHANCES = ("resampling", "low_resolution", "missing_section", "misalignment", "blur", "noise")


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What may happen to a training window, and how strongly. Hashable, fixed at compile time.

    Raises:
      ValueError: if a field is outside its range.
    """

    reflections: str = _field("zyx", "axes reflected, each with probability 1/2", "letters of zyx")
    brightness: float = _field(
        0.12, "largest shift of the image, either way", "fraction of the volume's max - min"
    )
    contrast: float = _field(0.2, "largest change of the image's scale, either way", "fraction")
    elastic: str | None = _field(
        None,
        "one deformation per epoch: none, as released, or as published",
        "|".join(elastic.KINDS),
    )
    elastic_linear: bool = _field(
        False, "deform images bilinearly, not to the nearest voxel as released", "yes or no"
    )
    quarter_turns: bool = _field(
        False, "swap y and x with probability 1/2: with reflections, all turns", "yes or no"
    )
    resampling: float = _field(
        0.0, "chance that a window is rotated, scaled and warped", "probability per window"
    )
    rotation: float = _field(30.0, "largest rotation of a resampled window", "degrees")
    scaling: float = _field(0.25, "largest scaling of a resampled window, either way", "fraction")
    warp: float = _field(2.0, "deviation of a resampled window's smooth displacement", "voxels")
    gamma: float = _field(
        0.0, "largest change of the exponent of grey levels, either way", "fraction"
    )
    low_resolution: float = _field(
        0.0, "chance that y and x are halved and magnified again", "probability per window"
    )
    missing_section: float = _field(0.0, "chance that a section is lost", "probability per section")
    misalignment: float = _field(
        0.0, "chance that sections from some depth on are shifted", "probability per window"
    )
    misalignment_reach: int = _field(10, "largest shift of misaligned sections", "voxels")
    blur: float = _field(0.0, "chance that a section is out of focus", "probability per section")
    blur_sigma: float = _field(2.0, "Gaussian filter of a section out of focus", "voxels")
    noise: float = _field(0.0, "chance of added Gaussian noise", "probability per window")
    noise_deviation: float = _field(
        0.1, "standard deviation of the noise", "image units (standard deviations of the volume)"
    )

    def __post_init__(self) -> None:
        if not set(self.reflections) <= set("zyx"):
            raise ValueError(f"reflections {self.reflections!r}; expected letters of 'zyx'")
        if self.elastic is not None and self.elastic not in elastic.KINDS:
            raise ValueError(f"elastic {self.elastic!r}; expected None or one of {elastic.KINDS}")
        for name in CHANCES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a probability 0 ... 1")
        for name in (
            "brightness",
            "contrast",
            "noise_deviation",
            "rotation",
            "scaling",
            "warp",
            "gamma",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if self.elastic is not None and self.resampling > 0:
            raise ValueError(
                f"elastic {self.elastic!r} and resampling {self.resampling} both deform a window; "
                "expected one of them: --augmentation.resampling=0 or --augmentation.elastic=none"
            )


NO_AUGMENTATION = Augmentation(reflections="", brightness=0.0, contrast=0.0)
PLANNED = Augmentation(
    brightness=0.05,
    contrast=0.25,
    quarter_turns=True,
    resampling=0.5,
    gamma=0.4,
    low_resolution=0.1,
    blur=0.1,
    blur_sigma=1.0,
    noise=0.2,
)
"""What the planned recipe does."""
AS_RELEASED = Augmentation(reflections="", elastic="released")
"""What the released code does: it draws reflections, but never applies them."""


def training_arrays(
    image: Array, labels: Array, *, weights: Array | None = None
) -> dict[str, jax.Array]:
    """The arrays `draw_window` reads, checked, with the bounds of the image found once.

    Args:
      image: [z, y, x], any real dtype; kept as float32.
      labels: int [z, y, x], -1 where not labelled; kept as int32.
      weights: float [z, y, x], 0 or more; None means 1 at every labelled voxel.

    Returns:
      ``image`` float32, ``labels`` int32, ``weights`` float32 (absent if None), and ``minimum``,
      ``maximum`` of the image, float32 [].

    Raises:
      ValueError: if the arrays have not one shape with three axes.
    """
    shapes = {"image": image.shape, "labels": labels.shape}
    if weights is not None:
        shapes["weights"] = weights.shape
    if image.ndim != 3 or len(set(shapes.values())) != 1:
        raise ValueError(f"training arrays have shapes {shapes}; expected one shape [z, y, x]")
    image = jnp.asarray(image, jnp.float32)
    data = {"image": image, "labels": jnp.asarray(labels, jnp.int32)}
    if weights is not None:
        data["weights"] = jnp.asarray(weights, jnp.float32)
    return {**data, "minimum": image.min(), "maximum": image.max()}


def reflect_window(key: Key, *blocks: Array, axes: str) -> tuple[Array, ...]:
    """Reflect some axes, each with probability 1/2, all blocks alike.

    Args:
      key: a jax key.
      *blocks: [z, y, x, ...] each, any dtype.
      axes: letters of ``zyx`` that may be reflected. An axis left out changes no other's draw.

    Returns:
      The blocks, reflected, in their order.
    """
    flips = jax.random.bernoulli(key, 0.5, (3,))
    for axis, letter in enumerate("zyx"):
        if letter in axes:
            blocks = tuple(jnp.where(flips[axis], jnp.flip(b, axis), b) for b in blocks)
    return blocks


def adjust_intensity(
    key: Key, image: Array, *, brightness: float, contrast: float, intensity_range: float | Array
) -> Array:
    """Shift, then scale about zero, by amounts drawn once for the window.

    ``x + U(-brightness, brightness) * intensity_range``, then ``x * (1 + U(-contrast, contrast))``.

    Args:
      key: a jax key.
      image: float [z, y, x].
      brightness: fraction of the intensity range, 0 or more.
      contrast: fraction, 0 or more.
      intensity_range: scalar, maximum - minimum of the whole volume.

    Returns:
      [z, y, x], the image's dtype.

    Source: Emam 2021, ch. 4. Departure: the released code takes the range of the deformed volume;
    deformation to the nearest voxel invents no values, so it differs only by what it pushes out.
    """
    bright_key, contrast_key = jax.random.split(key)
    shift = jax.random.uniform(bright_key, (), minval=-brightness, maxval=brightness)
    scale = 1 + jax.random.uniform(contrast_key, (), minval=-contrast, maxval=contrast)
    return ((image + shift * intensity_range) * scale).astype(image.dtype)


def swap_axes(key: Key, *blocks: Array) -> tuple[Array, ...]:
    """Swap y and x with probability 1/2, all blocks alike.

    Args:
      key: a jax key.
      *blocks: [z, y, x] each, any dtype.

    Returns:
      The blocks, in their order.

    Raises:
      ValueError: a block is not square in its planes.
    """
    oblong = [block.shape for block in blocks if block.shape[1] != block.shape[2]]
    if oblong:
        raise ValueError(
            f"quarter turns of windows {oblong}; expected as many voxels along y as along x, or "
            "--noaugmentation.quarter_turns"
        )
    # A branch and no selection: an XLA CPU takes several times as long to fuse the transposes.
    return jax.lax.cond(
        jax.random.bernoulli(key, 0.5),
        lambda: tuple(jnp.swapaxes(jnp.asarray(block), 1, 2) for block in blocks),
        lambda: tuple(jnp.asarray(block) for block in blocks),
    )


def adjust_gamma(key: Key, image: Array, *, gamma: float) -> Array:
    """Raise grey levels, scaled to 0 ... 1 over the window, to a random power.

    Args:
      key: a jax key.
      image: float [z, y, x].
      gamma: the exponent's logarithm is uniform within plus or minus log(1 + gamma).

    Returns:
      [z, y, x], the image's dtype; the window's least and largest values stay.

    Source: ``RandAdjustContrast`` of MONAI, with the exponent drawn evenly on a logarithmic scale.
    """
    low, high = jnp.min(image), jnp.max(image)
    exponent = jnp.exp(jax.random.uniform(key, (), minval=-1, maxval=1) * jnp.log1p(gamma))
    extent = jnp.maximum(high - low, 1e-7)
    share = jnp.clip((image - low) / extent, 0.0, 1.0)
    return (low + extent * share**exponent).astype(image.dtype)


def halve_resolution(key: Key, image: Array, *, probability: float) -> Array:
    """Replace each 2 x 2 voxels of a plane by their mean, with some probability.

    Args:
      key: a jax key.
      image: float [z, y, x]; an odd last row or column stays.
      probability: of doing so, in 0 ... 1.

    Returns:
      [z, y, x], the image's dtype.
    """
    z, y, x = image.shape
    inner = image[:, : y // 2 * 2, : x // 2 * 2]
    means = inner.reshape(z, y // 2, 2, x // 2, 2).mean((2, 4))
    coarse = jnp.repeat(jnp.repeat(means, 2, axis=1), 2, axis=2)
    coarse = jnp.asarray(image).at[:, : y // 2 * 2, : x // 2 * 2].set(coarse)
    return jnp.where(jax.random.bernoulli(key, probability), coarse, image)


def _damage(
    key: Key, image: Array, labels: Array, weights: Array, how: Augmentation, minimum: float | Array
) -> tuple[Array, Array, Array]:
    keys = jax.random.split(key, 4)
    if how.misalignment > 0:
        image, labels, weights = defects.misalign(
            keys[0],
            image,
            labels,
            weights,
            probability=how.misalignment,
            reach=how.misalignment_reach,
        )
    if how.blur > 0:
        image = defects.blur_sections(keys[1], image, probability=how.blur, sigma=how.blur_sigma)
    if how.noise > 0:
        image = defects.add_noise(
            keys[2], image, probability=how.noise, deviation=how.noise_deviation
        )
    if how.missing_section > 0:
        image = defects.missing_sections(
            keys[3], image, probability=how.missing_section, fill=minimum
        )
    return image, labels, weights


def augment_window(
    key: Key,
    image: Array,
    labels: Array,
    weights: Array,
    *,
    augmentation: Augmentation,
    minimum: float | Array,
    maximum: float | Array,
) -> tuple[Array, Array, Array]:
    """Everything that happens to a window once it is cut: reflections, intensity, then defects.

    Elastic deformation belongs to the volume and the epoch, and is done where a window is cut
    (`draw_window`).

    Args:
      key: a jax key.
      image: float32 [z, y, x], the input window.
      labels: int32 [z, y, x], the output window, in the middle of the image.
      weights: float32 [z, y, x], the output window.
      augmentation: what may happen.
      minimum: scalar, of the whole volume.
      maximum: scalar, of the whole volume.

    Returns:
      Image, labels and weights, shapes and dtypes as given.

    Raises:
      ValueError: if a reflected axis has an odd difference between image and labels, so that the
        labels have no middle to lie in.
    """
    image, labels, weights = jnp.asarray(image), jnp.asarray(labels), jnp.asarray(weights)
    axes = augmentation.reflections
    odd = [a for a, i, o in zip("zyx", image.shape, labels.shape, strict=True) if (i - o) % 2]
    if set(odd) & set(axes):
        raise ValueError(
            f"input window {image.shape} and output window {labels.shape} differ by an odd number "
            f"of voxels along {odd}; expected an even one along the reflected axes {axes!r}"
        )
    reflect_key, intensity_key, damage_key = jax.random.split(key, 3)
    if axes:
        image, labels, weights = reflect_window(reflect_key, image, labels, weights, axes=axes)
    if augmentation.quarter_turns:
        image, labels, weights = swap_axes(
            jax.random.fold_in(reflect_key, _STREAM), image, labels, weights
        )
    if augmentation.low_resolution > 0:
        image = halve_resolution(
            jax.random.fold_in(damage_key, _STREAM), image, probability=augmentation.low_resolution
        )
    if augmentation.gamma > 0:
        image = adjust_gamma(
            jax.random.fold_in(intensity_key, _STREAM), image, gamma=augmentation.gamma
        )
    if augmentation.brightness or augmentation.contrast:
        image = adjust_intensity(
            intensity_key,
            image,
            brightness=augmentation.brightness,
            contrast=augmentation.contrast,
            intensity_range=jnp.asarray(maximum) - minimum,
        )
    return _damage(damage_key, image, labels, weights, augmentation, minimum)


def _cut_plain(
    data: Mapping[str, Array], corner: Array, size: Sequence[int], output: Sequence[int]
) -> dict[str, jax.Array]:
    cut = {"image": windows.cut_window(data["image"], corner, size, output_window=output)}
    for name in ("labels", "weights"):
        if name in data:
            cut[name] = windows.cut_window(data[name], corner, output)
    return cut


def _cut_deformed(
    key: Key,
    data: Mapping[str, Array],
    corner: Array,
    size: Sequence[int],
    output: Sequence[int],
    how: Augmentation,
) -> dict[str, jax.Array]:
    volume_shape = data["image"].shape
    windows.check_windows(volume_shape, size, output)
    edges = windows.margins(size, output)
    # Beyond the border the window mirrors the deformed volume, so voxels are mirrored first.
    sections, rows, columns = (
        windows.reflect_index(corner[a] - edges[a][0] + jnp.arange(size[a]), volume_shape[a])
        for a in range(3)
    )
    assert how.elastic is not None
    moved = elastic.elastic_displacement(
        key, rows, columns, section_shape=volume_shape[1:], kind=how.elastic
    )
    y, x = moved[0] + rows[:, None], moved[1] + columns[None, :]
    image = elastic.sample_window(data["image"], sections, y, x, linear=how.elastic_linear)
    (top, _), (left, _) = edges[1:]
    inner = (slice(top, top + output[1]), slice(left, left + output[2]))
    inner_sections = sections[edges[0][0] : edges[0][0] + output[0]]
    cut = {"image": image}
    for name in ("labels", "weights"):
        if name in data:
            cut[name] = elastic.sample_window(data[name], inner_sections, y[inner], x[inner])
    return cut


def _cut_resampled(
    key: Key,
    data: Mapping[str, Array],
    corner: Array,
    size: Sequence[int],
    output: Sequence[int],
    how: Augmentation,
) -> dict[str, jax.Array]:
    volume_shape = data["image"].shape
    windows.check_windows(volume_shape, size, output)
    (before, _), (top, _), (left, _) = windows.margins(size, output)
    sections = windows.reflect_index(corner[0] - before + jnp.arange(size[0]), volume_shape[0])
    moved = resampling.moved_positions(
        key,
        size[1:],
        rotation=how.rotation,
        scaling=how.scaling,
        warp=how.warp,
    )
    y = moved[0] + corner[1] - top + (size[1] - 1) / 2
    x = moved[1] + corner[2] - left + (size[2] - 1) / 2
    cut = {"image": resampling.read_plane(data["image"], sections, y, x, linear=True)}
    inner = (slice(top, top + output[1]), slice(left, left + output[2]))
    for name in ("labels", "weights"):
        if name in data:
            cut[name] = resampling.read_plane(
                data[name], sections[before : before + output[0]], y[inner], x[inner], linear=False
            )
    return cut


def _cut_of_step(
    key: Key,
    step: int | Array,
    data: Mapping[str, Array],
    corner: Array | None = None,
    *,
    input_window: Sequence[int],
    output_window: Sequence[int],
    spacing: Sequence[int],
    augmentation: Augmentation,
    sampling: Sampling | None = None,
) -> tuple[jax.Array, ...]:
    """Image, labels and weights of a window, cut or resampled, and the bounds of its volume."""
    corner_key, epoch_key, window_key = jax.random.split(key, 3)
    grid: dict[str, Any] = {
        "volume_shape": data["image"].shape,
        "output_window": output_window,
        "spacing": spacing,
    }
    if corner is None and sampling is None:
        corner = windows.window_corner(corner_key, step=step, **grid)
    elif corner is None and sampling is not None:
        corner = sampled_corner(
            corner_key, step=step, data=data, output_window=output_window, sampling=sampling
        )
    assert corner is not None
    at: Array = corner
    if augmentation.resampling > 0:
        chance, move_key = jax.random.split(
            jax.random.fold_in(jax.random.fold_in(window_key, step), _STREAM)
        )
        # A branch: a window that stays as it is costs nothing.
        cut = jax.lax.cond(
            jax.random.bernoulli(chance, augmentation.resampling),
            lambda: _cut_resampled(move_key, data, at, input_window, output_window, augmentation),
            lambda: _cut_plain(data, at, input_window, output_window),
        )
    elif augmentation.elastic is None:
        cut = _cut_plain(data, at, input_window, output_window)
    else:
        epoch_key = jax.random.fold_in(epoch_key, windows.epoch_of_step(step, **grid))
        cut = _cut_deformed(epoch_key, data, at, input_window, output_window, augmentation)
    image, labels = cut["image"].astype(jnp.float32), cut["labels"].astype(jnp.int32)
    weights = cut.get("weights", jnp.ones((), jnp.float32)).astype(jnp.float32)
    weights = jnp.where(labels >= 0, weights, 0.0)
    bounded = augmentation.brightness > 0 or augmentation.missing_section > 0
    zero = jnp.zeros((), jnp.float32)
    low, high = (
        data[name] if name in data else find(data["image"]).astype(jnp.float32) if bounded else zero
        for name, find in (("minimum", jnp.min), ("maximum", jnp.max))
    )
    return image, labels, weights, jnp.asarray(low), jnp.asarray(high)


def _cut_of_several(
    key: Key, step: int | Array, data: Mapping[str, Any], *, sampling: Sampling | None, **how: Any
) -> tuple[jax.Array, ...]:
    """As ``_cut_of_step``, from the one of several volumes that the step draws.

    A branch a volume, so that volumes keep their own shapes and only one is cut. On the grid, an
    epoch visits every bin of every volume once, in an order drawn anew.
    """
    volumes = data["volumes"]
    place: tuple[Array, ...]
    number: Any
    if sampling is None:
        bins = [
            math.prod(windows.grid_bins(one["image"].shape, how["output_window"], how["spacing"]))
            for one in volumes
        ]
        starts = np.concatenate([[0], np.cumsum(bins)]).astype(np.int32)
        total = int(starts[-1])
        step = jnp.asarray(step, jnp.int32)
        order_key = jax.random.fold_in(jax.random.fold_in(key, _STREAM), step // total)
        chosen = jax.random.permutation(order_key, total)[step % total]
        number = jnp.searchsorted(jnp.asarray(starts[1:-1]), chosen, side="right")
        # Within its own epochs a volume visits each of its bins once, whatever the others do.
        size = jnp.asarray(bins, jnp.int32)[number]
        place = (step // total * size + chosen - jnp.asarray(starts)[number],)
    else:
        number, corner = sampled_place(
            jax.random.split(key, 3)[0],
            step=step,
            data=data,
            output_window=how["output_window"],
            sampling=sampling,
        )
        place = (jnp.asarray(step, jnp.int32), corner)
    volume_key = jax.random.fold_in(key, _STREAM + 1)
    branches = [
        partial(_branch, jax.random.fold_in(volume_key, i), one, how)
        for i, one in enumerate(volumes)
    ]
    return jax.lax.switch(number, branches, *place)


def _branch(
    key: Key, data: Mapping[str, Array], how: Mapping[str, Any], step: Array, *corner: Array
) -> tuple[jax.Array, ...]:
    return _cut_of_step(key, step, data, *corner, **how)


def draw_window(
    key: Key,
    step: int | Array,
    data: Mapping[str, Array],
    *,
    input_window: Sequence[int],
    output_window: Sequence[int],
    spacing: Sequence[int],
    augmentation: Augmentation = NO_AUGMENTATION,
    sampling: Sampling | None = None,
) -> tuple[Array, Array, Array]:
    """The training window of one step: a function of the instance's key, the step and the volume.

    The corner comes from the jittered grid of `windows.window_corner`, the elastic map (if any)
    from the same epoch, everything else from the step. Compiles once for all steps; may be mapped
    over keys and scanned over steps.

    Args:
      key: a jax key, the same for all steps of an instance.
      step: int or int32 [], the zero-based number of the window since training began; may be
        traced.
      data: ``image`` [z, y, x], normalised (float32, or another dtype which is cast after it is
        cut), ``labels`` int [z, y, x], optionally ``weights`` float [z, y, x] (else 1 at every
        labelled voxel), and optionally ``minimum`` and ``maximum`` [] of the image, as made by
        `training_arrays`. Without the bounds the whole volume is searched for them in each call
        that needs them. Or ``volumes``, several such of any shapes; where windows are drawn by
        class, beside what `sampling.class_table` returns for all of them.
      input_window: (z, y, x) in voxels.
      output_window: (z, y, x) in voxels, the middle of the input window.
      spacing: (z, y, x) in voxels, edge lengths of a bin of the grid.
      augmentation: what may happen to the window.
      sampling: draws corners by class in place of the grid; ``data`` then holds what
        `sampling.class_table` returns. An epoch (of the elastic map) is still the grid's.

    Returns:
      Image float32 of shape ``input_window``, labels int32 and weights float32 (0 where not
      labelled) of shape ``output_window``.

    Raises:
      ValueError: if the windows do not fit into the volume or into each other, or as
        `augment_window`.

    Source: Emam 2021, ch. 4. Departure: reflections are applied, which the released code draws and
    then discards; use `AS_RELEASED` for what it does.
    """
    window_key = jax.random.split(key, 3)[2]
    how: dict[str, Any] = {
        "input_window": input_window,
        "output_window": output_window,
        "spacing": spacing,
        "augmentation": augmentation,
    }
    if "volumes" not in data:
        drawn = _cut_of_step(key, step, data, sampling=sampling, **how)
    else:
        drawn = _cut_of_several(key, step, data, sampling=sampling, **how)
    image, labels, weights, low, high = drawn
    return augment_window(
        jax.random.fold_in(window_key, step),
        image,
        labels,
        weights,
        augmentation=augmentation,
        minimum=low,
        maximum=high,
    )
