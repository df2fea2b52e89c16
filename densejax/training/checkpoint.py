"""Checkpoints: trees of NumPy arrays on disk, whole or absent. The only module that imports orbax.

Orbax writes into a temporary folder and renames it, so a kill leaves either the whole checkpoint or
a leftover that is ignored. Every checkpoint carries a checksum of its arrays; one that cannot be
read or does not match is passed over for the one before it, with a warning that says so. The arrays
are stored flat under their path names, so that any tree structure (optax's named tuples included)
comes back without pickling a type.
"""

import shutil
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from densejax.io import free_bytes
from densejax.typing import Tree

CHECKSUM = "checksum"


class DamagedError(ValueError):
    """A checkpoint that cannot be read, or whose arrays do not match its checksum."""


def save_tree(folder: Path, tree: Tree) -> None:
    """Write a tree of arrays as one orbax checkpoint, replacing nothing.

    Args:
      folder: path of the checkpoint; must not exist.
      tree: tree of arrays.

    Raises:
      FileExistsError: ``folder`` exists.
      OSError: it cannot be written (disk full, no permission); the message names the folder.
    """
    folder = folder.absolute()
    if folder.exists():
        raise FileExistsError(f"checkpoint {folder} exists already and is not written over")
    arrays = _named_arrays(tree)
    arrays[CHECKSUM] = np.uint32(_checksum(arrays)).reshape(1)
    import orbax.checkpoint as ocp

    checkpointer = ocp.StandardCheckpointer()
    try:
        checkpointer.save(folder, arrays)
        checkpointer.wait_until_finished()
    except Exception as error:
        free = free_bytes(folder)
        size = sum(array.nbytes for array in arrays.values())
        raise OSError(
            f"could not write checkpoint {folder} ({size / 1e6:.1f} MB; {free / 1e6:.1f} MB free "
            f"on its disk): {error}"
        ) from error
    finally:
        checkpointer.close()


def restore_tree(folder: Path, template: Tree) -> Tree:
    """Read a tree that ``save_tree`` wrote.

    Args:
      folder: path of the checkpoint.
      template: tree of arrays or ``jax.ShapeDtypeStruct`` with the expected structure.

    Returns:
      A tree like ``template`` with NumPy arrays.

    Raises:
      FileNotFoundError: no such checkpoint.
      DamagedError: it is unreadable or damaged; a ValueError.
      ValueError: it holds other arrays than the template.
    """
    arrays = _read(folder)
    leaves, structure = jax.tree_util.tree_flatten_with_path(template)
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    if set(names) != set(arrays):
        odd = sorted(set(names) ^ set(arrays))
        raise ValueError(f"checkpoint {folder} holds other arrays than expected, such as {odd[0]}")
    for name, (_, leaf) in zip(names, leaves, strict=True):
        found, expected = arrays[name], (tuple(leaf.shape), np.dtype(leaf.dtype))
        if (found.shape, found.dtype) != expected:
            raise ValueError(
                f"checkpoint {folder}, array {name}: found {found.dtype}{list(found.shape)}, "
                f"expected {expected[1]}{list(expected[0])}"
            )
    return jax.tree_util.tree_unflatten(structure, [arrays[name] for name in names])


def save_step(folder: Path, step: int, tree: Tree, *, keep: int = 2) -> Path:
    """Write the checkpoint of a step, then delete all but the ``keep`` newest.

    A checkpoint of the same step that stands already (an earlier, killed run) is kept: the same
    instance at the same step has the same bits.
    """
    target = folder / f"{step:010d}"
    if not target.exists():
        save_tree(target, tree)
    for old in _steps(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def restore_newest(
    folder: Path, template: Tree, *, report: Callable[[str], None] = warnings.warn
) -> Tree | None:
    """The newest whole checkpoint below ``folder``, or None where there is none.

    A damaged one is reported, removed and passed over for the one before it.

    Raises:
      ValueError: a whole one holds other arrays than the template; nothing is removed.
    """
    for candidate in reversed(_steps(folder)):
        try:
            return restore_tree(candidate, template)
        except DamagedError as error:
            report(f"passing over a damaged checkpoint: {error}")
            shutil.rmtree(candidate, ignore_errors=True)
    return None


def _steps(folder: Path) -> list[Path]:
    if not folder.exists():
        return []
    return sorted(path for path in folder.iterdir() if path.name.isdigit())


def _named_arrays(tree: Tree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_flatten_with_path(jax.device_get(tree))[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def _checksum(arrays: dict[str, np.ndarray]) -> int:
    code = 0
    for name in sorted(arrays):
        code = zlib.crc32(np.ascontiguousarray(arrays[name]).tobytes(), code)
    return code


def _read(folder: Path) -> dict[str, np.ndarray]:
    folder = folder.absolute()
    if not folder.is_dir():
        raise FileNotFoundError(f"no checkpoint at {folder}")
    import orbax.checkpoint as ocp

    checkpointer: Any = ocp.StandardCheckpointer()
    try:
        with warnings.catch_warnings():
            # Orbax warns that a checkpoint read without a sharding lands on one device; it is
            # turned into NumPy arrays at once.
            warnings.simplefilter("ignore")
            stored = checkpointer.restore(folder)
        arrays = {name: np.asarray(array) for name, array in stored.items()}
    except Exception as error:
        raise DamagedError(f"checkpoint {folder} cannot be read: {error}") from error
    finally:
        checkpointer.close()
    expected = arrays.pop(CHECKSUM, None)
    if expected is None or int(expected[0]) != _checksum(arrays):
        raise DamagedError(
            f"checkpoint {folder} is damaged: its checksum does not match its arrays"
        )
    return arrays
