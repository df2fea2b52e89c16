"""The flags of a configuration: one absl flag a field, read back, and listed by ``--help``."""

import dataclasses
import math
import re
import textwrap
import typing
from collections.abc import Callable
from typing import Any, Literal

from absl import flags

from densejax.cli.options import Config, optional_type

# Flags defined here belong to the experiment that asks for them, so that its --help shows them.
flags.disclaim_key_flags()

NOTHING = "none"  # how a flag says None, where "none" is no choice of its own
NOT_ASKED = "default"  # how it says so where it is
SWEEP = "Sweep options"  # what help calls the group of SweepOptions
ALWAYS = ("workdir", "config", "fast_dev_run")  # flags of every experiment


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
    for field, hint in fields_of(config_class):
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
    for field, hint in fields_of(config_class):
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


def help_text(config_class: type, *, flag_values: flags.FlagValues = flags.FLAGS) -> str:
    """All flags of a configuration for ``--help``: the essential ones first, the rest in groups.

    A group is what one dataclass of the hierarchy defines, and each nested one.
    """
    groups: dict[str, list[str]] = {"Essential": list(ALWAYS)}
    for owner in reversed(config_class.__mro__):
        if dataclasses.is_dataclass(owner):
            _group(owner, config_class, groups)
    # What every sweep has comes last.
    groups |= {title: groups.pop(title) for title in [*groups] if title == SWEEP}
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
    for field, hint in fields_of(config_class):
        if field.name not in owner.__dataclass_fields__ or field.name in seen:
            continue
        if dataclasses.is_dataclass(hint):
            nested = [f"{field.name}.{f.name}" for f, _ in fields_of(typing.cast(type, hint))]
            groups[field.name.capitalize()] = nested
        else:
            place = "Essential" if field.metadata.get("essential") else title
            groups.setdefault(place, []).append(field.name)


def _help_line(name: str, flag: flags.Flag) -> str:
    text = flag.help or ""
    syntax = getattr(flag.parser, "syntactic_help", "")
    shown = (flag.default_as_str or "").strip("'")
    notes = [note for note in (syntax, f"default: {shown}" if shown else "") if note]
    if flag.boolean:
        notes = [f"default: on; --no{name} turns it off" if flag.default else "default: off"]
    text += f" ({'; '.join(notes)})" if notes else ""
    head = f"  --{name}"
    indent = " " * 26
    lines = textwrap.wrap(text, 100 - len(indent), break_on_hyphens=False) or [""]
    first = f"{head:<25} {lines[0]}" if len(head) < 26 else f"{head}\n{indent}{lines[0]}"
    return "\n".join([first, *(indent + line for line in lines[1:])])


def fields_of(config_class: type) -> list[tuple[dataclasses.Field, Any]]:
    """Return the fields that are flags, with their types."""
    if not dataclasses.is_dataclass(config_class):
        raise TypeError(f"expected a dataclass, found {config_class!r}")
    hints = typing.get_type_hints(config_class)
    return [
        (field, field.metadata.get("flags", hints[field.name]))
        for field in dataclasses.fields(config_class)
        if field.init and not field.metadata.get("positional")
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
        kind = _Joined if field.metadata.get("joined") else flags.Flag
        flags.DEFINE_flag(kind(parser, serializer, name, default, text), flag_values)
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


class _Joined(flags.Flag):
    """A text that may be given in parts: repeated, they are joined by commas."""

    def parse(self, argument: Any) -> None:
        before = self.value if self.present else None
        super().parse(argument)
        if before:
            self.value = f"{before},{self.value}"


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
    inner = optional_type(hint)
    own = typing.get_origin(inner) is Literal and NOTHING in typing.get_args(inner)
    return NOT_ASKED if own else NOTHING


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
    inner = optional_type(hint)
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
        several = {int: "integers", float: "numbers", str: "words"}.get(choices[0], "values")
        many = len(choices) == 2 and choices[1] is Ellipsis
        known = f", each {_syntax(choices[0])}" if several == "values" else ""
        return f"{several if many else f'{len(choices)} {several}'}, with commas between{known}"
    inner = optional_type(hint)
    return f"{_syntax(inner) or 'text'}, or {_nothing(hint)}" if inner is not None else ""
