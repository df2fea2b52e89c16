"""Which samples should be labelled next, and does it beat labelling at random?

Rounds of active learning (thesis, section 5.5): an initial pool; train; query by each strategy;
reveal; repeat. All strategies and seeds of a round are trained at once. Networks start afresh in
every round: end to end, or the head alone on a frozen encoder, both from a self-supervised
checkpoint of ``experiments.pretrain`` where one is given (its norm's moments stay frozen).

Data: CIFAR-10 (or any part of it in its format), SVHN, MNIST, Fashion-MNIST in their official
files, ImageNet folders, gratings made here (``--data=tiny``), or features on disk
(``--data=features``: train_features.npy, train_labels.npy, test_features.npy, test_labels.npy).

    python -m experiments.active --setting=A-I --data_folder=data --pretrained=simclr/seeds/0000 \\
        --strategies=base,mase,margin,random --seeds=0:5 --workdir=runs/a1
    python -m experiments.active --data=tiny --workdir=runs/tiny

A setting fills in whatever no flag says; ``--values`` chooses between the thesis and its code where
they differ (the validation set; the schedule of C). ``--oracle=file``: a person is the oracle; each
round stops with ``rounds/<nn>/query.csv`` and goes on when ``labels.csv`` is beside it and the same
command is given again. Results: ``summary/``. Runtime: the tiny world at its defaults in about ten
minutes on two CPU cores; A-I as published in hours on one GPU.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from densejax.active import (
    balanced,
    balancing,
    boundary,
    centres,
    clusters,
    coverage,
    fisher,
    kmeans,
    report,
    scores,
    typiclust,
    wrappers,
)
from densejax.active.features import open_features
from densejax.active.oracles import KnownLabels, LabelFile
from densejax.active.records import Plan, Samples, Strategy
from densejax.active.rounds import Rounds
from densejax.classification.pretrained import Encoder, fresh, load_encoder, network
from densejax.classification.sources import Source, held_out_rows, load_source
from densejax.classification.task import HEAD, ImageTask
from densejax.data.images import augment
from densejax.models.mlp import MLP
from densejax.training.config import option, parse_seeds, start_folder
from densejax.training.entry import main

# Settings that change no number of a round: a run may go on with others.
VARYING = ("slots", "side", "rounds", "published", "data_folder")

Preset = dict[str, Any]
CIFAR: Preset = {"data": "cifar10", "model": "resnet18", "initial": 1000, "budget": 1000}
CIFAR |= {"epochs": 200, "patience": 50, "schedule": "cosine", "mode": "end_to_end"}
IMAGENET: Preset = {"data": "imagenet", "model": "resnet50", "initial": 30000, "budget": 10000}
IMAGENET |= {"epochs": 60, "patience": 30, "rounds": 8, "schedule": "step", "imbalance": 0.0}
# Tables of the thesis stop at 20 (A-I) and 10 rounds (B-I); its jobs run 30.
SETTINGS: dict[str, Preset] = {
    "A-I": CIFAR | {"rounds": 20, "learning_rate": 1e-3, "weight_decay": 5e-4, "imbalance": 0.0},
    "B-I": CIFAR | {"rounds": 10, "learning_rate": 2e-3, "weight_decay": 0.0, "imbalance": 0.1},
    "C-I": IMAGENET | {"mode": "end_to_end", "learning_rate": 1e-3, "weight_decay": 0.0},
    "C-II": IMAGENET | {"mode": "linear", "learning_rate": 15.0, "weight_decay": 1e-4},
}
# Share of the training set that is held out, and epochs between tenfold falls of the rate.
VALUES: dict[str, dict[str, Preset]] = {
    "thesis": {"A": {"validation": 0.01}, "B": {"validation": 0.01}, "C": {"validation": 0.1}},
    "code": {"A": {"validation": 0.1}, "B": {"validation": 0.1}, "C": {"validation": 0.01}},
}
VALUES["thesis"]["C"]["decay_every"], VALUES["code"]["C"]["decay_every"] = 20, 10
# Sets that are in none of the settings: networks and rounds of their size.
SMALL: dict[str, Preset] = {
    "mnist": {"model": "mlp"},
    "fashion_mnist": {"model": "mlp"},
    "features": {"model": "head"},
}
SMALL["tiny"] = {"initial": 20, "budget": 20, "rounds": 5, "epochs": 30, "patience": 0}
SMALL["tiny"] |= {"width": 8, "learning_rate": 0.05, "validation": 0.2}


def _partitioned(selector: Any, config: "Config") -> Any:
    sample = wrappers.PUBLISHED_SUBSAMPLE if filled(config).data == "imagenet" else {}
    return wrappers.partitioned(selector, partitions=config.partitions, **sample)


def strategies(config: "Config") -> dict[str, Strategy]:
    """Every strategy that ``--strategies`` may name."""
    base = partial(boundary.base, order=config.order, boundary=config.boundary)
    found = {
        "random": Strategy(balanced.random, network=False),
        "balanced_random": Strategy(
            balanced.balanced_random,
            network=True,
            truth=True,
            balanced_start=config.start == "released",
        ),
        "balancing": Strategy(balancing.balancing, sequential=True),
        "most_incorrect": Strategy(scores.ranked(scores.most_incorrect()), truth=True),
        "partitioned_core_set": Strategy(_partitioned(centres.core_set, config)),
        "partitioned_badge": Strategy(_partitioned(partial(centres.badge, pooled=True), config)),
    }
    selectors: dict[str, Any] = {
        "mase": boundary.mase,
        "base": base,
        "core_set": centres.core_set,
        "badge": centres.badge,
        "k_means": kmeans.k_means,
        "typiclust": typiclust.typiclust,
        "max_herding": coverage.max_herding,
        "uncertainty_herding": coverage.uncertainty_herding,
        "dropquery": clusters.dropquery,
        "cluster_margin": clusters.cluster_margin,
        "bait": fisher.bait,
    }
    ranked = {
        "confidence": scores.confidence(),
        "margin": scores.margin(),
        "margin_logit": scores.margin(of="logits"),
        "entropy": scores.entropy(),
        "inverse_entropy": scores.inverse(scores.entropy()),
    }
    selectors |= {name: scores.ranked(score) for name, score in ranked.items()}
    selectors["balanced_margin"] = balanced.balanced(scores.margin())
    return found | {name: Strategy(selector) for name, selector in selectors.items()}


@dataclass(frozen=True)
class Config:
    """Everything that decides a result; none is what the setting says."""

    setting: Literal["A-I", "B-I", "C-I", "C-II"] = option(
        "A-I", "CIFAR-10; imbalanced CIFAR-10; ImageNet end to end; ImageNet, the head alone"
    )
    values: Literal["thesis", "code"] = option("code", "whose values, where the two differ")
    strategies: tuple[str, ...] = option(("base", "mase", "margin", "random"), "names, see below")
    seeds: tuple[int, ...] = option((0, 1, 2), "seeds, such as 0:5", parse=parse_seeds)
    data: (
        Literal["cifar10", "svhn", "mnist", "fashion_mnist", "imagenet", "tiny", "features"] | None
    ) = option(None, "what to learn")
    data_folder: str = option("data", "folder of its files")
    limit: int = option(0, "training samples drawn from the set; 0 is all")
    test_limit: int = option(0, "test samples drawn from the set; 0 is all")
    size: int = option(224, "of ImageNet's pictures", unit="pixels")
    imbalance: float | None = option(None, "last class / first class, exponentially; 0 leaves all")
    validation: float | None = option(None, "part of the training set that is held out")
    model: Literal["resnet18", "resnet50", "mlp", "head"] | None = option(None, "network")
    width: int | None = option(None, "channels of the first stage (64), or hidden values (512)")
    pretrained: str = option("", "folder of an encoder; it decides network, width and moments")
    mode: Literal["end_to_end", "linear"] | None = option(None, "train all, or the head alone")
    frozen_norm: bool | None = option(
        None, "keep the norm's moments; none: where there is a checkpoint, as released"
    )
    augmentation: Literal["none", "cifar", "imagenet"] | None = option(None, "of training pictures")
    rounds: int | None = option(None, "trainings; more of them extend a run")
    initial: int | None = option(None, "samples labelled at the start")
    budget: int | None = option(None, "samples queried a round")
    start: Literal["random", "balanced", "released"] = option(
        "random", "initial samples; released: random, but balanced for balanced_random"
    )
    epochs: int | None = option(None, "of a training")
    patience: int | None = option(None, "epochs without a better evaluation; 0: never stop")
    optimiser: Literal["sgd", "adam"] = option("sgd", "SGD with momentum 0.9, or Adam")
    learning_rate: float | None = option(None, "initial rate")
    weight_decay: float | None = option(None, "as in PyTorch: added to the gradient")
    schedule: Literal["constant", "cosine", "step"] | None = option(None, "of the rate")
    decay_every: int | None = option(None, "epochs between tenfold falls of the rate (step)")
    batch: int = option(128, "samples a step")
    weighted: bool | None = option(None, "weight the loss by class; none: where imbalanced")
    order: Literal["round_robin", "block"] = option(
        "round_robin", "base: as algorithm 2, or as the released code"
    )
    boundary: Literal["pairwise", "exact"] = option("pairwise", "base: to a plane or a region")
    partitions: int = option(10, "of partitioned_core_set and partitioned_badge")
    oracle: Literal["known", "file"] = option("known", "the set's labels, or a person with a file")
    evaluate_every: int = option(1, "interval of evaluations", unit="epochs")
    checkpoint_every: int = option(20, "interval of checkpoints", unit="epochs")
    keep: bool = option(True, "keep each round's best parameters")
    published: str = option("", "CSV of a paper's curves, strategy,1000,2000,..., to draw beside")
    slots: int = option(0, "networks in training at once; 0 is as many as fit")
    side: Literal["map", "vmap", "auto"] = option(
        "map", "networks of one device one after another, side by side, or the faster of the two"
    )
    base_seed: int = option(0, "from which everything is drawn")


def filled(config: Config) -> Config:
    """The configuration with what its setting says where nothing was said."""
    common: Preset = {
        "width": 64,
        "schedule": "cosine",
        "decay_every": 20,
        "augmentation": None,
    }
    preset = common | VALUES[config.values][config.setting[0]] | SETTINGS[config.setting]
    preset |= SMALL.get(config.data or preset["data"], {})
    if (config.model or preset["model"]) == "mlp":
        preset["width"] = 512
    given = {name: value for name, value in vars(config).items() if value is not None}
    whole: dict[str, Any] = preset | given
    imbalanced = whole["imbalance"] > 0
    whole["weighted"] = imbalanced if config.weighted is None else config.weighted
    if config.frozen_norm is None:
        whole["frozen_norm"] = bool(config.pretrained)
    return Config(**whole)


def load(config: Config) -> Source:
    """The data set of a filled configuration."""
    limits: dict[str, Any] = {"limit": config.limit, "test_limit": config.test_limit}
    limits["seed"] = config.base_seed
    if config.data == "features":
        return open_features(config.data_folder, **limits)
    imbalance = config.imbalance or 0.0
    folder = config.data_folder
    return load_source(config.data or "", folder, imbalance=imbalance, size=config.size, **limits)


def build(config: Config, source: Source, largest: int) -> ImageTask:
    """The network and the task of a filled configuration."""
    classes, mean, std = len(source.class_names), source.mean, source.std
    std_of_head = 1e-3  # thesis, 5.5: N(0, 1e-3), read as the deviation
    if config.model in ("mlp", "head") and not config.pretrained:
        widths = (config.width or 1,) if config.model == "mlp" else ()
        model: Any = MLP(classes, widths=widths, head_std=std_of_head if not widths else None)
        shape = (1, *source.images.shape[1:])

        def init(key: jax.Array) -> Any:
            return model.init(key, jnp.zeros(shape))

    else:
        stored = None
        if config.pretrained:
            encoder, stored = load_encoder(config.pretrained)
            mean, std = encoder.mean, encoder.std
        else:
            stem = "imagenet" if config.data == "imagenet" else "cifar"
            encoder = Encoder(config.model or "", config.width or 0, stem, mean, std)
        if len(mean) != source.images.shape[-1]:
            raise ValueError(
                f"{config.pretrained or config.model}: for pictures of {len(mean)} channels; "
                f"{source.name} has {source.images.shape[1:]}"
            )
        model = network(encoder, classes, frozen_norm=config.frozen_norm)

        def init(key: jax.Array) -> Any:
            body_key, head_key = jax.random.split(key)
            body = fresh(body_key, encoder) if stored is None else stored
            kernel = std_of_head * jax.random.normal(head_key, (encoder.features, classes))
            head = {"kernel": kernel, "bias": jnp.zeros(classes)}
            return jax.tree.map(
                jnp.asarray, dict(body, params=dict(body["params"], **{HEAD: head}))
            )

    recipe: Any = config.augmentation or source.recipe
    return ImageTask(
        init,
        model.apply,
        classes,
        largest,
        batch=config.batch,
        epochs=config.epochs or 1,
        optimiser=config.optimiser,
        learning_rate=config.learning_rate or 0.0,
        weight_decay=config.weight_decay or 0.0,
        schedule=config.schedule or "cosine",
        decay_every=config.decay_every or 1,
        augment=None if recipe == "none" else partial(augment, recipe=recipe),
        mean=mean,
        std=std,
        linear=config.mode == "linear",
    )


def run(config: Config, workdir: Path) -> report.Results:
    """All rounds, and what they came to."""
    given, config = config, filled(config)
    known = strategies(config)
    unknown = [name for name in config.strategies if name not in known]
    if unknown or len(set(config.strategies)) != len(config.strategies):
        raise ValueError(
            f"strategies {', '.join(config.strategies)}: expected each once, of {', '.join(known)}"
        )
    source = load(config)
    plan = Plan(
        {name: known[name] for name in config.strategies},
        config.seeds,
        **{n: getattr(config, n) for n in ("initial", "budget", "rounds", "patience", "weighted")},
        start="balanced" if config.start == "balanced" else "random",
        **{n: getattr(config, n) for n in ("evaluate_every", "checkpoint_every", "keep")},
        base_seed=config.base_seed,
    )
    held_out = held_out_rows(
        jax.random.key(config.base_seed),
        source.labels,
        config.validation or 0.0,
        balanced=config.values == "code",
    )
    samples = Samples(
        source.images,
        source.labels,
        held_out,
        source.test_images,
        source.test_labels,
        source.class_names,
    )
    oracle: Any = KnownLabels(source.labels, classes=len(source.class_names))
    if config.oracle == "file":
        oracle = LabelFile(class_names=source.class_names, files=source.files)
    published = report.published_curves(given.published, list(known)) if given.published else None
    task = build(config, source, plan.largest)
    slots, side = config.slots, config.side
    rounds = Rounds(task, samples, oracle, plan, workdir=workdir, slots=slots, side=side)
    start_folder(given, workdir, ignore=VARYING)
    print(f"{source.name}: {len(source.labels):,} samples, {int(held_out.sum()):,} held out")
    results = report.collect(rounds.run(), source.class_names)
    title = f"{source.name}, {len(source.labels):,} training samples, {len(config.seeds)} seeds"
    report.summarise_rounds(results, workdir / "summary", title=title, published=published)
    return results


def fast(config: Config) -> Config:
    """The same set-up: two seeds, two rounds, an epoch on few samples, a narrow network."""
    whole = filled(config)
    limits: dict[str, Any] = {"limit": config.limit or 240, "test_limit": config.test_limit or 60}
    small: dict[str, Any] = {
        "rounds": 2,
        "initial": 20,
        "budget": 12,
        "epochs": 1,
        "validation": 0.2,
    }
    width = None if config.pretrained else min(whole.width or 4, 4)
    return replace(config, seeds=config.seeds[:2], width=width, **(limits | small))


if __name__ == "__main__":
    main(
        Config,
        run,
        fast=fast,
        description=f"{__doc__}\nStrategies: {', '.join(strategies(Config()))}.",
    )
