"""Volumes walked through in blocks: several read ahead by threads, each result kept on disk.

What a block came to is a few arrays, written to a file by one rename. A process that is killed and
started again reads those files and does the blocks that are missing, and no block is counted twice.
"""

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from densejax.data.formats import Box
from densejax.io import read_npz, write_npz
from densejax.population import host_cores

Tables = dict[str, np.ndarray]

BLOCK_VOXELS = 2**23
LARGEST_CHUNK = 2**26  # voxels; above it a chunk is read more than once rather than held whole
AT_ONCE = 2**27  # voxels of all blocks in work together: a few gigabytes at most
LINE_SECONDS = 30.0  # between two lines of progress where there is no terminal


class BlockProgress:
    """Voxels done, rate and time left: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, voxels: int, what: str) -> None:
        """Start counting towards ``voxels``; ``what`` is done to them, such as ``compare``."""
        self._total, self._what = voxels, what
        self._done = self._before = 0
        self._start = self._last = time.monotonic()
        self._bar: tqdm | None = None
        if sys.stdout.isatty():
            self._bar = tqdm(total=voxels, desc=what, unit="voxel", unit_scale=True)

    def update(self, voxels: int, *, before: bool = False) -> None:
        """So many more; ``before`` are those that an earlier start had done."""
        self._done += voxels
        self._before += voxels if before else 0
        if self._bar is not None:
            self._bar.update(voxels)
        elif time.monotonic() - self._last > LINE_SECONDS:
            self._last = time.monotonic()
            self._say(f"ETA {(self._total - self._done) / max(self._rate(), 1e-9):.0f} s")

    def close(self) -> None:
        """All done."""
        if self._bar is not None:
            self._bar.close()
        else:
            self._say(f"{time.monotonic() - self._start:.1f} s")

    def _rate(self) -> float:
        return (self._done - self._before) / max(time.monotonic() - self._start, 1e-9)

    def _say(self, end: str) -> None:
        print(
            f"{self._what}: {self._done / 1e6:,.1f} of {self._total / 1e6:,.1f} Mvoxel  "
            f"{self._rate() / 1e6:.1f} Mvoxel/s  {end}",
            flush=True,
        )


def block_boxes(
    shape: Sequence[int],
    *,
    chunks: Sequence[Sequence[int]] = (),
    origin: Sequence[int] = (0, 0, 0),
    voxels: int = BLOCK_VOXELS,
) -> list[Box]:
    """Cut a volume into boxes that lie along the chunks of what is read.

    A box is the largest chunk of each axis, and as many of them along x, then y, then z as fit.

    Args:
      shape: (z, y, x), voxels.
      chunks: of each volume that is read, (z, y, x).
      origin: a voxel (z, y, x) of the chunks' own grid at which the volume begins.
      voxels: of a box, about; a chunk beyond ``LARGEST_CHUNK`` is halved until below.

    Returns:
      Boxes that cover every voxel once, z slowest.
    """
    step = [max([1, *(chunk[axis] for chunk in chunks)]) for axis in range(3)]
    while math.prod(step) > LARGEST_CHUNK:
        widest = step.index(max(step))
        step[widest] = -(-step[widest] // 2)
    for axis in (2, 1, 0):
        others = math.prod(step) // step[axis]
        fitting = max(1, voxels // (others * step[axis]))
        step[axis] *= min(fitting, -(-shape[axis] // step[axis]))
    first = [-(start % size) for start, size in zip(origin, step, strict=True)]
    cuts = [
        [slice(max(0, low), min(low + size, end)) for low in range(begin, end, size)]
        for begin, size, end in zip(first, step, shape, strict=True)
    ]
    return [(z, y, x) for z in cuts[0] for y in cuts[1] for x in cuts[2]]


def run_blocks(
    boxes: Sequence[Box],
    work: Callable[[Box], Tables],
    *,
    what: str,
    folder: Path | None = None,
    threads: int = 0,
) -> Iterator[Tables]:
    """Do the work of every block, several at once, and yield the results in the order of blocks.

    Args:
      boxes: the blocks.
      work: box -> arrays by name; called from threads.
      what: is done, for the progress.
      folder: where results are kept by block number; those found there are not computed again.
      threads: 0 is one a core.

    Yields:
      What ``work`` returned.
    """
    sizes = [_box_voxels(box) for box in boxes]
    threads = threads or host_cores()
    threads = max(1, min(threads, AT_ONCE // max(sizes)))
    progress = BlockProgress(sum(sizes), what)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)

    def one(number: int) -> tuple[Tables, bool]:
        file = None if folder is None else folder / f"{number:06d}.npz"
        if file is not None and file.is_file():
            return read_npz(file), True
        tables = work(boxes[number])
        if file is not None:
            write_npz(file, tables, durable=True)
        return tables, False

    waiting: deque[tuple[int, Future[tuple[Tables, bool]]]] = deque()

    def settle() -> Tables:
        number, future = waiting.popleft()
        tables, before = future.result()
        progress.update(sizes[number], before=before)
        return tables

    with ThreadPoolExecutor(threads) as pool:
        try:
            for number in range(len(boxes)):
                waiting.append((number, pool.submit(one, number)))
                if len(waiting) > threads + 1:
                    yield settle()
            while waiting:
                yield settle()
        finally:
            for _, future in waiting:
                future.cancel()
    progress.close()


def _box_voxels(box: Box) -> int:
    """Voxels of a box."""
    return math.prod(side.stop - side.start for side in box)


def box_name(box: Box) -> str:
    """A box for messages: ``z 0:16, y 0:512, x 0:512``."""
    return ", ".join(f"{axis} {s.start}:{s.stop}" for axis, s in zip("zyx", box, strict=True))
