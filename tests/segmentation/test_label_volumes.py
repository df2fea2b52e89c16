"""Label volumes find their place over one another, or say why they do not."""

import json

import h5py
import numpy as np
import pytest
import tifffile

from densejax.data import ome_zarr
from densejax.segmentation.label_volumes import lay_over, open_labelling, settle_classes

VOXEL = (50.0, 10.0, 10.0)
NAMES = ("background", "cell", "mitochondrion")


def prediction_folder(folder, array, *, offset=(0, 0, 0), version="0.5"):
    """What ``experiments.predict`` leaves, as far as a comparison reads it."""
    folder.mkdir()
    about = {
        "volume": "nowhere.tif",
        "shape": array.shape,
        "voxel_nm": VOXEL,
        "offset": offset,
        "class_names": NAMES,
        "organelles": [2],
        "not_predicted": 255,
    }
    (folder / "prediction.json").write_text(json.dumps(about))
    ome_zarr.create_image(
        folder / "labels.zarr",
        shape=array.shape,
        dtype="uint8",
        chunks=(4, 8, 8),
        voxel_nm=VOXEL,
        version=version,
        kind="labels",
        offset=offset,
        class_names=NAMES,
        attributes={"not_predicted": 255},
    )
    ome_zarr.open_level(folder / "labels.zarr", write=True)[...] = array
    return folder


@pytest.fixture
def array():
    return np.random.default_rng(0).integers(0, 3, (5, 9, 10)).astype(np.uint8)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("inner", ["", "labels.zarr"])
def test_a_prediction_says_what_it_is(tmp_path, array, version, inner):
    folder = prediction_folder(tmp_path / "out", array, offset=(3, 0, 8), version=version)
    found = open_labelling(folder / inner, name="prediction")
    assert found.offset == (3, 0, 8) and found.unlabelled == 255 and found.class_names == NAMES
    assert found.voxel_nm == VOXEL and found.folder == folder
    np.testing.assert_array_equal(found.array[...], array)


def test_an_array_in_a_file_and_what_the_caller_says(tmp_path, array):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["first"] = array
        file["second"] = array[::-1]
    found = open_labelling(
        f"{tmp_path / 'a.h5'}::second",
        name="labels",
        voxel_nm=VOXEL,
        offset=(1, 2, 3),
        unlabelled=0,
    )
    np.testing.assert_array_equal(found.array[...], array[::-1])
    assert found.offset == (1, 2, 3) and found.unlabelled == 0 and found.folder is None
    assert found.path.endswith("a.h5::second")


def labelling(tmp_path, name, shape, **options):
    path = tmp_path / f"{name}.tif"
    tifffile.imwrite(path, np.zeros(shape, np.uint8), photometric="minisblack")
    return open_labelling(path, name=name, voxel_nm=VOXEL, **options)


def test_the_same_shape_is_the_same_box(tmp_path, array):
    prediction = open_labelling(
        prediction_folder(tmp_path / "out", array, offset=(3, 0, 8)), name="prediction"
    )
    placed, region = lay_over([prediction, labelling(tmp_path, "labels", array.shape)])
    assert placed[1].offset == (3, 0, 8) and region.start == (3, 0, 8)
    first, second = (labelling(tmp_path, name, array.shape) for name in "ab")
    placed, region = lay_over([first, second])
    assert region.start == (0, 0, 0) and region.shape == array.shape


def test_one_within_the_other(tmp_path):
    prediction = labelling(tmp_path, "prediction", (5, 9, 10), offset=(3, 0, 8))
    whole = labelling(tmp_path, "labels", (9, 20, 30), offset=(0, 0, 0))
    assert lay_over([prediction, whole])[1].start == (3, 0, 8)
    crop = labelling(tmp_path, "crop", (2, 3, 4), offset=(4, 1, 9))
    placed, region = lay_over([prediction, crop])
    assert region.start == (4, 1, 9) and region.shape == (2, 3, 4)
    box = (slice(0, 1), slice(1, 3), slice(0, 4))
    assert region.slices(box, placed[0]) == (slice(1, 2), slice(2, 4), slice(1, 5))
    assert region.slices(box, placed[1]) == box


