"""Pictures deformed and recoloured on the device: crops, flips, jitter, blur; [b, y, x, c].

Every function draws for each picture of the batch by itself, is pure, and takes floating pictures
in [0, 1] (0..255 only where it says so). ``augment`` has the published recipes.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from densejax.typing import Array, Key

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2023, 0.1994, 0.2010)
"""As the thesis' code has it; the deviations of single images, averaged."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# ITU-R 601: what PIL and torchvision call grey.
LUMA = (0.299, 0.587, 0.114)


def to_unit(images: Array) -> jax.Array:
    """uint8 [..., c] in 0..255 -> float32 in [0, 1].

    Raises:
      ValueError: the dtype is not uint8.
    """
    if images.dtype != jnp.uint8:
        raise ValueError(f"to_unit: expected uint8 images, found {images.dtype}")
    return jnp.asarray(images, jnp.float32) / 255


def standardise(images: Array, *, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """(images - mean) / std, channel by channel.

    Args:
      images: [..., c] floating, in the unit of ``mean`` and ``std``.
      mean: c numbers.
      std: c numbers above 0.

    Raises:
      ValueError: not c numbers, or a ``std`` is not above 0.
    """
    c = images.shape[-1]
    if len(mean) != c or len(std) != c or min(std) <= 0:
        raise ValueError(
            f"standardise: expected {c} means and {c} deviations above 0, found {tuple(mean)} and "
            f"{tuple(std)}"
        )
    return (jnp.asarray(images) - jnp.asarray(mean, images.dtype)) / jnp.asarray(std, images.dtype)


def random_crop(key: Key, images: Array, *, padding: int = 4) -> jax.Array:
    """Pad y and x with ``padding`` zeros on each side and cut a window of the old size anywhere.

    Args:
      key: a jax key.
      images: [b, y, x, c], any dtype.
      padding: pixels, 0 or more; 4 for CIFAR.

    Raises:
      ValueError: ``images`` has not four axes, or the padding is negative.
    """
    _check(images)
    if padding < 0:
        raise ValueError(f"random_crop: padding is {padding}; expected 0 or more")
    p = padding
    padded = jnp.pad(jnp.asarray(images), ((0, 0), (p, p), (p, p), (0, 0)))
    corners = jax.random.randint(key, (images.shape[0], 2), 0, 2 * p + 1)

    def cut(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])

    return jax.vmap(cut)(padded, corners)


def random_flip(key: Key, images: Array, *, probability: float = 0.5) -> jax.Array:
    """Mirror pictures [b, y, x, c] left to right, each with ``probability``."""
    flipped = jnp.asarray(images)[:, :, ::-1]
    return _either(key, probability, flipped, images)


