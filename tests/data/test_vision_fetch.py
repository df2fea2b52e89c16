"""Fetching picture sets from a server on this machine, and what is said without one."""

import functools
import hashlib
import http.server
import io
import tarfile
import threading

import pytest

from densejax.data import vision_fetch

FILES = {"a.gz": b"first" * 100, "b.gz": b"second"}
SUMS = {name: hashlib.md5(data).hexdigest() for name, data in FILES.items()}


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def url(tmp_path, monkeypatch):
    """The address of ``tmp_path/served/``, which holds the files and an archive of them."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = tmp_path / "served"
    served.mkdir()
    with tarfile.open(served / "set.tar.gz", "w:gz") as archive:
        for name, data in FILES.items():
            (served / name).write_bytes(data)
            for inside in (f"set/{name}", "../../escape"):
                member = tarfile.TarInfo(inside)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    handler = functools.partial(Quiet, directory=str(served))
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{running.server_address[1]}/"
    running.shutdown()
    running.server_close()


def test_files_are_fetched_once(tmp_path, url):
    folder = tmp_path / "mnist"
    assert vision_fetch._fetch_files(folder, url, SUMS) == folder
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == FILES
    # A dead address is no matter when the files are there.
    vision_fetch._fetch_files(folder, "http://127.0.0.1:9/", SUMS)
    (folder / "a.gz").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"a.gz: md5 .*; expected"):
        vision_fetch._fetch_files(folder, url, SUMS)


def test_an_archive_is_unpacked_whole_or_not_at_all(tmp_path, url):
    md5 = hashlib.md5((tmp_path / "served" / "set.tar.gz").read_bytes()).hexdigest()
    run = functools.partial(vision_fetch._fetch_tar, tmp_path / "sets", "set", url + "set.tar.gz")
    with pytest.raises(ValueError, match=r"set.tar.gz: c.gz is missing"):
        run(md5, SUMS | {"c.gz": "0" * 32})
    assert [p.name for p in (tmp_path / "sets").iterdir()] == ["set.tar.gz"]
    for _ in range(2):
        target = run(md5, SUMS)
        assert {p.name: p.read_bytes() for p in target.iterdir()} == FILES
    (target / "b.gz").unlink()
    with pytest.raises(ValueError, match=r"b.gz is missing.*Move the folder away"):
        run(md5, SUMS)


@pytest.mark.parametrize(
    ("fetch", "name", "file"),
    [
        (vision_fetch.fetch_mnist, "MNIST_URL", "train-images-idx3-ubyte.gz"),
        (vision_fetch.fetch_fashion_mnist, "FASHION_MNIST_URL", "train-images-idx3-ubyte.gz"),
        (vision_fetch.fetch_svhn, "SVHN_URL", "train_32x32.mat"),
        (vision_fetch.fetch_cifar10, "CIFAR10_URL", "cifar-10-python.tar.gz"),
    ],
)
def test_without_a_network_the_address_and_the_place_are_named(
    tmp_path, monkeypatch, fetch, name, file
):
    official = getattr(vision_fetch, name)
    assert official.startswith("http") and (official.endswith("/") or official.endswith(file))
    dead = "http://127.0.0.1:9/" + (file if official.endswith(file) else "")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(vision_fetch, name, dead)
    with pytest.raises(ConnectionError, match="Without a network") as error:
        fetch(tmp_path / "sets")
    assert str(tmp_path / "sets" / file) in str(error.value) and "127.0.0.1" in str(error.value)
