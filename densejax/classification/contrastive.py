"""Encoders learnt without labels: SimCLR and MoCo v2, and the nearest neighbours that judge them.

Everything that an instance needs is in its state, so that all seeds train in one program: the
running moments of the norms, and with MoCo the second encoder and the queue.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from densejax.classification.pretrained import Encoder, encode, fresh
from densejax.data.images import augment, standardise, to_unit
from densejax.losses import info_nce, nt_xent, unit_rows
from densejax.models.mlp import MLP
from densejax.typing import UNLABELLED, Array, Batch, Key, Measures, Params, Tree


@dataclass(frozen=True, kw_only=True)
class ContrastiveTask:
    """What SimCLR and MoCo share: two views of a batch, the optimiser, the evaluation.

    ``data`` holds ``images`` uint8 [n, y, x, 3], all of them trained on. Every epoch goes once
    through them in an order of the instance's own, without the last incomplete batch. To be judged
    by neighbours (``score='knn'``) it also holds ``bank_rows`` int32 [m], ``bank_labels`` int32
    [m], ``evaluation_rows`` int32 [e] and ``evaluation_labels`` int32 [e]: rows of ``images`` and
    their classes, which training never sees. To be judged by the loss (``score='minus_loss'``) it
    holds ``evaluation_rows`` alone, at least a batch of them.

    The optimiser is PyTorch's SGD with momentum or Adam with the penalty added to the gradient; the
    rate rises linearly over ``warmup`` steps and falls as a half cosine to zero at ``steps``. A
    member's settings may replace ``learning_rate``, ``weight_decay``, ``temperature`` (and
    ``momentum`` with MoCo).

    Departures from Chen et al. 2020: no LARS; norms and biases are penalised too, as in the
    PyTorch code of both methods.

    Attributes:
      encoder: which network learns.
      steps: updates in all, over which the rate falls.
      batch: pictures a step, each seen twice.
      recipe: of ``data.images.augment``: 'simclr', 'moco' or 'none'.
      size: y and x of a view, pixels.
      learning_rate: highest rate.
      weight_decay: factor on half the squares of all parameters.
      temperature: of the loss.
      warmup: updates over which the rate rises.
      optimiser: 'sgd' (momentum 0.9) or 'adam'.
      projection: numbers a projection has, p.
      neighbours: that vote, at most.
      classes: number of classes of the labels, c.
      score: 'knn' or 'minus_loss'.
      dtype: of the encoder's computation.

    Raises:
      ValueError: a number is outside its range, or a name unknown.
    """

    encoder: Encoder
    steps: int
    batch: int = 128
    recipe: Literal["none", "cifar", "imagenet", "simclr", "moco"] = "simclr"
    size: int = 32
    learning_rate: float = 0.1
    weight_decay: float = 1e-4
    temperature: float = 0.5
    warmup: int = 0
    optimiser: Literal["sgd", "adam"] = "sgd"
    projection: int = 128
    neighbours: int = 200
    classes: int = 10
    score: str = "knn"
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "size", "projection", "neighbours", "classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if not 0 <= self.warmup <= self.steps:
            raise ValueError(f"warmup is {self.warmup} of {self.steps} steps")
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}; expected more than 0")
        if self.optimiser not in ("sgd", "adam") or self.score not in ("knn", "minus_loss"):
            raise ValueError(
                f"optimiser {self.optimiser!r}, score {self.score!r}; expected sgd or adam, and "
                "knn or minus_loss"
            )

    def init(self, key: Key, settings: Tree) -> Tree:
        """Fresh state: encoder, projection, moments of the optimiser, key of the data, settings."""
        defaults = self._settings()
        unknown = set(settings) - set(defaults)
        if unknown:
            raise ValueError(f"settings {sorted(unknown)} are none of {sorted(defaults)}")
        encoder_key, projection_key, data_key, own_key = jax.random.split(key, 4)
        encoder = fresh(encoder_key, self.encoder)
        head = self._fresh_projection(projection_key)
        learnt = {"encoder": encoder["params"], "projection": head}
        return {
            "learnt": learnt,
            "batch_stats": encoder["batch_stats"],
            "moments": self._direction().init(learnt),
            "step": jnp.int32(0),
            "key": jax.random.key_data(data_key),
            "settings": {n: jnp.float32(settings.get(n, v)) for n, v in defaults.items()},
        } | self._more(own_key, learnt, encoder["batch_stats"])

    def step(self, state: Tree, data: Batch) -> tuple[Tree, Measures]:
        """One update on two views of ``batch`` pictures; measures the loss before it."""
        key = jax.random.wrap_key_data(state["key"])
        order_key, view_key, shuffle_key = jax.random.split(key, 3)
        rows = epoch_rows(order_key, state["step"], n=data["images"].shape[0], batch=self.batch)
        view_key = jax.random.fold_in(view_key, state["step"])
        shuffle_key = jax.random.fold_in(shuffle_key, state["step"])
        views = self._views(view_key, jnp.asarray(data["images"])[rows])
        state = self._before(state)
        (loss, changes), gradient = jax.value_and_grad(self._loss, has_aux=True)(
            state["learnt"], state, views, shuffle_key
        )
        settings, learnt = state["settings"], state["learnt"]
        decay = settings["weight_decay"]
        gradient = jax.tree.map(lambda g, p: g + decay * p, gradient, learnt)
        directions, moments = self._direction().update(gradient, state["moments"])
        rate = self._rate(settings["learning_rate"], state["step"])
        learnt = jax.tree.map(lambda p, d: p - rate * d, learnt, directions)
        new = dict(state, learnt=learnt, moments=moments, step=state["step"] + 1, **changes)
        return new, {"loss": loss}

    def evaluate(self, state: Tree, data: Batch) -> Measures:
        """Share of evaluation pictures whose neighbours vote for their class, or minus the loss."""
        if self.score == "minus_loss":
            return {"minus_loss": -self._evaluation_loss(state, data)}
        variables = self.parameters(state)["encoder"]
        images = jnp.asarray(data["images"])
        bank = self.features(variables, images[data["bank_rows"]])
        queries = self.features(variables, images[data["evaluation_rows"]])
        labels = (data["evaluation_labels"], data["bank_labels"])
        options = {"classes": self.classes, "neighbours": self.neighbours}
        return {"knn": knn_accuracy(queries, labels[0], bank, labels[1], **options)}

    def parameters(self, state: Tree) -> Params:
        """``encoder`` (``params``, ``batch_stats``) and ``projection``."""
        encoder = {"params": state["learnt"]["encoder"], "batch_stats": state["batch_stats"]}
        return {"encoder": encoder, "projection": state["learnt"]["projection"]}

    def stop(self, step: int, measures: Mapping[str, Any]) -> bool:
        """Never."""
        del step, measures
        return False

    def features(self, variables: Params, images: Array) -> jax.Array:
        """Features [n, d] float32 of pictures uint8 [n, y, x, 3], by the running moments."""
        images = jnp.asarray(images)
        n, part = images.shape[0], min(2 * self.batch, images.shape[0])
        padded = jnp.pad(images, [(0, -n % part), *[(0, 0)] * (images.ndim - 1)])

        def some(pictures: jax.Array) -> jax.Array:
            pixels = self._standard(to_unit(pictures))
            return encode(self.encoder, variables, pixels, dtype=self.dtype)[0]

        found = jax.lax.map(some, padded.reshape(-1, part, *images.shape[1:]))
        return found.reshape(-1, found.shape[-1])[:n]

    def _settings(self) -> dict[str, float]:
        return {n: getattr(self, n) for n in ("learning_rate", "weight_decay", "temperature")}

    def _more(self, key: Key, learnt: Params, stats: Params) -> Tree:
        """What a method's state has beyond the shared one."""
        del key, learnt, stats
        return {}

    def _before(self, state: Tree) -> Tree:
        """What changes ahead of the loss."""
        return state

    def _loss(
        self, learnt: Params, state: Tree, views: jax.Array, key: Key
    ) -> tuple[jax.Array, Tree]:
        """The loss of ``views`` [2, b, y, x, 3], and the entries of the state that it changes."""
        raise NotImplementedError

    def _judge(self, state: Tree, views: jax.Array) -> jax.Array:
        """The loss of ``views`` [2, b, y, x, 3] by the running moments."""
        raise NotImplementedError

    def _evaluation_loss(self, state: Tree, data: Batch) -> jax.Array:
        """The mean over whole batches, with views that are the same every time."""
        images = jnp.asarray(data["images"])[data["evaluation_rows"]]
        parts = images.shape[0] // self.batch
        if not parts:
            raise ValueError(
                f"{images.shape[0]} evaluation pictures; expected a batch of {self.batch} or more"
            )
        images = images[: parts * self.batch].reshape(parts, self.batch, *images.shape[1:])
        keys = jax.random.split(jax.random.key(0), parts)
        losses = jax.lax.map(lambda part: self._judge(state, self._views(*part)), (keys, images))
        return jnp.mean(losses)

    def _views(self, key: Key, images: jax.Array) -> jax.Array:
        """Two standardised views [2, b, size, size, 3] of pictures uint8 [b, y, x, 3]."""
        twice = jnp.concatenate([to_unit(images)] * 2)
        views = self._standard(augment(key, twice, recipe=self.recipe, size=self.size))
        return views.reshape(2, images.shape[0], *views.shape[1:])

    def _standard(self, images: jax.Array) -> jax.Array:
        return standardise(images, mean=self.encoder.mean, std=self.encoder.std)

    def _fresh_projection(self, key: Key) -> Params:
        # As ``MLP`` draws itself, in one draw: both layers see d numbers, so that all is uniform in
        # +-1 / sqrt(d).
        d = self.encoder.features
        shapes = jax.eval_shape(self._head().init, key, jnp.zeros((1, d)))["params"]
        leaves, structure = jax.tree.flatten(shapes)
        numbers = jax.random.uniform(key, (sum(leaf.size for leaf in leaves),), minval=-1)
        ends = np.cumsum([leaf.size for leaf in leaves])[:-1].tolist()
        parts = jnp.split(numbers / math.sqrt(d), ends)
        drawn = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
        return jax.tree.unflatten(structure, drawn)

    def _head(self) -> MLP:
        return MLP(self.projection, widths=(self.encoder.features,))

    def _project(
        self, learnt: Params, stats: Params, images: jax.Array, *, train: bool
    ) -> tuple[jax.Array, Params]:
        """Projections [b, p] and the running moments afterwards."""
        variables = {"params": learnt["encoder"], "batch_stats": stats}
        features, stats = encode(self.encoder, variables, images, train=train, dtype=self.dtype)
        return self._head().apply({"params": learnt["projection"]}, features)[0], stats

    def _direction(self) -> optax.GradientTransformation:
        return optax.trace(0.9) if self.optimiser == "sgd" else optax.scale_by_adam()

    def _rate(self, highest: jax.Array, step: jax.Array) -> jax.Array:
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0, 1)))
        rising = (step + 1) / max(self.warmup, 1)
        return highest * jnp.where(step < self.warmup, rising, cosine)