def placed_zarr(path, array, start, voxel=VOXEL):
    """An image of somebody else's that states its position."""
    zarr = pytest.importorskip("zarr", reason="the zarr package is not installed (test extra)")
    group = zarr.open_group(path, mode="w", zarr_format=2)
    group.create_array("0", shape=array.shape, dtype=array.dtype, chunks=array.shape)[...] = array
    axes = [{"name": n, "type": "space", "unit": "nanometer"} for n in "zyx"]
    moved = [
        {"type": "scale", "scale": list(voxel)},
        {"type": "translation", "translation": np.multiply(start, voxel).tolist()},
    ]
    datasets = [{"path": "0", "coordinateTransformations": moved}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    return path


@pytest.mark.parametrize(
    ("cut", "start"), [(np.s_[:, :, 7:], 7), (np.s_[:, :, 7:], -3), (np.s_[:, :, :], 0)]
)
def test_positions_that_both_files_state_are_used_whatever_the_shapes(tmp_path, array, cut, start):
    """A zero that is stated is a position, and what both cover is compared."""
    whole = open_labelling(placed_zarr(tmp_path / "a.zarr", array, (0, 0, 0)), name="prediction")
    part = array[cut] if start >= 0 else array[:, :, :7]
    labels = open_labelling(placed_zarr(tmp_path / "b.zarr", part, (0, 0, start)), name="labels")
    (first, second), region = lay_over([whole, labels])
    box = tuple(slice(0, size) for size in region.shape)
    found = [one.array[region.slices(box, one)] for one in (first, second)]
    expected = array[:, :, max(start, 0) : start + part.shape[2]]
    np.testing.assert_array_equal(found[0], expected)
    np.testing.assert_array_equal(found[1], part[:, :, max(-start, 0) :])


def test_the_same_shape_elsewhere_is_not_the_same_box(tmp_path, array):
    whole = open_labelling(placed_zarr(tmp_path / "a.zarr", array, (0, 0, 0)), name="prediction")
    moved = placed_zarr(tmp_path / "b.zarr", np.roll(array, -7, 2), (0, 0, 7))
    placed, region = lay_over([whole, open_labelling(moved, name="labels")])
    box = tuple(slice(0, size) for size in region.shape)
    found = [one.array[region.slices(box, one)] for one in placed]
    assert region.shape == (5, 9, 3)
    np.testing.assert_array_equal(*found)


def test_another_level_is_not_laid_over(tmp_path, array):
    whole = open_labelling(placed_zarr(tmp_path / "a.zarr", array, (0, 0, 0)), name="prediction")
    coarse = placed_zarr(tmp_path / "b.zarr", array[:, ::2, ::2], (0, 0, 0), (50.0, 20.0, 20.0))
    labels = open_labelling(coarse, name="labels", otherwise_nm=VOXEL)
    with pytest.raises(ValueError, match=r"labels .* 50 x 20 x 20 nm, .*50 x 10 x 10.*--voxel_nm"):
        lay_over([whole, labels])


def test_a_prediction_lies_where_its_volume_does(tmp_path, array):
    """Its own offset is counted from the volume's first voxel, whose position stands beside it."""
    folder = prediction_folder(tmp_path / "out", array, offset=(1, 0, 2))
    about = json.loads((folder / "prediction.json").read_text())
    (folder / "prediction.json").write_text(json.dumps(about | {"volume_offset": [10, 20, 30]}))
    prediction = open_labelling(folder, name="prediction")
    assert prediction.offset == (11, 20, 32) and prediction.stated
    labels = open_labelling(placed_zarr(tmp_path / "b.zarr", array, (11, 20, 32)), name="labels")
    assert lay_over([prediction, labels])[1].shape == array.shape


def test_shapes_that_differ_without_a_position_are_named(tmp_path):
    shapes = {"prediction": (5, 9, 10), "labels": (5, 9, 11)}
    both = [labelling(tmp_path, name, shape) for name, shape in shapes.items()]
    with pytest.raises(ValueError, match=r"labels .*5 x 9 x 11 and prediction .*5 x 9 x 10"):
        lay_over(both)


def test_a_wrong_offset_is_named_with_both_shapes(tmp_path):
    prediction = labelling(tmp_path, "prediction", (5, 9, 10), offset=(0, 0, 0))
    labels = labelling(tmp_path, "labels", (5, 9, 10), offset=(1, 0, 0))
    with pytest.raises(ValueError, match=r"5 x 9 x 10 at offset 0,0,0 and labels .* at offset 1,0"):
        lay_over([prediction, labels])
    third = labelling(tmp_path, "third", (5, 9, 9), offset=(0, 0, 0))
    with pytest.raises(ValueError, match=r"third .* does not cover what is compared"):
        lay_over([prediction, labelling(tmp_path, "labels", (5, 9, 10)), third])


def test_labels_that_are_floats_and_paths_that_are_not(tmp_path, array):
    tifffile.imwrite(tmp_path / "f.tif", array.astype(np.float32))
    with pytest.raises(ValueError, match=r"f\.tif: labels are float32; expected integers"):
        open_labelling(tmp_path / "f.tif", name="labels", voxel_nm=VOXEL)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        open_labelling(tmp_path / "nothing.tif", name="labels", voxel_nm=VOXEL)
    folder = prediction_folder(tmp_path / "out", array)
    (folder / "prediction.json").write_text("{")
    with pytest.raises(ValueError, match=r"prediction\.json: not valid JSON"):
        open_labelling(folder, name="prediction")


def test_class_names_are_settled(tmp_path, array):
    prediction = open_labelling(prediction_folder(tmp_path / "out", array), name="prediction")
    plain = labelling(tmp_path, "labels", array.shape)
    assert settle_classes([plain, prediction], ()) == NAMES
    assert settle_classes([plain, prediction], ("a", "b", "c")) == ("a", "b", "c")
    with pytest.raises(ValueError, match=r"has 3 classes \(background, .* names 2: a, b"):
        settle_classes([plain, prediction], ("a", "b"))
    with pytest.raises(ValueError, match="0 class names; expected 2 to 254"):
        settle_classes([plain], ())
