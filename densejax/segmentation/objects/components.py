"""Connected components of a label volume that does not fit into memory, block by block.

Every block is labelled with one more layer of voxels at its high faces. Two neighbouring voxels lie
together in the block that holds the lower corner of their pair, whichever neighbours count, so that
all that is left to find out is which components of two blocks share a voxel of such a layer. These
are united, numbered by their first voxels (z slowest), and the volume is labelled a second time to
write the numbers. The result is that of labelling the whole volume at once, whatever the blocks.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from densejax.data.blocks import cut_blocks
from densejax.data.formats import Box
from densejax.data.ome_zarr import create_image, open_level
from densejax.data.volumes import Volume
from densejax.io import begin, write_npz
from densejax.segmentation.label_blocks import Tables, run_blocks
from densejax.segmentation.objects.block import (
    Connectivity,
    Library,
    Selection,
    find_runs,
    first_voxels,
    label_block,
    merge_parts,
    run_extents,
    touches_border,
)

BLOCK_VOXELS = 2**24
CHUNKS = (64, 128, 128)
MOST = 2**32 - 1  # objects, as many as uint32 can name


@dataclass(frozen=True)
class Keep:
    """Which components become objects.

    Attributes:
      min_voxels: fewest voxels.
      max_voxels: most voxels, or None.
      min_nm3: least volume, nm^3.
      exclude_border: leave out what touches the border of the volume (of axes with several voxels).
    """

    min_voxels: int = 1
    max_voxels: int | None = None
    min_nm3: float = 0.0
    exclude_border: bool = False


@dataclass(frozen=True)
class Components:
    """The objects of a volume; object i + 1 is entry i.

    Attributes:
      classes: [n] int64, the label of each.
      voxels: [n] int64.
      low: [n, 3] int64, first voxel of the bounding box (z, y, x).
      high: [n, 3] int64, one beyond its last voxel.
      found: components before the filters.
    """

    classes: np.ndarray
    voxels: np.ndarray
    low: np.ndarray
    high: np.ndarray
    found: int


class ComponentSearch:
    """The components of one volume, found and written in a folder where it can be continued."""

    def __init__(
        self,
        labels: Volume,
        folder: Path,
        *,
        selection: Selection,
        keep: Keep | None = None,
        connectivity: Connectivity = 26,
        library: Library = "auto",
        chunks: Sequence[int] = CHUNKS,
        block_voxels: int = BLOCK_VOXELS,
        threads: int = 0,
    ) -> None:
        """Prepare the search; nothing is read yet.

        Args:
          labels: [z, y, x] integers.
          folder: for the blocks' results, made if absent; a search that was killed goes on there.
          selection: the labels that are searched.
          keep: which components become objects; all, by default.
          connectivity: neighbours of a voxel: 6, 18 or 26.
          library: that labels a block; the result is the same.
          chunks: of the image of objects, (z, y, x).
          block_voxels: of a block, about; a thread holds some 20 bytes for each.
          threads: blocks at once; 0 is one a core.

        Raises:
          ValueError: the labels are floats, or ``folder`` holds the results of another search; the
            message names the difference.
        """
        if labels.array.dtype.kind not in "bui":
            raise ValueError(f"{labels.path}: labels are {labels.array.dtype}; expected integers")
        self.labels, self.folder, self.keep = labels, folder, keep or Keep()
        self._selection, self._connectivity = selection, connectivity
        self._library: Library = library
        self._threads = threads
        self.shape: tuple[int, ...] = labels.array.shape
        self.chunks = [min(int(c), n) for c, n in zip(chunks, self.shape, strict=True)]
        self.boxes: list[Any] = cut_blocks(self.shape, self.chunks, voxels=block_voxels)
        self._check_folder()

    def find(self) -> Components:
        """Label every block, unite what touches across their faces, filter and number.

        Raises:
          ValueError: there are more objects than uint32 can name.
        """
        kept = self.folder / "components.npz"
        if not kept.is_file():
            parts, sizes = self._read_blocks()
            root = self._unite(sizes)
            whole = merge_parts(root, parts)
            order = self._order(whole)
            names = np.zeros(len(whole["voxels"]), np.uint32)
            names[order] = np.arange(1, len(order) + 1)
            tables = {name: whole[name][order] for name in ("classes", "voxels", "low", "high")}
            tables |= {"found": np.array(len(names)), "sizes": sizes, "names": names[root]}
            write_npz(kept, tables)
        with np.load(kept) as held:
            parts = {name: held[name] for name in ("classes", "voxels", "low", "high")}
            return Components(**parts, found=int(held["found"]))

    def write(self, path: Path, *, attributes: dict[str, Any], **options: Any) -> None:
        """Write the objects, after ``find``, as level 0 of an OME-Zarr image, uint32, 0 for none.

        Args:
          path: of the image.
          attributes: kept in its metadata.
          options: as ``ome_zarr.create_image`` takes them.

        Raises:
          FileExistsError: another image is there.
        """
        create_image(
            path,
            shape=self.shape,
            dtype=np.uint32,
            chunks=self.chunks,
            voxel_nm=self.labels.voxel_nm,
            kind="labels",
            attributes=attributes,
            **options,
        )
        target = open_level(path, write=True)
        with np.load(self.folder / "components.npz") as held:
            sizes, names = held["sizes"], held["names"]
        ends = np.cumsum(sizes)
        number = self._numbers()

        def work(box: Box) -> Tables:
            here = number[_corner(box)]
            mine = names[ends[here] - sizes[here] : ends[here]]
            table = np.concatenate([np.zeros(1, np.uint32), mine])
            if table.any():
                ids, _ = self._label(box)
                target[box].write(table[_inner(ids, box)]).result()
            return {}

        done = run_blocks(
            self.boxes,
            work,
            what="write objects",
            folder=self.folder / "written",
            threads=self._threads,
        )
        for _ in done:
            pass

    def _label(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """Components of a block and the layers beyond its high faces, and their classes."""
        around = tuple(
            slice(s.start, min(s.stop + 1, n)) for s, n in zip(box, self.shape, strict=True)
        )
        codes = self._selection.of(self.labels.array[around])
        ids, found = label_block(codes, connectivity=self._connectivity, library=self._library)
        return ids, found.astype(np.int64) - 1

    def _table(self, box: Box) -> Tables:
        """What is known of a block's components: what they are, where, and on which faces."""
        ids, classes = self._label(box)
        count = len(classes)
        runs = find_runs(_inner(ids, box))
        runs = runs.select(runs.values > 0)
        of = runs.values.astype(np.int64) - 1
        # A component that lies in the layers beyond the block alone has no voxel here.
        tables = {"classes": classes} | run_extents(runs, of, count, box)
        tables["first"] = first_voxels(runs, of, count, box, self.shape)
        narrow = np.min_scalar_type(count)
        for axis, (side, n) in enumerate(zip(box, self.shape, strict=True)):
            if side.start > 0:
                tables[f"low{axis}"] = np.take(ids, 0, axis).astype(narrow)
            if side.stop < n:
                tables[f"high{axis}"] = np.take(ids, -1, axis).astype(narrow)
        return tables

    def _read_blocks(self) -> tuple[Tables, np.ndarray]:
        """Label all blocks; their components one after another, and how many each block has."""
        done = run_blocks(
            self.boxes,
            self._table,
            what="label components",
            folder=self.folder / "labelled",
            threads=self._threads,
        )
        names = ("classes", "voxels", "first", "low", "high")
        blocks = [{name: tables[name] for name in names} for tables in done]
        sizes = np.array([len(block["classes"]) for block in blocks], np.int64)
        return {name: np.concatenate([block[name] for block in blocks]) for name in names}, sizes

    def _unite(self, sizes: np.ndarray) -> np.ndarray:
        """Which components of blocks are one: the number of the whole for each, [m] int."""
        pairs = list(self._shared(np.cumsum(sizes) - sizes))
        edges = np.concatenate([np.zeros((0, 2), np.int64), *pairs])
        total = int(sizes.sum())
        graph = sparse.coo_array((np.ones(len(edges), bool), tuple(edges.T)), shape=(total, total))
        return csgraph.connected_components(graph, directed=False)[1]

    def _shared(self, offsets: np.ndarray) -> Iterator[np.ndarray]:
        """Pairs [p, 2] of components that hold one voxel, for each pair of neighbouring blocks."""
        number = self._numbers()
        for place, box in enumerate(self.boxes):
            for axis, (side, n) in enumerate(zip(box, self.shape, strict=True)):
                if side.stop == n:
                    continue
                corner = list(_corner(box))
                corner[axis] = side.stop
                other = number[corner[0], corner[1], corner[2]]
                ours = self._plane(place, f"high{axis}").ravel().astype(np.int64)
                theirs = self._plane(other, f"low{axis}").ravel().astype(np.int64)
                inside = ours > 0
                width = int(theirs.max(initial=0)) + 1
                keys = np.unique(ours[inside] * width + theirs[inside])
                a, b = np.divmod(keys, width)
                yield np.stack([a - 1 + offsets[place], b - 1 + offsets[other]], axis=1)

    def _numbers(self) -> dict[tuple[int, int, int], int]:
        return {_corner(box): place for place, box in enumerate(self.boxes)}

    def _plane(self, place: int, name: str) -> np.ndarray:
        with np.load(self.folder / "labelled" / f"{place:06d}.npz") as held:
            return held[name]

    def _order(self, whole: Tables) -> np.ndarray:
        """The components that become objects, by their first voxel, [n]."""
        voxels, keep = whole["voxels"], self.keep
        kept = voxels >= keep.min_voxels
        kept &= voxels * math.prod(self.labels.voxel_nm) >= keep.min_nm3
        if keep.max_voxels is not None:
            kept &= voxels <= keep.max_voxels
        if keep.exclude_border:
            kept &= ~touches_border(whole["low"], whole["high"], self.shape)
        chosen = np.flatnonzero(kept)
        if len(chosen) > MOST:
            raise ValueError(
                f"{self.labels.path}: {len(chosen)} objects; expected at most {MOST}: "
                "filter by size, or choose classes"
            )
        return chosen[np.argsort(whole["first"][chosen])]

    def _check_folder(self) -> None:
        """Refuse the results of another search: what they mean depends on all of this."""
        settings = {
            "labels": self.labels.path,
            "shape": list(self.shape),
            "voxel_nm": list(self.labels.voxel_nm),
            "selection": asdict(self._selection),
            "keep": asdict(self.keep),
            "connectivity": self._connectivity,
            "chunks": self.chunks,
            "blocks": len(self.boxes),
            "first block": [side.stop for side in self.boxes[0]],
        }
        begin(self.folder / "settings.json", settings, what="search", indent=2)


def _inner(ids: np.ndarray, box: Box) -> np.ndarray:
    """A block without the layers beyond its high faces."""
    return ids[tuple(slice(0, side.stop - side.start) for side in box)]


def _corner(box: Box) -> tuple[int, int, int]:
    return box[0].start, box[1].start, box[2].start