@dataclass(frozen=True, kw_only=True)
class SimCLRTask(ContrastiveTask):
    """SimCLR: the other view of a picture among all other views of the batch.

    Source: Chen, Kornblith, Norouzi and Hinton 2020, section 2 and appendix B.9 (CIFAR-10:
    temperature 0.5, no blur). Both views pass through the encoder as one batch. The projection has
    one hidden layer, as wide as the features, with ReLU.
    """

    def _loss(
        self, learnt: Params, state: Tree, views: jax.Array, key: Key
    ) -> tuple[jax.Array, Tree]:
        del key
        both = views.reshape(-1, *views.shape[2:])
        rows, stats = self._project(learnt, state["batch_stats"], both, train=True)
        first, second = jnp.split(rows, 2)
        loss = nt_xent(first, second, temperature=state["settings"]["temperature"])
        return loss, {"batch_stats": stats}

    def _judge(self, state: Tree, views: jax.Array) -> jax.Array:
        both = views.reshape(-1, *views.shape[2:])
        rows, _ = self._project(state["learnt"], state["batch_stats"], both, train=False)
        first, second = jnp.split(rows, 2)
        return nt_xent(first, second, temperature=state["settings"]["temperature"])


@dataclass(frozen=True, kw_only=True)
class MoCoTask(ContrastiveTask):
    """MoCo v2: the key of the same picture among a queue of the keys of earlier batches.

    Source: He et al. 2020, algorithm 1; Chen, Fan et al. 2020 (v2: the two-layer projection, the
    recipe, the cosine). In the order of the released code: the key encoder moves, gives the keys,
    the loss is taken, the keys replace the oldest ones in the queue, the query encoder is updated.
    The key encoder's running moments are its own.

    The released code hides from a query which batch its key comes from: each device norms its own
    part, and keys are dealt to the devices in another order. Here ``norm_groups`` parts of a batch
    are normed apart on one device, as the authors' CIFAR-10 notebook does.

    Attributes:
      momentum: share of the key encoder that stays, 0 to 1 (released: 0.999; for CIFAR-10 0.99).
      queue: keys remembered, a multiple of ``batch``.
      norm_groups: parts of a batch that are normed apart; divides ``batch``.

    Raises:
      ValueError: a number is outside its range or no multiple.
    """

    recipe: Literal["none", "cifar", "imagenet", "simclr", "moco"] = "moco"
    learning_rate: float = 0.015
    temperature: float = 0.2
    momentum: float = 0.99
    queue: int = 4096
    norm_groups: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum is {self.momentum}; expected 0 to 1")
        if self.queue < 1 or self.queue % self.batch:
            raise ValueError(
                f"queue is {self.queue}; expected a multiple of the batch, {self.batch}"
            )
        if self.norm_groups < 1 or self.batch % self.norm_groups:
            raise ValueError(
                f"norm_groups is {self.norm_groups}; expected a divisor of the batch, {self.batch}"
            )

    def _settings(self) -> dict[str, float]:
        return super()._settings() | {"momentum": self.momentum}

    def _more(self, key: Key, learnt: Params, stats: Params) -> Tree:
        rows = jax.random.normal(key, (self.queue, self.projection))
        return {
            "key_learnt": jax.tree.map(jnp.copy, learnt),
            "key_stats": jax.tree.map(jnp.copy, stats),
            "queue": unit_rows(rows),
            "pointer": jnp.int32(0),
        }

    def _before(self, state: Tree) -> Tree:
        m = state["settings"]["momentum"]
        moved = jax.tree.map(
            lambda key, query: m * key + (1 - m) * query, state["key_learnt"], state["learnt"]
        )
        return dict(state, key_learnt=moved)

    def _loss(
        self, learnt: Params, state: Tree, views: jax.Array, key: Key
    ) -> tuple[jax.Array, Tree]:
        queries, stats = self._grouped(learnt, state["batch_stats"], views[0])
        order = jax.random.permutation(key, self.batch)
        dealt, key_stats = self._grouped(state["key_learnt"], state["key_stats"], views[1][order])
        keys = jax.lax.stop_gradient(unit_rows(dealt[jnp.argsort(order)]))
        temperature = state["settings"]["temperature"]
        loss = info_nce(queries, keys, state["queue"], temperature=temperature)
        queue = jax.lax.dynamic_update_slice(state["queue"], keys, (state["pointer"], 0))
        return loss, {
            "batch_stats": stats,
            "key_stats": key_stats,
            "queue": queue,
            "pointer": (state["pointer"] + self.batch) % self.queue,
        }

    def _grouped(
        self, learnt: Params, stats: Params, images: jax.Array
    ) -> tuple[jax.Array, Params]:
        """Projections [b, p] with the moments of each part of the batch, and the mean of these."""
        parts = images.reshape(self.norm_groups, -1, *images.shape[1:])
        rows, moved = jax.vmap(lambda part: self._project(learnt, stats, part, train=True))(parts)
        means = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), moved)
        return rows.reshape(-1, self.projection), means

    def _judge(self, state: Tree, views: jax.Array) -> jax.Array:
        queries, _ = self._project(state["learnt"], state["batch_stats"], views[0], train=False)
        keys, _ = self._project(state["key_learnt"], state["key_stats"], views[1], train=False)
        return info_nce(queries, keys, state["queue"], temperature=state["settings"]["temperature"])


