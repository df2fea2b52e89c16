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
they differ (the validation set, the schedule of C, the rates of VAAL). bald, mean_entropy (which
Roels & Saeys call BALD), vote_entropy and batch_bald need ``--dropout``; vaal learns at each query,
as long as the classifier; expert asks networks that have learnt from all labels.

``--oracle=file``: a person is the oracle; each round stops with ``rounds/<nn>/query.csv`` and goes
on when ``labels.csv`` is beside it and the same command is given again. Results: ``summary/``.
Runtime: the tiny world at its defaults in about ten minutes on two CPU cores; A-I as published in
hours on one GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax

from densejax.active.rounds import report, settings
from densejax.active.rounds.records import Plan, Samples, Trained, read_rounds, together
from densejax.active.strategies import IN_ROUNDS, Options, Strategy, check_names, in_rounds
from densejax.cli import check_same_config, main, option, seeds_option, start_folder

# What a network is made of takes seconds to import: where it is used, so that --help need not.
if TYPE_CHECKING:
    from densejax.classification.sources import Source
    from densejax.classification.task import ImageTask

# Settings that change no number of a round: a run may go on with others.
VARYING = ("slots", "side", "rounds", "published", "data_folder", "verify")
# Options of vaal where nothing is said, and under --fast_dev_run, whichever strategies there are.
VAAL: dict[str, Any] = {"steps": None, "width": 128}
VAAL_FAST = {"steps": 2, "width": 8}


@dataclass(frozen=True)
class Config:
    """Everything that decides a result; none is what the setting says."""

    setting: Literal["A-I", "B-I", "C-I", "C-II"] = option(
        "A-I", "CIFAR-10; imbalanced CIFAR-10; ImageNet end to end; ImageNet, the head alone"
    )
    values: Literal["thesis", "code"] = option("code", "whose values, where the two differ")
    strategies: tuple[str, ...] = option(("base", "mase", "margin", "random"), "names, see below")
    seeds: tuple[int, ...] = seeds_option(0, 1, 2, help="seeds, such as 0:5")
    data: (
        Literal["cifar10", "svhn", "mnist", "fashion_mnist", "imagenet", "tiny", "features"] | None
    ) = option(None, "what to learn")
    data_folder: str = option("data", "folder of its files")
    verify: bool = option(False, "compare the files with their official checksums first")
    limit: int = option(
        0, "training samples drawn from the set; 0 is all", fast=lambda config: config.limit or 240
    )
    test_limit: int = option(
        0, "test samples drawn from the set; 0 is all", fast=lambda config: config.test_limit or 60
    )
    size: int = option(224, "of ImageNet's pictures", unit="pixels")
    imbalance: float | None = option(None, "last class / first class, exponentially; 0 leaves all")
    validation: float | None = option(None, "part of the training set that is held out", fast=0.2)
    model: Literal["resnet18", "resnet50", "mlp", "head"] | None = option(None, "network")
    width: int | None = option(
        None,
        "channels of the first stage (64), or hidden values (512)",
        fast=lambda config: narrow(config),
    )
    pretrained: str = option("", "folder of an encoder; it decides network, width and moments")
    mode: Literal["end_to_end", "linear"] | None = option(None, "train all, or the head alone")
    frozen_norm: bool | None = option(
        None, "keep the norm's moments; none: where there is a checkpoint, as released"
    )
    dropout: float = option(0.0, "chance that a value in front of the head is dropped in training")
    augmentation: Literal["none", "cifar", "imagenet"] | None = option(None, "of training pictures")
    rounds: int | None = option(None, "trainings; more of them extend a run", fast=2)
    initial: int | None = option(None, "samples labelled at the start", fast=20)
    budget: int | None = option(None, "samples queried a round", fast=12)
    start: Literal["random", "balanced", "released"] = option(
        "random", "initial samples; released: random, but balanced for balanced_random"
    )
    epochs: int | None = option(None, "of a training", fast=1)
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
    radius: float | None = option(None, "probcover (needed), max_herding, uncertainty_herding")
    passes: int = option(10, "bald, mean_entropy, vote_entropy, batch_bald: of the dropout")
    odin_temperature: float = option(0.1, "odin: of the softmax")
    odin_step: float = option(0.0, "odin: of pictures in [0, 1], or features, to certainty")
    vaal_steps: int | None = option(
        None, "vaal: of a training; none is the classifier's, whole", fast=VAAL_FAST["steps"]
    )
    vaal_width: int = option(
        VAAL["width"],
        "vaal: channels of the autoencoder's first level",
        fast=lambda config: min(config.vaal_width, VAAL_FAST["width"]),
    )
    oracle: Literal["known", "file"] = option("known", "the set's labels, or a person with a file")
    evaluate_every: int = option(1, "interval of evaluations", unit="epochs")
    checkpoint_every: int = option(20, "interval of checkpoints", unit="epochs")
    keep: bool = option(True, "keep each round's best parameters")
    published: str = option("", "CSV of a paper's curves, strategy,1000,2000,..., to draw beside")
    # As many slots in both rounds of a few steps, so that both are one program.
    slots: int = option(
        0,
        "networks in training at once; 0 is as many as fit",
        fast=lambda config: len(config.seeds[:2]),
    )
    side: Literal["map", "vmap", "auto"] = option(
        "map", "networks of one device one after another, side by side, or the faster of the two"
    )
    base_seed: int = option(0, "from which everything is drawn")
    combine: tuple[str, ...] = option(
        (), "folders of runs with other seeds, to be summarised together; nothing is trained"
    )


