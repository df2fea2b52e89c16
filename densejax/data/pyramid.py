"""Coarser levels of an OME-Zarr image, of any size, in bounded memory, killed and continued.

Each level is made from the one before it, block by block, by threads. A block is written before it
is noted as done and the level is listed in the image's metadata when it is whole, so a build that
was killed goes on where it stopped, and what it leaves does not depend on where that was.

Labels are halved by majority, intensities by the mean. A cell is the two voxels of each halved axis
(eight, four or two voxels together); at the end of an axis of odd length it has one layer only.
Voxels outside the array never count.
"""

import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from densejax.data import ngff
from densejax.data.blocks import Slices, cut_blocks
from densejax.data.formats_chunked import read_box
from densejax.data.ome_zarr import create_array, open_array, read_attributes, update_attributes
from densejax.io import write_text

# Voxels of the finer level that a thread holds at once: 17 MB of labels, 67 MB of objects.
PART_VOXELS = 2**24
DONE = ".done"  # the blocks that are written, while a level is being made


def build_pyramid(
    path: str | Path,
    *,
    threads: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Add all coarser levels to an image, or those that are missing.

    Label images (``image-label`` in their metadata) and booleans are halved by majority, ties to
    the lowest label; voxels of the label ``not_predicted`` (in the attributes) have no vote. Other
    images are halved by the mean. Axes are halved as ``pyramid_factors`` says.

    Args:
        path: the image's folder, its level 0 complete.
        threads: blocks made at once; each holds about ``PART_VOXELS`` voxels a few times over,
            and a shard where there are any.
        progress: called with the voxels of finer levels that are done and how many there are, from
            the threads.

    Returns:
        The folders of all levels, the finest first.

    Raises:
        FileNotFoundError: there is no OME-Zarr image.
        ValueError: a block of the finer level cannot be read; the message names it.
    """
    path = Path(path)
    metadata = read_attributes(path)
    multiscale = metadata["multiscales"][0]
    datasets = multiscale["datasets"]
    finest = open_array(path / datasets[0]["path"])
    voxel_nm, translation = ngff.scale_and_translation(datasets[0])
    offset = [t / v for t, v in zip(translation, voxel_nm, strict=True)]
    factors = pyramid_factors(finest.shape, _chunk(finest), voxel_nm)
    counter = _Counter(progress, [_level_shape(finest.shape, f) for f in factors[:-1]])
    labels = "image-label" in metadata or finest.dtype.numpy_dtype.kind == "b"
    ignored = metadata[ngff.OURS].get("not_predicted") if labels else None

    def halve(block: np.ndarray, steps: Sequence[int]) -> np.ndarray:
        if labels:
            return halve_labels(block, steps, not_counted=ignored)
        return halve_mean(block, steps)

    for number in range(1, len(factors)):
        source, target = path / datasets[number - 1]["path"], path / str(number)
        if number >= len(datasets):
            steps = [a // b for a, b in zip(factors[number], factors[number - 1], strict=True)]
            _make_level(source, target, steps, halve, threads, counter)
            added = ngff.level(
                number, voxel_nm, offset, factors=factors[number], rank=len(finest.shape)
            )
            datasets.append(added)
            multiscale["type"] = "majority" if labels else "mean"
            update_attributes(path, metadata)
            (target / DONE).unlink()
        else:
            # A kill may have come between the metadata and this.
            (target / DONE).unlink(missing_ok=True)
            counter.add(open_array(source).size)
    return [path / dataset["path"] for dataset in datasets]


def pyramid_factors(
    shape: Sequence[int], chunk: Sequence[int], voxel_nm: Sequence[float]
) -> list[tuple[int, int, int]]:
    """Choose the levels of a pyramid.

    Axes whose voxels are the finest are halved, until voxels are as near to cubes as halving brings
    them, then all axes, until one chunk holds the level. An axis of one voxel stays.

    Args:
        shape: of level 0, [z, y, x] or [c, z, y, x].
        chunk: likewise.
        voxel_nm: (z, y, x), nm.

    Returns:
        Voxels of level 0 along z, y, x for one of each level; (1, 1, 1) first.
    """
    sizes, held = np.array(shape[-3:]), np.array(chunk[-3:])
    factors = [(1, 1, 1)]
    while (_reduced(sizes, factors[-1]) > held).any():
        now = np.array(factors[-1])
        many = _reduced(sizes, now) > 1
        width = np.where(many, np.asarray(voxel_nm) * now, np.inf)
        # Half as many again as the finest or less: halved with it, ratios stay below 2 ** 0.5.
        z, y, x = (int(f) for f in now * np.where(width < width.min() * 2**0.5, 2, 1))
        factors.append((z, y, x))
    return factors


def halve_labels(
    labels: np.ndarray, steps: Sequence[int], *, not_counted: int | None = None
) -> np.ndarray:
    """The most frequent label of each cell; the lowest of those that tie.

    Args:
        labels: boolean or integer, any number of axes.
        steps: 2 for an axis to halve and 1 for another, one for each axis.
        not_counted: a label without a vote, such as that of voxels which were not predicted; a
            cell gets it where no voxel has another.

    Returns:
        As ``labels``; a halved axis of n has (n + 1) // 2.
    """
    voxels = _cells(labels, steps)
    shape = voxels[0].shape
    flat = [part.reshape(-1) for part in voxels]
    found = flat[0].copy()
    differs = np.zeros(found.shape, bool)
    for part in flat[1:]:
        differs |= part != found
    # Objects are larger than voxels: few cells hold more than one label.
    mixed = np.flatnonzero(differs)
    if mixed.size:
        found[mixed] = _majority([part[mixed] for part in flat], not_counted)
    return found.reshape(shape)


def halve_mean(values: np.ndarray, steps: Sequence[int]) -> np.ndarray:
    """The mean of each cell; of integers, rounded to the nearest, a half to the even number.

    Args:
        values: integer or float, any number of axes.
        steps: 2 for an axis to halve and 1 for another, one for each axis.

    Returns:
        As ``values``; a halved axis of n has (n + 1) // 2.
    """
    if values.dtype.kind != "f":
        return ts.downsample(ts.array(values), list(steps), "mean").read().result()
    # In double precision and in this order, which tensorstore's mean of floats is not.
    voxels = _cells(values, steps)
    total = np.zeros(voxels[0].shape, np.float64)
    for part in voxels:
        total += part
    return (total / len(voxels)).astype(values.dtype)


def _cells(array: np.ndarray, steps: Sequence[int]) -> list[np.ndarray]:
    """Return the cells' first voxels, their second ones, and so on, each as an array."""
    if len(steps) != array.ndim or not set(steps) <= {1, 2}:
        raise ValueError(f"steps {tuple(steps)}: expected 1 or 2 for each of {array.ndim} axes")
    odd = [(0, (-size) % step) for size, step in zip(array.shape, steps, strict=True)]
    if any(after for _, after in odd):
        # To repeat the last layer doubles the votes and the weights of all voxels of a cell alike.
        array = np.pad(array, odd, mode="edge")
    starts = itertools.product(*(range(step) for step in steps))
    return [
        np.ascontiguousarray(
            array[tuple(slice(a, None, step) for a, step in zip(start, steps, strict=True))]
        )
        for start in starts
    ]


def _majority(voxels: list[np.ndarray], not_counted: int | None) -> np.ndarray:
    """Return the most frequent of several values, place by place, the lowest of those that tie."""
    best = voxels[0].copy()
    most = np.zeros(best.shape, np.int8)
    for value in voxels:
        votes = np.zeros(best.shape, np.int8)
        for other in voxels:
            votes += other == value
        if not_counted is not None:
            votes[value == not_counted] = 0
        better = (votes > most) | ((votes == most) & (value < best))
        best[better], most[better] = value[better], votes[better]
    return best


class _Counter:
    """Voxels done by all threads together."""

    def __init__(
        self, report: Callable[[int, int], None] | None, shapes: Sequence[Sequence[int]]
    ) -> None:
        self._report, self._lock, self._done = report, threading.Lock(), 0
        self._total = sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes)

    def add(self, voxels: int) -> None:
        with self._lock:
            self._done += voxels
            if self._report is not None:
                self._report(self._done, self._total)


