"""Labelled pictures: MNIST, Fashion-MNIST, CIFAR-10 and SVHN in their official files; gratings."""

import gzip
import pickle
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.io

from densejax.data.download import wrong_files
from densejax.typing import Key

MNIST_FILES = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
FASHION_MNIST_FILES = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
CIFAR10_TRAIN = 50_000
CIFAR10_FOLDER = "cifar-10-batches-py"
CIFAR10_FILES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
SVHN_FILES = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}
DIGITS = tuple("0123456789")
FASHION_CLASSES = tuple(
    "t-shirt/top trouser pullover dress coat sandal shirt sneaker bag ankle-boot".split()
)
CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())

# All that a batch of CIFAR-10 is made of; anything else in a pickle could run a program. NumPy has
# renamed its core, and files of either age must load.
_ALLOWED = {
    ("multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numeric", "_frombuffer"): np.zeros(1).__reduce_ex__(5)[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
}


@dataclass(frozen=True)
class LabelledImages:
    """Pictures with a class each.

    Attributes:
        images: uint8 [n, y, x, c], 0..255; c is 1 (grey) or 3 (red, green, blue).
        labels: int32 [n], 0..c-1 of the class names.
        class_names: in the order of the labels.
        name: what messages call the set.

    Raises:
        ValueError: another shape or dtype, there are not as many labels as images, or a label is
            outside the classes.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise ValueError(
                f"{self.name}: images are {self.images.dtype} {self.images.shape}; "
                "expected uint8 [n, y, x, c]"
            )
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != np.int32:
            raise ValueError(
                f"{self.name}: labels are {self.labels.dtype} {self.labels.shape} for "
                f"{len(self.images)} images; expected int32 [{len(self.images)}]"
            )
        classes = len(self.class_names)
        outside = np.flatnonzero((self.labels < 0) | (self.labels >= classes))
        if outside.size:
            raise ValueError(
                f"{self.name}: label {self.labels[outside[0]]} at {outside[0]}; "
                f"expected 0 to {classes - 1}"
            )


def load_mnist(
    folder: str | Path, *, verify: bool = False
) -> tuple[LabelledImages, LabelledImages]:
    """Load MNIST, training and test set, from the four official .gz files (or unpacked ones).

    Source: LeCun, Bottou, Bengio and Haffner 1998.

    Args:
        folder: where the files are.
        verify: compare each file with its official MD5 first.

    Returns:
        60000 and 10000 images, uint8 [n, 28, 28, 1].

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a checksum, magic number or size is wrong, a file is cut short, there are not as
            many labels as images; the message names the file.
    """
    return _load_idx(folder, MNIST_FILES, DIGITS, "mnist", "fetch_mnist", verify)


def load_fashion_mnist(
    folder: str | Path, *, verify: bool = False
) -> tuple[LabelledImages, LabelledImages]:
    """Load Fashion-MNIST, training and test set; as ``load_mnist``.

    Source: Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747.

    Args:
        folder: where the files are.
        verify: compare each file with its official MD5 first.

    Returns:
        60000 and 10000 images, uint8 [n, 28, 28, 1].

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: as ``load_mnist``.
    """
    name, fetch = "fashion-mnist", "fetch_fashion_mnist"
    return _load_idx(folder, FASHION_MNIST_FILES, FASHION_CLASSES, name, fetch, verify)


def load_cifar10(
    folder: str | Path, *, verify: bool = True
) -> tuple[LabelledImages, LabelledImages]:
    """Load CIFAR-10, training and test set, from the python version's ``cifar-10-batches-py``.

    Source: Krizhevsky 2009. The pickles are read by a reader that knows arrays only, so that a file
    from a stranger cannot run a program.

    Args:
        folder: ``cifar-10-batches-py`` or the folder that holds it.
        verify: compare each file with its official MD5 first. Without it any number of files
            ``data_batch_<i>`` with any number of rows is taken (a part of the set).

    Returns:
        50000 and 10000 images, uint8 [n, 32, 32, 3]; training images in the order of the files.

    Raises:
        FileNotFoundError: the folder or a file is missing.
        ValueError: a checksum is wrong, or a file is cut short, is no batch of CIFAR-10, or has not
            as many labels as rows; the message names the file.
    """
    folder = Path(folder)
    if (folder / CIFAR10_FOLDER).is_dir():
        folder = folder / CIFAR10_FOLDER
    if verify:
        _check_files(folder, CIFAR10_FILES, "fetch_cifar10", md5=True)
    batches = [path for path in folder.glob("data_batch_*") if path.name[11:].isdecimal()]
    found = sorted(batches, key=lambda path: int(path.name[11:]))
    if verify:
        found = found[:5]
    if not found or not (folder / "test_batch").is_file():
        raise FileNotFoundError(
            f"{folder}: data_batch_1 or test_batch missing; expected the folder {CIFAR10_FOLDER}, "
            "see densejax.data.vision_fetch.fetch_cifar10"
        )
    names = _cifar_names(folder / "batches.meta")
    read = [_cifar_batch(path, names) for path in found]
    images = np.concatenate([batch.images for batch in read])
    labels = np.concatenate([batch.labels for batch in read])
    test = _cifar_batch(folder / "test_batch", names)
    # A part of the set says so wherever its name is shown.
    part = "" if len(images) == CIFAR10_TRAIN else " subset"
    train = LabelledImages(images, labels, names, f"cifar10{part} train")
    return train, replace(test, name=f"cifar10{part} test")


def load_svhn(
    folder: str | Path, *, extra: bool = False, verify: bool = False
) -> tuple[LabelledImages, LabelledImages]:
    """Load the cropped digits of SVHN (format 2), training and test set.

    Source: Netzer et al. 2011. The files call the digit 0 class 10; here it is class 0.

    Args:
        folder: where ``train_32x32.mat`` and ``test_32x32.mat`` are.
        extra: append the 531131 easier images of ``extra_32x32.mat`` to the training set.
        verify: compare the two files with their MD5 first.

    Returns:
        73257 and 26032 images, uint8 [n, 32, 32, 3].

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a checksum is wrong, a file is cut short or holds other arrays, or a label is
            not 1 to 10; the message names the file.
    """
    folder = Path(folder)
    _check_files(folder, SVHN_FILES, "fetch_svhn", md5=verify)
    train, test = (_svhn_part(folder / f"{part}_32x32.mat") for part in ("train", "test"))
    if extra:
        if not (folder / "extra_32x32.mat").is_file():
            raise FileNotFoundError(f"{folder / 'extra_32x32.mat'} is missing")
        more = _svhn_part(folder / "extra_32x32.mat")
        train = replace(
            train,
            images=np.concatenate([train.images, more.images]),
            labels=np.concatenate([train.labels, more.labels]),
        )
    return replace(train, name="svhn train"), replace(test, name="svhn test")


def exponentially_imbalanced(
    key: Key, data: LabelledImages, *, ratio: float = 0.1
) -> LabelledImages:
    """Thin the classes out exponentially: class c of C keeps int(n_max * ratio**(c / (C - 1))).

    Source: Cao et al. 2019 (LDAM), "exp", as in section B-I of the thesis. n_max is n // C as
    there (5000 for CIFAR-10), so class 0 is whole in a balanced set. Where the set is not balanced
    and a class has fewer images than its share, all of them are kept. Which images stay is drawn
    without replacement by the key; they keep their order in ``data`` (the released code sorts them
    by class).

    Args:
        key: a jax key.
        data: n images.
        ratio: size of the last class relative to the first, in (0, 1].

    Raises:
        ValueError: the ratio is outside (0, 1].
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"{data.name}: ratio is {ratio}; expected more than 0, at most 1")
    classes = len(data.class_names)
    largest = len(data.labels) / classes
    order = np.asarray(jax.random.permutation(key, len(data.labels)))
    kept = []
    for c in range(classes):
        # The sum guards the truncation against a power that lies a rounding below a whole number.
        share = int(largest * ratio ** (c / max(classes - 1, 1)) + 1e-9)
        kept.append(order[data.labels[order] == c][:share])
    rows = np.sort(np.concatenate(kept))
    name = f"{data.name}, imbalanced {ratio:g}"
    return replace(data, images=data.images[rows], labels=data.labels[rows], name=name)


