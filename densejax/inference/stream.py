"""A prediction as a stream: blocks are read ahead, computed, and written behind.

Memory is that of a few blocks whatever the volume's size: the one whose input is being read, the
one being computed, the one being written. A block is computed when the one before it is on disk and
marked done, so that a kill loses the work of one block and what was begun of the next.
"""

import collections
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from densejax.data.blocks import box_text
from densejax.data.formats import Patchy
from densejax.inference.blocks import Blocks
from densejax.inference.members import NOT_PREDICTED, maps_of
from densejax.inference.tiles import Box, Grid, Index, clip, corner, sizes, slices
from densejax.lease import Leases

Maps = dict[str, np.ndarray]

# Windows that reach into blocks still to come are kept, up to so many bytes.
KEPT_BYTES = 2**28
# Calls that the device has waiting: one computes while the next is cut and sent.
IN_FLIGHT = 2
# How long to wait before looking again whether another process has left a block.
POLL_S = 0.5


class Tiles(Protocol):
    """What evaluates tiles: ``members.Ensemble``, or something that costs nothing."""

    @property
    def plan(self) -> Any:
        """Has ``tiles``, the number of tiles of one call."""

    def start(self, tiles: Sequence[np.ndarray]) -> Any:
        """Send tiles off."""

    def finish(self, started: Any) -> list[Maps]:
        """Wait for them."""


class Sink(Protocol):
    """What takes blocks: ``outputs.Outputs``."""

    def write(self, inside: Box, maps: Mapping[str, np.ndarray]) -> None:
        """Write a block; back when it is on disk."""

    def blank(self, inside: Box) -> Maps:
        """The maps of a block that cannot be predicted."""


@dataclass
class Clock:
    """Where the wall time of a stream went, in seconds.

    Attributes:
      wall: from first to last.
      idle: while no tile was with the devices, whatever the reason.
      reading: of it, waiting for a block's input.
      writing: of it, waiting for the block before to be on disk.
      waiting: of it, while other processes had the last blocks.
      windows: that were computed.
      kept: that were needed again and still known.
    """

    wall: float = 0.0
    idle: float = 0.0
    reading: float = 0.0
    writing: float = 0.0
    waiting: float = 0.0
    windows: int = 0
    kept: int = 0


@dataclass
class Stream:
    """One process's share of a prediction.

    Attributes:
      array: the volume, [z, y, x], sliced and read where it is.
      grid: windows of the volume.
      blocks: of the output.
      tiles: evaluates windows.
      sink: takes blocks.
      leases: who works on which block; its names are the blocks' in their order.
      probabilities: keep them where windows are blended.
      skip_unreadable: what would be predicted from voxels that cannot be read is left as not
        predicted, and the stream goes on.
      report: told after each block: the record of it.
    """

    array: Any
    grid: Grid
    blocks: Blocks
    tiles: Tiles
    sink: Sink
    leases: Leases
    classes: int
    probabilities: bool = False
    skip_unreadable: bool = False
    report: Callable[[Mapping[str, Any]], None] = lambda record: None
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self._kept: collections.OrderedDict[Index, Maps] = collections.OrderedDict()
        self._kept_bytes = 0
        self._written: Future | None = None

    def run(self) -> None:
        """Work until every block is done, by whomever.

        Raises:
          ValueError: the input of a block cannot be read; the message names it.
          OSError: a block cannot be written.
        """
        begin = time.perf_counter()
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            ahead = self._ahead(reader)
            while ahead is not None or len(self.leases.done()) < len(self.blocks):
                if ahead is None:
                    self._last_blocks()
                    ahead = self._ahead(reader)
                    continue
                name, reading = ahead
                ahead = self._ahead(reader)
                block, record = self._predict(int(name), reading)
                self._settle(time.perf_counter())
                self._written = writer.submit(self._write, name, block, record)
            self._settle(time.perf_counter())
        self.clock.wall += time.perf_counter() - begin

    def _ahead(self, reader: ThreadPoolExecutor) -> tuple[str, Future] | None:
        name = self.leases.take()
        return None if name is None else (name, reader.submit(self._read, int(name)))

    def _read(self, number: int) -> tuple[np.ndarray, list[tuple[Box, str]]]:
        """The input of a block, and the boxes of it that cannot be read."""
        region = self.grid.region(self.blocks.box(number))
        if not self.skip_unreadable:
            return self.grid.read(self.array, region), []
        array = Patchy(self.array)
        found = self.grid.read(array, region)
        return found, [(_box_of(box), why) for box, why in array.unread]

    def _settle(self, idle_from: float | None) -> None:
        """Wait for the block before to be on disk; idle where no tile is with the devices."""
        if self._written is not None:
            self._written.result()
            self._written = None
        if idle_from is not None:
            self._lost("writing", idle_from)

    def _last_blocks(self) -> None:
        """Nothing is left to begin: wait for the own block, or else for other processes."""
        start = time.perf_counter()
        if self._written is not None:
            self._settle(start)
            return
        time.sleep(POLL_S)
        self._lost("waiting", start)

    def _lost(self, what: str, start: float) -> None:
        seconds = time.perf_counter() - start
        setattr(self.clock, what, getattr(self.clock, what) + seconds)
        self.clock.idle += seconds

    def _predict(self, number: int, reading: Future) -> tuple["_Block", dict[str, Any]]:
        """A block, and what is to be known of it."""
        start = time.perf_counter()
        record: dict[str, Any] = {"box": self.blocks.box(number)}
        region, unread = reading.result()
        self._lost("reading", start)
        begin, computed = time.perf_counter(), self.clock.windows
        blank = self.sink.blank(self.blocks.inside(number))
        block = _Block(self.grid, self.blocks.box(number), blank, self.classes)
        self._compute(block, region, [box for box, _ in unread])
        if unread:
            record["unreadable"] = [f"{box_text(box)}: {why}" for box, why in unread]
        record["windows"] = self.clock.windows - computed
        record["seconds"] = time.perf_counter() - begin
        return block, record

    def _compute(self, block: "_Block", region: np.ndarray, unread: Sequence[Box]) -> None:
        """Evaluate the windows of a block, always in the grid's order."""
        origin = corner(self.grid.region(block.box))
        needed = [index for index in self.grid.windows(block.box) if not self._known(block, index)]
        if unread:
            lost = {i for i in needed if any(_meet(self.grid.input_of(i), box) for box in unread)}
            block.lose(lost)
            needed = [index for index in needed if index not in lost]
        idle = time.perf_counter()
        flying: collections.deque[tuple[Sequence[Index], Any]] = collections.deque()
        for first in range(0, len(needed), self.tiles.plan.tiles):
            batch = needed[first : first + self.tiles.plan.tiles]
            tiles = [region[slices(self.grid.input_of(i), origin=origin)] for i in batch]
            started = self.tiles.start(tiles)
            if not flying:
                self.clock.idle += time.perf_counter() - idle
            flying.append((batch, started))
            if len(flying) >= IN_FLIGHT:
                self._land(block, flying)
            idle = time.perf_counter()
        # Before this block is computed, the one before is safe: a kill loses one of them.
        self._settle(None if flying else time.perf_counter())
        while flying:
            self._land(block, flying)
        self.clock.windows += len(needed)

    def _known(self, block: "_Block", index: Index) -> bool:
        """Whether a window is still known from a block before; its voxels are taken if it is."""
        maps = self._kept.get(index)
        if maps is None:
            return False
        self.clock.kept += 1
        block.put(index, maps)
        return True

    def _land(self, block: "_Block", flying: collections.deque) -> None:
        batch, started = flying.popleft()
        for index, maps in zip(batch, self.tiles.finish(started), strict=True):
            own = block.put(index, maps)
            if own is not None and clip(self.grid.own(index), block.box) != self.grid.own(index):
                self._keep(index, own)

    def _keep(self, index: Index, own: Maps) -> None:
        """Remember the voxels that a window owns outside this block; the oldest are forgotten."""
        self._kept[index] = {name: array.copy() for name, array in own.items()}
        self._kept_bytes += _nbytes(own)
        while self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= _nbytes(self._kept.popitem(last=False)[1])

    def _write(self, name: str, block: "_Block", record: dict[str, Any]) -> None:
        maps = block.maps(self.probabilities)
        self.sink.write(self.blocks.inside(int(name)), maps)
        labels = maps["labels"]
        predicted = labels != NOT_PREDICTED
        record["voxels"] = int(labels.size)
        record["classes"] = np.bincount(labels[predicted], minlength=self.classes).tolist()
        for kind in ("entropy", "disagreement"):
            record[kind] = float(maps[kind].sum(dtype=np.float64) / 255)
        self.leases.finish(name, record)
        self.report(record)


