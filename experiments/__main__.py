"""The command ``densejax``: every experiment, and the launcher, by name.

    densejax segment --minutes=7.5 --workdir=runs/first

is ``python -m experiments.segment --minutes=7.5 --workdir=runs/first``.
"""

import ast
import difflib
import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

LAUNCHER = ("slurm", "local", "status", "retry")


def commands() -> dict[str, str]:
    """Module of each command by its name."""
    here = Path(__file__).parent
    names = sorted(path.stem for path in here.glob("*.py") if not path.stem.startswith("_"))
    return {name: f"experiments.{name}" for name in names} | {n: f"launch.{n}" for n in LAUNCHER}


def overview() -> str:
    """All commands with the first sentence of their docstrings; nothing is imported."""
    lines = []
    for name, module in commands().items():
        spec = importlib.util.find_spec(module)
        assert spec is not None and spec.origin is not None
        text = ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or ""
        lines.append(f"  {name:<20} {text.splitlines()[0]}")
    return "\n".join(
        ["usage: densejax COMMAND [--flags]", "", *lines, "", "densejax COMMAND --help: its flags"]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command and leave the process with its exit code; 2 where there is no such command."""
    words = list(sys.argv if argv is None else argv)
    if os.name == "nt":
        print("error: densejax needs Linux or macOS; on Windows use WSL2", file=sys.stderr)
        sys.exit(2)
    if len(words) < 2 or words[1] in ("--help", "-h", "help"):
        print(overview())
        sys.exit(0 if len(words) > 1 else 2)
    known = commands()
    if words[1] not in known:
        near = difflib.get_close_matches(words[1], known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        print(f"error: no command {words[1]!r}{hint} (densejax --help lists them)", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"densejax {words[1]}", *words[2:]]
    runpy.run_module(known[words[1]], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
