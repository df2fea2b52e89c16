"""An experiment by its name: found, asked about its flags, never imported."""

import subprocess
import sys

import pytest

from launch import experiment

SEGMENT = "experiments.segment"


def test_found_and_asked(tiny):
    found = experiment.find("counting", ["--steps=3"])
    assert found.extends
    experiment.check(found, "0:2")
    assert found.command("0:2", tiny)[-2:] == ["--seeds=0:2", f"--workdir={tiny}"]


@pytest.mark.parametrize(
    ("module", "extends", "combines"),
    [
        (SEGMENT, True, False),
        ("experiments.svhn_minima", True, False),
        ("experiments.active", False, True),
    ],
)
def test_what_becomes_of_more_seeds(module, extends, combines):
    found = experiment.find(module, [])
    assert (found.extends, found.combines) == (extends, combines)


@pytest.mark.parametrize("module", ["experiments.segmnet", "nothing.at.all"])
def test_no_such_module(module):
    with pytest.raises(ValueError, match=f"no module '{module}'"):
        experiment.find(module, [])


@pytest.mark.parametrize("flag", ["--seeds=0:3", "--workdir=a", "--fast_dev_run", "-seeds"])
def test_flags_that_belong_before(flag):
    with pytest.raises(ValueError, match="before the --"):
        experiment.find(SEGMENT, [flag])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--stepz=3"], "Unknown command line flag 'stepz'"),
        (["--steps=many"], "steps=many"),
    ],
)
def test_flags_that_it_does_not_take(tiny, flags, words):
    del tiny
    with pytest.raises(ValueError, match=words):
        experiment.check(experiment.find("counting", flags), "0")


def test_an_experiment_without_seeds(tiny, monkeypatch):
    (tiny / "seedless.py").write_text(
        "from absl import app, flags\nflags.DEFINE_string('workdir', '', '')\n"
        "app.run(lambda _: None)\n"
    )
    monkeypatch.syspath_prepend(tiny)
    monkeypatch.setenv("PYTHONPATH", str(tiny))
    found = experiment.find("seedless", [])
    with pytest.raises(ValueError, match="no flag --seeds: there is nothing to divide"):
        experiment.check(found, "0")


def test_no_command_imports_jax_or_more_of_the_library_than_it_may():
    # A login node may have neither the memory nor the patience.
    names = ["slurm", "local", "status", "retry", "collect", "task", "submit"]
    code = f"import sys, {', '.join(f'launch.{name}' for name in names)}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    tops = {name.partition(".")[0] for name in loaded.split()}
    assert "launch" in tops and not tops & {"jax", "numpy", "absl", "experiments"}
    library = {name for name in loaded.split() if name.startswith("densejax.")}
    assert library == {"densejax.io", "densejax.lease"}
