"""A prediction's folder: what it is of, its images, how far it is, and its end."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from densejax.data import ngff
from densejax.data.blocks import box_text
from densejax.data.ome_zarr import create_image, open_level
from densejax.data.pyramid import build_pyramid
from densejax.inference.members import NOT_PREDICTED
from densejax.inference.tiles import Box, Sizes, slices
from densejax.io import check_same, free_bytes, read_json, write_json, write_once
from densejax.lease import Leases

PREDICTION, SUMMARY, PICTURE = "prediction.json", "summary.json", "orthoslices.png"
KINDS = {
    "labels": "class number; 255 is not predicted",
    "entropy": "entropy of the mean probabilities over log(c), times 255",
    "disagreement": "share of members whose own label is another, times 255",
    "probabilities": "mean probability of each class, times 255",
}


@dataclass(frozen=True)
class Layout:
    """How a prediction's images are stored.

    Attributes:
      shape: (z, y, x) voxels.
      chunk: (z, y, x) voxels.
      voxel_nm: (z, y, x).
      offset: (z, y, x) voxels from the origin of the volume.
      class_names: c names.
      probabilities: whether they are kept.
      version: of NGFF, ``0.5`` or ``0.4``.
      colours: ``#RRGGBB`` for each class, for viewers; by default the format chooses hues.
    """

    shape: Sizes
    chunk: Sizes
    voxel_nm: tuple[float, float, float]
    offset: Sizes
    class_names: tuple[str, ...]
    probabilities: bool = False
    version: ngff.Version = "0.5"
    colours: tuple[str, ...] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the images, each in a folder ``NAME.zarr``."""
        return tuple(name for name in KINDS if name != "probabilities" or self.probabilities)

    def nbytes(self) -> int:
        """Bytes of the finest levels, uncompressed."""
        maps = len(self.names) + (len(self.class_names) - 1 if self.probabilities else 0)
        return maps * int(np.prod(self.shape, dtype=np.int64))


class Outputs:
    """A prediction's images, open for writing."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        """Make the images, or accept the same ones.

        Raises:
          FileExistsError: the folder holds other images.
          OSError: they cannot be made.
        """
        self.folder, self.layout = folder, layout
        for name in layout.names:
            _create(folder, name, layout)
        self._stores: Mapping[str, Any] = {
            name: open_level(folder / f"{name}.zarr", write=True) for name in layout.names
        }

    def write(self, inside: Box, maps: Mapping[str, np.ndarray]) -> None:
        """Write a block; back when every chunk of it is on disk.

        Args:
          inside: the block, counted from the first voxel of the images, on edges of chunks.
          maps: uint8 [z, y, x] by name, and ``probabilities`` [c, z, y, x].

        Raises:
          OSError: it cannot be written (disk full, no permission); what is there stays valid.
        """
        place = slices(inside)
        waiting = [
            (name, self._stores[name][(..., *place)].write(maps[name]))
            for name in self.layout.names
        ]
        for name, future in waiting:
            try:
                future.result()
            except Exception as error:  # tensorstore raises its own kinds, by cause
                free = free_bytes(self.folder)
                raise OSError(
                    f"{self.folder / name}.zarr: block {box_text(inside)} could not be written "
                    f"({free / 1e6:.1f} MB free on its disk): {error}. What is done is kept; the "
                    "same command goes on when there is room"
                ) from error

    def blank(self, inside: Box) -> dict[str, np.ndarray]:
        """The maps of a block that cannot be predicted."""
        size = tuple(high - low for low, high in inside)
        maps = {name: np.zeros(size, np.uint8) for name in self.layout.names}
        maps["labels"][...] = NOT_PREDICTED
        if self.layout.probabilities:
            maps["probabilities"] = np.zeros((len(self.layout.class_names), *size), np.uint8)
        return maps


def _create(folder: Path, name: str, layout: Layout) -> None:
    channels = name == "probabilities"
    meaning: dict[str, Any] = {"value": KINDS[name]}
    if name == "labels":
        meaning["not_predicted"] = NOT_PREDICTED
    create_image(
        folder / f"{name}.zarr",
        shape=[len(layout.class_names), *layout.shape] if channels else layout.shape,
        dtype=np.uint8,
        chunks=layout.chunk,
        voxel_nm=layout.voxel_nm,
        version=layout.version,
        kind="labels" if name == "labels" else "image",
        offset=layout.offset,
        channel_names=layout.class_names if channels else None,
        class_names=layout.class_names if name == "labels" else None,
        colours=layout.colours if name == "labels" or channels else None,
        attributes=meaning,
    )


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


class Progress:
    """Lines, or one line on a terminal, that say how far all processes are."""

    def __init__(self, folder: Path, *, voxels: int, done: int, every_s: float = 10.0) -> None:
        """Begin on a folder of so many voxels, some done before; lines of a log file are rare."""
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
            f"disk {size_text(self._used(now))}   ",
            end=end,
            flush=True,
        )

    def _used(self, now: float) -> int:
        # Many small files take long to add up: seldom enough to cost a hundredth of the time.
        if now >= self._disk_again:
            self._disk = _folder_bytes(self.folder)
            self._disk_again = now + 100 * (time.perf_counter() - now)
        return self._disk


def _folder_bytes(folder: Path) -> int:
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


def complete(
    folder: Path, layout: Layout, summary: Mapping[str, Any], draw: Callable[[Path], None]
) -> tuple[Path, ...]:
    """Add pyramids, numbers and a picture, by one process while the others wait; the files."""
    images = [folder / f"{name}.zarr" for name in layout.names]
    with Leases(folder / "blocks" / "end", ["end"]) as leases:
        while not leases.done():
            name = leases.take()
            if name is None:
                time.sleep(0.5)
                continue
            start = time.perf_counter()
            for image in images:
                build_pyramid(image)
            print(f"pyramids     {duration(time.perf_counter() - start)}", flush=True)
            write_json(folder / SUMMARY, dict(summary), indent=2)
            draw(folder / PICTURE)
            leases.finish(name, {})
    return (*images, folder / SUMMARY, folder / PICTURE)


def size_text(count: float) -> str:
    """Bytes as ``1.20 GB`` or ``3.4 MB``."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
