"""Measures of objects against scikit-image, brute force, and the formulas of balls and boxes."""

import csv
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from densejax.segmentation.objects.measures import DIRECTIONS, _crossing_areas, measure_objects
from densejax.segmentation.objects.segmentation import (
    object_columns,
    summarise,
    write_csv,
    write_parquet,
)

VOXEL = (50.0, 10.0, 8.0)


def random_objects(rng, shape, density=0.4):
    """Objects of three classes, and the class of each."""
    labels = rng.integers(1, 4, shape) * (rng.random(shape) < density)
    ids, count = np.zeros(shape, np.uint32), 0
    classes = []
    for label in (1, 2, 3):
        parts, more = ndimage.label(labels == label)
        ids[parts > 0] = parts[parts > 0] + count
        classes += [label] * more
        count += more
    return ids, np.array(classes, int)


def brute_crossings(ids, number):
    inside = np.pad(ids == number, 2)
    return [
        int((inside != np.roll(inside, step, (0, 1, 2))).sum()) for step in np.array(DIRECTIONS)
    ]


def brute_contacts(ids):
    z, y, x = VOXEL
    found: dict[tuple[int, int], float] = {}
    for place in np.ndindex(*ids.shape):
        for axis, area in enumerate((y * x, z * x, z * y)):
            other = list(place)
            other[axis] += 1
            if other[axis] < ids.shape[axis]:
                a, b = sorted((int(ids[place]), int(ids[tuple(other)])))
                pair = a, b
                if pair[0] and pair[0] != pair[1]:
                    found[pair] = found.get(pair, 0) + area
    return found


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    chunks=st.tuples(*[st.integers(1, 6)] * 3),
    block=st.integers(1, 300),
    seed=st.integers(0, 2**31),
)
def test_blocks_measure_what_scikit_image_and_brute_force_do(shape, chunks, block, seed):
    measure = pytest.importorskip("skimage.measure", reason="scikit-image is not installed")
    rng = np.random.default_rng(seed)
    ids, classes = random_objects(rng, shape)
    image = rng.integers(0, 256, shape).astype(np.uint8)
    chance = rng.integers(0, 256, (4, *shape)).astype(np.uint8)
    found = measure_objects(
        ids,
        classes=classes,
        voxel_nm=VOXEL,
        origin_nm=(100.0, 0.0, 0.0),
        maps={"entropy": image},
        probabilities=chance,
        chunks=chunks,
        block_voxels=block,
        threads=1,
    )
    areas = _crossing_areas(VOXEL)
    for region in measure.regionprops(ids.astype(int)):
        i, inside = region.label - 1, ids == region.label
        assert found.voxels[i] == region.num_pixels
        assert [*found.low[i], *found.high[i]] == list(region.bbox)
        np.testing.assert_allclose(found.centre[i], region.centroid, rtol=1e-12)
        np.testing.assert_allclose(
            found.centre_nm[i], np.array(region.centroid) * VOXEL + [100, 0, 0], rtol=1e-12
        )
        np.testing.assert_allclose(found.means["entropy"][i], image[inside].mean() / 255)
        np.testing.assert_allclose(
            found.means["probability"][i], chance[classes[i]][inside].mean() / 255
        )
        np.testing.assert_allclose(found.surface_nm2[i], brute_crossings(ids, i + 1) @ areas)
        edge = [
            n > 1 and (low == 0 or high == n)
            for low, high, n in zip(found.low[i], found.high[i], shape, strict=True)
        ]
        assert found.touches_border[i] == any(edge)
    pairs = {tuple(p): a for p, a in zip(found.pairs.tolist(), found.contact_nm2, strict=True)}
    assert pairs == pytest.approx(brute_contacts(ids))
    assert list(pairs) == sorted(pairs)
    np.testing.assert_allclose(found.volume_nm3, found.voxels * math.prod(VOXEL))


