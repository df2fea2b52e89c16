"""The record of a configuration: read from a file, left in a run's folder, compared with it."""

import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from densejax.cli.flags import fields_of
from densejax.cli.options import Config
from densejax.io import check_same, read_json, write_text


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
    hints = {field.name: hint for field, hint in fields_of(config_class)}
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
    ignored = (*ignore, *_varying(config))
    check_same(path, before, now, what="configuration", ignore=ignored, defaults=defaults)


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
    from densejax.training.provenance import provenance

    folder = Path(folder)
    check_same_config(config, folder, ignore=ignore)
    if not (folder / "config.json").exists():
        save_config(config, folder / "config.json")
    varying = {name: getattr(config, name) for name in ignore if hasattr(config, name)}
    with (folder / "provenance.jsonl").open("a") as file:
        file.write(json.dumps(provenance() | {"varying": varying}, default=_as_dict) + "\n")


def _varying(config: Any) -> list[str]:
    """Names of the fields that change no number of any run."""
    return [field.name for field in dataclasses.fields(config) if field.metadata.get("varying")]


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
