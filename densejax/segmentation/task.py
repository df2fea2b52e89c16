"""The task of learning to segment from windows: what one instance of a segmentation sweep is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from densejax.losses import Reduction, grouped_l2, soft_dice, weighted_cross_entropy
from densejax.metrics import adjusted_rand, confusion_counts, mean_iou
from densejax.optim.named import (
    OptimiserName,
    ScheduleName,
    moving_average,
    named_optimiser,
    schedule_factor,
)
from densejax.optim.tensorflow_forms import (
    PUBLISHED_DECAY_STEPS,
    scale_by_adam_epsilon_hat,
    staircase_decay,
)
from densejax.typing import Array, Batch, Key, Measures, Params, Tree

Network = Callable[..., Any]
Draw = Callable[[Key, jax.Array, Batch], tuple[jax.Array, jax.Array, jax.Array]]

PUBLISHED_L2 = {"2d": 10**-4.7, "3d": 1e-5, "head": 1e-9}

_DROPOUT = 0xD20F  # folded into the key, so that no draw of a window is repeated


@dataclass(frozen=True)
class Descent:
    """How a planned network descends: optimiser, schedule, loss and average by name.

    The numbers are defaults of the settings in which members may differ.

    Attributes:
      steps: of the whole training, over which the schedule falls to 0.
      optimiser: ``adamw``, ``sgd`` or ``momentum``.
      schedule: ``polynomial``, ``cosine`` or ``constant``.
      warmup: steps over which the learning rate rises.
      weight_decay: of kernels.
      dice_weight: of the soft Dice loss beside the cross-entropy; 0 leaves it out.
      clip: largest norm of the gradient; 0 does not clip.
      average: decay of the moving average of the parameters, which is what is evaluated and kept; 0
        keeps none.
    """

    steps: int
    optimiser: OptimiserName = "adamw"
    schedule: ScheduleName = "polynomial"
    warmup: float = 0.0
    weight_decay: float = 0.0
    dice_weight: float = 1.0
    clip: float = 0.0
    average: float = 0.0

    def settings(self) -> dict[str, float]:
        """What members may replace; the weight of Dice only where it is part of the loss."""
        dice = {"dice_weight": self.dice_weight} if self.dice_weight else {}
        return {"steps": self.steps, "weight_decay": self.weight_decay} | dice


def _no_group(path: tuple[str, ...]) -> None:
    del path
    return None


@dataclass(frozen=True)
class WindowTask:
    """Training by windows drawn on the device, evaluation on windows that cover a volume.

    The loss is equation 4.3 of Emam (2022): the cross-entropy of the final logits, plus
    ``two_d_loss`` times that of the 2-D module's where the network returns ``logits_2d``, plus an
    L2 penalty by group of parameters. The optimiser is the published Adam with staircase decay.
    With a ``descent`` the cross-entropy has soft Dice beside it, logits of coarser scales
    (``deep``) count half as much from scale to scale (Isensee et al. 2021), and optimiser and
    schedule are those it names.

    A member's settings may replace ``learning_rate``, ``decay_rate``, ``two_d_loss`` and
    ``l2_scale`` (a factor on all penalties), and with a ``descent`` what ``Descent.settings``
    names: they are scalars in the state, so that a grid of them is one population.

    A network with more than parameters is ``stateful``: what ``init_params`` returns are its
    variables, ``{"params": ..., "batch_stats": ...}``, and in training it is called with
    ``train=True``, ``mutable=["batch_stats"]`` and a key of its dropout (a module's ``apply``).
    ``parameters`` are then the variables, with the moments of the norm.

    Attributes:
      init_params: fresh parameters from a key; of a stateful network its variables.
      network: ``(params, [b, z, y, x, c]) -> (logits [b, z', y', x', c], out)``.
      draw: ``(key, step, data) -> image [z, y, x] (or [z, y, x, c]), labels and weights
        [z', y', x']``: the window of a step. The key is the instance's own and never changes;
        ``step`` tells windows apart. ``data["settings"]`` are the member's.
      classes: number of classes, c.
      batch: windows a step.
      reduction: of the cross-entropy over voxels; the released code sums.
      score: the measure of ``evaluate`` that ranks, ``miou`` or ``adjusted_rand``.
      stop_below: an instance whose evaluated MIoU is below this at or after ``stop_after`` steps is
        given up (published: 0.3 after ten epochs); 0 never stops.
      stateful: see above.
      drawing: further settings in which members may differ, and their defaults; for ``draw``.
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
    descent: Descent | None = None
    stateful: bool = False
    drawing: Mapping[str, float] | None = None

    def init(self, key: Key, settings: Tree) -> Tree:
        """Fresh state: parameters, Adam's moments, the key of the data order, settings."""
        defaults = {
            "learning_rate": self.learning_rate,
            "decay_rate": self.decay_rate,
            "two_d_loss": self.two_d_loss,
            "l2_scale": 1.0,
            **(self.drawing or {}),
        }
        if self.descent is not None:
            defaults |= self.descent.settings()
        unknown = set(settings) - set(defaults)
        if unknown:
            raise ValueError(f"settings {sorted(unknown)} are none of {sorted(defaults)}")
        weights_key, data_key = jax.random.split(key)
        params = self.init_params(weights_key)
        moving = {}
        if self.stateful:
            moving = {name: leaf for name, leaf in params.items() if name != "params"}
            params = params["params"]
        chosen = {n: jnp.float32(settings.get(n, v)) for n, v in defaults.items()}
        state = {
            "params": params,
            "moments": self._optimiser(chosen).init(params),
            "step": jnp.int32(0),
            "key": jax.random.key_data(data_key),
            "settings": chosen,
        }
        if self._averages:
            state["average"] = params
        if self.stateful:
            state["moving"] = moving
        return state

    def step(self, state: Tree, data: Batch) -> tuple[Tree, Measures]:
        """One update on ``batch`` windows; measures the loss and its data term."""
        key = jax.random.wrap_key_data(state["key"])
        first = state["step"] * self.batch
        settings = state["settings"]
        images, labels, weights = self._draw_batch(key, first, dict(data, settings=settings))

        def loss_of(params: Params) -> tuple[jax.Array, tuple[jax.Array, Params]]:
            (logits, out), moving = self._trained(state, params, images)
            loss = self._loss(logits, labels, weights, settings)
            if out.get("deep"):
                loss = self._with_coarse(loss, tuple(out["deep"]), labels, weights, settings)
            data_loss = loss
            if "logits_2d" in out and out["logits_2d"] is not logits:
                coarse = self._loss(out["logits_2d"], labels, weights, settings)
                loss = loss + settings["two_d_loss"] * coarse
            if self.l2:
                loss = loss + settings["l2_scale"] * grouped_l2(params, self.l2, self.group_of)
            return loss, (data_loss, moving)

        gradient, (data_loss, moving) = jax.grad(loss_of, has_aux=True)(state["params"])
        directions, moments = self._optimiser(settings).update(
            gradient, state["moments"], state["params"]
        )
        rate = self._rate(settings, state["step"])
        params = optax.apply_updates(
            state["params"], jax.tree.map(lambda direction: -rate * direction, directions)
        )
        new = dict(state, params=params, moments=moments, step=state["step"] + 1)
        if self.descent is not None and self._averages:
            new["average"] = moving_average(
                state["average"], params, step=state["step"], decay=self.descent.average
            )
        if self.stateful:
            new["moving"] = moving
        return new, {"loss": data_loss}

    def _trained(self, state: Tree, params: Params, images: Array) -> tuple[Any, Params]:
        """(logits, out) of a batch in training, and the moments that the network leaves."""
        if not self.stateful:
            return self.network(params, _with_channels(images)), None
        key = jax.random.fold_in(jax.random.wrap_key_data(state["key"]), _DROPOUT)
        found, changed = self.network(
            {"params": params, **state["moving"]},
            _with_channels(images),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.fold_in(key, state["step"])},
        )
        return found, dict(state["moving"], **changed)

    def _draw_batch(self, key: Key, first: jax.Array, data: Batch) -> tuple[jax.Array, ...]:
        if self.descent is not None and self.batch > 1:
            # A loop: one program of the draw, however many windows.
            return jax.lax.map(
                lambda index: self.draw(key, first + index, data), jnp.arange(self.batch)
            )
        drawn = [self.draw(key, first + index, data) for index in range(self.batch)]
        return tuple(jnp.stack(parts) for parts in zip(*drawn, strict=True))

    @property
    def _averages(self) -> bool:
        return self.descent is not None and self.descent.average > 0

    def _optimiser(self, settings: Mapping[str, jax.Array]) -> optax.GradientTransformation:
        if self.descent is None:
            return scale_by_adam_epsilon_hat()
        return named_optimiser(
            self.descent.optimiser, weight_decay=settings["weight_decay"], clip=self.descent.clip
        )

    def _rate(self, settings: Mapping[str, jax.Array], step: jax.Array) -> jax.Array:
        if self.descent is None:
            return staircase_decay(
                settings["learning_rate"],
                step,
                rate=settings["decay_rate"],
                every=self.decay_steps,
            )
        return settings["learning_rate"] * schedule_factor(
            self.descent.schedule, step, steps=settings["steps"], warmup=self.descent.warmup
        )

    def _loss(
        self, logits: jax.Array, labels: Array, weights: Array, settings: Mapping[str, jax.Array]
    ) -> jax.Array:
        loss = weighted_cross_entropy(logits, labels, weights=weights, reduction=self.reduction)
        if self.descent is None or not self.descent.dice_weight:
            return loss
        return loss + settings["dice_weight"] * soft_dice(logits, labels)

    def _with_coarse(
        self,
        loss: jax.Array,
        levels: Sequence[jax.Array],
        labels: jax.Array,
        weights: jax.Array,
        settings: Mapping[str, jax.Array],
    ) -> jax.Array:
        """The loss's mean with those of coarser logits, each weighing half of the one before."""
        total = 1.0
        for depth, logits in enumerate(levels, 1):
            # A coarse voxel takes the label in its middle.
            sizes = zip(labels.shape[1:], logits.shape[1:4], strict=True)
            place = (slice(None), *(slice(n // m // 2, None, n // m) for n, m in sizes))
            share = 0.5**depth
            loss = loss + share * self._loss(logits, labels[place], weights[place], settings)
            total += share
        return loss / total

    def evaluate(self, state: Tree, data: Batch) -> Measures:
        """Confusion counts, their scores and the unweighted loss over the evaluation windows.

        ``data`` holds ``evaluation_images`` [n, z, y, x] and ``evaluation_labels``
        [n, z', y', x'], in which a voxel that two windows share is labelled in one of them only.
        """
        params = self.parameters(state)

        def one(window: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
            image, labels = window
            logits = self.network(params, _with_channels(image[None]))[0][0]
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
            logits = self.network(self.parameters(state), image[None, ..., None])[0][0]
            plane = jax.lax.dynamic_index_in_dim(logits, data["plane"], 0, keepdims=False)
            shares = jax.nn.softmax(plane.astype(jnp.float32), axis=-1)
            return jnp.rint(255 * shares).astype(jnp.uint8)

        tiles = jax.lax.map(one, data["images"])
        return {"probabilities": tiles.reshape(-1, self.classes)[data["places"]]}

    def parameters(self, state: Tree) -> Params:
        """The network's parameters, or their average where one is kept; with moments if any."""
        params = state["average"] if self._averages else state["params"]
        return {"params": params, **state["moving"]} if self.stateful else params

    def stop(self, step: int, measures: Mapping[str, Any]) -> bool:
        """The published early stop: evaluation MIoU below a floor after some epochs."""
        return step >= self.stop_after and measures["miou"] < self.stop_below


def _with_channels(images: Array) -> Array:
    """[b, z, y, x] as [b, z, y, x, 1]; pictures with channels stay as they are."""
    return images if images.ndim == 5 else images[..., None]
