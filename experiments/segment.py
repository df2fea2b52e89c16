"""How good are many seeds of one segmentation network, and how good is the ensemble of the best?

Trains a population of networks on windows of labelled 3-D electron microscopy, all in one compiled
program; ranks them on an evaluation volume; combines the best into an ensemble; and reports on a
test volume that neither training nor ranking has seen, beside a random forest.

Data: a synthetic platelet world generated here (default), the Drosophila VNC stack
(``--data=vnc``), the platelet set of Guay et al. 2021 (``--data=platelets``), or any volume
(``--image=... --labels=... --voxel_nm=50,4,4``).

    python -m experiments.segment --minutes=7.5 --workdir=runs/first
    python -m experiments.segment --data=vnc --data_folder=data/vnc --seeds=0:8 --workdir=runs/vnc
    python -m experiments.segment --init_from=runs/first --extra_labels=corrections \\
        --learning_rate=3e-4 --workdir=runs/second

The third trains on from the best members of a run, with blocks that an annotator corrected
(``experiments.correct``) beside the training volume.

``--recipe=planned`` (default) plans network, windows, sampling and steps from the data, says why,
and takes any flag instead; ``--minutes`` fits steps to a time. ``--recipe=published`` is the
thesis' training. The same command again continues; more ``--seeds`` extend the sweep. Published
setting: ``--recipe=published --data=platelets --width=32 --logit_relu --window=5,300,300
--spacing=2,100,100 --steps=33120 --augmentation.elastic=released --seeds=0:26``. Expected results:
``experiments/results/README.md``.
"""

import json
import math
import time
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from densejax.data.augment import PLANNED, Augmentation, draw_window
from densejax.data.extra_windows import draw_mixed_window
from densejax.data.sampling import Sampling
from densejax.ensembles.views import view_count
from densejax.instances import instance_key
from densejax.models import hybrid, unet, unet3d
from densejax.models.layers import draw_parameters
from densejax.models.planned_unet import PlannedUNet
from densejax.segmentation import baseline, planning, report, sources
from densejax.segmentation.corrections import continued
from densejax.segmentation.prepare import sweep_data
from densejax.segmentation.rendering.films import record_section
from densejax.segmentation.task import PUBLISHED_L2, Descent, WindowTask
from densejax.training.config import (
    asked_for,
    option,
    optional_fields,
    parse_grid,
    parse_seeds,
    start_folder,
)
from densejax.training.entry import main
from densejax.training.folders import members_of
from densejax.training.logs import Reporter
from densejax.training.sweep import Schedule, Sweep

# Settings that change no trained number: a run may go on with others.
VARYING = (
    *("seeds", "slots", "strategy", "grid", "overlap", "record", "baseline"),
    *("prediction_window", "views", "blend"),
)

Given = optional_fields(Augmentation, "Given")
"""The fields of ``Augmentation``, None where the recipe decides."""

BY_RECIPE = "; default: by the recipe"


