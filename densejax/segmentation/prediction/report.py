"""What a prediction prints before it starts, and what it leaves when it is complete."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from densejax.data.ome_zarr import open_level
from densejax.data.pyramid import build_pyramid
from densejax.inference.blocks import Blocks, computed_twice
from densejax.inference.members import Ensemble
from densejax.inference.outputs import Layout
from densejax.inference.prediction import duration
from densejax.inference.stream import Clock
from densejax.inference.tiles import Grid, sizes
from densejax.inference.views import Views
from densejax.io import write_json
from densejax.lease import Leases
from densejax.plots.slices import orthoslices
from densejax.segmentation.prediction.job import Job

PICTURE_VOXELS = (64, 384, 384)
SUMMARY, PICTURE = "summary.json", "orthoslices.png"


def print_plan(job: Job, held: Mapping[str, Any], grid: Grid, blocks: Blocks) -> None:
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
    scores = dict(zip(job.run.members, job.run.scores, strict=True))
    members = ", ".join(f"{name} ({scores[name]:.4f})" for name in job.members)
    print(f"members      {len(job.members)} of {job.config.run}: {members}; {held['precision']}")
    print(
        f"windows      {grid.count(job.part):,} of {job.window} -> {job.output}, overlap "
        f"{grid.overlap}, {grid.blend}{_views(held['views'])}"
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


def _views(views: Views) -> str:
    kinds = {"one": "", "flips": ", 8 reflections", "turns": ", 8 turns and reflections"}
    return kinds[views]


def print_spread(ensemble: Ensemble, held: Mapping[str, Any], kind: str) -> None:
    """How tiles are spread over devices; a warning where another kind of device has begun."""
    plan = ensemble.plan
    print(
        f"tiles        {plan.devices} devices at once, {plan.side_by_side} side by side on each, "
        f"{ensemble.peak_bytes / 1e9:.2f} GB a device",
        flush=True,
    )
    if held["device"] != kind:
        print(f"warning: begun on {held['device']}, goes on on {kind}: results agree to rounding")


def complete(job: Job, layout: Layout, summary: Mapping[str, Any]) -> tuple[Path, ...]:
    """Add pyramids, numbers and a picture; by one process, while the others wait.

    Returns:
      What lies in the folder.
    """
    images = [job.folder / f"{name}.zarr" for name in layout.names]
    files = (*images, job.folder / SUMMARY, job.folder / PICTURE)
    with Leases(job.folder / "blocks" / "end", ["end"]) as leases:
        while not leases.done():
            name = leases.take()
            if name is None:
                time.sleep(0.5)
                continue
            start = time.perf_counter()
            for image in images:
                build_pyramid(image)
            print(f"pyramids     {duration(time.perf_counter() - start)}", flush=True)
            write_json(job.folder / SUMMARY, dict(summary), indent=2)
            draw(job, layout, job.folder / PICTURE)
            leases.finish(name, {})
    return files


def draw(job: Job, layout: Layout, path: Path) -> None:
    """Cuts through the middle of what is predicted: image, labels, entropy."""
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
    labels[maps["labels"] >= len(layout.class_names)] = -1
    try:
        image = np.asarray(job.volume.array[volume])
    except (ValueError, OSError):  # blocks that could not be read are not predicted either
        image = np.zeros(extent, np.uint8)
    orthoslices(
        image,
        {f"ensemble of {len(job.members)}": labels},
        path=path,
        voxel_nm=job.volume.voxel_nm,
        entropy=maps["entropy"] / 255 * np.log(len(layout.class_names)),
        class_names=layout.class_names,
    )


def print_summary(summary: Mapping[str, Any], clock: Clock, files: Sequence[Path]) -> None:
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
