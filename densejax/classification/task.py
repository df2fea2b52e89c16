"""The task of learning to classify pictures: what one instance of a classification sweep is.

All instances share the pictures, which live on the device. Each learns from a labelled set of its
own, a row of ``query_sets`` that its setting ``query_set`` names: all strategies and seeds of one
round of active learning are one population, trained by one compiled program.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from densejax.classification.batches import Drawn, shuffled
from densejax.data.images import standardise, to_unit
from densejax.losses import weighted_cross_entropy
from densejax.population import Population
from densejax.typing import UNLABELLED, Array, Batch, Key, Measures, Params, Tree

HEAD = "head"  # the name of the linear head among a network's parameters


@dataclass(frozen=True)
class ImageTask:
    """Training on batches drawn on the device from the instance's own labelled set.

    An epoch is a random order of the set, drawn from the instance's key and the number of the
    epoch. The last batch of an epoch is filled up with the first samples of the same order, so that
    batch norm sees pictures only; they do not count in the loss.

    ``data`` is what ``image_data`` makes. A member's settings may replace ``learning_rate`` and
    ``weight_decay``; ``query_set`` is the row of its labelled set, 0 where it has none. The state's
    ``variables`` are the network's, ``{"params": ...}`` and ``"batch_stats"`` where it has batch
    norm. To freeze the norm's moments, build the network so (``ResNet(frozen_norm=True)``).

    Attributes:
      init_variables: the network's fresh variables from a key (``with_pretrained`` grafts a
        checkpoint's).
      network: a network's ``apply``: ``(variables, [b, ...], train=..., ...) -> (logits [b, c],
        out)``, ``out["features"]`` [b, d] being what the head sees.
      classes: number of classes, c.
      largest: columns of ``query_sets``, l.
      batch: pictures a step.
      epochs: length of the schedule of the learning rate; ``steps_of`` counts the steps.
      optimiser: ``sgd`` with momentum, or ``adam``.
      learning_rate: initial rate.
      momentum: of SGD.
      weight_decay: added to the gradient times the parameter, as in PyTorch.
      schedule: of the rate, by whole epochs e of E: ``constant``; ``cosine``, (1 + cos(pi e / E))
        / 2; ``step``, ``decay_factor ** (e // decay_every)``.
      augment: ``(key, [b, y, x, c] in [0, 1]) -> [b, y, x, c]``, of training batches.
      mean: of each channel, of pictures in [0, 1]; empty leaves them in [0, 1].
      std: of each channel.
      linear: whether the head alone is trained. Pictures are augmented all the same.
      evaluation_batch: pictures of an evaluation at once.
    """

    init_variables: Callable[[Key], Params]
    network: Callable[..., Any]
    classes: int
    largest: int
    batch: int = 128
    epochs: int = 200
    optimiser: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    decay_every: int = 20
    decay_factor: float = 0.1
    augment: Callable[[Key, jax.Array], jax.Array] | None = None
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    linear: bool = False
    evaluation_batch: int = 500
    score: str = "accuracy"

    def __post_init__(self) -> None:
        for name in ("classes", "largest", "batch", "epochs", "evaluation_batch", "decay_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        known = {"optimiser": ("sgd", "adam"), "schedule": ("constant", "cosine", "step")}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} {getattr(self, name)!r}: expected one of {values}")

    def init(self, key: Key, settings: Tree) -> Tree:
        """Fresh state: variables, the optimiser's moments, keys, the order of the epoch."""
        defaults = {
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
            "query_set": 0.0,
        }
        unknown = set(settings) - set(defaults)
        if unknown:
            raise ValueError(f"settings {sorted(unknown)} are none of {sorted(defaults)}")
        weights_key, data_key = jax.random.split(key)
        variables = self.init_variables(weights_key)
        return {
            "variables": variables,
            "moments": self._transform().init(self._trained(variables)),
            "step": jnp.int32(0),
            "key": jax.random.key_data(data_key),
            "order": jnp.zeros(self.largest, jnp.int32),
            "settings": {n: jnp.float32(settings.get(n, v)) for n, v in defaults.items()},
        }

    def step(self, state: Tree, data: Batch) -> tuple[Tree, Measures]:
        """One update; measures the loss and the accuracy on its batch."""
        settings = state["settings"]
        drawn = self.draw(state, data)
        trained = self._trained(state["variables"])
        (loss, more), gradient = jax.value_and_grad(drawn.loss, has_aux=True)(trained)
        decay, rate = settings["weight_decay"], settings["learning_rate"] * self._rate(drawn.epoch)
        gradient = jax.tree.map(lambda g, p: g + decay * p, gradient, trained)
        directions, moments = self._transform().update(gradient, state["moments"])
        trained = jax.tree.map(lambda p, d: p - rate * d, trained, directions)
        return self.moved(state, drawn, trained, moments, loss, more)

    def draw(self, state: Tree, data: Batch) -> Drawn:
        """The batch of a state's next step, and its loss as a function of what is trained."""
        settings, variables = state["settings"], state["variables"]
        order_key, batch_key = jax.random.split(jax.random.wrap_key_data(state["key"]))
        row = settings["query_set"].astype(jnp.int32)
        count = jnp.maximum(data["counts"][row], 1)
        epoch, turn = jnp.divmod(state["step"], -(-count // self.batch))
        order = jax.lax.cond(
            turn == 0,
            lambda: shuffled(jax.random.fold_in(order_key, epoch), self.largest, count),
            lambda: state["order"],
        )
        places = turn * self.batch + jnp.arange(self.batch)
        chosen = jnp.asarray(data["query_sets"])[row, order[places % count]]
        labels = jnp.where(places < count, jnp.asarray(data["labels"])[chosen], UNLABELLED)
        weights = jnp.asarray(data["class_weights"])[row][labels] * (labels >= 0)
        augment_key, drop_key = jax.random.split(jax.random.fold_in(batch_key, state["step"]))
        images = self.prepare(jnp.asarray(data["images"])[chosen], augment_key=augment_key)

        def loss_of(trained: Params) -> tuple[jax.Array, tuple[jax.Array, Params]]:
            (logits, _), changed = self.network(
                self._joined(variables, trained),
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": drop_key},
            )
            total = weighted_cross_entropy(logits, labels, weights=weights, reduction="sum")
            return total / jnp.maximum(weights.sum(), 1e-12), (logits, changed)

        return Drawn(loss_of, labels, order, epoch, turn)

    def moved(
        self,
        state: Tree,
        drawn: Drawn,
        trained: Params,
        moments: Tree,
        loss: jax.Array,
        more: tuple[jax.Array, Params],
    ) -> tuple[Tree, Measures]:
        """The state after a step to ``trained``, and what was measured; ``more`` is the loss's."""
        logits, changed = more
        labels = drawn.labels
        variables = dict(self._joined(state["variables"], trained), **changed)
        hits = (jnp.argmax(logits, axis=-1) == labels).sum() / jnp.maximum((labels >= 0).sum(), 1)
        new = dict(state, variables=variables, moments=moments, order=drawn.order)
        new["step"] = state["step"] + 1
        return new, {"loss": loss, "train_accuracy": hits.astype(jnp.float32)}

    def evaluate(self, state: Tree, data: Batch) -> Measures:
        """Accuracy, of each class too (0 where it has no picture), and loss; unweighted.

        ``data`` holds ``evaluation_images`` [n, ...] and ``evaluation_labels`` [n]; labels of -1 do
        not count.
        """
        labels = jnp.asarray(data["evaluation_labels"])
        size = min(self.evaluation_batch, labels.shape[0])
        spare = -labels.shape[0] % size
        images = jnp.asarray(data["evaluation_images"])
        images = jnp.pad(images, [(0, spare), *[(0, 0)] * (images.ndim - 1)])
        labels = jnp.pad(labels, (0, spare), constant_values=UNLABELLED)

        def some(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
            logits, _ = self.forward(state["variables"], part[0])
            one_hot = part[1][:, None] == jnp.arange(self.classes)
            hits = one_hot & (jnp.argmax(logits, axis=-1) == part[1])[:, None]
            loss = weighted_cross_entropy(logits, part[1], reduction="sum")
            return hits.sum(axis=0), one_hot.sum(axis=0), loss

        parts = (images.reshape(-1, size, *images.shape[1:]), labels.reshape(-1, size))
        hits, counts, losses = (a.sum(axis=0) for a in jax.lax.map(some, parts))
        total = jnp.maximum(counts.sum(), 1)
        return {
            "accuracy": (hits.sum() / total).astype(jnp.float32),
            "evaluation_loss": losses / total,
            "class_accuracy": (hits / jnp.maximum(counts, 1)).astype(jnp.float32),
        }

    def parameters(self, state: Tree) -> Params:
        """The network's variables: parameters, and moments of the norm where there is one."""
        return state["variables"]

    def stop(self, step: int, measures: Measures) -> bool:
        """Never: patience is the schedule's."""
        del step, measures
        return False

    def prepare(self, images: Array, *, augment_key: Key | None = None) -> jax.Array:
        """What the network takes: uint8 [b, y, x, c] -> float32, standardised.

        Args:
          images: uint8; floating arrays [b, ...] (features) are left as they are.
          augment_key: of the augmentation; none where None.
        """
        if images.dtype != jnp.uint8:
            return jnp.asarray(images)
        x = to_unit(images)
        if augment_key is not None and self.augment is not None:
            x = self.augment(augment_key, x)
        return standardise(x, mean=self.mean, std=self.std) if len(self.mean) else x

    def forward(self, variables: Params, images: Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logits [b, c] float32 and ``out`` of stored pictures [b, ...], not augmented."""
        return self.network(variables, self.prepare(images))

    def steps_of(self, samples: int) -> int:
        """Steps of one epoch of a labelled set."""
        return max(1, math.ceil(samples / self.batch))

    def _rate(self, epoch: jax.Array) -> jax.Array:
        if self.schedule == "cosine":
            return (1 + jnp.cos(jnp.pi * epoch / self.epochs)) / 2
        if self.schedule == "step":
            return jnp.float32(self.decay_factor) ** (epoch // self.decay_every)
        return jnp.float32(1)

    def _transform(self) -> optax.GradientTransformation:
        return optax.scale_by_adam() if self.optimiser == "adam" else optax.trace(self.momentum)

    def _trained(self, variables: Params) -> Params:
        return variables["params"][HEAD] if self.linear else variables["params"]

    def _joined(self, variables: Params, trained: Params) -> Params:
        params = dict(variables["params"], **{HEAD: trained}) if self.linear else trained
        return dict(variables, params=params)


def with_pretrained(
    init_variables: Callable[[Key], Params], pretrained: Params
) -> Callable[[Key], Params]:
    """Fresh variables of which all but the head come from a checkpoint.

    Args:
      init_variables: the network's fresh variables from a key.
      pretrained: ``{"params": ..., "batch_stats": ...}``, the head may be missing; it is ignored.

    Returns:
      A function of a key like ``init_variables``.

    Raises:
      ValueError: an array is missing, is too many, or has another shape than the network's.
    """
    fresh = jax.eval_shape(init_variables, jax.random.key(0))
    expected, found = _without_head(fresh), _without_head(pretrained)
    wanted, given = _shapes(expected), _shapes(found)
    odd = sorted(
        name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name)
    )
    if odd:
        name = odd[0]
        raise ValueError(
            f"the checkpoint does not fit the network in {len(odd)} arrays, such as {name}: found "
            f"{given.get(name, 'nothing')}, expected {wanted.get(name, 'nothing')}"
        )

    def init(key: Key) -> Params:
        variables = init_variables(key)
        grafted = jax.tree.map(jnp.asarray, found)
        params = dict(grafted["params"], **{HEAD: variables["params"][HEAD]})
        return dict(grafted, params=params)

    return init


def _without_head(variables: Params) -> Params:
    params = {name: leaf for name, leaf in variables["params"].items() if name != HEAD}
    return dict(variables, params=params)


def _shapes(tree: Params) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in leaves}


def image_data(
    images: Array,
    labels: Array,
    sets: Sequence[Array],
    *,
    evaluation_images: Array,
    evaluation_labels: Array,
    classes: int,
    largest: int | None = None,
    weighted: bool = False,
) -> dict[str, Array]:
    """What the instances of an ``ImageTask`` share.

    Args:
      images: [n, ...], uint8 pictures [n, y, x, c] or floating features [n, d].
      labels: [n] int32; those of samples outside all sets are never looked at.
      sets: of each row the labelled samples, [l] integers 0..n-1; rows may be of different length.
      evaluation_images: [e, ...] as ``images``.
      evaluation_labels: [e] int32.
      classes: c.
      largest: columns of ``query_sets``; the longest set where None. The same in every round, it
        spares compiling anew.
      weighted: weight the loss by class, each set by its own counts (``class_weights``).

    Returns:
      ``images``, ``labels``, ``evaluation_images``, ``evaluation_labels``, ``query_sets`` [r, l]
      int32, -1 where a row is shorter, ``counts`` [r] int32, ``class_weights`` [r, c] float32.

    Raises:
      ValueError: shapes do not agree, a set is too long or holds an index outside the pool or
        twice the same, or a label that is used is outside the classes.
    """
    labels = np.asarray(labels, np.int32)
    evaluation_labels = np.asarray(evaluation_labels, np.int32)
    pairs = {"images": (images, labels), "evaluation": (evaluation_images, evaluation_labels)}
    for name, (pictures, numbers) in pairs.items():
        if numbers.shape != pictures.shape[:1] or not numbers.size:
            raise ValueError(f"{name}: {pictures.shape} pictures and {numbers.shape} labels")
    if evaluation_images.shape[1:] != images.shape[1:]:
        raise ValueError(f"images {images.shape} and evaluation {evaluation_images.shape} differ")
    if evaluation_labels.min() < -1 or evaluation_labels.max() >= classes:
        raise ValueError(f"evaluation labels outside the {classes} classes")
    longest = max((len(one) for one in sets), default=0)
    columns = max(longest, 1) if largest is None else largest
    if columns < longest:
        raise ValueError(f"a labelled set has {longest} samples; expected at most {columns}")
    query_sets = np.full((len(sets), columns), -1, np.int32)
    weights = np.ones((len(sets), classes), np.float32)
    for row, one in enumerate(sets):
        rows = np.asarray(one, np.int64)
        _check_set(rows, labels, classes, row)
        query_sets[row, : len(rows)] = rows
        if weighted and len(rows):
            weights[row] = class_weights(np.bincount(labels[rows], minlength=classes))
    return {
        "images": images,
        "labels": labels,
        "evaluation_images": evaluation_images,
        "evaluation_labels": evaluation_labels,
        "query_sets": query_sets,
        "counts": np.array([len(one) for one in sets], np.int32),
        "class_weights": weights,
    }


def _check_set(rows: np.ndarray, labels: np.ndarray, classes: int, number: int) -> None:
    outside = rows[(rows < 0) | (rows >= len(labels))]
    if outside.size:
        raise ValueError(
            f"labelled set {number}: index {outside[0]}; expected 0 to {len(labels) - 1}"
        )
    if len(np.unique(rows)) != len(rows):
        raise ValueError(f"labelled set {number}: {len(rows)} samples, but one occurs twice")
    wrong = rows[(labels[rows] < 0) | (labels[rows] >= classes)]
    if wrong.size:
        raise ValueError(
            f"labelled set {number}: label {labels[wrong[0]]} of sample {wrong[0]}; expected 0 to "
            f"{classes - 1}"
        )


def class_weights(counts: Array) -> np.ndarray:
    """Weights of a loss by class: all / of the class, 1 for an absent class, then summing to 1.

    As the released code of the thesis has it for imbalanced pools: the 1 of an absent class is set
    before the sum is divided out.

    Args:
      counts: [c] int, samples of each class.

    Returns:
      [c] float32.
    """
    counts = np.asarray(counts, np.float64)
    weights = np.where(counts > 0, counts.sum() / np.maximum(counts, 1), 1.0)
    return (weights / weights.sum()).astype(np.float32)


class Predictor:
    """The networks of a population over stored pictures, in one program that is compiled once."""

    def __init__(
        self, task: ImageTask, size: int, *, chunk: int = 500, features: bool = True
    ) -> None:
        """Lay the program out; it is compiled by the first chunk.

        Args:
          task: for the network and how pictures are prepared.
          size: instances at once, k.
          chunk: pictures at once.
          features: whether features are wanted beside the logits.
        """
        self.size, self._chunk, self._features = size, chunk, features
        self._population = Population(size)

        def one(variables: Params, images: jax.Array) -> tuple[jax.Array, ...]:
            logits, out = task.forward(variables, images)
            return (logits, out["features"]) if features else (logits,)

        self._program = self._population.map(one, shared=(1,), name="pictures")

    def __call__(
        self, members: Sequence[Params], images: Array
    ) -> Iterator[tuple[slice, np.ndarray, np.ndarray | None]]:
        """Go through the pictures, in evaluation mode and not augmented.

        Args:
          members: variables of at most k instances.
          images: [n, ...] as the task's; a memory map is read as it is needed.

        Yields:
          Rows, logits [k', s, c] float32 and features [k', s, d] (or None), chunk by chunk, for
          the k' instances given.
        """
        number, size = len(members), self._population.slots
        if not 1 <= number <= size:
            raise ValueError(f"{number} instances; expected 1 to {size}")
        padded = [*members, *[members[-1]] * (size - number)]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *padded)
        placed = self._population.place(stacked)
        for start in range(0, len(images), self._chunk):
            part = np.asarray(images[start : start + self._chunk])
            real = len(part)
            if real < self._chunk:
                part = np.concatenate([part, np.repeat(part[-1:], self._chunk - real, axis=0)])
            found = self._program(placed, self._population.replicate(part))
            arrays = [a[:number, :real] for a in self._population.fetch(found)]
            yield slice(start, start + real), arrays[0], arrays[1] if self._features else None


def head_of(variables: Params) -> tuple[np.ndarray, np.ndarray]:
    """Kernel [d, c] and bias [c] of the linear head, float32."""
    head = variables["params"][HEAD]
    return np.asarray(head["kernel"]), np.asarray(head["bias"])
