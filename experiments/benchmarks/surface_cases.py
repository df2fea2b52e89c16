"""What ``experiments.benchmarks.surfaces`` measures: a network, its loss, a plane, and the loops.

Weights are PyTorch's own draw and the plane is drawn on its state dict, so the filters are on the
first axis; both go into densejax's networks by transposition. Both sides take the loss and the
accuracy of every point.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from densejax.data import points
from densejax.landscape.directions import Plane, first_axis, random_plane
from densejax.landscape.objective import LossFunction, over_batches
from densejax.landscape.surfaces import evaluate, surface
from densejax.models.convert import resnet_from_torch
from densejax.models.mlp import MLP
from densejax.models.resnet import resnet20
from densejax.typing import Params, Tree
from experiments.benchmarks import measure, torch_surfaces

# 2 -> 23 -> 16 -> 26 -> 32 -> 28 -> 31 -> 1: the swiss-roll network of the thesis.
WIDTHS = (2, 23, 16, 26, 32, 28, 31, 1)
CLASSES, PICTURE = 10, 32
OURS, LEAN, TUNED, LOADER = "densejax", "lean", "tuned", "loader"
BATCHES = (500, 125, 25)
# The whole plane, which a lap of a small network takes in full.
GRID = 51
SEED = 0


@dataclass
class Case:
    """One network on one plane.

    Attributes:
      loss_fn: densejax's.
      plane: densejax's.
      peer: PyTorch's, of the same weights, data and directions.
      coordinates: [p, 2] of a lap.
      whole: whether a lap is the whole plane.
      draw_seconds: what drawing the plane took, the first one of a process.
      settings: what was found fastest, by contender.
    """

    loss_fn: LossFunction
    plane: Plane
    peer: torch_surfaces.Peer
    coordinates: np.ndarray
    whole: bool
    draw_seconds: float
    settings: dict[str, Any]

    def ours(self) -> np.ndarray:
        """densejax's loss and accuracy at the coordinates, [p, 2]."""
        if self.whole:
            found = surface(self.loss_fn, self.plane, points=GRID, progress=False).values
        else:
            found = evaluate(self.loss_fn, self.plane, self.coordinates)
        return np.stack([found[name].ravel() for name in ("loss", "accuracy")], axis=1)

    def loop(self, contender: str) -> np.ndarray:
        """The same of a loop in PyTorch."""
        settings = dict(self.settings[contender])
        torch.set_num_threads(settings.pop("threads"))
        call = self.peer.loader if contender == LOADER else self.peer.lean
        return call(self._pairs(), **settings).numpy()

    def _pairs(self) -> list[tuple[float, float]]:
        return [(float(x), float(y)) for x, y in self.coordinates]

    def calls(self, contenders: Sequence[str]) -> dict[str, Callable[[], np.ndarray]]:
        """A call a contender."""
        return {
            name: self.ours if name == OURS else partial(self.loop, name) for name in contenders
        }

    def tune(self, contenders: Sequence[str]) -> None:
        """Find the number of threads, and of 'tuned' the batch and layout, that are fastest."""
        few = self._pairs()[: 1 if self.peer.inputs.ndim == 4 else 100]
        for name in contenders:
            if name == OURS:
                continue
            options: list[dict[str, Any]] = [{}]
            if name == TUNED:
                options = [
                    {"batch": b, "channels_last": last} for b in BATCHES for last in (False, True)
                ]
            self.settings[name] = self._fastest(name, few, options)

    def _fastest(
        self, name: str, few: list[tuple[float, float]], options: list[dict[str, Any]]
    ) -> dict[str, Any]:
        call = self.peer.loader if name == LOADER else self.peer.lean
        seconds = {}
        for threads in sorted({1, torch.get_num_threads()}):
            for place, option in enumerate(options):
                torch.set_num_threads(threads)
                run = partial(call, few, **option)
                seconds[threads, place] = measure.best_seconds(run, repeats=2)
        threads, place = min(seconds, key=lambda one: seconds[one])
        return {"threads": threads} | options[place]


