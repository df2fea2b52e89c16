"""How good are many seeds of one segmentation network, and how good is the ensemble of the best?

Trains a population of networks on windows of labelled 3-D electron microscopy, all in one compiled
program; ranks them on an evaluation volume; combines the best into an ensemble; and reports on a
test volume that neither training nor ranking has seen, beside a random forest.

Data: a synthetic platelet world generated here (default), the Drosophila VNC stack
(``--data=vnc``), the platelet set of Guay et al. 2021 (``--data=platelets``), or any volume
(``--image=... --labels=... --voxel_nm=50,4,4``).

    python -m experiments.segment --minutes=7.5 --seeds=0:4 --workdir=runs/first
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

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from densejax.cli import SweepOptions, main, option, parse_grid, start_folder
from densejax.data.augment import Augmentation, draw_window
from densejax.data.extra_windows import draw_mixed_window
from densejax.data.sampling import Sampling
from densejax.inference.members import member_probabilities
from densejax.inference.sliding_window import Prediction, predict_volume, window_bar
from densejax.inference.tiles import Windowing
from densejax.models import hybrid
from densejax.models.layers import draw_parameters
from densejax.population import instance_key
from densejax.segmentation import baseline, recipes, report, sources
from densejax.segmentation.finetune import continued
from densejax.segmentation.networks import network_of
from densejax.segmentation.prepare import sweep_data
from densejax.segmentation.runs import save_learned_from
from densejax.segmentation.task import PUBLISHED_L2, Descent, WindowTask
from densejax.training.folders import Outcome, best_parameters, members_of, ranked
from densejax.training.logs import Reporter
from densejax.training.sweep import Schedule

# Settings that change no trained number: a run may go on with others.
VARYING = (
    *("seeds", "slots", "strategy", "grid", "overlap", "record", "baseline"),
    *("prediction_window", "views", "blend", "ensemble"),
)


@dataclass(frozen=True)
class Config(recipes.RecipeOptions, SweepOptions):
    """Everything that decides a result; what is None, the recipe decides before any training."""

    baseline: bool = option(True, "train a random forest on filters first, to compare with")
    warmup: int = option(30, "steps over which the learning rate rises (not published)")
    weight_decay: float = option(0.01, "of kernels, for adamw and sgd")
    clip: float = option(12.0, "largest norm of the gradient, for adamw and sgd; 0: any")
    decay_rate: float = option(0.75, "published schedule: factor every 10^3.4 steps")
    two_d_loss: float = option(0.33, "weight of the 2-D module's loss (c_2D of equation 4.3)")
    reduction: Literal["mean", "sum"] = option("mean", "of the loss over voxels; released: sum")
    stop_below: float = option(
        0.0, "end an instance early below this MIoU (published: 0.3)", unit="MIoU"
    )
    stop_after: int = option(0, "first step at which to end early", unit="steps")
    record: int = option(
        0, "interval of frames for films (experiments.render --run); 0 records none", unit="steps"
    )
    overlap: tuple[int, ...] = option(
        (), "voxels z,y,x that windows of the final prediction share; default: a third, as released"
    )
    extra_labels: str = option("", "folder of corrections (experiments.correct) to train on too")
    extra_share: float = option(0.5, "share of the windows around corrected voxels, in hundredths")


BEGUN = time.monotonic()  # of the process, but for its imports until here


def build(config: Config, classes: int) -> tuple[Any, WindowTask]:
    """The network and the task of a configuration; one that is planned must be settled before."""
    if config.recipe == "published":
        config = recipes.settle(config, None)
    dtype = jnp.bfloat16 if config.precision == "bfloat16" else jnp.float32
    model = network_of(config, classes, dtype=dtype)
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


def run(config: Config, workdir: Path) -> report.Summary:
    """Train, rank, combine, report; returns the summary's arrays."""
    recipes.check(config)
    config = recipes.begun_with(config, workdir)
    if config.init_from and config.recipe == "planned":
        config = recipes.as_ancestor(config)
    parts = sources.load_parts(config)
    report.print_volumes(parts)
    timed = bool(config.minutes) and config.steps is None
    config = recipes.settle(config, parts)
    model, task = build(config, len(parts.class_names))
    window = sources.three(config.window or (), "--window")
    output = model.output_window(window)
    tile = sources.three(config.prediction_window or window, "--prediction_window")
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
        from densejax.segmentation.rendering.films import record_section  # brings matplotlib

        recording = record_section(
            parts.evaluation,
            task,
            every=config.record,
            window=window,
            output=output,
            workdir=workdir,
        )
    sweep = config.sweep(
        task,
        {**data, **origin.data},
        members,
        workdir=workdir,
        schedule=schedule,
        reporter=reporter,
        begin=origin.begin,
        recording=recording,
    )
    if timed:
        left = 60 * config.minutes - (time.monotonic() - BEGUN)
        predicted = recipes.predicted_voxels(
            parts, model.output_window(tile), overlap=config.overlap
        )
        config = recipes.fit_time(config, sweep, voxels=predicted, members=len(members), left=left)
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
    save_learned_from(workdir, parts)
    windowing = Windowing(
        tile,
        model.output_window(tile),
        overlap=config.overlap or None,
        blend=config.blend or "centre",
        views=config.views or "one",
    )
    return report.summarise_sweep(
        outcomes,
        parts,
        predict(task, ranked(outcomes), parts, windowing),
        workdir=workdir,
        forest=forest,
        choice=config.ensemble or "best",
    )


def predict(
    task: WindowTask, members: Sequence[Outcome], parts: sources.Parts, windowing: Windowing
) -> list[Prediction]:
    """Label the evaluation and the test volume by all members; nothing where there is none."""
    if not members:
        return []
    best = best_parameters([member.folder for member in members], task.init_params)
    probabilities = member_probabilities(task.network, best, views=windowing.views)
    return [
        predict_volume(
            probabilities,
            volume.images,
            windowing.at(volume.voxel_nm),
            progress=window_bar(volume.name),
        )
        for volume in (parts.evaluation, parts.test)
    ]


def _schedule(config: Config) -> Schedule:
    return Schedule(
        config.steps or 1,
        config.log_every or 1,
        config.evaluate_every or 1,
        config.checkpoint_every or 1,
    )


if __name__ == "__main__":
    main(Config, run, description=__doc__)
