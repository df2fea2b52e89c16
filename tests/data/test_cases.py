"""The volumes that a command names: lists, folders of volumes, other tools' layouts."""

import json

import h5py
import numpy as np
import pytest
import tifffile

from densejax.data.cases import Case, find_cases, split_paths


def write(path, shape=(3, 6, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, np.zeros(shape, np.uint8), photometric="minisblack")
    return path


def names(cases):
    return [tuple(path.rsplit("/", 1)[1] for path in (c.image, c.labels)) for c in cases]


def test_one_volume_is_one_case_whatever_it_is(tmp_path):
    for i in range(3):
        write(tmp_path / "im" / f"{i}.tif", (6, 6))
        write(tmp_path / "lb" / f"{i}.tif", (6, 6))
    for image, labels in (
        (str(write(tmp_path / "a.tif")), "b.tif"),
        (str(tmp_path / "im"), str(tmp_path / "lb")),
        ("gs://bucket/image", "file.h5::labels"),
        (str(tmp_path / "im"), str(tmp_path / "a.tif")),
    ):
        found = find_cases(image, labels)
        assert found.train == (Case(image, labels),) and not found.test


def test_lists_pair_in_their_order(tmp_path):
    found = find_cases("a.tif,b.zarr, c.h5::raw", "x.tif,y.zarr,z.h5::gt").train
    assert [(c.image, c.labels) for c in found][2] == ("c.h5::raw", "z.h5::gt")
    with pytest.raises(ValueError, match=r"--image names 2 volumes and --labels 1"):
        find_cases("a,b", "c")
    with pytest.raises(ValueError, match="--test_image and --test_labels belong together"):
        find_cases("a", "", flags=("test_image", "test_labels"))
    odd = write(tmp_path / "one,two.tif")
    assert split_paths(str(odd)) == [str(odd)]


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (["s1.tif", "s2.tif"], ["s1.tif", "s2.tif"]),
        (["s1_raw.tif", "s2_raw.tif"], ["s1_label.tif", "s2_label.tif"]),
        (["train-2.tif", "train-10.tif"], ["truth-0002.tif", "truth-0010.tif"]),
        (["cell-a.tif", "cell-b.tif"], ["cell-a_gt.tif", "cell-b_gt.tif"]),
    ],
)
def test_folders_of_volumes_pair_by_name_or_number(tmp_path, images, labels):
    for name in images:
        write(tmp_path / "im" / name)
    for name in reversed(labels):
        write(tmp_path / "lb" / name)
    found = find_cases(str(tmp_path / "im"), str(tmp_path / "lb")).train
    assert names(found) == list(zip(images, labels, strict=True))


def test_names_that_do_not_pair_are_listed(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / "im" / f"{name}.tif")
    for name in ("a", "c"):
        write(tmp_path / "lb" / f"{name}.tif")
    with pytest.raises(ValueError, match=r"without labels b\.tif; without an image c\.tif"):
        find_cases(str(tmp_path / "im"), str(tmp_path / "lb"))
    with pytest.raises(ValueError, match=r"folder of 2 volumes and .*one\.tif is not"):
        find_cases(str(tmp_path / "im"), str(write(tmp_path / "one.tif")))


def nnunet(root, *, channels=1, test=True):
    for part, cases in (("Tr", ("c1", "c2")), ("Ts", ("c3",) if test else ())):
        for case in cases:
            write(root / f"labels{part}" / f"{case}.tif")
            for channel in range(channels):
                write(root / f"images{part}" / f"{case}_{channel:04d}.tif")
    return root


def test_nnunets_layout(tmp_path):
    stated = {"labels": {"background": 0, "membrane": 1, "ignore": 2}, "file_ending": ".tif"}
    nnunet(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps(stated))
    found = find_cases(str(tmp_path), "")
    assert names(found.train) == [("c1_0000.tif", "c1.tif"), ("c2_0000.tif", "c2.tif")]
    assert names(found.test) == [("c3_0000.tif", "c3.tif")] and not found.evaluation
    assert found.class_names == ("background", "membrane") and found.unlabelled == 2
    both = find_cases(str(tmp_path / "imagesTr"), str(tmp_path / "labelsTr"))
    assert both.train == found.train


def test_several_channels_are_refused_and_how_to_choose_said(tmp_path):
    with pytest.raises(ValueError, match=r"case c1 has the channels 0000, 0001.*--image=.*_0000"):
        find_cases(str(nnunet(tmp_path, channels=2)), "")


def test_test_images_without_labels_are_left_out(tmp_path):
    nnunet(tmp_path, test=False)
    write(tmp_path / "imagesTs" / "c9_0000.tif")
    assert not find_cases(str(tmp_path), "").test


@pytest.mark.parametrize("folders", [("raw", "label"), ("x", "y")])
def test_biapys_layout(tmp_path, folders):
    raw, label = folders
    for part, count in (("train", 2), ("val", 1), ("test", 1)):
        for i in range(count):
            write(tmp_path / part / raw / f"{i}.tif")
            (tmp_path / part / label).mkdir(parents=True, exist_ok=True)
            with h5py.File(tmp_path / part / label / f"{i}.h5", "w") as file:
                file["main"] = np.zeros((3, 6, 6), np.uint8)
    found = find_cases(str(tmp_path), "")
    assert names(found.train) == [("0.tif", "0.h5"), ("1.tif", "1.h5")]
    assert len(found.evaluation) == len(found.test) == 1


def test_a_folder_that_is_no_layout_needs_labels(tmp_path):
    write(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="imagesTr and labelsTr"):
        find_cases(str(tmp_path), "")
