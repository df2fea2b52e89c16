"""What each object of a volume is like, measured block by block and merged.

Volume, box, centre, surface, what it touches and the means of maps over it. Each block counts whole
numbers, which are added up in the order of the blocks; memory grows with the objects alone.

The surface, of voxels that need not be cubes, is estimated by counting crossings. Cauchy and
Crofton: the surface of a body is four times the mean, over all directions, of the area of its
projection; and the area of a projection is half the number of times that parallel lines cross the
surface, over how many lines there are per unit area. On a grid the directions are the 13 from a
voxel to its 26 neighbours, each weighted by the part of the sphere that is nearer to it than
to the others (Legland, Kieu and Devaux 2007, doi 10.5566/ias.v26.p83-92; as in MorphoLibJ). For
direction k, with steps of length r_k in nm, weight c_k, N_k crossings and voxels of volume V,

    S = 2 V sum_k c_k N_k / r_k

Counts add up, so an object may be cut into any blocks. What lies outside the volume is not the
object: an object at the border is closed there. Balls come out right to a few per cent from a
diameter of some four voxels along the coarsest axis on, and bodies in random orientation likewise.
Flat faces along the grid, for which 13 directions are few, are underestimated: by 7 % with cubic
voxels, and with voxels of 50 x 10 x 10 nm by 14 % (faces across y or x) to 23 % (across z). To
count the faces of voxels instead is right for those and half as much again for everything else.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import SphericalVoronoi

from densejax.data.blocks import cut_blocks
from densejax.data.formats import Box
from densejax.segmentation.label_blocks import Tables, run_blocks
from densejax.segmentation.objects.block import FAR, Runs, find_runs, run_extents, touches_border

BLOCK_VOXELS = 2**23
MAP_SCALE = 1 / 255  # maps are stored as 0..255 for 0..1
# Steps from a voxel to half of its neighbours; the other half are the same lines.
DIRECTIONS = tuple(
    step for step in itertools.product((-1, 0, 1), (-1, 0, 1), (-1, 0, 1)) if step > (0, 0, 0)
)
# Looked at together: what is made of so many fits into a core's cache.
SLAB_VOXELS = 2**18
# Across z, y and x: of these two voxels share a face.
FACES = tuple(DIRECTIONS.index(step) for step in ((1, 0, 0), (0, 1, 0), (0, 0, 1)))


@dataclass(frozen=True)
class Objects:
    """The objects of a volume; object i + 1 is entry i.

    Attributes:
      classes: [n] int64, label of each.
      voxels: [n] int64.
      low: [n, 3] int64, first voxel of the bounding box (z, y, x).
      high: [n, 3] int64, one beyond its last voxel.
      centre: [n, 3] float64, mean of the voxels' indices (z, y, x).
      surface_nm2: [n] float64, as ``surface_area`` estimates it.
      touches_border: [n] bool.
      means: name of a map -> [n] float64 in 0..1; nan for an object without voxels.
      pairs: [p, 2] int64, objects that share a face of a voxel, the lower number first, sorted.
      contact_nm2: [p] float64, area of the faces that they share.
      voxel_nm: (z, y, x), nm.
      origin_nm: centre of the volume's first voxel (z, y, x), nm.
    """

    classes: np.ndarray
    voxels: np.ndarray
    low: np.ndarray
    high: np.ndarray
    centre: np.ndarray
    surface_nm2: np.ndarray
    touches_border: np.ndarray
    means: dict[str, np.ndarray]
    pairs: np.ndarray
    contact_nm2: np.ndarray
    voxel_nm: tuple[float, ...]
    origin_nm: tuple[float, ...] = field(default=(0.0, 0.0, 0.0))

    @property
    def volume_nm3(self) -> np.ndarray:
        """[n] float64."""
        return self.voxels * math.prod(self.voxel_nm)

    @property
    def centre_nm(self) -> np.ndarray:
        """[n, 3] float64: where the centre lies, from the origin of the whole volume."""
        return self.centre * np.array(self.voxel_nm) + np.array(self.origin_nm)


def measure_objects(
    objects: Any,
    *,
    classes: np.ndarray,
    voxel_nm: Sequence[float],
    origin_nm: Sequence[float] = (0.0, 0.0, 0.0),
    maps: Mapping[str, Any] | None = None,
    probabilities: Any | None = None,
    folder: Path | None = None,
    chunks: Sequence[int] = (64, 128, 128),
    block_voxels: int = BLOCK_VOXELS,
    threads: int = 0,
) -> Objects:
    """Measure all objects of a volume.

    Args:
      objects: [z, y, x] unsigned integers, 0 or 1..n, sliced to numpy.
      classes: [n], label of each object.
      voxel_nm: (z, y, x), nm.
      origin_nm: centre of the first voxel (z, y, x), nm.
      maps: name -> [z, y, x] uint8, 255 is one; the mean of each over each object is taken.
      probabilities: [c, z, y, x] uint8, 255 is one, or None; that of an object's own class is a map
        named ``probability``.
      folder: where results of blocks are kept, so that a killed measurement goes on.
      chunks: (z, y, x) in which the volume is stored.
      block_voxels: of a block, about; a thread holds some 20 bytes for each.
      threads: blocks at once; 0 is one a core.

    Raises:
      ValueError: a map has another shape, an object has a class without probabilities, or an id is
        above n.
    """
    shape, count = tuple(objects.shape), len(classes)
    sources = _sources(shape, classes, maps or {}, probabilities)
    boxes: Any = cut_blocks(shape, chunks, voxels=block_voxels)

    def work(box: Box) -> Tables:
        around, core = _read_around(objects, box, shape)
        return _measure_block(around, core, box, count=count, sources=sources)

    done = run_blocks(boxes, work, what="measure objects", folder=folder, threads=threads)
    total = _Totals(count, sources, voxel_nm)
    for tables in done:
        total.add(tables)
    pairs, contact = total.contacts(voxel_nm)
    return Objects(
        classes=np.asarray(classes, np.int64),
        voxels=total.voxels,
        low=total.low,
        high=total.high,
        centre=total.moments / np.maximum(total.voxels, 1)[:, None],
        surface_nm2=total.surface,
        touches_border=touches_border(total.low, total.high, shape),
        means={name: _mean(sums, total.voxels) for name, sums in total.sums.items()},
        pairs=pairs,
        contact_nm2=contact,
        voxel_nm=tuple(float(v) for v in voxel_nm),
        origin_nm=tuple(float(v) for v in origin_nm),
    )


# A map: the sum over each run of a block, given the runs (of ids) and the block's box.
Source = Callable[[Runs, Box], np.ndarray]


def _measure_block(
    around: np.ndarray,
    core: np.ndarray,
    box: Box,
    *,
    count: int,
    sources: Mapping[str, Source],
) -> Tables:
    """Count what one block adds to its m objects; by name, their ``ids`` [m] and what is counted.

    ``around`` has one more layer beyond the block's high faces (zeros outside the volume), and one
    of zeros before a low face at the volume's border; ``core`` is the part of it that is the block.
    Beside sums of each source [m]: ``moments`` [m, 3] (sums of indices), ``crossings`` [m, 13], and
    for p touching pairs ``pairs`` [p, 2] and ``faces`` [p, 3], shared faces across z, y, x.
    """
    runs = find_runs(core)
    runs = runs.select(runs.values > 0)
    ids = np.unique(around) if around.size < 2**12 else np.unique(find_runs(around).values)
    ids = ids[ids > 0].astype(np.int64)
    if len(ids) and ids[-1] > count:
        raise ValueError(f"object {ids[-1]} in {box}; expected 0..{count}")
    places = np.zeros(count + 1, np.min_scalar_type(len(ids)))
    places[ids] = np.arange(1, len(ids) + 1)
    of = places[runs.values].astype(np.int64) - 1
    tables = {"ids": ids} | run_extents(runs, of, len(ids), box)
    tables["moments"] = _moments(runs, of, len(ids), box)
    for name, source in sources.items():
        sums = np.zeros(len(ids), np.int64)
        np.add.at(sums, of, source(runs, box))
        tables[name] = sums
    return tables | _crossings(places[around], ids)


def _moments(runs: Runs, of: np.ndarray, count: int, box: Box) -> np.ndarray:
    """Sums of the indices of each object's voxels, [count, 3] int64."""
    z, y, x = (local + side.start for local, side in zip(runs.corners(), box, strict=True))
    n = runs.lengths
    sums = (z * n, y * n, x * n + n * (n - 1) // 2)
    moments = np.zeros((count, 3), np.int64)
    for axis, along in enumerate(sums):
        np.add.at(moments[:, axis], of, along)
    return moments


def _crossings(around: np.ndarray, ids: np.ndarray) -> Tables:
    """Crossings of each object in each direction, and the faces that pairs of objects share."""
    many = len(ids) + 1
    counts = np.zeros((many, len(DIRECTIONS)), np.int64)
    keys: dict[int, np.ndarray] = {}
    corners = _mixed_corners(around)
    for number, step in enumerate(DIRECTIONS):
        one, other = (corners[place] for place in _pair_of_corners(step))
        differs = one != other
        a, b = one[differs].astype(np.int64), other[differs].astype(np.int64)
        counts[:, number] = np.bincount(a, minlength=many) + np.bincount(b, minlength=many)
        if number in FACES:
            both = (a > 0) & (b > 0)
            a, b = a[both], b[both]
            keys[number] = np.minimum(a, b) * many + np.maximum(a, b)
    pairs = np.unique(np.concatenate(list(keys.values())))
    faces = np.zeros((len(pairs), 3), np.int64)
    for axis, number in enumerate(FACES):
        places = np.searchsorted(pairs, keys[number])
        faces[:, axis] = np.bincount(places, minlength=len(pairs))
    a, b = np.divmod(pairs, many)
    named = np.concatenate([np.zeros(1, np.int64), ids])
    return {"crossings": counts[1:], "pairs": np.stack([named[a], named[b]], 1), "faces": faces}


class _Totals:
    """What all blocks counted together."""

    def __init__(
        self, count: int, sources: Mapping[str, Source], voxel_nm: Sequence[float]
    ) -> None:
        self.voxels = np.zeros(count, np.int64)
        self.low = np.full((count, 3), FAR)
        self.high = np.zeros((count, 3), np.int64)
        self.moments = np.zeros((count, 3), np.float64)
        self.surface = np.zeros(count, np.float64)
        self.sums = {name: np.zeros(count, np.int64) for name in sources}
        self._areas = _crossing_areas(voxel_nm)
        self._pairs: list[np.ndarray] = []
        self._faces: list[np.ndarray] = []

    def add(self, tables: Tables) -> None:
        """One block more; its ids occur once, so that plain indexing adds each."""
        of = tables["ids"] - 1
        self.voxels[of] += tables["voxels"]
        self.low[of] = np.minimum(self.low[of], tables["low"])
        self.high[of] = np.maximum(self.high[of], tables["high"])
        self.moments[of] += tables["moments"]
        self.surface[of] += tables["crossings"] @ self._areas
        for name, sums in self.sums.items():
            sums[of] += tables[name]
        self._pairs.append(tables["pairs"])
        self._faces.append(tables["faces"])

    def contacts(self, voxel_nm: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of objects that touch, sorted, and the area of each contact."""
        z, y, x = voxel_nm
        pairs = np.concatenate([np.zeros((0, 2), np.int64), *self._pairs])
        faces = np.concatenate([np.zeros((0, 3), np.int64), *self._faces])
        found, of = np.unique(pairs, axis=0, return_inverse=True)
        area = np.zeros((len(found), 3), np.int64)
        np.add.at(area, of.reshape(-1), faces)
        return found, area @ np.array([y * x, z * x, z * y], float)


def _sources(
    shape: tuple[int, ...],
    classes: np.ndarray,
    maps: Mapping[str, Any],
    probabilities: Any | None,
) -> dict[str, Source]:
    """Check the maps and wrap each as sums over runs."""
    for name, array in maps.items():
        if tuple(array.shape) != shape:
            raise ValueError(f"{name} is {tuple(array.shape)}; expected the objects' {shape}")
    found: dict[str, Source] = {name: _map_source(array) for name, array in maps.items()}
    if probabilities is not None:
        channels = probabilities.shape[0]
        if tuple(probabilities.shape[1:]) != shape:
            raise ValueError(
                f"probabilities are {tuple(probabilities.shape)}; expected [c, *{shape}]"
            )
        if len(classes) and classes.max() >= channels:
            raise ValueError(
                f"an object has class {classes.max()}; probabilities are of {channels} classes"
            )
        found["probability"] = _probability_source(probabilities, np.asarray(classes, np.int64))
    return found


def _map_source(array: Any) -> Source:
    return lambda runs, box: runs.sums(_values(array[box]))


def _probability_source(probabilities: Any, classes: np.ndarray) -> Source:
    def sums(runs: Runs, box: Box) -> np.ndarray:
        of = classes[runs.values.astype(np.int64) - 1]
        found = np.zeros(len(of), np.int64)
        for label in np.unique(of).tolist():
            chosen = of == label
            channel = _values(probabilities[(label, *box)])
            found[chosen] = runs.select(chosen).sums(channel)
        return found

    return sums


def _values(block: Any) -> np.ndarray:
    """A block of numpy or of tensorstore in memory, in flat order."""
    read = getattr(block, "read", None)
    return np.ascontiguousarray(block if read is None else read().result())


def _read_around(objects: Any, box: Box, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A block with the layers that ``measure_block`` wants, and its part that is the block."""
    wide = tuple(slice(s.start, min(s.stop + 1, n)) for s, n in zip(box, shape, strict=True))
    margins = [(int(s.start == 0), int(s.stop == n)) for s, n in zip(box, shape, strict=True)]
    around = np.pad(_values(objects[wide]), margins)
    core = around[
        tuple(
            slice(before, before + s.stop - s.start)
            for s, (before, _) in zip(box, margins, strict=True)
        )
    ]
    return around, core


def _mean(sums: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return sums * MAP_SCALE / voxels


def _crossing_areas(voxel_nm: Sequence[float]) -> np.ndarray:
    """Surface in nm^2 that one crossing stands for in each of ``DIRECTIONS``, [13] float64."""
    steps = np.array(DIRECTIONS) * np.asarray(voxel_nm, float)
    lengths = np.linalg.norm(steps, axis=1)
    units = steps / lengths[:, None]
    areas = SphericalVoronoi(np.concatenate([units, -units])).calculate_areas()
    weights = (areas[: len(units)] + areas[len(units) :]) / (4 * np.pi)
    return 2 * float(np.prod(voxel_nm)) * weights / lengths


def _mixed_corners(block: np.ndarray) -> np.ndarray:
    """Corners [8, n] of all cells whose eight voxels are not of one object; corner 4 z + 2 y + x.

    A cell is voxel (z, y, x) with its neighbours up to (z + 1, y + 1, x + 1); a block of n voxels
    along an axis has n - 1 of them, so that blocks that share one layer of voxels share no cell.
    Cells of one object hold no crossing, and nearly all are.
    """
    depth = max(1, SLAB_VOXELS // max(1, block[0].size))
    slabs = [block[z : z + depth + 1] for z in range(0, block.shape[0] - 1, depth)]
    none = np.zeros((8, 0), block.dtype)
    return np.concatenate([none, *(_mixed_cells(slab) for slab in slabs)], axis=1)


def _pair_of_corners(step: Sequence[int]) -> tuple[int, int]:
    """The two corners of a cell that lie along a step, the second a step from the first."""
    one, other = (sum(w for w, s in zip((4, 2, 1), step, strict=True) if s == e) for e in (-1, 1))
    return one, other


def _mixed_cells(block: np.ndarray) -> np.ndarray:
    high, low = block, block
    for axis in range(3):
        first = tuple(slice(None, -1) if i == axis else slice(None) for i in range(3))
        second = tuple(slice(1, None) if i == axis else slice(None) for i in range(3))
        high, low = np.maximum(high[first], high[second]), np.minimum(low[first], low[second])
    z, y, x = np.nonzero(high != low)
    corner = (z * block.shape[1] + y) * block.shape[2] + x
    flat = np.ascontiguousarray(block).reshape(-1)
    places = [
        (dz * block.shape[1] + dy) * block.shape[2] + dx
        for dz, dy, dx in itertools.product((0, 1), repeat=3)
    ]
    return np.stack([flat[corner + place] for place in places])
