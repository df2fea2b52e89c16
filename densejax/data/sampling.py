"""Where training windows lie so that rare classes are seen: around voxels of each class in turn.

A class of 0.3 % of the voxels is in few windows and in few voxels of those. A share of the windows
is therefore drawn around a voxel of a class that is drawn uniformly among all classes (nnU-Net
oversamples foreground in a third of its patches, Isensee et al. 2021); of the others, windows
without anything but the commonest class may be drawn again (PyTorch Connectomics and BiaPy reject
such windows). Everything is a function of a key and a step, as in ``data.windows``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

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


def class_table(
    labels: np.ndarray | Sequence[np.ndarray], classes: int, *, sparse: bool = False, seed: int = 0
) -> dict[str, np.ndarray]:
    """The arrays from which ``sampled_corner`` draws, found once on the host.

    Args:
      labels: int [z, y, x], -1 where not labelled; or those of several volumes.
      classes: c.
      sparse: whether the windows that are not drawn by class shall be drawn around what is
        labelled, too.
      seed: of the choice among the voxels of a class that has more than ``MOST_VOXELS``.

    Returns:
      ``class_voxels`` int32 [c, m, 3], places (z, y, x) of voxels of each class, drawn with
      replacement, and ``common`` int32 [], the class of most voxels. Where ``sparse``,
      ``labelled_voxels`` int32 [m, 3], drawn from all that are labelled. Of several volumes, places
      are (volume, z, y, x).

    Raises:
      ValueError: a class has no voxel; the message names it.
    """
    rng = np.random.default_rng(seed)
    several = not isinstance(labels, np.ndarray)
    volumes = [labels] if isinstance(labels, np.ndarray) else list(labels)
    flat = np.concatenate([one.ravel() for one in volumes]) if several else volumes[0].ravel()
    ends = np.cumsum([one.size for one in volumes])
    counts = np.bincount(flat[flat >= 0], minlength=classes)
    absent = [index for index in range(classes) if counts[index] == 0]
    if absent:
        raise ValueError(
            f"training labels have no voxel of class {absent}: no window can be drawn around it; "
            "give labels that have, or leave the class out of --class_names"
        )

    def draw(places: np.ndarray) -> np.ndarray:
        chosen = places[rng.integers(len(places), size=MOST_VOXELS)]
        if not several:
            return np.stack(np.unravel_index(chosen, volumes[0].shape), -1).astype(np.int32)
        found = np.zeros((MOST_VOXELS, 4), np.int32)
        found[:, 0] = np.searchsorted(ends, chosen, side="right")
        for number, one in enumerate(volumes):
            mine = found[:, 0] == number
            inside = chosen[mine] - (ends[number] - one.size)
            found[mine, 1:] = np.stack(np.unravel_index(inside, one.shape), -1)
        return found

    table = {
        "class_voxels": np.stack([draw(np.flatnonzero(flat == i)) for i in range(classes)]),
        "common": np.asarray(counts.argmax(), np.int32),
    }
    return table | ({"labelled_voxels": draw(np.flatnonzero(flat >= 0))} if sparse else {})


def sampled_corner(
    key: Key,
    *,
    step: int | Array,
    data: Mapping[str, Array],
    output_window: Sequence[int],
    sampling: Sampling,
) -> jax.Array:
    """First voxel of the output window of one training step, drawn independently of all others.

    ``sampled_place`` for one volume.

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
    return sampled_place(key, step=step, data=data, output_window=output_window, sampling=sampling)[
        1
    ]


