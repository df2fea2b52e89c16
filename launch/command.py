"""What the commands of this folder have in common: the experiment, errors, exit codes."""

import argparse
import hashlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from densejax.io import parse_seeds
from launch import experiment, sweeps

_CLEAR_ERRORS = (ValueError, OSError, RuntimeError, ImportError, subprocess.SubprocessError)


def main(run: Callable[[list[str]], int]) -> None:
    """Run a command and leave the process: 2 for a refusal, whose reason is the last line."""
    try:
        sys.exit(run(sys.argv[1:]))
    except _CLEAR_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command again continues", file=sys.stderr)
        sys.exit(130)


def parser_of(doc: str | None, name: str) -> argparse.ArgumentParser:
    """A parser whose help is a module's docstring."""
    return argparse.ArgumentParser(
        prog=f"python -m launch.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def divided(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before ``--``, and what after it belongs to the experiment."""
    arguments = list(arguments)
    place = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:place], arguments[place + 1 :]


def add_sweep_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that say what runs."""
    parser.add_argument("--module", required=True, help="experiment, such as experiments.segment")
    parser.add_argument("--seeds", required=True, type=_seeds, help="seeds: 0:500, or 0,3,5")
    parser.add_argument("--block", type=int, default=25, help="seeds in a block (default: 25)")
    parser.add_argument(
        "--workdir", type=Path, help="folder of the sweep (default: runs/NAME-HASH of the flags)"
    )
    parser.add_argument("--python", default=sys.executable, help="interpreter of the experiment")


def workdir_of(arguments: argparse.Namespace, found: experiment.Experiment) -> Path:
    """The folder that is named, or one whose name tells experiments and flags apart."""
    if arguments.workdir is not None:
        return arguments.workdir.absolute()
    text = "\n".join([found.module, *sorted(found.flags)])
    code = hashlib.sha256(text.encode()).hexdigest()[:8]
    return (Path("runs") / f"{found.module.rpartition('.')[2]}-{code}").absolute()


def begin(
    arguments: argparse.Namespace, found: experiment.Experiment
) -> tuple[sweeps.Sweep, list[sweeps.Block]]:
    """Check the experiment's flags, then begin its sweep or go on with it."""
    experiment.check(found, str(arguments.seeds[0]))
    sweep = sweeps.begin(workdir_of(arguments, found), found)
    return sweep, sweep.add(arguments.seeds, arguments.block)


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return parse_seeds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
