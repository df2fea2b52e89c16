"""Stream a volume of any size through an ensemble into a folder.

What the folder is a prediction of is settled by the first process that opens it, which finds out
grey levels, overlap, blocks and speed for all; then any number of processes work through the
blocks, and one of them adds pyramids, numbers and a picture.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from densejax.data import ngff
from densejax.data.grey_levels import pieces, volume_moments
from densejax.data.ome_zarr import open_level
from densejax.data.volumes import Volume
from densejax.inference.members import (
    NOT_PREDICTED,
    Network,
    Plan,
    Precision,
    TileEnsemble,
    agrees,
    choose_plan,
    first_of,
    parity,
)
from densejax.inference.outputs import (
    Layout,
    Outputs,
    Progress,
    complete,
    duration,
    settle_prediction,
    size_text,
    summarise,
)
from densejax.inference.receptive_field import Overlap, blind_margin, choose_overlap
from densejax.inference.stream import (
    BLOCK_VOXELS,
    Blocks,
    Clock,
    Stream,
    block_names,
    choose_blocks,
    computed_twice,
    memory_needed,
    voxels_in_time,
)
from densejax.inference.tiles import Box, Grid, Sizes, Windowing, corner, grid_of, sizes
from densejax.io import free_bytes
from densejax.lease import Leases
from densejax.population import memory_limit
from densejax.typing import Params

PICTURE_VOXELS = (64, 384, 384)
# A pyramid whose levels are halved along two axes at first adds a third.
PYRAMID = 4 / 3
# Labels and maps of doubt shrink when they are compressed, by a factor that only the result tells;
# a prediction whose every byte shrank by this one would be a lucky one.
LUCKY_COMPRESSION = 4


@dataclass(frozen=True)
class StreamOptions:
    """How a volume is streamed.

    Attributes:
      overlap: of windows, by name (``receptive_field.choose_overlap``) or in voxels (z, y, x).
      probabilities: keep the mean probabilities, a byte a class and voxel.
      grey: mean and deviation to standardise by; None are those of what is predicted.
      precision: ``auto`` is bfloat16 on an accelerator where it agrees on a real window.
      version: of NGFF.
      chunk: (z, y, x) of the output; None is to fit the windows.
      block_voxels: of a block, about; 0 is what takes a minute.
      skip_unreadable: leave what cannot be read as not predicted and go on.
    """

    overlap: Overlap | Sizes = "auto"
    probabilities: bool = False
    grey: tuple[float, float] | None = None
    precision: Literal["auto"] | Precision = "auto"
    version: ngff.Version = "0.5"
    chunk: Sizes | None = None
    block_voxels: int = 0
    skip_unreadable: bool = False


@dataclass(frozen=True)
class StreamJob:
    """A volume that is to be streamed through an ensemble.

    Attributes:
      folder: of the prediction.
      volume: to predict.
      part: the box of it that is asked for.
      networks: ``(params, [b, z, y, x, 1]) -> (logits, out)`` by precision.
      params: of the members, stacked, [k, ...].
      members: their scores by name, the best first.
      source: the folder that they are from.
      class_names: c names.
      windowing: windows, blending and views; how they overlap is an option.
      factor: (z, y, x) by which the network pools.
      devices: that may be used.
      options: how it is streamed.
      about: what else a folder must hold to be of the same prediction; JSON values by name.
    """

    folder: Path
    volume: Volume
    part: Box
    networks: Mapping[Precision, Network]
    params: Params
    members: Mapping[str, float]
    source: str
    class_names: tuple[str, ...]
    windowing: Windowing
    factor: Sizes
    devices: tuple[jax.Device, ...]
    options: StreamOptions = StreamOptions()
    about: Mapping[str, Any] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """What is asked for; a folder that holds another of these is another prediction."""
        return {
            "volume": self.volume.path,
            "volume_shape": self.volume.array.shape,
            "dtype": str(self.volume.array.dtype),
            "shape": sizes(self.part),
            "voxel_nm": self.volume.voxel_nm,
            "offset": corner(self.part),
            "run": str(Path(self.source).resolve()),
            "members": tuple(self.members),
            "members_checksum": checksum(self.params),
            "class_names": self.class_names,
            "window": self.windowing.window,
            "output": self.windowing.output,
            "blend": self.windowing.blend,
            "views": self.windowing.views,
            "probabilities": self.options.probabilities,
            "not_predicted": NOT_PREDICTED,
            **self.about,
        }


@dataclass(frozen=True)
class StreamResult:
    """What a prediction came to.

    Attributes:
      summary: as ``outputs.summarise`` has it.
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


