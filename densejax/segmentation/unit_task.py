"""Learning to segment from a labelled set of units: whole pictures, crops or windows.

All instances share the units, which live on the device. Each learns from a labelled set of its own,
a row of ``query_sets`` that its setting ``query_set`` names, as the networks of one round of active
learning do. Evaluated are whole pictures, or the whole sections of a volume.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densejax.data.augment import reflect_window
from densejax.data.images import standardise, to_unit
from densejax.data.resampling import read_plane
from densejax.segmentation.task import Descent, Network, WindowTask
from densejax.typing import UNLABELLED, Array, Key, Params


@dataclass(frozen=True)
class UnitDraw:
    """How a unit becomes a sample of a batch. Hashable, fixed at compile time.

    Attributes:
      crop: (y, x) of a random part of the unit; None takes it whole.
      scale: smallest and largest factor by which a unit is enlarged before it is cropped; its
        logarithm is uniform. What a small one leaves of the crop is mirrored and does not count.
      flips: letters of ``yx``, the axes along which a unit may be reflected.

    Raises:
      ValueError: factors without a crop, that are not above 0, or in the wrong order.
    """

    crop: tuple[int, int] | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    flips: str = "yx"

    def __post_init__(self) -> None:
        least, most = self.scale
        if not 0 < least <= most or (self.crop is None and self.scale != (1.0, 1.0)):
            raise ValueError(
                f"scale {self.scale}: expected two factors above 0, the smaller first, and a crop"
            )

    def __call__(
        self, key: Key, step: jax.Array, data: Any
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Sample ``step`` of a member: image in [0, 1] [z, y, x, c], labels, weights [z, y, x].

        The labelled set is gone through in a random order that is drawn anew each time, from the
        key and the number of the time.
        """
        row = data["settings"]["query_set"].astype(jnp.int32)
        count = jnp.maximum(jnp.asarray(data["counts"])[row], 1)
        epoch, turn = jnp.divmod(step, count)
        order_key, unit_key = jax.random.split(key)
        sets = jnp.asarray(data["query_sets"])
        drawn = jax.random.bits(jax.random.fold_in(order_key, epoch), sets.shape[1:], jnp.uint32)
        # The padding sorts behind every unit, whatever was drawn.
        order = jnp.lexsort((drawn, jnp.arange(sets.shape[1]) >= count))
        unit = sets[row, order[turn]]
        image = to_unit(jnp.asarray(data["images"])[unit])
        labels = jnp.asarray(data["labels"])[unit].astype(jnp.int32)
        crop_key, flip_key = jax.random.split(jax.random.fold_in(unit_key, step))
        if self.crop is not None:
            image, labels = self._cut(crop_key, image, labels)
        flipped, known = reflect_window(flip_key, image, labels, axes=self.flips)
        weights = jnp.asarray(data["class_weights"])[row][jnp.maximum(known, 0)]
        return jnp.asarray(flipped), jnp.asarray(known), weights

    def _cut(self, key: Key, image: Array, labels: Array) -> tuple[jax.Array, jax.Array]:
        assert self.crop is not None
        sizes = labels.shape[1:]
        scale_key, *corner_keys = jax.random.split(key, 3)
        if self.scale == (1.0, 1.0):
            corner = [jnp.int32(0)]
            for each, n, size in zip(corner_keys, sizes, self.crop, strict=True):
                corner.append(jax.random.randint(each, (), 0, n - size + 1))
            shape = (labels.shape[0], *self.crop)
            cut = jax.lax.dynamic_slice(image, (*corner, 0), (*shape, image.shape[-1]))
            return cut, jax.lax.dynamic_slice(labels, corner, shape)
        least, most = np.log(self.scale)
        factor = jnp.exp(jax.random.uniform(scale_key, (), minval=least, maxval=most))
        places = []
        for each, n, size in zip(corner_keys, sizes, self.crop, strict=True):
            span = n - size / factor  # below 0 where the crop is larger than the scaled unit
            start = jnp.minimum(span, 0) / 2 + jax.random.uniform(each) * jnp.maximum(span, 0)
            places.append(start + (jnp.arange(size) + 0.5) / factor - 0.5)
        y, x = jnp.meshgrid(*places, indexing="ij")
        planes = jnp.arange(labels.shape[0])
        inside = (y >= -0.5) & (y <= sizes[0] - 0.5) & (x >= -0.5) & (x <= sizes[1] - 0.5)
        read = jax.vmap(
            lambda channel: read_plane(channel, planes, y, x, linear=True), in_axes=-1, out_axes=-1
        )
        nearest = read_plane(labels, planes, y, x, linear=False)
        return read(image), jnp.where(inside, nearest, UNLABELLED)


def unit_task(
    init_variables: Callable[[Key], Params],
    network: Network,
    classes: int,
    *,
    batch: int,
    learning_rate: float,
    descent: Descent,
    draw: UnitDraw,
) -> WindowTask:
    """The task of an instance that learns from its labelled units.

    The loss is the mean cross-entropy over labelled pixels, each weighted by its class. Settings
    in which members may differ are those of ``WindowTask`` and ``query_set``, the row of the
    labelled set.

    Args:
      init_variables: fresh ``{"params": ...}`` from a key, and ``"batch_stats"`` with batch norm.
      network: ``apply`` of pictures in 0..255 (uint8) or [0, 1] (``standardised``).
      classes: c.
      batch: units a step.
      learning_rate: initial rate.
      descent: optimiser and schedule.
      draw: crops, scales and flips.
    """
    return WindowTask(
        init_variables,
        network,
        draw,
        classes,
        batch=batch,
        learning_rate=learning_rate,
        descent=descent,
        stateful=True,
        drawing={"query_set": 0.0},
    )


