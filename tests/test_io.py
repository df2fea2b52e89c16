"""Files that are whole or absent, whoever dies or writes beside; records that are compared."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from densejax import io

ROOT = Path(__file__).resolve().parent.parent

# Writes one half of a large file, says so, and waits to be killed.
SLOW = """
import sys, time
from densejax import io
with io.replacing(sys.argv[1], durable=True) as partial:
    with partial.open("wb") as file:
        file.write(b"new" * 100_000)
        file.flush()
        print("half", flush=True)
        time.sleep(60)
"""
SLOW_FOLDER = """
import sys, time
from densejax import io
with io.publishing(sys.argv[1], alone=True) as partial:
    (partial / "first").write_text("1")
    print("half", flush=True)
    time.sleep(60)
"""
# Writes one letter many times over, until killed.
WRITER = """
import sys
from densejax import io
print("ready", flush=True)
while True:
    io.write_text(sys.argv[1], sys.argv[2] * 200_000)
"""


def started(code: str, *arguments: object) -> subprocess.Popen:
    """A process that has said its first line."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    return process


def killed(process: subprocess.Popen) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_needs_no_jax():
    code = "import sys, densejax.io; print([n for n in ('jax', 'numpy') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_killed_in_the_middle_of_a_write_the_old_file_is_whole(tmp_path):
    path = tmp_path / "file"
    io.write_text(path, "old")
    killed(started(SLOW, path))
    assert path.read_text() == "old"
    left = [name for name in names(tmp_path) if name != "file"]
    assert len(left) == 1 and left[0].startswith(".file.")
    io.write_text(path, "newer")
    assert path.read_text() == "newer"


def test_killed_in_the_middle_of_a_folder_there_is_none_and_the_leftover_is_cleared_away(tmp_path):
    folder = tmp_path / "folder"
    killed(started(SLOW_FOLDER, folder))
    assert names(tmp_path) == [".folder.partial"]
    with io.publishing(folder, alone=True) as partial:
        (partial / "second").write_text("2")
        assert not folder.exists()
    assert names(tmp_path) == ["folder"] and names(folder) == ["second"]


def test_readers_beside_many_writers_see_whole_files_only(tmp_path):
    path = tmp_path / "file"
    io.write_text(path, "a" * 200_000)
    writers = [started(WRITER, path, letter) for letter in "abc"]
    seen, end = set(), time.monotonic() + 2
    while time.monotonic() < end:
        text = path.read_text()
        assert len(text) == 200_000 and len(set(text)) == 1
        seen.add(text[0])
    for writer in writers:
        killed(writer)
    assert len(seen) > 1
    assert len(set(path.read_text())) == 1


def test_threads_may_write_one_file_at_once(tmp_path):
    path = tmp_path / "new" / "table.npz"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: io.write_npz(path, {"n": np.full(1000, n)}), range(64)))
    assert len(set(io.read_npz(path)["n"].tolist())) == 1
    assert names(path.parent) == ["table.npz"]


@pytest.mark.parametrize("alone", [False, True])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, alone):
    path = io.write_text(tmp_path / "file", "old")
    with pytest.raises(RuntimeError), io.replacing(path, alone=alone) as partial:
        partial.write_text("half")
        raise RuntimeError
    with pytest.raises(KeyboardInterrupt), io.publishing(tmp_path / "folder", alone=alone) as made:
        (made / "file").write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(TypeError):
        io.write_json(path, {"a": object()})
    with pytest.raises(ValueError, match="Object arrays"):
        io.write_npz(path, {"a": np.array([object()])})
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        io.write_csv(path, ("a", "b"), zip([1, 2], [1], strict=True))
    assert names(tmp_path) == ["file"] and path.read_text() == "old"


