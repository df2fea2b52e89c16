"""All scores of a pool of units by one pass of a network: values of pixels, put together by unit.

A program takes a chunk of units through the network (and through stochastic passes, or the members
of a committee) and returns one number a unit of every score that is asked for. The maps of a chunk
live inside it; none is stored, so that the cost of one more score is the sum over a map.

A score is called ``measure:aggregation``, such as ``entropy:mean`` or ``margin:count0.8``.

Measures: ``entropy``, ``max_softmax`` (1 - max P; least confidence), ``margin`` (1 - (P1 - P2));
``odin`` with its temperature and step, such as ``odin0.1`` or ``odin1000-0.0014``; of the passes
``bald``, ``mean_entropy`` ("BALD" of Roels & Saeys 2019) and ``vote_entropy``; and the same three
of a committee, ``ensemble_bald`` and so on. ``error`` is 1 - P of the true class, and ``miou`` is
1 - the mean IoU of the unit's own classes (Chen 2020, 3.2: "lowest mIOU"): these two cheat.

Aggregations (Chen 2020, 1.3.2): ``mean``; ``count``, the fraction of the pixels above Chen's
threshold (2.2.2) or a number that is given, such as ``count0.8``; ``fraction``, with a number that
is a fraction of what the measure can be at most; and ``quantile``, above the quantile (0.9 where no
number is given) of the pool's pixels before the first query, frozen so that it means the same in
all rounds.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densejax.active.scores import MEASURES, THRESHOLDS, entropy_of, largest_value
from densejax.active.strategies.odin import move, others
from densejax.data.images import to_unit
from densejax.typing import Array, Key, Params

STOCHASTIC = ("bald", "mean_entropy", "vote_entropy")
COMMITTEE = tuple(f"ensemble_{name}" for name in STOCHASTIC)
PLAIN = ("entropy", "max_softmax", "margin")
CHEATS = ("error", "miou")
# Pixels of a pool, spread evenly over its units, of which the threshold of a quantile is taken.
SAMPLED = 2**20

_NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?"
_NAME = re.compile(
    rf"(?P<measure>[a-z_]+?)(?P<t>{_NUMBER})?(?:-(?P<e>{_NUMBER}))?"
    rf":(?P<how>mean|count|fraction|quantile)(?P<level>{_NUMBER})?"
)


@dataclass(frozen=True)
class PixelScore:
    """One column: a measure of pixels and how it is put together.

    Attributes:
      name: as it is asked for.
      measure: without its numbers.
      aggregation: ``mean``, ``count``, ``fraction`` or ``quantile``.
      level: the number of the aggregation; None where none is given.
      temperature: of ODIN.
      step: of ODIN, of pictures in [0, 1].
    """

    name: str
    measure: str
    aggregation: str
    level: float | None = None
    temperature: float = 1.0
    step: float = 0.0

    @property
    def source(self) -> str:
        """``passes``, ``committee`` or ``network``: what the measure is of."""
        if self.measure in COMMITTEE:
            return "committee"
        return "passes" if self.measure in STOCHASTIC else "network"

    @property
    def map(self) -> tuple[str, float, float]:
        """What tells the maps of pixels apart."""
        return self.measure, self.temperature, self.step

    def bound(self, classes: int, voters: int) -> float:
        """The largest value that a pixel can have with so many passes or members."""
        measure = self.measure.removeprefix("ensemble_")
        if measure in ("bald", "vote_entropy"):
            return float(np.log(min(classes, voters)))
        return largest_value("max_softmax" if measure == "odin" else measure, classes)


@cache
def pixel_score(name: str) -> PixelScore:
    """The score of a name.

    Raises:
      ValueError: the name is none; the message has all measures and aggregations.
    """
    found = _NAME.fullmatch(name)
    measures = (*PLAIN, "odin", *STOCHASTIC, *COMMITTEE, *CHEATS)
    if found is None or found["measure"] not in measures:
        raise ValueError(
            f"score {name!r}: expected MEASURE:AGGREGATION, a measure of {', '.join(measures)} "
            "(odin with a temperature, odin0.1) and mean, count, fraction or quantile"
        )
    if (found["measure"] == "odin") != (found["t"] is not None) or (found["e"] and not found["t"]):
        raise ValueError(
            f"score {name!r}: odin has a temperature and may have a step, such as odin0.1 or "
            "odin1000-0.0014; others have neither"
        )
    level = None if found["level"] is None else float(found["level"])
    how = found["how"]
    if found["measure"] in CHEATS and how != "mean":
        raise ValueError(f"score {name!r}: expected {found['measure']}:mean")
    if how == "mean" and level is not None:
        raise ValueError(f"score {name!r}: a mean has no threshold")
    if how == "count" and level is None and found["measure"] not in THRESHOLDS:
        raise ValueError(f"score {name!r}: Chen gives no threshold; write count and a number")
    if how == "fraction" and not 0 < (level or 0) < 1:
        raise ValueError(f"score {name!r}: expected fraction and a number between 0 and 1")
    if how == "quantile" and not 0 < (0.9 if level is None else level) < 1:
        raise ValueError(f"score {name!r}: expected a quantile between 0 and 1")
    temperature, step = float(found["t"] or 1), float(found["e"] or 0)
    if not temperature > 0:
        raise ValueError(f"score {name!r}: expected a temperature above 0")
    return PixelScore(name, found["measure"], how, level, temperature, step)


@dataclass(frozen=True)
class PixelNetwork:
    """A network of stored pictures, uint8 or in [0, 1].

    Attributes:
      init: fresh variables from a key.
      apply: ``(variables, [b, z, y, x, c'], **options) -> (logits [b, z, y, x, c], out)``; ``out``
        has the ``bottleneck`` [b, z', y', x', d], the embedding.
      passes: ``(variables, images, key)`` likewise, with the dropout of queries; None without any.
    """

    init: Callable[[Key], Params]
    apply: Callable[..., Any]
    passes: Callable[[Params, Array, Key], Any] | None = None


@dataclass(frozen=True)
class Looks:
    """What one pass tells of n units.

    Attributes:
      columns: [n] float32 by score, large where in doubt.
      embedding: [n, d] float32, the bottleneck averaged over space.
      probabilities: [n, c] float32, the mean over the pixels.
      shares: [n, c] float32, of the pixels that each class is predicted for.
      context: [n, c, c] float32: for each predicted class the mean softmax of its pixels, weighted
        by their entropy (Agarwal et al. 2020, CDAL); 0 where it is predicted nowhere. None where
        it was not asked for.
      flat: [n, z' y' x' d] float32, the whole bottleneck; None where it was not asked for.
    """

    columns: dict[str, np.ndarray]
    embedding: np.ndarray
    probabilities: np.ndarray
    shares: np.ndarray
    context: np.ndarray | None = None
    flat: np.ndarray | None = None


@dataclass(frozen=True)
class PixelScores:
    """Which scores to compute, by which passes.

    Attributes:
      network: whose.
      classes: c.
      scores: columns.
      passes: stochastic passes, m.
      members: of a committee at most, e.
      flatten: whether ``Looks.flat`` is wanted.
      context: whether ``Looks.context`` is wanted.
      chunk: units at once.

    Raises:
      ValueError: a threshold that no pixel can exceed, or stochastic scores without dropout.
    """

    network: PixelNetwork
    classes: int
    scores: tuple[PixelScore, ...]
    passes: int = 10
    members: int = 2
    flatten: bool = False
    context: bool = False
    chunk: int = 64

    def __post_init__(self) -> None:
        for score in self.scores:
            if score.source == "passes" and self.network.passes is None:
                raise ValueError(
                    f"score {score.name} needs stochastic passes, and the network has no dropout: "
                    "give it some (--query_drop), or a committee (ensemble_...)"
                )
            level, most = _level(self, score), score.bound(self.classes, self.voters(score))
            if level is not None and level >= most - 1e-6:
                raise ValueError(
                    f"score {score.name}: no {score.measure} of {self.classes} classes exceeds "
                    f"{level:.4g} (at most {most:.4g}); expected a lower number, or "
                    f"{score.measure}:quantile"
                )

    def voters(self, score: PixelScore) -> int:
        """Passes of a score, or the members of its committee."""
        return self.passes if score.source == "passes" else self.members

    @property
    def sources(self) -> tuple[str, ...]:
        """What is needed besides the network itself: of ``passes`` and ``committee``."""
        return tuple(s for s in ("passes", "committee") if any(s == o.source for o in self.scores))


def _level(plan: PixelScores, score: PixelScore) -> float | None:
    if score.aggregation == "count":
        return THRESHOLDS[score.measure] if score.level is None else score.level
    if score.aggregation == "fraction":
        return (score.level or 0.0) * score.bound(plan.classes, plan.voters(score))
    return None


def _levels(plan: PixelScores, thresholds: Mapping[str, float]) -> np.ndarray:
    """[q] float32: above which number pixels count; nan for a mean."""
    found = []
    for score in plan.scores:
        level = _level(plan, score)
        if score.aggregation == "quantile":
            if score.name not in thresholds:
                raise ValueError(f"score {score.name} needs its threshold first (freeze_quantiles)")
            level = thresholds[score.name]
        found.append(np.nan if level is None else level)
    return np.array(found, np.float32)


def _maps(
    plan: PixelScores,
    variables: Params,
    committee: Params | None,
    images: jax.Array,
    labels: jax.Array | None,
    key: jax.Array,
) -> tuple[dict[tuple[str, float, float], jax.Array], jax.Array, Any]:
    """Maps [s, pixels] by what tells them apart, probabilities [s, pixels, c] and ``out``."""
    network, x = plan.network, to_unit(images) if images.dtype == jnp.uint8 else images
    logits, out = network.apply(variables, x)

    def flat(array: jax.Array) -> jax.Array:
        return array.reshape(len(images), -1, plan.classes)

    def front(array: jax.Array) -> jax.Array:
        # A CPU works along the last axis: pixels, of which there are more than classes.
        return jnp.moveaxis(flat(array), -1, 0)

    classes = jnp.arange(plan.classes)[:, None, None]
    probabilities = jax.nn.softmax(flat(logits))
    maps = {}
    sources = {
        "passes": (
            plan.passes,
            lambda i: _passed(network, variables, x, key, i),
        ),
        "committee": (
            len(jax.tree.leaves(committee)[0]) if committee is not None else 0,
            lambda i: network.apply(jax.tree.map(lambda leaf: leaf[i], committee), x)[0],
        ),
    }
    for source, prefix in (("passes", ""), ("committee", "ensemble_")):
        if source not in plan.sources:
            continue
        number, logits_of = sources[source]

        def add(sums: Any, i: jax.Array, of: Any = logits_of) -> tuple[Any, None]:
            one = jax.nn.softmax(front(of(i)), axis=0)
            votes = jnp.argmax(one, axis=0) == classes
            return (sums[0] + one, sums[1] + entropy_of(one, axis=0), sums[2] + votes), None

        nothing = jnp.zeros((plan.classes, *probabilities.shape[:2]))
        sums, _ = jax.lax.scan(add, (nothing, nothing[0], nothing), jnp.arange(number))
        mean, entropies, votes = (a / number for a in sums)
        whole = entropy_of(mean, axis=0)
        maps[f"{prefix}mean_entropy", 1.0, 0.0] = whole
        maps[f"{prefix}bald", 1.0, 0.0] = jnp.maximum(whole - entropies, 0)
        maps[f"{prefix}vote_entropy", 1.0, 0.0] = entropy_of(votes, axis=0)
    for score in plan.scores:
        if score.map in maps:
            continue
        if score.measure == "odin":
            moved, step, temperature = flat(logits), score.step, score.temperature
            if step:
                moved_x = move(
                    lambda x: network.apply(variables, x)[0], x, temperature=temperature, step=step
                )
                moved = flat(network.apply(variables, moved_x)[0])
            maps[score.map] = others(moved / temperature)
        elif score.measure == "miou":
            assert labels is not None
            maps[score.map] = _unit_miou(probabilities, labels)
        elif score.measure == "error":
            assert labels is not None
            known = labels.reshape(len(images), -1)
            values = MEASURES["error"][1](probabilities, known)
            maps[score.map] = jnp.where(known >= 0, values, jnp.nan)
        else:
            maps[score.map] = MEASURES[score.measure][1](probabilities)
    return maps, probabilities, out


def _unit_miou(probabilities: jax.Array, labels: jax.Array) -> jax.Array:
    """[s, 1]: 1 - the mean IoU over the classes of a unit that it has or that are predicted."""
    classes = jnp.arange(probabilities.shape[-1])
    known = labels.reshape(len(labels), -1)
    predicted = jnp.where(known >= 0, jnp.argmax(probabilities, axis=-1), -1)
    one, other = (a[..., None] == classes for a in (known, predicted))
    union = (one | other).sum(axis=1)
    iou = (one & other).sum(axis=1) / jnp.maximum(union, 1)
    number = (union > 0).sum(axis=-1)
    return jnp.where(number > 0, 1 - iou.sum(axis=-1) / jnp.maximum(number, 1), 0)[:, None]


def _passed(
    network: PixelNetwork, variables: Params, x: jax.Array, key: jax.Array, number: jax.Array
) -> jax.Array:
    assert network.passes is not None
    return network.passes(variables, x, jax.random.fold_in(key, number))[0]


@partial(jax.jit, static_argnums=0)
def _chunk(
    plan: PixelScores,
    variables: Params,
    committee: Params | None,
    images: jax.Array,
    labels: jax.Array | None,
    levels: jax.Array,
    key: jax.Array,
) -> dict[str, Any]:
    maps, probabilities, out = _maps(plan, variables, committee, images, labels, key)
    columns = []
    for number, score in enumerate(plan.scores):
        values = maps[score.map]
        if score.aggregation != "mean":
            values = (values > levels[number]).astype(jnp.float32) + 0 * values
        # Void pixels are nan, and a unit that is void everywhere is in no doubt.
        void = jnp.isnan(values) & (score.measure == "error")
        number_of = jnp.maximum((~void).sum(axis=1), 1)
        columns.append(jnp.where(void, 0, values).sum(axis=1) / number_of)
    classes = jax.nn.one_hot(jnp.argmax(probabilities, axis=-1), plan.classes)
    bottleneck = jnp.asarray(out["bottleneck"]).astype(jnp.float32)
    flat = bottleneck.reshape(len(images), -1, bottleneck.shape[-1])
    found = {
        "columns": jnp.stack(columns, axis=-1) if columns else jnp.zeros((len(images), 0)),
        "embedding": flat.mean(axis=1),
        "probabilities": probabilities.mean(axis=1),
        "shares": classes.mean(axis=1),
    }
    if plan.flatten:
        found["flat"] = flat.reshape(len(images), -1)
    if plan.context:
        weights = entropy_of(probabilities)[..., None] * classes
        sums = jnp.einsum("spk,spc->skc", weights, probabilities)
        total = weights.sum(axis=1)[..., None]
        # A class that is predicted without any doubt has the plain mean of its pixels.
        plain = jnp.einsum("spk,spc->skc", classes, probabilities)
        here = jnp.maximum(classes.sum(axis=1)[..., None], 1)
        found["context"] = jnp.where(total > 0, sums / jnp.where(total > 0, total, 1), plain / here)
    return found


@partial(jax.jit, static_argnums=(0, 1))
def _sample(
    plan: PixelScores,
    step: int,
    variables: Params,
    committee: Params | None,
    images: jax.Array,
    key: jax.Array,
) -> jax.Array:
    """[q, s, pixels / step] values of every ``step``-th pixel of a unit."""
    maps, _, _ = _maps(plan, variables, committee, images, None, key)
    return jnp.stack([maps[score.map][:, ::step] for score in plan.scores])


def _pieces(images: Array, chunk: int) -> Any:
    """(start, real, part) of chunks of one shape; the last is padded by its last unit."""
    size = min(chunk, len(images))
    for start in range(0, len(images), size):
        part = images[start : start + size]
        yield start, len(part), _padded(part, size)


def _padded(part: Array, size: int) -> np.ndarray:
    """A chunk as an array of ``size`` units, the last of them repeated."""
    part = np.asarray(part)
    return np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])


def look(
    key: Key,
    plan: PixelScores,
    variables: Params,
    images: Array,
    *,
    committee: Params | None = None,
    labels: Array | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> Looks:
    """Score all units, one pass over them; compiled once a plan.

    Args:
      key: a jax key; pass i of the chunk at unit a draws from (key, a, i): stochastic scores, and
        no others, hang on the size of chunks.
      plan: what to compute.
      variables: of the network.
      images: [n, z, y, x, c'] uint8, or floating in [0, 1]; a memory map is read as it is needed.
      committee: variables with a leading axis of e members, for the scores of a committee.
      labels: int [n, z, y, x] for ``error`` and ``miou``, -1 where void.
      thresholds: of the plan's ``quantile`` scores by name (``freeze_quantiles``).

    Raises:
      ValueError: no unit, a quantile without its threshold, a committee that is missing, of one
        member or of more than the plan has, labels that are missing, or a score that is not finite.
    """
    _check(plan, images, committee)
    truth: Array | None = None
    if any(score.measure in CHEATS for score in plan.scores):
        if labels is None:
            raise ValueError("scores error and miou need the true labels of the units")
        truth = labels
    levels = _levels(plan, thresholds or {})
    parts = []
    for start, real, part in _pieces(images, plan.chunk):
        known = None if truth is None else _padded(truth[start : start + real], len(part))
        inner = jax.random.fold_in(key, start)
        found = _chunk(plan, variables, committee, part, known, levels, inner)
        parts.append({name: np.asarray(values)[:real] for name, values in found.items()})
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    columns = {s.name: whole["columns"][:, q] for q, s in enumerate(plan.scores)}
    for name, values in columns.items():
        if not np.isfinite(values).all():
            odd = np.flatnonzero(~np.isfinite(values))
            raise ValueError(
                f"score {name}: {odd.size} of {len(values)} units have no finite value, the first "
                f"is unit {odd[0]}: the network's logits are not finite"
            )
    return Looks(columns, **{n: a for n, a in whole.items() if n != "columns"})


def freeze_quantiles(
    key: Key,
    plan: PixelScores,
    variables: Params,
    images: Array,
    *,
    committee: Params | None = None,
) -> dict[str, float]:
    """Thresholds of the plan's ``quantile`` scores by name, from the pixels of a pool.

    Of about a million pixels, spread evenly over the units; of fewer where the pool has fewer. What
    is not above the threshold is at least the quantile's share of them, also where many are equal.

    Raises:
      ValueError: as of ``look``.
    """
    wanted = replace(plan, scores=tuple(s for s in plan.scores if s.aggregation == "quantile"))
    if not wanted.scores:
        return {}
    _check(wanted, images, committee)
    step = max(1, len(images) * int(np.prod(images.shape[1:-1])) // SAMPLED)
    while math.gcd(step, images.shape[-2]) > 1:  # else only some columns would be seen
        step -= 1
    parts = []
    for start, real, part in _pieces(images, plan.chunk):
        inner = jax.random.fold_in(key, start)
        found = np.asarray(_sample(wanted, step, variables, committee, part, inner))
        parts.append(found[:, :real].reshape(len(wanted.scores), -1))
    values = np.sort(np.concatenate(parts, axis=1), axis=1)
    places = [
        int(np.ceil((0.9 if s.level is None else s.level) * values.shape[1])) - 1
        for s in wanted.scores
    ]
    # A little more: another program may round the very pixel that is the threshold to above it.
    little = [1e-6 * s.bound(plan.classes, plan.voters(s)) for s in wanted.scores]
    return {s.name: float(values[q, places[q]]) + little[q] for q, s in enumerate(wanted.scores)}


def _check(plan: PixelScores, images: Array, committee: Params | None) -> None:
    if not len(images):
        raise ValueError("a pool without any unit: expected at least one")
    if "committee" not in plan.sources:
        return
    members = 0 if committee is None else len(jax.tree.leaves(committee)[0])
    names = [score.name for score in plan.scores if score.source == "committee"]
    if members < 2:
        raise ValueError(
            f"score {names[0]} needs a committee of 2 or more members, found {members}: train more "
            "seeds (--seeds)"
        )
    if members > plan.members:
        raise ValueError(f"score {names[0]}: {members} members; expected at most {plan.members}")
