"""Configurations: flags made from a dataclass, seeds from text, and the record of a run."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st

from densejax import cli as configuration
from densejax.cli import option
from densejax.training.provenance import provenance

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclasses.dataclass(frozen=True)
class Inner:
    brightness: float = option(0.12, "largest shift", unit="fraction")
    kind: str | None = option(None, "which one")


@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = option(100, "updates", unit="steps")
    rate: float = option(1e-3, "learning rate")
    quick: bool = option(False, "less of it")
    network: Literal["hybrid", "unet"] = option("hybrid", "architecture")
    window: tuple[int, ...] = option((5, 64, 64), "input window", unit="voxels")
    voxel_nm: tuple[float, float, float] | None = option(None, "voxel size", unit="nm")
    names: tuple[str, ...] = option((), "classes")
    seeds: tuple[int, ...] = option((0,), "instances", parse=configuration.parse_seeds)
    inner: Inner = dataclasses.field(default_factory=Inner)


def parsed(*arguments, config_class=Config):
    values = flags.FlagValues()
    configuration.define_flags(config_class, flag_values=values)
    values(["program", *arguments], known_only=False)
    return configuration.from_flags(config_class, flag_values=values), values


def test_without_arguments_a_configuration_is_the_dataclass():
    assert parsed()[0] == Config()


def test_a_joined_flag_may_be_repeated():
    @dataclasses.dataclass(frozen=True)
    class Paths:
        image: str = option("", "volumes", joined=True)
        other: str = option("", "one volume")

    assert parsed(config_class=Paths)[0] == Paths()
    found, _ = parsed("--image=a,b", "--other=x", "--image=c", "--other=y", config_class=Paths)
    assert found == Paths("a,b,c", "y")


def test_every_kind_of_field_is_read():
    found, _ = parsed(
        *("--steps=7", "--rate=0.5", "--quick", "--network=unet", "--window=1, 2,3"),
        *("--voxel_nm=50,11,11", "--names=cell,vesicle", "--seeds=0:3,9", "--inner.brightness=0.3"),
        "--inner.kind=released",
    )
    assert found == Config(
        steps=7,
        rate=0.5,
        quick=True,
        network="unet",
        window=(1, 2, 3),
        voxel_nm=(50.0, 11.0, 11.0),
        names=("cell", "vesicle"),
        seeds=(0, 1, 2, 9),
        inner=Inner(brightness=0.3, kind="released"),
    )
    assert parsed("--noquick", "--names=", "--voxel_nm=none", "--inner.kind=None")[0] == Config()


def test_a_choice_that_is_called_none_is_not_left_to_the_recipe():
    choices = Literal["published", "none"] | None
    made = dataclasses.make_dataclass("Made", [("weights", choices, option(None, "which"))])
    assert parsed("--weights=none", config_class=made)[0].weights == "none"
    assert parsed("--weights=default", config_class=made)[0].weights is None
    assert parsed(config_class=made)[0].weights is None
    with pytest.raises(flags.Error, match="expected one of published, none"):
        parsed("--weights=nothing", config_class=made)


def test_a_flagfile_written_by_absl_is_read_back(tmp_path):
    found, values = parsed(
        "--voxel_nm=50,11,11", "--seeds=2:4", "--inner.brightness=0.3", "--quick"
    )
    (tmp_path / "flags").write_text(values.flags_into_string())
    assert parsed(f"--flagfile={tmp_path / 'flags'}")[0] == found


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--steps=few", "steps"),
        ("--steps=1.5", "steps"),
        ("--rate=nan", "not-a-number"),
        ("--network=resnet", "one of hybrid, unet"),
        ("--window=1,x", "window"),
        ("--voxel_nm=50,11", "expected 3 values"),
        ("--seeds=3:3", "empty"),
        ("--stepz=3", "Did you mean: steps"),
        ("--inner.brigthness=1", "Did you mean: inner.brightness"),
    ],
)
def test_what_cannot_be_read_is_refused(argument, message):
    with pytest.raises(flags.Error, match=message):
        parsed(argument)


def test_a_field_without_a_default_is_required():
    made = dataclasses.make_dataclass(
        "Made", [("image", str, dataclasses.field(metadata={"help": "volume"}))]
    )
    assert parsed("--image=a.tif", config_class=made)[0].image == "a.tif"
    with pytest.raises(flags.Error, match="image"):
        parsed(config_class=made)


def test_fields_that_cannot_be_flags_are_refused_at_once():
    silent = dataclasses.make_dataclass("Silent", [("x", int, 3)])
    with pytest.raises(ValueError, match=r"Silent\.x has no help"):
        parsed(config_class=silent)
    odd = dataclasses.make_dataclass("Odd", [("x", dict, option(None, "anything"))])
    with pytest.raises(TypeError, match=r"x: .*dict"):
        parsed(config_class=odd)
    with pytest.raises(TypeError, match="dataclass"):
        parsed(config_class=int)


PROGRAM = """
import dataclasses
from absl import app
from densejax import cli as config

@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = config.option(100, "number of updates", unit="steps")
    window: tuple[int, ...] = config.option((5, 64), "input window", unit="voxels")

def main(_):
    print(config.from_flags(Config))

if __name__ == "__main__":
    config.define_flags(Config)
    app.run(main)
