"""Strategies by the names that command lines give them: how each is made, and what it needs.

From Python nobody needs the table: a strategy is a function of this folder, ``boundary.base``.
``STRATEGIES`` choose from arrays; ``IN_ROUNDS`` has those too that only make sense beside a network
in training.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import numpy as np

from densejax.active import (
    balanced,
    balancing,
    boundary,
    centres,
    clusters,
    coverage,
    fisher,
    information,
    kmeans,
    network_queries,
    passes,
    scores,
    typiclust,
    wrappers,
)
from densejax.active.pool import Pool, Score, Selection, Selector, check_budget, members
from densejax.active.records import Strategy
from densejax.classification.task import ImageTask
from densejax.typing import Array

Needs: TypeAlias = tuple[tuple[str, ...], ...]

# Arrays of the pool; any one of the alternatives serves.
PROBABILITIES: Needs = (("probabilities",), ("logits",), ("features", "weights"))
LOGITS: Needs = PROBABILITIES[1:]
HEAD: Needs = (("features", "weights"), ("logits", "weights"))
BOTH: Needs = (("features", "weights"), ("features", "probabilities"), ("features", "logits"))
FEATURES: Needs = (("features",),)
PASSES: Needs = (("passes",),)
IMAGES: Needs = (("images",),)
ANY: Needs = tuple((name,) for name in ("features", "logits", "probabilities", "passes", "labels"))


def _labelled(needs: Needs) -> Needs:
    return tuple((*one, "labels") for one in needs)


@dataclass(frozen=True)
class Options:
    """What the strategies of the table may be told; each looks at its own.

    Attributes:
      order: base: as algorithm 2 of the thesis, or as its released code.
      boundary: base: distance to the plane between two classes, or to the region of a class.
      radius: of probcover's balls, which needs one, and of the herdings' kernel.
      partitions: of the strategies whose name says partitioned.
      subsample: further options of ``wrappers.partitioned`` for them.
      dropout: of the network, in front of its head; 0 where it has none.
      passes: stochastic passes of such a network.
      task: odin, vaal: what a network of the rounds is.
      images: odin, vaal: [n, ...] of the rounds; looked at for their shape and dtype.
      odin_temperature: above 0.
      odin_step: epsilon of odin, of pictures in [0, 1].
      vaal: options of ``vaal``; ``steps`` are the classifier's where there are none.
    """

    order: Literal["round_robin", "block"] = "round_robin"
    boundary: Literal["pairwise", "exact"] = "pairwise"
    radius: float | None = None
    partitions: int = 10
    subsample: Mapping[str, int] | None = None
    dropout: float = 0.0
    passes: int = 10
    task: ImageTask | None = None
    images: Array | None = None
    odin_temperature: float = 0.1
    odin_step: float = 0.0014
    vaal: Mapping[str, Any] | None = None


class Entry(NamedTuple):
    """A strategy of a table.

    Attributes:
      make: a selector, or a score to rank by.
      needs: arrays of the pool ("weights" is the head): any one of the alternatives.
      asks: attributes of ``records.Strategy`` in which it differs from most.
    """

    make: Callable[[Options], Any]
    needs: Needs
    asks: Mapping[str, bool] = {}


def _plain(selector: Any) -> Callable[[Options], Any]:
    return lambda options: selector


def _base(options: Options) -> Selector:
    return partial(boundary.base, order=options.order, boundary=options.boundary)


def _probcover(options: Options) -> Selector:
    if options.radius is None:
        raise ValueError("probcover needs --radius, of its balls (0 to 2: features have length 1)")
    return partial(coverage.probcover, radius=options.radius)


def _herding(selector: Any) -> Callable[[Options], Any]:
    return lambda o: partial(selector, **({"radius": o.radius} if o.radius else {}))


def _partitioned(selector: Any) -> Callable[[Options], Selector]:
    return lambda o: wrappers.partitioned(selector, partitions=o.partitions, **(o.subsample or {}))


def _odin(options: Options) -> Callable[..., Any]:
    task, images = _of_rounds("odin", options)
    return network_queries.odin_query(
        task, images, temperature=options.odin_temperature, step=options.odin_step
    )


def _vaal(options: Options) -> Selector:
    return network_queries.vaal_query(*_of_rounds("vaal", options), options=options.vaal or {})


def _of_rounds(name: str, options: Options) -> tuple[ImageTask, Array]:
    if options.task is None or options.images is None:
        raise ValueError(f"{name} needs the task and the images of rounds")
    return options.task, options.images


STRATEGIES: dict[str, Entry] = {
    "random": Entry(_plain(balanced.random), ANY, {"network": False}),
    "balanced_random": Entry(
        _plain(balanced.balanced_random), _labelled((*PROBABILITIES, *PASSES)), {"truth": True}
    ),
    "confidence": Entry(_plain(scores.confidence()), PROBABILITIES),
    "confidence_logit": Entry(_plain(scores.confidence(of="logits")), LOGITS),
    "margin": Entry(_plain(scores.margin()), PROBABILITIES),
    "margin_logit": Entry(_plain(scores.margin(of="logits")), LOGITS),
    "least_confidence": Entry(_plain(scores.least_confidence()), PROBABILITIES),
    "entropy": Entry(_plain(scores.entropy()), PROBABILITIES),
    "inverse_entropy": Entry(_plain(scores.inverse(scores.entropy())), PROBABILITIES),
    "most_incorrect": Entry(
        _plain(scores.most_incorrect()), _labelled(PROBABILITIES), {"truth": True}
    ),
    "bald": Entry(_plain(scores.bald()), PASSES),
    "mean_entropy": Entry(_plain(scores.mean_entropy()), PASSES),
    "vote_entropy": Entry(_plain(scores.vote_entropy()), PASSES),
    "mase": Entry(_plain(boundary.mase), HEAD),
    "base": Entry(_base, HEAD),
    "core_set": Entry(_plain(centres.core_set), FEATURES),
    "badge": Entry(_plain(centres.badge), BOTH),
    "k_means": Entry(_plain(kmeans.k_means), FEATURES),
    "typiclust": Entry(_plain(typiclust.typiclust), FEATURES),
    "probcover": Entry(_probcover, FEATURES),
    "max_herding": Entry(_herding(coverage.max_herding), FEATURES),
    "uncertainty_herding": Entry(_herding(coverage.uncertainty_herding), BOTH),
    "dropquery": Entry(_plain(clusters.dropquery), (("features", "weights"),)),
    "cluster_margin": Entry(_plain(clusters.cluster_margin), BOTH),
    "batch_bald": Entry(_plain(information.batch_bald), PASSES),
    "bait": Entry(_plain(fisher.bait), BOTH),
    "balancing": Entry(_plain(balancing.balancing), _labelled(FEATURES), {"sequential": True}),
}

IN_ROUNDS: dict[str, Entry] = STRATEGIES | {
    "balanced_margin": Entry(_plain(balanced.balanced(scores.margin())), PROBABILITIES),
    "partitioned_core_set": Entry(_partitioned(centres.core_set), FEATURES),
    "partitioned_badge": Entry(_partitioned(partial(centres.badge, pooled=True)), BOTH),
    "odin": Entry(_odin, IMAGES, {"images": True, "variables": True}),
    "vaal": Entry(_vaal, IMAGES, {"images": True, "network": False}),
    # Chen 2020, 2.5: the entropy of a network that has learnt from all labels.
    "expert": Entry(_plain(scores.entropy()), PROBABILITIES, {"expert": True}),
}


def check_names(names: Sequence[str]) -> None:
    """Raises: ValueError where a name is none of ``IN_ROUNDS`` or occurs twice."""
    if not set(names) <= set(IN_ROUNDS) or len(set(names)) != len(names):
        raise ValueError(
            f"strategies {', '.join(names)}: expected each once, of {', '.join(IN_ROUNDS)}"
        )


def in_rounds(
    names: Sequence[str], options: Options, *, released_start: bool = False
) -> dict[str, Strategy]:
    """Strategies of ``IN_ROUNDS`` as rounds ask them.

    Rounds have features, logits and the head of a network; stochastic passes come from dropping its
    features (``passes.stochastic``).

    Args:
      names: each once.
      options: what they are told.
      released_start: whether ``balanced_random`` starts from a balanced set, as released.

    Raises:
      ValueError: a name is unknown or occurs twice, a strategy needs stochastic passes of a network
        without dropout, or an option or the images do not suit it.
    """
    check_names(names)
    found = {}
    for name in names:
        entry = IN_ROUNDS[name]
        made = entry.make(options)
        if entry.needs == PASSES:
            if not options.dropout:
                raise ValueError(
                    f"{name} needs stochastic passes, and the network has no dropout; give it one "
                    "by --dropout, above 0 and below 1"
                )
            made = passes.stochastic(made, rate=options.dropout, passes=options.passes)
        select = scores.ranked(made) if isinstance(made, Score) else made
        start = released_start and name == "balanced_random"
        found[name] = Strategy(select, **entry.asks, balanced_start=start)
    return found


def from_arrays(
    name: str,
    given: Sequence[str],
    options: Options,
    *,
    power: float | None = None,
    stride: int = 1,
    class_balanced: bool = False,
    partitions: int = 1,
    subsample: Mapping[str, int | None] | None = None,
) -> Selector:
    """A strategy of ``STRATEGIES`` in its wrappers, the partitions outermost.

    Args:
      name: of the table.
      given: names of the arrays that there are.
      options: what it is told.
      power: of a score: drawn in proportion to this power of it (``wrappers.power``).
      stride: of a score: take every n-th sample of the ranking, n the stride.
      class_balanced: as many of each predicted class, in the order of the options.
      partitions: random parts of the pool.
      subsample: further options of ``wrappers.partitioned``.

    Raises:
      ValueError: an unknown name, an array that it needs is not given, or an option does not apply
        to it.
    """
    if name not in STRATEGIES:
        raise ValueError(f"--strategy {name!r} is unknown; expected one of {', '.join(STRATEGIES)}")
    entry = STRATEGIES[name]
    if not any(set(one) <= set(given) for one in entry.needs):
        found = " ".join(f"--{one}" for one in sorted(given)) or "none"
        raise ValueError(f"{name} needs {as_text(entry.needs)}; found {found}")
    inner = entry.make(options)
    if power is not None or stride != 1:
        if not isinstance(inner, Score):
            raise ValueError(f"--power and --stride are of scores; {name} is none")
        if power is not None and stride != 1:
            raise ValueError("expected one of --power and --stride, found both")
        inner = (
            wrappers.stride(inner, stride) if power is None else wrappers.power(inner, beta=power)
        )
    if class_balanced:
        inner = balanced.balanced(inner, order=options.order)
    selector = scores.ranked(inner) if isinstance(inner, Score) else inner
    parts = {name: number for name, number in (subsample or {}).items() if number is not None}
    if partitions == 1 and not parts:
        return selector
    return wrappers.partitioned(selector, partitions=partitions, **parts)


def as_text(needs: Needs) -> str:
    """Alternatives of arrays as flags, for people."""
    if tuple(needs) == ANY:
        return "any file of the pool"
    return ", or ".join(" and ".join(f"--{name}" for name in one) for one in needs)


def select(
    strategy: str,
    *,
    budget: int,
    features: Any = None,
    head: Sequence[Any] | Mapping[str, Any] | None = None,
    logits: Any = None,
    probabilities: Any = None,
    passes: Any = None,
    labels: Array | None = None,
    labelled: Array | None = None,
    held_out: Array | None = None,
    seed: int = 0,
    options: Options | None = None,
    **wrapped: Any,
) -> Selection:
    """Choose what to label next from arrays, by the name of a strategy.

    Args:
      strategy: of ``STRATEGIES``, such as ``base``, ``mase``, ``margin``, ``core_set``, ``badge``.
      budget: samples to choose.
      features: [n, d] floating; like all arrays of n rows it may be a memory map.
      head: the linear head on the features: ``(kernel [d, c], bias [c])``, or by name, as Flax
        (``kernel`` [d, c], ``bias`` [c]) or PyTorch (``weight`` [c, d], ``bias`` [c]) has it.
      logits: [n, c] floating, where features and head do not give them.
      probabilities: [n, c] floating, rows sum to 1.
      passes: [n, m, c] floating, probabilities of m stochastic passes or members.
      labels: [n] integers, -1 where unknown.
      labelled: samples that are labelled: indices, or [n] bool.
      held_out: samples that are never chosen: indices, or [n] bool.
      seed: of whatever is drawn.
      options: what the strategy may be told.
      wrapped: ``power``, ``stride``, ``class_balanced``, ``partitions`` and ``subsample`` of
        ``from_arrays``.

    Returns:
      Indices in the order of the query, and the score by which each was chosen.

    Raises:
      ValueError: the strategy is unknown or needs an array that is not given, arrays do not agree,
        or the budget is larger than what may be chosen.
    """
    arrays = {
        "features": features,
        "logits": logits,
        "probabilities": probabilities,
        "passes": passes,
    }
    kernel, bias = _head(head)
    given = [name for name, array in arrays.items() if array is not None]
    given += ["weights"] if head is not None else []
    given += ["labels"] if labels is not None else []
    selector = from_arrays(strategy, given, options or Options(), **wrapped)
    rows = next((a for a in (*arrays.values(), labels) if a is not None), None)
    assert rows is not None  # every strategy needs one of them
    pool = Pool(
        **arrays,
        kernel=kernel,
        bias=bias,
        labels=labels,
        labelled=_mask("labelled", labelled, rows.shape[0]),
        held_out=_mask("held_out", held_out, rows.shape[0]),
    )
    return selector(jax.random.key(seed), pool, check_budget(pool, budget))


def _head(head: Sequence[Any] | Mapping[str, Any] | None) -> tuple[Any, Any]:
    if head is None:
        return None, None
    if isinstance(head, Mapping):
        if set(head) in ({"weight"}, {"weight", "bias"}):
            return np.asarray(head["weight"]).T, head.get("bias")
        if set(head) in ({"kernel"}, {"kernel", "bias"}):
            return head["kernel"], head.get("bias")
        raise ValueError(
            f"head has {sorted(head)}: expected kernel [d, c] or weight [c, d], and bias [c]"
        )
    if len(head) != 2:
        raise ValueError(f"head has {len(head)} arrays: expected kernel [d, c] and bias [c]")
    return head[0], head[1]


def _mask(name: str, chosen: Array | None, size: int) -> np.ndarray | None:
    """[n] bool from a mask or from indices."""
    if chosen is None:
        return None
    array = np.asarray(chosen)
    if array.dtype == bool:
        if array.shape != (size,):
            raise ValueError(f"{name} is a mask of shape {array.shape}: expected ({size},)")
        return array
    return members(array, size, name=name)
