"""Folders of pictures: their order, what is read, streaming, and files that are broken."""

import threading

import numpy as np
import pytest
from PIL import Image

from densejax.data.image_folders import open_image_folder, open_imagenet


def picture(path, x, y, seed, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    c = len(mode)
    pixels = np.random.default_rng(seed).integers(0, 256, (y, x, c), np.uint8)
    Image.fromarray(pixels[..., 0] if c == 1 else pixels, mode).save(path)
    return pixels


@pytest.fixture
def folder(tmp_path):
    for i, (name, label) in enumerate([("b.png", "n2"), ("a.PNG", "n2"), ("c.png", "n10")]):
        picture(tmp_path / label / name, 8 + i, 9, i)
    (tmp_path / "n2" / "notes.txt").write_text("no picture")
    (tmp_path / "list.txt").write_text("no class")
    return tmp_path


def test_order_is_by_name(folder):
    found = open_image_folder(folder, size=7)
    assert found.class_names == ("n10", "n2") and found.resize == 8 and len(found) == 3
    assert [p.name for p in found.paths] == ["c.png", "a.PNG", "b.png"]
    assert found.labels.tolist() == [0, 1, 1] and found.labels.dtype == np.int32


def test_a_picture_of_the_right_size_is_unchanged_and_a_larger_one_cut(tmp_path):
    exact = picture(tmp_path / "a" / "0.png", 6, 6, 0)
    wide = picture(tmp_path / "a" / "1.png", 10, 6, 1)
    tall = picture(tmp_path / "a" / "2.png", 6, 9, 2)
    found = open_image_folder(tmp_path, size=6, resize=6)
    np.testing.assert_array_equal(found.read(0), exact)
    np.testing.assert_array_equal(found.read(1), wide[:, 2:8])
    np.testing.assert_array_equal(found.read(2), tall[2:8])
    np.testing.assert_array_equal(
        open_image_folder(tmp_path, size=4, resize=6).read(0), exact[1:5, 1:5]
    )


def test_resizing_is_pils(tmp_path):
    pixels = picture(tmp_path / "a" / "0.png", 40, 30, 0)
    found = open_image_folder(tmp_path, size=14, resize=16).read(0)
    resized = np.asarray(Image.fromarray(pixels).resize((21, 16), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(found, resized[1:15, 4:18])


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK"])
def test_other_colours_become_red_green_blue(tmp_path, mode):
    path = tmp_path / "a" / ("0.jpg" if mode == "CMYK" else "0.png")
    picture(path, 6, 6, 0, mode)
    assert open_image_folder(tmp_path, size=6, resize=6).read(0).shape == (6, 6, 3)


def test_batches_come_in_order_with_any_number_of_workers(folder):
    found = open_image_folder(folder, size=7)
    whole = np.stack([found.read(i) for i in range(3)])
    for workers in (1, 4):
        for indices in (None, [2, 0, 0, 1, 2, 1, 0]):
            order = np.arange(3) if indices is None else np.array(indices)
            got = list(found.batches(2, indices=indices, workers=workers))
            assert [len(images) for images, _ in got[:-1]] == [2] * (len(got) - 1)
            np.testing.assert_array_equal(np.concatenate([a for a, _ in got]), whole[order])
            labels = np.concatenate([b for _, b in got])
            np.testing.assert_array_equal(labels, found.labels[order])
            assert labels.dtype == np.int32


def test_threads_end_when_the_reader_stops_early(folder):
    found = open_image_folder(folder, size=7)
    before = threading.active_count()
    stream = found.batches(1, indices=[0] * 50, workers=3)
    next(stream)
    stream.close()
    assert threading.active_count() == before


def test_broken_pictures_are_named(folder):
    path = folder / "n2" / "b.png"
    path.write_bytes(path.read_bytes()[:60])
    found = open_image_folder(folder, size=7)
    with pytest.raises(ValueError, match=r"b.png: is cut short or is no picture"):
        list(found.batches(2))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.png"):
        found.read(2)


def test_errors(folder, tmp_path):
    found = open_image_folder(folder, size=7)
    with pytest.raises(IndexError, match="index 3; expected 0 to 2"):
        found.batches(2, indices=[0, 3])
    with pytest.raises(ValueError, match="batch 0"):
        found.batches(0)
    with pytest.raises(ValueError, match="size 9, resize 8"):
        open_image_folder(folder, size=9, resize=8)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        open_image_folder(folder / "none")
    (folder / "n3").mkdir()
    with pytest.raises(FileNotFoundError, match="n3: no picture in it"):
        open_image_folder(folder)
    with pytest.raises(FileNotFoundError, match="no folder in it"):
        open_image_folder(folder / "n3")


def test_imagenet_has_two_parts_with_the_same_classes(tmp_path):
    for part in ("train", "val"):
        for label in ("n1", "n2"):
            picture(tmp_path / part / label / "0.JPEG.png", 8, 8, 0)
    train, test = open_imagenet(tmp_path, size=7)
    assert len(train) == len(test) == 2
    picture(tmp_path / "val" / "n3" / "0.png", 8, 8, 0)
    with pytest.raises(ValueError, match="class n3 is not in both train and val"):
        open_imagenet(tmp_path)
