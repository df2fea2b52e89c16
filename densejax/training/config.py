"""An experiment's configuration: a frozen dataclass, its command-line flags, and its record.

A field carries its help and its unit (``option``), ``define_flags`` makes one absl flag of each,
``from_flags`` reads them back, and ``start_folder`` leaves in a run's folder what is needed to
trust it and to go on: ``config.json``, and a line for every start in ``provenance.jsonl``.
"""

import dataclasses
import json
import math
import re
import textwrap
import tomllib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from absl import flags

from densejax.io import check_same, read_json, write_text
from densejax.training.provenance import provenance

# Flags defined here belong to the experiment that asks for them, so that its --help shows them.
flags.disclaim_key_flags()

Config = TypeVar("Config")

NOTHING = "none"  # how a flag says None, where "none" is no choice of its own
NOT_ASKED = "default"  # how it says so where it is
ALWAYS = ("workdir", "config", "fast_dev_run")  # flags of every experiment


def option(
    default: Any,
    help: str,
    *,
    unit: str = "",
    parse: Callable[[str], Any] | None = None,
    essential: bool = False,
) -> Any:
    """A field of a configuration dataclass.

    Args:
      default: the field's value where nothing is said; immutable.
      help: one sentence for ``--help``.
      unit: such as ``nm`` or ``steps``; empty for a pure number or a name.
      parse: reads the flag's text in place of the rule of the field's type; raises ValueError.
      essential: shown first by ``--help``.

    Returns:
      What ``dataclasses.field`` returns.
    """
    said = {"help": help, "unit": unit, "parse": parse, "essential": essential}
    return dataclasses.field(default=default, metadata=said)


def optional_fields(config_class: type, name: str) -> type:
    """A dataclass with another's fields, each of which may be None: not asked for.

    Args:
      config_class: a dataclass whose fields all have defaults.
      name: of the new class.
    """
    hints = typing.get_type_hints(config_class)
    fields = [
        (
            field.name,
            hints[field.name] if _optional(hints[field.name]) else hints[field.name] | None,
            dataclasses.field(default=None, metadata=field.metadata),
        )
        for field in dataclasses.fields(config_class)
    ]
    return dataclasses.make_dataclass(name, fields, frozen=True)


