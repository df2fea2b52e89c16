"""Is an annotator's time better spent where the ensemble disagrees than anywhere?

The correction loop of section 4.3.3 (Emam 2022) with a simulated annotator: an ensemble trained on
a small world labels a larger one that it has not seen; so many blocks are corrected (the truth is
known); the ensemble trains on with them; and again. Blocks are chosen by disagreement, by entropy,
or at random; ``none`` trains on as long without any correction. The score is MIoU on a further
world that is never corrected, over the number of corrected voxels.

Data: synthetic platelet worlds, four new ones a repeat.

    python -m experiments.correction_loop --workdir=runs/corrections

The same command again continues; more ``--repeats`` extend. ``summary/rows.csv`` holds every
ensemble, ``summary/findings.md`` the differences between arms with their error and p over repeats,
``summary/corrections.png`` the curves. Expected result and runtime:
``experiments/results/README.md``.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from densejax.cli import main, option, start_folder
from densejax.data.augment import draw_window
from densejax.data.extra_windows import draw_mixed_window
from densejax.models.hybrid import Hybrid2D3D
from densejax.models.layers import draw_parameters
from densejax.models.unet import UNet
from densejax.segmentation import sources
from densejax.segmentation.finetune import continued
from densejax.segmentation.finetune.study import ARMS, Loop, Row, print_row, report, run_repeat
from densejax.segmentation.prepare import sweep_data
from densejax.segmentation.task import WindowTask
from densejax.training.sweep import Schedule

# Settings that change no trained number: a run may go on with others.
VARYING = ("repeats", "arms")


@dataclass(frozen=True)
class Config:
    """Everything that decides a result."""

    world: tuple[int, ...] = option((8, 96, 96), "z,y,x of the training world", unit="voxels")
    unseen: tuple[int, ...] = option(
        (12, 192, 192),
        "z,y,x of the world to correct, and of the one that scores",
        unit="voxels",
        fast=lambda config: config.world,
    )
    network: Literal["hybrid", "unet"] = option("unet", "architecture")
    width: int = option(8, "channels of the finest scale")
    window: tuple[int, ...] = option((3, 48, 48), "input window z,y,x", unit="voxels")
    members: int = option(3, "networks in the ensemble", fast=2)
    steps: int = option(600, "updates of the first training", unit="steps", fast=4)
    further: int = option(200, "updates of each round", unit="steps", fast=4)
    learning_rate: float = option(1e-3, "of the first training")
    further_rate: float = option(5e-4, "learning rate of each round")
    extra_share: float = option(0.5, "share of windows around corrected voxels, in hundredths")
    rounds: int = option(3, "of correcting and training on", fast=1)
    block: tuple[int, ...] = option((1, 32, 32), "size z,y,x of a corrected block", unit="voxels")
    blocks: int = option(12, "corrected a round", fast=3)
    arms: tuple[str, ...] = option(ARMS, f"of {', '.join(ARMS)}", fast=("disagreement", "random"))
    repeats: int = option(6, "each with worlds and seeds of its own", fast=1)


def build(config: Config, classes: int) -> tuple[Any, dict[str, WindowTask]]:
    """The network, and the tasks of the first training and of rounds without and with blocks."""
    model: Any = (
        UNet(classes=classes, width=config.width, padding="SAME")
        if config.network == "unet"
        else Hybrid2D3D(classes=classes, width=config.width)
    )
    window = sources.three(config.window, "--window")
    sizes: dict[str, Any] = {
        "input_window": window,
        "output_window": model.output_window(window),
        "spacing": (2, *(max(1, side // 3) for side in window[1:])),
    }
    percent = continued.percent_of(config.extra_share)
    from_volume: Any = partial(draw_window, **sizes)
    start = WindowTask(
        init_params=lambda key: draw_parameters(key, model, (1, *window, 1)),
        network=model.apply,
        draw=from_volume,
        classes=classes,
        learning_rate=config.learning_rate,
    )
    plain = replace(start, learning_rate=config.further_rate)
    mixed = replace(plain, draw=partial(draw_mixed_window, percent=percent, **sizes))
    return model, {"start": start, "plain": plain, "mixed": mixed}


def make_loop(config: Config, repeat: int, workdir: Path) -> Loop:
    """The worlds of a repeat, and everything that its arms share."""
    world, unseen = sources.three(config.world, "--world"), sources.three(config.unseen, "--unseen")
    shapes = {"training": world, "evaluation": world, "unseen": unseen, "held out": unseen}
    volumes = [
        sources.synthetic_volume(shape, seed=100 * repeat + number, part=part)
        for number, (part, shape) in enumerate(shapes.items())
    ]
    parts = sources.Parts(
        volumes[0],
        volumes[1],
        volumes[3],
        borders=sources.BORDERS,
        organelles=sources.PLATELET_ORGANELLES,
    )
    model, tasks = build(config, len(parts.class_names))
    window = sources.three(config.window, "--window")
    output = model.output_window(window)
    weights = sources.error_weights_of(parts, "published")
    return Loop(
        **tasks,
        data=sweep_data(parts.train, parts.evaluation, weights, window=window, output=output),
        class_weights=continued.class_weights(parts, weights),
        unseen=volumes[2],
        held_out=parts.test,
        organelles=parts.organelles,
        window=window,
        output=output,
        members=config.members,
        first=_schedule(config.steps, parts=4),
        further=_schedule(config.further, parts=2),
        block=sources.three(config.block, "--block"),
        blocks=config.blocks,
        seed=repeat,
        workdir=workdir / f"repeat_{repeat}",
    )


def _schedule(steps: int, *, parts: int) -> Schedule:
    every = max(1, steps // parts)
    return Schedule(steps, log_every=every, evaluate_every=every, checkpoint_every=every)


@dataclass(frozen=True)
class Result:
    """Every ensemble's scores, and the files."""

    rows: tuple[Row, ...]
    files: tuple[Path, ...]
    failed: int = 0


def run(config: Config, workdir: Path) -> Result:
    """Repeat the loop, arm by arm, and compare the arms."""
    unknown = sorted(set(config.arms) - set(ARMS))
    if unknown or not config.arms:
        raise ValueError(f"--arms={','.join(config.arms)}; expected some of {', '.join(ARMS)}")
    loops = [make_loop(config, repeat, workdir) for repeat in range(config.repeats)]
    start_folder(config, workdir, ignore=VARYING)
    rows: list[Row] = []
    for repeat, loop in enumerate(loops):
        rows += run_repeat(
            loop, repeat=repeat, arms=config.arms, rounds=config.rounds, tell=print_row
        )
    return Result(tuple(rows), tuple(report(rows, workdir / "summary")))


if __name__ == "__main__":
    main(Config, run, description=__doc__)
