"""What the values of a label file mean, and what is offered where they mean nothing."""

import re

import numpy as np
import pytest
import tifffile

from densejax.data.datasets import load_files
from densejax.data.formats import LazyArray
from densejax.data.label_values import advice, as_classes, check_values, relabelled

NAMES = ("a", "b", "c")


def test_values_become_classes_in_the_order_of_the_names():
    found = np.array([[0, 255, 7], [255, -1, 0]], np.int16)
    expected = [[1, 0, -1], [0, -1, 1]]
    np.testing.assert_array_equal(as_classes(found, values=(255, 0), unlabelled=7), expected)
    np.testing.assert_array_equal(as_classes(found, unlabelled=255), [[0, -1, 7], [-1, -1, 0]])
    assert as_classes(found) is found


def test_bool_is_two_classes():
    found = np.array([True, False])
    np.testing.assert_array_equal(as_classes(found), [1, 0])
    np.testing.assert_array_equal(as_classes(found, values=(1, 0)), [0, 1])
    np.testing.assert_array_equal(as_classes(found, unlabelled=0), [1, -1])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.uint32, np.uint64])
def test_the_largest_value_of_any_dtype_may_be_not_labelled(dtype):
    most = int(np.iinfo(dtype).max)
    found = np.array([0, most, 1], dtype)
    np.testing.assert_array_equal(as_classes(found, unlabelled=most), [0, -1, 1])
    np.testing.assert_array_equal(as_classes(found, values=(1, most), unlabelled=0), [-1, 1, 0])


def test_a_value_that_is_none_of_those_is_named():
    with pytest.raises(
        ValueError, match=r"lb\.tif: value 7 at \(1,\) is none of --label_values=0,9"
    ):
        as_classes(np.array([0, 7, 9]), values=(0, 9), name="lb.tif")
    with pytest.raises(ValueError, match="float32; expected integers"):
        as_classes(np.zeros(2, np.float32), values=(0, 1))


@pytest.mark.parametrize(
    ("values", "unlabelled", "message"),
    [
        ((0, 255, 0), None, "occurs twice"),
        ((0, 255), None, "2 values and --class_names 3"),
        ((0, 1, 2), 2, "cannot be both"),
        ((-1, 0, 1), None, "means not labelled"),
    ],
)
def test_flags_that_contradict_one_another(values, unlabelled, message):
    with pytest.raises(ValueError, match=message):
        check_values(values, unlabelled, classes=3)


def test_a_lazy_array_is_relabelled_where_it_is_read():
    stored = np.arange(24).reshape(2, 3, 4) % 2 * np.uint8(255)
    lazy = LazyArray(stored.shape, stored.dtype, lambda box: stored[box], chunks=(1, 3, 4))
    assert relabelled(lazy) is lazy
    found = relabelled(lazy, values=(0, 255))
    np.testing.assert_array_equal(found[1, :, 1:3], stored[1, :, 1:3] // 255)
    assert found.dtype == np.int32 and found.chunks == lazy.chunks
    mask = LazyArray(stored.shape, bool, lambda box: stored[box] > 0)
    np.testing.assert_array_equal(relabelled(mask)[...], stored // 255)


ADVICE = {
    "0 and 255 for two": ([0, 255], 2, r"--label_values=0,255 takes them as a, b"),
    "1 and 2 for two": ([1, 2], 2, r"--label_values=1,2"),
    "four greys for three": ([0, 64, 128, 255], 3, r"--unlabelled=255 --label_values=0,64,128"),
    "an ignored 255": ([0, 1, 2, 255], 3, r"--unlabelled=255, if 255 means not labelled$"),
    "0 is nothing": ([0, 1, 2, 3], 3, r"--unlabelled=0 --label_values=1,2,3"),
    "too many": ([0, 1, 2, 3, 4], 2, r"0, 1, 2, 3, 4: expected one for each of the 2 names"),
    "objects": (range(300), 3, r"300 values up to 299.*instance ids"),
}


@pytest.mark.parametrize("what", ADVICE)
def test_what_would_work_is_offered_and_does(what):
    values, classes, message = ADVICE[what]
    found = np.array(values, np.int32)
    text = advice(found, NAMES[:classes])
    assert re.search(message, text), text
    for flags in re.findall(r"((?:--unlabelled=-?\d+ ?)?(?:--label_values=[\d,]*\d)?)", text):
        if not flags:
            continue
        said = dict(flag.removeprefix("--").split("=") for flag in flags.split())
        numbers = tuple(int(n) for n in said.get("label_values", "").split(",") if n)
        left_out = int(said["unlabelled"]) if "unlabelled" in said else None
        check_values(numbers, left_out, classes=classes)
        classified = as_classes(found, values=numbers, unlabelled=left_out)
        assert set(classified[classified >= 0]) == set(range(classes)), flags


def test_nothing_is_offered_for_classes():
    assert advice(np.array([0, 1, -1]), NAMES) == ""
    assert advice(np.zeros(3, np.float32), NAMES) == ""


def test_files_with_values_of_their_own(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (3, 8, 8), np.uint8)
    mask = rng.random((3, 8, 8)) < 0.5

    def load(labels, names=("a", "b"), **options):
        for name, array in (("i", image), ("l", labels)):
            tifffile.imwrite(tmp_path / f"{name}.tif", array, photometric="minisblack")
        paths = tmp_path / "i.tif", tmp_path / "l.tif"
        return load_files(*paths, class_names=names, voxel_nm=(50, 4, 4), **options).labels

    for stored, options in (
        (mask * np.uint8(255), {"values": (0, 255)}),
        (mask + np.uint8(1), {"values": (1, 2)}),
        (mask, {}),
    ):
        np.testing.assert_array_equal(load(stored, **options), mask)
    some = np.where(mask, 255, 1).astype(np.uint8)
    np.testing.assert_array_equal(load(some, unlabelled=255), np.where(mask, -1, 1))
    with pytest.raises(ValueError, match=r"label 255 at.*--label_values=0,255 takes them as a, b"):
        load(mask * np.uint8(255))
    with pytest.raises(ValueError, match="instance ids"):
        load(rng.integers(0, 200, (3, 8, 8)).astype(np.uint16))
