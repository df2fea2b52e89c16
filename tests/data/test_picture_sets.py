"""CamVid and Cityscapes: made folders, all that can be wrong in them, and the real set."""

import numpy as np
import pytest
from PIL import Image

from densejax.data.picture_sets import CITYSCAPES_IDS, load_camvid, load_cityscapes


def save(path, pixels, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(pixels))
    (image.convert(mode) if mode else image).save(path)


@pytest.fixture
def camvid(tmp_path):
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for part in ("train", "val", "test"):
        for name in ("0006R0_f1", "Seq05VD_f0"):
            save(tmp_path / part / f"{name}.png", np.full((3, 4, 3), 7, np.uint8))
            save(tmp_path / f"{part}annot" / f"{name}.png", mask)
    return tmp_path


def test_camvid(camvid):
    found = load_camvid(camvid)
    assert list(found) == ["train", "val", "test"]
    train = found["train"]
    assert train.images.shape == (2, 3, 4, 3) and train.images.dtype == np.uint8
    np.testing.assert_array_equal(train.labels[0].ravel(), [*range(11), -1])
    assert train.names == ("0006R0_f1", "Seq05VD_f0") and train.groups == ("0006R0", "Seq05VD")


WRONG = {
    "12": (np.full((3, 4), 12, np.uint8), None, r"label 12; expected one of \[0, 1"),
    "16 bits": (np.full((3, 4), 300, np.uint16), None, "label 300; expected"),
    "palette": (np.zeros((3, 4), np.uint8), "P", "mode P; expected one channel"),
    "colours": (np.zeros((3, 4, 3), np.uint8), None, "mode RGB; expected"),
    "size": (np.zeros((4, 3), np.uint8), None, r"3 x 4 pixels; Seq05VD_f0\.png has 4 x 3"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_mask_of_camvid(camvid, what):
    pixels, mode, message = WRONG[what]
    save(camvid / "testannot/Seq05VD_f0.png", pixels, mode)
    with pytest.raises(ValueError, match=rf"testannot/Seq05VD_f0\.png: .*{message}"):
        load_camvid(camvid)


def test_wrong_folders_of_camvid(camvid):
    path = camvid / "valannot/Seq05VD_f0.png"
    path.rename(camvid / "valannot/other.png")
    with pytest.raises(ValueError, match=r"2 pictures and 2 masks; Seq05VD_f0\.png is in one"):
        load_camvid(camvid)
    (camvid / "valannot/other.png").unlink()
    with pytest.raises(ValueError, match="2 pictures and 1 masks"):
        load_camvid(camvid)
    (camvid / "valannot/0006R0_f1.png").unlink()
    with pytest.raises(ValueError, match=r"valannot: no file \*\.png"):
        load_camvid(camvid)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_camvid(camvid / "nowhere")


def test_several_sizes_and_an_absent_class(camvid):
    for name in ("0006R0_f1", "Seq05VD_f0"):
        save(camvid / f"trainannot/{name}.png", np.arange(12, dtype=np.uint8).reshape(3, 4) % 10)
    with pytest.raises(ValueError, match="trainannot: no pixel of class bicyclist"):
        load_camvid(camvid)
    save(camvid / "train/Seq05VD_f0.png", np.zeros((4, 4, 3), np.uint8))
    save(camvid / "trainannot/Seq05VD_f0.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match=r"4 x 4 pixels; 0006R0_f1\.png has 4 x 3: .*one size"):
        load_camvid(camvid)


def test_cityscapes(tmp_path):
    mask = np.array([*CITYSCAPES_IDS, 0, 255], np.uint8).reshape(3, 7)
    for part, city in (("train", "ulm"), ("train", "bonn"), ("val", "jena")):
        save(
            tmp_path / f"leftImg8bit/{part}/{city}/{city}_0_leftImg8bit.png",
            np.zeros((3, 7, 3), np.uint8),
        )
        save(tmp_path / f"gtFine/{part}/{city}/{city}_0_gtFine_labelIds.png", mask)
    found = load_cityscapes(tmp_path)
    assert found["train"].groups == ("bonn", "ulm") and found["val"].names == ("jena_0",)
    np.testing.assert_array_equal(found["val"].labels[0].ravel(), [*range(19), -1, -1])
    path = tmp_path / "gtFine/val/jena/jena_0_gtFine_labelIds.png"
    save(path, np.full((3, 7), 300, np.uint16))
    with pytest.raises(ValueError, match=r"labelIds\.png: label 300"):
        load_cityscapes(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"no such mask \(1 of 1 missing\)"):
        load_cityscapes(tmp_path)


def test_the_real_camvid(data_folder):
    folder = data_folder / "camvid_half"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    found = load_camvid(folder)
    assert [len(one.images) for one in found.values()] == [367, 101, 233]
    assert found["train"].images.shape[1:] == (180, 240, 3)
    assert set(found["train"].groups) == {"0001TP", "0006R0", "0016E5"}
