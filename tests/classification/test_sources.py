"""Named sets of pictures and held-out parts."""

import jax
import numpy as np
import pytest
from PIL import Image

from densejax.classification.sources import held_out_rows, load_source
from densejax.data.vision import gratings


def test_gratings_have_equal_classes_and_are_told_apart_by_direction():
    data = gratings(jax.random.key(0), 40, noise=0.0)
    assert np.bincount(data.labels).tolist() == [10] * 4
    grey = data.images.astype(float).mean(axis=-1)
    grey -= grey.mean(axis=(1, 2), keepdims=True)
    along_x = np.square(np.diff(grey, axis=2)).sum(axis=(1, 2))
    along_y = np.square(np.diff(grey, axis=1)).sum(axis=(1, 2))
    assert (along_x[data.labels == 0] > along_y[data.labels == 0]).all()
    assert (along_x[data.labels == 2] < along_y[data.labels == 2]).all()
    with pytest.raises(ValueError, match="expected 1 up"):
        gratings(jax.random.key(0), 0)


def test_tiny_needs_no_files_and_may_be_imbalanced(tmp_path):
    source = load_source("tiny", tmp_path, limit=80, test_limit=12, imbalance=0.1)
    counts = np.bincount(source.labels)
    assert counts[0] == 20 and counts[-1] == 2 and (np.diff(counts) < 0).all()
    assert len(source.test_images) == 12


def test_cifar_is_read_in_part(data_folder):
    source = load_source("cifar10", data_folder / "cifar10_lossless_5k", limit=50, test_limit=7)
    assert source.images.shape == (50, 32, 32, 3) and len(source.test_labels) == 7
    again = load_source("cifar10", data_folder / "cifar10_lossless_5k", limit=50, test_limit=7)
    np.testing.assert_array_equal(source.labels, again.labels)


def test_imagenet_folders_are_read_or_refused(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError):
        load_source("imagenet", tmp_path)
    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (20, 16), (60 * i, 9, 9)).save(tmp_path / part / name / f"{i}.png")
    source = load_source("imagenet", tmp_path, size=8)
    assert source.images.shape == (4, 8, 8, 3) and source.labels.tolist() == [0, 0, 1, 1]
    assert source.files[3].endswith("b/1.png")
    monkeypatch.setattr("densejax.classification.sources.memory_limit", lambda devices: 100)
    with pytest.raises(ValueError, match="features"):
        load_source("imagenet", tmp_path, size=8)


def test_unknown_sets_and_limits_are_refused(tmp_path):
    with pytest.raises(ValueError, match="data 'dogs': expected one of cifar10"):
        load_source("dogs", tmp_path)
    with pytest.raises(FileNotFoundError):
        load_source("mnist", tmp_path)


def test_held_out_parts():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    balanced = held_out_rows(jax.random.key(0), labels, 0.12, balanced=True)
    assert np.bincount(labels[balanced]).tolist() == [4, 4, 4]
    scarce = held_out_rows(jax.random.key(0), labels, 0.3, balanced=True)
    assert np.bincount(labels[scarce]).tolist() == [10, 10, 5]
    plain = held_out_rows(jax.random.key(0), labels, 0.12, balanced=False)
    assert plain.sum() == 12
    with pytest.raises(ValueError, match="validation 0"):
        held_out_rows(jax.random.key(0), labels, 0, balanced=True)
