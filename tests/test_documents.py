"""Commands and links of README and the site: what they name is there, and every flag is known."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
from absl import flags

from densejax.cli import define_flags

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = re.compile(r"python -m (experiments\.\w+)((?: .*)?)")


def commands():
    """Module and words of every command of an experiment, once each."""
    found = {}
    for page in PAGES:
        for block in re.findall(r"^```\n(.*?)^```", page.read_text(), flags=re.M | re.S):
            for module, rest in COMMAND.findall(block.replace("\\\n", " ")):
                found[f"{module}{rest}"] = (module, shlex.split(rest.split(" -- ")[0]))
    return found


@pytest.mark.parametrize("command", commands())
def test_every_flag_of_a_documented_command_is_known(command):
    name, words = commands()[command]
    module = importlib.import_module(name)
    if not hasattr(module, "Config"):
        pytest.skip(f"{name} has no dataclass of flags")
    values = flags.FlagValues()
    define_flags(module.Config, flag_values=values)
    shared = {"workdir": flags.DEFINE_string, "config": flags.DEFINE_string}
    shared |= {"fast_dev_run": flags.DEFINE_bool, "help": flags.DEFINE_bool}
    for word, define in shared.items():
        if word not in values:
            define(word, None, "as every experiment has it", flag_values=values)
    values([name, *(word for word in words if word.startswith("--"))])


def test_some_commands_were_found():
    assert len(commands()) > 15


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_and_picture_of_a_page_is_there(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http", "#")):
            assert (page.parent / target.split("#")[0]).exists(), target


def test_what_a_namespace_lists_is_in_the_reference():
    for name in ("active", "data", "landscape", "models", "plots", "segmentation"):
        stub = (ROOT / "densejax" / name / "__init__.pyi").read_text()
        page = (ROOT / "docs" / "reference" / f"{name}.md").read_text()
        public = set(re.findall(r" as (\w+)$", stub, flags=re.M))
        shown = set(re.findall(rf"densejax\.{name}\.(\w+)$", page, flags=re.M))
        assert shown == public - {"STRATEGIES"}
