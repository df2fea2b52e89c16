"""How fast is a step of the planned 2-D network, against the same network in PyTorch?

Two windows of 256 x 256, instance norm, Dice beside cross-entropy, AdamW, one core and one thread
each; the same parameters, whose logits and loss are compared before anything is timed:

    taskset -c 0 python -m experiments.benchmarks.planned_step

Rows: the width and depth of the practitioner's script (full resolution, nine channels, five
scales), and what the plan takes on a CPU (``--stem``). PyTorch runs channels last. Both are handed
a ready window; densejax' whole step, which draws and augments its windows, has a column of its own.
Writes ``planned_step.json`` and ``planned_step.md`` after each row.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from densejax.cli import option
from densejax.data.augment import training_arrays
from densejax.data.sampling import class_table
from densejax.losses import soft_dice, weighted_cross_entropy
from densejax.models.planned_unet import PlannedUNet
from densejax.optim.named import named_optimiser
from densejax.segmentation import recipes
from experiments import segment
from experiments.benchmarks import measure

CLASSES, BATCH, RATE, DECAY = 5, 2, 1e-3, 0.01
# width, stem, scales
NETWORKS = ((9, 1, 5), (16, 2, 4), (32, 4, 4))
COLUMNS = (
    *("width", "stem", "scales", "parameters", "torch ms (cpu)", "densejax ms (cpu)"),
    *("torch / densejax", "whole step ms (cpu)", "GFLOP", "GFLOP/s", "share of ceiling"),
)


@dataclass(frozen=True)
class Config(measure.Timed):
    """How large the windows are."""

    rounds: int = option(7, "interleaved rounds that count", fast=1)
    edge: int = option(256, "of a window", unit="voxels", fast=64)


class TorchUNet(torch.nn.Module):
    """The planned network of planes, [b, 1, y, x] -> [b, c, y, x]."""

    def __init__(self, widths: Sequence[int], stem: int) -> None:
        super().__init__()
        self.stem, steps = stem, stem * stem
        names = [f"encoder{i}" for i in range(len(widths))]
        inputs = [steps, *widths[:-1]]
        self.blocks = torch.nn.ModuleDict(
            {n: _block(i, w) for n, i, w in zip(names, inputs, widths, strict=True)}
            | {f"decoder{i}": _block(2 * w, w) for i, w in enumerate(widths[:-1])}
        )
        self.ups = torch.nn.ModuleList(
            torch.nn.ConvTranspose2d(below, w, 2, 2) for w, below in itertools.pairwise(widths)
        )
        self.predictor = torch.nn.Conv2d(widths[0], CLASSES * steps, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of two windows."""
        x = torch.nn.functional.pixel_unshuffle(x, self.stem)
        skips = []
        for scale in range(len(self.ups) + 1):
            x = torch.nn.functional.max_pool2d(x, 2) if scale else x
            x = self.blocks[f"encoder{scale}"](x)
            skips.append(x)
        skips.pop()
        for scale in reversed(range(len(self.ups))):
            x = torch.cat([skips.pop(), self.ups[scale](x)], 1)
            x = self.blocks[f"decoder{scale}"](x)
        # densejax has the voxel before the class among its channels, PyTorch the other way round.
        x = self.predictor(x).unflatten(1, (self.stem**2, CLASSES)).transpose(1, 2).flatten(1, 2)
        return torch.nn.functional.pixel_shuffle(x, self.stem)


def _block(inputs: int, width: int) -> torch.nn.Sequential:
    layers: list[torch.nn.Module] = []
    for channels in (inputs, width):
        layers += [
            torch.nn.Conv2d(channels, width, 3, padding=1, bias=False),
            torch.nn.InstanceNorm2d(width, affine=True),
            torch.nn.LeakyReLU(0.01, inplace=True),
        ]
    return torch.nn.Sequential(*layers)


def load(model: TorchUNet, params: Any) -> TorchUNet:
    """Copy the parameters of ``PlannedUNet``."""

    def put(target: Any, values: Any, *axes: int) -> None:
        array = np.asarray(values)
        array = array[0].transpose(axes) if axes else array
        with torch.no_grad():
            target.copy_(torch.tensor(np.ascontiguousarray(array)))

    blocks: dict[str, Any] = dict(model.blocks.items())
    for name, block in blocks.items():
        for index in (0, 1):
            layer = params[f"{name}_conv{index}"]
            put(block[3 * index].weight, layer["kernel"], 3, 2, 0, 1)
            put(block[3 * index + 1].weight, layer["norm"]["scale"])
            put(block[3 * index + 1].bias, layer["norm"]["shift"])
    ups: list[Any] = list(model.ups)
    for index, up in enumerate(ups):
        put(up.weight, params[f"up{index}"]["kernel"], 2, 3, 0, 1)
        put(up.bias, params[f"up{index}"]["bias"])
    put(model.predictor.weight, params["predictor"]["kernel"], 3, 2, 0, 1)
    put(model.predictor.bias, params["predictor"]["bias"])
    return model


