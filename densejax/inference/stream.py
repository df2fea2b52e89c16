"""A prediction as a stream: blocks are read ahead, computed, and written behind.

Blocks are the boxes of the output in which a prediction is computed, written and resumed. A block
ends where chunks of the output end, so that no two blocks write one chunk. A window whose own
voxels lie in two blocks is computed for both: chunks and blocks are chosen so that block edges fall
on the edges of windows' own voxels where they can.

Memory is that of a few blocks whatever the volume's size: the one whose input is being read, the
one being computed, the one being written. A block is computed when the one before it is on disk and
marked done, so that a kill loses the work of one block and what was begun of the next.
"""

import collections
import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from densejax.data.blocks import box_text
from densejax.data.patchy import Patchy
from densejax.inference.members import NOT_PREDICTED, TileEnsemble, maps_of
from densejax.inference.outputs import Layout, Outputs
from densejax.inference.tiles import (
    Axis,
    Box,
    Grid,
    Index,
    Sizes,
    box_of,
    clip,
    corner,
    sizes,
    slices,
    whole,
)
from densejax.lease import Leases

Maps = dict[str, np.ndarray]

# Windows that reach into blocks still to come are kept, up to so many bytes.
KEPT_BYTES = 2**28
# Interpreter, libraries, compiler.
BASE_BYTES = 1.2e9
# Calls that the device has waiting: one computes while the next is cut and sent.
IN_FLIGHT = 2
# How long to wait before looking again whether another process has left a block.
POLL_S = 0.5
# What a block is at most, for its memory, and about how long a slow network may work on one: that
# is what a kill loses.
BLOCK_VOXELS, BLOCK_SECONDS = 2**24, 60.0
# Thin windows belong to volumes of thick sections, whose chunks are flat.
FLAT_CHUNK, CUBIC_CHUNK = (16, 128, 128), (64, 64, 64)


@dataclass(frozen=True)
class Blocks:
    """The blocks of a prediction.

    Attributes:
      part: the box of the volume that is predicted.
      chunk: (z, y, x) voxels of a chunk of the output, whose first voxel is the part's.
      edges: along each axis, where blocks end, from 0 to the part's size.
    """

    part: Box
    chunk: Sizes
    edges: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

    def __len__(self) -> int:
        return math.prod(len(edges) - 1 for edges in self.edges)

    def inside(self, number: int) -> Box:
        """A block, counted from the part's first voxel; x is fastest."""
        places = np.unravel_index(number, [len(edges) - 1 for edges in self.edges])
        return box_of((e[int(p)], e[int(p) + 1]) for e, p in zip(self.edges, places, strict=True))

    def box(self, number: int) -> Box:
        """A block in voxels of the volume."""
        pairs = zip(self.inside(number), self.part, strict=True)
        return box_of((low + first, high + first) for (low, high), (first, _) in pairs)

    def largest(self) -> Sizes:
        """(z, y, x) of the largest block."""
        z, y, x = (max(b - a for a, b in itertools.pairwise(e)) for e in self.edges)
        return z, y, x


def choose_blocks(
    grid: Grid,
    *,
    part: Box | None = None,
    chunk: Sequence[int] | None = None,
    voxels: int = BLOCK_VOXELS,
) -> Blocks:
    """Cut a prediction into blocks.

    Args:
      grid: windows of the volume.
      part: box to predict; None is the volume.
      chunk: (z, y, x) of the output's chunks; None chooses them so that block edges meet window
        edges, near (16, 128, 128) for thin windows and (64, 64, 64) for others.
      voxels: of a block, about; a block takes memory in proportion.

    Raises:
      ValueError: the part is not a box inside the volume, or a chunk is below 1.
    """
    part = part or whole(grid.shape)
    if any(not 0 <= low < high <= n for (low, high), n in zip(part, grid.shape, strict=True)):
        raise ValueError(
            f"part {box_text(part)} of a volume of shape {grid.shape}; expected z0:z1,y0:y1,x0:x1 "
            "inside it, each with at least one voxel"
        )
    if chunk is not None and (len(chunk) != 3 or min(chunk) < 1):
        raise ValueError(f"chunk {tuple(chunk)}; expected three positive numbers (z, y, x)")
    targets = _targets(grid, part, voxels)
    flat = grid.output[0] * 4 <= grid.output[1]
    preferred = FLAT_CHUNK if flat else CUBIC_CHUNK
    chosen, edges = [], []
    for a, axis in enumerate(grid.axes):
        near = min(preferred[a], targets[a])
        candidates = _candidates(near) if chunk is None else [int(chunk[a])]
        one, cuts = _cut(axis, part[a], candidates, targets[a])
        chosen.append(one)
        edges.append(cuts)
    return Blocks(part, (chosen[0], chosen[1], chosen[2]), (edges[0], edges[1], edges[2]))