def standardised(network: Network, *, mean: Sequence[float], std: Sequence[float]) -> Network:
    """A network of stored pictures: uint8, or floating in [0, 1], standardised by channel.

    Args:
      network: ``(variables, [b, z, y, x, c] float32, **options) -> (logits, out)``.
      mean: c means of pictures in [0, 1].
      std: c deviations, above 0.
    """

    def apply(variables: Params, images: Array, **options: Any) -> Any:
        x = to_unit(images) if images.dtype == jnp.uint8 else jnp.asarray(images)
        return network(variables, standardise(x, mean=mean, std=std), **options)

    return apply


def unit_data(
    units: Any,
    sets: Sequence[Array],
    *,
    test_images: Array,
    test_labels: Array,
    classes: int,
    largest: int,
    weighted: bool = False,
) -> dict[str, Array]:
    """What the instances of a ``unit_task`` share.

    Args:
      units: ``images`` [n, z, y, x, c] uint8 and ``labels`` [n, z, y, x], -1 where void; those of
        units outside all sets are never looked at.
      sets: of each row the labelled units, integers 0..n-1; rows may be of different length.
      test_images: uint8 [e, z, y, x, c], whole pictures or sections.
      test_labels: int [e, z, y, x].
      classes: c.
      largest: columns of ``query_sets``, the same in every round.
      weighted: weight the loss by ``median_frequency`` of each set.

    Returns:
      ``images``, ``labels``, ``evaluation_images``, ``evaluation_labels``, ``query_sets`` [r, l]
      int32, -1 where a row is shorter, ``counts`` [r] int32, ``class_weights`` [r, c] float32.

    Raises:
      ValueError: a set is too long, or holds an index outside the units, one twice, one without a
        labelled pixel, or a label outside the classes.
    """
    labels = np.asarray(units.labels)
    query_sets = np.full((len(sets), largest), -1, np.int32)
    weights = np.ones((len(sets), classes), np.float32)
    used = np.unique(np.concatenate([np.zeros(0, np.int64), *sets]).astype(np.int64))
    if used.size and not 0 <= used[0] <= used[-1] < len(labels):
        raise ValueError(f"units {used[0]} to {used[-1]}: expected 0 to {len(labels) - 1}")
    tables = {int(row): _histogram(labels[int(row)], classes, int(row)) for row in used}
    for row, one in enumerate(sets):
        if len(one) > largest or len(np.unique(one)) != len(one):
            raise ValueError(
                f"labelled set {row}: {len(one)} units, {len(np.unique(one))} different; expected "
                f"at most {largest}, each once"
            )
        query_sets[row, : len(one)] = one
        if weighted and len(one):
            weights[row] = median_frequency(np.stack([tables[int(unit)] for unit in one]))
    return {
        "images": np.asarray(units.images),
        "labels": labels,
        "evaluation_images": test_images,
        "evaluation_labels": np.asarray(test_labels, np.int32),
        "query_sets": query_sets,
        "counts": np.array([len(one) for one in sets], np.int32),
        "class_weights": weights,
    }


def _histogram(labels: np.ndarray, classes: int, unit: int) -> np.ndarray:
    """[c] labelled pixels of each class of a unit, checked."""
    if labels.min() < UNLABELLED or labels.max() >= classes:
        raise ValueError(
            f"unit {unit}: labels {labels.min()} to {labels.max()}; expected 0 to {classes - 1}, "
            "or -1 for void"
        )
    counts = np.bincount(labels[labels >= 0].astype(np.int64), minlength=classes)
    if not counts.any():
        raise ValueError(f"unit {unit}: every pixel is void; expected some that are labelled")
    return counts


def median_frequency(counts: Array) -> np.ndarray:
    """Weights of a loss by class: the median frequency over the class's own (Eigen & Fergus 2015).

    The frequency of a class is its share of the labelled pixels of the pictures that show it, as
    SegNet has it. Absent classes weigh 1.

    Args:
      counts: int [n, c], pixels of each class in each picture.

    Returns:
      [c] float32.
    """
    counts = np.asarray(counts, np.float64)
    shown = np.where(counts > 0, counts.sum(axis=1, keepdims=True), 0).sum(axis=0)
    frequency = np.where(shown > 0, counts.sum(axis=0) / np.maximum(shown, 1), np.nan)
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(np.nanmedian(frequency) / frequency, nan=1.0).astype(np.float32)


def padded_pictures(
    images: Array, labels: Array, *, multiple: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures as a network takes them whole: mirrored at the far edges to a multiple.

    Args:
      images: uint8 [e, z, y, x, c].
      labels: int [e, z, y, x].
      multiple: (z, y, x) of the sizes that the network returns as they are.

    Returns:
      Images, and labels that are -1 where the picture was continued.
    """
    spare = [(0, 0), *((0, -n % m) for n, m in zip(labels.shape[1:], multiple, strict=True))]
    padded = np.pad(np.asarray(images), [*spare, (0, 0)], mode="symmetric")
    return padded, np.pad(np.asarray(labels, np.int32), spare, constant_values=UNLABELLED)


def channel_moments(images: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel of uint8 pictures [..., c], as of [0, 1].

    Raises:
      ValueError: a channel is constant.
    """
    x = np.asarray(images).reshape(-1, images.shape[-1])
    mean, std = x.mean(axis=0, dtype=np.float64) / 255, x.std(axis=0, dtype=np.float64) / 255
    if not (std > 0).all():
        raise ValueError(f"the pictures' channel {int(np.argmin(std))} is constant: {mean * 255}")
    return tuple(mean.tolist()), tuple(std.tolist())
