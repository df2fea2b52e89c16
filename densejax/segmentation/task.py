"""The task of learning to segment from windows: what one instance of a segmentation sweep is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from densejax.losses import Reduction, grouped_l2, weighted_cross_entropy
from densejax.metrics import adjusted_rand, confusion_counts, mean_iou
from densejax.optim.tensorflow_forms import (
    PUBLISHED_DECAY_STEPS,
    scale_by_adam_epsilon_hat,
    staircase_decay,
)
from densejax.typing import Array, Batch, Key, Measures, Params, Tree

Network = Callable[[Params, Array], tuple[jax.Array, Mapping[str, jax.Array]]]
Draw = Callable[[Key, jax.Array, Batch], tuple[jax.Array, jax.Array, jax.Array]]

PUBLISHED_L2 = {"2d": 10**-4.7, "3d": 1e-5, "head": 1e-9}


def _no_group(path: tuple[str, ...]) -> None:
    del path
    return None


@dataclass(frozen=True)
class WindowTask:
    """Training by windows drawn on the device, evaluation on windows that cover a volume.

    The loss is equation 4.3 of Emam (2022): the cross-entropy of the final logits, plus
    ``two_d_loss`` times that of the 2-D module's where the network returns ``logits_2d``, plus an
    L2 penalty by group of parameters. The optimiser is the published Adam with staircase decay.

    A member's settings may replace ``learning_rate``, ``decay_rate``, ``two_d_loss`` and
    ``l2_scale`` (a factor on all penalties): they are scalars in the state, so that a grid of them
    is one population.

    Attributes:
      init_params: fresh parameters from a key.
      network: ``(params, [b, z, y, x, 1]) -> (logits [b, z', y', x', c], out)``.
      draw: ``(key, step, data) -> image [z, y, x], labels and weights [z', y', x']``: the window
        of a step. The key is the instance's own and never changes; ``step`` tells windows apart.
      classes: number of classes, c.
      batch: windows a step.
      reduction: of the cross-entropy over voxels; the released code sums.
      score: the measure of ``evaluate`` that ranks, ``miou`` or ``adjusted_rand``.
      stop_below: an instance whose evaluated MIoU is below this at or after ``stop_after`` steps is
        given up (published: 0.3 after ten epochs); 0 never stops.
    """

    init_params: Callable[[Key], Params]
    network: Network
    draw: Draw
    classes: int
    batch: int = 1
    learning_rate: float = 1e-3
    decay_rate: float = 0.75
    decay_steps: float = PUBLISHED_DECAY_STEPS
    two_d_loss: float = 0.33
    l2: Mapping[str, float] | None = None
    group_of: Callable[[tuple[str, ...]], str | None] = _no_group
    reduction: Reduction = "mean"
    stop_below: float = 0.0
    stop_after: int = 0
    score: str = "miou"

    def init(self, key: Key, settings: Tree) -> Tree:
        """Fresh state: parameters, Adam's moments, the key of the data order, settings."""
        defaults = {
            "learning_rate": self.learning_rate,
            "decay_rate": self.decay_rate,
            "two_d_loss": self.two_d_loss,
            "l2_scale": 1.0,
        }
        unknown = set(settings) - set(defaults)
        if unknown:
            raise ValueError(f"settings {sorted(unknown)} are none of {sorted(defaults)}")
        weights_key, data_key = jax.random.split(key)
        params = self.init_params(weights_key)
        return {
            "params": params,
            "moments": scale_by_adam_epsilon_hat().init(params),
            "step": jnp.int32(0),
            "key": jax.random.key_data(data_key),
            "settings": {n: jnp.float32(settings.get(n, v)) for n, v in defaults.items()},
        }

    def step(self, state: Tree, data: Batch) -> tuple[Tree, Measures]:
        """One update on ``batch`` windows; measures the loss and its data term."""
        key = jax.random.wrap_key_data(state["key"])
        first = state["step"] * self.batch
        drawn = [self.draw(key, first + index, data) for index in range(self.batch)]
        images, labels, weights = (jnp.stack(parts) for parts in zip(*drawn, strict=True))
        settings = state["settings"]

        def loss_of(params: Params) -> tuple[jax.Array, jax.Array]:
            logits, out = self.network(params, images[..., None])
            loss = weighted_cross_entropy(logits, labels, weights=weights, reduction=self.reduction)
            data_loss = loss
            if "logits_2d" in out and out["logits_2d"] is not logits:
                loss = loss + settings["two_d_loss"] * weighted_cross_entropy(
                    out["logits_2d"], labels, weights=weights, reduction=self.reduction
                )
            if self.l2:
                loss = loss + settings["l2_scale"] * grouped_l2(params, self.l2, self.group_of)
            return loss, data_loss

        gradient, data_loss = jax.grad(loss_of, has_aux=True)(state["params"])
        directions, moments = scale_by_adam_epsilon_hat().update(gradient, state["moments"])
        rate = staircase_decay(
            settings["learning_rate"],
            state["step"],
            rate=settings["decay_rate"],
            every=self.decay_steps,
        )
        params = optax.apply_updates(
            state["params"], jax.tree.map(lambda direction: -rate * direction, directions)
        )
        new = dict(state, params=params, moments=moments, step=state["step"] + 1)
        return new, {"loss": data_loss}

    def evaluate(self, state: Tree, data: Batch) -> Measures:
        """Confusion counts, their scores and the unweighted loss over the evaluation windows.

        ``data`` holds ``evaluation_images`` [n, z, y, x] and ``evaluation_labels``
        [n, z', y', x'], in which a voxel that two windows share is labelled in one of them only.
        """

        def one(window: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
            image, labels = window
            logits = self.network(state["params"], image[None, ..., None])[0][0]
            total = weighted_cross_entropy(logits, labels, reduction="sum")
            predicted = jnp.argmax(logits, axis=-1).astype(jnp.int32)
            counts = confusion_counts(labels, predicted, classes=self.classes)
            return counts, total, jnp.sum(labels >= 0)

        windows = (data["evaluation_images"], data["evaluation_labels"])
        counts, losses, sizes = jax.lax.map(one, windows)
        confusion = jnp.sum(counts, axis=0)
        return {
            "miou": mean_iou(confusion),
            "adjusted_rand": adjusted_rand(confusion),
            "evaluation_loss": jnp.sum(losses) / jnp.maximum(jnp.sum(sizes), 1),
            "confusion": confusion,
        }

    def section(self, state: Tree, data: Batch) -> dict[str, jax.Array]:
        """Probabilities of one section, as a film of training shows it.

        ``data`` holds ``images`` [n, z, y, x], windows that cover the section; ``plane``, at which
        depth of their outputs it lies; and ``places`` int32 [h, w], for each of its voxels the
        index among all the outputs' voxels of that plane (``prepare.section_data``).

        Returns:
          ``probabilities`` uint8 [h, w, c]; 255 is one.
        """

        def one(image: jax.Array) -> jax.Array:
            logits = self.network(state["params"], image[None, ..., None])[0][0]
            plane = jax.lax.dynamic_index_in_dim(logits, data["plane"], 0, keepdims=False)
            shares = jax.nn.softmax(plane.astype(jnp.float32), axis=-1)
            return jnp.rint(255 * shares).astype(jnp.uint8)

        tiles = jax.lax.map(one, data["images"])
        return {"probabilities": tiles.reshape(-1, self.classes)[data["places"]]}

    def parameters(self, state: Tree) -> Params:
        """The network's parameters."""
        return state["params"]

    def stop(self, step: int, measures: Mapping[str, Any]) -> bool:
        """The published early stop: evaluation MIoU below a floor after some epochs."""
        return step >= self.stop_after and measures["miou"] < self.stop_below
