"""Which architecture, of many drawn at random, and is an ensemble of different ones better?

Each seed draws one encoder-decoder (depth, width, convolutions of every block, 3x3x3 convolutions,
window, learning rate, penalty) and trains it; architectures are ranked by the adjusted Rand index
of the evaluation volume, the best are combined into ensembles of 1 to 15, and the number of members
is chosen on the evaluation volume, never on the test volume.

    python -m experiments.search --seeds=0:8 --workdir=runs/search
    python -m launch.local --module=experiments.search --seeds=0:16 --block=1 --processes=2 \\
        --workdir=runs/search -- --steps=1000

The same command again continues; more ``--seeds`` extend the search. Architectures are different
programs, so they are trained one after another, each on one device: the second line trains one on
each device (or share of the cores) at a time, ``launch.slurm`` on a cluster.

Published (Emam 2022, chapter 4): 80 networks, 100,000 steps, 40 training sections of the platelet
set: the best four together have an adjusted Rand index of 0.901, the best alone 0.886. The ranges
of the published search are in none of its sources; see ``--help`` for ours. Departures: every block
has the width of its scale; one L2 penalty for all parameters, no L1; 3x3x3 convolutions are drawn
too (``--ranges.cubes=0,0`` is without). Expected result and runtime:
``experiments/results/README.md``.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from densejax.cli import main, option, seeds_option, start_folder
from densejax.data.augment import Augmentation, draw_window
from densejax.data.datasets import LabelledVolume
from densejax.inference.members import member_probabilities
from densejax.inference.sliding_window import combine, predict_volume, window_bar
from densejax.inference.tiles import Windowing
from densejax.models import cost
from densejax.models.layers import draw_parameters
from densejax.segmentation import sources
from densejax.segmentation.prepare import sweep_data
from densejax.segmentation.report import print_volumes
from densejax.segmentation.search import (
    Architecture,
    Entry,
    Ranges,
    Summary,
    best_of,
    draw_architecture,
    summarise_search,
)
from densejax.segmentation.task import WindowTask
from densejax.training.folders import Member, MemberFolder, Outcome, best_parameters
from densejax.training.logs import Reporter
from densejax.training.sweep import Schedule, Sweep

# Settings that change no trained number: a run may go on with others.
VARYING = ("seeds", "most")


def small(config: "Config") -> Ranges:
    """The ranges of a few steps: small networks."""
    return replace(config.ranges, convolutions=(1, 1), width=(2, 3))


@dataclass(frozen=True)
class Config(sources.DataOptions):
    """Everything that decides a result."""

    window: tuple[int, ...] = option((5, 64, 64), "largest input window z,y,x", unit="voxels")
    ranges: Ranges = field(default_factory=Ranges, metadata={"fast": small})
    augmentation: Augmentation = field(default_factory=Augmentation)
    error_weights: Literal["published", "diffusive", "balance", "none"] = option(
        "published", "voxel weights: class balance and edges, released edges, balance only, none"
    )
    steps: int = option(400, "updates of each network (published: 100,000)", unit="steps", fast=4)
    batch: int = option(1, "windows an update")
    log_every: int = option(50, "interval of metrics rows", unit="steps", fast=2)
    evaluate_every: int = option(100, "interval of evaluations", unit="steps", fast=4)
    checkpoint_every: int = option(100, "interval of checkpoints", unit="steps", fast=4)
    most: int = option(15, "members of the largest ensemble")
    seeds: tuple[int, ...] = seeds_option(
        *range(8), help="one architecture each; more of them extend a search"
    )
    base_seed: int = option(0, "from which all seeds' keys are folded")

    @staticmethod
    def upgrade(record: dict[str, Any]) -> dict[str, Any]:
        """What a search's ``config.json`` says, whenever it was begun."""
        # Before sparse labels were divided by themselves, whole sections were.
        return {"split": "sections"} | record


