"""What an experiment may be asked: fields with help and unit, seeds, grids, options of sweeps."""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, cast

from densejax.io import parse_seeds

if TYPE_CHECKING:  # training brings jax, which --help does not need
    from densejax.training.folders import Member, Outcome
    from densejax.training.logs import Reporter
    from densejax.training.sweep import Sweep
    from densejax.training.task import Task
    from densejax.typing import Batch

Config = TypeVar("Config")


def option(
    default: Any,
    help: str,
    *,
    unit: str = "",
    parse: Callable[[str], Any] | None = None,
    essential: bool = False,
    fast: Any = ...,
    positional: bool = False,
    joined: bool = False,
    varying: bool = False,
) -> Any:
    """A field of a configuration dataclass.

    Args:
      default: the field's value where nothing is said; immutable.
      help: one sentence for ``--help``.
      unit: such as ``nm`` or ``steps``; empty for a pure number or a name.
      parse: reads the flag's text in place of the rule of the field's type; raises ValueError.
      essential: shown first by ``--help``.
      fast: its value under ``--fast_dev_run``, or a function of the configuration that returns it;
        by default it stays.
      positional: a tuple of what stands on the command line without a flag, and no flag itself.
      joined: a text that the flag may give in parts, repeated, which are joined by commas.
      varying: it changes no number of any run, so that every run may go on with another value.

    Returns:
      What ``dataclasses.field`` returns.
    """
    said = {"help": help, "unit": unit, "parse": parse, "essential": essential}
    said |= {"fast": fast, "positional": positional, "joined": joined, "varying": varying}
    return dataclasses.field(default=default, metadata=said)


def seeds_option(*seeds: int, help: str = "seeds, such as 0:8; more of them extend a run") -> Any:
    """Return the field ``seeds`` with its default; there are two of them in a run of few steps."""
    return option(seeds, help, parse=parse_seeds, fast=lambda config: config.seeds[:2])


def few_steps(config: Config) -> Config:
    """Return the configuration of ``--fast_dev_run``: what its fields' ``fast`` says."""
    values, settings = {}, cast(Any, config)
    for field in dataclasses.fields(settings):
        value = field.metadata.get("fast", ...)
        if value is not ...:
            values[field.name] = value(config) if callable(value) else value
    return dataclasses.replace(settings, **values)


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
            hints[field.name] if optional_type(hints[field.name]) else hints[field.name] | None,
            dataclasses.field(default=None, metadata=field.metadata),
        )
        for field in dataclasses.fields(config_class)
    ]
    return dataclasses.make_dataclass(name, fields, frozen=True)


def optional_type(hint: Any) -> Any | None:
    """Return ``T`` of ``T | None``; None for any other type."""
    if typing.get_origin(hint) not in (Union, types.UnionType):
        return None
    inner = [choice for choice in typing.get_args(hint) if choice is not type(None)]
    return inner[0] if len(inner) == 1 and len(typing.get_args(hint)) == 2 else None


def asked_for(config: Any) -> dict[str, Any]:
    """The fields of a configuration that are not None, by name."""
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if getattr(config, field.name) is not None
    }


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


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """The flags of every sweep; an experiment's ``Config`` inherits them and names its own."""

    slots: int = option(0, "instances that train at once; 0: as many as fit")
    strategy: Literal["map", "vmap", "auto"] = option(
        "map",
        "train the instances of a device in turn, side by side, or the faster of the two ways",
    )
    base_seed: int = option(0, "number from which the keys of all seeds are derived")
    log_to: Literal["", "wandb", "mlflow"] = option(
        "",
        "tell each instance's curves to Weights & Biases or MLflow, too; servers, projects and "
        "offline modes as their environment variables say",
        varying=True,
        fast="",
    )

    def sweep(
        self, task: "Task", data: "Batch", members: Sequence["Member"], **options: Any
    ) -> "Sweep":
        """Return the sweep of these members; ``options`` are the others of ``Sweep``."""
        from densejax.training.sweep import Sweep

        same = {field.name: getattr(self, field.name) for field in dataclasses.fields(SweepOptions)}
        del same["log_to"]
        return Sweep(task, data, members, **same, **options)

    def reporter(self, workdir: Path, *, score: str, events: Path | None = None) -> "Reporter":
        """Return what tells of the sweep in ``workdir``, to the trackers that are asked for, too.

        Raises:
          ModuleNotFoundError: the library of ``log_to`` is not installed.
          ValueError: nobody is logged in to it.
        """
        from densejax.training.logs import Reporter
        from densejax.training.trackers import tracker_of

        trackers = tracker_of(self.log_to, workdir, dataclasses.asdict(self))
        return Reporter(score=score, events=events, trackers=trackers)

    def run_sweep(
        self,
        task: "Task",
        data: "Batch",
        members: Sequence["Member"],
        *,
        events: Path | None = None,
        **options: Any,
    ) -> list["Outcome"]:
        """Train what is missing of the members, and tell of it.

        Args:
          task: what an instance is.
          data: that all share.
          members: of the sweep.
          events: folder of TensorBoard's events; None writes none.
          options: the others of ``Sweep``: ``workdir`` and ``schedule``.

        Returns:
          All outcomes, in the order of the members.
        """
        reporter = self.reporter(options["workdir"], score=task.score, events=events)
        try:
            return self.sweep(task, data, members, reporter=reporter, **options).run()
        finally:
            reporter.close()
