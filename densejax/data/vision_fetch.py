"""Fetch the picture sets that ``data.vision`` reads, from their official addresses."""

import tarfile
from collections.abc import Mapping
from pathlib import Path

from densejax.data.download import fetch_file, wrong_files
from densejax.data.vision import (
    CIFAR10_FILES,
    CIFAR10_FOLDER,
    FASHION_MNIST_FILES,
    MNIST_FILES,
    SVHN_FILES,
)
from densejax.io import publishing

# The address that stands in for LeCun's own, which no longer gives the files away.
MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FASHION_MNIST_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
SVHN_URL = "http://ufldl.stanford.edu/housenumbers/"
SVHN_EXTRA_MD5 = "a93ce644f1a588dc4d68dda5feec44a7"
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR10_MD5 = "c58f30108f718f92721af3b95e74349a"


def fetch_mnist(folder: str | Path) -> Path:
    """Fetch the four files of MNIST (12 MB) into ``folder`` and return it.

    Files that are there are checked and left as they are.

    Raises:
        ConnectionError: no answer; the message gives the URL and where to put the file.
        ValueError: a checksum is wrong.
    """
    return _fetch_files(folder, MNIST_URL, MNIST_FILES)


def fetch_fashion_mnist(folder: str | Path) -> Path:
    """Fetch the four files of Fashion-MNIST (31 MB); as ``fetch_mnist``.

    Raises:
        ConnectionError: no answer; the message gives the URL and where to put the file.
        ValueError: a checksum is wrong.
    """
    return _fetch_files(folder, FASHION_MNIST_URL, FASHION_MNIST_FILES)


def fetch_svhn(folder: str | Path, *, extra: bool = False) -> Path:
    """Fetch the cropped digits of SVHN (246 MB, with ``extra`` 1.6 GB); as ``fetch_mnist``.

    Raises:
        ConnectionError: no answer; the message gives the URL and where to put the file.
        ValueError: a checksum is wrong.
    """
    more = {"extra_32x32.mat": SVHN_EXTRA_MD5} if extra else {}
    return _fetch_files(folder, SVHN_URL, SVHN_FILES | more)


def fetch_cifar10(folder: str | Path) -> Path:
    """Fetch CIFAR-10 (170 MB) and unpack ``folder/cifar-10-batches-py``; return that path.

    The archive is kept. A folder that is already whole is left as it is.

    Raises:
        ConnectionError: no answer; the message gives the URL and where to put the archive.
        ValueError: a checksum is wrong, or the folder is there without being whole.
    """
    return _fetch_tar(folder, CIFAR10_FOLDER, CIFAR10_URL, CIFAR10_MD5, CIFAR10_FILES)


def _fetch_files(folder: str | Path, url: str, files: Mapping[str, str]) -> Path:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for file, md5 in files.items():
        fetch_file(folder, url + file, md5)
    return folder


def _fetch_tar(folder: str | Path, name: str, url: str, md5: str, files: Mapping[str, str]) -> Path:
    """Fetch and check an archive, and publish ``folder/name`` with the wanted files by a rename."""
    folder = Path(folder)
    target = folder / name
    if target.exists():
        if wrong := wrong_files(target, files):
            raise ValueError(f"{target}: {'; '.join(wrong)}. Move the folder away to fetch it anew")
        return target
    folder.mkdir(parents=True, exist_ok=True)
    archive = fetch_file(folder, url, md5)
    with publishing(target) as made:
        with tarfile.open(archive) as opened:
            for member in opened:
                # Found by the last name, so that no path of the archive leads anywhere else.
                file = Path(member.name).name
                source = opened.extractfile(member) if member.isfile() else None
                if source is not None and file in files:
                    (made / file).write_bytes(source.read())
        if wrong := wrong_files(made, files):
            raise ValueError(f"{archive}: {'; '.join(wrong)}")
    return target