class _Block:
    """The maps of a block while its windows come in."""

    def __init__(self, grid: Grid, box: Box, blank: Maps, classes: int) -> None:
        self.grid, self.box, self._blank = grid, box, blank
        self._maps = blank
        self._lost: list[Box] = []
        if grid.blend == "gaussian":
            self._maps = {
                "mean": np.zeros((classes, *sizes(box)), np.float32),
                "disagreement": np.zeros(sizes(box), np.float32),
            }

    def lose(self, indexes: Iterable[Index]) -> None:
        """These windows are not evaluated: what is taken from them stays blank."""
        if self.grid.blend == "gaussian":  # with the centre, what a window owns is blank already
            self._lost = [clip(self.grid.held(index), self.box) for index in indexes]

    def put(self, index: Index, maps: Maps) -> Maps | None:
        """Take what a window says of this block's voxels; returns what it says of its own."""
        held = self.grid.held(index)
        if self.grid.blend == "gaussian":
            self._blend(index, maps, held)
            return None
        own = self.grid.own(index)
        if sizes(own) != maps["labels"].shape:  # not yet cut to what the window owns
            maps = {n: a[(..., *slices(own, origin=corner(held)))] for n, a in maps.items()}
        shared = clip(own, self.box)
        for name, array in maps.items():
            place = (..., *slices(shared, origin=corner(self.box)))
            self._maps[name][place] = array[(..., *slices(shared, origin=corner(own)))]
        return maps

    def _blend(self, index: Index, maps: Maps, held: Box) -> None:
        shared = clip(held, self.box)
        there = slices(shared, origin=corner(held))
        weights = self.grid.weights(index)[there]
        for name, array in maps.items():
            place = (..., *slices(shared, origin=corner(self.box)))
            self._maps[name][place] += weights * array[(..., *there)]

    def maps(self, probabilities: bool) -> Maps:
        """Maps of bytes."""
        if self.grid.blend == "centre":
            return self._maps
        maps = maps_of(**self._maps, probabilities=probabilities)
        for box in self._lost:
            place = slices(box, origin=corner(self.box))
            for name, array in maps.items():
                array[(..., *place)] = self._blank[name][(..., *place)]
        return maps


def _meet(a: Box, b: Box) -> bool:
    return all(low < high for low, high in clip(a, b))


def _box_of(box: tuple[slice, slice, slice]) -> Box:
    z, y, x = ((s.start, s.stop) for s in box)
    return z, y, x


def _nbytes(maps: Maps) -> int:
    return sum(array.nbytes for array in maps.values())


def block_names(count: int) -> list[str]:
    """Names of blocks, so that names in order are blocks in order."""
    return [f"{number:0{max(5, len(str(count)))}d}" for number in range(count)]