def test_a_full_disk_is_named_with_what_is_free_and_what_to_do(tmp_path, monkeypatch):
    io.write_text(tmp_path / "file", "old")

    def full(self, content):
        with self.open("wb") as file:
            file.write(content[:2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    expected = rf"file could not be .*No space left.*\(\d+\.\d MB free on the disk of {tmp_path}\)"
    with pytest.raises(OSError, match=rf"{expected}.*the same command goes on") as caught:
        io.write_text(tmp_path / "file", "new")
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "old"
    # What says so already is not said again.
    assert io.full_disk(caught.value, tmp_path) == ""
    assert io.full_disk(ValueError("no"), tmp_path) == io.full_disk(PermissionError(), tmp_path)
    assert io.free_bytes(tmp_path / "not" / "there") > 0


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_may_not_be_replaced_is_not(tmp_path, monkeypatch, links):
    if not links:

        def refuse(*paths):
            raise OSError(errno.EPERM, "no links here")

        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "file"
    io.write_text(path, "first", overwrite=False)
    with pytest.raises(FileExistsError):
        io.write_text(path, "second", overwrite=False)
    assert path.read_text() == "first" and names(tmp_path) == ["file"]


def test_one_of_many_is_the_first_and_all_read_what_it_wrote(tmp_path):
    path, barrier = tmp_path / "new" / "plan.json", threading.Barrier(8)

    def write(number):
        barrier.wait()
        return io.write_once(path, {"n": number})["n"]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(write, range(8)))
    assert len(set(found)) == 1 and names(path.parent) == ["plan.json"]


def test_a_folder_that_another_has_published_stays(tmp_path):
    folder = tmp_path / "folder"
    with pytest.raises(FileExistsError), io.publishing(folder) as partial:
        (partial / "mine").write_text("1")
        with io.publishing(folder) as other:
            (other / "theirs").write_text("2")
    assert names(folder) == ["theirs"] and names(tmp_path) == ["folder"]


def test_content_is_what_was_written(tmp_path):
    value = {"a": [1, 2.5, None], "b": {"c": "µm"}}
    assert io.read_json(io.write_json(tmp_path / "a.json", value)) == value
    assert (tmp_path / "a.json").read_text() == json.dumps(value, indent=1) + "\n"
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json: expected JSON"):
        io.read_json(tmp_path / "a.json")
    arrays = {"x": np.arange(6).reshape(2, 3), "y": np.float32(2), "z": np.array(["a", "bc"])}
    for compressed in (False, True):
        path = io.write_npz(tmp_path / "a.npz", arrays, compressed=compressed, durable=True)
        found = io.read_npz(path)
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array, strict=True)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"a\.npz: is cut short"):
        io.read_npz(path)
    rows = [(1, "a,b"), (2, 'c"d\n')]
    for end in ("\n", "\r\n"):
        path = io.write_csv(tmp_path / "a.csv", ("n", "text"), rows, line_end=end)
        assert path.read_bytes().startswith(f'n,text{end}1,"a,b"{end}'.encode())
        assert io.read_csv(path) == [{"n": "1", "text": "a,b"}, {"n": "2", "text": 'c"d\n'}]


def test_differences_are_named_with_both_values():
    before = {"a": 1, "b": {"c": (1, 2), "d": math.nan}, "gone": "x", "same": None}
    now = {"a": 2, "b": {"c": [1, 2], "d": math.nan, "e": True}, "new": [], "same": None}
    found = [
        "a was 1 and is 2",
        "b.e was absent and is true",
        'gone was "x" and is absent',
        "new was absent and is []",
    ]
    assert io.differences(before, now) == found
    assert io.differences(before, now, ignore=("b", "gone")) == [found[0], found[3]]
    assert io.differences(before, now, defaults={"new": [], "b": {"e": True}, "a": 2}) == [
        found[0],
        found[2],
    ]
    assert io.differences(before, before) == []


def test_a_folder_that_was_begun_as_something_else_is_refused(tmp_path):
    path = tmp_path / "run" / "settings.json"
    io.begin(path, {"size": (1, 2)}, what="search", indent=2)
    written = path.read_bytes()
    io.begin(path, {"size": [1, 2]}, what="search")
    expected = (
        r"settings\.json comes from another search: size was \[1, 2\] and is \[1, 3\]\. Use -"
    )
    with pytest.raises(ValueError, match=expected):
        io.begin(path, {"size": (1, 3)}, what="search", advice="Use --out.")
    with pytest.raises(ValueError, match=r"is absent\. Name another workdir"):
        io.check_same(path, {"size": 1}, {}, what="search")
    assert path.read_bytes() == written


def test_floats_of_a_table_have_the_form_that_is_asked_for(tmp_path):
    rows = [(1, 1 / 3, "x,y"), (True, np.float32(2), None)]
    path = io.write_csv(tmp_path / "t.csv", ["a", "b", "c"], rows, form=".3f")
    assert path.read_bytes() == b'a,b,c\n1,0.333,"x,y"\nTrue,2.000,\n'
