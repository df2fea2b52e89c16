"""Blocks: the boxes of the output in which a prediction is computed, written and resumed.

A block ends where chunks of the output end, so that no two blocks write one chunk. A window whose
own voxels lie in two blocks is computed for both: chunks and blocks are chosen so that block edges
fall on the edges of windows' own voxels where they can.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from densejax.data.blocks import box_text
from densejax.inference.tiles import Axis, Box, Grid, Sizes, sizes

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
        counts = [len(edges) - 1 for edges in self.edges]
        places = np.unravel_index(number, counts)
        z, y, x = ((e[int(p)], e[int(p) + 1]) for e, p in zip(self.edges, places, strict=True))
        return z, y, x

    def box(self, number: int) -> Box:
        """A block in voxels of the volume."""
        z, y, x = (
            (low + first, high + first)
            for (low, high), (first, _) in zip(self.inside(number), self.part, strict=True)
        )
        return z, y, x

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
    part = part or _whole(grid.shape)
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


def _whole(shape: Sizes) -> Box:
    z, y, x = ((0, size) for size in shape)
    return z, y, x


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
