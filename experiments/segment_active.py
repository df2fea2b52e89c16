"""Which images, crops or windows should be labelled next when every pixel is labelled?

Rounds of active learning for segmentation: label a first set of units, train, query by each
strategy, reveal the masks, repeat. All strategies and seeds of a round train at once; networks of a
seed with the same labelled set are trained once; one pass of a network computes every score.

The protocols are those of Chen (2020, chapter 2: queries of whole images or crops, averaged or
counted over pixels, DeepLab v3+ trained afresh) and of Roels & Saeys (2019: windows of an electron
microscopy volume that is divided halfway along y, a small U-Net that starts warm), reduced to what
two CPU cores do. What the papers leave open or contradict is in the help of the flags. Roels &
Saeys call the entropy of the mean of the passes BALD: here that is ``mean_entropy``.

    python -m experiments.segment_active --data=vnc --data_folder=DATA/vnc --protocol=roels \\
        --queries=entropy,mean_entropy,bald --strategies=random,k_means,core_set \\
        --seeds=0:5 --workdir=runs/roels
    python -m experiments.segment_active --data=camvid --data_folder=DATA/camvid_half \\
        --protocol=chen --queries=entropy,margin --aggregate=mean,count --workdir=runs/chen

``--oracle=file``: a person is the oracle. Each round stops with a folder of pictures with predicted
masks and a ``query.csv``, and goes on when the masks are there and the same command is given again.

Results: ``summary/`` has curves over labels, distinct pixels and length of borders with 95 %
intervals, areas under the curves, break-even points, and what each query labelled. Ten
strategies and five seeds of the first protocol in four rounds took 40 minutes on two busy cores.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from densejax.cli import main, option, seeds_option, start_folder

if TYPE_CHECKING:
    from densejax.active.pixel_scores import PixelNetwork
    from densejax.active.rounds.segmentation import Segmentation, Training
    from densejax.active.rounds.segmentation_report import Results
    from densejax.data.units import Units
    from densejax.stats import Finding

# Settings that change no number of a round: a run may go on with others.
VARYING = ("slots", "side", "rounds", "data_folder", "published")

# What a protocol says where no flag does, and what holds where neither does.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "roels": {
        "unit": "window",
        "size": 64,
        "bin": 2,
        "count": 2000,
        "target": "mitochondria",
        "network": "unet",
        "width": 8.0,
        "scales": 4,
        "initial": 20,
        "budget": 60,
        "rounds": 5,
        "steps": 1000,
        "warm_start": True,
        "warm_steps": 200,
        "learning_rate": 1e-3,
        "warm_rate": 5e-4,
        "optimiser": "adamw",
        "schedule": "constant",
        "train_drop": 0.2,
        "query_drop": 0.2,
        "flips": "yx",
    },
    "chen": {
        "unit": "image",
        "size": 129,
        "crop": 129,
        "network": "deeplab",
        "width": 0.125,
        "initial": 20,
        "budget": 20,
        "rounds": 5,
        "steps": 400,
        "optimiser": "momentum",
        "schedule": "polynomial",
        "learning_rate": 0.007,
        "weight_decay": 1e-4,
        "train_drop": 0.1,
        "query_drop": 0.5,
        "flips": "x",
    },
}
COMMON: dict[str, Any] = PROTOCOLS["roels"] | {
    "target": "all",
    "warm_start": False,
    "weight_decay": 0.0,
    "crop": 0,
    "warm_steps": 0,
    "warm_rate": 0.0,
}
# Scores of --queries=all, at each aggregation that they have.
ALL_QUERIES = (
    "entropy",
    "max_softmax",
    "margin",
    "odin0.1",
    "bald",
    "mean_entropy",
    "vote_entropy",
)
COUNTED = ("entropy", "max_softmax", "margin")


@dataclass(frozen=True)
class Config:
    """Everything that decides a result; None is what the protocol says."""

    data: Literal["vnc", "camvid", "cityscapes", "synthetic", "files"] = option(
        "synthetic", "what to learn; files: --image and --labels", essential=True
    )
    data_folder: str = option("", "folder of the data set", essential=True)
    image: str = option("", "image volume of --data=files", essential=True)
    labels: str = option("", "its label volume", essential=True)
    voxel_nm: tuple[float, ...] = option((), "voxel size z,y,x where the file states none")
    class_names: tuple[str, ...] = option((), "names of the classes of --labels, in their order")
    protocol: Literal["chen", "roels", "free"] = option(
        "free", "whose settings hold where no flag says otherwise", essential=True
    )
    unit: Literal["image", "crop", "window"] | None = option(
        None,
        "labelled at once: a whole image, one fixed crop of each, or a window of a volume",
    )
    size: int | None = option(None, "of crops and windows", unit="pixels", fast=32)
    bin: int | None = option(None, "pixels of y and x of a volume that become one")
    count: int | None = option(
        None,
        "windows drawn, which overlap (each pixel counts once in the distinct pixels); 0: the "
        "grid of windows that do not overlap",
        fast=24,
    )
    target: str | None = option(None, "of vnc: all five classes, or one against the rest")
    test_limit: int = option(0, "test pictures or sections; 0 is all", fast=2)
    queries: tuple[str, ...] = option(
        ("entropy",),
        "scores of pixels: entropy, max_softmax (least confidence), margin, odinT, bald, "
        "mean_entropy, vote_entropy, ensemble_bald ..., error, miou (these two cheat); or all",
        essential=True,
    )
    aggregate: tuple[str, ...] = option(
        ("mean",),
        "how pixels become a number: mean, count (Chen's thresholds), count0.8, fraction0.5 of the "
        "bound, quantile (0.9 of the pool at the first query, frozen)",
        essential=True,
    )
    strategies: tuple[str, ...] = option(
        ("random",),
        "further strategies: random, order, k_means, core_set, typiclust, badge (k_means:flat: of "
        "the whole bottleneck), core_set:context, balanced(entropy:mean), inverse(entropy:mean)",
        essential=True,
    )
    seeds: tuple[int, ...] = seeds_option(0, 1, 2, help="seeds, such as 0:5")
    rounds: int | None = option(None, "trainings; more of them extend a run", fast=2)
    initial: int | None = option(None, "units labelled at the start", fast=4)
    budget: int | None = option(None, "units queried a round", fast=4)
    network: Literal["unet", "deeplab", "segnet", "segnet_basic", "fcn"] | None = option(
        None, "architecture; segnet with --train_drop=0.5 is Bayesian SegNet"
    )
    width: float | None = option(
        None, "channels of a U-Net's finest scale, or a factor on those of the others"
    )
    scales: int | None = option(None, "of the U-Net", fast=2)
    train_drop: float | None = option(None, "chance that a number is dropped in training")
    query_drop: float | None = option(None, "likewise in stochastic passes; 0: no such passes")
    passes: int = option(10, "stochastic passes a unit", fast=2)
    warm_start: bool | None = option(None, "start each round from the networks of the one before")
    steps: int | None = option(None, "of a training from scratch", fast=4)
    warm_steps: int | None = option(None, "of a training that starts warm; 0: as many", fast=4)
    learning_rate: float | None = option(None, "initial rate")
    warm_rate: float | None = option(None, "of a training that starts warm; 0: the same")
    batch: int = option(8, "units a step", fast=2)
    optimiser: Literal["adamw", "sgd", "momentum"] | None = option(
        None, "Adam, SGD with Nesterov's momentum of 0.99, or with momentum of 0.9"
    )
    schedule: Literal["polynomial", "cosine", "constant"] | None = option(None, "of the rate")
    weight_decay: float | None = option(None, "of kernels")
    crop: int | None = option(
        None,
        "random part of a unit that a step sees; 0: all of it",
        unit="pixels",
        fast=lambda config: 33 if config.protocol == "chen" else None,
    )
    scale: tuple[float, ...] = option((), "smallest, largest factor on a unit before it is cropped")
    flips: str | None = option(None, "axes of reflections in training: yx, x or nothing")
    weighted: bool = option(False, "weight the loss by median frequency")
    chunk: int = option(32, "units that a network looks at at once")
    oracle: Literal["known", "file"] = option("known", "the set's masks, or a person with a folder")
    keep: bool = option(False, "keep the parameters of rounds that are over")
    published: str = option("", "CSV of a paper's areas, query,alc, to tabulate beside")
    slots: int = option(0, "networks in training at once; 0 is as many as fit")
    side: Literal["map", "vmap", "auto"] = option(
        "map", "networks of one device one after another, side by side, or the faster of the two"
    )
    base_seed: int = option(0, "from which everything is drawn")


# Claims: in words, where, the strategy that is said to lie above, and the one below. What has no
# source is an observation of ours.
CLAIMS: dict[str, tuple[tuple[str, str, str, str], ...]] = {
    "roels": (
        ("entropy above random", "figure 2", "entropy:mean", "random"),
        ("least confidence above random", "figure 2", "max_softmax:mean", "random"),
        ("entropy of the passes' mean above random", "figure 2", "mean_entropy:mean", "random"),
        ("k-means below random", "figure 2", "random", "k_means"),
        ("core-set not below random", "figure 2", "core_set", "random"),
        ("mutual information above random", "", "bald:mean", "random"),
        ("core-set on class contexts above core-set", "", "core_set:context", "core_set"),
        ("entropy by classes above entropy", "", "balanced(entropy:mean)", "entropy:mean"),
        ("entropy counted above a quantile above its mean", "", "entropy:quantile", "entropy:mean"),
    ),
    "chen": (
        ("entropy above random", "2.2.1", "entropy:mean", "random"),
        ("margin above random", "2.2.1", "margin:mean", "random"),
        ("max-softmax above random", "2.2.1", "max_softmax:mean", "random"),
        ("entropy counted above averaged", "table 2.1", "entropy:count", "entropy:mean"),
        ("margin counted above averaged", "table 2.1", "margin:count", "margin:mean"),
        (
            "max-softmax counted above mean",
            "table 2.1",
            "max_softmax:count",
            "max_softmax:mean",
        ),
        ("BALD above entropy", "figure 2.9", "bald:mean", "entropy:mean"),
        ("entropy above vote entropy", "figure 2.9", "entropy:mean", "vote_entropy:mean"),
        ("random above the order of the files", "3.3", "random", "order"),
        ("entropy above the lowest mIoU", "3.2", "entropy:mean", "miou:mean"),
        ("random above inverse entropy", "3.2", "random", "inverse(entropy:mean)"),
    ),
}


def findings(results: "Results", protocol: str) -> list["Finding"]:
    """What the runs say of a protocol's claims, by areas under the curves paired by seed."""
    from densejax.active.rounds.curves import alc
    from densejax.stats import judge_pairs

    areas: dict[str, dict[int, float]] = {}
    for name, scores in zip(results.strategies, results.score, strict=True):
        whole = [k for k in range(len(scores)) if np.isfinite(scores[k]).all()]
        areas[name] = {results.seeds[k]: float(alc(results.labelled, scores[k])) for k in whole}
    return judge_pairs(
        (claim, published, areas.get(above, {}), areas.get(below, {}))
        for claim, published, above, below in CLAIMS.get(protocol, ())
    )