def build(config: Config, architecture: Architecture, classes: int) -> tuple[Any, WindowTask]:
    """The network and the task of an architecture."""
    model: Any = architecture.model(classes)
    z, y, x = window = architecture.window
    draw: Any = partial(
        draw_window,
        input_window=window,
        output_window=window,
        spacing=(min(2, z), max(1, y // 3), max(1, x // 3)),
        augmentation=config.augmentation,
    )
    task = WindowTask(
        init_params=lambda key: draw_parameters(key, model, (1, *window, 1)),
        network=model.apply,
        draw=draw,
        classes=classes,
        batch=config.batch,
        learning_rate=architecture.learning_rate,
        l2={"all": architecture.l2},
        group_of=lambda path: "all",
        score="adjusted_rand",
    )
    return model, task


def run(config: Config, workdir: Path) -> Summary:
    """Draw, train what is missing, rank, combine, report."""
    window: Any = sources.three(config.window, "--window")
    base = jax.random.key(config.base_seed)
    drawn = {
        seed: draw_architecture(jax.random.fold_in(base, seed), config.ranges, window=window)
        for seed in config.seeds
    }
    parts = sources.load_parts(config)
    classes = len(parts.class_names)
    weights = sources.error_weights_of(parts, config.error_weights)
    start_folder(config, workdir, ignore=VARYING)
    print_volumes(parts)

    models = {seed: architecture.model(classes) for seed, architecture in drawn.items()}
    gflop = {seed: cost.gflop(models[seed], drawn[seed].window) for seed in drawn}
    waiting = [s for s in drawn if MemberFolder(workdir, Member(s)).outcome() is None]
    started, spent = time.monotonic(), 0.0
    entries = []
    for number, (seed, architecture) in enumerate(drawn.items(), 1):
        parameters = cost.parameters(models[seed], architecture.window)
        if seed in waiting:
            left = sum(gflop[s] for s in waiting) - spent
            rate = (time.monotonic() - started) / spent if spent else 0.0
            when = f", about {left * rate / 60:.0f} minutes left" if spent else ""
            print(
                f"\narchitecture {number} of {len(drawn)}{when}\nseed {seed:04d}    "
                f"{parameters:,} parameters, {gflop[seed]:.3g} GFLOP a window: {architecture}",
                flush=True,
            )
            spent += gflop[seed]
        outcome = _train(config, seed, architecture, parts, weights, workdir)
        entries.append(Entry(seed, architecture, parameters, gflop[seed], outcome))
    ranked = best_of(entries, config.most)
    volumes = (parts.evaluation, parts.test) if ranked else ()
    predictions = [combine(_probabilities(config, ranked, volume)) for volume in volumes]
    return summarise_search(entries, parts, ranked, predictions, folder=workdir / "summary")


def _probabilities(
    config: Config, ranked: Sequence[Entry], volume: LabelledVolume
) -> Iterator[np.ndarray]:
    """Each member's probabilities of a volume, [z, y, x, c] float32.

    Networks of different architecture share no window, so each labels the volume for itself and
    the ensemble is the mean of their probabilities, voxel by voxel.
    """
    for entry in ranked:
        _, task = build(config, entry.architecture, len(volume.class_names))
        window = entry.architecture.window
        best = best_parameters([entry.outcome.folder], task.init_params)
        found = predict_volume(
            member_probabilities(task.network, best),
            volume.images,
            Windowing(window, window).at(volume.voxel_nm),
            keep_probabilities=True,
            progress=window_bar(f"{volume.name} by {entry.seed:04d}"),
        )
        assert found.probabilities is not None
        yield found.probabilities


def _train(
    config: Config,
    seed: int,
    architecture: Architecture,
    parts: sources.Parts,
    weights: Any,
    workdir: Path,
) -> Outcome:
    """How the training of a seed's architecture ends, or has ended before."""
    member = Member(seed)
    known = MemberFolder(workdir, member).outcome()
    if known is not None:
        return known
    _, task = build(config, architecture, len(parts.class_names))
    window = architecture.window
    data = sweep_data(parts.train, parts.evaluation, weights, window=window, output=window)
    reporter = Reporter(score=task.score, events=workdir / "tensorboard")
    schedule = Schedule(
        config.steps, config.log_every, config.evaluate_every, config.checkpoint_every
    )
    options: dict[str, Any] = {"base_seed": config.base_seed, "reporter": reporter}
    try:
        return Sweep(task, data, [member], workdir=workdir, schedule=schedule, **options).run()[0]
    except MemoryError as error:  # another architecture may fit; a larger machine tries it again
        print(f"seed {seed:04d}  not trained: {error}", flush=True)
        return Outcome(member, "FAILED", 0, -inf, 0, str(error), workdir / "seeds" / member.name)
    finally:
        reporter.close()


if __name__ == "__main__":
    main(Config, run, description=__doc__)
