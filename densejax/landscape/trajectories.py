"""Training runs: their iterates, what restarts begin from, and where these lie on a plane."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import lax

from densejax.io import read_npz, write_npz
from densejax.landscape.compiled import compiled, remembered
from densejax.landscape.directions import Plane
from densejax.landscape.objective import LossFunction, measures_of
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


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """The iterates of a training run as a plane shows them, and what it hides.

    Attributes:
      coordinates: [t, 2] float64, of the nearest point of the plane (least squares).
      residual: [t] float64, the Euclidean distance from it.
      values: [t] float64 each, by name ('loss' is one): the true measures of the iterates.
      plane_values: [t] float64 each, the measures of the nearest points, which are the surface's.
    """

    coordinates: np.ndarray
    residual: np.ndarray
    values: dict[str, np.ndarray]
    plane_values: dict[str, np.ndarray]


def trajectory_on_plane(
    plane: Plane, iterates: Tree, loss_fn: LossFunction, *, block: int = 64
) -> Trajectory:
    """Where the iterates of a run lie on a plane, how far off it, and their true losses.

    The contours of a surface are losses of the plane, not of iterates beside it: a trajectory drawn
    over them has their losses only where the residual is small.

    Args:
      plane: any, such as ``directions.pca_plane``.
      iterates: tree of [t, ...] in the order of training; may be NumPy arrays (memory maps), of
        which ``block`` iterates are on the device at a time.
      loss_fn: of parameters; returns a scalar or ``{name: scalar}`` with ``loss`` in it.
      block: iterates a call, at least 1; one after another within.

    Returns:
      Coordinates, residuals, measures of the iterates and of their nearest points of the plane.

    Raises:
      ValueError: ``block`` is below 1, there are no iterates, or they are not like the plane's
        centre.
    """
    count = min((len(leaf) for leaf in jax.tree.leaves(iterates)), default=0)
    if block < 1 or not count:
        raise ValueError(f"{count} iterates in blocks of {block}: expected at least 1 both")
    program = _measured(loss_fn)
    places, residuals, parts = [], [], []
    for start in range(0, count, block):
        some = jax.tree.map(lambda leaf, start=start: leaf[start : start + block], iterates)
        for index in range(min(block, count - start)):
            place, residual = plane.coordinates(
                jax.tree.map(lambda leaf, index=index: leaf[index], some)
            )
            places.append(place)
            residuals.append(residual)
        parts.append(jax.device_get(program(plane, some, np.array(places[start:], np.float32))))
    joined = jax.tree.map(lambda *each: np.concatenate(each).astype(np.float64), *parts)
    return Trajectory(np.array(places), np.array(residuals), *joined)


@remembered
def _measured(loss_fn: LossFunction) -> Callable[[Plane, Tree, np.ndarray], tuple[dict, dict]]:
    """Program: measures of iterates [t, ...] and of a plane's points at [t, 2]."""
    measures = measures_of(loss_fn)

    def measured(plane: Plane, iterates: Tree, places: jax.Array) -> tuple[dict, dict]:
        with jax.default_matmul_precision("highest"):
            on_plane = lax.map(lambda place: measures(plane.at(place[0], place[1])), places)
            return lax.map(measures, iterates), on_plane

    return compiled(measured)