@dataclass(frozen=True)
class Config(sources.DataOptions):
    """Everything that decides a result; what is None, the recipe decides before any training."""

    recipe: Literal["planned", "published"] = option(
        "planned", "planned from the data, or the thesis' own; every flag below wins over either"
    )
    recipe_version: int | None = option(None, "of the plan; set by the program")
    minutes: float = option(
        0.0, "wall time of the whole run, for which steps are planned; 0: no limit", unit="minutes"
    )
    baseline: bool = option(True, "train a random forest on filters first, to compare with")
    network: (
        Literal[
            "planned_unet",
            "hybrid",
            "no_3x3x3",
            "no_multi_loss",
            "no_pyramid",
            "unet",
            "unet3d_thin",
            "unet3d_thick",
        ]
        | None
    ) = option(None, "architecture; see python -m experiments.networks" + BY_RECIPE)
    width: int | None = option(
        None, "channels of the finest scale (published: hybrid 32, U-Net 64)" + BY_RECIPE
    )
    norm: Literal["instance", "group", "none"] | None = option(
        None, "normalisation of convolutions" + BY_RECIPE
    )
    dimensions: Literal["2d", "3d"] | None = option(
        None, "planned_unet: label sections for themselves, or volumes" + BY_RECIPE
    )
    stem: int | None = option(
        None, "planned_unet: voxels along y and x that are folded into channels" + BY_RECIPE
    )
    strides: tuple[str, ...] | None = option(
        None, "planned_unet: of each scale, such as 1x2x2,1x2x2; the first is the stem" + BY_RECIPE
    )
    kernels: tuple[str, ...] | None = option(
        None, "planned_unet: of each scale, such as 1x3x3,3x3x3" + BY_RECIPE
    )
    neighbours: int | None = option(
        None, "planned_unet, 2d: sections on either side that are channels" + BY_RECIPE
    )
    block: Literal["plain", "residual"] | None = option(None, "planned_unet: blocks" + BY_RECIPE)
    deep_supervision: bool | None = option(
        None, "planned_unet: a loss on the coarser scales, too" + BY_RECIPE
    )
    logit_relu: bool = option(
        False, "ReLU on the logits, as released; kills the logits of whole classes (see results)"
    )
    released_upsampling: bool = option(False, "upsample z in the pyramid, as released")
    precision: Literal["auto", "float32", "bfloat16"] = option(
        "auto",
        "of the computation; parameters are float32. auto: bfloat16 on an accelerator for "
        "the planned recipe, else float32",
    )
    window: tuple[int, ...] | None = option(
        None, "input window z,y,x of training" + BY_RECIPE, unit="voxels"
    )
    prediction_window: tuple[int, ...] | None = option(
        None, "input window z,y,x of the final prediction" + BY_RECIPE, unit="voxels"
    )
    spacing: tuple[int, ...] | None = option(
        None, "bin z,y,x of the published window grid, in place of sampling by class", unit="voxels"
    )
    class_share: float | None = option(
        None, "share of the windows around voxels of each class in turn" + BY_RECIPE
    )
    reject_empty: float | None = option(
        None, "probability that a window of only the commonest class is drawn again" + BY_RECIPE
    )
    augmentation: Any = field(default_factory=Given, metadata={"flags": Given})
    error_weights: Literal["published", "diffusive", "balance", "none"] | None = option(
        None,
        "voxel weights: class balance and edges, released edges, balance only, none" + BY_RECIPE,
    )
    steps: int | None = option(None, "updates of each instance" + BY_RECIPE, unit="steps")
    batch: int | None = option(None, "windows an update" + BY_RECIPE)
    loss: Literal["dice", "cross_entropy"] | None = option(
        None, "soft Dice beside cross-entropy, or cross-entropy alone" + BY_RECIPE
    )
    dice_weight: float = option(1.0, "weight of Dice beside the cross-entropy")
    optimiser: Literal["adamw", "sgd", "published"] | None = option(
        None, "adamw, sgd (Nesterov), or the published Adam" + BY_RECIPE
    )
    schedule: Literal["polynomial", "cosine", "constant", "published"] | None = option(
        None, "of the learning rate; published: a staircase" + BY_RECIPE
    )
    learning_rate: float | None = option(None, "initial learning rate" + BY_RECIPE)
    warmup: int = option(30, "steps over which the learning rate rises (not published)")
    weight_decay: float = option(0.01, "of kernels, for adamw and sgd")
    clip: float = option(12.0, "largest norm of the gradient, for adamw and sgd; 0: any")
    average: float = option(
        0.0, "decay of an exponential moving average of the parameters, for adamw and sgd; 0: none"
    )
    decay_rate: float = option(0.75, "published schedule: factor every 10^3.4 steps")
    two_d_loss: float = option(0.33, "weight of the 2-D module's loss (c_2D of equation 4.3)")
    reduction: Literal["mean", "sum"] = option("mean", "of the loss over voxels; released: sum")
    grid: str = option("", "settings x seeds, such as learning_rate=1e-3,3e-4;weight_decay=0,0.1")
    stop_below: float = option(
        0.0, "end an instance early below this MIoU (published: 0.3)", unit="MIoU"
    )
    stop_after: int = option(0, "first step at which to end early", unit="steps")
    log_every: int | None = option(None, "interval of metrics rows" + BY_RECIPE, unit="steps")
    evaluate_every: int | None = option(None, "interval of evaluations" + BY_RECIPE, unit="steps")
    evaluation_windows: int | None = option(
        None,
        "windows of the evaluation volume that rank while training, spread evenly; 0 is all"
        + BY_RECIPE,
    )
    checkpoint_every: int | None = option(None, "interval of checkpoints" + BY_RECIPE, unit="steps")
    record: int = option(
        0, "interval of frames for films (experiments.render --run); 0 records none", unit="steps"
    )
    overlap: tuple[int, ...] = option(
        (), "voxels z,y,x that windows of the final prediction share; default: a third, as released"
    )
    views: Literal["one", "flips", "turns"] | None = option(
        None, "of a window that a prediction averages: one, reflections, turns" + BY_RECIPE
    )
    blend: Literal["centre", "gaussian"] | None = option(
        None, "take a voxel from its most central window, or a weighted mean" + BY_RECIPE
    )
    seeds: tuple[int, ...] | None = option(
        None,
        "seeds, such as 0:8 or 0,3,5; more of them extend a sweep" + BY_RECIPE,
        parse=parse_seeds,
    )
    slots: int = option(0, "instances in training at once; 0 is as many as fit")
    strategy: Literal["map", "vmap", "auto"] = option(
        "map", "instances of one device one after another, side by side, or the faster of the two"
    )
    base_seed: int = option(0, "from which all seeds' keys are folded")
    init_from: str = option("", "folder of a run: seed s starts from its s-th best member")
    extra_labels: str = option("", "folder of corrections (experiments.correct) to train on too")
    extra_share: float = option(0.5, "share of the windows around corrected voxels, in hundredths")

    @staticmethod
    def upgrade(record: dict[str, Any]) -> dict[str, Any]:
        """What a run's ``config.json`` says, whenever it was begun."""
        if "recipe" in record:
            return record
        # Before there were recipes there was the published one, and less could happen to a window.
        augmentation = asdict(Augmentation()) | record.get("augmentation", {})
        published = {"recipe": "published", "precision": "float32"} | PUBLISHED
        return published | record | {"augmentation": augmentation}


