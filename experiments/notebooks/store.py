"""Run the notebooks from top to bottom and keep each with what it shows.

    python experiments/notebooks/store.py

Rewrites the notebooks beside this file. What tells of a machine is not kept: what a cell writes to
stderr (progress with its rates), temporary folders, times of execution. Needs the extra
``notebook``; about two minutes on two cores.
"""

import os
import re
import tempfile
from pathlib import Path
from typing import Any

from densejax.io import write_text

FOLDER = Path(__file__).parent
# Of a stuck kernel, not of a slow machine: idle, each notebook takes less than a minute.
SECONDS_A_CELL = 1200
TEMPORARY = "/tmp/notebook"


def executed(path: Path, folder: Path) -> Any:
    """Run a notebook in a folder of its own.

    Args:
      path: of the notebook.
      folder: where its files go; the kernel starts there.

    Returns:
      The notebook (``nbformat``) with all outputs.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell failed.
    """
    import nbclient
    import nbformat

    book = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        book,
        timeout=SECONDS_A_CELL,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    # The kernel is a process of its own: its temporary files lie in the folder as well.
    client.execute(env=os.environ | {"TMPDIR": str(folder)})
    return book


def text_of(book: Any, folder: Path) -> str:
    """What is stored of a notebook that has been run in ``folder``."""
    import nbformat

    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    book.metadata.language_info = {"name": "python"}
    # What a notebook makes there by ``tempfile.mkdtemp`` has another name each time.
    return re.sub(rf"{re.escape(str(folder))}(/tmp\w+)?", TEMPORARY, nbformat.writes(book)) + "\n"


if __name__ == "__main__":
    for notebook in sorted(FOLDER.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as name:
            text = text_of(executed(notebook, Path(name)), Path(name))
        write_text(notebook, text)
        print(f"{notebook.name}: {len(text) / 1e6:.1f} MB")
