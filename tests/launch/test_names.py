"""Names of folders and resources that sbatch, submitit or the shell would read as others."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch import resources, slurm, submit, sweeps

pytest.importorskip("submitit")

PLAIN = ["a b", "it's", 'say "no"', "a$HOME", "`id`", "$(id)", "a;b", "a&b", "a#b", "ä*?[1]", "-n"]
REFUSED = [
    "50%j",
    "100%",
    "%%",
    "%A_%a",
    "a\nb",
    "a\n#SBATCH --hold",
    "a\tb",
    "a\\b",
    "my-PackJobs",
]


def sweep_of(folder, python="python"):
    return sweeps.Sweep(folder, sweeps.Experiment("counting", (), "/code", python, True))


def scripts(folder, asked=None, **options):
    asked = asked or resources.Resources()
    found = sweep_of(folder, **options)
    return list(submit.scripts(found, [(0,), (1,), (2,)], asked, collector=True))


def read_by_sbatch(script):
    """Options of a script as sbatch reads them: quotes group words, a backslash escapes."""
    found = {}
    for line in script.splitlines():
        if not line.startswith("#SBATCH "):
            continue
        text, quote, escaped = "", "", False
        for letter in line.removeprefix("#SBATCH ").lstrip():
            if escaped:
                text, escaped = text + letter, False
            elif letter == "\\":
                escaped = True
            elif quote:
                text, quote = (text, "") if letter == quote else (text + letter, quote)
            elif letter in "'\"":
                quote = letter
            elif letter.isspace() or letter == "#":
                break
            else:
                text += letter
        name, _, value = text.removeprefix("--").partition("=")
        found[name] = value
    return found


def expanded(pattern):
    """A log's name as sbatch makes it for element 3 of array 7, after its manual."""
    if "\\" in pattern:
        return pattern
    values = {"A": "7", "a": "3", "j": "10", "t": "0", "%": "%"}
    return re.sub(r"%(\d*)([a-zA-Z%])", lambda m: values.get(m[2], "?"), pattern)


NAMES = st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)


@settings(max_examples=60, deadline=None)
@given(NAMES | st.sampled_from(PLAIN + REFUSED))
def test_the_log_lies_in_the_folder_that_was_named_or_the_name_is_refused(tmp_path_factory, name):
    folder = tmp_path_factory.getbasetemp() / name
    try:
        submit.check_name("--workdir", str(folder))
    except ValueError as error:
        assert "--workdir=" in str(error) and "Name another one" in str(error)
        return
    array, collector = scripts(folder)
    where = f"{folder}/launch/slurm"
    assert expanded(read_by_sbatch(array)["output"]) == f"{where}/7_3_0_log.out"
    assert expanded(read_by_sbatch(collector)["output"]) == f"{where}/10_0_log.out"
    assert read_by_sbatch(array)["job-name"] == name
    command = next(line for line in array.splitlines() if line.startswith("srun "))
    words = shlex.split(command)
    assert expanded(words[words.index("--output") + 1]) == f"{where}/7_3_0_log.out"
    assert words[-1] == where


@pytest.mark.parametrize("name", PLAIN)
def test_names_that_are_only_quoted_pass(tmp_path, name):
    submit.check_name("--workdir", str(tmp_path / name))


@pytest.mark.parametrize("name", REFUSED)
def test_names_that_would_be_read_as_others_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"^--workdir=.* has .*Name another one"):
        submit.check_name("--workdir", str(tmp_path / name))


@pytest.mark.parametrize("dry", [True, False])
def test_nothing_is_made_or_submitted_of_such_a_name(tiny, tmp_path, monkeypatch, dry):
    del tiny
    monkeypatch.setattr("launch.scheduler.require", lambda: None)
    words = ["--module=counting", "--seeds=0:8", "--block=4", "--partition=gpu"]
    words += ["--time=1:00:00", f"--workdir={tmp_path / 'runs' / '50%j'}"]
    with pytest.raises(ValueError, match=r"50%j.* has '%': sbatch and submitit replace"):
        slurm.run([*words, *(["--dry_run"] if dry else [])])
    assert not (tmp_path / "runs").exists()
    # Neither of a sweep that was begun by another command.
    with pytest.raises(ValueError, match="50%j"):
        submit.submit(sweep_of(tmp_path / "50%j"), [], resources.Resources())


def test_the_shell_passes_every_name_on_as_it_is(tmp_path):
    programs, said = tmp_path / "programs", tmp_path / "said"
    programs.mkdir()
    (programs / "srun").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {said}\n')
    (programs / "srun").chmod(0o755)
    folder = tmp_path / "a $HOME `id` 'b' \"c\" ;#&"
    python = f"{tmp_path}/my env/$bin/python"
    script = scripts(folder, python=python)[0].replace("cd /code", f"cd {tmp_path}")
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": "/elsewhere"}
    subprocess.run(["bash"], input=script, text=True, env=environment, check=True)
    words = said.read_text().splitlines()
    assert f"{folder}/launch/slurm/%A_%a_%t_log.out" in words
    assert words[words.index("-u") - 1] == python
    assert words[-1] == f"{folder}/launch/slurm"


def test_modules_are_names_not_lines_of_the_shell():
    asked = resources.Resources(modules=("cuda/12 cudnn", "a;rm -r b", "$HOME/c"))
    assert asked.setup_lines() == [
        "module load cuda/12 cudnn",
        "module load 'a;rm' -r b",
        "module load '$HOME/c'",
    ]


@pytest.mark.parametrize("value", ["gpu\n#SBATCH --exclusive", "a\\b", "a\tb"])
def test_resources_that_would_break_their_line_are_refused(value):
    with pytest.raises(ValueError, match=r"partition is .*: expected a value without"):
        resources.Resources(partition=value)
    asked = resources.Resources(partition="it's $x 100%", sbatch=('--comment=a "b" #c',))
    found = read_by_sbatch(scripts(Path("/shared/run"), asked)[0])
    assert found["partition"] == "it's $x 100%" and found["comment"] == 'a "b" #c'