def swissroll(samples: int, *, side: int = GRID) -> Case:
    """The swiss-roll network with its draw of PyTorch on so many points, the whole plane a lap."""
    torch.manual_seed(0)
    model = torch_surfaces.mlp(WIDTHS).eval()
    roll = points.swiss_roll(jax.random.key(SEED), samples // 2)
    x, labels = jnp.asarray(roll.points), jnp.asarray(roll.labels)
    net = MLP(1, widths=WIDTHS[1:-1])

    def loss(params: Params) -> dict[str, jax.Array]:
        z = net.apply({"params": params}, x)[0][:, 0]
        # Sigmoid cross-entropy.
        losses = jnp.logaddexp(0, z) - labels * z
        return {"loss": losses.mean(), "accuracy": ((z > 0) == (labels > 0)).mean()}

    def tree(state: dict[str, np.ndarray]) -> Tree:
        layers = [f"linear{i}" for i in range(len(WIDTHS) - 2)] + ["head"]
        return {
            layer: {
                "kernel": jnp.asarray(state[f"{2 * i}.weight"].T),
                "bias": jnp.asarray(state[f"{2 * i}.bias"]),
            }
            for i, layer in enumerate(layers)
        }

    return _case(loss, model, tree, np.asarray(x), np.asarray(labels), side, whole=side == GRID)


def resnet(samples: int, *, side: int, batch: int) -> Case:
    """ResNet-20 on so many pictures of noise, moments frozen; a lap is a coarse plane.

    Args:
      samples: pictures.
      side: points of a lap along each axis.
      batch: pictures that densejax reads at once; PyTorch's lean loop reads all.
    """
    torch.manual_seed(0)
    model = torch_surfaces.ResNet20(CLASSES).eval()
    rng = np.random.default_rng(0)
    pictures = rng.normal(size=(samples, PICTURE, PICTURE, 3)).astype(np.float32)
    labels = rng.integers(0, CLASSES, samples)
    net = resnet20(CLASSES)
    blank = jnp.zeros((1, PICTURE, PICTURE, 3))
    shapes = jax.eval_shape(net.init, jax.random.key(SEED), blank)
    buffers = {name: value.numpy() for name, value in model.named_buffers()}

    def variables(state: dict[str, np.ndarray]) -> Tree:
        return resnet_from_torch(state | buffers, shapes)

    moments = variables(_state(model))["batch_stats"]

    def loss(params: Params, batch: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
        x, y = batch
        logits, _ = net.apply({"params": params, "batch_stats": moments}, x)
        true = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1)
        return {"loss": -true.mean(), "accuracy": (logits.argmax(axis=1) == y).mean()}

    data = (jnp.asarray(pictures), jnp.asarray(labels))
    case = _case(
        over_batches(loss, data, size=min(batch, samples)),
        model,
        lambda state: variables(state)["params"],
        pictures.transpose(0, 3, 1, 2).copy(),
        labels,
        side,
        whole=False,
    )
    case.settings[OURS] = {"batch": batch}
    return case


def _case(
    loss_fn: LossFunction,
    model: torch.nn.Module,
    tree: Callable[[dict[str, np.ndarray]], Tree],
    inputs: np.ndarray,
    labels: np.ndarray,
    side: int,
    *,
    whole: bool,
) -> Case:
    state = _state(model)
    start = time.perf_counter()
    drawn = random_plane(jax.random.key(1), state, axes=first_axis(state))
    draw_seconds = time.perf_counter() - start
    first, second = (
        {name: np.asarray(value) for name, value in direction.items()}
        for direction in (drawn.first, drawn.second)
    )
    plane = Plane(*(tree(part) for part in (state, first, second)))
    axis = np.linspace(-1, 1, side)
    coordinates = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    device = "cpu" if jax.default_backend() == "cpu" or not torch.cuda.is_available() else "cuda"

    def on_device(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        return {name: torch.tensor(value, device=device) for name, value in arrays.items()}

    peer = torch_surfaces.Peer(
        model.to(device),
        torch.tensor(inputs, device=device),
        torch.tensor(labels, dtype=torch.int64, device=device),
        on_device(first),
        on_device(second),
    )
    every: dict[str, Any] = {
        name: {"threads": torch.get_num_threads()} for name in (LEAN, TUNED, LOADER)
    }
    return Case(loss_fn, plane, peer, coordinates, whole, draw_seconds, every | {OURS: {}})


def _state(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: p.detach().cpu().numpy().copy() for name, p in model.named_parameters()}
