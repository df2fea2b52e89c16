"""What do pictures teach an encoder without their labels?

Trains a population of encoders on 32-pixel pictures by SimCLR or MoCo v2, all seeds in one compiled
program; ranks them while they train by their nearest neighbours (a tenth of the training pictures
against the others; the labels teach nothing); reports the neighbours' accuracy on the test set,
which neither training nor ranking has seen; and leaves each seed's encoder for the rounds of active
learning.

Data: CIFAR-10, its exponentially imbalanced part, or SVHN, in their official files.

    python -m experiments.pretrain --data=cifar10 --data_folder=data --method=simclr --width=16 \\
        --epochs=50 --seeds=0:2 --workdir=runs/simclr
    python -m experiments.active --pretrained=runs/simclr/seeds/0000 ...

Result: ``seeds/<seed>/encoder/`` and ``encoder.json``, ``summary/scores.csv``, curves of the loss
and of the neighbours' accuracy. The same command again continues; more ``--seeds`` extend it.
Published setting: ``--width=64 --batch=512 --epochs=500``. Expected runtime: a seed of the command
above takes about 1.9 s of one core for a batch of 128 (measured), from which 50 epochs of 4000
pictures are estimated to take half an hour on two free cores.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from densejax.classification.contrastive import ContrastiveTask, MoCoTask, SimCLRTask
from densejax.classification.encoder_report import Summary, contrastive_data, summarise_encoders
from densejax.classification.pretrained import Encoder
from densejax.cli import (
    SweepOptions,
    main,
    option,
    parse_grid,
    seeds_option,
    start_folder,
)
from densejax.data.vision import (
    LabelledImages,
    exponentially_imbalanced,
    load_cifar10,
    load_svhn,
)
from densejax.training.folders import members_of
from densejax.training.sweep import Schedule

# Settings that change no trained number: a run may go on with others.
VARYING = ("seeds", "slots", "strategy", "grid", "data_folder")
IMBALANCE = 0.1


@dataclass(frozen=True)
class Config(SweepOptions):
    """Everything that decides a result."""

    data: Literal["cifar10", "imbalanced_cifar10", "svhn"] = option("cifar10", "what to learn from")
    data_folder: str = option("data", "folder of the set's official files")
    verify: bool = option(False, "compare the files with their official checksums first")
    method: Literal["simclr", "moco"] = option("simclr", "SimCLR, or MoCo v2")
    architecture: Literal["resnet18", "resnet50", "resnet20"] = option("resnet18", "of the encoder")
    width: int = option(16, "channels of the first stage (published: 64)")
    epochs: int = option(50, "times through the pictures; the rate falls over all of them", fast=1)
    pictures: int = option(
        0,
        "take the first so many of either set only; 0 takes all",
        fast=lambda config: 2 * config.batch,
    )
    batch: int = option(128, "pictures a step, each seen twice")
    optimiser: Literal["sgd", "adam"] = option("sgd", "SGD with momentum 0.9, or Adam")
    learning_rate: float | None = option(
        None, "highest rate; none is batch / 512 x 0.4 (simclr) or 0.06 (moco), with adam 1e-3"
    )
    weight_decay: float = option(1e-4, "factor on half the squares of the parameters")
    warmup_epochs: float = option(0.0, "over which the rate rises", unit="epochs")
    temperature: float | None = option(None, "of the loss; none is 0.5 (simclr) or 0.2 (moco)")
    projection: int = option(128, "numbers a projection has")
    momentum: float = option(0.99, "moco: share of the key encoder that stays a step")
    queue: int = option(4096, "moco: keys remembered, a multiple of the batch")
    norm_groups: int = option(8, "moco: parts of a batch normed apart, a divisor of the batch")
    grid: str = option("", "settings x seeds, such as learning_rate=0.1,0.3;temperature=0.2,0.5")
    evaluation_share: float = option(0.1, "of the training pictures, judged by the others")
    neighbours: int = option(200, "that vote on a picture's class, at most")
    evaluate_every: int = option(5, "interval of evaluations", unit="epochs", fast=1)
    checkpoint_every: int = option(5, "interval of checkpoints", unit="epochs", fast=1)
    keep: Literal["last", "best"] = option(
        "last", "which encoder is left; best is chosen by labels of the training pictures"
    )
    dtype: Literal["float32", "bfloat16"] = option("float32", "of the encoder's computation")
    seeds: tuple[int, ...] = seeds_option(0)


def load(config: Config) -> tuple[LabelledImages, LabelledImages]:
    """Training and test pictures."""
    official = load_svhn if config.data == "svhn" else load_cifar10
    train, test = official(config.data_folder, verify=config.verify)
    if config.data == "imbalanced_cifar10":
        train = exponentially_imbalanced(jax.random.key(98), train, ratio=IMBALANCE)
    return _first(train, config.pictures), _first(test, config.pictures)


def _first(part: LabelledImages, n: int) -> LabelledImages:
    return replace(part, images=part.images[:n], labels=part.labels[:n]) if n else part


def build(config: Config, train: LabelledImages) -> ContrastiveTask:
    """The task of a configuration."""
    origin = f"{config.method}, {config.epochs} epochs of {len(train.images)} {config.data} images"
    encoder = Encoder(config.architecture, config.width, "cifar", origin=origin)
    per_epoch = max(len(train.images) // config.batch, 1)
    moco = config.method == "moco"
    rate = 1e-3 if config.optimiser == "adam" else config.batch / 512 * (0.06 if moco else 0.4)
    common: dict[str, Any] = {
        "encoder": encoder,
        "steps": config.epochs * per_epoch,
        "batch": config.batch,
        "learning_rate": rate if config.learning_rate is None else config.learning_rate,
        "weight_decay": config.weight_decay,
        "warmup": round(config.warmup_epochs * per_epoch),
        "optimiser": config.optimiser,
        "projection": config.projection,
        "neighbours": config.neighbours,
        "classes": len(train.class_names),
        "dtype": jnp.dtype(config.dtype),
    }
    if config.temperature is not None:
        common["temperature"] = config.temperature
    if not moco:
        return SimCLRTask(**common)
    more = {name: getattr(config, name) for name in ("momentum", "queue", "norm_groups")}
    return MoCoTask(**common, **more)


def run(config: Config, workdir: Path) -> Summary:
    """Train, judge, leave the encoders; returns the summary."""
    train, test = load(config)
    task, share = build(config, train), config.evaluation_share
    data = contrastive_data(train.images, train.labels, evaluation_share=share)
    if config.batch > len(train.images):
        raise ValueError(f"batch is {config.batch}; {train.name} has {len(train.images)} pictures")
    epoch = len(train.images) // config.batch
    intervals = (epoch, config.evaluate_every * epoch, config.checkpoint_every * epoch)
    members = members_of(config.seeds, parse_grid(config.grid))
    schedule = Schedule(task.steps, *intervals)
    start_folder(config, workdir, ignore=VARYING)
    devices = jax.local_devices()
    print(f"devices  {len(devices)} x {devices[0].device_kind} ({devices[0].platform})")
    print(
        f"{train.name}: {len(train.images)} pictures, {epoch} steps an epoch; {test.name}: "
        f"{len(test.images)}"
    )
    print(f"{task.encoder.architecture} of width {config.width}, rate {task.learning_rate:g}")
    events = workdir / "tensorboard"
    outcomes = config.run_sweep(
        task, data, members, workdir=workdir, schedule=schedule, events=events
    )
    return summarise_encoders(
        outcomes,
        task,
        train,
        test,
        keep=config.keep,
        folder=workdir / "summary",
        title=f"{config.method} on {config.data}",
    )


if __name__ == "__main__":
    main(Config, run, description=__doc__)
