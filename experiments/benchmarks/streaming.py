"""What does streaming a volume cost beside the network, in time and in memory?

Two predictions of a Zarr volume that this script writes, each in a process of its own:

- ``nothing``: a network of one multiplication, so that reading, cutting, blending, reducing and
  writing are all there is. Goals: less than 4 GiB at any size.
- ``hybrid``: the hybrid 2D-3D network of width 8, four members. Goal: less than 5 % of the wall
  time is not the network's. The network's time is that of one call alone, measured before and
  after the stream, times the number of calls.

    python -m experiments.benchmarks.streaming --scratch=/tmp/streaming
    python -m experiments.benchmarks.streaming --only=nothing --nothing_shape=200,200,200

Takes about 2 GB of disk and a quarter of an hour on two idle cores. Writes
``results/streaming.json`` and ``results/streaming.md``.
"""

import json
import resource
import shutil
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from densejax.cli import option
from densejax.data.ome_zarr import create_image, open_level
from densejax.data.volumes import open_volume
from densejax.inference.members import Plan, TileEnsemble, choose_plan
from densejax.inference.outputs import Layout, Outputs
from densejax.inference.receptive_field import blind_margin, choose_overlap
from densejax.inference.stream import (
    IN_FLIGHT,
    Stream,
    block_names,
    choose_blocks,
    computed_twice,
    voxels_in_time,
)
from densejax.inference.tiles import Grid, Sizes, Windowing, grid_of, pooling_factor
from densejax.lease import Leases
from densejax.models.hybrid import Hybrid2D3D
from densejax.models.layers import draw_parameters
from experiments.benchmarks import measure
from experiments.benchmarks.measure import Row

CLASSES, MEMBERS, WIDTH = 7, 4, 8
VOXEL_NM = (40.0, 8.0, 8.0)
NAMES = tuple(f"class {number}" for number in range(CLASSES))


Name = Literal["nothing", "hybrid"]
NETWORKS: tuple[Name, ...] = ("nothing", "hybrid")
COLUMNS = (
    *("network", "voxels", "Mvox/s", "seconds", "peak GiB", "% not the network"),
    *("% no tile on a device", "seconds waiting to read", "to write"),
)


@dataclass(frozen=True)
class Config(measure.Options):
    """Which volumes are streamed."""

    scratch: str = option("/tmp/streaming", "folder for volumes and predictions")
    nothing_shape: tuple[int, int, int] = option(
        (1000, 1000, 1000), "volume for the pipeline alone", fast=(40, 128, 128)
    )
    nothing_window: tuple[int, int, int] = option((16, 128, 128), "its window", fast=(8, 64, 64))
    hybrid_shape: tuple[int, int, int] = option(
        (40, 640, 640), "volume for the hybrid network", fast=(10, 128, 128)
    )
    hybrid_window: tuple[int, int, int] = option((5, 64, 64), "its window")
    seconds: float = option(20.0, "of the loop without a stream, before and after", fast=1.0)
    only: Literal["", "nothing", "hybrid"] = option("", "one of the two")
    child: Literal["", "nothing", "hybrid"] = option("", "what a child process measures")
    keep: bool = option(False, "keep volumes and predictions")

    def of(self, name: Name) -> tuple[Sizes, Sizes]:
        """Shape and window of one measurement."""
        return getattr(self, f"{name}_shape"), getattr(self, f"{name}_window")


def write_volume(path: Path, shape: Sizes) -> None:
    """A volume of grey noise, written plane by plane of chunks; one that is there is kept."""
    if (path / "written").exists():
        return
    create_image(path, shape=shape, dtype=np.uint8, chunks=(64, 64, 64), voxel_nm=VOXEL_NM)
    store = open_level(path, write=True)
    noise = np.random.default_rng(0).normal(128, 30, (64, *shape[1:]))
    noise = np.clip(noise, 0, 255).astype(np.uint8)
    for z in range(0, shape[0], 64):
        depth = min(64, shape[0] - z)
        store[z : z + depth].write(noise[:depth]).result()
    (path / "written").touch()


def setting(name: Name, config: Config) -> tuple[Any, Any, Grid]:
    """Network, members and windows of one measurement."""
    shape, window = config.of(name)
    if name == "nothing":
        directions = np.linspace(-1, 1, CLASSES, dtype=np.float32)

        def network(params: Any, image: Any) -> Any:
            return image * params, {}

        grid = grid_of(shape, Windowing(window, window, (0, 0, 0)))
        return network, directions[None], grid
    model = Hybrid2D3D(classes=CLASSES, width=WIDTH)
    drawn = [
        draw_parameters(jax.random.key(seed), model, (1, *window, 1)) for seed in range(MEMBERS)
    ]
    members = jax.tree.map(lambda *leaves: np.stack(leaves), *drawn)
    z, y, x = model.output_window(window)
    windowing, factor = Windowing(window, (z, y, x)), pooling_factor(model.output_window, window)
    blind = blind_margin(model.apply, drawn[0], windowing, factor=factor)
    overlap = choose_overlap("auto", output=windowing.output, blind=blind)
    grid = grid_of(shape, replace(windowing, overlap=overlap), factor=factor)
    return model.apply, members, grid


