"""The arrays of a sweep: windows that cover a volume once, standardised images, counts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densejax.data.datasets import LabelledVolume
from densejax.data.windows import evaluation_corners
from densejax.segmentation.prepare import class_counts, evaluation_windows, sweep_data


def volume_of(shape, seed=0, name="made"):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, shape).astype(np.uint8)
    labels = random.integers(-1, 3, shape).astype(np.int32)
    return LabelledVolume(name, images, labels, None, (40.0, 10.0, 10.0), ("a", "b", "c"))


sizes = st.tuples(
    *[st.integers(2, 8).flatmap(lambda v: st.tuples(st.just(v), st.integers(1, v)))] * 3
)


@settings(max_examples=40, deadline=None)
@given(sizes)
def test_every_voxel_is_labelled_in_one_window_only(layout):
    shape, output = zip(*layout, strict=True)
    volume = volume_of(shape)
    images, labels = evaluation_windows(volume, window=output, output=output)
    corners = evaluation_corners(shape, output, (0, 0, 0))
    assert images.shape == labels.shape == (len(corners), *output)
    times = np.zeros(shape, int)
    standard = (volume.images - volume.images.mean()) / max(volume.images.std(), 1e-9)
    for corner, image, label in zip(corners, images, labels, strict=True):
        place = tuple(slice(c, c + n) for c, n in zip(corner, output, strict=True))
        times[place] += label >= 0
        kept = label >= 0
        np.testing.assert_array_equal(label[kept], volume.labels[place][kept])
        if volume.images.std() > 0:
            np.testing.assert_allclose(image, standard[place], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(times, volume.labels >= 0)
    assert images.dtype == np.float32 and labels.dtype == np.int32


def test_labels_of_the_volume_are_left_as_they_are():
    volume = volume_of((4, 6, 6))
    before = volume.labels.copy()
    evaluation_windows(volume, window=(3, 4, 4), output=(3, 4, 4))
    np.testing.assert_array_equal(volume.labels, before)


def test_the_arrays_of_a_sweep():
    train, evaluation = volume_of((5, 12, 12)), volume_of((4, 8, 8), seed=1)
    weights = np.ones(train.images.shape, np.float32)
    options = {"window": (4, 8, 8), "output": (2, 4, 4)}
    every = sweep_data(train, evaluation, weights, **options)
    assert all(isinstance(array, np.ndarray) for array in every.values())
    np.testing.assert_allclose([every["image"].mean(), every["image"].std()], [0, 1], atol=1e-4)
    np.testing.assert_array_equal(every["labels"], train.labels)
    assert every["evaluation_images"].shape == (8, 4, 8, 8)
    assert every["evaluation_labels"].shape == (8, 2, 4, 4)
    some = sweep_data(train, evaluation, weights, at_most=3, **options)
    # The first, one in the middle, the last.
    for name in ("evaluation_images", "evaluation_labels"):
        assert len(some[name]) == 3
        np.testing.assert_array_equal(some[name][[0, 2]], every[name][[0, 7]])
    many = sweep_data(train, evaluation, weights, at_most=100, **options)
    assert len(many["evaluation_images"]) == 8


def test_a_sweep_that_draws_by_class_has_a_table_of_the_classes():
    train, evaluation = volume_of((5, 12, 12)), volume_of((4, 8, 8), seed=1)
    options = {"window": (4, 8, 8), "output": (2, 4, 4)}
    plain = sweep_data(train, evaluation, None, **options)
    found = sweep_data(train, evaluation, None, sampled=True, **options)
    assert found.keys() - plain.keys() == {"class_voxels", "common"}
    for index, places in enumerate(found["class_voxels"]):
        assert np.all(train.labels[tuple(places.T)] == index)
    counts = [(train.labels == index).sum() for index in range(3)]
    assert found["common"] == np.argmax(counts)
    train.labels[train.labels == 1] = 0
    with pytest.raises(ValueError, match=r"no voxel of class \[1\]"):
        sweep_data(train, evaluation, None, sampled=True, **options)


def test_windows_that_do_not_fit_are_refused():
    volume = volume_of((3, 8, 8))
    with pytest.raises(ValueError, match=r"\(4, 8, 8\).*\(3, 8, 8\)"):
        evaluation_windows(volume, window=(4, 8, 8), output=(4, 8, 8))
    with pytest.raises(ValueError, match="mirrored once"):
        evaluation_windows(volume, window=(9, 8, 8), output=(1, 8, 8))


def test_class_counts():
    labels = np.int32([[0, 2, 2], [-1, 0, 2]])
    assert class_counts(labels, ("a", "b", "c")) == {"a": 2, "b": 0, "c": 3, "not labelled": 1}
    assert class_counts(labels[:, 1:2].clip(0), ("a", "b", "c")) == {"a": 1, "b": 0, "c": 1}
