"""Closed surfaces of the classes or objects of a label volume of any size, and their files.

Marching cubes (Lorensen and Cline 1987, tables of Lewiner et al. 2003, by scikit-image) on one
block after another. Blocks share one layer of voxels, so that each cube of eight voxels is seen
once, and corners are kept as whole numbers of half voxels, so that neighbouring blocks name the
same corner by the same number: they join without a seam. An object that the volume's border cuts
is closed there.

Surfaces are in nanometres and z, y, x like every array here. The centre of the first voxel of an
unshifted volume is the origin. In files that other programs open (GLB with names and colours, PLY
one a surface) coordinates are x, y, z, in the unit that is asked for; right-handed, x to the right,
y down and z into the depth, as one looks at a section. A GLB says ``unit`` and ``axes`` in its
scene's extras, a PLY in a comment of its head. (glTF's own unit is the metre and its up is y:
viewers only place the camera by that.)
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import ndimage, sparse

from densejax.data.levels import Level
from densejax.io import write_bytes

BLOCK = (128, 256, 256)
# Of a mask of zeros and ones. At one half the tables' tests of ambiguous faces meet ties, which the
# two cubes beside a face break differently: holes. Corners are moved to the middle afterwards.
_LEVEL = 0.51
PASS_BAND = 0.1
_BITS = 21  # of a corner's number, for each axis
NANOMETRES = {"nm": 1.0, "um": 1000.0}
AXES = "x, y, z; x right, y down, z into the depth"  # of files

Unit = Literal["nm", "um"]
Progress = Callable[[Iterator[Any], int], Iterator[Any]]


@dataclass(frozen=True)
class Surface:
    """Triangles around one class or object.

    Attributes:
      vertices: [v, 3] float64, nanometres, z, y, x.
      faces: [f, 3] int64, indexes of vertices, counter-clockwise seen from outside where x, y, z
        are right-handed.
    """

    vertices: np.ndarray
    faces: np.ndarray

    @property
    def area(self) -> float:
        """Square nanometres."""
        return float(np.linalg.norm(self._crosses(), axis=1).sum() / 2)

    @property
    def volume(self) -> float:
        """Cubic nanometres inside, cavities taken off."""
        corners = self.vertices[self.faces[:, 0]]
        # In z, y, x the turn is the other way round.
        return -float(np.einsum("fi,fi->", corners, self._crosses()) / 6)

    @property
    def euler(self) -> int:
        """Vertices - edges + faces: two for each closed surface without handles."""
        edges = len(np.unique(_edges(self.faces), axis=0))
        return len(np.unique(self.faces)) - edges + len(self.faces)

    def _crosses(self) -> np.ndarray:
        a, b, c = (self.vertices[self.faces[:, corner]] for corner in range(3))
        return np.cross(b - a, c - a)


def count_triangles(
    level: Level, ids: Sequence[int], *, block: Sequence[int] = BLOCK
) -> dict[int, int]:
    """Triangles that ``build_surfaces`` would make of each id, without making any.

    A surface has one vertex for each side of a voxel that lies bare, and a closed one has twice as
    many triangles as vertices, but for four a handle less or component more.

    Args:
      level: the labels.
      ids: classes or objects, above 0 or not; each once.
      block: voxels z, y, x read at once.

    Returns:
      By id, 0 for one that does not occur.
    """
    table = _Table(ids, level.array.dtype)
    bare = np.zeros(len(table.ids) + 1, np.int64)
    shape = level.array.shape
    for box in _boxes([(0, size) for size in shape], block):
        read = tuple(slice(a, min(b + 1, n)) for (a, b), n in zip(box, shape, strict=True))
        places = table(np.asarray(level.array[read]))
        own = [b - a for a, b in box]
        for axis, ((start, stop), size) in enumerate(zip(box, shape, strict=True)):
            inside = [slice(0, n) for n in own]
            inside[axis] = slice(None)
            part = np.moveaxis(places[tuple(inside)], axis, 0)
            unequal = part[1:] != part[:-1]
            for side in (part[1:], part[:-1]):
                bare += np.bincount(side[unequal], minlength=len(bare))
            for at_border, face in ((start == 0, part[0]), (stop == size, part[-1])):
                if at_border:
                    bare += np.bincount(face.ravel(), minlength=len(bare))
    return {number: 2 * int(bare[place]) for place, number in enumerate(table.ids, 1)}


def choose_level(
    levels: Sequence[Level],
    ids: Sequence[int],
    *,
    budget: int,
    level: int | None = None,
    block: Sequence[int] = BLOCK,
) -> tuple[int, dict[int, int]]:
    """The finest level whose surfaces together stay within a number of triangles.

    Counts from the coarsest level on and stops at the first that is too many, so the finest levels
    of a large volume are never read where they would not do.

    Args:
      levels: the finest first.
      ids: classes or objects.
      budget: triangles at most, of all ids together.
      level: one that is asked for; None chooses.
      block: voxels z, y, x read at once.

    Returns:
      The level's index and its triangles by id.

    Raises:
      ValueError: the level that is asked for does not exist; it or the coarsest is too much.
    """
    if level is not None and not 0 <= level < len(levels):
        raise ValueError(f"level {level} is none of the {len(levels)} levels 0..{len(levels) - 1}")
    found: tuple[int, dict[int, int]] | None = None
    for index in [level] if level is not None else reversed(range(len(levels))):
        counts = count_triangles(levels[index], ids, block=block)
        total = sum(counts.values())
        if total > budget and found is None:
            hint = f"at most level {len(levels) - 1}, " if index < len(levels) - 1 else ""
            raise ValueError(
                f"the surfaces of level {index} are {total:,} triangles and the budget is "
                f"{budget:,}: choose a coarser level ({hint}fewer classes) or a larger budget"
            )
        if total > budget:
            break
        found = index, counts
    assert found is not None
    return found


def build_surfaces(
    level: Level,
    ids: Sequence[int],
    *,
    block: Sequence[int] = BLOCK,
    progress: Progress = lambda boxes, total: boxes,
) -> dict[int, Surface]:
    """The closed surface of each class or object.

    Where two voxels of a class touch along an edge or at a corner only, the surface keeps them
    apart (connectivity 6), and is a manifold along every edge.

    Args:
      level: the labels.
      ids: classes or objects; each once.
      block: voxels z, y, x in memory at once, beside the surfaces themselves.
      progress: wraps the iterator of blocks, given their number.

    Returns:
      By id, in the order given; ids without a voxel are left out.

    Raises:
      ValueError: the volume has more than a million voxels along an axis.
    """
    table = _Table(ids, level.array.dtype)
    shape = level.array.shape
    if 2 * (max(shape) + 2) >= 2**_BITS:
        raise ValueError(f"shape {shape} is beyond {2 ** (_BITS - 1) - 3} voxels along an axis")
    corners: dict[int, list[np.ndarray]] = {number: [] for number in table.ids}
    # Cubes between voxels i and i + 1, from the one before the first voxel on: they close objects.
    boxes = list(_boxes([(-1, size) for size in shape], block))
    for box in progress(iter(boxes), len(boxes)):
        places = _read_closed(level.array, box, table)
        for place, around in enumerate(ndimage.find_objects(places, len(table.ids)), 1):
            if around is not None:
                keys = _triangles(places, place, around, [start for start, _ in box])
                corners[table.ids[place - 1]].append(keys)
    return {
        number: _joined(np.concatenate(parts), level)
        for number, parts in corners.items()
        if sum(map(len, parts))
    }


def smooth(surface: Surface, *, iterations: int = 12, pass_band: float = PASS_BAND) -> Surface:
    """A surface without the steps of its voxels, and of nearly the same volume.

    Taubin (1995): each iteration moves every vertex towards the mean of its neighbours by a factor
    of 0.5, then away from it by a little more, so that long waves keep their height.

    Args:
      surface: closed or not.
      iterations: 0 changes nothing.
      pass_band: spatial frequencies below this, of 0..2, are kept.

    Returns:
      The same triangles over moved vertices.

    Raises:
      ValueError: a negative number of iterations, or a pass band that is not within 0..1.
    """
    if iterations < 0 or not 0 < pass_band < 1:
        raise ValueError(
            f"iterations is {iterations} and pass_band {pass_band}: expected 0 or more and 0..1"
        )
    inwards = 0.5
    outwards = -1 / (1 / inwards - pass_band)
    edges = _edges(surface.faces)
    both = np.concatenate([edges, edges[:, ::-1]])
    size = len(surface.vertices)
    beside = sparse.csr_matrix((np.ones(len(both)), both.T), shape=(size, size))
    beside.data[:] = 1
    counts = np.maximum(np.diff(beside.indptr), 1)[:, None]
    vertices = surface.vertices
    for _ in range(iterations):
        for factor in (inwards, outwards):
            vertices = vertices + factor * (beside @ vertices / counts - vertices)
    return Surface(vertices, surface.faces)


class _Table:
    """Labels to places 1, 2, ... in a list of ids, and 0 for every other label."""

    def __init__(self, ids: Sequence[int], dtype: Any) -> None:
        self.ids = [int(number) for number in ids]
        if len(set(self.ids)) != len(self.ids) or not self.ids:
            raise ValueError(f"ids are {self.ids}: expected at least one, each once")
        kind = np.iinfo(dtype)
        self._sorted = np.sort(self.ids)
        self._places = (np.argsort(self.ids) + 1).astype(np.int32)
        self._direct: np.ndarray | None = None
        if kind.min == 0 and kind.max < 2**16:
            self._direct = self._search(np.arange(kind.max + 1))

    def __call__(self, labels: np.ndarray) -> np.ndarray:
        return self._search(labels) if self._direct is None else self._direct[labels]

    def _search(self, labels: np.ndarray) -> np.ndarray:
        at = np.minimum(np.searchsorted(self._sorted, labels), len(self._sorted) - 1)
        return np.where(self._sorted[at] == labels, self._places[at], 0).astype(np.int32)


def _boxes(
    spans: Sequence[tuple[int, int]], block: Sequence[int]
) -> Iterator[tuple[tuple[int, int], ...]]:
    """The (start, stop) of blocks along every axis, z slowest."""
    axes = [
        [(start, min(start + size, stop)) for start in range(first, stop, size)]
        for (first, stop), size in zip(spans, block, strict=True)
    ]
    yield from itertools.product(*axes)


def _read_closed(array: Any, box: Sequence[tuple[int, int]], table: _Table) -> np.ndarray:
    """Places of the voxels around a block of cubes; outside the volume there is nothing."""
    ends = [(start, stop + 1) for start, stop in box]
    inside = [
        (max(start, 0), min(stop, size))
        for (start, stop), size in zip(ends, array.shape, strict=True)
    ]
    places = table(np.asarray(array[tuple(slice(*span) for span in inside)]))
    missing = [
        (start - first, last - stop)
        for (first, last), (start, stop) in zip(ends, inside, strict=True)
    ]
    return np.pad(places, missing)


def _triangles(
    places: np.ndarray, place: int, around: tuple[slice, ...], first: Sequence[int]
) -> np.ndarray:
    """Corners [f, 3] int64 of one id's triangles in a block, each a number for its position."""
    from skimage.measure import marching_cubes

    wider = tuple(slice(max(span.start - 1, 0), span.stop + 1) for span in around)
    mask = places[wider] == place
    if mask.all():
        return np.zeros((0, 3), np.int64)
    vertices, faces, _, _ = marching_cubes(mask.astype(np.float32), _LEVEL)
    start = [begin + span.start for begin, span in zip(first, wider, strict=True)]
    halves = np.rint(2 * vertices).astype(np.int64) + 2 * (np.array(start) + 1)
    keys = (halves[:, 0] << 2 * _BITS) | (halves[:, 1] << _BITS) | halves[:, 2]
    return keys[faces]


