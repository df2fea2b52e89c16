"""Readers of picture sets: official files as they are, and every way in which they break."""

import gzip
import pickle
import struct

import jax
import numpy as np
import pytest
import scipy.io

from densejax.data import vision
from densejax.data.vision import (
    LabelledImages,
    exponentially_imbalanced,
    load_cifar10,
    load_fashion_mnist,
    load_mnist,
    load_svhn,
)


def idx(array, rank=None):
    rank = array.ndim if rank is None else rank
    return struct.pack(f">I{array.ndim}I", 0x800 + rank, *array.shape) + array.tobytes()


@pytest.fixture
def mnist(tmp_path):
    """A folder of tiny files with official names, and their arrays."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, n in (("train", 7), ("t10k", 3)):
        arrays[f"{name}-images-idx3-ubyte"] = rng.integers(0, 256, (n, 28, 28), np.uint8)
        arrays[f"{name}-labels-idx1-ubyte"] = rng.integers(0, 10, n).astype(np.uint8)
    for name, array in arrays.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
    return tmp_path, arrays


@pytest.mark.parametrize("load", [load_mnist, load_fashion_mnist])
def test_idx_files_packed_and_not(mnist, load):
    folder, arrays = mnist
    for _ in range(2):
        for part, short in zip(load(folder), ("train", "t10k"), strict=True):
            assert part.images.dtype == np.uint8 and part.labels.dtype == np.int32
            np.testing.assert_array_equal(part.images[..., 0], arrays[f"{short}-images-idx3-ubyte"])
            np.testing.assert_array_equal(part.labels, arrays[f"{short}-labels-idx1-ubyte"])
        for path in list(folder.glob("*.gz")):
            (folder / path.name[:-3]).write_bytes(gzip.decompress(path.read_bytes()))
            path.unlink()


def test_a_wrong_checksum_is_named(mnist):
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz has md5 .*verify=False"):
        load_mnist(mnist[0], verify=True)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("train-images-idx3-ubyte.gz", lambda raw: raw[:-9], "cut short"),
        ("train-images-idx3-ubyte.gz", lambda raw: b"no gzip", "no gzip"),
        (
            "t10k-images-idx3-ubyte.gz",
            lambda raw: gzip.compress(gzip.decompress(raw)[:-1]),
            r"expected 2368 for an array \(3, 28, 28\)",
        ),
        (
            "t10k-labels-idx1-ubyte.gz",
            lambda raw: gzip.compress(b"\0\0\x0d\1" + gzip.decompress(raw)[4:]),
            "magic number 0x00000d01; expected 0x00000801",
        ),
        ("t10k-labels-idx1-ubyte.gz", lambda raw: gzip.compress(b"\0\0\x08\1\0"), "header of 8"),
        (
            "t10k-labels-idx1-ubyte.gz",
            lambda raw: gzip.compress(idx(np.zeros(4, np.uint8))),
            "4 labels; .*t10k-images-idx3-ubyte.gz has 3 images",
        ),
        (
            "train-labels-idx1-ubyte.gz",
            lambda raw: gzip.compress(idx(np.full(7, 10, np.uint8))),
            "label 10; expected 0 to 9",
        ),
    ],
)
def test_broken_idx_files_are_named(mnist, file, change, message):
    path = mnist[0] / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        load_mnist(mnist[0])
    assert file in str(error.value)


def test_missing_files_are_listed(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train-images.*t10k-labels.*fetch_mnist"):
        load_mnist(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"data_batch_1.*fetch_cifar10"):
        load_cifar10(tmp_path)
    with pytest.raises(FileNotFoundError, match="cifar-10-batches-py"):
        load_cifar10(tmp_path, verify=False)
    with pytest.raises(FileNotFoundError, match=r"test_32x32.mat missing.*fetch_svhn"):
        load_svhn(tmp_path)


def cifar(folder, *, as_bytes=False, files=2, rows=4, protocol=2):
    inside = folder / "cifar-10-batches-py"
    inside.mkdir()
    rng = np.random.default_rng(1)
    written = []
    for name in [f"data_batch_{i + 1}" for i in range(files)] + ["test_batch"]:
        data = rng.integers(0, 256, (rows, 3072)).astype(np.uint8)
        batch = {"batch_label": "x", "labels": rng.integers(0, 10, rows).tolist(), "data": data}
        written.append(batch)
        if as_bytes:
            batch = {key.encode(): value for key, value in batch.items()}
        (inside / name).write_bytes(pickle.dumps(batch, protocol=protocol))
    return written


@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("protocol", [2, 5])
def test_cifar10_of_any_size(tmp_path, as_bytes, protocol):
    written = cifar(tmp_path, as_bytes=as_bytes, files=11, protocol=protocol)
    (tmp_path / "cifar-10-batches-py" / "data_batch_1.old").write_bytes(b"a copy")
    train, test = load_cifar10(tmp_path, verify=False)
    assert train.images.shape == (44, 32, 32, 3) and test.images.shape == (4, 32, 32, 3)
    # data_batch_10 comes after data_batch_9.
    expected = np.concatenate([b["data"] for b in written[:-1]]).reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(train.images.transpose(0, 3, 1, 2), expected)
    assert train.labels.tolist() == [label for b in written[:-1] for label in b["labels"]]
    assert test.labels.tolist() == written[-1]["labels"]


def test_cifar10_checks_md5_unless_told_not_to(tmp_path):
    cifar(tmp_path, files=5)
    (tmp_path / "cifar-10-batches-py" / "batches.meta").write_bytes(b"")
    with pytest.raises(ValueError, match=r"data_batch_1 has md5 .*verify=False"):
        load_cifar10(tmp_path)


class Evil:
    def __reduce__(self):
        return print, ("a program ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda raw: raw[:2000], "cut short"),
        (lambda raw: pickle.dumps(Evil()), "it asks for builtins.print"),
        (lambda raw: pickle.dumps([1]), "holds a list"),
        (lambda raw: pickle.dumps({"data": 1}), "no labels; found"),
        (
            lambda raw: pickle.dumps({"data": np.zeros((2, 9), np.uint8), "labels": [0, 0]}),
            r"uint8 \(2, 9\)",
        ),
        (
            lambda raw: pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}),
            "for 2 images",
        ),
        (
            lambda raw: pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}),
            "label 10 at 0; expected 0 to 9",
        ),
    ],
)
def test_broken_cifar10_is_named(tmp_path, content, message, capsys):
    cifar(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        load_cifar10(tmp_path, verify=False)
    assert str(path) in str(error.value)
    assert "program" not in capsys.readouterr().out


def test_svhn(tmp_path):
    rng = np.random.default_rng(2)
    kept = {}
    for part, n in (("train", 11), ("test", 4), ("extra", 2)):
        x = rng.integers(0, 256, (32, 32, 3, n)).astype(np.uint8)
        kept[part] = x, (np.arange(n) % 10 + 1).astype(np.uint8)[:, None]
        scipy.io.savemat(tmp_path / f"{part}_32x32.mat", {"X": x, "y": kept[part][1]})
    train, test = load_svhn(tmp_path)
    np.testing.assert_array_equal(train.images[5], kept["train"][0][..., 5])
    assert train.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert len(test.labels) == 4
    assert len(load_svhn(tmp_path, extra=True)[0].labels) == 13
    with pytest.raises(ValueError, match="md5"):
        load_svhn(tmp_path, verify=True)
    raw = (tmp_path / "test_32x32.mat").read_bytes()
    (tmp_path / "test_32x32.mat").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ValueError, match=r"test_32x32.mat: is cut short"):
        load_svhn(tmp_path)
    scipy.io.savemat(tmp_path / "test_32x32.mat", {"X": x, "y": np.array([[0], [1]])})
    with pytest.raises(ValueError, match=r"test_32x32.mat: label 0; expected 1 to 10"):
        load_svhn(tmp_path)


def test_exponential_imbalance_keeps_the_published_numbers():
    labels = np.repeat(np.arange(10, dtype=np.int32), 5000)
    labels = np.random.default_rng(0).permutation(labels)
    images = np.zeros((50000, 1, 1, 1), np.uint8)
    images[:, 0, 0, 0] = labels
    data = LabelledImages(images, labels, vision.CIFAR10_CLASSES, "set")
    thin = exponentially_imbalanced(jax.random.key(0), data)
    # LDAM's published list for a factor of 0.1.
    expected = [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500]
    assert np.bincount(thin.labels).tolist() == expected
    np.testing.assert_array_equal(thin.images[:, 0, 0, 0], thin.labels)
    again = exponentially_imbalanced(jax.random.key(0), data)
    other = exponentially_imbalanced(jax.random.key(1), data)
    np.testing.assert_array_equal(thin.labels, again.labels)
    assert not np.array_equal(thin.labels, other.labels)
    whole = exponentially_imbalanced(jax.random.key(1), data, ratio=1.0)
    np.testing.assert_array_equal(whole.labels, labels)
    with pytest.raises(ValueError, match="ratio is 0"):
        exponentially_imbalanced(jax.random.key(0), data, ratio=0.0)


def test_labelled_images_are_checked():
    images = np.zeros((2, 3, 3, 1), np.uint8)
    with pytest.raises(ValueError, match="images are float32"):
        LabelledImages(images.astype(np.float32), np.zeros(2, np.int32), ("a",), "s")
    with pytest.raises(ValueError, match="labels are int64"):
        LabelledImages(images, np.zeros(2, np.int64), ("a",), "s")


@pytest.mark.parametrize(
    ("load", "folder", "first"),
    [
        (load_mnist, "mnist", [5, 0, 4, 1, 9, 2]),
        (load_fashion_mnist, "fashion_mnist", [9, 0, 0, 3, 0, 2]),
    ],
)
def test_the_real_sets(data_folder, load, folder, first):
    if not (data_folder / folder).is_dir():
        pytest.skip(f"no {folder} in {data_folder}")
    train, test = load(data_folder / folder, verify=True)
    assert train.images.shape == (60000, 28, 28, 1) and test.images.shape == (10000, 28, 28, 1)
    assert train.labels[:6].tolist() == first
    if folder == "fashion_mnist":
        assert np.bincount(train.labels).tolist() == [6000] * 10


def test_the_part_of_cifar10(data_folder):
    folder = data_folder / "cifar10_lossless_5k"
    if not folder.is_dir():
        pytest.skip(f"no cifar10_lossless_5k in {data_folder}")
    train, test = load_cifar10(folder, verify=False)
    assert train.images.shape == (4000, 32, 32, 3) and test.images.shape == (1000, 32, 32, 3)
    # The first labels of the official data_batch_1 and test_batch.
    assert train.labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert test.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert train.class_names == vision.CIFAR10_CLASSES
