"""A block of labels as runs: stretches of one value along x.

There are far fewer runs than voxels, so whatever sums over the voxels of many objects (volumes,
boxes, centroids, means of a map) is done over runs.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Runs:
    """The runs of a block, in the order of memory; together they cover it.

    Attributes:
      values: [r], the value of each run.
      starts: [r] int64, its first voxel in the block's flat order.
      lengths: [r] int64, voxels.
      shape: (z, y, x) of the block.
    """

    values: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    shape: tuple[int, ...]

    def corners(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The first voxel of each run: z, y and x, [r] int64 each."""
        rows, x = np.divmod(self.starts, self.shape[2])
        z, y = np.divmod(rows, self.shape[1])
        return z, y, x

    def select(self, chosen: np.ndarray) -> "Runs":
        """The runs where ``chosen`` [r] is true."""
        return Runs(
            self.values[chosen], self.starts[chosen], self.lengths[chosen], shape=self.shape
        )

    def sums(self, image: np.ndarray) -> np.ndarray:
        """Sums of an image over each run.

        Args:
          image: [z, y, x] unsigned integers, of the block's shape.

        Returns:
          [r] int64.
        """
        total = np.zeros(len(self.starts), np.int64)
        if len(self.starts):
            # Between the end of a run and the start of the next lies what is not asked for.
            ends = self.starts + self.lengths
            places = np.stack([self.starts, ends], axis=1).reshape(-1)
            flat = image.reshape(-1)
            if places[-1] == flat.size:
                places = places[:-1]
            total[:] = np.add.reduceat(flat, places, dtype=np.int64)[::2]
        return total


def find_runs(block: np.ndarray) -> Runs:
    """Return all runs of a block [z, y, x]; none goes on from one row into the next."""
    block = np.ascontiguousarray(block)
    begins = np.empty(block.shape, bool)
    begins[..., :1] = True
    np.not_equal(block[..., 1:], block[..., :-1], out=begins[..., 1:])
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=block.size)
    return Runs(block.reshape(-1)[starts], starts, lengths, block.shape)