def _joined(corners: np.ndarray, level: Level) -> Surface:
    """Triangles of all blocks over one list of vertices."""
    keys, faces = np.unique(corners, return_inverse=True)
    mask = 2**_BITS - 1
    halves = np.stack([keys >> 2 * _BITS, (keys >> _BITS) & mask, keys & mask], axis=1)
    voxels = halves / 2 - 1
    vertices = voxels * np.array(level.voxel_nm) + np.array(level.origin_nm)
    return Surface(vertices, faces.reshape(-1, 3))


def _edges(faces: np.ndarray) -> np.ndarray:
    """The two ends of every edge, [e, 2], the lower first; inner edges twice."""
    pairs = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    return np.sort(pairs, axis=1)


def write_glb(
    surfaces: Mapping[str, Surface],
    path: str | Path,
    *,
    colours: Mapping[str, str] | None = None,
    unit: Unit = "um",
) -> Path:
    """All surfaces in one binary glTF file, one named and coloured mesh each.

    Args:
      surfaces: by name, in nanometres.
      path: ends in ``.glb``.
      colours: ``#RRGGBB`` by name; grey where there is none.
      unit: of the coordinates in the file, ``um`` or ``nm``.

    Returns:
      The path.

    Raises:
      ValueError: there is no surface, or the name ends otherwise.
      ModuleNotFoundError: trimesh is not installed.
    """
    path = _checked(path, ".glb")
    if not surfaces:
        raise ValueError(f"{path}: there is no surface to write")
    trimesh = _trimesh()
    scene = trimesh.Scene(metadata={"unit": unit, "axes": AXES})
    for name, surface in surfaces.items():
        material = trimesh.visual.material.PBRMaterial(
            name=name,
            baseColorFactor=_rgba((colours or {}).get(name, "#9BA3AD")),
            metallicFactor=0.0,
            roughnessFactor=0.7,
        )
        mesh = _mesh(surface, unit)
        mesh.visual = trimesh.visual.TextureVisuals(material=material)
        scene.add_geometry(mesh, node_name=name, geom_name=name)
    return write_bytes(path, scene.export(file_type="glb"))


