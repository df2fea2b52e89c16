"""Where training windows lie so that rare classes are seen: around voxels of each class in turn.

A class of 0.3 % of the voxels is in few windows and in few voxels of those. A share of the windows
is therefore drawn around a voxel of a class that is drawn uniformly among all classes (nnU-Net
oversamples foreground in a third of its patches, Isensee et al. 2021); of the others, windows
without anything but the commonest class may be drawn again (PyTorch Connectomics and BiaPy reject
such windows). Everything is a function of a key and a step, as in ``data.windows``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from densejax.data.windows import _check_fit, cut_window
from densejax.typing import Array, Key

MOST_VOXELS = 8192  # of a class that are kept as centres, drawn at random
CANDIDATES = 4  # corners of which the first that is not empty is taken
_STREAM = 0x5A3C  # folded into the key, so that no draw of ``window_corner`` is repeated


@dataclass(frozen=True)
class Sampling:
    """How the corners of training windows are drawn. Hashable, fixed at compile time.

    Attributes:
      class_share: share of the windows that are drawn around a voxel of a class, each class as
        often; the others are uniform.
      reject_empty: probability that a uniform window which shows only the commonest class, or
        nothing labelled, is drawn again (up to ``CANDIDATES`` times).

    Raises:
      ValueError: a number is not in 0 to 1.
    """

    class_share: float = 0.0
    reject_empty: float = 0.0

    def __post_init__(self) -> None:
        for name in ("class_share", "reject_empty"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a share 0 ... 1")


def class_table(labels: np.ndarray, classes: int, *, seed: int = 0) -> dict[str, np.ndarray]:
    """The arrays from which ``sampled_corner`` draws, found once on the host.

    Args:
      labels: int [z, y, x], -1 where not labelled.
      classes: c.
      seed: of the choice among the voxels of a class that has more than ``MOST_VOXELS``.

    Returns:
      ``class_voxels`` int32 [c, m, 3], places (z, y, x) of voxels of each class, drawn with
      replacement, and ``common`` int32 [], the class of most voxels.

    Raises:
      ValueError: a class has no voxel; the message names it.
    """
    rng = np.random.default_rng(seed)
    flat = labels.ravel()
    counts = np.bincount(flat[flat >= 0], minlength=classes)
    absent = [index for index in range(classes) if counts[index] == 0]
    if absent:
        raise ValueError(
            f"training labels have no voxel of class {absent}: no window can be drawn around it; "
            "give labels that have, or leave the class out of --class_names"
        )
    voxels = []
    for index in range(classes):
        places = np.flatnonzero(flat == index)
        chosen = places[rng.integers(len(places), size=MOST_VOXELS)]
        voxels.append(np.stack(np.unravel_index(chosen, labels.shape), -1))
    return {
        "class_voxels": np.stack(voxels).astype(np.int32),
        "common": np.asarray(counts.argmax(), np.int32),
    }


def sampled_corner(
    key: Key,
    *,
    step: int | Array,
    data: Mapping[str, Array],
    output_window: Sequence[int],
    sampling: Sampling,
) -> jax.Array:
    """First voxel of the output window of one training step, drawn independently of all others.

    Args:
      key: a jax key, the same for all steps of an instance.
      step: int or int32 [], the number of the window; may be traced.
      data: ``labels`` int [z, y, x], and what ``class_table`` found in them.
      output_window: (z, y, x) in voxels.
      sampling: which windows are drawn more often.

    Returns:
      int32 [3], in 0 ... volume - window inclusive.

    Raises:
      ValueError: the window does not fit into the volume.
    """
    shape = data["labels"].shape
    _check_fit(shape, output_window)
    most = jnp.asarray([v - w for v, w in zip(shape, output_window, strict=True)], jnp.int32)
    key = jax.random.fold_in(jax.random.fold_in(key, _STREAM), step)
    kind_key, class_key, voxel_key, shift_key, place_key, keep_key = jax.random.split(key, 6)
    candidates = jax.random.randint(place_key, (CANDIDATES, 3), 0, most + 1, jnp.int32)
    corner = candidates[0]
    if sampling.reject_empty > 0:
        # The first candidate that shows something; where none does, or the chance decides, the
        # first of all.
        shows = jax.lax.map(lambda at: _shows_something(data, at, output_window), candidates)
        accepted = candidates[jnp.argmax(shows)]
        again = jax.random.bernoulli(keep_key, sampling.reject_empty)
        corner = jnp.where(again, accepted, corner)
    if sampling.class_share > 0:
        table = jnp.asarray(data["class_voxels"])
        index = jax.random.randint(class_key, (), 0, table.shape[0])
        voxel = table[index, jax.random.randint(voxel_key, (), 0, table.shape[1])]
        shift = jax.random.randint(shift_key, (3,), 0, jnp.asarray(output_window), jnp.int32)
        around = jnp.clip(voxel - shift, 0, most)
        corner = jnp.where(
            jax.random.bernoulli(kind_key, sampling.class_share), around, corner
        ).astype(jnp.int32)
    return corner


def _shows_something(
    data: Mapping[str, Array], corner: Array, output_window: Sequence[int]
) -> jax.Array:
    labels = cut_window(data["labels"], corner, output_window)
    return jnp.any((labels >= 0) & (labels != data["common"]))
