"""A process that streams a small volume, for tests that kill it: ``FOLDER SECONDS_A_CALL``.

The volume and the "network" are arithmetic on places, so that every voxel is known.
"""

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from densejax.inference.outputs import Layout, Outputs
from densejax.inference.stream import Stream, block_names, choose_blocks
from densejax.inference.tiles import Windowing, grid_of
from densejax.lease import Leases

SHAPE, WINDOW, OVERLAP = (11, 46, 50), (4, 16, 16), (1, 6, 6)
CLASSES = 5


def volume():
    """Every voxel another function of its place."""
    return np.random.default_rng(0).integers(0, CLASSES, SHAPE).astype(np.uint8)


class Places:
    """Labels are the grey levels; doubt tells from which place of its window a voxel came."""

    plan = SimpleNamespace(tiles=2)

    def __init__(self, seconds=0.0):
        self.seconds, self.seen = seconds, 0
        z, y, x = np.indices(WINDOW)
        self.entropy = (z * 64 + y * 16 + x).astype(np.uint8)
        self.disagreement = (x * 16 + y).astype(np.uint8)

    def start(self, tiles):
        time.sleep(self.seconds)
        self.seen += len(tiles)
        return [np.array(tile) for tile in tiles]

    def finish(self, started):
        return [
            {"labels": tile, "entropy": self.entropy, "disagreement": self.disagreement}
            for tile in started
        ]


def run(folder, *, seconds=0.0, array=None, report=lambda record: None, **options):
    """Stream into a folder until all of it is done."""
    folder.mkdir(parents=True, exist_ok=True)
    grid = grid_of(SHAPE, Windowing(WINDOW, WINDOW, OVERLAP))
    blocks = choose_blocks(grid, chunk=(4, 12, 12), voxels=2000)
    layout = Layout(
        SHAPE,
        blocks.chunk,
        (40.0, 8.0, 8.0),
        (0, 0, 0),
        tuple(f"class {c}" for c in range(CLASSES)),
    )
    with Leases(folder / "blocks", block_names(len(blocks))) as leases:
        stream = Stream(
            array=volume() if array is None else array,
            grid=grid,
            blocks=blocks,
            tiles=Places(seconds),
            sink=Outputs(folder, layout),
            leases=leases,
            classes=CLASSES,
            report=report,
            **options,
        )
        stream.run()
    return stream


def note(folder):
    """A ``report`` that appends the block to a log, for counting what was done twice."""

    def report(record):
        with (folder / "log").open("a") as log:
            log.write(f"{record['box']}\n")

    return report


if __name__ == "__main__":
    place = Path(sys.argv[1])
    run(place, seconds=float(sys.argv[2]), report=note(place))
