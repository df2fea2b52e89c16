"""Strategies by the names that command lines give them: how each is made, and what it needs.

A strategy is a file of this folder and is imported when it is made. From Python nobody needs the
table: a strategy is a function, ``dj.active.base``. ``STRATEGIES`` choose from arrays;
``IN_ROUNDS`` has those too that only make sense beside a network in training.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import jax
import numpy as np

from densejax.active.pool import Pool, Selection, Selector, check_budget
from densejax.active.rows import check_probabilities, members
from densejax.typing import Array, Key

if TYPE_CHECKING:
    from densejax.classification.task import ImageTask

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
    task: "ImageTask | None" = None
    images: Array | None = None
    odin_temperature: float = 0.1
    odin_step: float = 0.0
    vaal: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Strategy:
    """How one strategy asks.

    Attributes:
      select: ``(key, pool, budget) -> Selection``; the pool has features, logits and the head of
        the network that was trained last, and the labels of the labelled samples.
      network: whether it looks at what the network says; the pool has labels only where not.
      truth: whether it is given the labels of the whole pool: it cheats.
      sequential: whether it is given ``reveal``, a label at a time, as a keyword: it is ahead of
        those that choose a batch.
      balanced_start: whether its initial set is balanced over the classes, whatever the others'.
      images: whether the pool has the images too.
      variables: whether it is given the network's ``variables`` as a keyword.
      expert: whether the network that it looks at is not the one trained last but one that has
        learnt from all labels: it cheats.
    """

    select: Callable[..., Selection]
    network: bool = True
    truth: bool = False
    sequential: bool = False
    balanced_start: bool = False
    images: bool = False
    variables: bool = False
    expert: bool = False


class Entry(NamedTuple):
    """A strategy of a table.

    Attributes:
      make: a selector, or a score to rank by.
      needs: arrays of the pool ("weights" is the head): any one of the alternatives.
      asks: attributes of ``Strategy`` in which it differs from most.
      options: attributes of ``Options`` that it looks at.
      score: whether it is a score of each sample alone.
      unscored: whether it may choose a sample for which it has no finite score.
    """

    make: Callable[[Options], Any]
    needs: Needs
    asks: Mapping[str, bool] = {}
    options: tuple[str, ...] = ()
    score: bool = False
    unscored: bool = False


def _load(name: str) -> Any:
    """What is called ``file.name`` in this folder."""
    module, attribute = name.split(".")
    return getattr(import_module(f"{__name__}.{module}"), attribute)


def _plain(name: str) -> Callable[[Options], Any]:
    return lambda options: _load(name)


def _score(name: str, needs: Needs, *, asks: Mapping[str, bool] | None = None, **of: Any) -> Entry:
    """A score of ``scores`` by the name of the function that makes it."""

    def make(options: Options) -> Any:
        from densejax.active import scores

        return getattr(scores, name)(**of)

    options = ("passes",) if needs == PASSES else ()
    return Entry(make, needs, asks or {}, options, score=True)


def _inverse_entropy(options: Options) -> Any:
    from densejax.active.scores import entropy, inverse

    return inverse(entropy())


def _balanced_margin(options: Options) -> Selector:
    from densejax.active.balanced import balanced
    from densejax.active.scores import margin

    return balanced(margin())


def _base(options: Options) -> Selector:
    return partial(_load("base.base"), order=options.order, boundary=options.boundary)


def _probcover(options: Options) -> Selector:
    if options.radius is None:
        raise ValueError("probcover needs --radius, of its balls (0 to 2: features have length 1)")
    return partial(_load("coverage.probcover"), radius=options.radius)


def _herding(name: str) -> Callable[[Options], Any]:
    def make(options: Options) -> Any:
        given = {} if options.radius is None else {"radius": options.radius}
        return partial(_load(name), **given)

    return make


def _partitioned(name: str, **of: Any) -> Callable[[Options], Selector]:
    def make(options: Options) -> Selector:
        from densejax.active.wrappers import partitioned

        parts = options.subsample or {}
        return partitioned(partial(_load(name), **of), partitions=options.partitions, **parts)

    return make


def _odin(options: Options) -> Callable[..., Any]:
    task, images = _of_rounds("odin", options)
    query = _load("odin.odin_query")
    return query(task, images, temperature=options.odin_temperature, step=options.odin_step)


def _vaal(options: Options) -> Selector:
    return _load("vaal.vaal_query")(*_of_rounds("vaal", options), options=options.vaal or {})


def _of_rounds(name: str, options: Options) -> "tuple[ImageTask, Array]":
    if options.task is None or options.images is None:
        raise ValueError(f"{name} needs the task and the images of rounds")
    return options.task, options.images


STRATEGIES: dict[str, Entry] = {
    "random": Entry(_plain("random.random"), ANY, {"network": False}),
    "balanced_random": Entry(
        _plain("random.balanced_random"), _labelled((*PROBABILITIES, *PASSES)), {"truth": True}
    ),
    "confidence": _score("confidence", PROBABILITIES),
    "confidence_logit": _score("confidence", LOGITS, of="logits"),
    "margin": _score("margin", PROBABILITIES),
    "margin_logit": _score("margin", LOGITS, of="logits"),
    "least_confidence": _score("least_confidence", PROBABILITIES),
    "entropy": _score("entropy", PROBABILITIES),
    "inverse_entropy": Entry(_inverse_entropy, PROBABILITIES, score=True),
    "most_incorrect": _score("most_incorrect", _labelled(PROBABILITIES), asks={"truth": True}),
    "bald": _score("bald", PASSES),
    "mean_entropy": _score("mean_entropy", PASSES),
    "vote_entropy": _score("vote_entropy", PASSES),
    "mase": Entry(_plain("base.mase"), HEAD),
    "base": Entry(_base, HEAD, options=("order", "boundary")),
    # Of the first pick where nothing is labelled: there is no distance yet.
    "core_set": Entry(_plain("core_set.core_set"), FEATURES, unscored=True),
    "badge": Entry(_plain("badge.badge"), BOTH),
    "k_means": Entry(_plain("k_means.k_means"), FEATURES),
    "typiclust": Entry(_plain("typiclust.typiclust"), FEATURES),
    "probcover": Entry(_probcover, FEATURES, options=("radius",)),
    "max_herding": Entry(_herding("coverage.max_herding"), FEATURES, options=("radius",)),
    "uncertainty_herding": Entry(
        _herding("coverage.uncertainty_herding"), BOTH, options=("radius",)
    ),
    "dropquery": Entry(_plain("dropquery.dropquery"), (("features", "weights"),)),
    "cluster_margin": Entry(_plain("cluster_margin.cluster_margin"), BOTH),
    "batch_bald": Entry(_plain("batchbald.batch_bald"), PASSES, options=("passes",)),
    "bait": Entry(_plain("bait.bait"), BOTH),
    # Of its picks at random.
    "balancing": Entry(
        _plain("balancing.balancing"), _labelled(FEATURES), {"sequential": True}, unscored=True
    ),
}

IN_ROUNDS: dict[str, Entry] = STRATEGIES | {
    "balanced_margin": Entry(_balanced_margin, PROBABILITIES),
    "partitioned_core_set": Entry(
        _partitioned("core_set.core_set"), FEATURES, options=("partitions", "subsample")
    ),
    "partitioned_badge": Entry(
        _partitioned("badge.badge", pooled=True), BOTH, options=("partitions", "subsample")
    ),
    "odin": Entry(
        _odin,
        IMAGES,
        {"images": True, "variables": True},
        ("task", "images", "odin_temperature", "odin_step"),
    ),
    "vaal": Entry(_vaal, IMAGES, {"images": True, "network": False}, ("task", "images", "vaal")),
    # Chen 2020, 3.2.2: the entropy of a network that has learnt from all labels.
    "expert": _score("entropy", PROBABILITIES, asks={"expert": True}),
}

# What rounds tell of themselves, whichever strategies there are.
_OF_ROUNDS = {"task", "images", "subsample", "dropout"}
_OF_PASSES = {name for name, entry in STRATEGIES.items() if entry.needs == PASSES}


def check_names(names: Sequence[str]) -> None:
    """Raises: ValueError where a name is none of ``IN_ROUNDS`` or occurs twice."""
    if not set(names) <= set(IN_ROUNDS) or len(set(names)) != len(names):
        raise ValueError(
            f"strategies {', '.join(names)}: expected each once, of {', '.join(IN_ROUNDS)}"
        )


def _check_options(names: Sequence[str], options: Options, used: Collection[str]) -> None:
    """Refuse an option that is said and that none of the strategies looks at."""
    for field in fields(options):
        value, default = getattr(options, field.name), getattr(Options, field.name)
        if field.name in used or value is default or np.array_equal(value, default):
            continue
        users = [name for name, entry in IN_ROUNDS.items() if field.name in entry.options]
        raise ValueError(
            f"{', '.join(names)}: the option {field.name} ({value!r}) is not used here; it is "
            f"looked at by {', '.join(users) or 'networks in training'}"
            + ("" if set(users) & set(STRATEGIES) - _OF_PASSES else " in rounds of active learning")
        )


def in_rounds(
    names: Sequence[str], options: Options, *, released_start: bool = False
) -> dict[str, Strategy]:
    """Strategies of ``IN_ROUNDS`` as rounds ask them.

    Rounds have features, logits and the head of a network; stochastic passes come from dropping its
    features (``wrappers.stochastic``).

    Args:
      names: each once.
      options: what they are told.
      released_start: whether ``balanced_random`` starts from a balanced set, as released.

    Raises:
      ValueError: a name is unknown or occurs twice, a strategy needs stochastic passes of a network
        without dropout, an option or the images do not suit it, or none uses an option.
    """
    check_names(names)
    used = {option for name in names for option in IN_ROUNDS[name].options}
    _check_options(names, options, used | _OF_ROUNDS)
    from densejax.active import scores, wrappers

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
            made = wrappers.stochastic(made, rate=options.dropout, passes=options.passes)
        select = scores.ranked(made) if isinstance(made, scores.Score) else made
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

    Returns:
      A selector that refuses a sample without a finite score, where the strategy has one of each.

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
    used = {*entry.options, "order"} if class_balanced else set(entry.options)
    _check_options([name], options, used - {"passes"})
    if (power is not None or stride != 1) and not entry.score:
        users = ", ".join(other for other, one in STRATEGIES.items() if one.score)
        raise ValueError(f"--power and --stride are of scores, {users}; {name} is none")
    if power is not None and stride != 1:
        raise ValueError("expected one of --power and --stride, found both")
    from densejax.active import scores, wrappers

    inner = entry.make(options)
    if stride != 1:
        inner = wrappers.stride(inner, stride)
    elif power is not None:
        inner = wrappers.power(inner, beta=power)
    if class_balanced:
        from densejax.active.balanced import balanced

        inner = balanced(inner, order=options.order)
    selector = scores.ranked(inner) if isinstance(inner, scores.Score) else inner
    parts = {name: number for name, number in (subsample or {}).items() if number is not None}
    if partitions != 1 or parts:
        selector = wrappers.partitioned(selector, partitions=partitions, **parts)

    def select(key: Key, pool: Pool, budget: int) -> Selection:
        chosen = selector(key, pool, budget)
        # A power of a score of 0 is infinite, and drawn at once.
        _check_scores(name, chosen, unscored=entry.unscored, infinite=power is not None)
        return chosen

    return select


def _check_scores(name: str, chosen: Selection, *, unscored: bool, infinite: bool) -> None:
    """Refuse samples that were chosen in the order of the pool, for want of a finite score."""
    bad = np.isnan(chosen.scores) if infinite else ~np.isfinite(chosen.scores)
    if bad.any() and not unscored:
        place = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"{name}: {int(bad.sum())} of the {len(bad)} samples chosen have a score that is not "
            f"finite, the first is sample {chosen.indices[place]} with {chosen.scores[place]}; "
            "expected finite scores, for nothing tells these samples from others. Look for classes "
            "of equal weights in the head or that it never predicts, and for values so large that "
            "they overflow"
        )


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
      ValueError: the strategy is unknown, needs an array that is not given or does not use an
        option; arrays do not agree, are not finite, no probabilities or of one class; a sample has
        no finite score; or the budget is larger than what may be chosen.
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
    for name in ("probabilities", "passes"):
        if arrays[name] is not None:
            check_probabilities(arrays[name], name)
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