def _make_level(
    finer: Path,
    folder: Path,
    steps: Sequence[int],
    halve: Callable[[np.ndarray, Sequence[int]], np.ndarray],
    threads: int,
    counter: _Counter,
) -> None:
    """Make one level from the one before it, or the blocks of it that are missing."""
    source = open_array(finer)
    steps = [1] * (source.rank - 3) + list(steps)
    create_array(
        folder, source, shape=[-(-n // s) for n, s in zip(source.shape, steps, strict=True)]
    )
    target = open_array(folder, write=True)
    layout = target.chunk_layout.write_chunk.shape or target.shape
    grid = [int(size or whole) for size, whole in zip(layout, target.shape, strict=True)]
    blocks = cut_blocks(target.shape, grid, voxels=PART_VOXELS // int(np.prod(steps)))
    log = folder / DONE
    done = _read_log(log)
    lock = threading.Lock()

    def make(number: int) -> None:
        box = blocks[number]
        # By its box: another division into blocks (other memory, another version) does them again.
        name = ",".join(f"{side.start}:{side.stop}" for side in box)
        if name not in done:
            _write_block(source, target, box, steps, halve)
            with lock, log.open("a") as file:
                file.write(f"{name}\n")
        inner = _finer(box, steps, source.shape)
        counter.add(int(np.prod([s.stop - s.start for s in inner], dtype=np.int64)))

    log.touch()
    with ThreadPoolExecutor(threads) as pool:
        waiting = [pool.submit(make, number) for number in range(len(blocks))]
        try:
            for future in waiting:
                future.result()
        finally:
            for future in waiting:
                future.cancel()


def _read_log(log: Path) -> set[str]:
    """Return the boxes noted as done; a line that a kill cut short has no end and is dropped."""
    if not log.exists():
        return set()
    text = log.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_text(log, whole)
    return set(whole.split())


def _write_block(
    source: ts.TensorStore,
    target: ts.TensorStore,
    box: Slices,
    steps: Sequence[int],
    halve: Callable[[np.ndarray, Sequence[int]], np.ndarray],
) -> None:
    """Halve what lies under one block and write it; a shard is written once, read in parts."""
    shape = [s.stop - s.start for s in box]
    found = np.empty(shape, target.dtype.numpy_dtype)
    name: Any = source.kvstore.url if source.kvstore is not None else "array"
    chunk = _chunk(target)
    for part in cut_blocks(shape, chunk, voxels=PART_VOXELS // int(np.prod(steps))):
        place = tuple(
            slice(b.start + p.start, b.start + p.stop) for b, p in zip(box, part, strict=True)
        )
        inner = _finer(place, steps, source.shape)
        found[part] = halve(read_box(source, inner, name=name), steps)
    target[box].write(found).result()


def _finer(box: Slices, steps: Sequence[int], shape: Sequence[int]) -> Slices:
    """Return the box of the finer level that lies under a box of the coarser one."""
    return tuple(
        slice(s.start * step, min(s.stop * step, size))
        for s, step, size in zip(box, steps, shape, strict=True)
    )


def _chunk(store: ts.TensorStore) -> list[int]:
    """Return the edges of the chunk that is read as one, along all axes."""
    read = store.chunk_layout.read_chunk.shape or store.shape
    return [int(size or whole) for size, whole in zip(read, store.shape, strict=True)]


def _level_shape(shape: Sequence[int], factors: Sequence[int]) -> list[int]:
    return [*shape[:-3], *(int(n) for n in _reduced(np.array(shape[-3:]), factors))]


def _reduced(sizes: np.ndarray, factors: Sequence[int] | np.ndarray) -> np.ndarray:
    return -(-sizes // np.asarray(factors))
