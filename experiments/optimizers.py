"""Do some optimisers find better minima than others, or do all of them?

Figure 3.8 of the thesis: VGG13 with batch norm on CIFAR-10, trained by each optimiser of its code,
here by several seeds each, all seeds of an optimiser in one compiled program. If generalisation
came from the optimiser, the populations would differ more than they do.

Data: the official files of CIFAR-10 (or any part of it in its format) or SVHN.

    python -m experiments.optimizers --data_folder=data/cifar10 --workdir=runs/optimizers
    python -m experiments.optimizers --data_folder=data --width=8 --epochs=20 --milestones=10,15 \\
        --limit=2000 --test_limit=1000 --lbfgs_memory=20 --workdir=runs/small

The same command again continues; more seeds or optimisers extend a run. ``summary/accuracy.csv``
holds the medians with bootstrap intervals, ``summary/accuracy.png`` every seed. Defaults are the
published setting, days on one GPU; the second command takes hours on two CPU cores.

Where thesis and code disagree: the thesis counts 13 optimisers, the code has 12; the missing one
is unknown, and Rprop, SAM and L-BFGS with a line search are offered beside them, not in its place.
The code's L-BFGS takes its loss from outputs computed before, so that it never evaluates anew (and
fails with a PyTorch of today); here it does, and the published number is no target. ASGD never
averages at its default. Rates are those of the code; no search of them is published. The code
prints the test accuracy of every epoch and keeps none: ``last`` is that of the last epoch.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np

from densejax import trees
from densejax.classification.descent import DescentTask
from densejax.classification.populations import Comparison, compare, finished, read_population
from densejax.classification.sources import Source, load_source
from densejax.classification.task import image_data
from densejax.cli import SweepOptions, main, option, seeds_option, start_folder
from densejax.data.images import augment
from densejax.models.vgg import vgg
from densejax.optim.proximal import proximal
from densejax.optim.published import OTHERS, THESIS, setting
from densejax.training.folders import members_of
from densejax.training.sweep import Schedule

# Settings that change no trained number: a run may go on with others.
VARYING = ("optimizers", "seeds", "slots", "strategy", "data_folder")

NOTES = {
    "lbfgs": "the published code's closure is broken",
    "asgd": "no average before step 1,000,000",
    "rprop": "not in the thesis",
    "sam": "not in the thesis",
    "lbfgs_zoom": "not in the thesis; no rate",
}


@dataclass(frozen=True)
class Config(SweepOptions):
    """Everything that decides a result."""

    data: Literal["cifar10", "svhn"] = option("cifar10", "what to learn")
    data_folder: str = option("data", "folder of the set's official files")
    limit: int = option(
        0,
        "training pictures, drawn at random; 0 is all",
        unit="pictures",
        fast=lambda config: 2 * config.batch,
    )
    test_limit: int = option(
        0,
        "test pictures, drawn at random; 0 is all",
        unit="pictures",
        fast=lambda config: config.batch,
    )
    optimizers: tuple[str, ...] = option(
        THESIS, f"of the thesis: {', '.join(THESIS)}; others: {', '.join(OTHERS)}"
    )
    network: Literal["vgg11", "vgg13", "vgg16", "vgg19"] = option("vgg13", "architecture")
    norm: bool = option(True, "batch norm; without it the published draw of kernels learns nothing")
    draw: Literal["torch", "he"] = option(
        "torch", "of the kernels: PyTorch's default, or He et al."
    )
    width: int = option(64, "channels of the first stage (published: 64)", fast=2)
    augmented: bool = option(True, "crops of the padded picture, and flips")
    epochs: int = option(150, "times through the training pictures", fast=1)
    milestones: tuple[int, ...] = option(
        (50, 100), "at which the rate falls tenfold", unit="epochs"
    )
    batch: int = option(128, "pictures a step")
    rate_factor: float = option(1.0, "on the published learning rate of every optimiser")
    weight_decay: float = option(0.0, "factor on half the squares of the parameters")
    lbfgs_memory: int = option(
        100, "pairs that L-BFGS remembers: 2 x as many copies of the network", fast=3
    )
    lbfgs_iterations: int = option(20, "steps of L-BFGS on each batch", fast=2)
    evaluate_every: int = option(1, "interval of evaluations on the test set", unit="epochs")
    seeds: tuple[int, ...] = seeds_option(0, 1, 2, 3, 4)


def build(config: Config, source: Source, name: str) -> DescentTask:
    """The task of one optimiser."""
    chosen = setting(
        name, lbfgs_memory=config.lbfgs_memory, lbfgs_iterations=config.lbfgs_iterations
    )
    model: Any = vgg(
        config.network,
        len(source.class_names),
        width=config.width,
        norm="batch" if config.norm else False,
        draw=config.draw,
        wrap=partial(proximal, tau=0.5, iterations=10) if chosen.proximal else None,
    )
    picture, recipe = jnp.zeros((1, *source.images.shape[1:])), cast(Any, source.recipe)
    return DescentTask(
        init_variables=lambda key: model.init(key, picture),
        network=model.apply,
        classes=len(source.class_names),
        largest=len(source.labels),
        batch=config.batch,
        epochs=config.epochs,
        learning_rate=chosen.rate * config.rate_factor,
        weight_decay=config.weight_decay,
        schedule="constant",
        milestones=config.milestones,
        augment=partial(augment, recipe=recipe) if config.augmented else None,
        mean=source.mean,
        std=source.std,
        method=chosen.method,
    )


def run(config: Config, workdir: Path) -> Comparison:
    """Train what is missing, optimiser by optimiser, and compare."""
    source = load_source(
        config.data, config.data_folder, limit=config.limit, test_limit=config.test_limit
    )
    tasks = {name: build(config, source, name) for name in config.optimizers}
    if not tasks:
        raise ValueError("no optimizers; expected at least one")
    data = image_data(
        source.images,
        source.labels,
        [np.arange(len(source.labels))],
        evaluation_images=source.test_images,
        evaluation_labels=source.test_labels,
        classes=len(source.class_names),
    )
    start_folder(config, workdir, ignore=VARYING)
    members = members_of(config.seeds, {})
    for name, task in tasks.items():
        shapes = jax.eval_shape(task.init_variables, jax.random.key(0))
        count, per_epoch = trees.count(shapes["params"]), task.steps_of(len(source.labels))
        print(
            f"{name}: {count:,} parameters, {per_epoch} steps an epoch, rate {task.learning_rate:g}"
        )
        every = config.evaluate_every * per_epoch
        config.run_sweep(
            task,
            data,
            members,
            workdir=workdir / name,
            schedule=Schedule(config.epochs * per_epoch, per_epoch, every, every),
        )
    # Optimisers of earlier commands in the same folder are compared as well.
    outcomes = {name: finished(workdir / name, members) for name in (*THESIS, *OTHERS)}
    populations = [read_population(name, found) for name, found in outcomes.items() if found]
    title = f"{config.network} on {source.name.split()[0]}, {config.epochs} epochs"
    return compare(populations, workdir / "summary", title=title, notes=NOTES)


if __name__ == "__main__":
    main(Config, run, description=__doc__)