def random_resized_crop(
    key: Key,
    images: Array,
    *,
    size: int | None = None,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> jax.Array:
    """Cut a window of random area and shape and resample it to ``size``, bilinearly.

    The window is drawn as in torchvision: ten tries of an area uniform in ``scale`` and of a shape
    log-uniform in ``ratio``, the first that fits; if none fits, the largest central window whose
    shape is allowed. Sides and corners are whole pixels. The resampling is that of a tensor in
    PyTorch (pixel centres, no antialiasing), whereas PIL smooths when it shrinks.

    Args:
      key: a jax key.
      images: [b, y, x, c] floating.
      size: of the result, y and x, pixels; None keeps y and x.
      scale: smallest and largest area, as a fraction of the picture's.
      ratio: smallest and largest width / height.

    Returns:
      [b, size, size, c] of the dtype of ``images``.

    Raises:
      ValueError: ``images`` has not four axes, or a range is not in order or not above 0.
    """
    _check(images)
    for name, (low, high) in (("scale", scale), ("ratio", ratio)):
        if not 0 < low <= high:
            raise ValueError(f"random_resized_crop: {name} is {(low, high)}; expected 0 < a <= b")
    y, x = images.shape[1:3]
    boxes = jax.vmap(lambda k: _draw_box(k, y, x, scale, ratio))(
        jax.random.split(key, images.shape[0])
    )
    to = (y, x) if size is None else (size, size)
    return jax.vmap(lambda image, box: _resample(image, box, to))(jnp.asarray(images), boxes)


def colour_jitter(
    key: Key,
    images: Array,
    *,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 0.1,
    probability: float = 1.0,
) -> jax.Array:
    """Change brightness, contrast, saturation and hue, in an order drawn for each picture.

    As torchvision's ColorJitter: a factor uniform in [max(0, 1 - s), 1 + s] for the first three, a
    shift of the hue uniform in [-hue, hue]. Results are clipped to [0, 1] after each.

    Args:
      key: a jax key.
      images: [b, y, x, 3] floating in [0, 1].
      brightness: strength s, 0 or more.
      contrast: strength s, 0 or more.
      saturation: strength s, 0 or more.
      hue: strength in turns, 0 to 0.5.
      probability: that a picture is changed at all.

    Raises:
      ValueError: ``images`` has not three channels, or a strength is outside its range.
    """
    _check_colour("colour_jitter", images)
    strengths = (brightness, contrast, saturation)
    if min(strengths) < 0 or not 0 <= hue <= 0.5:
        raise ValueError(
            f"colour_jitter: strengths {(*strengths, hue)}; expected 0 or more, the hue 0 to 0.5"
        )
    lows = jnp.array([max(0.0, 1 - s) for s in strengths] + [-hue])
    highs = jnp.array([1 + s for s in strengths] + [hue])
    keep, draw = jax.random.split(key)

    def one(key: Key, image: jax.Array) -> jax.Array:
        first, second = jax.random.split(key)
        factors = jax.random.uniform(first, (4,), minval=lows, maxval=highs).astype(image.dtype)
        order = jax.random.permutation(second, 4)
        for place in range(4):
            image = jax.lax.switch(order[place], _JITTER, image, factors[order[place]])
        return image

    images = jnp.asarray(images)
    jittered = jax.vmap(one)(jax.random.split(draw, images.shape[0]), images)
    return _either(keep, probability, jittered, images)


def random_greyscale(key: Key, images: Array, *, probability: float = 0.2) -> jax.Array:
    """Turn pictures [b, y, x, 3] grey (three equal channels), each with ``probability``.

    Raises:
      ValueError: ``images`` has not three channels.
    """
    _check_colour("random_greyscale", images)
    grey = jnp.broadcast_to(greyscale(images), images.shape)
    return _either(key, probability, grey, images)


def random_blur(
    key: Key,
    images: Array,
    *,
    kernel: int,
    sigma: tuple[float, float] = (0.1, 2.0),
    probability: float = 0.5,
) -> jax.Array:
    """Blur each picture with ``probability``, by a Gaussian whose deviation is drawn.

    As torchvision's GaussianBlur: the deviation uniform in ``sigma``, a normalised kernel of
    ``kernel`` pixels, mirrored borders. SimCLR takes a tenth of the picture's side for ``kernel``;
    MoCo's PIL filter has no end.

    Args:
      key: a jax key.
      images: [b, y, x, c] floating.
      kernel: odd number of pixels, at most 2 * min(y, x) - 1.
      sigma: smallest and largest standard deviation, pixels.
      probability: that a picture is blurred.

    Raises:
      ValueError: ``images`` has not four axes, or ``kernel`` is not odd or too large.
    """
    _check(images)
    if kernel % 2 != 1 or not 1 <= kernel <= 2 * min(images.shape[1:3]) - 1:
        raise ValueError(
            f"random_blur: kernel is {kernel}; expected an odd number up to "
            f"{2 * min(images.shape[1:3]) - 1}"
        )
    keep, draw = jax.random.split(key)
    images = jnp.asarray(images)
    sigmas = jax.random.uniform(draw, images.shape[:1], images.dtype, *sigma)
    return _either(keep, probability, gaussian_blur(images, sigmas, kernel=kernel), images)


def brighten(images: Array, factor: Array) -> jax.Array:
    """clip(factor * images); [..., 3] in [0, 1]."""
    return jnp.clip(images * factor, 0, 1)


def change_contrast(images: Array, factor: Array) -> jax.Array:
    """Blend with the mean of the grey picture; [..., y, x, 3] in [0, 1]."""
    mean = greyscale(images).mean((-3, -2, -1), keepdims=True)
    return jnp.clip(factor * images + (1 - factor) * mean, 0, 1)


def change_saturation(images: Array, factor: Array) -> jax.Array:
    """Blend with the grey picture; [..., 3] in [0, 1]."""
    return jnp.clip(factor * images + (1 - factor) * greyscale(images), 0, 1)


def shift_hue(images: Array, turns: Array) -> jax.Array:
    """Turn the hue by ``turns`` (1 is once round), in HSV; [..., 3] in [0, 1]."""
    images = jnp.asarray(images)
    high, low = images.max(-1, keepdims=True), images.min(-1, keepdims=True)
    spread = high - low
    red, green, blue = jnp.split(images, 3, -1)
    safe = jnp.where(spread > 0, spread, 1)
    sector = jnp.where(
        high == red,
        (green - blue) / safe,
        jnp.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = (jnp.where(spread > 0, sector, 0) / 6 + turns) % 1
    # Each channel is a trapezium over the hue: red about 0, green about 1/3, blue about 2/3.
    place = (hue * 6 + jnp.array([5, 3, 1], images.dtype)) % 6
    return high - spread * jnp.clip(jnp.minimum(place, 4 - place), 0, 1)


def greyscale(images: Array) -> jax.Array:
    """[..., 3] -> [..., 1], by the weights of ITU-R 601, as PIL."""
    return (jnp.asarray(images) * jnp.array(LUMA, images.dtype)).sum(-1, keepdims=True)


def gaussian_blur(images: Array, sigmas: Array, *, kernel: int) -> jax.Array:
    """Blur [b, y, x, c] with deviations [b], pixels; as ``random_blur``."""
    half = kernel // 2
    images = jnp.asarray(images)
    offsets = jnp.arange(-half, half + 1, dtype=images.dtype)
    weights = jnp.exp(-0.5 * jnp.square(offsets / jnp.asarray(sigmas)[:, None]))
    weights = weights / weights.sum(1, keepdims=True)
    for axis in (1, 2):
        pads = [(half, half) if a == axis else (0, 0) for a in range(4)]
        padded, n = jnp.pad(images, pads, mode="reflect"), images.shape[axis]
        parts = (
            weights[:, i, None, None, None] * jax.lax.slice_in_dim(padded, i, i + n, axis=axis)
            for i in range(kernel)
        )
        images = sum(parts, jnp.zeros_like(images))
    return images


def augment(
    key: Key,
    images: Array,
    *,
    recipe: Literal["none", "cifar", "imagenet", "simclr", "moco"],
    size: int | None = None,
) -> jax.Array:
    """A published recipe over pictures; standardise afterwards.

    'cifar': zero-padded crop by 4 pixels, flip. 'imagenet': resized crop, flip. 'simclr' (Chen,
    Kornblith et al. 2020, strength 0.5): resized crop, flip, jitter (0.4, 0.4, 0.4, 0.1) with
    probability 0.8, grey 0.2; above 32 pixels also blur 0.5 with a kernel of a tenth of the side.
    'moco' (Chen, Fan et al. 2020, v2): the same with areas from 0.2 up; the released code blurs
    by PIL's filter instead.

    Args:
      key: a jax key.
      images: [b, y, x, 3] floating in [0, 1].
      recipe: its name.
      size: of the result, for the resized crops; None keeps y and x.

    Raises:
      ValueError: the recipe is unknown, or as the functions it is made of.
    """
    first, second, third, fourth, fifth = jax.random.split(key, 5)
    if recipe == "none":
        return jnp.asarray(images)
    if recipe == "cifar":
        return random_flip(second, random_crop(first, images))
    if recipe not in ("imagenet", "simclr", "moco"):
        raise ValueError(
            f"augment: recipe {recipe!r}; expected none, cifar, imagenet, simclr, moco"
        )
    scale = (0.2, 1.0) if recipe == "moco" else (0.08, 1.0)
    x = random_flip(second, random_resized_crop(first, images, size=size, scale=scale))
    if recipe == "imagenet":
        return x
    x = random_greyscale(fourth, colour_jitter(third, x, probability=0.8))
    side = min(x.shape[1:3])
    return random_blur(fifth, x, kernel=side // 10 // 2 * 2 + 1) if side > 32 else x


_JITTER = (brighten, change_contrast, change_saturation, shift_hue)


def _check(images: Array) -> None:
    if images.ndim != 4:
        raise ValueError(f"expected images [b, y, x, c], found shape {images.shape}")


def _check_colour(name: str, images: Array) -> None:
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"{name}: expected images [b, y, x, 3], found shape {images.shape}")


def _either(key: Key, probability: float, changed: jax.Array, images: Array) -> jax.Array:
    """Each picture changed with ``probability``, else as it was."""
    _check(images)
    if not 0 <= probability <= 1:
        raise ValueError(f"probability is {probability}; expected 0 to 1")
    chosen = jax.random.bernoulli(key, probability, images.shape[:1])
    return jnp.where(chosen[:, None, None, None], changed, jnp.asarray(images))


def _draw_box(
    key: Key, y: int, x: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> jax.Array:
    """Corner and sides (y0, x0, height, width) of a window, whole numbers as float32 [4]."""
    area_key, shape_key, corner_key = jax.random.split(key, 3)
    areas = y * x * jax.random.uniform(area_key, (10,), minval=scale[0], maxval=scale[1])
    logs = jnp.log(jnp.array(ratio))
    shapes = jnp.exp(jax.random.uniform(shape_key, (10,), minval=logs[0], maxval=logs[1]))
    widths, heights = jnp.round(jnp.sqrt(areas * shapes)), jnp.round(jnp.sqrt(areas / shapes))
    fits = (widths > 0) & (widths <= x) & (heights > 0) & (heights <= y)
    first = jnp.argmax(fits)
    whole = x / y
    central_w = round(y * ratio[1]) if whole > ratio[1] else x
    central_h = round(x / ratio[0]) if whole < ratio[0] else y
    width = jnp.where(fits.any(), widths[first], central_w)
    height = jnp.where(fits.any(), heights[first], central_h)
    free = jnp.stack([y - height, x - width])
    drawn = jnp.floor(jax.random.uniform(corner_key, (2,)) * (free + 1))
    corner = jnp.where(fits.any(), jnp.minimum(drawn, free), free // 2)
    return jnp.concatenate([corner, jnp.stack([height, width])])


def _resample(image: jax.Array, box: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Bilinear values of [y, x, c] at the centres of a grid over ``box``: two small products."""
    rows = _weights(box[0], box[2], image.shape[0], size[0]).astype(image.dtype)
    columns = _weights(box[1], box[3], image.shape[1], size[1]).astype(image.dtype)
    high = jax.lax.Precision.HIGHEST
    return jnp.einsum("iy,yxc,jx->ijc", rows, image, columns, precision=high)


def _weights(start: jax.Array, length: jax.Array, n: int, m: int) -> jax.Array:
    """[m, n]: the weight of each of n pixels in each of m samples of [start, start + length)."""
    places = (jnp.arange(m) + 0.5) * (length / m) - 0.5
    places = start + jnp.clip(places, 0, length - 1)
    return jnp.maximum(0, 1 - jnp.abs(places[:, None] - jnp.arange(n)))
