"""What a job asks of the scheduler: flags, a site's file under them, and the units of Slurm."""

import argparse
import os
import re
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

Options = dict[str, str | int | bool]

SITE_FILES = ("launch.toml", "~/.config/densejax/launch.toml")


@dataclass(frozen=True)
class Resources:
    """What every block's job asks for; empty is the site's default."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    gres: str = ""
    constraint: str = ""
    time: str = "24:00:00"
    mem: str = ""
    cpus_per_task: int = 0
    nice: int = 0
    parallel: int = 0
    signal_seconds: int = 90
    requeues: int = 100
    modules: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    sbatch: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        minutes(self.time)
        if not 1 <= self.signal_seconds <= 65535:
            raise ValueError(f"signal_seconds is {self.signal_seconds}, expected 1 to 65535")
        for option in self.sbatch:
            if not re.fullmatch(r"--[a-z][a-z-]*(=.*)?", option):
                raise ValueError(f"sbatch option {option!r}: expected --name or --name=value")

    @property
    def limit_seconds(self) -> float:
        """The time limit in seconds."""
        return 60.0 * minutes(self.time)

    def setup_lines(self) -> list[str]:
        """Lines of the shell before the block starts."""
        return [*(f"module load {module}" for module in self.modules), *self.setup]

    def options(self) -> Options:
        """Options of sbatch by their long names, those of this class and the further ones."""
        named = ("partition", "account", "qos", "gres", "constraint", "mem", "nice")
        found: Options = {name: getattr(self, name) for name in named if getattr(self, name)}
        if self.cpus_per_task:
            found["cpus-per-task"] = self.cpus_per_task
        for option in self.sbatch:
            name, equals, value = option[2:].partition("=")
            found[name] = value if equals else True
        return found


HELP = {
    "partition": "to which jobs are submitted",
    "account": "that is charged",
    "qos": "quality of service",
    "gres": "accelerators of a node, such as gpu:4; all of them work on one block",
    "constraint": "features that a node must have",
    "time": "limit of one try of a block, such as 24:00:00 or 2-00:00:00; blocks go on after it",
    "mem": "of a node, such as 64G",
    "cpus_per_task": "cores of a block",
    "nice": "by how much the jobs give way to others",
    "parallel": "blocks that run at once; 0 is as many as the scheduler starts",
    "signal_seconds": "by how much a block is warned before its time limit [s]",
    "requeues": "times that a block may reach its time limit",
    "modules": "modules to load, with commas",
    "setup": "line of the shell in front of each block; may be given several times",
    "sbatch": "any other option of sbatch, such as --sbatch=--exclusive; several times",
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for each resource, and ``--site`` for the file with a site's own defaults."""
    parser.add_argument("--site", help=f"file of defaults; else {' or '.join(SITE_FILES)}")
    for field in fields(Resources):
        if field.name in ("setup", "sbatch"):
            parser.add_argument(f"--{field.name}", action="append", help=HELP[field.name])
        elif field.name == "modules":
            parser.add_argument("--modules", type=_names, help=HELP[field.name])
        else:
            shown = field.default if field.default not in ("", 0) else "none"
            parser.add_argument(
                f"--{field.name}",
                type=type(field.default),
                help=f"{HELP[field.name]} (default: {shown})",
            )


def from_flags(arguments: argparse.Namespace, *, before: dict[str, Any] | None = None) -> Resources:
    """Resources: what the flags say, else ``before``, else the site's file, else the defaults.

    Raises:
      ValueError: the site's file has an unknown name or a wrong type, or a value is no resource.
    """
    values = dict(before) if before is not None else read_site(arguments.site)
    for field in fields(Resources):
        given = getattr(arguments, field.name)
        if given is not None:
            values[field.name] = given
    return from_values(values)


def from_values(values: dict[str, Any]) -> Resources:
    """Resources of a dictionary, such as a line of a file."""
    read: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
    return Resources(**read)


def as_values(resources: Resources) -> dict[str, Any]:
    """What ``from_values`` reads, for JSON."""
    return asdict(resources)


def read_site(named: str | None) -> dict[str, Any]:
    """A site's defaults: TOML with the names of the flags.

    Raises:
      ValueError: the file is not there though named, is no TOML, or holds something unknown.
    """
    if named is not None and not Path(named).expanduser().is_file():
        raise ValueError(f"site file {named} is not there")
    for candidate in [named] if named else SITE_FILES:
        path = Path(os.path.expanduser(candidate))
        if path.is_file():
            return _checked(path)
    return {}


def _checked(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from error
    known = {field.name: type(field.default) for field in fields(Resources)}
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
