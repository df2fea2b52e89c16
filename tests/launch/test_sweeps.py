"""A sweep's folder: begun once, its blocks fixed, overlaps refused."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from densejax.io import parse_seeds
from launch import sweeps
from launch.experiment import Experiment

SEGMENT = Experiment("experiments.segment", ("--width=2",), "/code", "python", True)


def test_blocks_are_fixed_and_extended(tmp_path):
    sweep = sweeps.begin(tmp_path, SEGMENT)
    assert [b.name for b in sweep.add(range(26), 7)] == ["0000", "0007", "0014", "0021"]
    again = sweeps.begin(tmp_path, SEGMENT)
    assert [b.seeds for b in again.add(range(26), 7)] == [b.seeds for b in sweep.blocks()]
    again.add(range(26, 30), 7)
    assert [b.name for b in sweep.blocks()] == ["0000", "0007", "0014", "0021", "0026"]
    assert sweeps.open_sweep(tmp_path).experiment == SEGMENT


def test_overlap_is_refused(tmp_path):
    sweep = sweeps.begin(tmp_path, SEGMENT)
    sweep.add(range(20), 10)
    with pytest.raises(ValueError, match=r"seeds 5:10 are in a block .* that of seeds 0:10"):
        sweep.add(range(5, 15), 10)
    with pytest.raises(ValueError, match="already"):
        sweep.add(range(40), 20)
    assert [block.name for block in sweep.blocks()] == ["0000", "0010"]


def test_two_divisions_at_once_leave_no_overlap(tmp_path):
    for trial in range(10):
        sweep = sweeps.begin(tmp_path / str(trial), SEGMENT)
        start = threading.Barrier(2)

        def add(size, sweep=sweep, start=start):
            start.wait()
            try:
                sweep.add(range(1, 30), size)
            except ValueError:
                pass

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(add, (7, 5)))  # raises what a thread has raised
        seeds = [seed for block in sweep.blocks() for seed in block.seeds]
        assert len(seeds) == len(set(seeds))


def test_another_sweep_is_refused(tmp_path):
    sweeps.begin(tmp_path, SEGMENT)
    other = Experiment("experiments.segment", ("--width=4",), "/code", "python", True)
    with pytest.raises(ValueError, match=r"--width=2, asked for is .*--width=4"):
        sweeps.begin(tmp_path, other)


def test_a_folder_that_this_machine_does_not_see(tmp_path):
    with pytest.raises(ValueError, match=f"does not see.*|{os.uname().nodename}"):
        sweeps.open_sweep(tmp_path / "elsewhere")


def test_lines_survive_a_kill(tmp_path):
    sweeps.append(tmp_path / "lines", {"a": 1})
    with (tmp_path / "lines").open("a") as file:
        file.write('{"a": 2, "cut')
    sweeps.append(tmp_path / "lines", {"a": 3})
    assert sweeps.read_lines(tmp_path / "lines") == [{"a": 1}, {"a": 3}]


@pytest.mark.parametrize("text", ["0:8", "0,3,5", "0:4,10", "7", "3,1:3"])
def test_written_as_read(text):
    seeds = parse_seeds(text)
    assert parse_seeds(sweeps.write_seeds(seeds)) == tuple(sorted(seeds))


def test_written_short():
    assert sweeps.write_seeds([5, 0, 1, 2, 7, 8]) == "0:3,5,7:9"


def test_blocks():
    assert sweeps.in_blocks(range(7), 3) == [(0, 1, 2), (3, 4, 5), (6,)]
    with pytest.raises(ValueError, match="block"):
        sweeps.in_blocks(range(3), 0)
