"""Command lines of README, the site and the experiments, with the configuration each parses to.

``commands.json`` holds them as they were when it was written: what is documented once goes on to
mean the same. Nothing is run.
"""

import dataclasses
import importlib
import json
import shlex
from pathlib import Path

import pytest
from absl import flags

from densejax.cli import define_flags, few_steps, from_flags

KEPT = json.loads((Path(__file__).parent / "commands.json").read_text())
EVERYWHERE = {"workdir": flags.DEFINE_string, "config": flags.DEFINE_string}
EVERYWHERE |= {"fast_dev_run": flags.DEFINE_bool, "help": flags.DEFINE_bool}


def parsed(name, words):
    """The configuration of a command line, as JSON holds it."""
    config_class = importlib.import_module(f"experiments.{name}").Config
    values = flags.FlagValues()
    define_flags(config_class, flag_values=values)
    for flag, define in EVERYWHERE.items():
        define(flag, None, "as every experiment has it", flag_values=values)
    rest = values([name, *words])[1:]
    config = from_flags(config_class, flag_values=values)
    for field in dataclasses.fields(config):
        if rest and field.metadata.get("positional"):
            config, rest = dataclasses.replace(config, **{field.name: tuple(rest)}), []
    assert not rest
    return json.loads(json.dumps(dataclasses.asdict(config)))


@pytest.mark.parametrize("name", KEPT["defaults"])
def test_defaults_are_the_same(name):
    assert parsed(name, []) == KEPT["defaults"][name]


@pytest.mark.parametrize("command", KEPT["commands"], ids=lambda command: command["command"])
def test_a_command_means_the_same(command):
    name, *words = shlex.split(command["command"])
    assert parsed(name, words) == KEPT["defaults"][name] | command["differs"]


@pytest.mark.parametrize("name", KEPT["few_steps"])
def test_a_run_of_few_steps_is_the_same(name):
    config_class = importlib.import_module(f"experiments.{name}").Config
    for kept in KEPT["few_steps"][name]:
        given = {n: tuple(v) if isinstance(v, list) else v for n, v in kept["given"].items()}
        found = json.loads(json.dumps(dataclasses.asdict(few_steps(config_class(**given)))))
        assert found == KEPT["defaults"][name] | kept["differs"]
