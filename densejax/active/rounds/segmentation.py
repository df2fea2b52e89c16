"""Segmentation as a subject of rounds: units, networks that learn from them, one pass of scores.

Units are whole pictures, fixed crops or windows of a volume (``data.units``). Networks are tested
on whole pictures, or on the whole half of a volume that gave no unit, once, when they have ended:
nothing is chosen by the test set.
"""

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densejax.active.balanced import balanced
from densejax.active.pixel_scores import (
    COMMITTEE,
    Looks,
    PixelNetwork,
    PixelScore,
    PixelScores,
    freeze_quantiles,
    look,
    pixel_score,
)
from densejax.active.pool import Pool, Selection, check_budget
from densejax.active.rounds.records import Labelled, Plan
from densejax.active.rounds.subject import Look, Row
from densejax.active.scores import column
from densejax.active.strategies import Strategy
from densejax.data.units import Units
from densejax.io import read_json, write_json
from densejax.metrics import iou, mean_iou
from densejax.models.layers import draw_parameters
from densejax.optim.named import OptimiserName, ScheduleName
from densejax.segmentation.task import Descent, WindowTask
from densejax.segmentation.unit_task import (
    UnitDraw,
    channel_moments,
    standardised,
    unit_data,
    unit_task,
)
from densejax.training.folders import Outcome, read_metrics
from densejax.training.sweep import Schedule
from densejax.typing import Array, Batch, Key, Params, Tree

# Intervals of a training between which its loss is checked and progress is told.
INTERVALS = 4
# Networks of a seed look side by side and share its file of thresholds.
_FREEZING = threading.Lock()
# Strategies that take what the network makes of a unit, beside the scores; "order" and "random"
# take nothing.
EMBEDDED = {
    "k_means": "k_means.k_means",
    "core_set": "core_set.core_set",
    "typiclust": "typiclust.typiclust",
    "badge": "badge.badge",
}
UNSEEING = ("random", "order")
CONTEXT = "core_set:context"


@dataclass(frozen=True)
class Segmented(Labelled):
    """One round's networks of segmentation.

    Attributes:
      miou: [k] float64 over the test pixels; nan for a network that failed.
      class_iou: [k, c] float64.
      confusion: [k, c, c] float64, test pixels by true and predicted class.
      steps: [k] int64, how many were made.
    """

    miou: np.ndarray
    class_iou: np.ndarray
    confusion: np.ndarray
    steps: np.ndarray


