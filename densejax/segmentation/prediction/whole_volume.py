"""Predict a volume of any size with the best members of a segmentation run.

What the folder is a prediction of is settled by the first process that opens it; then any number of
processes work through its blocks, and one of them adds pyramids, numbers and a picture.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from densejax.inference.blocks import Blocks
from densejax.inference.members import Ensemble
from densejax.inference.outputs import Layout, Outputs
from densejax.inference.prediction import (
    Progress,
    settle_prediction,
    summarise,
)
from densejax.inference.stream import Clock, Stream, block_names
from densejax.inference.tiles import Grid
from densejax.lease import Leases
from densejax.segmentation.prediction.job import Job
from densejax.segmentation.prediction.measures import (
    fastest,
    grid_over,
    layout_of,
    measure,
    room_for,
)
from densejax.segmentation.prediction.report import (
    complete,
    print_plan,
    print_spread,
    print_summary,
)


@dataclass(frozen=True)
class Result:
    """What a prediction came to.

    Attributes:
      summary: as ``inference.prediction.summarise`` has it.
      clock: where this process's time went.
      files: that lie in the folder.
    """

    summary: Mapping[str, Any]
    clock: Clock
    files: tuple[Path, ...]

    @property
    def failed(self) -> int:
        """Blocks that could not be read."""
        return len(self.summary["unreadable"])


def predict(job: Job) -> Result:
    """Work on a prediction until it is complete, by this process and others.

    Raises:
      ValueError: the folder is of another prediction, or a chunk of the volume cannot be read.
      MemoryError: it would not fit.
      OSError: the disk is too small, or full.
    """
    made: list[Ensemble] = []

    def find_out() -> dict[str, Any]:
        found, ensemble = measure(job)
        made.append(ensemble)
        return found

    held = settle_prediction(job.folder, job.facts(), find_out)
    grid = grid_over(job, held["overlap"])
    z, y, x = (tuple(edges) for edges in held["edges"])
    chunk = held["chunk"]
    blocks = Blocks(job.part, (chunk[0], chunk[1], chunk[2]), (z, y, x))
    layout = layout_of(job, blocks)
    print_plan(job, held, grid, blocks)
    clock = Clock()
    with Leases(job.folder / "blocks", block_names(len(blocks))) as leases:
        if len(leases.done()) < len(blocks):
            ensemble = made[0] if made else _ensemble(job, held)
            print_spread(ensemble, held, job.devices[0].device_kind)
            clock = _stream(job, ensemble, (grid, blocks, layout), leases)
        records = leases.records()
    summary = summarise(records, job.run.class_names)
    files = complete(job, layout, summary)
    print_summary(summary, clock, files)
    return Result(summary, clock, files)


def _ensemble(job: Job, held: Mapping[str, Any]) -> Ensemble:
    """The ensemble as the prediction was begun: its precision, and its way of batching."""
    grey = (held["mean"], held["deviation"])
    side_by_side = held["side_by_side"]
    return fastest(job, grey=grey, precision=held["precision"], side_by_side=side_by_side)[0]


def _stream(
    job: Job, ensemble: Ensemble, what: tuple[Grid, Blocks, Layout], leases: Leases
) -> Clock:
    grid, blocks, layout = what
    done = sum(record["voxels"] for record in leases.records().values())
    voxels = int(np.prod(layout.shape, dtype=np.int64))
    room = room_for(job, grid, blocks, ensemble=ensemble, left=1 - done / voxels)
    print(f"needs        {room}")
    progress = Progress(job.folder, voxels=voxels, done=done)
    stream = Stream(
        array=job.volume.array,
        grid=grid,
        blocks=blocks,
        tiles=ensemble,
        sink=Outputs(job.folder, layout),
        leases=leases,
        classes=len(layout.class_names),
        probabilities=layout.probabilities,
        skip_unreadable=job.config.skip_unreadable,
        report=progress.block,
    )
    stream.run()
    return stream.clock
