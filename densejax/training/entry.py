"""The main program of every experiment: flags, devices, compilation cache, exit codes."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging

from densejax.instances import use_all_cores
from densejax.io import full_disk
from densejax.training import config as configuration

# Flags defined here belong to the experiment that asks for them, so that its --help shows them.
flags.disclaim_key_flags()

NOT_KEPT = ("seeds", "running", "tensorboard", "xla_cache")  # of a run of few steps
CLEAR_ERRORS = (ValueError, FileNotFoundError, FileExistsError, MemoryError, OSError)


def main(
    config_class: type,
    run: Callable[[Any, Path], Any],
    *,
    fast: Callable[[Any], Any],
    description: str,
) -> None:
    """Run an experiment from the command line and leave the process with its exit code.

    Exit codes: 0, everything was done; 1, a member of the population failed; 2, the set-up was
    refused before any training, or the run could not go on (disk full): the last line says why.

    Args:
      config_class: dataclass of the experiment's settings, each a flag.
      run: ``(config, workdir) -> result``; a result with ``failed`` above 0 means exit code 1.
      fast: a configuration that proves the same set-up in under a minute (``--fast_dev_run``).
      description: head of ``--help``, usually the experiment's docstring.
    """
    flags.DEFINE_string("workdir", None, "folder of the run; the same command again continues it")
    flags.DEFINE_string(
        "config", "", "config.json of a run, or a TOML file: what it says, where no flag does"
    )
    flags.DEFINE_bool(
        "fast_dev_run",
        False,
        "a few steps, to prove the set-up in a minute; with --workdir its tables and pictures are "
        "left in WORKDIR/fast_dev_run",
    )
    configuration.define_flags(config_class)
    sys.modules["__main__"].__doc__ = description
    if any(word in ("--help", "-help", "-h", "-?") for word in sys.argv[1:]):
        try:
            print(f"{description}\n{configuration.help_text(config_class)}", flush=True)
        except BrokenPipeError:  # a pager or head has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)

    def start(arguments: Sequence[str]) -> None:
        if len(arguments) > 1:
            message = f"unexpected argument {arguments[1]!r}; flags begin with --"
            raise app.UsageError(message, exitcode=2)
        # At INFO, orbax reports every save in a dozen lines and jax each backend it did not find.
        logging.set_verbosity(logging.WARNING)
        use_all_cores()
        if not flags.FLAGS.workdir and not flags.FLAGS.fast_dev_run:
            message = "--workdir is needed: the folder in which the run is kept"
            raise app.UsageError(message, exitcode=2)
        try:
            base: Any = None
            if flags.FLAGS.config:
                base = configuration.from_file(config_class, flags.FLAGS.config)
            config: Any = configuration.from_flags(config_class, base=base)
            sys.exit(1 if _run(config, run, fast) else 0)
        except CLEAR_ERRORS as error:
            if os.environ.get("DENSEJAX_TRACEBACK"):
                raise
            advice = full_disk(error, flags.FLAGS.workdir) if flags.FLAGS.workdir else ""
            print(f"error: {error}{advice}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("\ninterrupted; the same command again continues", file=sys.stderr)
            sys.exit(130)

    app.run(start, flags_parser=_parse)


def _parse(arguments: Sequence[str]) -> list[str]:
    """As absl's own parser, but with the exit code of a refusal."""
    try:
        return flags.FLAGS(arguments)
    except flags.Error as error:
        print(f"--help lists all flags\nerror: {error}", file=sys.stderr)
        sys.exit(2)


def _run(config: Any, run: Callable[[Any, Path], Any], fast: Callable[[Any], Any]) -> int:
    if flags.FLAGS.fast_dev_run:
        with tempfile.TemporaryDirectory() as folder:
            _keep_programs(Path(folder))
            failed = run(fast(config), Path(folder)).failed
            if flags.FLAGS.workdir:
                kept = Path(flags.FLAGS.workdir) / "fast_dev_run"
                left_out = shutil.ignore_patterns(*NOT_KEPT)
                shutil.copytree(folder, kept, ignore=left_out, dirs_exist_ok=True)
                print(f"tables and pictures of these few steps: {kept}")
            return failed
    workdir = Path(flags.FLAGS.workdir)
    _keep_programs(workdir)
    return run(config, workdir).failed


def _keep_programs(workdir: Path) -> None:
    """Load what this run, or an earlier start of it, has compiled instead of compiling it again."""
    jax.config.update("jax_compilation_cache_dir", str((workdir / "xla_cache").absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
