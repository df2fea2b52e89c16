"""Parameters along one training run: what restarts begin from and what a path is drawn through."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from densejax.io import read_npz, write_npz
from densejax.training.task import Task
from densejax.typing import Batch, Key, Params, Tree


def iterates(
    key: Key, task: Task, data: Batch, *, steps: int, every: int = 1, settings: Tree = None
) -> Params:
    """Train one instance and keep its parameters along the way, in one compiled program.

    Args:
      key: of the instance, a jax key.
      task: what it is.
      data: as the task takes it.
      steps: updates; a rest that is no whole ``every`` is left out.
      every: updates between two that are kept.
      settings: of the instance; None is none.

    Returns:
      Parameters after ``every``, ``2 * every``, ... updates, stacked [t, ...], NumPy.

    Raises:
      ValueError: ``steps`` and ``every`` leave nothing to keep, or parameters are not finite in
        the end.
    """
    if every < 1 or steps < every:
        raise ValueError(f"iterates: steps={steps} and every={every} keep no parameters")

    def run(key: Key, shared: Batch) -> Tree:
        def stretch(state: Tree, _: None) -> tuple[Tree, Tree]:
            state = jax.lax.fori_loop(0, every, lambda _, s: task.step(s, shared)[0], state)
            return state, task.parameters(state)

        return jax.lax.scan(stretch, task.init(key, settings or {}), None, length=steps // every)[1]

    kept = jax.device_get(jax.jit(run)(key, dict(data)))
    if not all(np.isfinite(leaf[-1]).all() for leaf in jax.tree.leaves(kept)):
        raise ValueError("iterates: the run diverged; its last parameters are not finite")
    return kept


def kept_iterates(
    key: Key, task: Task, data: Batch, *, steps: int, every: int, path: Path, settings: Tree = None
) -> Params:
    """``iterates``, from a file where it has been made before.

    Args:
      key: of the instance, a jax key.
      task: what it is.
      data: as the task takes it.
      steps: updates.
      every: updates between two that are kept.
      path: of the ``.npz``; made whole or not at all.
      settings: of the instance; None is none.

    Returns:
      As ``iterates``.

    Raises:
      ValueError: as ``iterates``, or the file holds other arrays.
    """
    shapes: Any = jax.eval_shape(
        lambda key: task.parameters(task.init(key, settings or {})), jax.random.key(0)
    )
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    expected = {jax.tree_util.keystr(name): (steps // every, *leaf.shape) for name, leaf in leaves}
    if path.exists():
        found = read_npz(path)
        if (shapes_found := {name: array.shape for name, array in found.items()}) != expected:
            raise ValueError(f"{path} holds {shapes_found}; expected {expected}")
        return jax.tree.unflatten(structure, [found[name] for name in expected])
    kept = iterates(key, task, data, steps=steps, every=every, settings=settings)
    write_npz(path, dict(zip(expected, jax.tree.leaves(kept), strict=True)))
    return kept
