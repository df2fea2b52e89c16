"""An experiment by the name of its module: looked up and checked, never imported here."""

import ast
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_OURS = ("seeds", "workdir", "fast_dev_run")


@dataclass(frozen=True)
class Experiment:
    """How to start an experiment.

    Attributes:
      module: its dotted name, as after ``python -m``.
      flags: for every block of seeds the same.
      folder: where it is started; relative paths in the flags count from here.
      python: interpreter.
      extends: more seeds extend a run of it, so that blocks of seeds are parts of one sweep; else
        each block is a run of its own.
      combines: it summarises runs of other seeds together, by a flag ``--combine=RUN,RUN``.
    """

    module: str
    flags: tuple[str, ...]
    folder: str
    python: str
    extends: bool
    combines: bool = False

    def command(self, seeds: str, workdir: Path) -> list[str]:
        """The command that runs it with these seeds in this folder."""
        return [
            *(self.python, "-m", self.module, *self.flags),
            *(f"--seeds={seeds}", f"--workdir={workdir}"),
        ]


def find(module: str, flags: Sequence[str], *, python: str = sys.executable) -> Experiment:
    """An experiment in the present folder or among the installed packages.

    An experiment says that more seeds extend its runs by naming ``seeds`` in its ``VARYING``, the
    settings with which a run may go on, and that it combines runs by an option ``combine``.

    Raises:
      ValueError: there is no such module, or a flag is one that is given here, not there.
    """
    for flag in flags:
        name = flag.lstrip("-").partition("=")[0]
        if flag.startswith("-") and name.removeprefix("no") in _OURS:
            raise ValueError(f"{flag}: --seeds and --workdir are named before the --, not after it")
    tree = _source(module)
    extends, combines = _extends(tree), _combines(tree)
    return Experiment(module, tuple(flags), os.getcwd(), python, extends, combines)


def _source(module: str) -> ast.Module:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise ValueError(f"no module {module!r} in {os.getcwd()} or among the installed packages")
    return ast.parse(Path(spec.origin).read_text())


def _extends(tree: ast.Module) -> bool:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "VARYING":
            constants = (n for n in ast.walk(node.value) if isinstance(n, ast.Constant))
            return any(constant.value == "seeds" for constant in constants)
    return False


def _combines(tree: ast.Module) -> bool:
    """Whether a module's dataclass ``Config`` has a field ``combine``."""
    configs = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Config"]
    fields = [n for config in configs for n in config.body if isinstance(n, ast.AnnAssign)]
    return any(ast.unparse(field.target) == "combine" for field in fields)


def check(experiment: Experiment, seeds: str) -> None:
    """Let the experiment itself say whether it takes these flags; nothing is trained.

    Raises:
      ValueError: it does not, in its own words, or it has no seeds.
    """
    command = experiment.command(seeds, Path("unused"))
    # absl's own flag: every check of single flags, then the end.
    done = subprocess.run(
        [*command, "--only_check_args"],
        cwd=experiment.folder,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,  # importing from a cold network drive takes its time
    )
    if done.returncode == 0:
        return
    said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    if any("nknown command line flag 'seeds'" in line for line in said):
        raise ValueError(
            f"{experiment.module} has no flag --seeds: there is nothing to divide into blocks"
        )
    words = "\n  ".join(said[-6:]) or f"exit code {done.returncode}"
    raise ValueError(f"{experiment.module} does not take these flags:\n  {words}")
