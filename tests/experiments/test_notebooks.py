"""The notebooks run from top to bottom and show pictures, and are kept with what they showed."""

import json
import re

import pytest

from experiments.notebooks import store

NOTEBOOKS = sorted(store.FOLDER.glob("*.ipynb"))
# Kinds of what a notebook must show, and how many of each at least.
SHOWN = {
    "surface_of_your_network": {"image/png": 8, "image/gif": 1},
    "basins_and_boundaries": {"image/png": 4, "text/html": 2},
}
# What an animation is where ipywidgets is installed.
SLIDER = "application/vnd.jupyter.widget-view+json"


def check_shown(path, outputs):
    """Outputs, in the form of the file, are pictures and films enough and no failure."""
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    for kind, least in SHOWN[path.stem].items():
        assert kinds.count(kind) + (kind == "text/html") * kinds.count(SLIDER) >= least, kind
    assert not any(output["output_type"] == "error" for output in outputs)


def test_every_notebook_is_known():
    assert {path.stem for path in NOTEBOOKS} == set(SHOWN)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_with_outputs_that_name_no_machine(path):
    text = path.read_text(encoding="utf-8")
    code = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    check_shown(path, outputs)
    assert not any(output.get("name") == "stderr" for output in outputs)
    assert not any("execution" in cell["metadata"] for cell in code)
    words = "".join(
        "".join(o.get("text", o.get("data", {}).get("text/plain", ""))) for o in outputs
    )
    assert not re.search(r"/home/|/root/|/Users/|C:\\|it/s|\d s\b|a second", words)
    for place in (str(store.FOLDER.parent.parent), "/home/", "C:\\Users"):
        assert place not in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_and_show_their_pictures(path, tmp_path, monkeypatch):
    for name in ("nbformat", "nbclient", "ipykernel"):
        pytest.importorskip(name, reason=f"{name} is not installed (the notebook extra)")
    # The kernel is a process of its own: on the CPU as all tests, and away from the user's files.
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    book = store.executed(path, tmp_path)
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    check_shown(path, outputs)
    said = [output["text"] for output in outputs if output.get("name") == "stderr"]
    assert not any("Warning" in text for text in said), said
    kept = store.text_of(book, tmp_path)
    assert str(tmp_path) not in kept and '"name": "stderr"' not in kept
