"""What the first process of a prediction finds out for all: grey levels, overlap, blocks, speed."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from densejax.data.grey_levels import pieces, volume_moments
from densejax.inference.blocks import BLOCK_VOXELS, Blocks, choose_blocks, voxels_in_time
from densejax.inference.members import (
    Ensemble,
    Plan,
    Precision,
    Wanted,
    agrees,
    choose_plan,
    parity,
)
from densejax.inference.outputs import Layout
from densejax.inference.prediction import check_room, memory_needed
from densejax.inference.receptive_field import blind_margin, choose_overlap
from densejax.inference.tiles import Grid, Sizes, corner, grid_of, sizes
from densejax.plots.style import class_colours
from densejax.segmentation.prediction.job import Job
from densejax.segmentation.sources import three


def measure(job: Job) -> tuple[dict[str, Any], Ensemble]:
    """Find out what a prediction is begun with.

    Returns:
      Values for ``prediction.json``, and the ensemble that was found fastest.

    Raises:
      ValueError: the volume cannot be read or has one grey level only, or a setting does not fit.
      MemoryError: not even one tile fits on a device.
    """
    blind, overlap = _overlap(job)
    grid = grid_over(job, overlap)
    chunk = three(job.config.chunk, "--chunk") if job.config.chunk else None
    voxels = job.config.block_voxels
    blocks = choose_blocks(grid, part=job.part, chunk=chunk, voxels=voxels or BLOCK_VOXELS)
    room_for(job, grid, blocks)
    grey, unread = grey_levels(job)
    tile = _middle_tile(job, grid)
    precision, agreement = _precision(job, grey, tile)
    ensemble, speeds = fastest(job, grey=grey, precision=precision, tile=tile)
    if not voxels:
        # The chunks stay as they are: files do not depend on how fast a machine was.
        voxels = voxels_in_time(grid, max(speeds.values()))
        blocks = choose_blocks(grid, part=job.part, chunk=blocks.chunk, voxels=voxels)
    return {
        "mean": grey[0],
        "deviation": grey[1],
        "grey_levels_unread": unread,
        "blind_margin": blind,
        "pooling": job.factor,
        "overlap": grid.overlap,
        "chunk": blocks.chunk,
        "edges": blocks.edges,
        "precision": precision,
        "bfloat16_agreement": agreement,
        "side_by_side": ensemble.plan.side_by_side,
        "tiles_a_second": speeds,
        "device": job.devices[0].device_kind,
    }, ensemble


def grid_over(job: Job, overlap: Sequence[int]) -> Grid:
    """Windows of a job's volume."""
    return grid_of(
        job.volume.array.shape,
        window=job.window,
        output=job.output,
        overlap=overlap,
        factor=job.factor,
        blend=job.config.blend,
    )


def layout_of(job: Job, blocks: Blocks) -> Layout:
    """How a job's images are stored."""
    z, y, x = (low + first for low, first in zip(corner(job.part), job.origin, strict=True))
    return Layout(
        shape=sizes(job.part),
        chunk=blocks.chunk,
        voxel_nm=job.volume.voxel_nm,
        offset=(z, y, x),
        class_names=job.run.class_names,
        probabilities=job.config.probabilities,
        version=job.config.format,
        colours=tuple(class_colours(len(job.run.class_names))),
    )


def room_for(
    job: Job, grid: Grid, blocks: Blocks, *, ensemble: Ensemble | None = None, left: float = 1.0
) -> str:
    """A line on the memory and the disk that a job takes.

    Args:
      job: what is predicted.
      grid: its windows.
      blocks: its blocks.
      ensemble: once it is compiled; its memory counts where devices share the host's.
      left: share of the blocks that is still to do.

    Raises:
      MemoryError: the memory does not suffice.
      OSError: the disk does not.
    """
    tile_bytes = 0
    if ensemble is not None and job.devices[0].platform == "cpu":
        tile_bytes = ensemble.peak_bytes * ensemble.plan.devices
    layout, itemsize = layout_of(job, blocks), job.volume.array.dtype.itemsize
    memory = memory_needed(grid, blocks, layout, itemsize=itemsize, tile_bytes=tile_bytes)
    return check_room(job.folder, layout, memory=memory, left=left)


