"""A prediction's folder: what it is of, settled once; whether it fits; how far it is."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from densejax.inference.blocks import Blocks
from densejax.inference.outputs import Layout
from densejax.inference.stream import KEPT_BYTES
from densejax.inference.tiles import Box, Grid, Sizes
from densejax.io import check_same, free_bytes, read_json, write_once
from densejax.population import memory_limit

PREDICTION = "prediction.json"
# A pyramid whose levels are halved along two axes at first adds a third.
PYRAMID = 4 / 3
# Labels and maps of doubt shrink when they are compressed, by a factor that only the result tells;
# a prediction whose every byte shrank by this one would be a lucky one.
LUCKY_COMPRESSION = 4
# Interpreter, libraries, compiler.
BASE_BYTES = 1.2e9


def read_prediction(folder: str | Path) -> dict[str, Any]:
    """What a prediction's folder is of.

    Raises:
      FileNotFoundError: there is no prediction in it.
    """
    path = Path(folder) / PREDICTION
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; expected the folder of a prediction (experiments.predict)"
        )
    return read_json(path)


def settle_prediction(
    folder: Path, facts: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]
) -> dict[str, Any]:
    """Settle what a folder is a prediction of: by this process, or by whoever came first.

    Args:
      folder: of the prediction.
      facts: what this process is asked for; it must be what the folder holds.
      measure: finds what the first process decides for all, such as the grey levels' mean.

    Returns:
      Facts and measurements, as the folder holds them.

    Raises:
      ValueError: the folder is a prediction of something else; what differs is named.
    """
    path = folder / PREDICTION
    if path.exists():
        held = read_prediction(folder)
    else:
        held = write_once(path, {**facts, **measure()})
    settled = {name: held[name] for name in facts if name in held}
    check_same(path, settled, facts, what="prediction")
    return held


def memory_needed(
    grid: Grid, blocks: Blocks, layout: Layout, *, itemsize: int, tile_bytes: int
) -> int:
    """Bytes of host memory that a stream takes, about; independent of the volume's size.

    Args:
      grid: windows.
      blocks: of the output.
      layout: of the output.
      itemsize: bytes of a voxel of the volume.
      tile_bytes: what the compiled program takes on the host, 0 on an accelerator.
    """
    voxels = int(np.prod(blocks.largest(), dtype=np.int64))
    read = itemsize
    for block, axis, window in zip(blocks.largest(), grid.axes, grid.window, strict=True):
        # The windows that a block needs reach over its faces, and beyond the volume.
        read *= min(block + 2 * window, axis.size + 2 * (window - axis.window))
    classes = len(layout.class_names)
    maps = 3 + (classes if layout.probabilities else 0)
    if grid.blend == "gaussian":
        maps += 4 * (classes + 1)
    # Two regions read, and one block computed while the one before is compressed and written.
    return int(BASE_BYTES + tile_bytes + 2 * read + 2.5 * voxels * maps + KEPT_BYTES)


def check_room(folder: Path, layout: Layout, *, memory: int, left: float = 1.0) -> str:
    """Refuse what cannot fit in memory or on the disk.

    Args:
      folder: of the prediction.
      layout: of what is written.
      memory: bytes that are needed, as ``memory_needed`` says.
      left: share of the blocks that is still to do.

    Returns:
      A line that says what is needed and what there is.

    Raises:
      MemoryError: the memory does not suffice; both sizes are named.
      OSError: nor would the disk if all shrank to a quarter.
    """
    have = memory_limit(jax.devices("cpu")[:1])
    disk = int(layout.nbytes() * PYRAMID * left)
    free = free_bytes(folder)
    if memory > have:
        raise MemoryError(
            f"the prediction needs about {_size(memory)} of memory, and {_size(have)} are "
            "available (control group included): choose a smaller --window or fewer --devices"
        )
    if disk / LUCKY_COMPRESSION > free:
        raise OSError(
            f"{folder}: the prediction takes up to {_size(disk)}, {_size(disk // 4)} if it is "
            f"compressed to a quarter, and {_size(free)} are free on its disk"
        )
    warning = "" if disk <= free else ", which compression must make up for"
    return (
        f"memory about {_size(memory)} of {_size(have)}; disk at most {_size(disk)}, free "
        f"{_size(free)}{warning}"
    )


class Progress:
    """Lines, or one line on a terminal, that say how far all processes are."""

    def __init__(self, folder: Path, *, voxels: int, done: int, every_s: float = 10.0) -> None:
        """Begin.

        Args:
          folder: of the prediction, whose size on disk is shown.
          voxels: of the whole prediction.
          done: of them, before this process began.
          every_s: seconds between lines of a log file.
        """
        self.folder, self.voxels, self.own, self.before = folder, voxels, 0, done
        self._start = self._last = time.perf_counter()
        self._every = 1.0 if sys.stdout.isatty() else every_s
        self._disk, self._disk_again = 0, 0.0

    def block(self, record: Mapping[str, Any]) -> None:
        """A block of this process is done."""
        self.own += record["voxels"]
        now = time.perf_counter()
        if now - self._last < self._every:
            return
        self._last = now
        done = min(self.before + self.own, self.voxels)
        rate = self.own / (now - self._start)
        end = "\r" if sys.stdout.isatty() else "\n"
        print(
            f"voxels {done:,} of {self.voxels:,} ({100 * done / self.voxels:.1f} %)  "
            f"{rate / 1e6:.2f} Mvox/s  ETA {duration((self.voxels - done) / rate)}  "
            f"disk {_size(self._used(now))}   ",
            end=end,
            flush=True,
        )

    def _used(self, now: float) -> int:
        # Many small files take long to add up: seldom enough to cost a hundredth of the time.
        if now >= self._disk_again:
            self._disk = folder_bytes(self.folder)
            self._disk_again = now + 100 * (time.perf_counter() - now)
        return self._disk


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder, as far as they stay while they are counted."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size
        except FileNotFoundError:
            continue
    return total


def duration(seconds: float) -> str:
    """A time as ``41 s``, ``12m05s`` or ``3h20m``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def summarise(records: Mapping[str, Mapping[str, Any]], class_names: Sequence[str]) -> dict:
    """Numbers of a whole prediction from those of its blocks.

    Returns:
      ``voxels``, ``not_predicted``, ``classes`` (voxels by name), the means ``entropy`` and
      ``disagreement`` over predicted voxels, ``windows``, and ``unreadable`` (messages by block).
    """
    counts = zip(*(record["classes"] for record in records.values()), strict=True)
    classes = [sum(count) for count in counts]
    predicted = sum(classes)
    voxels = sum(r["voxels"] for r in records.values())
    return {
        "voxels": voxels,
        "not_predicted": voxels - predicted,
        "classes": {n: count for n, count in zip(class_names, classes, strict=True)},
        **{
            kind: sum(r[kind] for r in records.values()) / max(predicted, 1)
            for kind in ("entropy", "disagreement")
        },
        "windows": sum(r.get("windows", 0) for r in records.values()),
        "unreadable": {n: r["unreadable"] for n, r in records.items() if "unreadable" in r},
    }


def parse_part(text: str, shape: Sizes) -> Box:
    """The box that ``z0:z1,y0:y1,x0:x1`` names; an end that is left out is the volume's.

    Raises:
      ValueError: it is no box inside the volume.
    """
    ends = [entry.strip().split(":") for entry in text.split(",")]
    wrong = ValueError(
        f"part {text!r} of a volume of shape {shape}; expected z0:z1,y0:y1,x0:x1 inside it, such "
        "as :,0:512,0:512"
    )
    if len(ends) != 3 or any(len(pair) != 2 for pair in ends):
        raise wrong
    try:
        z, y, x = (
            (int(low or 0), int(high or size))
            for (low, high), size in zip(ends, shape, strict=True)
        )
    except ValueError:
        raise wrong from None
    inside = zip((z, y, x), shape, strict=True)
    if any(not 0 <= low < high <= size for (low, high), size in inside):
        raise wrong
    return z, y, x


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