def varying(config: Config) -> tuple[str, ...]:
    """Settings with other values of which this run may go on."""
    return VARYING if "odin" in config.strategies else (*VARYING, "odin_step")


def filled(config: Config) -> Config:
    """The configuration with what its setting says where nothing was said."""
    return Config(**settings.fill(vars(config)))


def narrow(config: Config) -> int | None:
    """The width of a run of few steps; an encoder brings its own."""
    return None if config.pretrained else min(filled(config).width or 4, 4)


def load(config: Config) -> "Source":
    """The data set of a filled configuration."""
    from densejax.active.rounds.features import open_features
    from densejax.classification.sources import load_source

    limits = {"limit": config.limit, "test_limit": config.test_limit, "seed": config.base_seed}
    if config.data == "features":
        return open_features(config.data_folder, **limits)
    more: dict[str, Any] = limits | {n: getattr(config, n) for n in ("imbalance", "size", "verify")}
    return load_source(config.data or "", config.data_folder, **more)


def build(config: Config, source: "Source", largest: int) -> "ImageTask":
    """The network and the task of a filled configuration, for so many labelled samples."""
    from densejax.classification.pretrained import Encoder, load_encoder, perceptron, with_head
    from densejax.classification.task import ImageTask
    from densejax.data.images import augment

    classes, width, dropout = len(source.class_names), config.width or 1, config.dropout
    moments: dict[str, Any] = {"mean": source.mean, "std": source.std}
    if config.model in ("mlp", "head") and not config.pretrained:
        widths = (width,) if config.model == "mlp" else ()
        shape = source.images.shape[1:]
        network = perceptron(classes, shape, widths=widths, dropout=dropout, **moments)
    else:
        stem, stored = "imagenet" if config.data == "imagenet" else "cifar", None
        if config.pretrained:
            encoder, stored = load_encoder(config.pretrained)
        else:
            encoder = Encoder(config.model or "", width, stem, **moments)
        if len(encoder.mean) != source.images.shape[-1]:
            raise ValueError(
                f"{config.pretrained or config.model}: for pictures of {len(encoder.mean)} "
                f"channels; {source.name} has {source.images.shape[1:]}"
            )
        frozen = bool(config.frozen_norm)
        network = with_head(encoder, classes, stored=stored, frozen_norm=frozen, dropout=dropout)
    recipe: Any = config.augmentation or source.recipe
    same = ("batch", "epochs", "optimiser", "learning_rate", "weight_decay", "schedule")
    return ImageTask(
        network.init,
        network.apply,
        classes,
        largest,
        **{name: getattr(config, name) for name in (*same, "decay_every")},
        augment=None if recipe == "none" else partial(augment, recipe=recipe),
        mean=network.mean,
        std=network.std,
        linear=config.mode == "linear",
    )


