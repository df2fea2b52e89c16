"""Components block by block are those of the whole, whatever the blocks, kills and library."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from densejax.data.ome_zarr import open_level
from densejax.data.volumes import Volume, open_volume
from densejax.segmentation.objects.block import Selection, _library_used, label_block
from densejax.segmentation.objects.components import ComponentSearch, Keep

VOXEL = (50.0, 10.0, 10.0)
LIBRARIES = ["scipy", "cc3d"]


def need(library):
    if library == "cc3d":
        pytest.importorskip("cc3d", reason="connected-components-3d is not installed (instances)")


def whole(labels, connectivity, selection=None):
    """SciPy on the whole volume, class by class, numbered by the first voxel."""
    structure = ndimage.generate_binary_structure(3, {6: 1, 18: 2, 26: 3}[connectivity])
    found, count = np.zeros(labels.shape, np.int64), 0
    for label in np.unique(labels):
        chosen = label > 0 if selection is None else label in selection
        if chosen:
            parts, more = ndimage.label(labels == label, structure)
            found[parts > 0] = parts[parts > 0] + count
            count += more
    values, first = np.unique(found, return_index=True)
    order = values[values > 0][np.argsort(first[values > 0])]
    names = np.zeros(count + 1, np.int64)
    names[order] = np.arange(1, count + 1)
    return names[found]


def search(labels, folder, **options):
    given = {"selection": Selection(), "chunks": (4, 4, 4), "block_voxels": 1, "threads": 1}
    return ComponentSearch(Volume(labels, VOXEL, "labels.tif"), Path(folder), **given | options)


def run(labels, folder, **options):
    found = search(labels, Path(folder) / "blocks", **options)
    components = found.find()
    found.write(Path(folder) / "instances.zarr", attributes={})
    return components, open_level(Path(folder) / "instances.zarr").read().result()


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 13)] * 3),
    chunks=st.tuples(*[st.integers(1, 6)] * 3),
    block=st.integers(1, 200),
    connectivity=st.sampled_from([6, 18, 26]),
    values=st.integers(1, 3),
    density=st.floats(0.05, 0.9),
    seed=st.integers(0, 2**31),
)
def test_blocks_give_the_components_of_the_whole(
    shape, chunks, block, connectivity, values, density, seed
):
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, values + 1, shape) * (rng.random(shape) < density)
    labels = labels.astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        components, ids = run(
            labels, folder, chunks=chunks, block_voxels=block, connectivity=connectivity
        )
    expected = whole(labels, connectivity)
    np.testing.assert_array_equal(ids, expected)
    assert ids.dtype == np.uint32
    count = expected.max()
    assert components.found == len(components.classes) == count
    np.testing.assert_array_equal(components.voxels, np.bincount(expected.ravel())[1:])
    for number, box in enumerate(ndimage.find_objects(expected)):
        assert [s.start for s in box] == components.low[number].tolist()
        assert [s.stop for s in box] == components.high[number].tolist()
        assert components.classes[number] == labels[expected == number + 1][0]


@pytest.mark.parametrize("corner", list(np.ndindex(2, 2, 2)))
@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_neighbours_across_faces_edges_and_corners_of_blocks(tmp_path, corner, connectivity):
    """Two voxels on either side of the point where eight blocks meet."""
    labels = np.zeros((8, 8, 8), np.uint8)
    one = 3 + np.array(corner)
    labels[tuple(one)] = 1
    for other in np.ndindex(2, 2, 2):
        both = labels.copy()
        both[tuple(3 + np.array(other))] = 1
        folder = tmp_path / "".join(map(str, other))
        _, ids = run(both, folder, connectivity=connectivity)
        np.testing.assert_array_equal(ids, whole(both, connectivity))


def test_a_snake_through_all_blocks_is_one(tmp_path):
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[::2, ::2] = 1
    labels[::4, 1::4, -1] = labels[::4, 3::4, 0] = 1
    labels[2::4, 1::4, -1] = labels[2::4, 3::4, 0] = 1
    labels[1::4, -1, -1] = labels[3::4, 0, 0] = 1
    components, ids = run(labels, tmp_path, connectivity=6)
    assert components.voxels.tolist() == [labels.sum()] and (ids == labels).all()


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("connectivity", [6, 18, 26])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "int64"])
def test_libraries_number_a_block_alike(library, connectivity, dtype):
    need(library)
    labels = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 4, (9, 11, 13))
    labels = labels.astype(dtype)
    ids, codes = label_block(Selection().of(labels), connectivity=connectivity, library=library)
    expected = whole(labels, connectivity)
    np.testing.assert_array_equal(ids, expected)
    firsts = [labels[expected == i][0] for i in range(1, expected.max() + 1)]
    np.testing.assert_array_equal(codes - 1, firsts)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_chosen_classes_alone_are_labelled(tmp_path, dtype):
    labels = np.random.default_rng(1).choice([0, 1, 2, 7, 255], (9, 10, 11)).astype(dtype)
    for name, classes in (("a", (0, 7)), ("b", (255,))):
        _, ids = run(labels, tmp_path / name, selection=Selection(classes))
        np.testing.assert_array_equal(ids, whole(labels, 26, classes))
    _, ids = run(labels, tmp_path / "c", selection=Selection(None, (255,)))
    np.testing.assert_array_equal(ids, whole(np.where(labels == 255, 0, labels), 26))


def test_what_is_not_labelled_is_no_object(tmp_path):
    labels = np.full((5, 5, 5), -1, np.int32)
    labels[2] = 3
    components, ids = run(labels, tmp_path)
    assert components.classes.tolist() == [3] and (ids == (labels == 3)).all()


def test_filters_by_size_and_border(tmp_path):
    labels = (np.random.default_rng(2).random((12, 13, 14)) < 0.15).astype(np.uint8)
    expected = whole(labels, 26)
    sizes = np.bincount(expected.ravel())
    boxes = ndimage.find_objects(expected)
    edge = [
        any(s.start == 0 or s.stop == n for s, n in zip(box, labels.shape, strict=True))
        for box in boxes
    ]
    for name, keep, rule in (
        ("a", Keep(min_voxels=3), lambda i: sizes[i] >= 3),
        ("b", Keep(max_voxels=4), lambda i: sizes[i] <= 4),
        ("c", Keep(min_nm3=3 * 5000), lambda i: sizes[i] >= 3),
        ("d", Keep(exclude_border=True), lambda i: not edge[i - 1]),
        ("e", Keep(2, 5, 0.0, True), lambda i: 2 <= sizes[i] <= 5 and not edge[i - 1]),
    ):
        components, ids = run(labels, tmp_path / name, keep=keep)
        kept = [i for i in range(1, len(sizes)) if rule(i)]
        names = np.zeros(len(sizes), int)
        names[kept] = np.arange(1, len(kept) + 1)
        np.testing.assert_array_equal(ids, names[expected])
        assert components.found == len(sizes) - 1 and len(components.voxels) == len(kept) > 0


def test_the_border_of_a_single_section_is_that_of_its_plane(tmp_path):
    labels = np.zeros((1, 9, 9), np.uint8)
    labels[0, 3:5, 3:5] = labels[0, 0, 0] = 1
    components, _ = run(labels, tmp_path, keep=Keep(exclude_border=True))
    assert components.voxels.tolist() == [4]


@pytest.mark.parametrize("labels", [np.zeros((5, 6, 7), np.uint8), np.ones((5, 6, 7), np.uint8)])
def test_nothing_and_everything(tmp_path, labels):
    components, ids = run(labels, tmp_path)
    assert len(components.voxels) == labels.max() and (ids == labels).all()


KILLED = """
import sys, time
from pathlib import Path
from densejax.data.volumes import open_volume
from densejax.segmentation.objects import components
from densejax.segmentation.objects.block import Selection
labelled = components.label_block
def slowly(*arguments, **options):
    print("block", flush=True)
    time.sleep(0.01)
    return labelled(*arguments, **options)
