"""Streams: windows and blocks leave no trace, whoever is killed and whatever cannot be read."""

import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import streaming_worker as worker
from hypothesis import given, settings
from hypothesis import strategies as st

from densejax.data.volumes import open_volume
from densejax.inference import stream as module
from densejax.inference.stream import Stream, block_names, choose_blocks
from densejax.inference.tiles import Windowing, clip, grid_of, sizes, slices
from densejax.lease import Leases

CLASSES = 4


class Memory:
    """A sink in memory, filled with what no block writes."""

    def __init__(self, shape):
        self.maps = {n: np.full(shape, 77, np.uint8) for n in ("labels", "entropy", "disagreement")}
        self.written = []

    def write(self, inside, maps):
        self.written.append(inside)
        for name, array in maps.items():
            self.maps[name][slices(inside)] = array

    def blank(self, inside):
        size = sizes(inside)
        return {n: np.full(size, 255 * (n == "labels"), np.uint8) for n in self.maps}


class Identity:
    """A network that returns the grey level as the class."""

    def __init__(self, output, blend, tiles):
        self.output, self.blend = output, blend
        self.plan = SimpleNamespace(tiles=tiles)

    def start(self, tiles):
        return [np.array(tile) for tile in tiles]

    def finish(self, started):
        found = []
        for tile in started:
            first = [(n - o) // 2 for n, o in zip(tile.shape, self.output, strict=True)]
            inner = tile[tuple(slice(f, f + o) for f, o in zip(first, self.output, strict=True))]
            if self.blend == "gaussian":
                mean = np.moveaxis(np.eye(CLASSES, dtype=np.float32)[inner], -1, 0)
                found.append({"mean": mean, "disagreement": np.full(self.output, 0.4, np.float32)})
            else:
                found.append(
                    {
                        "labels": inner,
                        "entropy": np.full(self.output, 9, np.uint8),
                        "disagreement": np.full(self.output, 102, np.uint8),
                    }
                )
        return found


@st.composite
def cases(draw):
    axes = []
    for _ in range(3):
        volume = draw(st.integers(1, 14))
        output = draw(st.integers(1, volume))
        overlap = draw(st.integers(0, output - 1))
        margin = draw(st.integers(0, min(4, volume - 1)))
        low = draw(st.integers(0, volume - 1))
        high = draw(st.integers(low + 1, volume))
        axes.append((volume, output, overlap, output + margin, (low, high)))
    chunk = draw(st.sampled_from([None, (2, 3, 4), (1, 1, 1), (5, 5, 5)]))
    return tuple(zip(*axes, strict=True)), chunk, draw(st.sampled_from([1, 60, 700]))


@pytest.mark.parametrize("blend", ["centre", "gaussian"])
@settings(max_examples=25, deadline=None)
@given(case=cases(), tiles=st.integers(1, 3), seed=st.integers(0, 99))
def test_tiling_and_blending_the_identity_is_the_identity(
    tmp_path_factory, blend, case, tiles, seed
):
    (shape, output, overlap, window, part), chunk, voxels = case
    volume = np.random.default_rng(seed).integers(0, CLASSES, shape).astype(np.uint8)
    grid = grid_of(shape, Windowing(window, output, overlap, blend))
    blocks = choose_blocks(grid, part=part, chunk=chunk, voxels=voxels)
    if len(blocks) > 30:
        blocks = choose_blocks(grid, part=part, chunk=chunk, voxels=10**6)
    sink = Memory(sizes(part))
    folder = tmp_path_factory.mktemp("leases")
    with Leases(folder, block_names(len(blocks))) as leases:
        found = Stream(
            array=volume,
            grid=grid,
            blocks=blocks,
            tiles=Identity(output, blend, tiles),
            sink=sink,
            leases=leases,
            classes=CLASSES,
        )
        found.run()
        records = leases.records()
    shutil.rmtree(folder)
    inner = volume[slices(part)]
    np.testing.assert_array_equal(sink.maps["labels"], inner)
    np.testing.assert_array_equal(sink.maps["disagreement"], 102)  # 0.4 of 255
    np.testing.assert_array_equal(sink.maps["entropy"], 0 if blend == "gaussian" else 9)
    assert sum(record["voxels"] for record in records.values()) == inner.size
    counts = np.sum([record["classes"] for record in records.values()], axis=0)
    np.testing.assert_array_equal(counts, np.bincount(inner.ravel(), minlength=CLASSES))
    if blend == "centre":
        # Nothing was forgotten, so every window was computed once for all of its blocks.
        assert found.clock.windows == grid.count(part)


def test_windows_of_two_blocks_are_the_same_when_they_are_forgotten(tmp_path, monkeypatch):
    kept = worker.run(tmp_path / "kept")
    monkeypatch.setattr(module, "KEPT_BYTES", 0)
    forgotten = worker.run(tmp_path / "forgotten")
    assert forgotten.tiles.seen > kept.tiles.seen
    assert files_of(tmp_path / "kept") == files_of(tmp_path / "forgotten")


def files_of(folder):
    """Bytes of every image's every file."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for image in sorted(folder.glob("*.zarr"))
        for path in sorted(image.rglob("*"))
        if path.is_file() and not path.name.endswith(".__lock")
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    worker.run(folder)
    return files_of(folder)


def start(folder, seconds=0.01):
    return subprocess.Popen([sys.executable, worker.__file__, str(folder), str(seconds)])


def test_the_voxels_are_those_of_the_volume(whole, tmp_path):
    worker.run(tmp_path)
    found = open_volume(tmp_path / "labels.zarr")
    np.testing.assert_array_equal(found.read(), worker.volume())
    assert found.voxel_nm == (40.0, 8.0, 8.0)
    assert len(whole) > 10


def test_killed_again_and_again_the_bytes_are_those_of_one_run(tmp_path, whole):
    random = np.random.default_rng(0)
    log, kills = tmp_path / "log", 0
    for _ in range(5):
        child = start(tmp_path)
        before = log.stat().st_size if log.exists() else 0
        while child.poll() is None and (not log.exists() or log.stat().st_size == before):
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.2))
        kills += child.poll() is None
        child.kill()
        child.wait()
    assert start(tmp_path, 0.0).wait(timeout=60) == 0
    assert files_of(tmp_path) == whole
    blocks = log.read_text().split("\n")[:-1]
    # Marked done and reported are two moments, between which a kill may fall.
    assert kills >= 3
    assert len(blocks) == len(set(blocks)) and len(blocks) >= len(whole_blocks()) - kills


def whole_blocks():
    grid = grid_of(worker.SHAPE, Windowing(worker.WINDOW, worker.WINDOW, worker.OVERLAP))
    return block_names(len(choose_blocks(grid, chunk=(4, 12, 12), voxels=2000)))


def test_two_processes_share_a_folder_and_one_of_them_is_killed(tmp_path, whole):
    children = [start(tmp_path, 0.02), start(tmp_path, 0.02)]
    log = tmp_path / "log"
    while not log.exists() or len(log.read_text().splitlines()) < 3:
        time.sleep(0.005)
        assert any(child.poll() is None for child in children)
    children[0].kill()
    children[0].wait()
    assert children[1].wait(timeout=60) == 0
    assert files_of(tmp_path) == whole
    lines = log.read_text().splitlines()
    assert len(lines) == len(set(lines))


class Broken:
    """A volume of which one chunk cannot be read."""

    chunks = (4, 8, 8)

    def __init__(self, array, bad):
        self.array, self.bad = array, bad
        self.shape, self.dtype = array.shape, array.dtype

    def __getitem__(self, box):
        if self.bad is not None and all(
            s.start < b.stop and b.start < s.stop for s, b in zip(box, self.bad, strict=True)
        ):
            raise ValueError(f"volume.zarr/c/0/1/2: {box} cannot be read")
        return self.array[box]


BAD = (slice(4, 8), slice(16, 24), slice(24, 32))


def test_what_cannot_be_read_stops_the_run(tmp_path):
    with pytest.raises(ValueError, match=r"volume.zarr/c/0/1/2.*cannot be read"):
        worker.run(tmp_path, array=Broken(worker.volume(), (slice(10, 11),) * 3))
    # Nothing stays leased.
    assert not list((tmp_path / "blocks").glob("*.lease"))


def test_what_depends_on_voxels_that_cannot_be_read_is_left_out(tmp_path):
    array = Broken(worker.volume(), BAD)
    stream = worker.run(tmp_path, array=array, skip_unreadable=True)
    expected = worker.volume()
    chunk = tuple((s.start, s.stop) for s in BAD)
    for index in stream.grid.windows(tuple((0, size) for size in worker.SHAPE)):
        if all(low < high for low, high in clip(stream.grid.held(index), chunk)):
            expected[slices(stream.grid.own(index))] = 255
    labels = open_volume(tmp_path / "labels.zarr").read()
    np.testing.assert_array_equal(labels, expected)
    assert (labels[BAD] == 255).all() and np.mean(labels == 255) < 0.5
    records = stream.leases.records()
    said = [line for record in records.values() for line in record.get("unreadable", [])]
    # As far as a block's region holds of the chunk.
    assert "4:8,16:24,24:32: volume.zarr/c/0/1/2" in " ".join(said)
    assert all("volume.zarr/c/0/1/2" in line for line in said)
    missing = sum(record["voxels"] - sum(record["classes"]) for record in records.values())
    assert missing == (labels == 255).sum()


def test_blended_windows_that_cannot_be_read_blank_all_that_they_hold(tmp_path):
    shape, output = (2, 4, 40), (2, 4, 10)
    grid = grid_of(shape, Windowing(output, output, (0, 0, 4), "gaussian"))
    blocks = choose_blocks(grid, chunk=(2, 4, 5), voxels=200)
    sink = Memory(shape)
    volume = np.random.default_rng(0).integers(0, CLASSES, shape).astype(np.uint8)
    with Leases(tmp_path, block_names(len(blocks))) as leases:
        Stream(
            array=Broken(volume, (slice(0, 1), slice(0, 1), slice(16, 17))),
            grid=grid,
            blocks=blocks,
            tiles=Identity(output, "gaussian", 2),
            sink=sink,
            leases=leases,
            classes=CLASSES,
            skip_unreadable=True,
        ).run()
    # The chunk is 16 to 24; windows begin at 0, 6, 12, 18, 24, 30 and hold 10.
    lost = np.zeros(shape, bool)
    lost[..., 12:28] = True
    np.testing.assert_array_equal(sink.maps["labels"], np.where(lost, 255, volume))
    assert not sink.maps["disagreement"][lost].any()


def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_room(tmp_path, whole, monkeypatch):
    class Full:
        def result(self):
            raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    class Store:
        def __init__(self, store):
            self.store, self.writes = store, 0

        def __getitem__(self, place):
            self.writes += 1
            if self.writes == 3:
                return SimpleNamespace(write=lambda array: Full())
            return self.store[place]

    real = worker.Outputs

    def limited(folder, layout):
        outputs = real(folder, layout)
        outputs._stores = dict(outputs._stores, labels=Store(outputs._stores["labels"]))
        return outputs

    monkeypatch.setattr(worker, "Outputs", limited)
    with pytest.raises(OSError, match=r"labels.zarr: block .* MB free.*No space left"):
        worker.run(tmp_path)
    assert not list((tmp_path / "blocks").glob("*.lease"))
    monkeypatch.setattr(worker, "Outputs", real)
    worker.run(tmp_path)
    assert files_of(tmp_path) == whole


def test_time_that_was_lost_is_told(tmp_path):
    class Slow(Broken):
        def __getitem__(self, box):
            time.sleep(0.05)
            return self.array[box]

    clock = worker.run(tmp_path, array=Slow(worker.volume(), None)).clock
    assert clock.reading > 0.2 and clock.idle >= clock.reading
    assert clock.wall >= clock.idle