def grey_levels(job: Job) -> tuple[tuple[float, float], list[str]]:
    """Mean and deviation by which a job's tiles are standardised, and what could not be read.

    ``own`` are those of what is predicted: the volume, or the part that is asked for.

    Raises:
      ValueError: the training run's are asked for and it left none.
    """
    config, unread = job.config, []
    if config.grey_levels:
        mean, deviation = config.grey_levels
        return (mean, deviation), []
    if config.normalise == "run":
        if job.run.grey is None:
            raise ValueError(
                f"--normalise=run: {job.run.folder} is an older run that left no grey levels; give "
                "them as --grey_levels=MEAN,DEVIATION, or take --normalise=own"
            )
        return job.run.grey, []
    print("reading the volume once for its grey levels", flush=True)

    def leave_out(box: Any, error: Exception) -> None:
        unread.append(f"{box}: {error}")

    boxes = pieces(job.volume.array, job.part)
    moments = volume_moments(
        job.volume.array, boxes, on_error=leave_out if config.skip_unreadable else None
    )
    return (moments.mean, moments.deviation), unread


def fastest(
    job: Job,
    *,
    grey: tuple[float, float],
    precision: Precision,
    tile: np.ndarray | None = None,
    side_by_side: int | None = None,
) -> tuple[Ensemble, dict[str, float]]:
    """The ensemble of a job, spread over devices as is fastest, and the speeds that were seen."""

    def make(plan: Plan) -> Ensemble:
        return _ensemble(job, job.wanted, plan, grey=grey, precision=precision)

    if tile is None:
        tile = np.zeros(job.window, job.volume.array.dtype)
    return choose_plan(make, tile, devices=job.devices, side_by_side=side_by_side)


def _ensemble(
    job: Job, wanted: Wanted, plan: Plan, *, grey: tuple[float, float], precision: Precision
) -> Ensemble:
    return Ensemble(
        job.architecture.networks[precision],
        job.params,
        size=len(job.members),
        window=job.window,
        dtype=job.volume.array.dtype,
        grey=grey,
        wanted=wanted,
        plan=plan,
        devices=job.devices,
        precision=precision,
    )


def _overlap(job: Job) -> tuple[list[int | None], Sizes]:
    wish = job.config.overlap
    if wish not in ("auto", "receptive", "third"):
        numbers = wish.split(",")
        if len(numbers) != 3 or not all(n.strip().isdecimal() for n in numbers):
            raise ValueError(
                f"--overlap={wish}; expected auto, receptive, third or three numbers z,y,x"
            )
        return [], (int(numbers[0]), int(numbers[1]), int(numbers[2]))
    if wish == "third":
        return [], choose_overlap(wish, output=job.output, blind=(None, None, None))
    print("asking the network how far it sees", flush=True)
    blind = blind_margin(
        job.architecture.networks["float32"],
        jax.tree.map(lambda leaf: leaf[0], job.params),
        window=job.window,
        output=job.output,
        factor=job.factor,
    )
    return list(blind), choose_overlap(wish, output=job.output, blind=blind)


def _middle_tile(job: Job, grid: Grid) -> np.ndarray:
    """A real window: the one in the middle of what is predicted; zeros where it is unreadable."""
    middle = tuple(low + n // 2 for (low, _), n in zip(job.part, sizes(job.part), strict=True))
    z, y, x = middle
    index = grid.windows(((z, z + 1), (y, y + 1), (x, x + 1)))[0]
    try:
        return grid.read(job.volume.array, grid.input_of(index))
    except (ValueError, OSError):
        if not job.config.skip_unreadable:
            raise
        return np.zeros(job.window, job.volume.array.dtype)


def _precision(
    job: Job, grey: tuple[float, float], tile: np.ndarray
) -> tuple[Precision, list[float]]:
    """bfloat16 where it is asked for or, on an accelerator, as good as float32 on a real window."""
    asked = job.config.precision
    accelerator = job.devices[0].platform != "cpu"
    if asked == "float32" or (asked == "auto" and not accelerator):
        return "float32", []
    wanted = replace(job.wanted, blend="gaussian", probabilities=False)
    plan = Plan(1, 1)
    measured = parity(
        _ensemble(job, wanted, plan, grey=grey, precision="float32"),
        _ensemble(job, wanted, plan, grey=grey, precision="bfloat16"),
        tile,
    )
    good = agrees(measured)
    print(
        f"bfloat16 against float32 on a window: {100 * measured[0]:.2f} % of labels equal, mean "
        f"difference of probabilities {measured[1]:.1e}: {'taken' if good else 'not taken'}"
    )
    if asked == "bfloat16" and not good:
        raise ValueError(
            f"--precision=bfloat16: on a window of this volume {100 * measured[0]:.2f} % of labels "
            "are those of float32, which is too few; take --precision=float32"
        )
    return ("bfloat16" if good else "float32"), list(measured)