def stream_volume(job: StreamJob) -> StreamResult:
    """Work on a prediction until it is complete, by this process and others.

    Raises:
      ValueError: the folder is of another prediction, a chunk of the volume cannot be read, the
        volume has one grey level only, or a setting does not fit.
      MemoryError: it would not fit.
      OSError: the disk is too small, or full.
    """
    made: list[TileEnsemble] = []

    def find_out() -> dict[str, Any]:
        found, ensemble = _measure(job)
        made.append(ensemble)
        return found

    held = settle_prediction(job.folder, job.facts(), find_out)
    grid = _grid(job, held["overlap"])
    z, y, x = (tuple(edges) for edges in held["edges"])
    chunk = held["chunk"]
    blocks = Blocks(job.part, (chunk[0], chunk[1], chunk[2]), (z, y, x))
    layout = _layout(job, blocks)
    _print_plan(job, held, grid, blocks)
    clock = Clock()
    with Leases(job.folder / "blocks", block_names(len(blocks))) as leases:
        if len(leases.done()) < len(blocks):
            ensemble = made[0] if made else _as_begun(job, held)
            _print_spread(ensemble, held, job.devices[0].device_kind)
            clock = _stream(job, ensemble, (grid, blocks, layout), leases)
        records = leases.records()
    summary = summarise(records, job.class_names)
    files = complete(job.folder, layout, summary, partial(_draw, job))
    _print_summary(summary, clock, files)
    return StreamResult(summary, clock, files)


def checksum(members: Params) -> str:
    """A short text that tells stacked parameters apart."""
    code = 0
    for leaf in jax.tree.leaves(members):
        code = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), code)
    return f"{code:08x}"


def _measure(job: StreamJob) -> tuple[dict[str, Any], TileEnsemble]:
    """What a prediction is begun with, for its folder; and the ensemble that was found fastest."""
    blind, overlap = _overlap(job)
    grid = _grid(job, overlap)
    voxels = job.options.block_voxels
    choose = partial(choose_blocks, grid, part=job.part)
    blocks = choose(chunk=job.options.chunk, voxels=voxels or BLOCK_VOXELS)
    _room(job, grid, blocks)
    grey, unread = _grey_levels(job)
    tile = _middle_tile(job, grid)
    precision, agreement = _precision(job, grey, tile)
    make = partial(_ensemble, job, job.windowing, grey=grey, precision=precision)
    ensemble, speeds = choose_plan(make, tile, devices=job.devices)
    if not voxels:
        # The chunks stay as they are: files do not depend on how fast a machine was.
        blocks = choose(chunk=blocks.chunk, voxels=voxels_in_time(grid, max(speeds.values())))
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


def _as_begun(job: StreamJob, held: Mapping[str, Any]) -> TileEnsemble:
    """The ensemble as the prediction was begun: its precision, and its way of batching."""
    grey, precision = (held["mean"], held["deviation"]), held["precision"]
    make = partial(_ensemble, job, job.windowing, grey=grey, precision=precision)
    tile = np.zeros(job.windowing.window, job.volume.array.dtype)
    return choose_plan(make, tile, devices=job.devices, side_by_side=held["side_by_side"])[0]


def _ensemble(
    job: StreamJob, windowing: Windowing, plan: Plan, *, grey: Any, precision: Precision
) -> TileEnsemble:
    return TileEnsemble(
        job.networks[precision],
        job.params,
        windowing,
        dtype=job.volume.array.dtype,
        grey=grey,
        plan=plan,
        probabilities=job.options.probabilities,
        devices=job.devices,
        precision=precision,
    )


def _grid(job: StreamJob, overlap: Sequence[int]) -> Grid:
    windowing = replace(job.windowing, overlap=overlap)
    return grid_of(job.volume.array.shape, windowing, factor=job.factor)


def _layout(job: StreamJob, blocks: Blocks) -> Layout:
    from densejax.plots.style import class_colours  # brings matplotlib

    return Layout(
        shape=sizes(job.part),
        chunk=blocks.chunk,
        voxel_nm=job.volume.voxel_nm,
        offset=corner(job.part),
        class_names=job.class_names,
        probabilities=job.options.probabilities,
        version=job.options.version,
        colours=tuple(class_colours(len(job.class_names))),
    )