def ask(config: Config, source: "Source", task: "ImageTask") -> dict[str, Strategy]:
    """The strategies of a filled configuration."""
    said = {"steps": config.vaal_steps, "width": config.vaal_width}
    vaal: dict[str, Any] | None = None if said in (VAAL, VAAL_FAST) else said
    if "vaal" in config.strategies:
        recipe = config.augmentation or source.recipe
        vaal = said | settings.vaal_of(
            config.values, config.data, schedule=config.schedule, recipe=recipe
        )
    same = ("order", "boundary", "radius", "partitions", "dropout", "passes")
    options = Options(
        **{name: getattr(config, name) for name in (*same, "odin_temperature", "odin_step")},
        subsample=settings.subsample_of(config.data),
        task=task,
        images=source.images,
        vaal=vaal,
    )
    return in_rounds(config.strategies, options, released_start=config.start == "released")


def run(config: Config, workdir: Path) -> report.Results:
    """All rounds, and what they came to."""
    from densejax.active.rounds.engine import Rounds
    from densejax.active.rounds.oracles import KnownLabels, LabelFile
    from densejax.active.rounds.pictures import Pictures
    from densejax.classification.sources import held_out_rows

    given, config = config, filled(config)
    check_names(config.strategies)
    if config.combine:
        return combine(given, workdir)
    source = load(config)
    task = build(config, source, 1)
    same = ("initial", "budget", "rounds", "patience", "evaluate_every", "keep")
    plan = Plan(
        ask(config, source, task),
        config.seeds,
        start="balanced" if config.start == "balanced" else "random",
        **{name: getattr(config, name) for name in (*same, "checkpoint_every", "base_seed")},
    )
    key, share = jax.random.key(config.base_seed), config.validation or 0.0
    held_out = held_out_rows(key, source.labels, share, balanced=config.values == "code")
    names, test = source.class_names, (source.test_images, source.test_labels)
    samples = Samples(source.images, source.labels, held_out, *test, names)
    oracle: Any = KnownLabels(source.labels, classes=len(names))
    if config.oracle == "file":
        oracle = LabelFile(class_names=names, files=source.files)
    instances = len(config.seeds) * len(plan.strategies)
    rounds = Rounds(
        Pictures(task, samples, instances, bool(config.weighted)),
        oracle,
        plan,
        workdir=workdir,
        slots=config.slots,
        side=config.side,
    )
    start_folder(given, workdir, ignore=varying(given))
    print(f"{source.name}: {len(source.labels):,} samples, {int(held_out.sum()):,} held out")
    return summarise(given, source, rounds.run(), workdir)


def combine(config: Config, workdir: Path) -> report.Results:
    """The summary of runs that differ in their seeds, as of one run."""
    for folder in map(Path, config.combine):
        if not (folder / "config.json").exists():
            raise FileNotFoundError(f"{folder}: no run of active learning, it has no config.json")
        check_same_config(config, folder, ignore=(*varying(config), "seeds", "combine"))
    rounds = together([read_rounds(Path(folder), Trained) for folder in config.combine])
    start_folder(config, workdir, ignore=(*varying(config), "seeds", "combine"))
    return summarise(config, load(filled(config)), rounds, workdir)


def summarise(
    config: Config, source: "Source", rounds: Sequence[Trained], workdir: Path
) -> report.Results:
    """Tables and pictures of rounds."""
    published = (
        report.published_curves(config.published, list(IN_ROUNDS)) if config.published else None
    )
    results = report.collect(rounds, source.class_names)
    seeds = f"{len(results.seeds)} seeds"
    title = f"{source.name}, {len(source.labels):,} training samples, {seeds}"
    report.summarise_rounds(results, workdir / "summary", title=title, published=published)
    return results


if __name__ == "__main__":
    main(
        Config,
        run,
        description=f"{__doc__}\nStrategies: {', '.join(IN_ROUNDS)}.",
    )
