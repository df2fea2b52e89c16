"""Clusters and sweeps for the tests of launch."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from two_nodes import TwoNodes, why_not

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> Path:
    """The folder of troubles of ``tiny_sweep``, which processes of this test find as a module."""
    paths = [str(ROOT), str(Path(__file__).parent)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    for path in paths:
        monkeypatch.syspath_prepend(path)
    (tmp_path / "trouble").mkdir()
    return tmp_path / "trouble"


class Commands:
    """``python -m launch.NAME`` as a user gives it."""

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        self.environment = environment or {}

    def __call__(self, name: str, *words: str, expect: int | None = 0) -> str:
        """What a command prints; its exit code must be ``expect``, if that is not None."""
        done = subprocess.run(
            [sys.executable, "-m", f"launch.{name}", *map(str, words)],
            cwd=ROOT,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        said = done.stdout + done.stderr
        assert expect is None or done.returncode == expect, said
        return said

    def wait_until(self, what: Path, *words: str, seconds: float = 900.0) -> str:
        """Wait for words in what ``launch.status`` of a folder says."""
        until = time.monotonic() + seconds
        while True:
            said = self("status", what, expect=None)
            if all(word in said for word in words):
                return said
            assert time.monotonic() < until, said
            time.sleep(1)


@pytest.fixture
def commands() -> Commands:
    return Commands()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Iterator[TwoNodes]:
    """Two nodes with accounting, for all tests of a session."""
    yield from _started(tmp_path_factory.mktemp("slurm"), accounting=True)


@pytest.fixture
def plain_cluster(tmp_path) -> Iterator[TwoNodes]:
    """Two nodes without accounting, with small arrays, for one test."""
    yield from _started(tmp_path / "slurm", accounting=False, largest=3)


def _started(folder: Path, *, accounting: bool, largest: int = 1001) -> Iterator[TwoNodes]:
    reason = why_not(accounting=accounting)
    if reason:
        pytest.skip(f"no Slurm can be started here: {reason}")
    found = TwoNodes(folder, accounting=accounting, largest=largest)
    try:
        found.start()
        yield found
    finally:
        found.stop()


@pytest.fixture
def on_slurm(cluster, tiny, monkeypatch) -> Commands:
    """Commands of a login node of the cluster."""
    del tiny
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    return Commands()
