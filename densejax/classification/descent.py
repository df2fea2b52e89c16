"""The task of learning pictures by any optimiser, with the learning rates of the thesis' runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax

from densejax import trees
from densejax.classification.task import ImageTask
from densejax.optim.method import Method, descent
from densejax.typing import Batch, Key, Measures, Params, Tree


@dataclass(frozen=True)
class DescentTask(ImageTask):
    """An ``ImageTask`` whose steps are those of a ``Method``; for whole sets and no pool.

    ``optimiser`` and ``momentum`` have no part. The rate is ``learning_rate`` times ``schedule``,
    times ``decay_factor`` for each of ``milestones`` passed, times that again whenever the
    evaluation loss has stood still. Weight decay is half its factor times the sum of squares of all
    parameters, added to the loss that is minimised, not to the one that is measured.

    Attributes:
      method: what steps.
      milestones: epochs at whose beginning the rate falls (PyTorch's ``MultiStepLR``).
      patience: so many epochs without a better evaluation loss are forgiven, the next makes the
        rate fall (``ReduceLROnPlateau`` with its relative threshold of 1e-4); 0 is no such rule.
        Costs an evaluation an epoch.
      lowest_rate: that patience leads to.
    """

    method: Method = field(default_factory=lambda: descent(optax.trace(0.9)))
    milestones: Sequence[int] = ()
    patience: int = 0
    lowest_rate: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patience < 0:
            raise ValueError(f"patience must not be negative, found {self.patience}")
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"milestones {tuple(self.milestones)}: expected rising epochs")

    def init(self, key: Key, settings: Tree) -> Tree:
        """Fresh state: as an ``ImageTask``'s, with the method's memory for its moments."""
        state = super().init(key, settings)
        more: dict[str, Any] = {"moments": self.method.init(self._trained(state["variables"]))}
        if self.patience:
            more["plateau"] = self._plateau(state).init(jnp.float32(0))
        return state | more

    def step(self, state: Tree, data: Batch) -> tuple[Tree, Measures]:
        """One batch; measures loss, accuracy and the rate."""
        settings, drawn = state["settings"], self.draw(state, data)
        rate = settings["learning_rate"] * self._rate(drawn.epoch)
        if self.patience:
            judged = (drawn.turn == 0) & (drawn.epoch > 0)
            plateau = jax.lax.cond(
                judged, lambda: self._judged(state, data), lambda: state["plateau"]
            )
            state, rate = dict(state, plateau=plateau), rate * plateau.scale

        def objective(trained: Params) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            loss, more = drawn.loss(trained)
            return loss + settings["weight_decay"] / 2 * trees.dot(trained, trained), (loss, more)

        made = self.method.step(
            objective, self._trained(state["variables"]), state["moments"], rate
        )
        loss, more = made.auxiliary
        new, measures = self.moved(state, drawn, made.params, made.state, loss, more)
        return new, measures | {"rate": rate}

    def _rate(self, epoch: jax.Array) -> jax.Array:
        passed = jnp.sum(epoch >= jnp.asarray(self.milestones, jnp.int32))
        return super()._rate(epoch) * jnp.float32(self.decay_factor) ** passed

    def _plateau(self, state: Tree) -> optax.GradientTransformationExtraArgs:
        # Optax makes the rate fall at the epoch that PyTorch forgives last, hence one more.
        return optax.contrib.reduce_on_plateau(
            factor=self.decay_factor,
            patience=self.patience + 1,
            rtol=1e-4,
            min_scale=self.lowest_rate / state["settings"]["learning_rate"],
        )

    def _judged(self, state: Tree, data: Batch) -> Tree:
        value = self.evaluate(state, data)["evaluation_loss"]
        return self._plateau(state).update((), state["plateau"], value=value)[1]
