"""The main program on a real command line: what it refuses, what it says, how it ends."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

PROGRAM = '''"""What a tiny experiment is about."""
import dataclasses
from densejax.cli import main, option, start_folder

@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = option(100, "number of updates", unit="steps")
    seeds: tuple[int, ...] = option((0,), "instances")
    failed: int = option(0, "members that fail")

@dataclasses.dataclass
class Result:
    failed: int

def run(config, workdir):
    import jax
    if config.steps < 1:
        raise ValueError(f"steps must be at least 1, found {config.steps}")
    if config.steps == 13:
        raise KeyError("a fault of the program itself")
    if config.steps == 17:
        raise KeyboardInterrupt
    start_folder(config, workdir)
    if config.steps == 19:
        with open("/dev/full", "w") as file:  # a write to it fails as on a full disk
            file.write("lost")
    (workdir / "ran").write_text(f"{config.steps} {len(jax.devices())}")
    print("ran with", config.steps, workdir)
    return Result(config.failed)

def fast(config):
    return dataclasses.replace(config, steps=2)

if __name__ == "__main__":
    main(Config, run, fast=fast, description=__doc__)
'''

# Each line runs in a process of its own; those of one tuple follow each other in one folder.
LINES = {
    "help": ("--help",),
    "unknown": ("--colour=red --workdir={}",),
    "typo": ("--stpes=3 --workdir={}",),
    "bad value": ("--steps=few --workdir={}",),
    "argument": ("--workdir={} 300",),
    "nowhere": ("--steps=3",),
    "fast": ("--fast_dev_run",),
    "kept": ("--fast_dev_run --workdir={}",),
    "again": ("--workdir={} --steps=5", "--config={0}/config.json --workdir={0}/b --seeds=2,3"),
    "file": ("--config={0}/absent.json --workdir={0}",),
    "continued": ("--workdir={}", "--workdir={} --seeds=0,1", "--workdir={} --steps=101"),
    "failed": ("--workdir={} --failed=2",),
    "refused": ("--workdir={} --steps=0",),
    "fault": ("--workdir={} --steps=13",),
    "full": ("--workdir={} --steps=19",),
    "interrupted": ("--workdir={} --steps=17",),
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """All command lines at once: (exit code, stdout, stderr) of each, and its folder."""
    place = tmp_path_factory.mktemp("entry")
    (place / "tiny.py").write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment.pop("DENSEJAX_TRACEBACK", None)
    script = 'for line in "$@"; do "$PYTHON" tiny.py $line; echo "CODE $?"; echo "CODE" >&2; done'
    found = {}
    names = list(LINES)
    for first in range(0, len(names), 3):  # a few at a time, for small machines
        processes = {}
        for name in names[first : first + 3]:
            folder = place / name.replace(" ", "_")
            lines = [line.format(folder) for line in LINES[name]]
            processes[name] = (
                folder,
                subprocess.Popen(
                    ["bash", "-c", script, "bash", *lines],
                    cwd=place,
                    env=environment | {"PYTHON": sys.executable},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                ),
            )
        for name, (folder, process) in processes.items():
            out, err = process.communicate()
            found[name] = folder, parts_of(out, err)
    return found


def parts_of(out, err):
    parts, codes, shown = [], [], []
    for line in out.splitlines():
        if line.startswith("CODE "):
            codes.append(int(line.split()[1]))
            parts.append("\n".join(shown))
            shown = []
        else:
            shown.append(line)
    errors = err.split("CODE\n")[: len(codes)]
    return list(zip(codes, parts, errors, strict=True))


def test_help_describes_the_experiment_and_its_flags(ended):
    _, [(code, out, _)] = ended["help"]
    assert code == 0
    for words in ("What a tiny experiment is about", "number of updates [steps]", "--workdir"):
        assert words in out
    assert out.index("Essential:") < out.index("--fast_dev_run") < out.index("Of this experiment:")


def test_a_run_of_few_steps_leaves_its_results_where_it_is_told(ended):
    folder, [(code, out, _)] = ended["kept"]
    assert code == 0 and "ran with 2 " in out
    assert (folder / "fast_dev_run" / "ran").read_text().startswith("2 ")
    assert not (folder / "config.json").exists()
    assert not (folder / "fast_dev_run" / "xla_cache").exists()


def test_a_run_is_repeated_from_its_configuration_and_flags_win(ended):
    folder, [_, (code, _, err)] = ended["again"]
    assert code == 0, err
    kept = json.loads((folder / "b" / "config.json").read_text())
    assert (kept["steps"], kept["seeds"]) == (5, [2, 3])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("unknown", "colour"),
        ("typo", "Did you mean: steps"),
        ("bad value", "steps"),
        ("argument", "unexpected argument '300'"),
        ("nowhere", "--workdir is needed"),
        ("file", "absent.json: no such file"),
        ("refused", "error: steps must be at least 1, found 0"),
    ],
)
def test_what_is_refused_is_named_ends_with_two_and_leaves_nothing(ended, name, words):
    folder, [(code, out, err)] = ended[name]
    assert words in out + err
    assert code == 2
    assert "Traceback" not in err
    assert not (folder / "ran").exists()


def test_a_full_disk_is_named_with_what_to_do(ended):
    folder, [(code, _, err)] = ended["full"]
    assert code == 2
    said = err.splitlines()[-1]
    assert said.startswith("error: [Errno 28] No space left on device (")
    assert f"MB free on the disk of {folder})" in said
    assert "the same command goes on" in said


def test_the_message_of_a_refusal_is_the_last_line(ended):
    _, [(_, _, err)] = ended["refused"]
    assert err.splitlines()[-1] == "error: steps must be at least 1, found 0"


def test_the_same_command_continues_and_another_configuration_is_refused(ended):
    folder, [first, more_seeds, other] = ended["continued"]
    assert (first[0], more_seeds[0], other[0]) == (0, 0, 2)
    assert "steps was 100 and is 101" in other[2] and str(folder) in other[2]
    assert "seeds" not in other[2]
    cores = len(os.sched_getaffinity(0))
    assert (folder / "ran").read_text() == f"100 {cores}"
    assert json.loads((folder / "config.json").read_text())["steps"] == 100
    assert len((folder / "provenance.jsonl").read_text().splitlines()) == 2


def test_failed_members_end_with_one(ended):
    folder, [(code, out, err)] = ended["failed"]
    assert code == 1 and "ran with 100" in out and "Traceback" not in err
    assert (folder / "ran").exists()


def test_the_proof_of_a_set_up_leaves_nothing(ended):
    _, [(code, out, err)] = ended["fast"]
    assert code == 0 and "ran with 2" in out, err
    assert not Path(out.split()[-1]).exists()


def test_a_fault_of_the_program_shows_where_it_is(ended):
    _, [(code, _, err)] = ended["fault"]
    assert code not in (0, 2) and "Traceback" in err and "a fault of the program itself" in err


def test_an_interruption_says_how_to_go_on(ended):
    _, [(code, _, err)] = ended["interrupted"]
    assert code == 130 and "the same command again continues" in err and "Traceback" not in err