def _overlap(job: StreamJob) -> tuple[list[int | None], Sizes]:
    """The blind margin where it was asked for, and the overlap that is wished for."""
    wish, output = job.options.overlap, job.windowing.output
    if wish not in ("auto", "receptive"):
        return [], choose_overlap(wish, output=output, blind=(None, None, None))
    print("asking the network how far it sees", flush=True)
    network, one = job.networks["float32"], first_of(job.params)
    blind = blind_margin(network, one, job.windowing, factor=job.factor)
    return list(blind), choose_overlap(wish, output=output, blind=blind)


def _grey_levels(job: StreamJob) -> tuple[tuple[float, float], list[str]]:
    """Mean and deviation by which tiles are standardised, and what could not be read."""
    if job.options.grey is not None:
        return job.options.grey, []
    print("reading the volume once for its grey levels", flush=True)
    unread: list[str] = []

    def leave_out(box: Any, error: Exception) -> None:
        unread.append(f"{box}: {error}")

    array = job.volume.array
    on_error = leave_out if job.options.skip_unreadable else None
    moments = volume_moments(array, pieces(array, job.part), on_error=on_error)
    return (moments.mean, moments.deviation), unread


def _middle_tile(job: StreamJob, grid: Grid) -> np.ndarray:
    """A real window: the one in the middle of what is predicted; zeros where it is unreadable."""
    z, y, x = (low + n // 2 for (low, _), n in zip(job.part, sizes(job.part), strict=True))
    index = grid.windows(((z, z + 1), (y, y + 1), (x, x + 1)))[0]
    try:
        return grid.read(job.volume.array, grid.input_of(index))
    except (ValueError, OSError):
        if not job.options.skip_unreadable:
            raise
        return np.zeros(grid.window, job.volume.array.dtype)


def _precision(
    job: StreamJob, grey: tuple[float, float], tile: np.ndarray
) -> tuple[Precision, list[float]]:
    """bfloat16 where it is asked for or, on an accelerator, as good as float32 on a real window."""
    asked = job.options.precision
    accelerator = job.devices[0].platform != "cpu"
    if asked == "float32" or (asked == "auto" and not accelerator):
        return "float32", []
    make = partial(_ensemble, job, replace(job.windowing, blend="gaussian"), Plan(1, 1), grey=grey)
    measured = parity(make(precision="float32"), make(precision="bfloat16"), tile)
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


def _room(
    job: StreamJob,
    grid: Grid,
    blocks: Blocks,
    *,
    ensemble: TileEnsemble | None = None,
    left: float = 1.0,
) -> str:
    """A line on memory and disk; raises where they do not suffice for ``left`` of the blocks."""
    layout = _layout(job, blocks)
    memory = memory_needed(grid, blocks, layout, itemsize=job.volume.array.dtype.itemsize)
    if ensemble is not None and job.devices[0].platform == "cpu":
        memory += ensemble.peak_bytes * ensemble.plan.devices
    have = memory_limit(jax.devices("cpu")[:1])
    disk = int(layout.nbytes() * PYRAMID * left)
    free = free_bytes(job.folder)
    if memory > have:
        raise MemoryError(
            f"the prediction needs about {size_text(memory)} of memory, and {size_text(have)} are "
            "available (control group included): choose a smaller --window or fewer --devices"
        )
    if disk / LUCKY_COMPRESSION > free:
        raise OSError(
            f"{job.folder}: the prediction takes up to {size_text(disk)}, {size_text(disk // 4)} "
            f"if it is compressed to a quarter, and {size_text(free)} are free on its disk"
        )
    warning = "" if disk <= free else ", which compression must make up for"
    return (
        f"memory about {size_text(memory)} of {size_text(have)}; disk at most {size_text(disk)}, "
        f"free {size_text(free)}{warning}"
    )


def _stream(
    job: StreamJob, ensemble: TileEnsemble, what: tuple[Grid, Blocks, Layout], leases: Leases
) -> Clock:
    grid, blocks, layout = what
    done = sum(record["voxels"] for record in leases.records().values())
    voxels = int(np.prod(layout.shape, dtype=np.int64))
    room = _room(job, grid, blocks, ensemble=ensemble, left=1 - done / voxels)
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
        skip_unreadable=job.options.skip_unreadable,
        report=progress.block,
    )
    stream.run()
    return stream.clock