def filled(config: Config) -> Config:
    """The configuration with what its protocol says where nothing was said."""
    said = {f.name: getattr(config, f.name) for f in fields(config)}
    given = {name: value for name, value in said.items() if value is not None}
    return Config(**(said | COMMON | PROTOCOLS.get(config.protocol, {}) | given))


def strategy_names(config: Config) -> tuple[str, ...]:
    """Names of ``strategies_of``: the further strategies, then queries x aggregations.

    Raises:
      ValueError: a name occurs twice or is none.
    """
    from densejax.active.pixel_scores import pixel_score

    queries = config.queries
    if queries == ("all",):
        queries = ALL_QUERIES if config.query_drop else ALL_QUERIES[:4]
    names = list(config.strategies)
    for query in queries:
        for how in config.aggregate:
            if config.queries == ("all",) and how == "count" and query not in COUNTED:
                continue  # Chen has thresholds for these three
            names.append(pixel_score(f"{query}:{how}").name)
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"strategy {twice[0]} is asked for twice (--strategies, --queries)")
    return tuple(names)


@dataclass(frozen=True)
class Parts:
    """Units to learn from and whole pictures or sections to test on."""

    units: "Units"
    test_images: np.ndarray
    test_labels: np.ndarray


def load(config: Config) -> Parts:
    """The units and the test set of a filled configuration."""
    if config.data in ("camvid", "cityscapes"):
        return _load_pictures(config)
    return _load_volume(config)


