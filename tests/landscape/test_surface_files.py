"""Surfaces on disk: interrupted, killed and continued; files of something else are refused."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from surface_losses import network_loss, quiet, relu_network

from densejax.landscape.directions import Plane, random_plane
from densejax.landscape.surfaces import (
    read_surface,
)
from densejax.landscape.surfaces.points import Evaluator


def test_interrupted_grid_goes_on_where_it_was(tmp_path, monkeypatch):
    params, loss = relu_network(), network_loss()
    plane = random_plane(jax.random.key(0), params)
    whole = quiet(loss, plane, points=(11, 8), chunk=4)
    file = tmp_path / "folder" / "grid.npz"

    def interrupt(level):
        if np.isfinite(level.values["loss"]).sum() > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quiet(loss, plane, points=(11, 8), chunk=4, file=file, on_level=interrupt)
    part = read_surface(file)
    known = np.isfinite(part.values["loss"])
    assert 20 < known.sum() < known.size
    calls = []
    plain = Evaluator.now
    monkeypatch.setattr(
        Evaluator, "now", lambda self, where: calls.append(len(where)) or plain(self, where)
    )
    again = quiet(loss, plane, points=(11, 8), file=file)
    # The centre and the first place are computed again, to compare.
    assert sum(calls) == known.size - known.sum() + 2
    for name in ("loss", "accuracy"):
        np.testing.assert_array_equal(again.values[name], whole.values[name])
        np.testing.assert_array_equal(part.values[name][known], whole.values[name][known])
    calls.clear()
    done = quiet(loss, plane, points=(11, 8), file=file)
    assert calls == [2]
    np.testing.assert_array_equal(done.values["loss"], whole.values["loss"])


KILLED = """
import sys
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
import time
from pathlib import Path
import numpy as np
from densejax.landscape.surfaces import grid, points
sys.path.insert(0, sys.argv[1])
from surface_losses import network_loss, relu_network
from densejax.landscape.directions import random_plane
grid.SAVE_SECONDS = 0.0
points.PLACES = 8
plain = points.Evaluator.now
def slowly(self, where):
    time.sleep(0.05)
    return plain(self, where)
points.Evaluator.now = slowly
plane = random_plane(jax.random.key(0), relu_network())
found = grid.surface(network_loss(), plane, points=24, file=Path(sys.argv[2]))
np.save(sys.argv[3], found.values["loss"])
"""


def test_killed_at_any_moment(tmp_path):
    """Runs are killed until one ends; the file is whole all the time, and the result the same."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    file, result = tmp_path / "grid.npz", tmp_path / "result.npy"
    command = [sys.executable, str(script), str(Path(__file__).parent), str(file), str(result)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    rng = np.random.default_rng(0)
    kills, known = 0, 0
    for _ in range(3):
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
            before = file.stat().st_mtime_ns if file.exists() else 0
            while process.poll() is None and (
                not file.exists() or file.stat().st_mtime_ns == before
            ):
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.3))
            kills += process.poll() is None
            process.send_signal(signal.SIGKILL)
        part = int(np.isfinite(read_surface(file).values["loss"]).sum())
        assert part >= known
        known = part
        if result.exists():
            break
    assert kills
    loss, plane = network_loss(), random_plane(jax.random.key(0), relu_network())
    resumed = quiet(loss, plane, points=24, file=file)
    whole = quiet(loss, plane, points=24, devices=jax.local_devices()[:2])
    np.testing.assert_array_equal(resumed.values["loss"], whole.values["loss"])


def changed(what):
    """A surface call that differs from the file's in one respect."""
    params, loss = relu_network(), network_loss()
    plane, options = random_plane(jax.random.key(0), params), {"points": (5, 4), "span": 1.0}
    if what == "another width":
        plane = random_plane(jax.random.key(0), relu_network(widths=(2, 8, 7, 3)))
    elif what == "another depth":
        plane = random_plane(jax.random.key(0), relu_network(widths=(2, 9, 7, 3, 3)))
    elif what == "another seed":
        other = relu_network(1)
        plane = Plane(other, plane.first, plane.second)
    elif what == "another direction":
        plane = Plane(plane.centre, plane.first, plane.centre)
    elif what == "more points":
        options["points"] = (5, 5)
    elif what == "another span":
        options["span"] = 0.5
    elif what == "other data":
        loss = network_loss(1)
    elif what == "other measures":
        inner = loss
        loss = lambda params: inner(params)["loss"]  # noqa: E731
    return loss, plane, options


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "another width",
            r"of another network: it has \['layer0'\]\['bias'\] \[9\] float32, this one "
            r"\['layer0'\]\['bias'\] \[8\] float32",
        ),
        ("another depth", "of another network: it has 6 parameter arrays, this one 8"),
        ("another seed", "of another network: of the same shapes, but the parameters"),
        ("another direction", "of another plane: its second direction differs"),
        ("more points", "of another grid: y has 4 points from -1 to 1 there, 5 points from -1"),
        ("another span", r"of another grid: x has .* from -1 to 1 there, .* from -0.5 to 0.5 here"),
        ("other data", r"has accuracy .* another loss|has loss .* another loss"),
        ("other measures", "holds accuracy, loss; this loss returns loss: another loss"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, what, message):
    file = tmp_path / "grid.npz"
    loss, plane, options = changed("nothing")
    quiet(loss, plane, file=file, **options)
    before = file.read_bytes()
    loss, plane, options = changed(what)
    with pytest.raises(ValueError, match=message):
        quiet(loss, plane, file=file, **options)
    assert file.read_bytes() == before


def test_a_file_that_is_no_surface(tmp_path):
    file = tmp_path / "grid.npz"
    file.write_bytes(b"PK\x03\x04 half a file")
    loss, plane, options = changed("nothing")
    with pytest.raises(ValueError, match=r"grid.npz is not a file of a surface"):
        quiet(loss, plane, file=file, **options)
    np.savez(file, something=np.zeros(3))
    with pytest.raises(ValueError, match=r"grid.npz is not a file of a surface"):
        quiet(loss, plane, file=file, **options)