def epoch_rows(key: Key, step: Array, *, n: int, batch: int) -> jax.Array:
    """Rows of a step's batch: each epoch a new order of all rows, cut into whole batches.

    Args:
      key: a jax key, the same at every step.
      step: int32 scalar, 0 for the first.
      n: rows there are.
      batch: rows a step, at most n.

    Returns:
      int32 [batch].

    Raises:
      ValueError: the batch is larger than n.
    """
    if batch > n:
        raise ValueError(f"batch is {batch}; there are {n} pictures to train on")
    epoch, place = jnp.divmod(jnp.asarray(step, jnp.int32), n // batch)
    order = jax.random.permutation(jax.random.fold_in(key, epoch), n).astype(jnp.int32)
    return jax.lax.dynamic_slice(order, (place * batch,), (batch,))


# ---- nearest neighbours ----


def knn_votes(
    queries: Array,
    bank: Array,
    bank_labels: Array,
    *,
    classes: int,
    neighbours: int = 200,
    temperature: float = 0.1,
) -> jax.Array:
    """Votes of the nearest neighbours by cosine, each weighing exp(cosine / temperature).

    Source: Wu, Xiong, Yu and Lin 2018, section 3.4; 200 neighbours at 0.1 as in MoCo's CIFAR-10
    notebook. Of equal cosines the lower row of the bank is nearer. At full float32 precision, a
    few hundred queries at a time.

    Args:
      queries: [n, d] floating.
      bank: [m, d] floating.
      bank_labels: int32 [m], 0..c-1, or -1 for a row that never votes.
      classes: c.
      neighbours: at most m vote.
      temperature: above 0.

    Returns:
      [n, c] float32; the largest is the class.

    Raises:
      ValueError: the shapes do not go together.
    """
    if (
        queries.ndim != 2
        or bank.shape[1:] != queries.shape[1:]
        or (bank_labels.shape != bank.shape[:1])
    ):
        raise ValueError(
            f"knn_votes: expected [n, d], [m, d] and [m], found {queries.shape}, {bank.shape} and "
            f"{bank_labels.shape}"
        )
    queries, bank, labels = unit_rows(queries), unit_rows(bank), jnp.asarray(bank_labels)
    nearest = min(neighbours, bank.shape[0])

    def vote(query: jax.Array) -> jax.Array:
        cosines = jnp.matmul(bank, query, precision=jax.lax.Precision.HIGHEST)
        cosines, rows = jax.lax.top_k(jnp.where(labels == UNLABELLED, -jnp.inf, cosines), nearest)
        # A common factor changes no vote, and keeps the exponential in range.
        weights = jnp.exp((cosines - 1) / temperature)
        chosen = labels[rows][:, None] == jnp.arange(classes)
        return jnp.sum(jnp.where(chosen, weights[:, None], 0.0), axis=0)

    return jax.lax.map(vote, queries, batch_size=min(256, queries.shape[0]))


def knn_accuracy(
    queries: Array,
    labels: Array,
    bank: Array,
    bank_labels: Array,
    *,
    classes: int,
    neighbours: int = 200,
) -> jax.Array:
    """Share of the labelled queries whose class wins the vote of ``knn_votes``.

    Args:
      queries: [n, d] floating.
      labels: int32 [n], -1 does not count.
      bank: [m, d] floating.
      bank_labels: int32 [m], -1 never votes.
      classes: c.
      neighbours: at most m vote.

    Returns:
      float32 scalar, 0 to 1; 0 where nothing is labelled.

    Raises:
      As ``knn_votes``.
    """
    votes = knn_votes(queries, bank, bank_labels, classes=classes, neighbours=neighbours)
    counts = jnp.asarray(labels) != UNLABELLED
    right = counts & (jnp.argmax(votes, axis=1) == jnp.asarray(labels))
    return (jnp.sum(right) / jnp.maximum(jnp.sum(counts), 1)).astype(jnp.float32)
