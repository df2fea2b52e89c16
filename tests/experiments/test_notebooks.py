"""The notebooks run from top to bottom, show pictures, and are kept without what they showed."""

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# Of a stuck kernel, not of a slow machine: idle, each takes less than a minute.
SECONDS_A_CELL = 1200
# Kinds of what a notebook must show, and how many of each at least.
SHOWN = {
    "surface_of_your_network": {"image/png": 8, "image/gif": 1},
    "basins_and_boundaries": {"image/png": 4, "text/html": 2},
}
# What an animation is where ipywidgets is installed.
SLIDER = "application/vnd.jupyter.widget-view+json"


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def test_every_notebook_is_known():
    assert {path.stem for path in NOTEBOOKS} == set(SHOWN)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path):
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    assert code and not any(cell["outputs"] or cell["execution_count"] for cell in code)
    text = "".join("".join(cell["source"]) for cell in cells(path))
    assert "/home/" not in text and "C:\\" not in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_and_show_their_pictures(path, tmp_path, monkeypatch):
    reason = "not installed (the notebook extra)"
    nbformat = pytest.importorskip("nbformat", reason=f"nbformat is {reason}")
    nbclient = pytest.importorskip("nbclient", reason=f"nbclient is {reason}")
    pytest.importorskip("ipykernel", reason=f"ipykernel is {reason}")
    # The kernel is a process of its own: on the CPU as all tests, and away from the user's files.
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    book = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        book,
        timeout=SECONDS_A_CELL,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    for kind, least in SHOWN[path.stem].items():
        assert kinds.count(kind) + (kind == "text/html") * kinds.count(SLIDER) >= least, kind
    said = [output["text"] for output in outputs if output.get("name") == "stderr"]
    assert not any("Warning" in text for text in said), said
