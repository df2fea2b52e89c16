"""How good are many seeds of one segmentation network, and how good is the ensemble of the best?

Trains a population of networks on windows of labelled 3-D electron microscopy, all in one compiled
program; ranks them on an evaluation volume; combines the best into an ensemble; and reports on a
test volume that neither training nor ranking has seen.

Data: a synthetic platelet world generated here (default), the Drosophila VNC stack
(``--data=vnc``), the platelet set of Guay et al. 2021 (``--data=platelets``), or any volume
(``--image=... --labels=... --voxel_nm=50,4,4``).

    python -m experiments.segment --workdir=runs/first
    python -m experiments.segment --data=vnc --data_folder=data/vnc --seeds=0:8 --workdir=runs/vnc
    python -m experiments.segment --init_from=runs/first --extra_labels=corrections \\
        --learning_rate=3e-4 --workdir=runs/second

The third trains on from the best members of a run, with blocks that an annotator corrected
(``experiments.correct``) beside the training volume.

The same command again continues; more ``--seeds`` extend the sweep. Published setting:
``--data=platelets --width=32 --logit_relu --window=5,300,300 --spacing=2,100,100 --steps=33120
--augmentation.elastic=released --seeds=0:26``. Defaults: four narrow networks, under ten minutes on
two CPU cores. Expected results: ``experiments/results/README.md``.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from densejax.data.augment import Augmentation, draw_window
from densejax.data.extra_windows import draw_mixed_window
from densejax.models import hybrid, unet, unet3d
from densejax.models.layers import draw_parameters
from densejax.segmentation import report, sources
from densejax.segmentation.corrections import continued
from densejax.segmentation.prepare import sweep_data
from densejax.segmentation.rendering.films import record_section
from densejax.segmentation.task import PUBLISHED_L2, WindowTask
from densejax.training.config import option, parse_grid, parse_seeds, start_folder
from densejax.training.entry import main
from densejax.training.folders import members_of
from densejax.training.logs import Reporter
from densejax.training.sweep import Schedule, Sweep

# Settings that change no trained number: a run may go on with others.
VARYING = ("seeds", "slots", "strategy", "grid", "overlap", "record")


@dataclass(frozen=True)
class Config(sources.DataOptions):
    """Everything that decides a result."""

    network: Literal[
        "hybrid", "no_3x3x3", "no_multi_loss", "no_pyramid", "unet", "unet3d_thin", "unet3d_thick"
    ] = option("hybrid", "architecture; see python -m experiments.networks")
    width: int = option(8, "channels of the finest scale (published: hybrid 32, U-Net 64)")
    logit_relu: bool = option(
        False, "ReLU on the logits, as released; kills the logits of whole classes (see results)"
    )
    released_upsampling: bool = option(False, "upsample z in the pyramid, as released")
    window: tuple[int, ...] = option((5, 64, 64), "input window z,y,x", unit="voxels")
    spacing: tuple[int, ...] = option((2, 21, 21), "bin of the window grid z,y,x", unit="voxels")
    augmentation: Augmentation = field(default_factory=Augmentation)
    error_weights: Literal["published", "diffusive", "balance", "none"] = option(
        "published", "voxel weights: class balance and edges, released edges, balance only, none"
    )
    steps: int = option(1000, "updates of each instance", unit="steps")
    batch: int = option(1, "windows an update")
    learning_rate: float = option(1e-3, "initial rate of Adam")
    decay_rate: float = option(0.75, "factor on the learning rate every 10^3.4 steps")
    two_d_loss: float = option(0.33, "weight of the 2-D module's loss (c_2D of equation 4.3)")
    reduction: Literal["mean", "sum"] = option("mean", "of the loss over voxels; released: sum")
    grid: str = option("", "settings x seeds, such as learning_rate=1e-3,3e-4;l2_scale=0,1")
    stop_below: float = option(
        0.0, "give an instance up below this MIoU (published: 0.3)", unit="MIoU"
    )
    stop_after: int = option(0, "first step at which to give up", unit="steps")
    log_every: int = option(50, "interval of metrics rows", unit="steps")
    evaluate_every: int = option(200, "interval of evaluations", unit="steps")
    evaluation_windows: int = option(
        64, "windows of the evaluation volume that rank while training, spread evenly; 0 is all"
    )
    checkpoint_every: int = option(200, "interval of checkpoints", unit="steps")
    record: int = option(
        0, "interval of frames for films (experiments.render --run); 0 records none", unit="steps"
    )
    overlap: tuple[int, ...] = option(
        (), "voxels z,y,x that windows of the final prediction share; default: a third, as released"
    )
    seeds: tuple[int, ...] = option(
        (0, 1, 2, 3), "seeds, such as 0:8 or 0,3,5; more of them extend a sweep", parse=parse_seeds
    )
    slots: int = option(0, "instances in training at once; 0 is as many as fit")
    strategy: Literal["map", "vmap", "auto"] = option(
        "map", "instances of one device one after another, side by side, or the faster of the two"
    )
    base_seed: int = option(0, "from which all seeds' keys are folded")
    init_from: str = option("", "folder of a run: seed s starts from its s-th best member")
    extra_labels: str = option("", "folder of corrections (experiments.correct) to train on too")
    extra_share: float = option(0.5, "share of the windows around corrected voxels, in hundredths")


def build(config: Config, classes: int) -> tuple[Any, WindowTask]:
    """The network and the task of a configuration."""
    common: dict[str, Any] = {
        "classes": classes,
        "width": config.width,
        "logit_relu": config.logit_relu,
    }
    hybrid_options = common | {"upsample_z": config.released_upsampling}
    networks: dict[str, Any] = {
        "hybrid": lambda: hybrid.Hybrid2D3D(**hybrid_options),
        "no_multi_loss": lambda: hybrid.Hybrid2D3D(**hybrid_options),
        "no_3x3x3": lambda: hybrid.Hybrid2D3D(**hybrid_options, conv3d_in_2d=False),
        "no_pyramid": lambda: hybrid.Hybrid2D3D(**hybrid_options, pyramid=False),
        "unet": lambda: unet.UNet(**common, padding="SAME"),
        "unet3d_thin": lambda: unet3d.thin(**common),
        "unet3d_thick": lambda: unet3d.thick(**common),
    }
    model = networks[config.network]()
    is_hybrid = isinstance(model, hybrid.Hybrid2D3D)
    window = sources.three(config.window, "--window")
    output = model.output_window(window)

    draw: Any = partial(
        draw_window,
        input_window=window,
        output_window=output,
        spacing=config.spacing,
        augmentation=config.augmentation,
    )
    if config.extra_labels:
        percent = continued.percent_of(config.extra_share)
        draw = partial(draw_mixed_window, percent=percent, **draw.keywords)
    task = WindowTask(
        init_params=lambda key: draw_parameters(key, model, (1, *window, 1)),
        network=model.apply,
        draw=draw,
        classes=classes,
        batch=config.batch,
        learning_rate=config.learning_rate,
        decay_rate=config.decay_rate,
        two_d_loss=0.0 if config.network == "no_multi_loss" else config.two_d_loss,
        l2=PUBLISHED_L2 if is_hybrid else None,
        group_of=hybrid.parameter_group if is_hybrid else (lambda path: None),
        reduction=config.reduction,
        stop_below=config.stop_below,
        stop_after=config.stop_after,
    )
    return model, task


def run(config: Config, workdir: Path) -> report.Summary:
    """Train, rank, combine, report; returns the summary's arrays."""
    parts = sources.load_parts(config)
    model, task = build(config, len(parts.class_names))
    window = sources.three(config.window, "--window")
    output = model.output_window(window)
    weights = sources.error_weights_of(parts, config.error_weights)
    sizes: dict[str, Any] = {"window": window, "output": output}
    most = config.evaluation_windows
    data = sweep_data(parts.train, parts.evaluation, weights, at_most=most, **sizes)
    origin = continued.read_continued(
        config, parts, task.init_params, weights=weights, workdir=workdir, **sizes
    )
    members = members_of(config.seeds, parse_grid(config.grid))
    schedule = Schedule(
        config.steps, config.log_every, config.evaluate_every, config.checkpoint_every
    )
    start_folder(config, workdir, ignore=VARYING)
    origin.keep(workdir)
    report.print_setting(parts, task, window=window, output=output)
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
    reporter = Reporter(score=task.score, events=workdir / "tensorboard")
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
    outcomes = sweep.run()
    reporter.close()
    return report.summarise_sweep(
        outcomes,
        parts,
        task,
        workdir=workdir,
        window=window,
        output=output,
        overlap=config.overlap,
    )


def fast(config: Config) -> Config:
    """The same set-up, two instances, a handful of steps."""
    return replace(
        config,
        seeds=config.seeds[:2],
        steps=4,
        log_every=2,
        evaluate_every=4,
        checkpoint_every=4,
        evaluation_windows=2,
    )


if __name__ == "__main__":
    main(Config, run, fast=fast, description=__doc__)
