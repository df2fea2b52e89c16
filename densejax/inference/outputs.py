"""The images that a prediction leaves: made, and written block by block."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from densejax.data import ngff
from densejax.data.blocks import box_text
from densejax.data.ome_zarr import create_image, open_level
from densejax.inference.members import NOT_PREDICTED
from densejax.inference.tiles import Box, Sizes, slices
from densejax.io import free_bytes

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