def torch_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Dice of the batch and cross-entropy."""
    shares = torch.softmax(logits, 1)
    truth = torch.nn.functional.one_hot(labels, CLASSES).movedim(-1, 1)
    axes = (0, 2, 3)
    dice = (2 * (shares * truth).sum(axes) + 1e-5) / (shares.sum(axes) + truth.sum(axes) + 1e-5)
    return torch.nn.functional.cross_entropy(logits, labels) + 1 - dice.mean()


def contenders(network: tuple[int, int, int], edge: int) -> tuple[measure.Calls, measure.Row]:
    """A step of each library, and of densejax with its drawing; what the network is.

    Raises:
      ValueError: the libraries' losses or logits differ.
    """
    width, stem, scales = network
    config = recipes.settle(
        segment.Config(
            recipe_version=1,
            network="planned_unet",
            stem=stem,
            strides=(f"1x{stem}x{stem}", *("1x2x2",) * (scales - 1)),
            kernels=("1x3x3",) * scales,
            width=width,
            window=(1, edge, edge),
            norm="instance",
            batch=BATCH,
            class_share=0.5,
            reject_empty=0.0,
            loss="dice",
            optimiser="adamw",
            schedule="polynomial",
            learning_rate=RATE,
            steps=1000,
        ),
        None,
    )
    model: PlannedUNet
    model, task = segment.build(config, CLASSES)
    rng = np.random.default_rng(0)
    shape = (8, edge + 64, edge + 64)
    labels = rng.integers(0, CLASSES, shape).astype(np.int32)
    volume = training_arrays(rng.standard_normal(shape, np.float32), labels, weights=np.ones(shape))
    data = {
        name: jnp.asarray(array)
        for name, array in (dict(volume) | class_table(labels, CLASSES)).items()
    }
    state = jax.jit(lambda key: task.init(key, {}))(jax.random.key(0))
    params = state["params"]
    images = jnp.asarray(rng.standard_normal((BATCH, 1, edge, edge, 1), np.float32))
    truth = jnp.asarray(rng.integers(0, CLASSES, (BATCH, 1, edge, edge)).astype(np.int32))
    optimiser = named_optimiser("adamw", weight_decay=DECAY)

    def loss(params: Any) -> Any:
        logits = model.apply(params, images)[0]
        return soft_dice(logits, truth) + weighted_cross_entropy(logits, truth), logits

    @jax.jit
    def update(params: Any, moments: Any) -> Any:
        gradient = jax.grad(loss, has_aux=True)(params)[0]
        updates, moments = optimiser.update(gradient, moments, params)
        return optax.apply_updates(params, jax.tree.map(lambda u: -RATE * u, updates)), moments

    peer = load(TorchUNet([width * 2**i for i in range(scales)], stem), params["params"])
    peer = peer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    adam = torch.optim.AdamW(peer.parameters(), lr=RATE, weight_decay=DECAY)
    x = torch.tensor(np.asarray(images)[:, 0].transpose(0, 3, 1, 2))
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.tensor(np.asarray(truth)[:, 0].astype(np.int64))
    value, logits = jax.jit(loss)(params)
    with torch.inference_mode():
        found = peer(x)
        expected = torch_loss(found, y).item()
    there = found.permute(0, 2, 3, 1)[:, None].numpy()
    measure.agreed("densejax' loss", value, expected, tolerance=1e-4)
    measure.agreed("densejax' logits", logits, there, tolerance=1e-3)

    def theirs() -> Any:
        adam.zero_grad(set_to_none=True)
        torch_loss(peer(x), y).backward()
        adam.step()

    kept = {"params": params, "moments": optimiser.init(params), "state": state}

    def ours() -> Any:
        kept["params"], kept["moments"] = update(kept["params"], kept["moments"])
        return kept["params"]

    whole = jax.jit(lambda state: task.step(state, data)[0], donate_argnums=0)

    def with_drawing() -> Any:
        kept["state"] = whole(kept["state"])
        return kept["state"]["params"]

    bound = measure.floor(jax.grad(lambda p: loss(p)[0]), params)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    facts = {
        "width": width,
        "stem": stem,
        "scales": scales,
        "parameters": count,
        **bound,
        "GFLOP": bound["gflop"],
    }
    return {"torch": theirs, measure.OURS: ours, "whole step": with_drawing}, facts


def run(config: Config) -> None:
    """Measure each network."""
    torch.set_num_threads(1)
    product = "jax matmul GFLOP/s"
    ceilings = {product: measure.matmul_gflops(), "copy GB/s": measure.copy_gigabytes()}
    title = "A step of the planned network against PyTorch"
    report = measure.Report("planned_step", title, COLUMNS, config, ceilings=ceilings)
    for network in report.each(NETWORKS, called="width {0[0]}, stem {0[1]}".format):
        calls, facts = contenders(network, config.edge)
        row = facts | measure.compared(calls, rounds=config.rounds)
        rate = facts["gflop"] / row["densejax ms (cpu)"]["wall_ms"] * 1e3
        report.rows.append(row | {"GFLOP/s": rate, "share of ceiling": rate / ceilings[product]})


if __name__ == "__main__":
    measure.main(Config, run, description=__doc__)
