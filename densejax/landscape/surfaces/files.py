"""A grid on disk: what it was computed from, what is done of it, and whether it is ours.

A file is a NumPy ``.npz`` with ``x`` [p], ``y`` [q], ``done`` [p, q] bool, ``value <name>`` [p, q],
``chunk``, and ``about``: JSON with the path, shape and dtype of every parameter and SHA-256
checksums of the plane's centre and directions. It is replaced by rename, so never half written.
"""

import dataclasses
import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densejax.io import write_npz
from densejax.landscape.directions import Plane
from densejax.typing import Tree

VALUE = "value "
# Values that are computed again agree to so much on other machines; on the same one to the bit.
TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Kept:
    """What a file holds; ``values`` are not-a-number where ``done`` is not set."""

    x: np.ndarray
    y: np.ndarray
    values: dict[str, np.ndarray]
    done: np.ndarray
    chunk: int
    about: dict[str, Any]

    def check_values(
        self, file: Path, found: dict[str, np.ndarray], first: tuple[int, int]
    ) -> None:
        """Raise ValueError unless the loss is the one that the file was computed with.

        Args:
          file: for the message.
          found: name to [2], measures at the plane's centre and at the first place.
          first: that place.
        """
        if sorted(self.values) != sorted(found):
            raise ValueError(
                f"{file} holds {', '.join(sorted(self.values))}; this loss returns "
                f"{', '.join(sorted(found))}: another loss"
            )
        if not self.done[first]:
            return
        for name, value in found.items():
            there, here = float(self.values[name][first]), float(value[1])
            if not np.isclose(there, here, rtol=TOLERANCE, atol=0, equal_nan=True):
                raise ValueError(
                    f"{file} has {name} {there:.6g} at ({self.x[first[0]]:g}, "
                    f"{self.y[first[1]]:g}), where it is {here:.6g} now: another loss"
                )


def about(plane: Plane) -> dict[str, Any]:
    """What tells one plane from another: structure, and checksums of centre and directions."""
    leaves = jax.tree_util.tree_leaves_with_path(plane.centre)
    parameters = [
        [jax.tree_util.keystr(path), list(np.shape(leaf)), str(jnp.result_type(leaf))]
        for path, leaf in leaves
    ]
    names = ("centre", "first", "second")
    return {"parameters": parameters} | {name: _checksum(getattr(plane, name)) for name in names}


def _checksum(tree: Tree) -> str:
    """SHA-256 of the bytes of all leaves."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def open_grid(file: Path, plane: Plane, x: np.ndarray, y: np.ndarray) -> Kept | None:
    """The file's grid, or None where there is no file yet.

    Raises:
      ValueError: it is no such file, or of another network, plane or grid; the difference is named.
    """
    file = Path(file)
    if not file.exists():
        return None
    kept = read(file)
    ours, theirs = about(plane), kept.about
    for mine, other in zip(ours["parameters"], theirs["parameters"], strict=False):
        if mine != other:
            raise ValueError(
                f"{file} is of another network: it has {_parameter(other)}, this one "
                f"{_parameter(mine)}"
            )
    counts = len(theirs["parameters"]), len(ours["parameters"])
    if counts[0] != counts[1]:
        raise ValueError(
            f"{file} is of another network: it has {counts[0]} parameter arrays, this one "
            f"{counts[1]}"
        )
    if ours["centre"] != theirs["centre"]:
        raise ValueError(
            f"{file} is of another network: of the same shapes, but the parameters at the plane's "
            "centre differ"
        )
    for name in ("first", "second"):
        if ours[name] != theirs[name]:
            raise ValueError(f"{file} is of another plane: its {name} direction differs")
    for name, here, there in (("x", x, kept.x), ("y", y, kept.y)):
        if here.shape != there.shape or not np.array_equal(here, there):
            raise ValueError(
                f"{file} is of another grid: {name} has {_span(there)} there, {_span(here)} here"
            )
    return kept


def read(file: Path) -> Kept:
    """A file's content; raises ValueError where it is not a surface's."""
    try:
        with np.load(file) as arrays:
            content = {name: arrays[name] for name in arrays.files}
        values = {
            name.removeprefix(VALUE): array
            for name, array in content.items()
            if name.startswith(VALUE)
        }
        return Kept(
            content["x"],
            content["y"],
            values,
            content["done"],
            int(content["chunk"]),
            json.loads(str(content["about"])),
        )
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as problem:
        if isinstance(problem, FileNotFoundError):
            raise
        raise ValueError(f"{file} is not a file of a surface: {problem}") from problem


def write(file: Path, kept: Kept) -> None:
    """Replace a file."""
    names = ("x", "y", "done", "chunk")
    arrays: dict[str, Any] = {name: getattr(kept, name) for name in names}
    arrays["about"] = json.dumps(kept.about)
    write_npz(file, arrays | {VALUE + name: value for name, value in kept.values.items()})


def _parameter(entry: list[Any]) -> str:
    path, shape, dtype = entry
    return f"{path} {shape} {dtype}"


def _span(axis: np.ndarray) -> str:
    return f"{len(axis)} points from {axis[0]:g} to {axis[-1]:g}"