def asked_for(config: Any) -> dict[str, Any]:
    """The fields of a configuration that are not None, by name."""
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if getattr(config, field.name) is not None
    }


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds from text: ``0:8`` (0 to 7), ``0,3,5``, or both, ``0:4,10``; in the order given.

    Raises:
      ValueError: an entry is neither a number nor a range, a range is empty, a seed is negative or
        occurs twice, or there is none.
    """
    seeds: list[int] = []
    for entry in text.split(","):
        ends = entry.strip().split(":")
        if len(ends) > 2 or not all(end.strip().isdecimal() for end in ends):
            raise ValueError(
                f"seeds {text!r}: {entry.strip()!r} is neither a number from 0 up, such as 3, "
                "nor a range, such as 0:8"
            )
        first, stop = int(ends[0]), int(ends[1]) if len(ends) == 2 else int(ends[0]) + 1
        if stop <= first:
            raise ValueError(f"seeds {text!r}: the range {entry.strip()!r} is empty")
        seeds.extend(range(first, stop))
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice:
        raise ValueError(f"seeds {text!r}: {twice} occur twice")
    return tuple(seeds)


def parse_grid(text: str) -> dict[str, tuple[float, ...]]:
    """Settings and their values from text such as ``learning_rate=1e-3,3e-4;l2_scale=0,1``.

    Returns:
      Values by name, in the order given; empty for an empty text.

    Raises:
      ValueError: an entry is no ``name=value,value``, a name or a value occurs twice, or a value is
        not a finite number.
    """
    grid: dict[str, tuple[float, ...]] = {}
    for entry in text.split(";") if text.strip() else []:
        name, equals, values = (part.strip() for part in entry.partition("="))
        if not name.isidentifier() or not equals or not values:
            raise ValueError(f"grid {text!r}: expected name=value,value, found {entry.strip()!r}")
        if name in grid:
            raise ValueError(f"grid {text!r}: {name} occurs twice")
        grid[name] = tuple(_grid_value(value, name, text) for value in values.split(","))
        if len(set(grid[name])) != len(grid[name]):
            raise ValueError(f"grid {text!r}: a value of {name} occurs twice")
    return grid


def _grid_value(value: str, name: str, text: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"grid {text!r}: {name} has {value.strip()!r}, expected a finite number")
    return number


def define_flags(
    config_class: type, *, flag_values: flags.FlagValues = flags.FLAGS, prefix: str = ""
) -> None:
    """One flag for each field of a dataclass; a nested dataclass's are named with a dot.

    A field is int, float, bool, str, a ``Literal``, a tuple of these (written with commas), any of
    them or None (written ``none``), or a dataclass of such fields. A field without a default is a
    required flag.

    Args:
      config_class: a dataclass; every field carries ``help`` in its metadata (see ``option``).
      flag_values: where to define them.
      prefix: in front of every name, such as ``augmentation.``.

    Raises:
      TypeError: ``config_class`` is no dataclass, or a field's type is none of these.
      ValueError: a field has no help.
    """
    for field, hint in _fields(config_class):
        name = prefix + field.name
        if dataclasses.is_dataclass(hint):
            define_flags(typing.cast(type, hint), flag_values=flag_values, prefix=f"{name}.")
            continue
        if not field.metadata.get("help"):
            raise ValueError(f"{config_class.__name__}.{field.name} has no help in its metadata")
        unit = field.metadata.get("unit")
        text = f"{field.metadata['help']} [{unit}]" if unit else field.metadata["help"]
        _define_flag(name, field, hint, text, flag_values)


def from_flags(
    config_class: type[Config],
    *,
    flag_values: flags.FlagValues = flags.FLAGS,
    prefix: str = "",
    base: Config | None = None,
) -> Config:
    """The configuration that the parsed flags say.

    Args:
      config_class: the dataclass that ``define_flags`` was called with.
      flag_values: parsed flags.
      prefix: as in ``define_flags``.
      base: whose values stand where a flag is not on the command line; the flags' defaults if None.

    Raises:
      ValueError: whatever the dataclass's own checks refuse.
    """
    values: dict[str, Any] = {}
    for field, hint in _fields(config_class):
        name = prefix + field.name
        below = None if base is None else getattr(base, field.name)
        if dataclasses.is_dataclass(hint):
            nested: Any = hint
            values[field.name] = from_flags(
                nested, flag_values=flag_values, prefix=f"{name}.", base=below
            )
        elif base is not None and not flag_values[name].present:
            values[field.name] = below
        else:
            values[field.name] = flag_values[name].value
    return config_class(**values)


def from_file(config_class: type[Config], path: str | Path) -> Config:
    """The configuration that a file says: a run's ``config.json``, or as much of it in TOML.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it cannot be read, or has fields that the experiment has not.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"--config={path}: no such file")
    try:
        text = path.read_text()
        record = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except ValueError as error:
        raise ValueError(f"--config={path}: expected JSON, or TOML in a .toml: {error}") from error
    if path.suffix != ".toml":
        record = getattr(config_class, "upgrade", dict)(record)
    return from_record(config_class, record, str(path))


def from_record(config_class: Any, values: Mapping[str, Any], name: str) -> Any:
    """A configuration from what JSON holds of it; ``name`` is what messages call it.

    Raises:
      ValueError: there are values of fields that the dataclass has not.
    """
    hints = {field.name: hint for field, hint in _fields(config_class)}
    if set(values) - set(hints):
        raise ValueError(
            f"{name}: {sorted(set(values) - set(hints))} are no settings of "
            f"{config_class.__module__}; expected the configuration of one of its runs"
        )
    found = {}
    for key, value in values.items():
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, dict):
            value = from_record(hints[key], value, f"{name}: {key}")
        found[key] = tuple(value) if isinstance(value, list) else value
    return config_class(**found)


def help_text(config_class: type, *, flag_values: flags.FlagValues = flags.FLAGS) -> str:
    """All flags of a configuration for ``--help``: the essential ones first, the rest in groups.

    A group is what one dataclass of the hierarchy defines, and each nested one.
    """
    groups: dict[str, list[str]] = {"Essential": list(ALWAYS)}
    for owner in reversed(config_class.__mro__):
        if dataclasses.is_dataclass(owner):
            _group(owner, config_class, groups)
    texts = []
    for title, names in groups.items():
        known = [name for name in names if name in flag_values]
        lines = [_help_line(name, flag_values[name]) for name in known]
        texts.append("\n".join([f"{title}:", *lines]))
    return "\n\n".join(texts)


