"""The published sets with their traps, a user's own files, and the division into slabs."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image

from densejax.data import datasets
from densejax.data.datasets import (
    PLATELET_CLASSES,
    LabelledVolume,
    load_files,
    load_platelets,
    load_vnc,
    load_vnc_mask,
    split_sections,
    standardise,
)
from densejax.data.download import PLATELET_FILES, PLATELET_MD5, md5_of

DATA = Path(os.environ.get("DENSEJAX_DATA", Path(__file__).parents[3] / "shared" / "data"))
VOXEL = (50.0, 10.0, 10.0)
CODES = np.array([0, 32, 64, 96, 128, 159, 191, 223, 255], np.uint8)


def real(name):
    if not (DATA / name).is_dir():
        pytest.skip(f"{DATA / name} is not there")
    return DATA / name


def write_tiff(path, array, **options):
    # Stacks of 3 or 4 sections would be written as planes of a colour picture otherwise.
    tifffile.imwrite(path, array, photometric="minisblack", **options)


def write_vnc(folder, labels=None):
    """A small set in the layout of the real one; the codes are returned."""
    rng = np.random.default_rng(0)
    codes = CODES[rng.integers(0, 9, (3, 8, 9))] if labels is None else labels
    for kind in ("raw", "labels", *datasets.VNC_MASKS):
        (folder / "stack1" / kind).mkdir(parents=True)
    for z, page in enumerate(codes):
        raw = rng.integers(0, 255, page.shape).astype(np.uint8)
        write_tiff(folder / "stack1" / "raw" / f"{z:02}.tif", raw)
        Image.fromarray(page).save(folder / "stack1" / "labels" / f"labels{z:08}.png")
        for mask in datasets.VNC_MASKS:
            cut = np.where(page == 191, 130, np.where(page == 223, 127, 0)).astype(np.uint8)
            picture = Image.fromarray(cut >= 128 if z == 1 else cut)  # 1 bit and 8 bits mixed
            picture.save(folder / "stack1" / mask / f"{z:02}.png")
    return codes


def test_vnc_codes_to_classes(tmp_path):
    codes = write_vnc(tmp_path)
    volume = load_vnc(tmp_path)
    expected = np.select(
        [codes <= 128, codes == 159, codes == 191, codes == 223, codes == 255], range(5)
    )
    np.testing.assert_array_equal(volume.labels, expected)
    assert volume.labels.dtype == np.int32 and volume.images.dtype == np.uint8
    assert len(volume.class_names) == 5 and volume.weights is None
    np.testing.assert_array_equal(load_vnc(tmp_path / "stack1").labels, expected)


@pytest.mark.parametrize("mask", datasets.VNC_MASKS)
def test_vnc_masks_of_1_and_8_bits(tmp_path, mask):
    codes = write_vnc(tmp_path)
    volume = load_vnc_mask(tmp_path, mask)
    np.testing.assert_array_equal(volume.labels, codes == 191)
    assert volume.labels.dtype == np.int32 and volume.class_names == ("background", mask)


def test_vnc_that_is_wrong(tmp_path):
    codes = CODES[np.full((3, 8, 9), 3)]
    codes[2, 1, 1] = 33
    write_vnc(tmp_path, codes)
    with pytest.raises(ValueError, match=r"labels00000002\.png: grey code 33; expected one of"):
        load_vnc(tmp_path)
    with pytest.raises(ValueError, match="expected 5"):
        load_vnc(tmp_path, classes=4)
    with pytest.raises(ValueError, match="expected one of membranes"):
        load_vnc_mask(tmp_path, "nuclei")
    with pytest.raises(FileNotFoundError, match="no stack1/raw"):
        load_vnc(tmp_path / "elsewhere")
    (tmp_path / "stack1" / "raw" / "02.tif").unlink()
    codes[2, 1, 1] = 32
    Image.fromarray(codes[2]).save(tmp_path / "stack1" / "labels" / "labels00000002.png")
    with pytest.raises(ValueError, match=r"labels are \(3, 8, 9\); expected .*\(2, 8, 9\)"):
        load_vnc(tmp_path)


def test_vnc_sections_of_another_size(tmp_path):
    write_vnc(tmp_path)
    write_tiff(tmp_path / "stack1" / "raw" / "01.tif", np.ones((8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"01\.tif: \(8, 8\) uint8; expected \(8, 9\)"):
        load_vnc(tmp_path)


def test_real_vnc_agrees_with_its_masks():
    folder = real("vnc")
    volume = load_vnc(folder)
    assert volume.images.shape == volume.labels.shape == (20, 1024, 1024)
    shares = np.bincount(volume.labels.ravel(), minlength=5) / volume.labels.size
    assert shares[2] == pytest.approx(0.054, abs=5e-4)
    for mask, stated in (("mitochondria", 0.054), ("synapses", 0.0056), ("membranes", 0.204)):
        found = load_vnc_mask(folder, mask).labels == 1
        assert found.mean() == pytest.approx(stated, rel=0.01)
        if mask == "membranes":  # wider than the codes: all membrane, all glia, some synapse
            assert found[volume.labels <= 1].all()
            assert found[volume.labels == 3].mean() == pytest.approx(0.66, abs=0.01)
        else:
            label = volume.labels == {"mitochondria": 2, "synapses": 3}[mask]
            assert (found & label).sum() / (found | label).sum() > 0.99


def write_platelets(folder, labels=None):
    rng = np.random.default_rng(1)
    folder.mkdir(exist_ok=True)
    made = {}
    for part, depth in (("train", 4), ("eval", 3), ("test", 5)):
        values = rng.integers(0, 7, (depth, 8, 9)) if labels is None else labels[part]
        made[part] = values.astype(np.uint16)
        write_tiff(folder / f"{part}-labels.tif", made[part], compression="zlib")
        image = rng.integers(0, 60000, values.shape).astype(np.uint16)
        write_tiff(folder / f"{part}-images.tif", image)
    write_tiff(folder / "train-error-weights.tif", rng.random(made["train"].shape))
    return made


def test_platelets(tmp_path):
    labels = write_platelets(tmp_path / "platelet_data")
    for folder in (tmp_path, tmp_path / "platelet_data"):
        train, evaluation, test = load_platelets(folder)
        np.testing.assert_array_equal(train.labels, labels["train"])
        np.testing.assert_array_equal(evaluation.labels, labels["eval"])
        # 0 in the test volume is not a class.
        expected = np.where(labels["test"] == 0, -1, labels["test"].astype(np.int32))
        np.testing.assert_array_equal(test.labels, expected)
        assert train.weights is not None and train.weights.dtype == np.float32
        assert evaluation.weights is None and test.weights is None
        assert train.voxel_nm == (50, 10, 10) and train.images.dtype == np.uint16
        assert train.labels.dtype == test.labels.dtype == np.int32
        assert train.class_names[3:5] == ("alpha granule", "canalicular vessel")
    assert load_platelets(tmp_path, voxel_nm=(40, 10, 10))[0].voxel_nm == (40, 10, 10)


def test_platelets_that_are_wrong(tmp_path):
    write_platelets(tmp_path)
    with pytest.raises(ValueError, match=r"train-images\.tif has md5 .*expected 940ffa"):
        load_platelets(tmp_path, check_md5=True)
    (tmp_path / "train-error-weights.tif").unlink()
    with pytest.raises(FileNotFoundError, match="train-error-weights") as caught:
        load_platelets(tmp_path)
    assert "https://" in str(caught.value) and PLATELET_MD5 in str(caught.value)
    assert load_platelets(tmp_path, weights=False)[0].weights is None
    write_tiff(tmp_path / "eval-labels.tif", np.full((3, 8, 9), 7, np.uint16))
    with pytest.raises(ValueError, match=r"platelets eval .*label 7 .*expected 0\.\.6"):
        load_platelets(tmp_path, weights=False)


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_platelet_weights_are_checked(tmp_path, bad):
    write_platelets(tmp_path)
    weights = np.ones((4, 8, 9))
    weights[1, 1, 1] = bad
    write_tiff(tmp_path / "train-error-weights.tif", weights)
    with pytest.raises(ValueError, match="weight is negative, NaN or infinite"):
        load_platelets(tmp_path)
    write_tiff(tmp_path / "train-error-weights.tif", np.ones((4, 8, 8)))
    with pytest.raises(ValueError, match=r"weights are \(4, 8, 8\); expected \(4, 8, 9\)"):
        load_platelets(tmp_path)


def test_real_platelet_labels(tmp_path):
    folder = real("platelet_data")
    crops = {}
    for part in ("train", "eval", "test"):
        file = f"{part}-labels.tif"
        assert md5_of(folder / file) == PLATELET_FILES[file]
        crops[part] = tifffile.imread(folder / file)[:3, ::4, ::4]
    write_platelets(tmp_path, crops)
    train, _, test = load_platelets(tmp_path)
    assert len(PLATELET_CLASSES) == 7
    assert set(np.unique(train.labels)) <= set(range(7))
    assert np.bincount(train.labels.ravel()).argmax() == 1
    assert (test.labels == -1).sum() == (crops["test"] == 0).sum() and not (test.labels == 0).any()


def test_own_files(tmp_path):
    rng = np.random.default_rng(0)
    image, label = rng.random((4, 5, 6)).astype(np.float32), rng.integers(0, 3, (4, 5, 6))
    marked = np.where(label == 2, 255, label).astype(np.uint8)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"], file["labels"] = image, marked
        file["raw"].attrs["resolution"] = VOXEL
    write_tiff(tmp_path / "weights.tif", np.ones((4, 5, 6), np.float32))
    volume = load_files(
        tmp_path / "a.h5",
        tmp_path / "a.h5",
        class_names=["no", "yes"],
        images_dataset="raw",
        labels_dataset="labels",
        unlabelled=255,
        weights=tmp_path / "weights.tif",
    )
    np.testing.assert_array_equal(volume.images, image)
    np.testing.assert_array_equal(volume.labels, np.where(label == 2, -1, label))
    assert volume.voxel_nm == VOXEL and volume.class_names == ("no", "yes")
    assert volume.weights is not None and volume.labels.dtype == np.int32
    with pytest.raises(ValueError, match=r"a\.h5::labels.*label 255"):
        load_files(
            tmp_path / "a.h5",
            tmp_path / "a.h5",
            class_names=["no", "yes"],
            images_dataset="raw",
            labels_dataset="labels",
        )


def some_volume(depth=20, weights=True):
    labels = np.broadcast_to(np.arange(depth, dtype=np.int32)[:, None, None], (depth, 2, 3))
    return LabelledVolume(
        "some", labels.astype(np.uint8), labels, labels * 1.0 if weights else None, VOXEL, ("a",)
    )


def test_split_leaves_gaps():
    slabs = split_sections(some_volume(), train=10, evaluation=3, test=3, gap=2)
    expected = (range(0, 10), range(12, 15), range(17, 20))
    for slab, sections in zip(slabs, expected, strict=True):
        for array in (slab.images, slab.labels, slab.weights):
            np.testing.assert_array_equal(array[:, 0, 0], sections)
        assert slab.voxel_nm == VOXEL
    assert [slab.name for slab in slabs] == ["some train", "some evaluation", "some test"]
    assert (
        split_sections(some_volume(weights=False), train=1, evaluation=1, test=1, gap=0)[1].weights
        is None
    )


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 1, 1, 1), "train has 0 sections"),
        ((1, -1, 1, 1), "evaluation has -1 sections"),
        ((1, 1, 0, 1), "test has 0 sections"),
        ((1, 1, 1, -1), "gap is -1"),
        ((10, 4, 3, 2), "takes 21 sections, there are 20"),
    ],
)
def test_split_that_does_not_fit(sizes, message):
    train, evaluation, test, gap = sizes
    with pytest.raises(ValueError, match=message):
        split_sections(some_volume(), train=train, evaluation=evaluation, test=test, gap=gap)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_standardise(dtype):
    images = np.random.default_rng(0).integers(3, 250, (5, 20, 20)).astype(dtype)
    found = standardise(images)
    reference = (images.astype(np.float64) - images.mean(dtype=np.float64)) / images.std(
        dtype=np.float64
    )
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, reference, atol=1e-5)


def test_standardise_refuses_nothing_to_scale():
    with pytest.raises(ValueError, match="every voxel is 4"):
        standardise(np.full((2, 3, 4), 4, np.uint8))
    with pytest.raises(ValueError, match="NaN"):
        standardise(np.array([[[1.0, np.nan]]]))