BEGUN = time.monotonic()  # of the process, but for its imports until here
PLANNED_ONLY = ("dimensions", "stem", "strides", "kernels", "neighbours", "block")
"""Flags of ``planned_unet``."""

PUBLISHED: dict[str, Any] = {
    "network": "hybrid",
    "width": 8,
    "norm": "none",
    "window": (5, 64, 64),
    "spacing": (2, 21, 21),
    "error_weights": "published",
    "steps": 1000,
    "batch": 1,
    "loss": "cross_entropy",
    "optimiser": "published",
    "schedule": "published",
    "learning_rate": 1e-3,
    "log_every": 50,
    "evaluate_every": 200,
    "evaluation_windows": 64,
    "checkpoint_every": 200,
    "views": "one",
    "blend": "centre",
    "seeds": (0, 1, 2, 3),
}


def check_flags(config: Config) -> None:
    """Refuse flags that contradict each other, before any data is read.

    Raises:
      ValueError: the flags are named.
    """
    if config.minutes < 0 or not math.isfinite(config.minutes):
        raise ValueError(f"--minutes={config.minutes}; expected 0 (no limit) or more")
    if config.minutes and config.steps is not None:
        raise ValueError(
            f"--minutes={config.minutes:g} plans the steps, and --steps={config.steps} gives them; "
            "give one of them"
        )
    network = config.network or ("planned_unet" if config.recipe == "planned" else "hybrid")
    own = [name for name in PLANNED_ONLY if getattr(config, name) is not None]
    own += ["deep_supervision"] if config.deep_supervision else []
    if own and network != "planned_unet":
        raise ValueError(f"--{own[0]} is of --network=planned_unet, and --network is {network}")
    if network == "planned_unet" and config.recipe == "published":
        raise ValueError("--network=planned_unet has no published setting; take --recipe=planned")
    published = config.recipe == "published"
    optimiser = config.optimiser or ("published" if published else "adamw")
    schedule = config.schedule or ("published" if published else "polynomial")
    loss = config.loss or ("cross_entropy" if published else "dice")
    if (optimiser == "published") != (schedule == "published"):
        raise ValueError(
            f"--optimiser={optimiser} with --schedule={schedule}: the published ones go together"
        )
    if optimiser == "published" and (loss == "dice" or config.average):
        raise ValueError(
            "--optimiser=published has the published loss and keeps no average; take "
            "--optimiser=adamw --schedule=polynomial for --loss=dice or --average"
        )
    if config.spacing and (config.class_share or config.reject_empty):
        raise ValueError(
            "--spacing is the published window grid, --class_share and --reject_empty sample "
            "otherwise; give one or the other"
        )
    if not 0 <= config.average < 1:
        raise ValueError(f"--average={config.average}; expected 0 (none) to below 1")
    known = {"learning_rate", "decay_rate", "two_d_loss", "l2_scale"}
    if optimiser != "published":
        weight = config.dice_weight if loss == "dice" else 0.0
        known |= set(Descent(steps=1, dice_weight=weight).settings())
    unknown = set(parse_grid(config.grid)) - known
    if unknown:
        raise ValueError(
            f"--grid={config.grid}: settings {sorted(unknown)} are none of {sorted(known)}"
        )
    given = {
        name: getattr(config, name)
        for name in ("steps", "log_every", "evaluate_every", "checkpoint_every")
        if getattr(config, name) is not None
    }
    every = given.get("log_every", 1)
    Schedule(**({n: every for n in ("steps", *_INTERVALS)} | given))