def stream_volume(name: Name, config: Config) -> Row:
    """Stream a volume; returns times, memory and what they come to."""
    folder = Path(config.scratch) / name
    network, members, grid = setting(name, config)
    volume = open_volume(folder / "volume.zarr").array
    size = len(jax.tree.leaves(members)[0])

    def make(plan: Plan) -> TileEnsemble:
        windowing = Windowing(grid.window, grid.output)
        options: Any = {"dtype": volume.dtype, "grey": (128.0, 30.0), "plan": plan}
        return TileEnsemble(network, members, windowing, **options)

    tile = grid.read(volume, grid.input_of((0, 0, 0)))
    ensemble, speeds = choose_plan(make, tile, devices=jax.local_devices())
    before = call_seconds(ensemble, tile, seconds=config.seconds)
    blocks = choose_blocks(grid, voxels=voxels_in_time(grid, max(speeds.values())))
    layout = Layout(grid.shape, blocks.chunk, VOXEL_NM, (0, 0, 0), NAMES)
    with Leases(folder / "out" / "blocks", block_names(len(blocks))) as leases, Peak() as peak:
        stream = Stream(
            array=volume,
            grid=grid,
            blocks=blocks,
            tiles=ensemble,
            sink=Outputs(folder / "out", layout),
            leases=leases,
            classes=CLASSES,
        )
        processor = time.process_time()
        stream.run()
        processor = time.process_time() - processor
    clock = stream.clock
    call = (before + call_seconds(ensemble, tile, seconds=config.seconds)) / 2
    calls = -(-clock.windows // ensemble.plan.tiles)
    voxels = int(np.prod(grid.shape, dtype=np.int64))
    return {
        "shape": grid.shape,
        "window": grid.window,
        "overlap": grid.overlap,
        "members": size,
        "blocks": len(blocks),
        "largest_block": blocks.largest(),
        "chunk": blocks.chunk,
        "computed_twice_if_forgotten": computed_twice(grid, blocks),
        "windows": clock.windows,
        "windows_needed": grid.count(blocks.part),
        "tiles_a_second": speeds,
        "plan": vars(ensemble.plan),
        "seconds": clock.wall,
        "processor_seconds": processor,
        "million_voxels_a_second": voxels / clock.wall / 1e6,
        "network_seconds": call * calls,
        "share_not_network": 1 - call * calls / clock.wall,
        "share_no_tile_on_device": clock.idle / clock.wall,
        "seconds_waiting_to_read": clock.reading,
        "seconds_waiting_to_write": clock.writing,
        "peak_gib": peak.gib,
        "peak_gib_of_process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


class Peak:
    """The largest resident size while a context lasts."""

    def __enter__(self) -> "Peak":
        self.gib = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.gib = max(self.gib, pages * resource.getpagesize() / 2**30)


def call_seconds(ensemble: TileEnsemble, tile: np.ndarray, *, seconds: float = 20.0) -> float:
    """Mean time of a call in a loop that keeps as many in flight as a stream does."""
    tiles, calls = [tile] * ensemble.plan.tiles, 0
    flying = [ensemble.start(tiles) for _ in range(IN_FLIGHT)]
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        ensemble.finish(flying.pop(0))
        flying.append(ensemble.start(tiles))
        calls += 1
    lap = (time.perf_counter() - begin) / calls
    for started in flying:
        ensemble.finish(started)
    return lap


def measured(name: Name, config: Config) -> Row:
    """Measure in a process of its own, so that memory is that of one prediction."""
    folder = Path(config.scratch) / name
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "out", ignore_errors=True)
    sizes = dict(zip(("shape", "window"), config.of(name), strict=True))
    write_volume(folder / "volume.zarr", sizes["shape"])
    found = measure.apart(
        "streaming",
        *(f"--child={name}", f"--scratch={config.scratch}", f"--seconds={config.seconds}"),
        *(f"--{name}_{kind}={','.join(map(str, size))}" for kind, size in sizes.items()),
    )
    if not config.keep:
        shutil.rmtree(folder)
    return found


def row_of(name: Name, found: Row) -> Row:
    """A line of the table."""
    return {
        "network": f"{name}, {found['members']} members, window {found['window']}",
        "voxels": " x ".join(str(n) for n in found["shape"]),
        "Mvox/s": found["million_voxels_a_second"],
        "seconds": found["seconds"],
        "peak GiB": found["peak_gib"],
        "% not the network": 100 * found["share_not_network"],
        "% no tile on a device": 100 * found["share_no_tile_on_device"],
        "seconds waiting to read": found["seconds_waiting_to_read"],
        "to write": found["seconds_waiting_to_write"],
    }


def run(config: Config) -> None:
    """Measure what is asked for."""
    if config.child:
        found = stream_volume(config.child, config)
        print(json.dumps(found, default=lambda value: jnp.asarray(value).tolist()))
        return
    title, ceilings = "Streaming a volume", measure.ceilings()
    report = measure.Report("streaming", title, COLUMNS, config, ceilings=ceilings)
    for name in report.each([config.only] if config.only else NETWORKS):
        report.more[name] = measured(name, config)
        report.rows.append(row_of(name, report.more[name]))


if __name__ == "__main__":
    measure.main(Config, run, description=__doc__, all_cores=True)
