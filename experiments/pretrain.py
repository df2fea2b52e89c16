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

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from densejax.classification.contrastive import (
    ContrastiveTask,
    MoCoTask,
    SimCLRTask,
    knn_accuracy,
)
from densejax.classification.pretrained import Encoder, save_encoder
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
from densejax.io import write_csv
from densejax.plots.curves import learning_curves
from densejax.training.checkpoint import restore_tree
from densejax.training.folders import Outcome, members_of, read_curves
from densejax.training.sweep import Schedule
from densejax.typing import Array, Batch

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


@dataclass(frozen=True)
class Summary:
    """What a sweep came to.

    Attributes:
      outcomes: of all members.
      test_knn: float [k], test accuracy of the neighbours by each left encoder; nan where a member
        failed.
      encoders: folders that ``--pretrained`` takes, of the members that are done.
      files: table and pictures.
    """

    outcomes: tuple[Outcome, ...]
    test_knn: np.ndarray
    encoders: tuple[Path, ...]
    files: tuple[Path, ...]

    @property
    def failed(self) -> int:
        """Members that failed."""
        return sum(outcome.status == "FAILED" for outcome in self.outcomes)


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
    return summarise(
        outcomes,
        task,
        train,
        test,
        keep=config.keep,
        folder=workdir / "summary",
        title=f"{config.method} on {config.data}",
    )


def contrastive_data(images: Array, labels: Array, *, evaluation_share: float) -> Batch:
    """What the instances of a ``ContrastiveTask`` share: all pictures, and who judges whom.

    Args:
      images: [n, y, x, 3] uint8, all of them trained on.
      labels: [n] int32, which training never sees.
      evaluation_share: of the pictures, judged by the others; drawn at random, the same each time.

    Returns:
      ``images``, ``bank_rows``, ``bank_labels``, ``evaluation_rows``, ``evaluation_labels``.

    Raises:
      ValueError: the share leaves none on either side.
    """
    n = len(images)
    evaluation = max(round(evaluation_share * n), 1)
    if not 0 < evaluation_share < 1 or evaluation >= n:
        raise ValueError(
            f"evaluation_share is {evaluation_share} of {n} pictures; expected some of them"
        )
    order = np.asarray(jax.random.permutation(jax.random.key(99), n), np.int32)
    rows, bank = np.sort(order[:evaluation]), np.sort(order[evaluation:])
    return {
        "images": images,
        "bank_rows": bank,
        "bank_labels": np.asarray(labels)[bank],
        "evaluation_rows": rows,
        "evaluation_labels": np.asarray(labels)[rows],
    }


def summarise(
    outcomes: Sequence[Outcome],
    task: ContrastiveTask,
    train: LabelledImages,
    test: LabelledImages,
    *,
    keep: str,
    folder: Path,
    title: str,
) -> Summary:
    """Leave the encoders in their members' folders, judge them, write table and curves.

    Args:
      outcomes: of a sweep.
      task: what was trained.
      train: the neighbours.
      test: whom they judge; neither training nor ranking has seen it.
      keep: which parameters are left, ``last`` or ``best``.
      folder: of the table and the pictures; made if absent.
      title: of the pictures.
    """
    template = task.parameters(jax.eval_shape(lambda: task.init(jax.random.key(0), {})))

    @jax.jit
    def judge(variables: Any, bank: Any, queries: Any) -> jax.Array:
        features = [task.features(variables, images) for images in (queries, bank)]
        options = {"classes": task.classes, "neighbours": task.neighbours}
        return knn_accuracy(
            features[0], jnp.asarray(test.labels), features[1], jnp.asarray(train.labels), **options
        )

    scores, encoders = [], []
    for outcome in outcomes:
        score = float("nan")
        if outcome.status == "DONE":
            variables = restore_tree(outcome.folder / keep, template)["encoder"]
            save_encoder(outcome.folder, task.encoder, variables)
            encoders.append(outcome.folder)
            score = float(judge(variables, train.images, test.images))
        scores.append(score)
        name = outcome.member.name
        print(f"seed {name}  {outcome.status}  test kNN {score:.4f}  {outcome.folder}")
    folder.mkdir(exist_ok=True)
    head = ("member", "status", "steps", "best_knn", "best_step", "test_knn")
    rows = [
        (o.member.name, o.status, o.step, o.best_score, o.best_step, score)
        for o, score in zip(outcomes, scores, strict=True)
    ]
    files = [write_csv(folder / "scores.csv", head, rows)]
    for name, label in (("loss", "contrastive loss"), ("knn", "nearest neighbours: accuracy")):
        steps, values = read_curves(outcomes, name)
        if np.isfinite(values).any():
            path = folder / f"{name}.png"
            learning_curves(steps, values, path=path, label=label, title=title)
            files.append(path)
    return Summary(tuple(outcomes), np.array(scores), tuple(encoders), tuple(files))


if __name__ == "__main__":
    main(Config, run, description=__doc__)