def _load_pictures(config: Config) -> Parts:
    from densejax.data import picture_sets, units

    loader = {"camvid": picture_sets.load_camvid, "cityscapes": picture_sets.load_cityscapes}
    parts = loader[config.data](config.data_folder)
    train, test = parts["train"], parts["test" if "test" in parts else "val"]
    if config.unit == "window":
        raise ValueError(f"--unit=window is of volumes; {config.data} has pictures (image, crop)")
    pool = units.whole_pictures(
        train.images,
        train.labels,
        names=train.names,
        groups=train.groups,
        class_names=train.class_names,
    )
    if config.unit == "crop":
        key = jax.random.fold_in(jax.random.key(config.base_seed), 1)
        pool = units.random_crops(key, pool, config.size or 0)
    keep = slice(config.test_limit or None)
    return Parts(pool, test.images[keep][:, None], test.labels[keep][:, None].astype(np.int32))


def _load_volume(config: Config) -> Parts:
    from densejax.data import datasets, units
    from densejax.data.synthetic import platelet_world

    if config.unit != "window":
        raise ValueError(f"--unit={config.unit} is of pictures; a volume has windows")
    if config.data == "synthetic":
        key = jax.random.fold_in(jax.random.key(config.base_seed), 2)
        world = platelet_world(key, shape=(12, 384, 384))
        images, labels, names = world.images, world.labels, world.class_names
    else:
        volume = _open(config, datasets)
        images, labels, names = volume.images, volume.labels, volume.class_names
        if images.dtype != np.uint8:
            raise ValueError(f"{volume.name}: {images.dtype} images; expected uint8 (convert them)")
    small, small_labels = units.binned(images, labels, config.bin or 1, classes=len(names))
    (train, train_labels), (test, test_labels) = units.halves(small, small_labels)
    if absent := [n for c, n in enumerate(names) if not (np.asarray(train_labels) == c).any()]:
        raise ValueError(f"{config.data}: the half to learn from shows no {', '.join(absent)}")
    key = jax.random.fold_in(jax.random.key(config.base_seed), 1)
    pool = units.windows(
        key,
        train,
        train_labels,
        size=config.size or 0,
        count=config.count or None,
        class_names=names,
        group=config.data,
    )
    keep = slice(config.test_limit or None)
    images, labels = (np.asarray(a)[keep][:, None] for a in (test, test_labels))
    return Parts(pool, images[..., None], labels)