def _print_plan(job: StreamJob, held: Mapping[str, Any], grid: Grid, blocks: Blocks) -> None:
    """What is about to run: devices, volume, members, windows, blocks."""
    first = job.devices[0]
    shape = " x ".join(str(n) for n in job.volume.array.shape)
    voxel = " x ".join(f"{size:g}" for size in job.volume.voxel_nm)
    part = sizes(job.part)
    voxels = int(np.prod(part, dtype=np.int64))
    print(f"devices      {len(job.devices)} x {first.device_kind} ({first.platform})")
    print(f"volume       {job.volume.path}: {shape} {job.volume.array.dtype}, voxels {voxel} nm")
    if part != job.volume.array.shape:
        print(f"part         {part} from {held['offset']}")
    print(f"voxels       {voxels:,}; mean {held['mean']:.6g}, deviation {held['deviation']:.6g}")
    members = ", ".join(f"{name} ({score:.4f})" for name, score in job.members.items())
    print(f"members      {len(job.members)} of {job.source}: {members}; {held['precision']}")
    views = {"one": "", "flips": ", 8 reflections", "turns": ", 8 turns and reflections"}
    print(
        f"windows      {grid.count(job.part):,} of {grid.window} -> {grid.output}, overlap "
        f"{grid.overlap}, {grid.blend}{views[held['views']]}"
    )
    twice = computed_twice(grid, blocks)
    print(
        f"blocks       {len(blocks):,} of up to {blocks.largest()}, chunks {blocks.chunk}; windows "
        f"in two blocks {100 * twice:.1f} %"
    )
    blind = held.get("blind_margin") or ()
    if any(margin is None for margin in blind):
        axes = ", ".join(a for a, m in zip("zyx", blind, strict=True) if m is None)
        print(f"note         the network sees beyond its window along {axes}: seams may show")


def _print_spread(ensemble: TileEnsemble, held: Mapping[str, Any], kind: str) -> None:
    """How tiles are spread over devices; a warning where another kind of device has begun."""
    plan = ensemble.plan
    print(
        f"tiles        {plan.devices} devices at once, {plan.side_by_side} side by side on each, "
        f"{ensemble.peak_bytes / 1e9:.2f} GB a device",
        flush=True,
    )
    if held["device"] != kind:
        print(f"warning: begun on {held['device']}, goes on on {kind}: results agree to rounding")


def _print_summary(summary: Mapping[str, Any], clock: Clock, files: Sequence[Path]) -> None:
    """Classes, doubt, time and files; at the end the blocks that could not be read."""
    predicted = max(summary["voxels"] - summary["not_predicted"], 1)
    print(f"\n{'class':<26}{'voxels':>18}{'share':>9}")
    for name, count in summary["classes"].items():
        print(f"{name:<26}{count:>18,}{100 * count / predicted:>8.2f} %")
    if summary["not_predicted"]:
        print(f"{'not predicted':<26}{summary['not_predicted']:>18,}")
    print(
        f"mean entropy {summary['entropy']:.4f}, mean disagreement {summary['disagreement']:.4f} "
        "(0 to 1)"
    )
    if clock.wall:
        print(
            f"this process {duration(clock.wall)}, {clock.windows:,} windows "
            f"({clock.kept:,} more were still known); no tile on the devices for "
            f"{100 * clock.idle / clock.wall:.1f} % of it (reading {clock.reading:.1f} s, writing "
            f"{clock.writing:.1f} s, other processes {clock.waiting:.1f} s)"
        )
    print("\nfiles")
    for path in files:
        print(f"  {path}")
    for name, said in summary["unreadable"].items():
        print(f"\nblock {name}: voxels that cannot be read, and what depends on them is 255")
        for one in said:
            print(f"  {one}")


def _draw(job: StreamJob, path: Path) -> None:
    """Cuts through the middle of what is predicted: image, labels, entropy."""
    from densejax.plots.slices import orthoslices  # brings matplotlib

    extent = [min(a, b) for a, b in zip(sizes(job.part), PICTURE_VOXELS, strict=True)]
    first = [(n - e) // 2 for n, e in zip(sizes(job.part), extent, strict=True)]
    there = tuple(slice(f, f + e) for f, e in zip(first, extent, strict=True))
    volume = tuple(
        slice(s.start + low, s.stop + low) for s, (low, _) in zip(there, job.part, strict=True)
    )
    maps = {
        name: np.asarray(open_level(job.folder / f"{name}.zarr")[there].read().result())
        for name in ("labels", "entropy")
    }
    labels = maps["labels"].astype(np.int32)
    labels[maps["labels"] >= len(job.class_names)] = -1
    try:
        image = np.asarray(job.volume.array[volume])
    except (ValueError, OSError):  # blocks that could not be read are not predicted either
        image = np.zeros(extent, np.uint8)
    orthoslices(
        image,
        {f"ensemble of {len(job.members)}": labels},
        path=path,
        voxel_nm=job.volume.voxel_nm,
        entropy=maps["entropy"] / 255 * np.log(len(job.class_names)),
        class_names=job.class_names,
    )
