"""Minima of networks of pictures: their loss about them, and what a sweep of them has left."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densejax.landscape.objective import over_batches, recalibrated
from densejax.losses import weighted_cross_entropy
from densejax.minima.reading import Minimum
from densejax.training.checkpoint import restore_tree
from densejax.training.folders import Outcome, read_metrics
from densejax.typing import Array, Batch, Params

MEASURED = ("train_accuracy", "test_accuracy", "poison_accuracy")


@dataclass(frozen=True, eq=False)
class PictureLoss:
    """The mean cross-entropy of a set of pictures as a function of a network's variables.

    A point is all variables, ``{"params": ..., "batch_stats": ...}``: so minima with moments of
    their own share one program. Directions leave the moments alone, as they leave biases.

    Attributes:
      network: ``(variables, [b, y, x, c], train=..., mutable=...) -> (logits [b, c], out)``.
      images: [n, y, x, c] uint8.
      labels: [n] int32.
      prepare: stored pictures to what the network takes.
      batch: pictures at once.
      calibration: [m, y, x, c] uint8, by which the norm's moments are computed again at each point,
        ``batch`` at a time (a remainder is left out); None: each minimum's own are kept.
    """

    network: Callable[..., Any]
    images: Array
    labels: Array
    prepare: Callable[[Array], jax.Array]
    batch: int = 500
    calibration: Array | None = None

    def __post_init__(self) -> None:
        if self.calibration is not None and len(self.calibration) < self.batch:
            raise ValueError(
                f"{len(self.calibration)} pictures to calibrate by in batches of {self.batch}: "
                "expected one batch or more"
            )

    def measures(self, variables: Params) -> dict[str, jax.Array]:
        """Loss and accuracy, float32 scalars."""
        if self.calibration is None:
            return self._plain(variables)
        count = len(self.calibration) // self.batch
        batches = np.asarray(self.calibration)[: count * self.batch]
        loss_fn = recalibrated(
            self._applied,
            batches.reshape(count, self.batch, *batches.shape[1:]),
            self._plain,
            variables["batch_stats"],
        )
        return loss_fn(variables["params"])

    def loss(self, variables: Params) -> jax.Array:
        """Loss, a float32 scalar."""
        return self.measures(variables)["loss"]

    def _applied(self, variables: Params, images: Array, **options: Any) -> Any:
        return self.network(variables, self.prepare(images), **options)

    def _plain(self, variables: Params) -> dict[str, jax.Array]:
        def some(variables: Params, part: Batch) -> dict[str, jax.Array]:
            logits, _ = self._applied(variables, part["images"])
            labels = jnp.asarray(part["labels"])
            hits = jnp.mean((jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32))
            return {"loss": weighted_cross_entropy(logits, labels), "accuracy": hits}

        data = {"images": self.images, "labels": self.labels}
        return over_batches(some, data, size=self.batch)(variables)


def read_minima(
    outcomes: Sequence[Outcome],
    template: Params,
    loss: PictureLoss,
    *,
    settings: Mapping[str, float] | None = None,
) -> list[Minimum]:
    """Where the members of a sweep of ``PoisonTask`` ended; failed ones are left out.

    Args:
      outcomes: of the sweep.
      template: shapes of the variables.
      loss: gives ``train_loss``, by which a basin is cut; the accuracies are those of the sweep's
        last evaluation, of its whole sets.
      settings: of members that have none, such as ``{"poison": 0.0}``.

    Returns:
      The minima, in the order of the outcomes.

    Raises:
      ValueError: a member has no evaluation, or its arrays are of another form.
    """
    measure = jax.jit(loss.loss)
    minima = []
    for outcome in outcomes:
        if outcome.status != "DONE":
            continue
        variables = restore_tree(outcome.folder / "last", template)
        rows = [r for r in read_metrics(outcome.folder / "metrics.jsonl") if "train_loss" in r]
        if not rows:
            raise ValueError(f"{outcome.folder}: no evaluation in metrics.jsonl; expected one")
        measures = {name: float(rows[-1].get(name, "nan")) for name in MEASURED}
        measures["train_loss"] = float(measure(variables))
        found = dict(settings or {}) | dict(outcome.member.settings)
        name = outcome.member.name if outcome.member.settings else f"{outcome.member.name},natural"
        minima.append(Minimum(name, outcome.member.seed, found, variables, measures))
    return minima
