"""Fetching from a server on this machine: whole, or not there at all."""

import hashlib
import http.server
import io
import threading
import zipfile

import pytest

from densejax.data.download import fetch_platelets, fetch_zip, md5_of, wrong_files

FILES = {"a.tif": b"first" * 1000, "b.tif": b"second"}
SUMS = {name: hashlib.md5(data).hexdigest() for name, data in FILES.items()}


def make_zip():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in FILES.items():
            archive.writestr(f"__MACOSX/set/{name}", b"shadow")
            archive.writestr(f"set/{name}", data)
            archive.writestr(f"__MACOSX/after/{name}", b"shadow")
        archive.writestr("../../escape.txt", b"outside")
    return out.getvalue()


@pytest.fixture
def server(monkeypatch):
    """Serve ``server.body`` at ``server.url`` and count the requests."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.hits += 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.server.body)))
            self.end_headers()
            self.wfile.write(self.server.body)

        def log_message(self, *_):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.hits, running.body = 0, make_zip()
    running.url = f"http://127.0.0.1:{running.server_address[1]}/set_1.zip?dl=1"
    thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()


def fetch(folder, server, **changed):
    options = {"url": server.url, "md5": hashlib.md5(server.body).hexdigest(), "files": SUMS}
    return fetch_zip(folder, "set", **(options | changed))


def entries(folder):
    return sorted(p.name for p in folder.iterdir())


def test_fetch_then_fetch_again(tmp_path, server):
    target = fetch(tmp_path / "data", server)
    assert target == tmp_path / "data" / "set"
    assert {p.name: p.read_bytes() for p in target.iterdir()} == FILES
    assert entries(tmp_path / "data") == ["set", "set_1.zip"]
    assert fetch(tmp_path / "data", server) == target
    assert server.hits == 1
    assert entries(tmp_path) == ["data"]


def test_an_archive_already_there_needs_no_network(tmp_path, server):
    (tmp_path / "set_1.zip").write_bytes(server.body)
    fetch(tmp_path, server)
    assert server.hits == 0


def test_an_archive_with_another_checksum_is_not_replaced(tmp_path, server):
    (tmp_path / "set_1.zip").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"set_1\.zip: md5 .*expected"):
        fetch(tmp_path, server)
    assert (tmp_path / "set_1.zip").read_bytes() == b"half"
    assert server.hits == 0 and entries(tmp_path) == ["set_1.zip"]


def test_a_wrong_download_leaves_nothing(tmp_path, server):
    with pytest.raises(ValueError, match="not the file expected"):
        fetch(tmp_path, server, md5="0" * 32)
    assert entries(tmp_path) == []


def test_a_wrong_or_missing_member_leaves_no_folder(tmp_path, server):
    wrong = SUMS | {"b.tif": "0" * 32, "c.tif": "1" * 32}
    with pytest.raises(ValueError, match=r"b\.tif has md5 .*c\.tif is missing"):
        fetch(tmp_path, server, files=wrong)
    assert entries(tmp_path) == ["set_1.zip"]


def test_an_incomplete_folder_is_named_and_kept(tmp_path, server):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.tif").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"a\.tif has md5 .*b\.tif is missing"):
        fetch(tmp_path, server)
    assert (tmp_path / "set" / "a.tif").read_bytes() == b"mine"
    assert entries(tmp_path) == ["set"] and server.hits == 0


def test_without_a_network_the_message_says_what_to_do(tmp_path, server):
    server.shutdown()
    server.server_close()
    with pytest.raises(ConnectionError, match=r"http://127.*put it at .*set_1\.zip \(md5"):
        fetch(tmp_path, server)
    assert entries(tmp_path) == []


def test_an_answer_that_is_an_error(tmp_path, server):
    server.RequestHandlerClass.do_GET = lambda self: self.send_error(404)
    with pytest.raises(ConnectionError, match="404"):
        fetch(tmp_path, server)
    assert entries(tmp_path) == []


def test_platelets_already_there_are_checked(tmp_path):
    (tmp_path / "platelet_data").mkdir()
    with pytest.raises(ValueError, match=r"train-images\.tif is missing"):
        fetch_platelets(tmp_path)


def test_checksums(tmp_path):
    (tmp_path / "a.tif").write_bytes(FILES["a.tif"])
    assert md5_of(tmp_path / "a.tif") == SUMS["a.tif"]
    assert wrong_files(tmp_path, {"a.tif": SUMS["a.tif"]}) == []
