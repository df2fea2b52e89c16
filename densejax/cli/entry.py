"""The main program of every experiment: flags, devices, compilation cache, exit codes."""

import dataclasses
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags, logging

from densejax.cli.flags import define_flags, from_flags, help_text
from densejax.cli.options import few_steps
from densejax.cli.records import from_file
from densejax.io import full_disk

HELP = ("--help", "-help", "-h", "-?")
NOT_KEPT = ("seeds", "running", "tensorboard", "xla_cache")  # of a run of few steps
CLEAR_ERRORS = (ValueError, MemoryError, OSError, ModuleNotFoundError)


def main(
    config_class: type,
    run: Callable[..., Any],
    *,
    description: str,
    fast: Callable[[Any], Any] = few_steps,
    workdir: str | None = None,
    trains: bool = True,
    argv: Sequence[str] | None = None,
) -> None:
    """Run an experiment from the command line and leave the process with its exit code.

    Exit codes: 0, everything was done; 1, a member of the population failed; 2, the set-up was
    refused before any training, or the run could not go on (disk full): the last line says why.

    Args:
      config_class: dataclass of the experiment's settings, each a flag.
      run: ``(config, workdir) -> result``; a result with ``failed`` above 0 means exit code 1.
      description: head of ``--help``, usually the experiment's docstring.
      fast: a configuration that proves the same set-up in under a minute (``--fast_dev_run``).
      workdir: where the flag is not given; None: it must be. With ``""`` there is no such flag, and
        ``run`` is called as ``(config, fast=...)``: it writes what its own flags say, and nothing
        where ``fast`` is true.
      trains: use all cores as devices, and keep compiled programs in the workdir.
      argv: the words of the command line; by default the process's own.
    """
    words = list(sys.argv if argv is None else argv)
    values = _flags(config_class, workdir)
    if any(word in HELP for word in words[1:]):
        try:
            print(f"{description}\n{help_text(config_class, flag_values=values)}", flush=True)
        except BrokenPipeError:  # a pager or head has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    rest = _parse(values, words, config_class)
    if values.only_check_args:
        sys.exit(0)
    # At INFO, orbax reports every save in a dozen lines and jax each backend it did not find.
    flags.FLAGS.mark_as_parsed()
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    if trains:
        from densejax.population import use_all_cores

        use_all_cores()
    folder = values.workdir if "workdir" in values else ""
    try:
        base: Any = from_file(config_class, values.config) if values.config else None
        config: Any = from_flags(config_class, flag_values=values, base=base)
        if rest:
            config = dataclasses.replace(config, **{_positional(config_class): tuple(rest)})
        few = fast(config) if values.fast_dev_run else None
        if workdir == "":
            result = run(config if few is None else few, fast=few is not None)
        elif few is None:
            result = _run(run, config, Path(folder), trains)
        else:
            result = _run_few(run, few, values, trains)
        sys.exit(1 if getattr(result, "failed", 0) else 0)
    except CLEAR_ERRORS as error:
        if os.environ.get("DENSEJAX_TRACEBACK"):
            raise
        print(f"error: {error}{full_disk(error, folder) if folder else ''}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command again continues", file=sys.stderr)
        sys.exit(130)


def _flags(config_class: type, workdir: str | None) -> flags.FlagValues:
    values = flags.FlagValues()
    left = "with --workdir its tables and pictures are left in WORKDIR/fast_dev_run"
    if workdir == "":
        left = "nothing is written"
    else:
        text = "folder of the run; the same command again continues it"
        flags.DEFINE_string("workdir", workdir, text, flag_values=values)
    text = "config.json of a run, or a TOML file: it gives what no flag does"
    flags.DEFINE_string("config", "", text, flag_values=values)
    text = f"make a few steps only, to prove the set-up in a minute; {left}"
    flags.DEFINE_bool("fast_dev_run", False, text, flag_values=values)
    text = "check the flags, and stop"
    flags.DEFINE_bool("only_check_args", False, text, flag_values=values)
    define_flags(config_class, flag_values=values)
    return values


def _parse(values: flags.FlagValues, words: Sequence[str], config_class: type) -> list[str]:
    """Return what stands without a flag; refuse what is unknown."""
    try:
        rest = values(list(words))[1:]
    except flags.Error as error:
        _refuse(str(error))
    if rest and not _positional(config_class):
        _refuse(f"unexpected argument {rest[0]!r}; flags begin with --")
    asked = values.fast_dev_run or values.only_check_args
    if "workdir" in values and not values.workdir and not asked:
        _refuse("--workdir is needed: the folder in which the run is kept")
    return rest


def _refuse(message: str) -> NoReturn:
    print(f"--help lists all flags\nerror: {message}", file=sys.stderr)
    sys.exit(2)


def _positional(config_class: type) -> str:
    """Return the name of the field of what stands without a flag, or nothing."""
    fields = dataclasses.fields(config_class)
    return next((field.name for field in fields if field.metadata.get("positional")), "")


def _run(run: Callable[..., Any], config: Any, folder: Path, trains: bool) -> Any:
    if trains:
        import jax

        # Load what this run, or an earlier start of it, has compiled instead of compiling it again.
        jax.config.update("jax_compilation_cache_dir", str((folder / "xla_cache").absolute()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    return run(config, folder)


def _run_few(run: Callable[..., Any], config: Any, values: flags.FlagValues, trains: bool) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        result = _run(run, config, Path(folder), trains)
        if values.workdir:
            kept = Path(values.workdir) / "fast_dev_run"
            left_out = shutil.ignore_patterns(*NOT_KEPT)
            shutil.copytree(folder, kept, ignore=left_out, dirs_exist_ok=True)
            print(f"tables and pictures of these few steps: {kept}")
        return result
