"""Networks that have learnt from all labels: the experts of Chen 2020, section 2.5."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from densejax.active.records import Plan, Samples
from densejax.classification.task import ImageTask, image_data
from densejax.population import Strategy as Side
from densejax.training.checkpoint import restore_tree
from densejax.training.folders import Member
from densejax.training.logs import Reporter
from densejax.training.sweep import Schedule, Sweep
from densejax.typing import Array, Params


def train_experts(
    task: ImageTask,
    samples: Samples,
    labels: Array,
    plan: Plan,
    *,
    schedule: Callable[[int], Schedule],
    workdir: Path,
    base_seed: int,
    reporter: Reporter,
    slots: int = 0,
    side: Side = "map",
    say: Callable[[str], None] = print,
) -> dict[int, Params]:
    """One expert a seed, all in one program; those that are there are read.

    They learn from every sample that has a label and is not held out, as long as the networks of
    the rounds: by the plan's schedule, weights and patience.

    Args:
      task: of the rounds; an expert's differs in the size of its labelled set.
      samples: what there is to learn from, and what chooses the best parameters.
      labels: [n] int32 of the whole pool, -1 where unknown.
      plan: of the rounds.
      schedule: of a training on so many samples.
      workdir: keeps the experts.
      base_seed: from which all seeds' keys are folded.
      reporter: of progress.
      slots: networks in training at once; 0 is as many as fit.
      side: see ``Sweep``.
      say: where a line of progress goes.

    Returns:
      The best variables by seed.

    Raises:
      ValueError: an expert diverged.
    """
    labels, held_out = np.asarray(labels, np.int32), np.asarray(samples.held_out)
    rows = np.flatnonzero(~held_out & (labels >= 0))
    data = image_data(
        samples.images,
        labels,
        [rows],
        evaluation_images=np.asarray(samples.images)[held_out],
        evaluation_labels=np.asarray(samples.labels)[held_out],
        classes=task.classes,
        weighted=plan.weighted,
    )
    say(f"experts: {len(plan.seeds)} networks on all {len(rows)} labels")
    outcomes = Sweep(
        replace(task, largest=len(rows)),
        data,
        [Member(int(seed)) for seed in plan.seeds],
        workdir=workdir,
        schedule=schedule(len(rows)),
        slots=slots,
        strategy=side,
        base_seed=base_seed,
        reporter=reporter,
    ).run()
    template = jax.eval_shape(task.init_variables, jax.random.key(0))
    found = {}
    for outcome in outcomes:
        if outcome.status != "DONE":
            raise ValueError(f"{outcome.folder}: the expert failed; {outcome.reason}")
        shutil.rmtree(outcome.folder / "last", ignore_errors=True)
        found[outcome.member.seed] = restore_tree(outcome.folder / "best", template)
    return found