def _check_files(folder: Path, files: Mapping[str, str], fetch: str, *, md5: bool) -> None:
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder}: {', '.join(missing)} missing; see densejax.data.vision_fetch.{fetch}"
        )
    wrong = wrong_files(folder, files) if md5 else []
    if wrong:
        raise ValueError(
            f"{folder}: {'; '.join(wrong)}. A part of the set or another copy of it loads with "
            "verify=False"
        )


def _load_idx(
    folder: str | Path,
    files: Mapping[str, str],
    class_names: tuple[str, ...],
    name: str,
    fetch: str,
    verify: bool,
) -> tuple[LabelledImages, LabelledImages]:
    folder = Path(folder)
    unpacked = not verify and all((folder / file[:-3]).is_file() for file in files)
    if not unpacked:
        _check_files(folder, files, fetch, md5=verify)
    paths = [folder / (file[:-3] if unpacked else file) for file in files]
    parts = []
    for part, (images, labels) in zip(("train", "test"), (paths[:2], paths[2:]), strict=True):
        pixels, numbers = _read_idx(images, 3), _read_idx(labels, 1)
        if len(pixels) != len(numbers):
            raise ValueError(f"{labels}: {len(numbers)} labels; {images} has {len(pixels)} images")
        if numbers.size and numbers.max() >= len(class_names):
            raise ValueError(
                f"{labels}: label {numbers.max()}; expected 0 to {len(class_names) - 1}"
            )
        parts.append(
            LabelledImages(
                pixels[..., None], numbers.astype(np.int32), class_names, f"{name} {part}"
            )
        )
    return parts[0], parts[1]


