"""The recipes of a segmentation: what may be asked for, and what a recipe decides where it is not.

``planned`` plans from the data (``planning``), ``published`` is the thesis' own training. Whatever
a flag says wins over either, and what a run was begun with wins over a new plan.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax

from densejax.cli import asked_for, option, optional_fields, parse_grid, parse_seeds
from densejax.data.augment import PLANNED, Augmentation
from densejax.data.windows import Sizes, evaluation_corners
from densejax.inference.members import view_count
from densejax.segmentation import planning, sources
from densejax.segmentation.finetune import continued
from densejax.segmentation.task import Descent
from densejax.training.sweep import Schedule, Sweep

Given = optional_fields(Augmentation, "Given")
"""The fields of ``Augmentation``, None where the recipe decides."""

BY_RECIPE = "; default: by the recipe"


@dataclass(frozen=True)
class RecipeOptions(sources.DataOptions):
    """The flags that a recipe may decide; an experiment's ``Config`` inherits them."""

    recipe: Literal["planned", "published"] = option(
        "planned",
        "planned from the data, or the thesis' own; every flag below wins over either",
        essential=True,
    )
    recipe_version: int | None = option(None, "of the plan; set by the program")
    minutes: float = option(
        0.0,
        "wall time of the whole run, for which steps are planned; 0: no limit",
        unit="minutes",
        essential=True,
        fast=0.0,
    )
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
    steps: int | None = option(None, "updates of each instance" + BY_RECIPE, unit="steps", fast=4)
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
    average: float = option(
        0.0, "decay of an exponential moving average of the parameters, for adamw and sgd; 0: none"
    )
    grid: str = option("", "settings x seeds, such as learning_rate=1e-3,3e-4;weight_decay=0,0.1")
    log_every: int | None = option(
        None, "interval of metrics rows" + BY_RECIPE, unit="steps", fast=2
    )
    evaluate_every: int | None = option(
        None, "interval of evaluations" + BY_RECIPE, unit="steps", fast=4
    )
    evaluation_windows: int | None = option(
        None,
        "windows of the evaluation volume that rank while training, spread evenly; 0 is all"
        + BY_RECIPE,
        fast=2,
    )
    checkpoint_every: int | None = option(
        None, "interval of checkpoints" + BY_RECIPE, unit="steps", fast=4
    )
    views: Literal["one", "flips", "turns"] | None = option(
        None, "of a window that a prediction averages: one, reflections, turns" + BY_RECIPE
    )
    blend: Literal["centre", "gaussian"] | None = option(
        None, "take a voxel from its most central window, or a weighted mean" + BY_RECIPE
    )
    ensemble: Literal["best", "largest"] | None = option(
        None,
        "how many members: best on evaluation, or the largest not clearly worse" + BY_RECIPE,
    )
    seeds: tuple[int, ...] | None = option(
        None,
        "seeds, such as 0:8 or 0,3,5; more of them extend a sweep" + BY_RECIPE,
        parse=parse_seeds,
        essential=True,
        fast=lambda config: (config.seeds or (0, 1))[:2],
    )
    init_from: str = option("", "folder of a run: seed s starts from its s-th best member")

    @staticmethod
    def upgrade(record: dict[str, Any]) -> dict[str, Any]:
        """What a run's ``config.json`` says, whenever it was begun."""
        if "recipe" in record:
            planned = record["recipe"] == "planned"
            return {"ensemble": "largest" if planned else "best"} | record
        # Before there were recipes there was the published one, and less could happen to a window.
        augmentation = asdict(Augmentation()) | record.get("augmentation", {})
        published = {"recipe": "published", "precision": "float32"} | PUBLISHED
        return published | record | {"augmentation": augmentation}


Options = TypeVar("Options", bound=RecipeOptions)

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
    "ensemble": "best",
    "seeds": (0, 1, 2, 3),
}


def check(config: RecipeOptions) -> None:
    """Refuse flags that contradict each other, before any data is read.

    Raises:
      ValueError: the flags are named.
    """
    if config.minutes < 0 or not math.isfinite(config.minutes):
        raise ValueError(f"--minutes={config.minutes}; expected 0 (no limit) or more")
    if config.minutes and config.steps is not None and config.recipe_version is None:
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


def begun_with(config: Options, workdir: Path) -> Options:
    """The configuration with what its folder was begun with in place of what the recipe decides.

    Raises:
      ValueError: another version of the recipe began it.
    """
    path = workdir / "config.json"
    if not path.exists():
        return config
    before = RecipeOptions.upgrade(json.loads(path.read_text()))
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


def as_ancestor(config: Options) -> Options:
    """The configuration with the network of the run that it begins from, where none is asked for.

    Raises:
      FileNotFoundError: there is no such run.
    """
    known = continued.architecture_of(config, Path(config.init_from))
    return replace(config, **{n: v for n, v in known.items() if getattr(config, n) is None})


def settle(config: Options, parts: sources.Parts | None) -> Options:
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


def predicted_voxels(parts: sources.Parts, output: Sizes, *, overlap: Sequence[int]) -> int:
    """Voxels that a member labels in the final prediction, those of several windows each time.

    Args:
      parts: whose evaluation and test volumes are labelled.
      output: (z, y, x) of a window's output.
      overlap: (z, y, x) that neighbouring outputs share; empty is a third of the output.
    """
    shared = overlap or [size // 3 for size in output]
    windows = sum(
        len(evaluation_corners(volume.labels.shape, output, shared))
        for volume in (parts.evaluation, parts.test)
    )
    return windows * math.prod(output)


def fit_time(config: Options, sweep: Sweep, *, voxels: int, members: int, left: float) -> Options:
    """Plan the steps for the time that is left, by a probe of the compiled step.

    Args:
      config: settled, with ``minutes``.
      sweep: whose step and evaluation are timed; nothing of the probe stays in it.
      voxels: that each member labels at the end (``predicted_voxels``).
      members: that train.
      left: seconds of wall time.

    Raises:
      ValueError: the time is too short for one evaluation.
    """
    probe = sweep.probe()
    seen = sweep.data["evaluation_labels"].size
    cost = planning.Cost(
        step=probe.step,
        evaluation=probe.evaluation,
        voxel=probe.evaluation / seen * view_count(config.views or "one"),
    )
    log_every = config.log_every if config.log_every and config.log_every < 50 else 10
    spent = planning.plan_time(
        left,
        cost,
        members=members,
        devices=len(jax.local_devices()),
        voxels=voxels,
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