def sampled_place(
    key: Key,
    *,
    step: int | Array,
    data: Mapping[str, Any],
    output_window: Sequence[int],
    sampling: Sampling,
) -> tuple[jax.Array | int, jax.Array]:
    """Volume and first voxel of the output window of one training step.

    A volume is drawn by the windows that it holds, or with a voxel of a class.

    Args:
      key: a jax key, the same for all steps of an instance.
      step: int or int32 [], the number of the window; may be traced.
      data: as in ``sampled_corner``; or ``volumes``, several such, with the table of all beside it.
      output_window: (z, y, x) in voxels.
      sampling: which windows are drawn more often.

    Returns:
      The volume's number, 0 where there is one, and int32 [3] as ``sampled_corner``.

    Raises:
      ValueError: the window does not fit into a volume.
    """
    volumes: Sequence[Any] = data["volumes"] if "volumes" in data else [data]
    shapes = [volume["labels"].shape for volume in volumes]
    for shape in shapes:
        _check_fit(shape, output_window)
    corners = [[v - w for v, w in zip(shape, output_window, strict=True)] for shape in shapes]
    number: jax.Array | int = 0
    most = jnp.asarray(corners[0], jnp.int32)
    key = jax.random.fold_in(jax.random.fold_in(key, _STREAM), step)
    kind_key, class_key, voxel_key, shift_key, place_key, keep_key = jax.random.split(key, 6)
    if len(volumes) > 1:
        windows = [math.prod(size + 1 for size in one) for one in corners]
        ends = jnp.asarray(np.cumsum(windows) / sum(windows), jnp.float32)
        drawn = jax.random.uniform(jax.random.fold_in(place_key, _STREAM))
        number = jnp.searchsorted(ends[:-1], drawn, side="right").astype(jnp.int32)
        most = jnp.asarray(corners, jnp.int32)[number]

    def around(voxel: jax.Array, shift_key: Key, most: jax.Array) -> jax.Array:
        shift = jax.random.randint(shift_key, (3,), 0, jnp.asarray(output_window), jnp.int32)
        return jnp.clip(voxel - shift, 0, most)

    candidates = jax.random.randint(place_key, (CANDIDATES, 3), 0, most + 1, jnp.int32)
    corner = candidates[0]
    if "labelled_voxels" in data:
        anchors = jnp.asarray(data["labelled_voxels"])
        here_key, there_key = jax.random.split(jax.random.fold_in(shift_key, _STREAM))
        anchor = anchors[jax.random.randint(here_key, (), 0, len(anchors))]
        if len(volumes) > 1:
            number = anchor[0]
            most = jnp.asarray(corners, jnp.int32)[number]
        corner = around(anchor[-3:], there_key, most)
        candidates = corner[None]
    if sampling.reject_empty > 0:
        # The first candidate that shows something; where none does, or the chance decides, the
        # first of all.
        shows = jax.lax.map(
            lambda at: _shows_something(volumes, number, data["common"], at, output_window),
            candidates,
        )
        accepted = candidates[jnp.argmax(shows)]
        again = jax.random.bernoulli(keep_key, sampling.reject_empty)
        corner = jnp.where(again, accepted, corner)
    if sampling.class_share > 0:
        table = jnp.asarray(data["class_voxels"])
        index = jax.random.randint(class_key, (), 0, table.shape[0])
        voxel = table[index, jax.random.randint(voxel_key, (), 0, table.shape[1])]
        by_class = jax.random.bernoulli(kind_key, sampling.class_share)
        if len(volumes) > 1:
            most = jnp.asarray(corners, jnp.int32)[voxel[0]]
            number = jnp.where(by_class, voxel[0], number)
        corner = jnp.where(by_class, around(voxel[-3:], shift_key, most), corner).astype(jnp.int32)
    return number, corner


def _shows_something(
    volumes: Sequence[Mapping[str, Array]],
    number: Array | int,
    common: Array,
    corner: Array,
    output_window: Sequence[int],
) -> jax.Array:
    cuts = [partial(cut_window, one["labels"], size=output_window) for one in volumes]
    labels = jax.lax.switch(number, cuts, corner) if len(cuts) > 1 else cuts[0](corner)
    return jnp.any((labels >= 0) & (labels != common))
