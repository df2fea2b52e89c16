"""Predictions of an ensemble over a whole volume in memory, by overlapping windows of one shape.

What the ensemble says of a voxel comes from the window in which that voxel is most central, as
released by Guay et al. (2021), or is blended. Everything that is kept is written voxel by voxel, so
that memory is that of the results, whatever the overlap.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from densejax.data.datasets import standardise
from densejax.data.windows import Sizes, check_windows, evaluation_corners, input_tile
from densejax.inference.tiles import Windowing, grid_of, whole

Probabilities = Callable[[np.ndarray], np.ndarray]
Progress = Callable[[Iterator[Any], int], Iterator[Any]]
# A window's place, its voxels that are better than any before, and the members' probabilities.
_Part = tuple[tuple[slice, ...], np.ndarray, np.ndarray]


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


def window_bar(name: str) -> Progress:
    """A bar on a terminal; in a log file, one line when the volume is labelled."""

    def bar(tiles: Iterator[Any], total: int) -> Iterator[Any]:
        shown, start = sys.stdout.isatty(), time.perf_counter()
        yield from tqdm(tiles, total=total, desc=f"label {name}", unit="window", disable=not shown)
        if not shown:
            seconds = time.perf_counter() - start
            print(f"labelled {name}: {total} windows in {seconds:.0f} s", flush=True)

    return bar


def predict_volume(
    probabilities: Probabilities,
    volume: np.ndarray,
    windowing: Windowing,
    *,
    standardised: bool = False,
    keep_probabilities: bool = False,
    progress: Progress = lambda items, total: items,
) -> Prediction:
    """Label a volume by an ensemble.

    Args:
      probabilities: of a window, [z, y, x] -> [k, z', y', x', c] (``member_probabilities``).
      volume: [z, y, x], grey levels; they are standardised as a whole, as for training.
      windowing: windows, overlap and blending. With ``gaussian``, the probabilities of all members
        are in memory for as many planes as a window has.
      standardised: the volume is standardised already, and float32.
      keep_probabilities: keep the mean probabilities, 4 c bytes a voxel.
      progress: wraps the iterator of windows, given their number (``window_bar``).

    Returns:
      The prediction; see ``Prediction``.

    Raises:
      ValueError: the output window is larger than the volume, or the input window reaches so far
        beyond it that one mirroring does not fill the border; or the volume is constant or not
        finite.
    """
    volume = np.asarray(volume)
    volume = volume if standardised else standardise(volume)
    result: Prediction | None = None
    parts = _blended if windowing.blend == "gaussian" else _parts
    for place, better, shares in parts(probabilities, volume, windowing, progress):
        if result is None:
            classes = shares.shape[-1] if keep_probabilities else 0
            result = _empty(volume.shape, len(shares), classes)
        _write(result, place, better, shares)
    assert result is not None
    return result


def combine(volumes: Iterable[np.ndarray]) -> Prediction:
    """An ensemble's prediction from what each member says of the whole volume.

    For networks that differ in architecture or window, each of which labels the volume for itself.

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
    probabilities: Probabilities, volume: np.ndarray, windowing: Windowing, progress: Progress
) -> Iterator[_Part]:
    """Window by window: its place, its voxels more central than any before, the probabilities."""
    window, output = windowing.window, windowing.output
    check_windows(volume.shape, window, output)
    corners = evaluation_corners(volume.shape, output, windowing.shared)
    reach = np.zeros(volume.shape, np.float32)
    central = centrality(output, anisotropy=windowing.anisotropy)
    for corner in progress(iter(corners), len(corners)):
        shares = probabilities(input_tile(volume, corner, output, window))
        place = tuple(slice(int(c), int(c) + n) for c, n in zip(corner, output, strict=True))
        better = central > reach[place]
        reach[place] = np.maximum(reach[place], central)
        yield place, better, shares


def _blended(
    probabilities: Probabilities, volume: np.ndarray, windowing: Windowing, progress: Progress
) -> Iterator[_Part]:
    """Plane by plane, once no window to come holds it: its place, and weighted means."""
    grid = grid_of(volume.shape, windowing)
    _, y, x = volume.shape
    indexes = grid.windows(whole(volume.shape))
    sums: dict[int, np.ndarray] = {}
    all_better = np.ones((1, y, x), bool)

    def done(plane: int) -> _Part:
        return (slice(plane, plane + 1), slice(0, y), slice(0, x)), all_better, sums.pop(plane)

    for index in progress(iter(indexes), len(indexes)):
        held = grid.held(index)
        yield from map(done, sorted(plane for plane in sums if plane < held[0][0]))
        tile = grid.read(volume, grid.input_of(index)).astype(np.float32)
        shares = probabilities(tile) * grid.weights(index)[..., None]
        for depth, plane in enumerate(range(*held[0])):
            if plane not in sums:
                sums[plane] = np.zeros((len(shares), 1, y, x, shares.shape[-1]), np.float32)
            sums[plane][:, 0, slice(*held[1]), slice(*held[2])] += shares[:, depth]
    yield from map(done, sorted(sums))


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