def _open(config: Config, datasets: Any) -> Any:
    if config.data == "files":
        if not (config.image and config.labels and config.class_names):
            raise ValueError("--data=files needs --image, --labels and --class_names")
        voxel = config.voxel_nm or None
        return datasets.load_files(
            config.image, config.labels, class_names=config.class_names, voxel_nm=voxel
        )
    if config.target == "all":
        return datasets.load_vnc(config.data_folder)
    if config.target not in datasets.VNC_CLASSES:
        raise ValueError(
            f"--target={config.target}: expected all, or one of {', '.join(datasets.VNC_CLASSES)}"
        )
    volume = datasets.load_vnc(config.data_folder)
    found = (volume.labels == datasets.VNC_CLASSES.index(config.target)).astype(np.int32)
    names = ("background", config.target)
    return datasets.LabelledVolume(volume.name, volume.images, found, None, volume.voxel_nm, names)


def build(config: Config, parts: Parts) -> "PixelNetwork":
    """The network of a filled configuration."""
    from densejax import models
    from densejax.active.rounds.segmentation import network_of

    classes, drop = len(parts.units.class_names), config.train_drop or 0.0
    channels, width = parts.units.images.shape[-1], config.width or 1.0
    if config.network == "unet":
        module: Any = models.UNet(
            classes,
            width=round(width),
            scales=config.scales or 4,
            padding="SAME",
            logit_relu=False,
            channels=channels,
            drop=drop,
        )
        multiple = 2 ** ((config.scales or 4) - 1)
        if any(n % multiple for n in parts.units.images.shape[2:4]) and not config.crop:
            raise ValueError(
                f"units of {parts.units.images.shape[2:4]} pixels: a U-Net of {config.scales} "
                f"scales takes multiples of {multiple} (--size, --scales)"
            )
    else:
        kinds = {
            "deeplab": models.DeepLab,
            "segnet": models.SegNet,
            "segnet_basic": models.SegNetBasic,
            "fcn": models.FCN8s,
        }
        module = kinds[config.network or ""](classes, width=width, drop=drop)
    return network_of(module, parts.units, query_drop=config.query_drop or 0.0)


