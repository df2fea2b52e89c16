"""What a job asks of the scheduler: flags, a site's file under them, and the units of Slurm."""

import argparse
import re
import shlex
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

_Options = dict[str, str | int | bool]

_SITE_FILES = ("launch.toml", "~/.config/densejax/launch.toml")


def _asked(default: Any, what: str) -> Any:
    return field(default=default, metadata={"help": what})


@dataclass(frozen=True)
class Resources:
    """What every block's job asks for; empty is the site's default."""

    partition: str = _asked("", "to which jobs are submitted")
    account: str = _asked("", "that is charged")
    qos: str = _asked("", "quality of service")
    gres: str = _asked("", "accelerators of a node, such as gpu:4; all of them work on one block")
    constraint: str = _asked("", "features that a node must have")
    time: str = _asked(
        "24:00:00",
        "limit of one try of a block, such as 24:00:00 or 2-00:00:00; blocks go on after it",
    )
    mem: str = _asked("", "of a node, such as 64G")
    cpus_per_task: int = _asked(0, "cores of a block")
    nice: int = _asked(0, "by how much the jobs give way to others")
    parallel: int = _asked(0, "blocks that run at once; 0 is as many as the scheduler starts")
    signal_seconds: int = _asked(90, "by how much a block is warned before its time limit [s]")
    requeues: int = _asked(100, "times that a block may reach its time limit")
    modules: tuple[str, ...] = _asked((), "modules to load, with commas")
    setup: tuple[str, ...] = _asked(
        (), "line of the shell in front of each block; may be given several times"
    )
    sbatch: tuple[str, ...] = _asked(
        (), "any other option of sbatch, such as --sbatch=--exclusive; several times"
    )

    def __post_init__(self) -> None:
        minutes(self.time)
        if not 1 <= self.signal_seconds <= 65535:
            raise ValueError(f"signal_seconds is {self.signal_seconds}, expected 1 to 65535")
        for option in self.sbatch:
            if not re.fullmatch(r"--[a-z][a-z-]*(=.*)?", option):
                raise ValueError(f"sbatch option {option!r}: expected --name or --name=value")
        for name, value in self.options().items():
            # A line's end would begin another line of the script, and sbatch drops a backslash.
            if found := re.search(r"[\\\x00-\x1f\x7f]", str(value)):
                raise ValueError(
                    f"{name} is {value!r}: expected a value without {found.group()!r}, which "
                    "sbatch would not read as it stands"
                )

    def setup_lines(self) -> list[str]:
        """Lines of the shell before the block starts."""
        loads = (f"module load {shlex.join(module.split())}" for module in self.modules)
        return [*loads, *self.setup]

    def options(self) -> _Options:
        """Options of sbatch by their long names, those of this class and the further ones."""
        named = ("partition", "account", "qos", "gres", "constraint", "mem", "nice")
        found: _Options = {name: getattr(self, name) for name in named if getattr(self, name)}
        if self.cpus_per_task:
            found["cpus-per-task"] = self.cpus_per_task
        for option in self.sbatch:
            name, equals, value = option[2:].partition("=")
            found[name] = value if equals else True
        return found


def add_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for each resource, and ``--site`` for the file with a site's own defaults."""
    parser.add_argument("--site", help=f"file of defaults; else {' or '.join(_SITE_FILES)}")
    for asked in fields(Resources):
        flag, what = f"--{asked.name}", asked.metadata["help"]
        if asked.name in ("setup", "sbatch"):
            parser.add_argument(flag, action="append", help=what)
        elif asked.name == "modules":
            parser.add_argument(flag, type=_names, help=what)
        else:
            shown = f"{what} (default: {asked.default or 'none'})"
            parser.add_argument(flag, type=type(asked.default), help=shown)


def from_flags(arguments: argparse.Namespace, *, before: dict[str, Any] | None = None) -> Resources:
    """Resources: what the flags say, else ``before``, else the site's file, else the defaults.

    Raises:
      ValueError: the site's file is not there though named, has an unknown name or a wrong type, or
        a value is no resource.
    """
    values = dict(before) if before is not None else _read_site(arguments.site)
    given = {asked.name: getattr(arguments, asked.name) for asked in fields(Resources)}
    values |= {name: value for name, value in given.items() if value is not None}
    read: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
    return Resources(**read)


def _read_site(named: str | None) -> dict[str, Any]:
    """A site's defaults: TOML with the names of the flags."""
    paths = [Path(name).expanduser() for name in ([named] if named else _SITE_FILES)]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        if named:
            raise ValueError(f"site file {named} is not there")
        return {}
    try:
        values = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from error
    known = {asked.name: type(asked.default) for asked in fields(Resources)}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{path}: unknown name {name!r}; known are {', '.join(known)}")
        expected = list if known[name] is tuple else known[name]
        if not isinstance(value, expected) or isinstance(value, bool):
            kind = "a list of texts" if expected is list else expected.__name__
            raise ValueError(f"{path}: {name} is {value!r}, expected {kind}")
    return values


def minutes(time: str) -> int:
    """Minutes of a time limit as Slurm writes it, rounded up.

    ``30`` (minutes), ``30:00`` (minutes, seconds), ``2:00:00``, ``1-0`` (days, hours), ``1-12:30``.

    Raises:
      ValueError: it is none of these, or nothing.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if not match:
        raise ValueError(f"time {time!r}: expected minutes, h:mm:ss or d-hh:mm:ss")
    days, a, b, c = (int(part) if part else 0 for part in match.groups())
    if match.group(1) is not None:
        seconds = 86400 * days + 3600 * a + 60 * b + c
    elif match.group(4) is not None:
        seconds = 3600 * a + 60 * b + c
    else:
        seconds = 60 * a + b
    if seconds == 0:
        raise ValueError(f"time {time!r}: nothing can run in no time")
    return -(-seconds // 60)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
