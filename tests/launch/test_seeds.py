"""Seeds as text, and in blocks."""

import pytest

from densejax import cli
from launch.seeds import in_blocks, parse_seeds, write_seeds


@pytest.mark.parametrize("text", ["0:8", "0,3,5", "0:4,10", "7", "3,1:3"])
def test_read_as_experiments_read_them(text):
    # launch does not import what experiments parse with; both must mean the same.
    assert parse_seeds(text) == cli.parse_seeds(text)
    assert parse_seeds(write_seeds(parse_seeds(text))) == tuple(sorted(parse_seeds(text)))


@pytest.mark.parametrize("text", ["", "a", "3:1", "1,1", "-1", "1:2:3", "0:4,3"])
def test_refused_as_experiments_refuse_them(text):
    for parse in (parse_seeds, cli.parse_seeds):
        with pytest.raises(ValueError, match="seeds"):
            parse(text)


def test_written_short():
    assert write_seeds([5, 0, 1, 2, 7, 8]) == "0:3,5,7:9"


def test_blocks():
    assert in_blocks(range(7), 3) == [(0, 1, 2), (3, 4, 5), (6,)]
    with pytest.raises(ValueError, match="block"):
        in_blocks(range(3), 0)
