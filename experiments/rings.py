"""Is a minimum sharp where its boundary threads a needle? Rings with a wide or a pinched gap.

Points of one class lie on a ring, those of the other outside, ten of them just beyond the ring.
With a pinched gap the boundary has to pass between them; with a wide one there is room. Trains the
same network with many seeds on both, then measures how far random directions lead before the loss
reaches a cutoff.

Data: made here. The rings of the thesis' chapter 3.

    python -m experiments.rings --workdir=runs/rings

About 6 minutes on two idle cores. The same command again continues; more ``--seeds`` extend a run.
``summary`` holds a table for each gap, ``findings.md`` and the pictures; each gap has a run's
folder of its own, for ``basins``.

Published, and the defaults: 40 points at radius 0.4, 80 at 0.95, 10 at 0.4 + gap with a phase of
pi / 40, gap 0.001 (pinched); nine hidden layers of 100, two logits, PyTorch's draws, Adam 0.001,
10,000 full-batch epochs. Known disagreements: the code trains one network without a seed, and its
``--enlarge_gap`` moves only what is drawn; the gap of the wide picture is not known to us, ours is
0.2. The published claim is a picture; radii are our measure of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import optax

from densejax.cli import SweepOptions, main, option, seeds_option, start_folder
from densejax.data.points import rings
from densejax.minima import report
from densejax.minima.point_nets import PointNet, no_points, save_problem
from densejax.minima.poisoning import PoisonTask
from densejax.minima.reading import Basin, column
from densejax.stats import Finding, by_seed, judge, judge_all, mean_by_seed, weighted_mean
from densejax.training.folders import members_of
from densejax.training.sweep import Schedule

# Settings that change no trained number: a run may go on with others.
VARYING = ("seeds", "slots", "strategy", "directions", "cutoff")


@dataclass(frozen=True)
class Config(SweepOptions):
    """Everything that decides a result."""

    wide: float = option(0.2, "gap between the rings with room", unit="radii of the plane")
    pinched: float = option(0.001, "gap between the rings without", unit="radii of the plane")
    seeds: tuple[int, ...] = seeds_option(*range(10))
    widths: tuple[int, ...] = option((100,) * 9, "of the hidden layers", fast=(20, 20))
    epochs: int = option(10_000, "full-batch updates of each instance", unit="epochs", fast=200)
    learning_rate: float = option(1e-3, "of Adam")
    directions: int = option(3000, "of the basins; 0 measures none", fast=20)
    cutoff: float = option(0.1, "training loss at which a basin ends", fast=1.0)
    log_every: int = option(500, "interval of metrics rows", unit="epochs", fast=100)
    evaluate_every: int = option(2500, "interval of evaluations", unit="epochs", fast=100)
    checkpoint_every: int = option(2500, "interval of checkpoints", unit="epochs", fast=200)


def build(config: Config, gap: float) -> tuple[PointNet, PoisonTask]:
    """The rings with their network, and natural training."""
    points = jax.tree.map(np.asarray, rings(gap=gap))
    problem = PointNet(points, no_points(), no_points(), config.widths, logits=2)
    task = PoisonTask(
        init_variables=problem.init_variables,
        network=problem.model.apply,
        optimiser=optax.adam(config.learning_rate),
    )
    return problem, task


def run(config: Config, workdir: Path) -> report.Summary:
    """Train what is missing of both gaps, measure the basins, report."""
    start_folder(config, workdir, ignore=VARYING)
    folders = {}
    for name, gap in (("wide", config.wide), ("pinched", config.pinched)):
        problem, task = build(config, gap)
        folders[f"{name} gap {gap:g}"] = workdir / name
        save_problem(workdir / name, problem)
        config.run_sweep(
            task,
            problem.data(),
            members_of(config.seeds, {}),
            workdir=workdir / name,
            schedule=Schedule(
                config.epochs, config.log_every, config.evaluate_every, config.checkpoint_every
            ),
        )
    return report.summarise_runs(
        folders,
        workdir / "summary",
        claims=claims,
        title="rings",
        remark="Intervals are 95 % percentile bootstrap over seeds, which are paired: a seed has "
        "the same initial parameters and directions at every gap.",
        span=1.05,
        directions=config.directions,
        cutoff=config.cutoff,
    )


def claims(groups: Mapping[str, Sequence[Basin]]) -> list[Finding]:
    """Judge whether all points are fitted, and whether the first gap has the wider basins."""
    findings = []
    for name, group in groups.items():
        exact = mean_by_seed(column(group, "train_accuracy") == 1, column(group, "seed"))
        findings.append(judge_all(f"{name}: part of the minima that fit every point", exact))
    first, *others = groups
    for other in others:
        wide, narrow = (
            {one.minimum.seed: one.radius for one in groups[name]} for name in (first, other)
        )
        seeds = sorted(wide.keys() & narrow.keys())
        ratios = np.log([wide[s] / narrow[s] for s in seeds])
        ratio = by_seed(lambda columns, w: np.exp(weighted_mean(columns[0], w)), (ratios,), seeds)
        claim = f"{first} has wider basins than {other}: ratio of mean radii, paired by seed"
        findings.append(judge(claim, ratio, side="above", level=1.0, published="wider (a picture)"))
    return findings


if __name__ == "__main__":
    main(Config, run, description=__doc__)
