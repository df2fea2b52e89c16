"""Pictures with a class each as the subject of rounds of active learning."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np

from densejax.active.rounds.records import Plan, Samples, Trained
from densejax.active.rounds.subject import Look, Row
from densejax.classification.task import ImageTask, Predictor, head_of, image_data
from densejax.training.checkpoint import restore_tree
from densejax.training.folders import Outcome
from densejax.training.sweep import Schedule
from densejax.typing import Array, Batch, Key, Params, Tree


@dataclass(frozen=True)
class Pictures:
    """Samples and what a network of them is.

    Attributes:
      network: the task; its ``largest`` is replaced by the plan's.
      samples: what there is to learn from.
      instances: networks that look at the pool at once.
      weighted: whether the loss is weighted by class.
    """

    network: ImageTask
    samples: Samples
    instances: int = 1
    weighted: bool = False

    record = Trained
    score = "accuracy"

    def __post_init__(self) -> None:
        if self.network.classes != len(self.samples.class_names):
            raise ValueError(
                f"the task is of {self.network.classes} classes; expected "
                f"{len(self.samples.class_names)}"
            )

    @property
    def size(self) -> int:
        """n."""
        return len(self.samples.images)

    @property
    def held_out(self) -> np.ndarray:
        """[n] bool."""
        return np.asarray(self.samples.held_out)

    @property
    def images(self) -> Array:
        """[n, ...]."""
        return self.samples.images

    def init_variables(self, key: Key) -> Params:
        """Fresh variables of a network."""
        return self.network.init_variables(key)

    def task(self, largest: int, samples: int, number: int) -> ImageTask:
        """The same in all rounds."""
        del samples, number
        return replace(self.network, largest=largest)

    def data(self, known: np.ndarray, sets: Sequence[Any], largest: int) -> Batch:
        """Pictures, labels and query sets of a sweep of networks."""
        return image_data(
            self.samples.images,
            known,
            sets,
            evaluation_images=np.asarray(self.samples.images)[self.held_out],
            evaluation_labels=np.asarray(self.samples.labels)[self.held_out],
            classes=self.network.classes,
            largest=largest,
            weighted=self.weighted,
        )

    def schedule(self, samples: int, number: int, plan: Plan) -> Schedule:
        """Epochs as steps; the best on the held-out samples is kept."""
        del number
        epoch = self.network.steps_of(samples)
        interval = epoch * plan.evaluate_every
        return Schedule(
            steps=epoch * self.network.epochs,
            log_every=interval,
            evaluate_every=interval,
            checkpoint_every=interval * max(1, plan.checkpoint_every // plan.evaluate_every),
            patience=epoch * plan.patience,
            later_wins=True,
        )

    def begin(self, slot: Tree, variables: Params) -> Tree:
        """Start from the variables of a trained network; the optimiser starts afresh."""
        state = dict(slot["state"], variables=variables)
        return dict(slot, state=state, best=variables)

    def test(self, outcomes: Sequence[Outcome]) -> list[np.ndarray]:
        """The columns of ``Trained`` from the accuracy on."""
        labels, classes = np.asarray(self.samples.test_labels), self.network.classes
        found = np.full((len(outcomes), 2 + classes), np.nan)
        sizes = np.bincount(labels, minlength=classes)
        done = [place for place, o in enumerate(outcomes) if o.status == "DONE"]
        template = jax.eval_shape(self.init_variables, jax.random.key(0))
        for group in _groups(done, self._predictor.size):
            members = [restore_tree(outcomes[place].folder / "best", template) for place in group]
            ranks = np.zeros((len(group), len(labels)), np.int64)
            for rows, logits, _ in self._predictor(members, self.samples.test_images):
                true = np.take_along_axis(logits, labels[None, rows, None], axis=-1)
                earlier = np.arange(classes) < labels[rows, None]
                ranks[:, rows] = ((logits > true) | ((logits == true) & earlier)).sum(axis=-1)
            for place, rank in zip(group, ranks, strict=True):
                hits = np.bincount(labels[rank == 0], minlength=classes)
                each = np.where(sizes > 0, hits / np.maximum(sizes, 1), np.nan)
                found[place] = [(rank == 0).mean(), (rank < 5).mean(), *each]
        validation = np.array([o.best_score for o in outcomes], np.float64)
        counters = [np.array([getattr(o, n) for o in outcomes]) for n in ("best_step", "step")]
        return [found[:, 0], found[:, 1], found[:, 2:], validation, *counters]

    def look(self, rows: Sequence[Row], load: Callable[[int], Params], key: Key) -> Iterator[Look]:
        """Logits, features and the head of each network."""
        del key
        for group in _groups(rows, self._predictor.size):
            members = [load(row.place) for row in group]
            parts = list(self._predictor(members, self.samples.images))
            for at, row in enumerate(group):
                logits = np.concatenate([part[1][at] for part in parts])
                features = np.concatenate([part[2][at] for part in parts if part[2] is not None])
                kernel, bias = head_of(members[at])
                yield Look(
                    row.place,
                    {"features": features, "kernel": kernel, "bias": bias, "logits": logits},
                    variables=members[at],
                    predicted=np.argmax(logits, axis=-1),
                )

    @cached_property
    def _predictor(self) -> Predictor:
        return Predictor(self.network, min(self.instances, len(jax.local_devices())))


def _groups(places: Sequence[Any], size: int) -> list[list[Any]]:
    return [list(places[start : start + size]) for start in range(0, len(places), size)]