def write_ply(
    surface: Surface, path: str | Path, *, colour: str = "#9BA3AD", unit: Unit = "um"
) -> Path:
    """One surface as a binary PLY file.

    Args:
      surface: in nanometres.
      path: ends in ``.ply``.
      colour: ``#RRGGBB`` of all its vertices.
      unit: of the coordinates in the file, ``um`` or ``nm``.

    Returns:
      The path.

    Raises:
      ValueError: the name ends otherwise.
      ModuleNotFoundError: trimesh is not installed.
    """
    trimesh = _trimesh()
    path = _checked(path, ".ply")
    mesh = _mesh(surface, unit)
    colours = np.broadcast_to(np.array(_rgba(colour), np.uint8), (len(surface.vertices), 4))
    mesh.visual = trimesh.visual.ColorVisuals(vertex_colors=colours)
    head, body = bytes(mesh.export(file_type="ply")).split(b"end_header", 1)
    comment = f"comment unit {unit}\ncomment axes {AXES}\n".encode()
    first, rest = head.split(b"element", 1)
    return write_bytes(path, first + comment + b"element" + rest + b"end_header" + body)


def _trimesh() -> Any:
    try:
        import trimesh
    except ImportError as error:
        raise ModuleNotFoundError(
            "meshes as GLB or PLY need the package trimesh, which is not installed: "
            "pip install 'densejax[render]'"
        ) from error
    return trimesh


def _mesh(surface: Surface, unit: str) -> Any:
    # trimesh would drop and merge vertices of its own accord.
    return _trimesh().Trimesh(
        surface.vertices[:, ::-1] / NANOMETRES[unit], surface.faces, process=False
    )


def _rgba(colour: str) -> list[int]:
    return [*bytes.fromhex(colour.removeprefix("#")), 255]


def _checked(path: str | Path, suffix: str) -> Path:
    path = Path(path)
    if path.suffix.lower() != suffix:
        raise ValueError(f"{path} is not a name of a mesh file: expected it to end in {suffix}")
    return path
