"""What is wrong with a volume or a pair of volumes is said before anything is trained."""

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image

from densejax.data.volumes import check_pair, check_training_classes, open_volume

VOXEL = (50.0, 10.0, 8.0)


def make(dtype=np.uint8, shape=(5, 6, 7)):
    return np.random.default_rng(0).integers(0, 250, shape).astype(dtype)


@pytest.mark.parametrize("bad", [(1, 2), (0, 1, 1), (1, -1, 1), (1, 1, np.nan), "abc", 5])
def test_bad_voxel_size(tmp_path, bad):
    tifffile.imwrite(tmp_path / "a.tif", make())
    with pytest.raises(ValueError, match="three positive nm"):
        open_volume(tmp_path / "a.tif", voxel_nm=bad)


def test_missing_voxel_size_names_the_flag(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", make())
    with pytest.raises(ValueError, match=r"a\.tif.*--voxel_nm"):
        open_volume(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("style", ["stack", "pages", "imagej"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.999])
def test_truncated_tiff(tmp_path, compression, style, share):
    data = np.random.default_rng(0).integers(0, 255, (6, 64, 64)).astype(np.uint8)
    path = tmp_path / "a.tif"
    if style == "imagej":
        tifffile.imwrite(path, data, imagej=True, compression=compression)
    elif style == "stack":
        tifffile.imwrite(path, data, compression=compression)
    else:
        with tifffile.TiffWriter(path) as writer:
            for page in data:
                writer.write(page, contiguous=False, compression=compression)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match=r"a\.tif"):
        open_volume(path, voxel_nm=VOXEL).read()


def test_tiff_pages_must_agree(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for shape in ((8, 9), (8, 9), (8, 10)):
            writer.write(np.ones(shape, np.uint8), contiguous=False)
    with pytest.raises(ValueError, match=r"a\.tif: page 2 is \(8, 10\).*expected \(8, 9\)"):
        open_volume(tmp_path / "a.tif", voxel_nm=VOXEL)
    with tifffile.TiffWriter(tmp_path / "b.tif") as writer:
        for dtype in (np.uint8, np.uint16):
            writer.write(np.ones((8, 9), dtype), contiguous=False)
    with pytest.raises(ValueError, match=r"b\.tif: page 1 is .* uint16; expected .* uint8"):
        open_volume(tmp_path / "b.tif", voxel_nm=VOXEL)


def test_tiff_must_be_grey_and_three_dimensional(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.ones((4, 8, 9, 3), np.uint8), photometric="rgb")
    with pytest.raises(ValueError, match="expected grey"):
        open_volume(tmp_path / "a.tif", voxel_nm=VOXEL)
    planes = {"photometric": "rgb", "planarconfig": "separate"}
    tifffile.imwrite(tmp_path / "d.tif", np.ones((3, 8, 9), np.uint8), **planes)
    with pytest.raises(ValueError, match="minisblack"):
        open_volume(tmp_path / "d.tif", voxel_nm=VOXEL)
    meta = {"axes": "ZCYX"}
    tifffile.imwrite(
        tmp_path / "b.tif", np.ones((4, 2, 8, 9), np.uint8), imagej=True, metadata=meta
    )
    with pytest.raises(ValueError, match="single channel"):
        open_volume(tmp_path / "b.tif", voxel_nm=VOXEL)
    four = np.ones((4, 5, 8, 9), np.uint8)
    tifffile.imwrite(tmp_path / "c.tif", four, photometric="minisblack")
    with pytest.raises(ValueError, match="expected Z, Y, X"):
        open_volume(tmp_path / "c.tif", voxel_nm=VOXEL)


def test_unsupported_dtype(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = make().astype(np.complex64)
    with pytest.raises(ValueError, match=r"raw: dtype complex64 is not supported"):
        open_volume(tmp_path / "a.h5", voxel_nm=VOXEL)
    tifffile.imwrite(tmp_path / "a.tif", make().astype(np.complex64))
    with pytest.raises(ValueError, match="complex64 is not supported"):
        open_volume(tmp_path / "a.tif", voxel_nm=VOXEL)


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"b\.tif"):
        open_volume(tmp_path / "b.tif", voxel_nm=VOXEL)
    with pytest.raises(FileNotFoundError, match="no TIFF or PNG"):
        open_volume(tmp_path, voxel_nm=VOXEL)
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(FileNotFoundError, match=r"a\.zarr: no Zarr"):
        open_volume(tmp_path / "a.zarr", voxel_nm=VOXEL)


def test_wrong_kinds_of_file(tmp_path):
    (tmp_path / "a.xyz").write_bytes(b"1")
    with pytest.raises(ValueError, match=r"unknown format '\.xyz'"):
        open_volume(tmp_path / "a.xyz", voxel_nm=VOXEL)
    (tmp_path / "a.tif").write_bytes(b"not a tiff at all")
    with pytest.raises(ValueError, match=r"a\.tif: not a readable TIFF"):
        open_volume(tmp_path / "a.tif", voxel_nm=VOXEL)
    Image.fromarray(make()[0]).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="expected the folder"):
        open_volume(tmp_path / "a.png", voxel_nm=VOXEL)


def test_folder_of_unlike_sections(tmp_path):
    for z, size in enumerate([(6, 7), (6, 7), (6, 8)]):
        Image.fromarray(np.ones(size, np.uint8)).save(tmp_path / f"{z}.png")
    with pytest.raises(ValueError, match=r"2\.png: section is \(6, 8\).*expected \(6, 7\)"):
        open_volume(tmp_path, voxel_nm=VOXEL)
    tifffile.imwrite(tmp_path / "3.tif", np.ones((6, 7), np.uint8))
    with pytest.raises(ValueError, match="1 TIFF and 3 PNG"):
        open_volume(tmp_path, voxel_nm=VOXEL)


def test_broken_and_coloured_png(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(
        tmp_path / "0.png"
    )
    with pytest.raises(ValueError, match=r"0\.png: PNG of mode RGB"):
        open_volume(tmp_path, voxel_nm=VOXEL)
    Image.fromarray(make(shape=(1, 64, 64))[0]).save(tmp_path / "0.png")
    whole = (tmp_path / "0.png").read_bytes()
    (tmp_path / "0.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"0\.png: not a readable PNG"):
        open_volume(tmp_path, voxel_nm=VOXEL).read()


def test_pair_counts_classes():
    labels = make().astype(np.int32) % 4 - 1
    expected = [np.sum(labels == i) for i in range(3)]
    counts = check_pair(make(), labels, classes=3)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, expected)


def test_pair_that_is_wrong():
    image, labels = make(), make().astype(np.int32) % 3
    with pytest.raises(ValueError, match=r"a: labels are \(4, 6, 7\).*\(5, 6, 7\)"):
        check_pair(image, labels[:4], classes=3, name="a")
    with pytest.raises(ValueError, match="labels are float32; expected integers"):
        check_pair(image, labels.astype(np.float32), classes=3)
    for wrong in (3, -2):
        bad = labels.copy()
        bad[2, 1, 4] = wrong
        with pytest.raises(ValueError, match=rf"section 2: label {wrong} at .*\(1, 4\)"):
            check_pair(image, bad, classes=3)
    for wrong in (np.nan, np.inf):
        bad_image = image.astype(np.float32)
        bad_image[3, 0, 0] = wrong
        with pytest.raises(ValueError, match="section 3 of the image"):
            check_pair(bad_image, labels, classes=3)
    with pytest.raises(ValueError, match="every voxel of the image is 7"):
        check_pair(np.full_like(image, 7), labels, classes=3)


def test_uint64_labels_beyond_int64():
    labels = np.zeros((1, 2, 2), np.uint64)
    labels[0, 1, 1] = 2**64 - 1
    with pytest.raises(ValueError, match=r"expected 0\.\.1"):
        check_pair(np.arange(4).reshape(1, 2, 2), labels, classes=2)


def test_absent_training_class_is_named():
    check_training_classes(np.array([3, 1]), ("a", "b"))
    with pytest.raises(ValueError, match="class 1 mitochondria"):
        check_training_classes(np.array([3, 0]), ("cell", "mitochondria"))
    with pytest.raises(ValueError, match="expected 3"):
        check_training_classes(np.array([3, 1]), ("a", "b", "c"))
