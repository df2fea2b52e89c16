"""Pyramids equal a brute-force one, whatever the chunks, the threads and the kills."""

import itertools
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
import tensorstore as ts
from hypothesis import given, settings
from hypothesis import strategies as st

from densejax.data import ngff, ome_zarr, pyramid
from densejax.data.blocks import cut_blocks
from densejax.data.ome_zarr import create_image, open_level, read_attributes
from densejax.data.pyramid import build_pyramid, halve_labels, halve_mean, pyramid_factors

VOXEL = (50.0, 10.0, 10.0)


def brute(array, steps, choose):
    """Cell by cell, in Python."""
    shape = [-(-n // s) for n, s in zip(array.shape, steps, strict=True)]
    found = np.empty(shape, array.dtype)
    for place in itertools.product(*map(range, shape)):
        box = tuple(slice(i * s, (i + 1) * s) for i, s in zip(place, steps, strict=True))
        found[place] = choose(array[box].ravel().tolist())
    return found


def majority(values, ignored=None):
    counted = Counter(v for v in values if v != ignored)
    return max(counted, key=lambda v: (counted[v], -v)) if counted else ignored


def rounded_mean(values):
    """Python rounds a half to the even number; the sum of whole numbers is exact."""
    total, count = sum(values), len(values)
    low, rest = divmod(total, count)
    if 2 * rest == count:
        return low + low % 2
    return low + (2 * rest > count)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.integers(1, 7)] * 3),
    st.tuples(*[st.sampled_from([1, 2])] * 3),
    st.sampled_from(["uint8", "uint32", "int16"]),
    st.sampled_from([None, 3, 0]),
    st.integers(0, 2**31),
)
def test_labels_are_halved_by_majority(shape, steps, dtype, ignored, seed):
    labels = np.random.default_rng(seed).integers(0, 4, shape).astype(dtype)
    found = halve_labels(labels, steps, not_counted=ignored)
    expected = brute(labels, steps, lambda values: majority(values, ignored))
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == labels.dtype


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.integers(1, 7)] * 3),
    st.tuples(*[st.sampled_from([1, 2])] * 3),
    st.sampled_from(["uint8", "int8", "uint16", "int32", "uint64", "int64"]),
    st.integers(0, 2**31),
)
def test_intensities_are_halved_by_the_rounded_mean(shape, steps, dtype, seed):
    info = np.iinfo(dtype)
    values = np.random.default_rng(seed).integers(
        info.min, info.max, shape, dtype=dtype, endpoint=True
    )
    values[values % 3 == 0] = info.max  # sums that would overflow
    found = halve_mean(values, steps)
    np.testing.assert_array_equal(found, brute(values, steps, rounded_mean))
    assert found.dtype == values.dtype


def test_floats_are_halved_by_the_mean():
    values = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    found = halve_mean(values, (1, 2, 2))
    expected = brute(values, (1, 2, 2), lambda cell: sum(cell) / len(cell))
    np.testing.assert_array_equal(found, expected)


def test_tensorstore_finds_the_same_majority():
    array = np.random.default_rng(0).integers(0, 5, (9, 13, 17)).astype(np.uint8)
    view = ts.downsample(ts.array(array), [1, 2, 2], method="mode")
    np.testing.assert_array_equal(halve_labels(array, (1, 2, 2)), view.read().result())


def test_bad_steps_are_refused():
    with pytest.raises(ValueError, match="expected 1 or 2 for each of 3 axes"):
        halve_labels(np.zeros((2, 2, 2), np.uint8), (2, 3, 1))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), min_size=1, max_size=4),
    st.integers(1, 5000),
)
def test_blocks_cover_every_voxel_once(sizes, voxels):
    shape, step = zip(*sizes, strict=True)
    seen = np.zeros(shape, int)
    boxes = cut_blocks(shape, step, voxels=voxels)
    for box in boxes:
        seen[box] += 1
        assert all(
            s.start % t == 0 and (s.stop % t == 0 or s.stop == n)
            for s, t, n in zip(box, step, shape, strict=True)
        )
        held = math.prod(s.stop - s.start for s in box)
        assert held <= max(voxels, math.prod(step))
    assert (seen == 1).all()


def test_voxels_become_cubes_and_one_chunk_ends_it():
    found = pyramid_factors((100, 1000, 1000), (16, 64, 64), VOXEL)
    assert found == [(1, 1, 1), (1, 2, 2), (1, 4, 4), (2, 8, 8), (4, 16, 16), (8, 32, 32)]
    assert pyramid_factors((16, 64, 64), (16, 64, 64), VOXEL) == [(1, 1, 1)]
    assert pyramid_factors((1, 100, 100), (1, 64, 64), (1, 1, 1)) == [(1, 1, 1), (1, 2, 2)]
    assert pyramid_factors((64, 64, 64), (64, 64, 32), (1, 10, 10))[1] == (2, 1, 1)