def _read_idx(path: Path, rank: int) -> np.ndarray:
    """Return the uint8 array of an IDX file: 0 0 8 rank, ``rank`` big-endian sizes, the bytes."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: is cut short or is no gzip file ({error})") from error
    expected = bytes([0, 0, 8, rank])
    if data[:4] != expected:
        raise ValueError(
            f"{path}: magic number 0x{data[:4].hex()}; expected 0x{expected.hex()} (IDX, uint8, "
            f"{rank} {'axis' if rank == 1 else 'axes'})"
        )
    header = 4 + 4 * rank
    if len(data) < header:
        raise ValueError(f"{path}: {len(data)} bytes; expected a header of {header}")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", rank, 4))
    size = header + int(np.prod(shape, dtype=np.int64))
    if len(data) != size:
        raise ValueError(f"{path}: {len(data)} bytes; expected {size} for an array {shape}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


class _ArraysOnly(pickle.Unpickler):
    """Makes nothing but arrays."""

    def find_class(self, module: str, name: str) -> Any:
        parts = module.split(".")
        inside = parts[:-1] in (["numpy", "core"], ["numpy", "_core"])
        short = parts[-1] if inside else module
        if (short, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ALLOWED[short, name]


def _read_pickle(path: Path) -> dict[str, Any]:
    """Return a pickled dict with str keys, whether it was written with str or bytes."""
    try:
        with open(path, "rb") as file:
            found = _ArraysOnly(file, encoding="latin1").load()
    except FileNotFoundError:
        raise
    except Exception as error:  # A broken pickle may raise anything.
        raise ValueError(f"{path}: is cut short or is no batch of CIFAR-10 ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds a {type(found).__name__}; expected a dict")
    return {k.decode("latin1") if isinstance(k, bytes) else str(k): v for k, v in found.items()}


def _cifar_names(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return CIFAR10_CLASSES
    names = _read_pickle(path).get("label_names", CIFAR10_CLASSES)
    return tuple(n.decode("latin1") if isinstance(n, bytes) else str(n) for n in names)


def _cifar_batch(path: Path, names: tuple[str, ...]) -> LabelledImages:
    found = _read_pickle(path)
    absent = {"data", "labels"} - set(found)
    if absent:
        raise ValueError(f"{path}: no {' or '.join(sorted(absent))}; found {sorted(found)}")
    data = np.asarray(found["data"])
    if data.ndim != 2 or data.shape[1] != 3072 or data.dtype != np.uint8:
        raise ValueError(f"{path}: data is {data.dtype} {data.shape}; expected uint8 [n, 3072]")
    images = np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return LabelledImages(images, np.asarray(found["labels"], np.int32), names, str(path))


def _svhn_part(path: Path) -> LabelledImages:
    try:
        found = scipy.io.loadmat(str(path), variable_names=["X", "y"])
    except Exception as error:  # A broken file may raise anything.
        raise ValueError(f"{path}: is cut short or is no MATLAB file ({error})") from error
    if "X" not in found or "y" not in found:
        raise ValueError(f"{path}: no arrays X and y; expected the cropped digits (format 2)")
    images, labels = found["X"], found["y"].ravel().astype(np.int32)
    if images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise ValueError(f"{path}: X is {images.shape}; expected [32, 32, 3, n]")
    wrong = labels[(labels < 1) | (labels > 10)]
    if wrong.size:
        raise ValueError(f"{path}: label {wrong[0]}; expected 1 to 10 (10 is the digit 0)")
    images = np.ascontiguousarray(images.transpose(3, 0, 1, 2))
    return LabelledImages(images, labels % 10, DIGITS, str(path))


def gratings(
    key: Key, number: int, *, classes: int = 4, size: int = 16, noise: float = 0.35
) -> LabelledImages:
    """Pictures of waves in noise; class c of C runs at an angle of pi c / C.

    Phase, wavelength (4 to 8 pixels) and colour are drawn for each picture, so that no pixel alone
    tells a class.

    Args:
      key: a jax key.
      number: of pictures, n; classes are as equal as can be, in random order.
      classes: C, at least 1.
      size: y and x, pixels.
      noise: standard deviation beside an amplitude of 0.25, of a range of 1.

    Returns:
      uint8 [n, size, size, 3].

    Raises:
      ValueError: ``number``, ``classes`` or ``size`` is below 1.
    """
    if min(number, classes, size) < 1:
        raise ValueError(f"{number} pictures of {classes} classes and {size} pixels: expected 1 up")
    order, phase, length, colour, grain = jax.random.split(key, 5)
    labels = jax.random.permutation(order, jnp.arange(number) % classes)
    angles = jnp.pi * labels / classes
    waves = 2 * jnp.pi / jax.random.uniform(length, (number,), minval=4.0, maxval=8.0)
    y, x = jnp.meshgrid(jnp.arange(size), jnp.arange(size), indexing="ij")
    along = jnp.cos(angles)[:, None, None] * x + jnp.sin(angles)[:, None, None] * y
    start = jax.random.uniform(phase, (number, 1, 1), maxval=2 * jnp.pi)
    wave = 0.25 * jnp.sin(waves[:, None, None] * along + start)
    tint = jax.random.uniform(colour, (number, 1, 1, 3), minval=0.5, maxval=1.0)
    drawn = 0.5 + tint * wave[..., None]
    drawn = drawn + noise * jax.random.normal(grain, (number, size, size, 3))
    pixels = np.asarray(jnp.round(255 * jnp.clip(drawn, 0, 1)), np.uint8)
    names = tuple(f"{180 * c / classes:.0f} degrees" for c in range(classes))
    return LabelledImages(pixels, np.asarray(labels, np.int32), names, "gratings")