def voxels_in_time(grid: Grid, tiles_a_second: float, *, seconds: float = BLOCK_SECONDS) -> int:
    """Voxels of a block that takes so long, at most ``BLOCK_VOXELS``."""
    own = math.prod(axis.stride for axis in grid.axes)
    return int(min(max(1.0, seconds * tiles_a_second * own), BLOCK_VOXELS))


def computed_twice(grid: Grid, blocks: Blocks) -> float:
    """Share of windows that are computed for more than one block: extra windows over windows."""
    computed = sum(grid.count(blocks.box(number)) for number in range(len(blocks)))
    return computed / grid.count(blocks.part) - 1


def memory_needed(grid: Grid, blocks: Blocks, layout: Layout, *, itemsize: int) -> int:
    """Bytes of host memory that a stream takes, about; ``itemsize`` is that of the volume."""
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
    return int(BASE_BYTES + 2 * read + 2.5 * voxels * maps + KEPT_BYTES)


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
    tiles: TileEnsemble
    sink: Outputs
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
        return found, [(box_of((s.start, s.stop) for s in box), why) for box, why in array.unread]

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
        self._kept_bytes += sum(array.nbytes for array in own.values())
        while self._kept_bytes > KEPT_BYTES:
            forgotten = self._kept.popitem(last=False)[1]
            self._kept_bytes -= sum(array.nbytes for array in forgotten.values())

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


def block_names(count: int) -> list[str]:
    """Names of blocks, so that names in order are blocks in order."""
    return [f"{number:0{max(5, len(str(count)))}d}" for number in range(count)]


def _targets(grid: Grid, part: Box, voxels: int) -> list[int]:
    """Lengths of a block: the same number of windows along each axis, as many as ``voxels`` hold.

    Flat windows make flat blocks, so that a block's faces cut as few windows as they can.
    """
    extent = sizes(part)
    lengths = [min(axis.stride, n) for axis, n in zip(grid.axes, extent, strict=True)]
    for windows in itertools.count(2):
        longer = [min(windows * a.stride, n) for a, n in zip(grid.axes, extent, strict=True)]
        if math.prod(longer) > voxels or longer == lengths == list(extent):
            return lengths
        lengths = longer
    raise AssertionError


def _candidates(preferred: int) -> list[int]:
    """Chunk lengths to try, the most welcome first: near the preferred one, and round."""

    def unwelcome(length: int) -> tuple[int, float]:
        return sum(length % power > 0 for power in (2, 4, 8)), abs(math.log(length / preferred))

    return sorted(range(-(-preferred // 2), preferred + preferred // 2 + 1), key=unwelcome)


def _cut(
    axis: Axis, part: tuple[int, int], candidates: Sequence[int], target: int
) -> tuple[int, tuple[int, ...]]:
    """The chunk length whose multiples meet most window edges, and where blocks end."""
    size = part[1] - part[0]
    inner = axis.edges[(axis.edges > part[0]) & (axis.edges < part[1])] - part[0]
    welcome = set(inner.tolist())
    best: tuple[int, int, tuple[int, ...]] | None = None
    for chunk in candidates:
        cuts = _walk(size, min(chunk, size), target, welcome)
        missed = sum(cut not in welcome for cut in cuts[1:-1])
        if best is None or missed < best[0]:
            best = (missed, min(chunk, size), cuts)
        if not missed:
            break
    assert best is not None
    return best[1], best[2]


def _walk(size: int, chunk: int, target: int, welcome: set[int]) -> tuple[int, ...]:
    """Block ends, each a multiple of the chunk, about ``target`` apart, on window edges if any."""
    cuts = [0]
    steps = max(1, round(target / chunk))
    most = 3 * steps // 2
    while size - cuts[-1] > most * chunk:
        near = cuts[-1] + chunk * np.arange((steps + 1) // 2, most + 1)
        near = near[near < size]
        met = [int(cut) for cut in near if int(cut) in welcome] or near.tolist()
        cuts.append(min(met, key=lambda cut: (abs(cut - cuts[-1] - steps * chunk), cut)))
    return (*cuts, size)