@dataclass(frozen=True)
class Training:
    """How the networks of a round learn.

    Attributes:
      steps: of a training from scratch; where 0, ``epochs``.
      learning_rate: from scratch.
      epochs: times that each labelled unit is seen, from scratch.
      warm_steps: of a training that starts from the round before; where 0, as from scratch.
      warm_rate: of a training that starts from the round before; where 0, as from scratch.
      batch: units a step.
      optimiser: ``adamw`` (Adam, where nothing decays), ``sgd`` or ``momentum``.
      schedule: of the rate over the steps of a training.
      weight_decay: of kernels.
      draw: crops, scales and flips.
      weighted: weight the loss by class, by median frequency of each labelled set.
      warm_start: whether rounds start from the networks of the round before.
    """

    steps: int
    learning_rate: float
    epochs: int = 0
    warm_steps: int = 0
    warm_rate: float = 0.0
    batch: int = 8
    optimiser: OptimiserName = "adamw"
    schedule: ScheduleName = "constant"
    weight_decay: float = 0.0
    draw: UnitDraw = field(default_factory=UnitDraw)
    weighted: bool = False
    warm_start: bool = False

    def length(self, samples: int, number: int) -> int:
        """Steps of a training on so many units in round ``number``, whole intervals."""
        steps = self.steps or self.epochs * -(-samples // self.batch)
        if self.warm_start and number:
            steps = self.warm_steps or steps
        return max(1, -(-steps // INTERVALS)) * INTERVALS

    def rate(self, number: int) -> float:
        """The learning rate of round ``number``."""
        return self.warm_rate or self.learning_rate if number else self.learning_rate


def strategies_of(names: Sequence[str]) -> dict[str, Strategy]:
    """Strategies by name: what the rounds of a segmentation may ask.

    A name is a score of ``pixel_scores``, such as ``entropy:mean``; ``inverse(...)`` of one;
    ``random``; ``order``, the pool's own, by sequence and name; ``k_means``, ``core_set``,
    ``typiclust`` and ``badge`` on the bottleneck averaged over space, ``k_means:flat`` and so on on
    the whole of it; ``core_set:context`` on class contexts; or ``balanced(...)`` of any of these
    but the unseeing, over the classes of which units have most beside the pool.

    Raises:
      ValueError: a name is none of these, or occurs twice.
    """
    if len(set(names)) != len(names):
        raise ValueError(f"strategies {', '.join(names)}: expected each once")
    return {name: _strategy(name) for name in names}


def _strategy(name: str) -> Strategy:
    from importlib import import_module

    if name == "random":
        from densejax.active.strategies.random import random

        return Strategy(random, network=False)
    if name == "order":
        return Strategy(_in_order, network=False)
    if found := re.fullmatch(r"balanced\((.+)\)", name):
        inner = _strategy(found[1])
        if not inner.network:
            raise ValueError(f"strategy {name!r}: {found[1]} looks at no class")
        return Strategy(balanced(inner.select), truth=inner.truth)
    if found := re.fullmatch(r"inverse\((.+)\)", name):
        return Strategy(column(pixel_score(found[1]).name, largest_first=False))
    base, _, kind = name.partition(":")
    if base in EMBEDDED and kind in ("", "flat"):
        module, attribute = EMBEDDED[base].split(".")
        found_in = import_module(f"densejax.active.strategies.{module}")
        return Strategy(getattr(found_in, attribute))
    if name == CONTEXT:
        from densejax.active.strategies.class_context import class_context

        return Strategy(class_context)
    try:
        return Strategy(column(pixel_score(name).name))
    except ValueError as error:
        raise ValueError(
            f"strategy {name!r}: none of {', '.join((*UNSEEING, *EMBEDDED))} (with :flat), "
            f"core_set:context, balanced(...), inverse(...), and as a score: {error}"
        ) from None


def scores_of(name: str) -> tuple[PixelScore, ...]:
    """The scores that a strategy of ``strategies_of`` ranks by; none for the others."""
    inner = re.sub(r"^(balanced|inverse)\(|\)$", "", name)
    inner = re.sub(r"^(balanced|inverse)\(|\)$", "", inner)
    if inner in UNSEEING or inner.partition(":")[0] in EMBEDDED:
        return ()
    return (pixel_score(inner),)


def _in_order(key: Key, pool: Pool, budget: int) -> Selection:
    """The first units that are available, as the pool has them."""
    del key
    chosen = np.flatnonzero(pool.available)[: check_budget(pool, budget)].astype(np.int64)
    return Selection(chosen, -chosen.astype(np.float32))


@dataclass(frozen=True)
class Segmentation:
    """Units, what a network of them is, and how it looks at them.

    Attributes:
      units: what there is to learn from.
      network: of stored pictures.
      training: how a network learns.
      test_images: uint8 [e, z, y, x, c], whole pictures or sections.
      test_labels: int [e, z, y, x], -1 where void.
      names: strategies of the run, whose scores are computed.
      passes: stochastic passes.
      members: seeds of a strategy, a committee.
      chunk: units that a network looks at at once.
      thresholds: file of the thresholds of quantiles, which are frozen before the first query.
      mask: labels [z, y, x] of a unit, where a person gives them; the units' own where None.
      binary: whether the score is the IoU of class 1 in place of the mean over the classes.
      seen: variables of the network that has looked last, for ``predict``.
    """

    units: Units
    network: PixelNetwork
    training: Training
    test_images: Array
    test_labels: Array
    names: tuple[str, ...]
    passes: int = 10
    members: int = 1
    chunk: int = 64
    thresholds: Path | None = None
    mask: Callable[[int], np.ndarray] | None = None
    binary: bool = False
    seen: dict[str, Params] = field(default_factory=dict, compare=False, repr=False)

    record = Segmented

    def __post_init__(self) -> None:
        scores = self._scores
        if any(s.aggregation == "quantile" for s in scores) and self.thresholds is None:
            raise ValueError("scores by quantile need a file for their thresholds")
        self._plan(scores)

    @property
    def score(self) -> str:
        """What networks are compared by."""
        return f"IoU of {self.units.class_names[1]}" if self.binary else "MIoU"

    @property
    def size(self) -> int:
        """n."""
        return len(self.units)

    @property
    def held_out(self) -> np.ndarray:
        """[n] bool: none; the test set is apart."""
        return np.zeros(self.size, bool)

    @property
    def images(self) -> Array:
        """uint8 [n, z, y, x, c]."""
        return self.units.images

    @property
    def classes(self) -> int:
        """c."""
        return len(self.units.class_names)

    def init_variables(self, key: Key) -> Params:
        """Fresh variables of a network."""
        return self.network.init(key)

    def task(self, largest: int, samples: int, number: int) -> WindowTask:
        """A round's task; later rounds differ where they start warm."""
        del largest
        training = self.training
        return unit_task(
            self.network.init,
            self.network.apply,
            self.classes,
            batch=training.batch,
            learning_rate=training.rate(number if training.warm_start else 0),
            descent=Descent(
                training.length(samples, number),
                optimiser=training.optimiser,
                schedule=training.schedule,
                weight_decay=training.weight_decay,
                dice_weight=0.0,
            ),
            draw=training.draw,
        )

    def data(self, known: np.ndarray, sets: Sequence[Any], largest: int) -> Batch:
        """Units, their masks where they are known, the test set and the labelled sets."""
        units = self.units
        if self.mask is not None:
            labels = np.full(units.labels.shape, -1, np.int32)
            for row in np.flatnonzero(known >= 0):
                labels[row] = self.mask(int(row))
            units = replace(units, labels=labels)
        return unit_data(
            units,
            sets,
            test_images=self.test_images,
            test_labels=self.test_labels,
            classes=self.classes,
            largest=largest,
            weighted=self.training.weighted,
        )

    def schedule(self, samples: int, number: int, plan: Plan) -> Schedule:
        """One evaluation, at the end."""
        del plan
        steps = self.training.length(samples, number)
        part = steps // INTERVALS
        return Schedule(steps, log_every=part, evaluate_every=steps, checkpoint_every=part)

    def begin(self, slot: Tree, variables: Params) -> Tree:
        """Start from the variables of a trained network; the optimiser starts afresh."""
        moving = {name: leaf for name, leaf in variables.items() if name != "params"}
        state = dict(slot["state"], params=variables["params"], moving=moving)
        return dict(slot, state=state, best=variables)

    def test(self, outcomes: Sequence[Outcome]) -> list[np.ndarray]:
        """The columns of ``Segmented``."""
        confusion = np.full((len(outcomes), self.classes, self.classes), np.nan)
        for place, outcome in enumerate(outcomes):
            if outcome.status == "DONE":
                rows = [
                    r for r in read_metrics(outcome.folder / "metrics.jsonl") if "confusion" in r
                ]
                confusion[place] = rows[-1]["confusion"]
        miou = np.full(len(outcomes), np.nan)
        class_iou = np.full((len(outcomes), self.classes), np.nan)
        for place in np.flatnonzero(np.isfinite(confusion[:, 0, 0])).tolist():
            counts = jnp.asarray(confusion[place])
            class_iou[place] = np.asarray(iou(counts))
            miou[place] = class_iou[place, 1] if self.binary else float(mean_iou(counts))
        steps = np.array([outcome.step for outcome in outcomes], np.int64)
        return [miou, class_iou, confusion, steps]

    @property
    def _scores(self) -> tuple[PixelScore, ...]:
        """All scores of the run's strategies, each once."""
        return tuple(dict.fromkeys(s for name in self.names for s in scores_of(name)))

    def _plan(self, scores: Sequence[PixelScore]) -> PixelScores:
        return PixelScores(
            self.network,
            self.classes,
            tuple(scores),
            passes=self.passes,
            members=max(2, self.members),
            flatten=any(":flat" in name for name in self.names),
            context=any(CONTEXT in name for name in self.names),
            chunk=self.chunk,
        )

    def look(self, rows: Sequence[Row], load: Callable[[int], Params], key: Key) -> Iterator[Look]:
        """Score the units by each network once, whatever the strategies that share it.

        What needs no further pass is computed for every network, so that queries can be compared;
        stochastic passes and committees only where a strategy asks for them. A committee is the
        networks of all seeds of a strategy.
        """
        together: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            committee = any(s.measure in COMMITTEE for s in scores_of(row.name))
            together.setdefault((row.network, row.name if committee else ""), []).append(row)
        groups = list(together.items())
        devices = jax.local_devices()

        def work(number: int) -> Looks:
            (_, name), group = groups[number]
            with jax.default_device(devices[number % len(devices)]):
                return self._look(group, rows if name else (), load, key)

        # Each device has a network of its own to look with.
        with ThreadPoolExecutor(len(devices)) as pool:
            for ((_, _), group), found in zip(
                groups, pool.map(work, range(len(groups))), strict=True
            ):
                for row in group:
                    yield self._as_pool(row, found)

    def _look(
        self, group: Sequence[Row], rows: Sequence[Row], load: Callable[[int], Params], key: Key
    ) -> Looks:
        row = group[0]
        asked = {s for one in group for s in scores_of(one.name)}
        sources = {s.source for s in asked}
        scores = [
            s
            for s in self._scores
            if s in asked or s.source == "network" or (s.source == "passes" and "passes" in sources)
        ]
        variables, committee = load(row.place), None
        self.seen["network"] = variables
        if rows:
            members = [load(other.place) for other in rows if other.name == row.name]
            committee = jax.tree.map(lambda *leaves: np.stack(leaves), *members)
        own = jax.random.fold_in(key, row.seed)
        plan = self._plan(scores)
        labels = None if self.mask is not None else self.units.labels
        return look(
            own,
            plan,
            variables,
            self.units.images,
            committee=committee,
            labels=labels,
            thresholds=self._frozen(plan, variables, committee, own, row),
        )

    def _frozen(
        self, plan: PixelScores, variables: Params, committee: Params | None, key: Key, row: Row
    ) -> Mapping[str, float]:
        """Thresholds of a seed's quantiles: by its first network, from then on by the file."""
        if not any(s.aggregation == "quantile" for s in plan.scores):
            return {}
        assert self.thresholds is not None
        path = self.thresholds.with_stem(f"{self.thresholds.stem}-{row.seed:04d}")
        with _FREEZING:
            known = read_json(path) if path.exists() else {}
            quantiles = [s for s in plan.scores if s.aggregation == "quantile"]
            if missing := tuple(s for s in quantiles if s.name not in known):
                part, images = replace(plan, scores=missing), self.units.images
                known |= freeze_quantiles(key, part, variables, images, committee=committee)
                write_json(path, known)
        return known

    def predict(self, row: int) -> np.ndarray | None:
        """What a network of the last look takes a unit for, int [z, y, x]; None before any."""
        if "network" not in self.seen:
            return None
        images = self.units.images[row : row + 1]
        logits, _ = self.network.apply(self.seen["network"], jnp.asarray(images))
        return np.asarray(jnp.argmax(logits[0], axis=-1))

    def _as_pool(self, row: Row, found: Looks) -> Look:
        arrays: dict[str, Any] = {"probabilities": found.probabilities}
        base = re.sub(r"^balanced\(|\)$", "", row.name)
        if base == CONTEXT:
            assert found.context is not None
            arrays["features"] = found.context.reshape(len(found.context), -1)
        else:
            arrays["features"] = found.flat if base.endswith(":flat") else found.embedding
        if row.name.startswith("balanced("):
            # Of nearly all units most is background: a unit is of the class of which it has most
            # beside the pool's mean.
            shares = found.shares / np.maximum(found.shares.mean(axis=0), 1e-6)
            arrays["probabilities"] = shares / shares.sum(axis=1, keepdims=True)
        return Look(row.place, arrays, found.columns)


def network_of(module: Any, units: Units, *, query_drop: float) -> PixelNetwork:
    """A module of ``models`` as a network of stored pictures, standardised by the pool's moments.

    Args:
      module: with ``classes``, ``drop``, and ``__call__(x, train=, dropout=)``.
      units: for the moments of their images and their size.
      query_drop: chance that a number is dropped in stochastic passes; 0 where there are none.
    """
    mean, std = channel_moments(units.images)
    shape = (1, *units.images.shape[1:])
    apply = standardised(module.apply, mean=mean, std=std)
    passes = None
    if query_drop:
        dropped = standardised(module.clone(drop=query_drop).apply, mean=mean, std=std)

        def passes(variables: Params, images: Array, key: Key) -> Any:
            return dropped(variables, images, dropout=True, rngs={"dropout": key})

    return PixelNetwork(lambda key: draw_parameters(key, module, shape), apply, passes)
