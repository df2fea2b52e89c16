"""Experiments on the command line: options, flags, run folders, and the main program.

A configuration is a frozen dataclass. A field carries its help, its unit and its value for a run of
few steps (``option``); ``define_flags`` makes one absl flag of each and ``from_flags`` reads them
back; ``start_folder`` leaves in a run's folder what is needed to trust it and to go on:
``config.json``, and a line for every start in ``provenance.jsonl``. ``main`` does all of it.
"""

from densejax.cli.entry import main
from densejax.cli.flags import define_flags, from_flags, help_text
from densejax.cli.options import (
    SweepOptions,
    asked_for,
    few_steps,
    option,
    optional_fields,
    parse_grid,
    seeds_option,
)
from densejax.cli.records import (
    check_same_config,
    from_file,
    from_record,
    save_config,
    start_folder,
)
from densejax.io import parse_seeds

__all__ = [
    "SweepOptions",
    "asked_for",
    "check_same_config",
    "define_flags",
    "few_steps",
    "from_file",
    "from_flags",
    "from_record",
    "help_text",
    "main",
    "option",
    "optional_fields",
    "parse_grid",
    "parse_seeds",
    "save_config",
    "seeds_option",
    "start_folder",
]