def expected_levels(array, labels, ignored=None):
    factors = pyramid_factors(array.shape, (4, 8, 8), VOXEL)
    found = [array]
    for before, after in itertools.pairwise(factors):
        steps = [1] * (array.ndim - 3) + [b // a for a, b in zip(before, after, strict=True)]
        choose = (lambda values: majority(values, ignored)) if labels else rounded_mean
        found.append(brute(found[-1], steps, choose))
    return found


@pytest.mark.parametrize("version", ngff.VERSIONS)
@pytest.mark.parametrize("kind", ["labels", "image", "channels", "sharded"])
@pytest.mark.parametrize("part", [256, 2**24])
def test_a_pyramid_equals_the_brute_force_one(tmp_path, monkeypatch, version, kind, part):
    monkeypatch.setattr(pyramid, "PART_VOXELS", part)
    if kind == "sharded" and version == "0.4":
        pytest.skip("Zarr 2 has no shards")
    shape = (2, 9, 33, 21) if kind == "channels" else (9, 33, 21)
    options = {
        "labels": {"kind": "labels", "attributes": {"not_predicted": 255}},
        "image": {},
        "channels": {"channel_names": ("a", "b")},
        "sharded": {"shards": (8, 16, 16)},
    }[kind]
    array = np.random.default_rng(1).integers(0, 5, shape).astype(np.uint8)
    if kind == "labels":
        array[array == 4] = 255
        array[:, :8] = 255
    path = tmp_path / "a.zarr"
    create_image(
        path,
        shape=shape,
        dtype=np.uint8,
        chunks=(4, 8, 8),
        voxel_nm=VOXEL,
        version=version,
        offset=(1, 2, 3),
        **options,
    )
    open_level(path, write=True).write(array).result()
    told = []
    levels = build_pyramid(path, progress=lambda done, total: told.append((done, total)))
    expected = expected_levels(array, kind == "labels", 255)
    assert len(levels) == len(expected) == 5
    for number, level in enumerate(expected):
        np.testing.assert_array_equal(open_level(path, level=number).read().result(), level)
        assert not (levels[number] / pyramid.DONE).exists()
    assert told[-1][0] == told[-1][1] == sum(level.size for level in expected[:-1])
    multiscale = read_attributes(path)["multiscales"][0]
    assert multiscale["type"] == ("majority" if kind == "labels" else "mean")
    # Voxel (0, 0, 0) of level 1 covers voxels 0 and 1 along y and x.
    assert ngff.scale_and_translation(multiscale["datasets"][1]) == ([50, 20, 20], [50, 25, 35])


def test_the_readers_of_others_find_all_levels(tmp_path):
    zarr = pytest.importorskip("zarr", reason="the zarr package is not installed (test extra)")
    pytest.importorskip("ome_zarr", reason="the ome-zarr package is not installed (test extra)")
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    path = tmp_path / "labels.zarr"
    create_image(
        path, shape=(8, 40, 40), dtype=np.uint8, chunks=(4, 8, 8), voxel_nm=VOXEL, kind="labels"
    )
    open_level(path, write=True)[2:6].write(np.uint8(3)).result()
    levels = build_pyramid(path)
    (node,) = list(Reader(parse_url(str(path)))())
    group = zarr.open_group(str(path), mode="r")
    assert len(node.data) == len(levels)
    for number, data in enumerate(node.data):
        held = open_level(path, level=number).read().result()
        np.testing.assert_array_equal(np.asarray(data), held)
        np.testing.assert_array_equal(group[str(number)][...], held)


def random_image(path):
    create_image(
        path,
        shape=(24, 160, 160),
        dtype=np.uint8,
        chunks=(8, 16, 16),
        voxel_nm=VOXEL,
        kind="labels",
    )
    rng = np.random.default_rng(2)
    open_level(path, write=True).write(rng.integers(0, 3, (24, 160, 160)).astype(np.uint8)).result()


def files(folder):
    return {
        file.relative_to(folder): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not file.name.endswith(".__lock")
    }


SLOWED = """
import sys, time
from densejax.data import pyramid
written = pyramid._write_block
def slowly(*arguments):
    written(*arguments)
    print("block", flush=True)
    time.sleep(0.02)
pyramid._write_block, pyramid.PART_VOXELS = slowly, 2**13
pyramid.build_pyramid(sys.argv[1])
"""


def test_killed_builds_go_on_and_end_the_same(tmp_path):
    paths = tmp_path / "whole.zarr", tmp_path / "whole" / "whole.zarr"
    for path in paths:
        random_image(path)
    build_pyramid(paths[0])
    rng, killed = np.random.default_rng(3), 0
    for _ in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", SLOWED, str(paths[1])], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(rng.uniform(0, 0.3))
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
            killed += 1
        child.communicate()
        if not killed or child.returncode == 0:
            break
    build_pyramid(paths[1])
    assert killed
    assert files(paths[0]) == files(paths[1])


def test_a_finished_pyramid_is_left_alone(tmp_path, monkeypatch):
    path = tmp_path / "a.zarr"
    random_image(path)
    levels, before = build_pyramid(path), files(path)
    monkeypatch.setattr(pyramid, "_write_block", None)
    assert build_pyramid(path) == levels
    assert files(path) == before


def test_a_torn_line_of_the_log_is_dropped(tmp_path):
    log = tmp_path / pyramid.DONE
    log.write_text("0:8,0:16\n8:16,0:16\n16:24")
    assert pyramid._read_log(log) == {"0:8,0:16", "8:16,0:16"}
    assert log.read_text() == "0:8,0:16\n8:16,0:16\n"


def test_an_unreadable_chunk_is_named(tmp_path):
    path = tmp_path / "a.zarr"
    random_image(path)
    (path / "0" / "c" / "1" / "2" / "3").write_bytes(b"no chunk")
    with pytest.raises(ValueError, match=r"a\.zarr/0/.*cannot be read"):
        build_pyramid(path)
    assert len(read_attributes(path)["multiscales"][0]["datasets"]) == 1
    with pytest.raises(FileNotFoundError, match="no OME-Zarr image"):
        build_pyramid(tmp_path / "b.zarr")


def test_levels_keep_the_chunks_and_the_compression(tmp_path):
    path = tmp_path / "a.zarr"
    random_image(path)
    first, *others = (ome_zarr.open_array(level) for level in build_pyramid(path))
    for other in others:
        assert other.chunk_layout.read_chunk.shape == first.chunk_layout.read_chunk.shape
        assert other.codec.to_json() == first.codec.to_json()
