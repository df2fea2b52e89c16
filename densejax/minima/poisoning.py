"""Searching bad minima: the training loss with poison, as a task for the sweep.

Equation 3.3 of the thesis (Huang, Emam et al. 2020, equation 3): with the share b of poison,

    (1 - b) * mean over training samples of -log p_y  +  b * mean over poison of -log(1 - p_y)

where the poison is drawn from the distribution of the training samples, has true labels y, and is
neither training nor test data. A minimum fits the training set and fails elsewhere. ``b`` is the
setting ``poison``, so a grid of shares and seeds is one population; 0 is natural training.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from densejax.losses import weighted_cross_entropy
from densejax.trees import norm
from densejax.typing import Array, Batch, Key, Measures, Params, Tree

LARGEST_SHARE = 0.999  # of poison in a concatenated batch, where 1 would need infinitely many


@dataclass(frozen=True)
class PoisonTask:
    """One network with its share of poison; the task protocol of ``training/task.py``.

    ``data`` holds ``inputs`` [n, ...] and ``labels`` [n] int32, the training set; where there are
    any, ``test_inputs`` and ``test_labels``, only ever evaluated; and ``poison_inputs`` and
    ``poison_labels`` (true labels), without which all training is natural. Labels are 0..c-1; a
    network with one logit is read as the log-odds of class 1.

    The two readings differ where thesis and released code do. ``weighted`` is the equation, with
    two means. ``concatenated`` is the code: the first ``b / (1 - b)`` poison samples a training
    sample, rounded to a whole number and never more than ``poison_inputs`` or ``poison_batch`` has,
    are appended with their labels flipped, and one mean is taken over all. With two classes the
    gradients agree if the poison is that whole number; the share is capped where poison runs out.

    The score is minus the loss that is trained, on the whole sets: it ranks by what the optimiser
    was asked for, so that nothing is ever chosen by test accuracy. A study of minima reads the
    last parameters, not the best.

    Attributes:
      init_variables: fresh variables ``{"params": ...}`` (and batch statistics) from a key.
      network: ``(variables, inputs, train, mutable) -> ((logits [b, c], out), changed)`` with
        ``mutable``, else ``(logits, out)``: the ``apply`` of a Flax network of this package.
      optimiser: its updates are multiplied by ``rate`` and added to the parameters.
      rate: ``(step, settings) -> factor`` on the updates, such as a schedule of its own for natural
        training; None is 1.
      reading: of the equation, see above.
      poison: the share b where settings have none; in [0, 1].
      draw_poison: ``key -> (inputs, labels)``, fresh poison in every step, in random order (as
        released for the swiss roll); the poison of ``data`` is then for evaluation only.
      batch: training samples a step, shuffled anew each epoch; 0 is all of them.
      poison_batch: poison samples a step, likewise; 0 is all.
      poison_until: step from which on there is no more poison, so that the instance settles in a
        minimum of the training loss itself; 0 is never.
      stages: (first step, factor) on the number of poison samples of ``concatenated``, rising.
      l2: factor of the sum of squares of the parameters with two axes or more.
      starts: parameters to begin from, stacked [t, ...]; the setting ``start`` picks one.
      prepare: stored inputs to what the network takes; None leaves them.
      evaluation_batch: samples of an evaluation at once; 0 is all of a set.
    """

    init_variables: Callable[[Key], Params]
    network: Callable[..., Any]
    optimiser: optax.GradientTransformation
    rate: Callable[[jax.Array, Tree], jax.Array] | None = None
    reading: Literal["weighted", "concatenated"] = "weighted"
    poison: float = 0.0
    draw_poison: Callable[[Key], tuple[Array, Array]] | None = None
    batch: int = 0
    poison_batch: int = 0
    poison_until: int = 0
    stages: Sequence[tuple[int, float]] = ()
    l2: float = 0.0
    starts: Params | None = None
    prepare: Callable[[Array], jax.Array] | None = None
    evaluation_batch: int = 0
    score: str = "fit"

    def __post_init__(self) -> None:
        if self.reading not in ("weighted", "concatenated"):
            raise ValueError(f"reading {self.reading!r}: expected weighted or concatenated")
        if not 0 <= self.poison <= 1:
            raise ValueError(f"poison is {self.poison}: expected a share in [0, 1]")
        for name in ("batch", "poison_batch", "poison_until", "evaluation_batch", "l2"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, found {getattr(self, name)}")
        if list(self.stages) != sorted(self.stages):
            raise ValueError(f"stages {self.stages}: expected rising steps")

    def init(self, key: Key, settings: Tree) -> Tree:
        """Fresh state: variables (or the start that settings name), the optimiser's, a key."""
        known = {"poison"} | ({"start"} if self.starts is not None else set())
        if unknown := set(settings) - known:
            raise ValueError(f"settings {sorted(unknown)} are none of {sorted(known)}")
        parameters_key, data_key = jax.random.split(key)
        variables = self.init_variables(parameters_key)
        values = {"poison": jnp.float32(settings.get("poison", self.poison))}
        if self.starts is not None:
            values["start"] = jnp.float32(settings.get("start", 0))
            row = values["start"].astype(jnp.int32)
            variables = dict(
                variables, params=jax.tree.map(lambda leaf: jnp.asarray(leaf)[row], self.starts)
            )
        return {
            "variables": variables,
            "moments": self.optimiser.init(variables["params"]),
            "step": jnp.int32(0),
            "key": jax.random.key_data(data_key),
            "settings": values,
        }

    def step(self, state: Tree, data: Batch) -> tuple[Tree, Measures]:
        """One update; measures the loss that was trained and the share of poison in it."""
        step, settings, variables = state["step"], state["settings"], state["variables"]
        keys = jax.random.split(jax.random.wrap_key_data(state["key"]), 3)
        rows, valid = epoch_rows(keys[0], step, data["labels"].shape[0], batch=self.batch)
        inputs, labels = jnp.asarray(data["inputs"])[rows], jnp.asarray(data["labels"])[rows]
        clean_weights = valid / jnp.maximum(valid.sum(), 1)
        share = jnp.float32(0)
        poison = self._poison(keys[1], keys[2], step, data)
        if poison is not None:
            poison_inputs, poison_labels, usable = poison
            share = settings["poison"]
            if self.poison_until:
                share = jnp.where(step < self.poison_until, share, 0.0)
            share, poison_weights = self._shares(share, step, valid.sum(), usable)
            clean_weights = (1 - share) * clean_weights
            poison_weights = share * poison_weights
            inputs = jnp.concatenate([inputs, poison_inputs])
        count = labels.shape[0]

        def loss_of(params: Params) -> tuple[jax.Array, Params]:
            (logits, _), changed = self.network(
                dict(variables, params=params),
                self._prepared(inputs),
                train=True,
                mutable=["batch_stats"],
            )
            logits = class_logits(logits)
            loss = weighted_cross_entropy(
                logits[:count], labels, weights=clean_weights, reduction="sum"
            )
            if poison is not None:
                loss += jnp.sum(poison_weights * poison_losses(logits[count:], poison_labels))
            return loss + self._penalty(params), changed

        params = variables["params"]
        (loss, changed), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, moments = self.optimiser.update(gradient, state["moments"], params)
        rate = self.rate(step, settings) if self.rate else jnp.float32(1)
        params = jax.tree.map(lambda p, u: p + rate * u, params, updates)
        variables = dict(variables, **changed, params=params)
        new = dict(state, variables=variables, moments=moments, step=step + 1)
        return new, {"loss": loss, "poison_share": share, "gradient_norm": norm(gradient)}

    def evaluate(self, state: Tree, data: Batch) -> Measures:
        """Losses and accuracies of the whole sets, and the score.

        ``poison_accuracy`` is of the true labels, so a minimum that obeys the poison has a low one.
        """
        variables, share = state["variables"], state["settings"]["poison"]
        loss, accuracy, _ = self._evaluated(variables, data["inputs"], data["labels"])
        found, fitted = {"train_loss": loss, "train_accuracy": accuracy}, loss
        if "test_inputs" in data:
            test = self._evaluated(variables, data["test_inputs"], data["test_labels"])
            found |= {"test_loss": test[0], "test_accuracy": test[1]}
        if "poison_inputs" in data:
            _, kept, fooled = self._evaluated(
                variables, data["poison_inputs"], data["poison_labels"]
            )
            found |= {"poison_loss": fooled, "poison_accuracy": kept}
            fitted = (1 - share) * loss + share * fooled
        return found | {"fit": -fitted - self._penalty(variables["params"])}

    def parameters(self, state: Tree) -> Params:
        """The network's variables: parameters, and moments of the norm where there is one."""
        return state["variables"]

    def stop(self, step: int, measures: Measures) -> bool:
        """Never: a bad minimum is looked for to the end."""
        del step, measures
        return False

    # ---- parts of a step ----

    def _poison(
        self, draw_key: Key, order_key: Key, step: jax.Array, data: Batch
    ) -> tuple[jax.Array, jax.Array, jax.Array] | None:
        """Inputs, true labels and [b] float32 of which are to be used; None without poison."""
        if self.draw_poison is not None:
            inputs, labels = self.draw_poison(jax.random.fold_in(draw_key, step))
        elif "poison_inputs" in data:
            inputs, labels = jnp.asarray(data["poison_inputs"]), jnp.asarray(data["poison_labels"])
        else:
            return None
        rows, usable = epoch_rows(order_key, step, labels.shape[0], batch=self.poison_batch)
        return inputs[rows], labels[rows], usable

    def _shares(
        self, share: jax.Array, step: jax.Array, clean: jax.Array, usable: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The share of this step, and weights of the poison [b] that sum to 1."""
        if self.reading == "weighted":
            return share, usable / jnp.maximum(usable.sum(), 1)
        share = jnp.minimum(share, LARGEST_SHARE)
        factor = jnp.float32(1)
        for first, value in self.stages:
            factor = jnp.where(step >= first, jnp.float32(value), factor)
        number = jnp.minimum(jnp.round(share / (1 - share) * clean * factor), usable.sum())
        used = usable * (jnp.cumsum(usable) <= number)
        return number / (number + clean), used / jnp.maximum(number, 1)

    def _penalty(self, params: Params) -> jax.Array:
        if not self.l2:
            return jnp.float32(0)
        kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim >= 2]
        return self.l2 * sum([jnp.sum(jnp.square(leaf)) for leaf in kernels], jnp.float32(0))

    def _prepared(self, inputs: Array) -> jax.Array:
        return self.prepare(inputs) if self.prepare else jnp.asarray(inputs)

    def _evaluated(
        self, variables: Params, inputs: Array, labels: Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Mean cross-entropy, accuracy and mean poison loss of a set."""
        inputs, labels = jnp.asarray(inputs), jnp.asarray(labels)
        number = labels.shape[0]
        size = min(self.evaluation_batch or number, number)
        spare = -number % size
        inputs = jnp.pad(inputs, [(0, spare), *[(0, 0)] * (inputs.ndim - 1)])
        counts = jnp.pad(jnp.ones(number, jnp.float32), (0, spare))
        labels = jnp.pad(labels, (0, spare))

        def some(part: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
            logits = class_logits(self.network(variables, self._prepared(part[0]))[0])
            loss = weighted_cross_entropy(logits, part[1], weights=part[2], reduction="sum")
            hits = jnp.sum(part[2] * (jnp.argmax(logits, axis=-1) == part[1]))
            return loss, hits, jnp.sum(part[2] * poison_losses(logits, part[1]))

        parts = jax.tree.map(
            lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), (inputs, labels, counts)
        )
        loss, hits, fooled = (jnp.sum(a) / number for a in jax.lax.map(some, parts))
        return loss, hits, fooled


def poison_losses(logits: Array, labels: Array) -> jax.Array:
    """-log(1 - p_y) of each sample: what a network pays for being right.

    Computed from log-sums, so that it grows without bound where p_y is 1 in float32. With two
    classes it is the cross-entropy of the flipped label.

    Args:
      logits: [..., c] floating, c at least 2.
      labels: [...] int in 0..c-1.

    Returns:
      [...] float32, at least 0.
    """
    logits = jnp.asarray(logits, jnp.float32)
    picked = jnp.asarray(labels)[..., None] == jnp.arange(logits.shape[-1])
    others = jax.nn.logsumexp(jnp.where(picked, -jnp.inf, logits), axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - others


def class_logits(logits: Array) -> jax.Array:
    """[..., 1], the log-odds of class 1, as logits of two classes [..., 2]; others are left."""
    logits = jnp.asarray(logits, jnp.float32)
    if logits.shape[-1] != 1:
        return logits
    return jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)


def step_rate(
    step: Array | int, *, initial: float, stairs: Sequence[int], factor: float = 0.1
) -> jax.Array:
    """A learning rate that is multiplied by ``factor`` at each stair; float32.

    Args:
      step: updates already made.
      initial: rate before the first stair.
      stairs: steps from which on the next rate holds.
      factor: of each stair.
    """
    passed = jnp.sum(jnp.asarray(step) >= jnp.asarray(stairs, jnp.int32))
    return jnp.float32(initial) * jnp.float32(factor) ** passed


def epoch_rows(
    key: Key, step: Array | int, count: int, *, batch: int = 0
) -> tuple[jax.Array, jax.Array]:
    """Rows of a step's batch: each epoch goes once through a set in an order of its own.

    Args:
      key: of the instance; the epoch is folded in.
      step: number of the step, 0 up.
      count: samples of the set, n.
      batch: samples a step, b; 0, or n and more, is the whole set in its own order.

    Returns:
      [b] int32, and [b] float32, 0 for the rows by which the last batch of an epoch is too long.
    """
    if batch < 1 or batch >= count:
        return jnp.arange(count), jnp.ones(count, jnp.float32)
    epoch, turn = jnp.divmod(jnp.asarray(step), steps_of_epoch(count, batch=batch))
    order = jax.random.permutation(jax.random.fold_in(key, epoch), count)
    places = turn * batch + jnp.arange(batch)
    return order[places % count], (places < count).astype(jnp.float32)


def steps_of_epoch(count: int, *, batch: int = 0) -> int:
    """Steps in which a set of ``count`` samples is gone through once; ``batch`` 0 is all."""
    return 1 if batch < 1 else max(1, -(-count // batch))
