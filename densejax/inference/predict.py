"""Predictions of an ensemble over a whole volume, by overlapping windows of one shape.

All members label a window in one compiled program; what the ensemble says of a voxel comes from the
window in which that voxel is most central, as released by Guay et al. (2021). Everything that is
kept is written voxel by voxel, so that memory is that of the results, whatever the overlap.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densejax.data.windows import check_windows, evaluation_corners, reflect_index
from densejax.inference.tiles import Blend, grid_of
from densejax.inference.views import Views, average_views
from densejax.population import Population
from densejax.typing import Array, Params

Sizes = tuple[int, int, int]


@dataclass(frozen=True)
class Prediction:
    """What an ensemble says of a volume.

    Attributes:
      labels: [z, y, x] int32, argmax of the mean probabilities of all members.
      entropy: [z, y, x] float32, of the mean probabilities, divided by log(c): 0 to 1.
      disagreement: [z, y, x] float32, share of members whose own label is another: 0 to 1.
      cumulative: [k, z, y, x] uint8, labels of the first 1, 2, ... k members together, in the order
        in which they were given.
      members: [k, z, y, x] uint8, labels of each member alone.
      probabilities: [z, y, x, c] float32, mean over all members, where they were asked for.
    """

    labels: np.ndarray
    entropy: np.ndarray
    disagreement: np.ndarray
    cumulative: np.ndarray
    members: np.ndarray
    probabilities: np.ndarray | None = None


def centrality(window: Sizes, *, anisotropy: tuple[float, float, float] = (4, 1, 1)) -> np.ndarray:
    """Distance of each voxel of a window to the window's border, [z, y, x] float32.

    A box's Euclidean distance to its complement is the least of its distances along the axes.
    Departure from the released code: distances are not truncated to integers, so that no tie goes
    to the later window.

    Args:
      window: (z, y, x) in voxels.
      anisotropy: length of a voxel along each axis, in units of y; the released code has (4, 1, 1).
    """
    axes = []
    for size, length in zip(window, anisotropy, strict=True):
        position = np.arange(size, dtype=np.float32)
        axes.append(length * np.minimum(position + 1, size - position))
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return np.minimum(np.minimum(z, y), x)


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


def member_probabilities(
    network: Callable[..., Any], members: Params, size: int, *, views: Views = "one"
) -> Callable[[np.ndarray], np.ndarray]:
    """All members' probabilities of a window in one compiled program.

    Args:
      network: ``(params, [b, z, y, x, 1]) -> (logits, out)``.
      members: stacked parameters, [k, ...].
      size: k.
      views: of the window that each member's probabilities are averaged over.

    Returns:
      A function of a window [z, y, x] that returns [k, z', y', x', c] float32.
    """
    population = Population(size)

    def one(params: Params, tile: jax.Array) -> jax.Array:
        def seen(image: jax.Array) -> jax.Array:
            logits = network(params, image[None, ..., None])[0][0]
            return jax.nn.softmax(jnp.asarray(logits, jnp.float32), axis=-1)

        return average_views(seen, tile, views=views)

    program = population.map(one, shared=(1,), name="prediction")
    placed = population.place(members)

    def probabilities(tile: np.ndarray) -> np.ndarray:
        return population.fetch(program(placed, population.replicate(tile)))

    return probabilities


def predict_volume(
    probabilities: Callable[[np.ndarray], np.ndarray],
    volume: np.ndarray,
    *,
    window: Sizes,
    output: Sizes,
    overlap: Sizes | None = None,
    anisotropy: tuple[float, float, float] = (4, 1, 1),
    blend: Blend = "centre",
    keep_probabilities: bool = False,
    progress: Callable[[Iterator[Any], int], Iterator[Any]] = lambda items, total: items,
) -> Prediction:
    """Label a volume by an ensemble.

    Args:
      probabilities: of a window, [z, y, x] -> [k, z', y', x', c].
      volume: [z, y, x] float32, standardised as the training images were.
      window: (z, y, x) that the network takes.
      output: (z', y', x') that it returns, centred in the window.
      overlap: voxels that neighbouring outputs share; a third of the output as released if None.
      anisotropy: voxel lengths in units of y, for the choice of the most central window.
      blend: ``centre`` takes a voxel from the window in which it is most central; ``gaussian`` the
        weighted mean of all windows that hold it (``tiles``), which keeps the probabilities of all
        members in memory for as many planes as a window has.
      keep_probabilities: keep the mean probabilities, 4 c bytes a voxel.
      progress: wraps the iterator of windows, given their number.

    Returns:
      The prediction; see ``Prediction``.

    Raises:
      ValueError: the output window is larger than the volume, or the input window reaches so far
        beyond it that one mirroring does not fill the border.
    """
    volume = np.asarray(volume)
    result: Prediction | None = None
    if blend == "gaussian":
        parts = _blended(probabilities, volume, window, output, overlap, progress)
    else:
        parts = _parts(probabilities, volume, window, output, overlap, anisotropy, progress)
    for place, better, shares in parts:
        if result is None:
            classes = shares.shape[-1] if keep_probabilities else 0
            result = _empty(volume.shape, len(shares), classes)
        _write(result, place, better, shares)
    assert result is not None
    return result


def mean_probabilities(
    probabilities: Callable[[np.ndarray], np.ndarray],
    volume: np.ndarray,
    *,
    window: Sizes,
    output: Sizes,
    overlap: Sizes | None = None,
    anisotropy: tuple[float, float, float] = (4, 1, 1),
    progress: Callable[[Iterator[Any], int], Iterator[Any]] = lambda items, total: items,
) -> np.ndarray:
    """The mean of the members' probabilities of a whole volume, [z, y, x, c] float32.

    For ensembles of networks that differ in architecture or window: what each says of the volume
    is averaged voxel by voxel. Takes 4 c bytes a voxel.

    Args:
      probabilities: of a window, [z, y, x] -> [k, z', y', x', c].
      volume, window, output, overlap, anisotropy, progress: as ``predict_volume`` takes them.

    Raises:
      ValueError: as ``predict_volume`` does.
    """
    volume = np.asarray(volume)
    result: np.ndarray | None = None
    parts = _parts(probabilities, volume, window, output, overlap, anisotropy, progress)
    for place, better, shares in parts:
        mean = shares.mean(0)
        if result is None:
            result = np.zeros((*volume.shape, mean.shape[-1]), np.float32)
        result[place] = np.where(better[..., None], mean, result[place])
    assert result is not None
    return result


def combine(volumes: Iterable[np.ndarray]) -> Prediction:
    """An ensemble's prediction from what each member says of the whole volume.

    Args:
      volumes: each member's probabilities, [z, y, x, c] float32, in the order in which ensembles
        grow; asked for one after another, so that two of them are in memory at a time.

    Returns:
      The prediction; see ``Prediction``.

    Raises:
      ValueError: there is no member.
    """
    total: np.ndarray | None = None
    members, cumulative = [], []
    for shares in volumes:
        total = shares.copy() if total is None else total + shares
        members.append(shares.argmax(-1).astype(np.uint8))
        cumulative.append(total.argmax(-1).astype(np.uint8))
    if total is None:
        raise ValueError("an ensemble of no members: expected at least one volume")
    return Prediction(
        labels=cumulative[-1].astype(np.int32),
        entropy=_entropy(total / len(members)).astype(np.float32),
        disagreement=np.mean(np.stack(members) != cumulative[-1], axis=0).astype(np.float32),
        cumulative=np.stack(cumulative),
        members=np.stack(members),
    )


def _entropy(mean: np.ndarray) -> np.ndarray:
    return -np.sum(mean * np.log(np.maximum(mean, 1e-30)), axis=-1) / np.log(mean.shape[-1])


def _parts(
    probabilities: Callable[[np.ndarray], np.ndarray],
    volume: np.ndarray,
    window: Sizes,
    output: Sizes,
    overlap: Sizes | None,
    anisotropy: tuple[float, float, float],
    progress: Callable[[Iterator[Any], int], Iterator[Any]],
) -> Iterator[tuple[tuple[slice, ...], np.ndarray, np.ndarray]]:
    """Window by window: its place, its voxels more central than any before, the probabilities."""
    check_windows(volume.shape, window, output)
    z, y, x = output
    overlap = (z // 3, y // 3, x // 3) if overlap is None else overlap
    corners = evaluation_corners(volume.shape, output, overlap)
    reach = np.zeros(volume.shape, np.float32)
    central = centrality(output, anisotropy=anisotropy)
    for corner in progress(iter(corners), len(corners)):
        shares = probabilities(input_tile(volume, corner, output, window))
        place = tuple(slice(int(c), int(c) + n) for c, n in zip(corner, output, strict=True))
        better = central > reach[place]
        reach[place] = np.maximum(reach[place], central)
        yield place, better, shares


def _blended(
    probabilities: Callable[[np.ndarray], np.ndarray],
    volume: np.ndarray,
    window: Sizes,
    output: Sizes,
    overlap: Sizes | None,
    progress: Callable[[Iterator[Any], int], Iterator[Any]],
) -> Iterator[tuple[tuple[slice, ...], np.ndarray, np.ndarray]]:
    """Plane by plane, once no window to come holds it: its place, and weighted means."""
    z, y, x = output
    overlap = (z // 3, y // 3, x // 3) if overlap is None else overlap
    grid = grid_of(volume.shape, window=window, output=output, overlap=overlap, blend="gaussian")
    everything = tuple((0, size) for size in volume.shape)
    indexes = grid.windows((everything[0], everything[1], everything[2]))
    sums: dict[int, np.ndarray] = {}
    whole = (slice(0, volume.shape[1]), slice(0, volume.shape[2]))
    all_better = np.ones((1, *volume.shape[1:]), bool)
    for index in progress(iter(indexes), len(indexes)):
        held = grid.held(index)
        for plane in sorted(plane for plane in sums if plane < held[0][0]):
            yield (slice(plane, plane + 1), *whole), all_better, sums.pop(plane)
        tile = grid.read(volume, grid.input_of(index)).astype(np.float32)
        shares = probabilities(tile) * grid.weights(index)[..., None]
        for depth, plane in enumerate(range(*held[0])):
            if plane not in sums:
                shape = (len(shares), 1, *volume.shape[1:], shares.shape[-1])
                sums[plane] = np.zeros(shape, np.float32)
            sums[plane][:, 0, slice(*held[1]), slice(*held[2])] += shares[:, depth]
    for plane in sorted(sums):
        yield (slice(plane, plane + 1), *whole), all_better, sums.pop(plane)


def _empty(shape: tuple[int, ...], members: int, classes: int) -> Prediction:
    return Prediction(
        labels=np.zeros(shape, np.int32),
        entropy=np.zeros(shape, np.float32),
        disagreement=np.zeros(shape, np.float32),
        cumulative=np.zeros((members, *shape), np.uint8),
        members=np.zeros((members, *shape), np.uint8),
        probabilities=np.zeros((*shape, classes), np.float32) if classes else None,
    )


def _write(result: Prediction, place: Any, better: np.ndarray, shares: np.ndarray) -> None:
    members = len(shares)
    own = shares.argmax(-1)
    counts = np.arange(1, members + 1, dtype=np.float32).reshape(-1, *[1] * (shares.ndim - 1))
    means = np.cumsum(shares, axis=0) / counts
    cumulative = means.argmax(-1)
    mean, labels = means[-1], cumulative[-1]
    entropy = _entropy(mean)
    for target, value in (
        (result.labels, labels),
        (result.entropy, entropy),
        (result.disagreement, np.mean(own != labels, axis=0)),
    ):
        target[place] = np.where(better, value, target[place])
    if result.probabilities is not None:
        held = result.probabilities[place]
        result.probabilities[place] = np.where(better[..., None], mean, held)
    for target, values in ((result.cumulative, cumulative), (result.members, own)):
        window = (slice(None), *place)
        target[window] = np.where(better, values, target[window])