"""


def test_help_and_typos_on_a_real_command_line(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)

    def call(argument):
        command = [sys.executable, str(tmp_path / "program.py"), argument]
        paths = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(command, capture_output=True, text=True, env=paths)

    shown = call("--help")
    for words in ("number of updates [steps]", "(default: '100')", "(default: '5,64')", "--window"):
        assert words in shown.stdout
    typo = call("--stesp=3")
    assert typo.returncode != 0 and "Did you mean: steps" in typo.stderr
    assert "steps=3" in call("--steps=3").stdout


def test_a_file_stands_where_no_flag_does(tmp_path):
    (tmp_path / "some.toml").write_text("steps = 7\n[inner]\nbrightness = 0.5\n")
    base = configuration.from_file(Config, tmp_path / "some.toml")
    found, values = parsed("--inner.kind=released", "--steps=9")
    found = configuration.from_flags(Config, flag_values=values, base=base)
    expected = dataclasses.replace(base, steps=9)
    assert found == dataclasses.replace(
        expected, inner=dataclasses.replace(base.inner, kind="released")
    )
    assert (found.inner.brightness, found.seeds) == (0.5, Config().seeds)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "expected JSON, or TOML in a .toml"),
        ("a.toml", "steps 3", "expected JSON, or TOML"),
        ("a.json", '{"stpes": 3}', r"\['stpes'\] are no settings of"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        configuration.from_file(Config, tmp_path / name)
    with pytest.raises(FileNotFoundError, match="--config="):
        configuration.from_file(Config, tmp_path / "absent.json")


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8, unique=True))
def test_seeds_one_by_one_are_read_in_order(seeds):
    assert configuration.parse_seeds(",".join(map(str, seeds))) == tuple(seeds)


@given(st.integers(0, 100), st.integers(1, 20))
def test_a_range_of_seeds_is_pythons(first, many):
    expected = tuple(range(first, first + many))
    assert configuration.parse_seeds(f"{first}:{first + many}") == expected


@pytest.mark.parametrize("text", ["", "a", "1:", ":3", "3:1", "-1", "1,1", "0:3,2", "1:2:3", "1.5"])
def test_seeds_that_make_no_sense_are_refused_by_name(text):
    with pytest.raises(ValueError, match="seeds"):
        configuration.parse_seeds(text)


def test_a_grid_is_read():
    found = configuration.parse_grid("learning_rate=1e-3, 3e-4 ;l2_scale=0,1")
    assert found == {"learning_rate": (1e-3, 3e-4), "l2_scale": (0.0, 1.0)}
    assert configuration.parse_grid("") == {}


@pytest.mark.parametrize(
    "text", ["x", "x=", "=1", "x=1;x=2", "x=1,1.0", "x=a", "x=inf", "x=1;;y=2"]
)
def test_a_grid_that_makes_no_sense_is_refused_by_name(text):
    with pytest.raises(ValueError, match="grid"):
        configuration.parse_grid(text)


def test_a_folder_goes_on_with_its_configuration_and_no_other(tmp_path):
    configuration.start_folder(Config(), tmp_path)
    configuration.start_folder(dataclasses.replace(Config(), seeds=(0, 1)), tmp_path)
    other = Config(steps=200, inner=Inner(brightness=0.5))
    with pytest.raises(ValueError, match=r"inner\.brightness was 0.12 and is 0.5; steps was 100"):
        configuration.start_folder(other, tmp_path)
    ignored = ("steps", "inner")
    configuration.check_same_config(other, tmp_path, ignore=ignored)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written == json.loads(json.dumps(dataclasses.asdict(Config())))
    starts = [json.loads(row) for row in (tmp_path / "provenance.jsonl").read_text().splitlines()]
    assert [start["varying"] for start in starts] == [{"seeds": [0]}, {"seeds": [0, 1]}]


def test_a_field_that_went_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"brightness": 0.12, "old": 1}))
    with pytest.raises(ValueError, match=r"configuration: old was 1 and is absent\."):
        configuration.check_same_config(Inner(), tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json"):
        configuration.check_same_config(Inner(), tmp_path)


def test_a_folder_from_before_a_field_goes_on_with_its_default_and_nothing_else(tmp_path):
    before = dataclasses.asdict(Config())
    del before["rate"], before["names"], before["inner"]["kind"]
    (tmp_path / "config.json").write_text(json.dumps(before))
    configuration.check_same_config(Config(), tmp_path)
    other = Config(rate=0.5, names=("cell",), inner=Inner(kind="new"))
    expected = (
        r'inner\.kind was null and is "new"; names was \[\] and is \["cell"\]; '
        r"rate was 0\.001 and is 0\.5\."
    )
    with pytest.raises(ValueError, match=expected):
        configuration.check_same_config(other, tmp_path)


def test_a_configuration_is_not_written_over(tmp_path):
    path = tmp_path / "new" / "config.json"
    configuration.save_config(Inner(), path)
    configuration.save_config(Inner(), path)
    with pytest.raises(FileExistsError, match="another configuration"):
        configuration.save_config(Inner(brightness=1.0), path)
    assert [entry.name for entry in path.parent.iterdir()] == ["config.json"]


def test_provenance_says_what_ran_where():
    found = json.loads(json.dumps(provenance()))
    assert found["versions"].keys() >= {"densejax", "jax", "jaxlib", "flax", "numpy"}
    assert len(found["devices"]) == 8 and found["command"] and found["host"]
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    head = subprocess.run(command, capture_output=True, text=True)
    if head.returncode == 0 and found["git"]:
        assert found["git"]["commit"] == head.stdout.strip()