_INTERVALS = ("log_every", "evaluate_every", "checkpoint_every")


def begun_with(config: Config, workdir: Path) -> Config:
    """The configuration with what its folder was begun with in place of what the recipe decides.

    Raises:
      ValueError: another version of the recipe began it.
    """
    path = workdir / "config.json"
    if not path.exists():
        return config
    before = Config.upgrade(json.loads(path.read_text()))
    version = before.get("recipe_version")
    if before["recipe"] == "planned" and version != planning.RECIPE_VERSION:
        raise ValueError(
            f"{path} was planned by version {version} of the recipe, and this is version "
            f"{planning.RECIPE_VERSION}: name another --workdir, or go on with the release that "
            "began it"
        )
    if before["recipe"] != config.recipe:
        raise ValueError(
            f"{path} was begun with --recipe={before['recipe']}, found --recipe={config.recipe}; "
            "name another --workdir, or give the recipe that it was begun with"
        )
    stood: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in before.items()
        if value is not None and getattr(config, name, 0) is None
    }
    augmentation = Given(**(before["augmentation"] | asked_for(config.augmentation)))
    return replace(config, **stood, augmentation=augmentation)


def as_ancestor(config: Config) -> Config:
    """The configuration with the network of the run that it begins from, where none is asked for.

    Raises:
      FileNotFoundError: there is no such run.
    """
    known = continued.architecture_of(config, Path(config.init_from))
    return replace(config, **{n: v for n, v in known.items() if getattr(config, n) is None})


def settle(config: Config, parts: sources.Parts | None) -> Config:
    """Let the recipe decide what was not asked for; a plan is printed with its reasons.

    Args:
      config: as asked for.
      parts: what is planned from; the published recipe needs none.

    Raises:
      ValueError: the plan does not fit the data or the machine.
    """
    asked, base = asked_for(config), Augmentation()
    accelerator = jax.default_backend() != "cpu"
    values: dict[str, Any] = {}
    if config.recipe == "published":
        values = PUBLISHED | asked
        values.setdefault("prediction_window", values["window"])
        precision = "float32"
    else:
        base = PLANNED
        precision = "bfloat16" if accelerator else "float32"
        if config.recipe_version is None:
            if parts is None:
                raise ValueError("--recipe=planned needs data to plan from")
            found = planning.plan(planning.fingerprint(parts), asked)
            lines = [line for line in found.lines() if not (config.minutes and "--steps " in line)]
            print("\n".join(["plan", *lines]), flush=True)
            values = dict(found.values)
        values |= asked
        if config.seeds is None:
            count = planning.members_for(config.minutes, devices=len(jax.local_devices()))
            values["seeds"] = tuple(range(count))
        if config.spacing:
            values |= {"class_share": 0.0, "reject_empty": 0.0}
        if values["window"][1] != values["window"][2]:
            base = replace(base, quarter_turns=False)
        values["recipe_version"] = planning.RECIPE_VERSION
    if config.precision == "auto":
        values["precision"] = precision
    values["augmentation"] = Given(**(asdict(base) | asked_for(config.augmentation)))
    return replace(config, **_intervals(values | {"minutes": config.minutes}))


