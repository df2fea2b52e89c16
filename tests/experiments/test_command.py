"""The command ``densejax``: what it knows, where it works, how it ends."""

import subprocess
import sys
from pathlib import Path

import pytest

from experiments.__main__ import LAUNCHER, commands, overview

COMMAND = Path(sys.executable).parent / "densejax"


def test_every_experiment_is_a_command_with_a_sentence():
    here = Path(__file__).resolve().parents[2] / "experiments"
    names = {path.stem for path in here.glob("*.py") if not path.stem.startswith("_")}
    assert set(commands()) == names | set(LAUNCHER)
    for line in overview().splitlines()[2:-2]:
        name, _, sentence = line.strip().partition(" ")
        assert len(sentence.strip()) > 20, name


@pytest.mark.skipif(not COMMAND.exists(), reason="densejax is not installed in this environment")
def test_it_works_beside_another_package_of_that_name(tmp_path):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").write_text("raise ImportError('not this one')")

    def call(*words):
        done = subprocess.run([COMMAND, *words], cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    code, out, _ = call("networks")
    assert code == 0 and "2D-3D + 3x3x3 (hybrid)" in out
    code, out, _ = call("segment", "--help")
    assert code == 0 and out.index("--minutes") < out.index("--reduction")
    code, _, err = call("segment", "--minuts=3", "--workdir=x")
    assert code == 2 and "Did you mean: minutes" in err
    code, _, err = call("segmnt")
    assert code == 2 and "did you mean segment?" in err
    assert call("--help")[0] == 0 and call()[0] == 2
