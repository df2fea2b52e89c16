"""Options: values of a run of few steps, what stands without a flag, the options of sweeps."""

import dataclasses
from pathlib import Path

import pytest

from densejax.cli import SweepOptions, few_steps, help_text, main, option, seeds_option


@dataclasses.dataclass(frozen=True)
class Config(SweepOptions):
    names: tuple[str, ...] = option((), "what to look at", positional=True)
    steps: int = option(100, "updates", fast=2)
    limit: int = option(
        0, "pictures; 0 is all", fast=lambda config: config.limit or 10 * config.steps
    )
    rate: float = option(0.1, "learning rate")
    seeds: tuple[int, ...] = seeds_option(3, 4, 5)


def call(run, *words, **options):
    """The exit code of a command line."""
    with pytest.raises(SystemExit) as ended:
        main(Config, run, description="About.", argv=["program", *words], **options)
    return ended.value.code


def test_few_steps_are_what_the_fields_say_of_the_whole_configuration():
    few = few_steps(Config())
    assert (few.steps, few.limit, few.rate, few.seeds) == (2, 1000, 0.1, (3, 4))
    assert few_steps(Config(limit=7)).limit == 7


def test_what_stands_without_a_flag_goes_into_its_field(tmp_path):
    seen = []
    words = ["a", f"--workdir={tmp_path}", "b", "--slots=3", "--seeds=0:2"]
    assert call(lambda config, workdir: seen.append((config, workdir)), *words, trains=False) == 0
    ((config, workdir),) = seen
    assert config == Config(names=("a", "b"), slots=3, seeds=(0, 1)) and workdir == tmp_path
    assert call(lambda *_: seen.append(1), "--names=a", f"--workdir={tmp_path}", trains=False) == 2
    assert len(seen) == 1


def test_a_program_without_a_folder_is_told_of_few_steps(capsys):
    seen = []

    def run(config, *, fast=False):
        seen.append((config.steps, fast))

    assert call(run, workdir="", trains=False) == 0
    assert call(run, "--fast_dev_run", workdir="", trains=False) == 0
    assert seen == [(100, False), (2, True)]
    assert call(run, "--workdir=x", workdir="", trains=False) == 2
    assert "nknown command line flag" in capsys.readouterr().err


def test_a_folder_may_have_a_default_and_flags_alone_may_be_checked(capsys):
    seen = []
    assert call(lambda _, folder: seen.append(folder), workdir="here", trains=False) == 0
    assert seen == [Path("here")]
    assert call(lambda *_: seen.append(1), "--only_check_args", trains=False) == 0
    assert call(lambda *_: seen.append(1), "--steps=x", "--only_check_args", trains=False) == 2
    assert len(seen) == 1 and "steps" in capsys.readouterr().err


def test_options_of_sweeps_come_last_in_the_help_and_reach_the_sweep(monkeypatch, capsys):
    assert call(None, "--help") == 0
    said = capsys.readouterr().out
    order = ("About.", "Essential:", "Of this experiment:", "--steps", "Sweep options:", "--slots")
    assert [said.index(words) for words in order] == sorted(said.index(words) for words in order)
    assert "--names" not in said and callable(help_text)
    monkeypatch.setattr("densejax.training.sweep.Sweep", lambda *given, **options: options)
    sweep = Config(slots=2, strategy="vmap", base_seed=7).sweep(None, None, [], schedule=1)
    assert sweep == {"slots": 2, "strategy": "vmap", "base_seed": 7, "schedule": 1}