def _group(owner: Any, config_class: type, groups: dict[str, list[str]]) -> None:
    seen = {name for names in groups.values() for name in names}
    title = " ".join(re.findall("[A-Z][a-z]*", owner.__name__))
    title = {"Config": "Of this experiment"}.get(title, title.capitalize())
    for field, hint in _fields(config_class):
        if field.name not in owner.__dataclass_fields__ or field.name in seen:
            continue
        if dataclasses.is_dataclass(hint):
            nested = [f"{field.name}.{f.name}" for f, _ in _fields(typing.cast(type, hint))]
            groups[field.name.capitalize()] = nested
        else:
            place = "Essential" if field.metadata.get("essential") else title
            groups.setdefault(place, []).append(field.name)


def _help_line(name: str, flag: flags.Flag) -> str:
    text = flag.help or ""
    syntax = getattr(flag.parser, "syntactic_help", "")
    shown = flag.default_as_str
    shown = "" if shown == "''" else shown
    notes = [note for note in (syntax, f"default {shown}" if shown else "") if note]
    if flag.boolean:
        notes = [f"default {shown}, --no{name} turns it off"]
    text += f" ({'; '.join(notes)})" if notes else ""
    head = f"  --{name}"
    indent = " " * 26
    lines = textwrap.wrap(text, 100 - len(indent), break_on_hyphens=False) or [""]
    first = f"{head:<25} {lines[0]}" if len(head) < 26 else f"{head}\n{indent}{lines[0]}"
    return "\n".join([first, *(indent + line for line in lines[1:])])


def save_config(config: Any, path: Path) -> None:
    """Write a configuration as JSON, whole or not at all.

    Args:
      config: a dataclass instance.
      path: the file, such as ``workdir / "config.json"``.

    Raises:
      FileExistsError: the file is there and says something else.
    """
    text = json.dumps(dataclasses.asdict(config), indent=2) + "\n"
    if path.exists() and path.read_text() != text:
        raise FileExistsError(f"{path} holds another configuration; it is not written over")
    write_text(path, text)


def check_same_config(config: Any, folder: Path, *, ignore: Sequence[str] = ("seeds",)) -> None:
    """Refuse to go on in a folder that another configuration has begun.

    A folder that was begun before a field existed was begun with that field's default: it may go on
    with the default, and with nothing else.

    Args:
      config: a dataclass instance.
      folder: a run's folder; without a ``config.json`` in it any configuration may begin.
      ignore: fields, with dots for nested ones, that may differ between starts; naming a nested
        dataclass ignores all of its fields.

    Raises:
      ValueError: a field differs (every such field is named with both values), or ``config.json``
        cannot be read.
    """
    path = Path(folder) / "config.json"
    if not path.exists():
        return
    try:
        before = getattr(config, "upgrade", dict)(read_json(path))
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{path}: expected a configuration in JSON, found {error}") from error
    now, defaults = dataclasses.asdict(config), _defaults(config)
    check_same(path, before, now, what="configuration", ignore=ignore, defaults=defaults)


def start_folder(config: Any, folder: Path, *, ignore: Sequence[str] = ("seeds",)) -> None:
    """Begin or continue a run's folder: check or write its configuration, note this start.

    ``config.json`` is that of the first start; each line of ``provenance.jsonl`` is one start, with
    the values of the fields that may differ.

    Args:
      config: a dataclass instance.
      folder: the run's folder; made if absent.
      ignore: as in ``check_same_config``.

    Raises:
      ValueError: the folder comes from another configuration.
    """
    folder = Path(folder)
    check_same_config(config, folder, ignore=ignore)
    if not (folder / "config.json").exists():
        save_config(config, folder / "config.json")
    varying = {name: getattr(config, name) for name in ignore if hasattr(config, name)}
    with (folder / "provenance.jsonl").open("a") as file:
        file.write(json.dumps(provenance() | {"varying": varying}, default=_as_dict) + "\n")


