"""The table of networks: published numbers, and the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

from experiments import networks

ROOT = Path(__file__).parents[2]


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.networks", *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_json_lists_the_published_networks():
    result = command("--format=json")
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)
    keys = {"name", "parameters", "input_window", "output_window", "gflop_per_window"}
    assert all(set(row) == keys for row in rows)
    assert [row["parameters"] for row in rows] == [
        10_267_022,
        9_916_238,
        10_267_022,
        7_882_311,
        10_283_406,
        31_030_983,
        2_033_767,
        2_074_727,
    ]
    assert rows[0]["output_window"] == [5, 296, 296]
    assert rows[5]["output_window"] == [1, 388, 388]
    assert abs(rows[0]["gflop_per_window"] - 1330) < 27
    assert abs(rows[7]["gflop_per_window"] - 290) < 6


def test_a_wrong_format_says_what_is_expected():
    result = command("--format=jason")
    assert result.returncode == 2
    assert "jason" in result.stderr and "expected one of table, json" in result.stderr


def test_table_has_one_aligned_line_a_network():
    rows = [networks.Network("a net", 1234567, (5, 300, 300), (5, 296, 296), 1325.69)]
    header, line = networks.table(rows).splitlines()
    assert len(header) == len(line)
    assert line.split() == ["a", "net", "1,234,567", "5x300x300", "5x296x296", "1,325.7"]


def test_names_are_unique():
    names = [name for name, _, _ in networks.networks()]
    assert len(set(names)) == len(names)
