"""Features on disk: what is read and what is refused."""

import numpy as np
import pytest

from densejax.active.rounds.features import open_features


def write(folder, *, d=4, bad=None, labels=None):
    rng = np.random.default_rng(0)
    for part, n in (("train", 30), ("test", 10)):
        features = rng.normal(size=(n, d)).astype(np.float32)
        if bad is not None and part == "train":
            features[bad] = np.inf
        np.save(folder / f"{part}_features.npy", features)
        np.save(folder / f"{part}_labels.npy", np.arange(n) % 3)
    if labels is not None:
        np.save(folder / "train_labels.npy", labels)


def test_features_are_read_whole_or_in_part(tmp_path):
    write(tmp_path)
    whole = open_features(tmp_path)
    assert whole.images.shape == (30, 4) and whole.class_names == ("0", "1", "2")
    part = open_features(tmp_path, limit=12, test_limit=5)
    assert part.images.shape == (12, 4) and len(part.test_labels) == 5
    for row, label in zip(part.images, part.labels, strict=True):
        place = np.flatnonzero((whole.images == row).all(axis=1))
        assert whole.labels[place] == label


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="train_features"):
        open_features(tmp_path)
    write(tmp_path, bad=[7, 9])
    with pytest.raises(ValueError, match=r"2 of 30 rows .* first is row 7"):
        open_features(tmp_path)
    write(tmp_path, labels=np.arange(29))
    with pytest.raises(ValueError, match="found 29 labels, expected 30"):
        open_features(tmp_path)
    write(tmp_path, labels=np.full(30, -1))
    with pytest.raises(ValueError, match="sample 0 has no label"):
        open_features(tmp_path)
    write(tmp_path)
    with pytest.raises(ValueError, match="31 of 30 samples"):
        open_features(tmp_path, limit=31)
    path = tmp_path / "train_features.npy"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="cut short"):
        open_features(tmp_path)