def _defaults(config: Any) -> dict[str, Any]:
    """Each field's default, of those that have one, as JSON holds it."""
    defaults = {}
    for field in dataclasses.fields(config):
        if field.default is not dataclasses.MISSING:
            defaults[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = field.default_factory()
    return json.loads(json.dumps(defaults, default=_as_dict))


def _as_dict(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{value!r} has no form in JSON")


def _fields(config_class: type) -> list[tuple[dataclasses.Field, Any]]:
    if not dataclasses.is_dataclass(config_class):
        raise TypeError(f"expected a dataclass, found {config_class!r}")
    hints = typing.get_type_hints(config_class)
    return [
        (field, field.metadata.get("flags", hints[field.name]))
        for field in dataclasses.fields(config_class)
        if field.init
    ]


def _define_flag(
    name: str,
    field: dataclasses.Field,
    hint: Any,
    text: str,
    flag_values: flags.FlagValues,
) -> None:
    required = field.default is field.default_factory is dataclasses.MISSING
    default = None if field.default is dataclasses.MISSING else field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if hint is bool:
        flags.DEFINE_boolean(name, default, text, flag_values=flag_values)
    else:
        parser = _Parser(hint, field.metadata.get("parse"), f"{field.name}: {hint}")
        serializer = _Serializer(_nothing(hint))
        flags.DEFINE(parser, name, default, text, flag_values, serializer)
    if required:
        flags.mark_flag_as_required(name, flag_values)


class _Parser(flags.ArgumentParser):
    """Reads a flag's text by the type of its field."""

    def __init__(self, hint: Any, parse: Callable[[str], Any] | None, what: str) -> None:
        self._read = parse or _reader(hint, what)
        self.syntactic_help = _syntax(hint) if parse is None else ""

    def parse(self, argument: Any) -> Any:
        # absl passes defaults through here as well.
        return self._read(argument) if isinstance(argument, str) else argument

    def flag_type(self) -> str:
        return "value"


class _Serializer(flags.ArgumentSerializer):
    """The text that ``_Parser`` reads back."""

    def __init__(self, nothing: str) -> None:
        self._nothing = nothing

    def serialize(self, value: Any) -> str:
        if isinstance(value, tuple):
            return ",".join(self.serialize(entry) for entry in value)
        return self._nothing if value is None else str(value)


def _nothing(hint: Any) -> str:
    """The word for None of an optional field."""
    inner = _optional(hint)
    own = typing.get_origin(inner) is Literal and NOTHING in typing.get_args(inner)
    return NOT_ASKED if own else NOTHING


def _optional(hint: Any) -> Any | None:
    """``T`` of ``T | None``; None for any other type."""
    if typing.get_origin(hint) not in (Union, types.UnionType):
        return None
    inner = [choice for choice in typing.get_args(hint) if choice is not type(None)]
    return inner[0] if len(inner) == 1 and len(typing.get_args(hint)) == 2 else None


def _reader(hint: Any, what: str) -> Callable[[str], Any]:
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if hint is str:
        return str
    if hint in (int, float):
        return lambda text: _number(hint, text)
    if hint is bool:
        return flags.BooleanParser().parse
    if origin is Literal:
        return lambda text: _choice(text, choices)
    if origin is tuple and choices:
        return _tuple_reader(choices, what)
    inner = _optional(hint)
    if inner is not None:
        read = _reader(inner, what)
        nothing = _nothing(hint)
        return lambda text: None if text.lower() == nothing else read(text)
    raise TypeError(f"{what} has no form as a flag")


def _tuple_reader(choices: tuple[Any, ...], what: str) -> Callable[[str], Any]:
    many = len(choices) == 2 and choices[1] is Ellipsis
    readers = [_reader(choice, what) for choice in (choices[:1] if many else choices)]

    def read(text: str) -> tuple[Any, ...]:
        entries = [entry.strip() for entry in text.split(",")] if text.strip() else []
        if not many and len(entries) != len(readers):
            raise ValueError(f"expected {len(readers)} values with commas, found {len(entries)}")
        used = readers * len(entries) if many else readers
        return tuple(one(entry) for one, entry in zip(used, entries, strict=True))

    return read


def _number(kind: type, text: str) -> Any:
    value = kind(text)
    if isinstance(value, float) and math.isnan(value):
        raise ValueError("not-a-number is no setting")
    return value


def _choice(text: str, choices: tuple[Any, ...]) -> Any:
    for choice in choices:
        if str(choice) == text:
            return choice
    raise ValueError(f"expected one of {', '.join(map(str, choices))}")


def _syntax(hint: Any) -> str:
    """The line about values in ``--help``."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if hint in (int, float, bool):
        return {int: "an integer", float: "a number", bool: "true or false"}[hint]
    if origin is Literal:
        return "one of " + ", ".join(map(str, choices))
    if origin is tuple:
        one = _syntax(choices[0]) or "text"
        many = len(choices) == 2 and choices[1] is Ellipsis
        return f"{'any number of' if many else len(choices)} values with commas, each {one}"
    inner = _optional(hint)
    return f"{_syntax(inner) or 'text'}, or {_nothing(hint)}" if inner is not None else ""