components.label_block = slowly
folder = Path(sys.argv[2])
found = components.ComponentSearch(
    open_volume(sys.argv[1]), folder / "blocks",
    selection=Selection(), chunks=(8, 16, 16), block_voxels=2048, threads=2,
)
found.find()
found.write(folder / "instances.zarr", attributes={})
"""


def files(folder):
    return {
        file.relative_to(folder): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not file.name.endswith(".__lock")
    }


def test_killed_searches_go_on_and_end_the_same(tmp_path):
    from densejax.data.ome_zarr import create_image

    rng = np.random.default_rng(3)
    labels = ndimage.uniform_filter(rng.random((24, 64, 64)), 3) > 0.52
    create_image(
        tmp_path / "labels.zarr",
        shape=labels.shape,
        dtype=np.uint8,
        chunks=(8, 16, 16),
        voxel_nm=VOXEL,
        kind="labels",
    )
    open_level(tmp_path / "labels.zarr", write=True).write(labels.astype(np.uint8)).result()
    killed = 0
    for attempt in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path / "labels.zarr"), str(tmp_path / "killed")],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(rng.uniform(0, 0.4))
        if attempt < 5 and child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
            killed += 1
        child.communicate()
        if child.returncode == 0:
            break
    assert killed and child.returncode == 0
    volume = open_volume(tmp_path / "labels.zarr")
    _, ids = run(volume.array, tmp_path / "whole", chunks=(8, 16, 16), block_voxels=2048)
    np.testing.assert_array_equal(ids, whole(labels.astype(np.uint8), 26))
    assert files(tmp_path / "killed/instances.zarr") == files(tmp_path / "whole/instances.zarr")


def test_bad_searches_are_refused(tmp_path):
    labels = np.ones((5, 6, 7), np.uint8)
    with pytest.raises(ValueError, match=r"labels\.tif: labels are float32; expected integers"):
        search(labels.astype(np.float32), tmp_path / "a")
    with pytest.raises(ValueError, match=r"classes \(-1,\): expected one or more, from 0 on"):
        Selection((-1,))
    with pytest.raises(ValueError, match="connectivity 8: expected one of"):
        label_block(labels, connectivity=8)
    search(labels, tmp_path / "b").find()
    with pytest.raises(ValueError, match="another search: connectivity was 26 and is 6"):
        search(labels, tmp_path / "b", connectivity=6)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cc3d", None)
    assert _library_used("auto") == "scipy"
    with pytest.raises(ImportError, match=r"pip install 'densejax\[instances\]'"):
        _library_used("cc3d")