def training_of(config: Config) -> "Training":
    """How networks of a filled configuration learn."""
    from densejax.active.rounds.segmentation import Training
    from densejax.segmentation.unit_task import UnitDraw

    crop = (config.crop, config.crop) if config.crop else None
    scale = (config.scale[0], config.scale[1]) if len(config.scale) == 2 else (1.0, 1.0)
    if len(config.scale) not in (0, 2):
        raise ValueError(f"--scale={config.scale}: expected two factors")
    return Training(
        config.steps or 0,
        config.learning_rate or 0.0,
        warm_steps=config.warm_steps or 0,
        warm_rate=config.warm_rate or 0.0,
        batch=config.batch,
        optimiser=config.optimiser or "adamw",
        schedule=config.schedule or "constant",
        weight_decay=config.weight_decay or 0.0,
        draw=UnitDraw(crop, scale, config.flips or ""),
        weighted=config.weighted,
        warm_start=bool(config.warm_start),
    )


def subject_of(config: Config, parts: Parts, workdir: Path, **more: Any) -> "Segmentation":
    """What the rounds of a filled configuration learn."""
    from densejax.active.rounds.segmentation import Segmentation
    from densejax.segmentation.unit_task import padded_pictures

    multiple = 2 ** ((config.scales or 4) - 1) if config.network == "unet" else 1
    images, labels = padded_pictures(
        parts.test_images, parts.test_labels, multiple=(1, multiple, multiple)
    )
    names = strategy_names(config)
    if any("ensemble_" in name for name in names) and len(config.seeds) < 2:
        raise ValueError("a committee of seeds (ensemble_...) needs 2 or more --seeds, found 1")
    return Segmentation(
        parts.units,
        build(config, parts),
        training_of(config),
        images,
        labels,
        names,
        passes=config.passes,
        members=len(config.seeds),
        chunk=config.chunk,
        thresholds=workdir / "thresholds.json",
        binary=len(parts.units.class_names) == 2,
        **more,
    )


def run(config: Config, workdir: Path) -> "Results":
    """All rounds, and what they came to."""
    from densejax.active.rounds import segmentation_report as report
    from densejax.active.rounds.engine import Rounds
    from densejax.active.rounds.oracles import KnownLabels
    from densejax.active.rounds.records import Plan
    from densejax.active.rounds.segmentation import strategies_of

    given, config = config, filled(config)
    strategies = strategies_of(strategy_names(config))
    parts = load(config)
    plan = Plan(
        strategies,
        config.seeds,
        initial=config.initial or 0,
        budget=config.budget or 0,
        rounds=config.rounds or 0,
        keep=config.keep,
        base_seed=config.base_seed,
        warm_start=bool(config.warm_start),
    )
    more: dict[str, Any] = {}
    oracle: Any = KnownLabels(np.zeros(len(parts.units), np.int32), classes=1)
    if config.oracle == "file":
        if cheats := [n for n in strategies if "error:" in n or "miou:" in n]:
            raise ValueError(f"{cheats[0]} needs the true masks, which --oracle=file has not")
        from densejax.active.rounds.oracles import LabelFolder

        oracle = LabelFolder(parts.units, workdir)
        more = {"mask": oracle.mask}
    subject = subject_of(config, parts, workdir, **more)
    if config.oracle == "file":
        oracle.predict = subject.predict
    rounds = Rounds(subject, oracle, plan, workdir=workdir, slots=config.slots, side=config.side)
    start_folder(given, workdir, ignore=VARYING)
    _same_pool(parts.units, workdir)
    shape = " x ".join(map(str, parts.units.images.shape[1:]))
    print(
        f"{config.data}: {len(parts.units):,} units of {shape}, {len(parts.units.class_names)} "
        f"classes, {len(parts.test_labels)} test sections or pictures; "
        f"{len(strategies)} strategies x {len(config.seeds)} seeds x {plan.rounds} rounds"
    )
    done = rounds.run()
    results = report.collect(done, parts.units, workdir, score=subject.score)
    title = f"{config.data}, {len(parts.units):,} units, {len(config.seeds)} seeds"
    report.summarise(
        results,
        workdir / "summary",
        title=title,
        published=config.published or None,
        findings=findings(results, config.protocol),
    )
    return results


def _same_pool(units: "Units", workdir: Path) -> None:
    """Refuse a pool that has changed since the run began."""
    from densejax.io import write_text

    path, now = workdir / "pool.sha256", units.checksum()
    if path.exists() and (then := path.read_text().strip()) != now:
        raise ValueError(
            f"{path}: the pool has changed since this run began (then {then[:12]}, now "
            f"{now[:12]}): its files, or what cuts units from them; start in another --workdir"
        )
    write_text(path, now + "\n")


if __name__ == "__main__":
    main(Config, run, description=__doc__)
