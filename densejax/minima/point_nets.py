"""A fully connected network that learns points of the plane, and its class probabilities there.

A run's folder keeps its problem, so that whatever looks at the minima later evaluates the same loss
on the same points without knowing which experiment made them.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from densejax.data.points import Points
from densejax.io import write_npz
from densejax.losses import weighted_cross_entropy
from densejax.minima.poisoning import class_logits
from densejax.models.mlp import MLP
from densejax.typing import Array, Batch, Key, Params

SETS = ("train", "test", "poison")


@dataclass(frozen=True, eq=False)
class PointNet:
    """Points, the network, and its loss on the training set.

    Attributes:
      train: what the loss is of.
      test: only ever evaluated.
      poison: unseen points with their true labels.
      widths: of the hidden layers.
      logits: 1 (the log-odds of class 1) or 2.
      initialiser: of ``MLP``.
    """

    train: Points
    test: Points
    poison: Points
    widths: tuple[int, ...]
    logits: int = 1
    initialiser: Literal["pytorch", "glorot_uniform", "glorot_normal"] = "pytorch"

    @property
    def model(self) -> MLP:
        """The network."""
        return MLP(self.logits, widths=self.widths, initialiser=self.initialiser)

    def init_variables(self, key: Key) -> Params:
        """Fresh variables ``{"params": ...}``."""
        return self.model.init(key, jnp.zeros((1, 2)))

    def data(self) -> Batch:
        """What a ``PoisonTask`` learns from; sets without a point are left out."""
        found = {"inputs": self.train.points, "labels": self.train.labels}
        for name in ("test", "poison"):
            part = getattr(self, name)
            if len(part):
                found |= {f"{name}_inputs": part.points, f"{name}_labels": part.labels}
        return {name: np.asarray(array) for name, array in found.items()}

    def logits_of(self, variables: Params, inputs: Array) -> jax.Array:
        """Logits [b, 2] of two classes at [b, 2] places."""
        return class_logits(self.model.apply(variables, jnp.asarray(inputs))[0])  # type: ignore[index]

    def hidden(self, variables: Params, inputs: Array) -> list[jax.Array]:
        """Values [b, width] of each hidden layer, after the ReLU, at [b, 2] places."""
        _, out = self.model.apply(variables, jnp.asarray(inputs))  # type: ignore[misc]
        return [out[f"hidden{i}"] for i in range(len(self.widths))]

    def loss(self, variables: Params) -> jax.Array:
        """Mean cross-entropy of the training set, without poison and penalties."""
        logits = self.logits_of(variables, self.train.points)
        return weighted_cross_entropy(logits, self.train.labels)

    def accuracy(self, variables: Params, points: Points) -> jax.Array:
        """Part of the points that is called what it is; at odds of one, class 0."""
        hits = jnp.argmax(self.logits_of(variables, points.points), axis=-1) == points.labels
        return jnp.mean(hits.astype(jnp.float32))


def save_problem(folder: Path, problem: PointNet) -> None:
    """Write ``problem.npz``, whole or not at all; one that says the same is left.

    Raises:
      ValueError: another problem is there.
    """
    path = Path(folder) / "problem.npz"
    if path.exists():
        check_same(problem, load_problem(folder), path)
    else:
        write_npz(path, _arrays(problem))


def load_problem(folder: Path) -> PointNet:
    """Read what ``save_problem`` wrote.

    Raises:
      FileNotFoundError: the folder has no ``problem.npz``.
      ValueError: it is of another form.
    """
    path = Path(folder) / "problem.npz"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist: expected the folder of a run of swissroll, minefield or rings"
        )
    with np.load(path) as stored:
        missing = sorted({*_names(), "network"} - set(stored.files))
        if missing:
            raise ValueError(f"{path} lacks {missing}")
        sets: dict[str, Any] = {
            name: Points(stored[f"{name}_points"], stored[f"{name}_labels"]) for name in SETS
        }
        network = json.loads(str(stored["network"]))
    return PointNet(**sets, **(network | {"widths": tuple(network["widths"])}))


def check_same(first: PointNet, second: PointNet, path: Path) -> None:
    """Raises: ValueError, naming the array, where two problems differ."""
    ours, theirs = _arrays(first), _arrays(second)
    for name, array in ours.items():
        if not np.array_equal(array, theirs[name]):
            raise ValueError(f"{path} holds another problem: {name} differs; name another workdir")


def _names() -> list[str]:
    return [f"{name}_{part}" for name in SETS for part in ("points", "labels")]


def _arrays(problem: PointNet) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in SETS:
        part = getattr(problem, name)
        found |= {f"{name}_points": part.points, f"{name}_labels": part.labels}
    network = {f.name: getattr(problem, f.name) for f in fields(problem) if f.name not in SETS}
    found["network"] = json.dumps(network)
    return {name: np.asarray(value) for name, value in found.items()}


def no_points() -> Points:
    """A set without a point."""
    return Points(np.zeros((0, 2), np.float32), np.zeros(0, np.int32))


# ---- what networks say of every place of a plane ----


def plane_grid(
    *, span: float = 18.0, points: int = 500, centre: tuple[float, float] = (0.0, 0.0)
) -> tuple[np.ndarray, np.ndarray]:
    """Evenly spaced places of both axes, ends included; the published grid is 500 x 500 on +-18.

    Args:
      span: distance of the ends from the centre, in units of the inputs, above 0.
      points: along each axis, p = q, at least 2.
      centre: x and y.

    Returns:
      x [p] and y [q], float64.

    Raises:
      ValueError: ``span`` or ``points`` is out of its range.
    """
    if span <= 0 or points < 2:
        raise ValueError(f"grid of {points} points on +-{span}: expected at least 2 on more than 0")
    x, y = (np.linspace(c - span, c + span, points) for c in centre)
    return x, y


def class_probabilities(
    logits_of: Callable[[Params, jax.Array], jax.Array],
    params: Params,
    grid_x: Array,
    grid_y: Array,
    *,
    stacked: bool = False,
    chunk: int = 5000,
) -> np.ndarray:
    """Class probabilities at every place of a grid.

    Args:
      logits_of: ``(params, inputs [b, 2]) -> logits [b, c]``; one logit is the log-odds of class 1.
      params: of one network, or of many with ``stacked``: every leaf [k, ...].
      grid_x: [p] first inputs.
      grid_y: [q] second inputs.
      stacked: whether ``params`` are of many; they are evaluated one after another.
      chunk: places at once.

    Returns:
      [p, q, c], or [k, p, q, c], float32; [..., i, j, :] is at (grid_x[i], grid_y[j]).

    Raises:
      ValueError: a grid has not one axis, or ``chunk`` is below 1.
    """
    x, y = np.asarray(grid_x, np.float32), np.asarray(grid_y, np.float32)
    if x.ndim != 1 or y.ndim != 1 or not x.size or not y.size:
        raise ValueError(f"grid_x {x.shape} and grid_y {y.shape}: expected [p] and [q]")
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; expected at least 1")
    places = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1).reshape(-1, 2)
    number, size = len(places), min(chunk, len(places))
    # The last chunk repeats places in front of it, so that all have one shape.
    starts = np.minimum(np.arange(0, number, size), number - size)

    @jax.jit
    def some(one: Params, part: jax.Array) -> jax.Array:
        return jax.nn.softmax(class_logits(logits_of(one, part)), axis=-1)

    def whole(one: Params) -> np.ndarray:
        found: np.ndarray | None = None
        for start in starts:
            part = np.asarray(some(one, jnp.asarray(places[start : start + size])))
            found = np.empty((number, part.shape[-1]), np.float32) if found is None else found
            found[start : start + size] = part
        assert found is not None
        return found.reshape(len(x), len(y), -1)

    if not stacked:
        return whole(params)
    count = jax.tree.leaves(params)[0].shape[0]
    return np.stack([whole(jax.tree.map(lambda leaf, i=i: leaf[i], params)) for i in range(count)])
