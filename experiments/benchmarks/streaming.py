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
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

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
from densejax.population import use_all_cores
from experiments.benchmarks import measure

FLAGS: Any = flags.FLAGS
RESULTS = Path(__file__).parent / "results"
CLASSES, MEMBERS, WIDTH = 7, 4, 8
VOXEL_NM = (40.0, 8.0, 8.0)
NAMES = tuple(f"class {number}" for number in range(CLASSES))


def define_flags() -> None:
    """The flags of this script."""
    flags.DEFINE_string("scratch", "/tmp/streaming", "folder for volumes and predictions")
    flags.DEFINE_list("nothing_shape", ["1000", "1000", "1000"], "volume for the pipeline alone")
    flags.DEFINE_list("nothing_window", ["16", "128", "128"], "its window")
    flags.DEFINE_list("hybrid_shape", ["40", "640", "640"], "volume for the hybrid network")
    flags.DEFINE_list("hybrid_window", ["5", "64", "64"], "its window")
    flags.DEFINE_enum("only", "", ["", "nothing", "hybrid"], "one of the two")
    flags.DEFINE_enum("child", "", ["", "nothing", "hybrid"], "what a child process measures")
    flags.DEFINE_bool("keep", False, "keep volumes and predictions")
    flags.DEFINE_string("out", str(RESULTS), "folder of the report")


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


def setting(name: str) -> tuple[Any, Any, Grid]:
    """Network, members and windows of one measurement."""
    shape, window = _sizes(f"{name}_shape"), _sizes(f"{name}_window")
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


def stream_volume(name: str, folder: Path) -> dict[str, Any]:
    """Stream a volume; returns times, memory and what they come to."""
    network, members, grid = setting(name)
    volume = open_volume(folder / "volume.zarr").array
    size = len(jax.tree.leaves(members)[0])

    def make(plan: Plan) -> TileEnsemble:
        windowing = Windowing(grid.window, grid.output)
        options: Any = {"dtype": volume.dtype, "grey": (128.0, 30.0), "plan": plan}
        return TileEnsemble(network, members, windowing, **options)

    tile = grid.read(volume, grid.input_of((0, 0, 0)))
    ensemble, speeds = choose_plan(make, tile, devices=jax.local_devices())
    before = call_seconds(ensemble, tile)
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
    call = (before + call_seconds(ensemble, tile)) / 2
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


def run_child(name: str) -> dict[str, Any]:
    """Measure in a process of its own, so that memory is that of one prediction."""
    folder = Path(FLAGS.scratch) / name
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "out", ignore_errors=True)
    write_volume(folder / "volume.zarr", _sizes(f"{name}_shape"))
    sizes = [
        f"--{flag}={','.join(FLAGS[flag].value)}" for flag in (f"{name}_shape", f"{name}_window")
    ]
    command = [sys.executable, "-m", "experiments.benchmarks.streaming", f"--child={name}"]
    command += [f"--scratch={FLAGS.scratch}", *sizes]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    if not FLAGS.keep:
        shutil.rmtree(folder)
    return json.loads(done.stdout.splitlines()[-1])


def report(found: Mapping[str, Mapping[str, Any]], where: Mapping[str, Any], out: Path) -> None:
    """Write the numbers and the table."""
    rows = []
    for name, value in found.items():
        rows.append(
            {
                "network": f"{name}, {value['members']} members, window {value['window']}",
                "voxels": " x ".join(str(n) for n in value["shape"]),
                "Mvox/s": value["million_voxels_a_second"],
                "seconds": value["seconds"],
                "peak GiB": value["peak_gib"],
                "% not the network": 100 * value["share_not_network"],
                "% no tile on a device": 100 * value["share_no_tile_on_device"],
                "seconds waiting to read": value["seconds_waiting_to_read"],
                "to write": value["seconds_waiting_to_write"],
            }
        )
    ceilings = {"matmul GFLOP/s": measure.matmul_gflops(), "copy GB/s": measure.copy_gigabytes()}
    table = measure.markdown(rows, list(rows[0]))
    text = measure.heading("Streaming a volume", where, ceilings) + "\n" + table
    measure.write(out, "streaming", result={"where": where, **found}, text=text)
    print(table)


def _sizes(flag: str) -> Sizes:
    z, y, x = (int(value) for value in FLAGS[flag].value)
    return z, y, x


def main(arguments: list[str]) -> None:
    """Measure what is asked for."""
    del arguments
    use_all_cores()
    if FLAGS.child:
        found = stream_volume(FLAGS.child, Path(FLAGS.scratch) / FLAGS.child)
        print(json.dumps(found, default=lambda value: jnp.asarray(value).tolist()))
        return
    names = [FLAGS.only] if FLAGS.only else ["nothing", "hybrid"]
    where = measure.machine()
    report({name: run_child(name) for name in names}, where, Path(FLAGS.out))


if __name__ == "__main__":
    define_flags()
    app.run(main)
