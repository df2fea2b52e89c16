"""What jobs ask for: flags over a site's file, and times as Slurm writes them."""

import argparse
import json
from dataclasses import asdict

import pytest

from launch import resources
from launch.resources import Resources


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *[("30", 30), ("30:00", 30), ("30:01", 31), ("2:00:00", 120), ("1-0", 1440)],
        *[("1-12:30", 2190), ("2-00:00:00", 2880), ("0:00:30", 1)],
    ],
)
def test_minutes(text, expected):
    assert resources.minutes(text) == expected


@pytest.mark.parametrize("text", ["", "0", "1h", "1:2:3:4", "-5"])
def test_no_time(text):
    with pytest.raises(ValueError, match="time"):
        resources.minutes(text)


def parsed(*words, before=None):
    parser = argparse.ArgumentParser()
    resources.add_flags(parser)
    return resources.from_flags(parser.parse_args(list(words)), before=before)


def test_flags_over_the_site(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "launch.toml").write_text(
        'partition = "gpu"\naccount = "lab"\nnice = 10\nmodules = ["cuda/12"]\n'
        'setup = ["source env.sh"]\nsbatch = ["--exclusive"]\n'
    )
    found = parsed("--partition=short", "--time=2:00:00", "--sbatch=--mail-type=END")
    assert (found.partition, found.account, found.time) == ("short", "lab", "2:00:00")
    assert found.setup_lines() == ["module load cuda/12", "source env.sh"]
    assert found.options() == {
        "partition": "short",
        "account": "lab",
        "nice": 10,
        "mail-type": "END",
    }
    assert parsed().options()["exclusive"] is True
    # As retry reads them from the last submission.
    before = json.loads(json.dumps(asdict(found)))
    assert parsed(before=before) == found
    assert parsed("--time=3:00:00", before=before).time == "3:00:00"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("partitoin = 'gpu'", "unknown name 'partitoin'"),
        ("nice = 'ten'", "nice is 'ten', expected int"),
        ("setup = 'module load cuda'", "expected a list of texts"),
        ("partition", "launch.toml"),
    ],
)
def test_a_bad_site_file(tmp_path, text, words):
    (tmp_path / "launch.toml").write_text(text)
    with pytest.raises(ValueError, match=words):
        parsed(f"--site={tmp_path / 'launch.toml'}")


def test_a_named_site_file_must_be_there(tmp_path):
    with pytest.raises(ValueError, match="is not there"):
        parsed(f"--site={tmp_path / 'none.toml'}")


def test_an_option_of_sbatch_is_one():
    with pytest.raises(ValueError, match="exclusive"):
        Resources(sbatch=("exclusive",))