def _intervals(values: dict[str, Any]) -> dict[str, Any]:
    """Intervals that divide: forty rows and ten evaluations where none are asked for."""
    steps = values["steps"]
    log = values.get("log_every") or max(1, steps // 40)
    every = max(log, steps // 10 // log * log)
    chosen = {"log_every": log, "evaluate_every": every, "checkpoint_every": every}
    return chosen | {"evaluation_windows": 32} | values


def build(config: Config, classes: int) -> tuple[Any, WindowTask]:
    """The network and the task of a configuration; one that is planned must be settled before."""
    if config.recipe == "published":
        config = settle(config, None)
    dtype = jnp.bfloat16 if config.precision == "bfloat16" else jnp.float32
    norm: Any = config.norm or "none"
    common: dict[str, Any] = {
        "classes": classes,
        "width": config.width,
        "logit_relu": config.logit_relu,
        "norm": norm,
        "dtype": dtype,
    }
    hybrid_options = common | {"upsample_z": config.released_upsampling}
    networks: dict[str, Any] = {
        "planned_unet": lambda: _planned_unet(config, classes, dtype),
        "hybrid": lambda: hybrid.Hybrid2D3D(**hybrid_options),
        "no_multi_loss": lambda: hybrid.Hybrid2D3D(**hybrid_options),
        "no_3x3x3": lambda: hybrid.Hybrid2D3D(**hybrid_options, conv3d_in_2d=False),
        "no_pyramid": lambda: hybrid.Hybrid2D3D(**hybrid_options, pyramid=False),
        "unet": lambda: unet.UNet(**common, padding="SAME"),
        "unet3d_thin": lambda: unet3d.thin(**common),
        "unet3d_thick": lambda: unet3d.thick(**common),
    }
    model = networks[str(config.network)]()
    published = config.optimiser == "published"
    penalised = published and isinstance(model, hybrid.Hybrid2D3D)
    window = sources.three(config.window or (), "--window")
    output = model.output_window(window)
    sampling = sampling_of(config)
    draw: Any = partial(
        draw_window,
        input_window=window,
        output_window=output,
        spacing=config.spacing or output,
        augmentation=Augmentation(**asdict(config.augmentation)),
        sampling=sampling,
    )
    if config.extra_labels:
        percent = continued.percent_of(config.extra_share)
        draw = partial(draw_mixed_window, percent=percent, **draw.keywords)
    descent = None
    if not published:
        descent = Descent(
            steps=config.steps or 1,
            optimiser=config.optimiser,  # type: ignore[arg-type]
            schedule=config.schedule,  # type: ignore[arg-type]
            warmup=config.warmup,
            weight_decay=config.weight_decay,
            dice_weight=config.dice_weight if config.loss == "dice" else 0.0,
            clip=config.clip,
            average=config.average,
        )
    task = WindowTask(
        init_params=lambda key: draw_parameters(key, model, (1, *window, 1)),
        network=model.apply,
        draw=draw,
        classes=classes,
        batch=config.batch or 1,
        learning_rate=config.learning_rate or 0.0,
        decay_rate=config.decay_rate,
        two_d_loss=0.0 if config.network == "no_multi_loss" else config.two_d_loss,
        l2=PUBLISHED_L2 if penalised else None,
        group_of=hybrid.parameter_group if penalised else (lambda path: None),
        reduction=config.reduction,
        stop_below=config.stop_below,
        stop_after=config.stop_after,
        descent=descent,
    )
    return model, task


def sampling_of(config: Config) -> Sampling | None:
    """How windows are sampled by class; None is the published grid."""
    if config.spacing or (config.class_share is None and config.reject_empty is None):
        return None
    return Sampling(config.class_share or 0.0, config.reject_empty or 0.0)


def _planned_unet(config: Config, classes: int, dtype: Any) -> PlannedUNet:
    strides = tuple(planning.parse_sizes(text) for text in config.strides or ())
    width = config.width or 1
    return PlannedUNet(
        classes=classes,
        widths=tuple(min(width * 2**i, planning.MOST_WIDTH) for i in range(len(strides))),
        kernels=tuple(planning.parse_sizes(text) for text in config.kernels or ()),
        strides=strides,
        neighbours=config.neighbours or 0,
        block=config.block or "plain",
        norm=config.norm or "none",
        deep_supervision=bool(config.deep_supervision),
        dtype=dtype,
    )


def run(config: Config, workdir: Path) -> report.Summary:
    """Train, rank, combine, report; returns the summary's arrays."""
    check_flags(config)
    config = begun_with(config, workdir)
    if config.init_from and config.recipe == "planned":
        config = as_ancestor(config)
    parts = sources.load_parts(config)
    report.print_volumes(parts)
    resumed = (workdir / "config.json").exists()
    config = settle(config, parts)
    model, task = build(config, len(parts.class_names))
    window = sources.three(config.window or (), "--window")
    output = model.output_window(window)
    weights = sources.error_weights_of(parts, str(config.error_weights))
    sizes: dict[str, Any] = {"window": window, "output": output}
    most = config.evaluation_windows or 0
    sampled = sampling_of(config) is not None
    data = sweep_data(
        parts.train, parts.evaluation, weights, at_most=most, sampled=sampled, **sizes
    )
    origin = continued.read_continued(
        config, parts, task.init_params, weights=weights, workdir=workdir, **sizes
    )
    report.print_network(task, window=window, output=output)
    forest = None
    if config.baseline:
        forest = baseline.compare(parts, workdir / "summary")
    schedule = _schedule(config)
    reporter = Reporter(score=task.score, events=workdir / "tensorboard")
    members = members_of(config.seeds or (), parse_grid(config.grid))
    recording = None
    if config.record:
        recording = record_section(
            parts.evaluation,
            task,
            every=config.record,
            window=window,
            output=output,
            workdir=workdir,
        )
    sweep = Sweep(
        task,
        {**data, **origin.data},
        members,
        workdir=workdir,
        schedule=schedule,
        slots=config.slots,
        strategy=config.strategy,
        base_seed=config.base_seed,
        reporter=reporter,
        begin=origin.begin,
        recording=recording,
    )
    if config.minutes and not resumed:
        config = _fit_time(config, sweep, parts, members=len(members))
        _, task = build(config, len(parts.class_names))
        sweep.settle(task, _schedule(config))
    start_folder(config, workdir, ignore=VARYING)
    origin.keep(workdir)
    key = instance_key(jax.random.key(config.base_seed), members[0].seed)
    report.draw_augmented(
        jax.random.split(key)[1],  # what the task draws windows by
        task,
        {**data, **origin.data},
        parts.train,
        path=workdir / "summary" / "augmented.png",
    )
    outcomes = sweep.run()
    reporter.close()
    tile = sources.three(config.prediction_window or window, "--prediction_window")
    return report.summarise_sweep(
        outcomes,
        parts,
        task,
        workdir=workdir,
        window=tile,
        output=model.output_window(tile),
        overlap=config.overlap,
        views=config.views or "one",
        blend=config.blend or "centre",
        forest=forest,
    )


def _schedule(config: Config) -> Schedule:
    return Schedule(
        config.steps or 1,
        config.log_every or 1,
        config.evaluate_every or 1,
        config.checkpoint_every or 1,
    )


def _fit_time(config: Config, sweep: Sweep, parts: sources.Parts, *, members: int) -> Config:
    """Plan the steps for the time that is left, by a probe of the compiled step."""
    probe = sweep.probe()
    seen = sweep.data["evaluation_labels"].size
    volumes = (parts.evaluation, parts.test)
    cost = planning.Cost(
        step=probe.step,
        evaluation=probe.evaluation,
        voxel=probe.evaluation / seen * view_count(config.views or "one"),
    )
    left = 60 * config.minutes - (time.monotonic() - BEGUN)
    log_every = config.log_every if config.log_every and config.log_every < 50 else 10
    spent = planning.plan_time(
        left,
        cost,
        members=members,
        devices=len(jax.local_devices()),
        voxels=sum(volume.labels.size for volume in volumes),
        log_every=log_every,
    )
    every = max(1, spent.steps // spent.evaluations // log_every) * log_every
    print(
        f"time         {left:.0f} s are left of {config.minutes:g} minutes; a step takes "
        f"{1000 * cost.step:.0f} ms, an evaluation {cost.evaluation:.1f} s: {spent.steps} steps of "
        f"{members} members, {spent.predicting:.0f} s for prediction and report",
        flush=True,
    )
    return replace(
        config,
        steps=spent.steps,
        log_every=log_every,
        evaluate_every=every,
        checkpoint_every=every,
    )


def fast(config: Config) -> Config:
    """The same set-up, two instances, a handful of steps."""
    return replace(
        config,
        minutes=0.0,
        seeds=(config.seeds or (0, 1))[:2],
        steps=4,
        log_every=2,
        evaluate_every=4,
        checkpoint_every=4,
        evaluation_windows=2,
    )


if __name__ == "__main__":
    main(Config, run, fast=fast, description=__doc__)