def lattice(extent, voxel, rng):
    """Voxel centres [z, y, x, 3] around a body of half-width ``extent``, randomly placed."""
    sizes = [int(np.ceil(2 * extent / v)) + 3 for v in voxel]
    axes = [(np.arange(n) - n / 2 + rng.random()) * v for n, v in zip(sizes, voxel, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1)


def surface_of(inside, voxel):
    found = measure_objects(
        inside.astype(np.uint32), classes=np.array([1]), voxel_nm=voxel, threads=1
    )
    return found.surface_nm2[0]


@pytest.mark.parametrize("voxel", [(10, 10, 10), (20, 10, 10), (50, 10, 10), (40, 4, 4)])
@pytest.mark.parametrize("radius", [100, 250])
def test_the_surface_of_balls(voxel, radius):
    rng = np.random.default_rng(0)
    found = []
    for _ in range(5):
        centres = lattice(radius, voxel, rng)
        found.append(surface_of(np.linalg.norm(centres, axis=-1) < radius, voxel))
    # A ball of 100 nm in sections of 50 nm is four sections deep.
    assert np.mean(found) == pytest.approx(4 * np.pi * radius**2, rel=0.02)
    assert np.std(found) < 0.04 * np.mean(found)


@pytest.mark.parametrize("voxel", [(10, 10, 10), (20, 10, 10), (50, 10, 10)])
@pytest.mark.parametrize("halves", [(150, 150, 150), (60, 250, 250), (60, 60, 400)])
def test_the_surface_of_boxes_in_any_orientation(voxel, halves):
    a, b, c = halves
    rng = np.random.default_rng(1)
    centres = lattice(np.linalg.norm(halves), voxel, rng)
    found = []
    for rotation in Rotation.random(6, rng=rng):
        turned = rotation.apply(centres.reshape(-1, 3)).reshape(centres.shape)
        found.append(surface_of((np.abs(turned) < halves).all(-1), voxel))
    # Edges and corners are rounded off by the voxels: the estimate is a little low, the more so the
    # coarser the voxels are against the body.
    assert np.mean(found) == pytest.approx(8 * (a * b + b * c + a * c), rel=0.1)


@pytest.mark.parametrize(
    ("voxel", "expected"), [((10, 10, 10), (0.926,) * 3), ((50, 10, 10), (0.77, 0.86, 0.86))]
)
def test_flat_faces_along_the_grid_are_underestimated_as_stated(voxel, expected):
    """One flat face has |cos| of each direction crossings per lattice point of it."""
    steps = np.array(DIRECTIONS)
    for axis, share in enumerate(expected):
        others = np.delete(np.array(voxel, float), axis)
        per_point = np.abs(steps[:, axis]) @ _crossing_areas(voxel)
        assert per_point / np.prod(others) == pytest.approx(share, abs=0.005)


def test_what_does_not_fit_is_named():
    ids = np.ones((3, 4, 5), np.uint32)
    with pytest.raises(ValueError, match=r"entropy is \(3, 4, 4\); expected the objects' \(3, 4"):
        measure_objects(ids, classes=np.array([1]), voxel_nm=VOXEL, maps={"entropy": ids[..., :4]})
    with pytest.raises(ValueError, match="class 3; probabilities are of 2 classes"):
        measure_objects(
            ids, classes=np.array([3]), voxel_nm=VOXEL, probabilities=np.ones((2, 3, 4, 5))
        )
    with pytest.raises(ValueError, match=r"object 1 in .*expected 0\.\.0"):
        measure_objects(ids, classes=np.zeros(0, int), voxel_nm=VOXEL)


def test_a_measurement_goes_on_from_its_blocks(tmp_path, monkeypatch):
    ids, classes = random_objects(np.random.default_rng(4), (9, 9, 9))
    options = {"classes": classes, "voxel_nm": VOXEL, "chunks": (4, 4, 4), "block_voxels": 64}
    first = measure_objects(ids, folder=tmp_path, **options)
    monkeypatch.setattr("densejax.segmentation.objects.measures._measure_block", None)
    again = measure_objects(ids, folder=tmp_path, **options)
    np.testing.assert_array_equal(first.surface_nm2, again.surface_nm2)
    np.testing.assert_array_equal(first.pairs, again.pairs)


def small_table():
    ids, classes = random_objects(np.random.default_rng(5), (5, 6, 7))
    objects = measure_objects(ids, classes=classes, voxel_nm=VOXEL, maps={"entropy": np.uint8(ids)})
    return objects, object_columns(objects, class_names=["background", "cell", "vessel"])


def test_csv_and_parquet_hold_the_same_rows(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (instances)")
    objects, columns = small_table()
    with write_csv(columns, tmp_path / "objects.csv").open() as file:
        rows = list(csv.DictReader(file))
    table = parquet.read_table(write_parquet(columns, tmp_path / "objects.parquet")).to_pylist()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["objects.csv", "objects.parquet"]
    assert len(rows) == len(table) == len(objects.voxels)
    for text, row in zip(rows, table, strict=True):
        assert list(text) == list(row)
        assert int(text["id"]) == row["id"] and int(text["voxels"]) == row["voxels"]
        assert float(text["surface_nm2"]) == pytest.approx(row["surface_nm2"], rel=1e-9)
        assert [int(v) for v in text["neighbours"].split(";") if v] == row["neighbours"]
        areas = [float(v) for v in text["contact_nm2"].split(";") if v]
        assert areas == pytest.approx(row["contact_nm2"])
        assert text["touches_border"] == str(row["touches_border"])
    assert {row["class_name"] for row in table} == {"cell", "vessel", "class 3"}


def test_neighbours_are_listed_for_both():
    objects, columns = small_table()
    listed = {
        (i + 1, other): area
        for i, (others, areas) in enumerate(
            zip(columns["neighbours"], columns["contact_nm2"], strict=True)
        )
        for other, area in zip(others, areas, strict=True)
    }
    for (a, b), area in zip(objects.pairs.tolist(), objects.contact_nm2, strict=True):
        assert listed.pop((a, b)) == listed.pop((b, a)) == area
    assert not listed


def test_a_summary_has_one_row_a_class():
    objects, _ = small_table()
    found = summarise(objects, 5 * 6 * 7, class_names=["background", "cell"])
    assert found["class"] == [1, 2, 3] and found["class_name"] == ["cell", "class 2", "class 3"]
    for i, label in enumerate((1, 2, 3)):
        volumes = objects.voxels[objects.classes == label] * math.prod(VOXEL)
        assert found["objects"][i] == len(volumes)
        assert found["median_nm3"][i] == np.median(volumes)
        assert found["per_um3"][i] == pytest.approx(len(volumes) / (210 * math.prod(VOXEL) * 1e-9))
        assert found["share_of_volume"][i] == pytest.approx(
            volumes.sum() / (210 * math.prod(VOXEL))
        )
    assert list(itertools.chain(*summarise(_none(), 10).values())) == []


def _none():
    return measure_objects(np.zeros((2, 2, 2), np.uint32), classes=np.zeros(0, int), voxel_nm=VOXEL)


def test_a_volume_without_objects_has_an_empty_table(tmp_path):
    columns = object_columns(_none())
    lines = write_csv(columns, tmp_path / "objects.csv").read_text().splitlines()
    assert len(lines) == 1 and lines[0].startswith("id,class,class_name,voxels,volume_nm3")
