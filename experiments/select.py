"""What to label next, from files: one query for people who train elsewhere.

Data: features of a pool, the linear head on them, or logits, probabilities or stochastic passes;
which samples are labelled or held out; their labels. Arrays are ``.npy`` files or Zarr folders and
may be larger than memory; indices and labels are ``.npy`` files.

    python -m experiments.select --features=F.npy --weights=W.npz --strategy=base --budget=10000 \\
        --labelled=L.npy --out=Q.csv

Result: ``Q.csv`` with the header ``index,score``, in query order; no other file. The same files and
seed give the same query. Expected runtime: that of one read of the pool for scores, of one pass of
matrix products a hundred or so queries for core-sets. Exit status 0; 2 where something was refused:
the last line says what was found and what was expected.
"""

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from absl import flags

from densejax.active import (
    balanced,
    balancing,
    boundary,
    centres,
    clusters,
    coverage,
    files,
    fisher,
    information,
    kmeans,
    scores,
    wrappers,
)
from densejax.active import typiclust as typical
from densejax.active.deriving import NotFiniteError
from densejax.active.pool import CHUNK_BYTES, Pool, Score, Selection, Selector, check_budget
from densejax.training.config import define_flags, from_flags, option

AXES = {
    "features": ("n", "d"),
    "logits": ("n", "c"),
    "probabilities": ("n", "c"),
    "passes": ("n", "m", "c"),
}
FAST_ROWS = 1000


@dataclass(frozen=True)
class Config:
    """The files, the strategy, and how it is to choose."""

    strategy: str = option("", "how to choose; see the list")
    budget: int = option(0, "how many to choose", unit="samples")
    out: str = option("", "CSV file to write: index,score in query order")
    features: str = option("", "[n, d] floating")
    weights: str = option("", ".npz with kernel [d, c] and bias [c] of the linear head")
    logits: str = option("", "[n, c] floating, where features and weights do not give them")
    probabilities: str = option("", "[n, c] floating, rows sum to 1")
    passes: str = option("", "[n, m, c] floating, probabilities of m stochastic passes or members")
    labelled: str = option("", "[l] integers, rows that are labelled")
    held_out: str = option("", "[e] integers, rows that are never chosen")
    labels: str = option("", "[n] integers, -1 where unknown")
    seed: int = option(0, "of whatever is drawn")
    overwrite: bool = option(False, "replace an older --out")
    order: Literal["round_robin", "block"] = option(
        "round_robin", "base and class_balanced: as algorithm 2, or as the released code"
    )
    boundary: Literal["pairwise", "exact"] = option(
        "pairwise", "base: plane between two classes, or the whole region of a class"
    )
    radius: float | None = option(None, "probcover (needed), max_herding, uncertainty_herding")
    class_balanced: bool = option(False, "as many of each predicted class, of any strategy")
    power: float | None = option(None, "of a score: draw in proportion to this power of it")
    stride: int = option(1, "of a score: take every so manieth of the ranking")
    partitions: int = option(1, "choose in so many random parts of the pool")
    max_labelled: int | None = option(None, "labelled samples drawn for the parts")
    max_unlabelled: int | None = option(None, "unlabelled samples drawn for the parts")


class Strategy(NamedTuple):
    """How a strategy is made, and the files it needs: any one of the alternatives."""

    make: Callable[[Config], Selector | Score]
    needs: tuple[tuple[str, ...], ...]


def _plain(selector: Any) -> Callable[[Config], Any]:
    return lambda config: selector


def _probcover(config: Config) -> Selector:
    if config.radius is None:
        raise ValueError("probcover needs --radius, of its balls (0 to 2: features have length 1)")
    return partial(coverage.probcover, radius=config.radius)


def _herding(selector: Any) -> Callable[[Config], Any]:
    return lambda config: partial(selector, **({"radius": config.radius} if config.radius else {}))


PROBABILITIES = (("probabilities",), ("logits",), ("features", "weights"))
LOGITS = PROBABILITIES[1:]
HEAD = (("features", "weights"), ("logits", "weights"))
BOTH = (("features", "weights"), ("features", "probabilities"), ("features", "logits"))
FEATURES = (("features",),)
PASSES = (("passes",),)
ANY = tuple((name,) for name in (*AXES, "labels"))

STRATEGIES: dict[str, Strategy] = {
    "random": Strategy(_plain(balanced.random), ANY),
    "balanced_random": Strategy(
        _plain(balanced.balanced_random),
        tuple((*one, "labels") for one in (*PROBABILITIES, *PASSES)),
    ),
    "confidence": Strategy(_plain(scores.confidence()), PROBABILITIES),
    "confidence_logit": Strategy(_plain(scores.confidence(of="logits")), LOGITS),
    "margin": Strategy(_plain(scores.margin()), PROBABILITIES),
    "margin_logit": Strategy(_plain(scores.margin(of="logits")), LOGITS),
    "least_confidence": Strategy(_plain(scores.least_confidence()), PROBABILITIES),
    "entropy": Strategy(_plain(scores.entropy()), PROBABILITIES),
    "inverse_entropy": Strategy(_plain(scores.inverse(scores.entropy())), PROBABILITIES),
    "most_incorrect": Strategy(
        _plain(scores.most_incorrect()), tuple((*one, "labels") for one in PROBABILITIES)
    ),
    "bald": Strategy(_plain(scores.bald()), PASSES),
    "mean_entropy": Strategy(_plain(scores.mean_entropy()), PASSES),
    "vote_entropy": Strategy(_plain(scores.vote_entropy()), PASSES),
    "mase": Strategy(_plain(boundary.mase), HEAD),
    "base": Strategy(lambda c: partial(boundary.base, order=c.order, boundary=c.boundary), HEAD),
    "core_set": Strategy(_plain(centres.core_set), FEATURES),
    "badge": Strategy(_plain(centres.badge), BOTH),
    "k_means": Strategy(_plain(kmeans.k_means), FEATURES),
    "typiclust": Strategy(_plain(typical.typiclust), FEATURES),
    "probcover": Strategy(_probcover, FEATURES),
    "max_herding": Strategy(_herding(coverage.max_herding), FEATURES),
    "uncertainty_herding": Strategy(_herding(coverage.uncertainty_herding), BOTH),
    "dropquery": Strategy(_plain(clusters.dropquery), (("features", "weights"),)),
    "cluster_margin": Strategy(_plain(clusters.cluster_margin), BOTH),
    "batch_bald": Strategy(_plain(information.batch_bald), PASSES),
    "bait": Strategy(_plain(fisher.bait), BOTH),
    "balancing": Strategy(_plain(balancing.balancing), (("features", "labels"),)),
}


def build(config: Config) -> Selector:
    """The selector that a configuration names, in its wrappers.

    Raises:
      ValueError: an unknown strategy, a file that it needs is not given, or an option that does not
        apply to it.
    """
    if config.strategy not in STRATEGIES:
        raise ValueError(
            f"--strategy {config.strategy!r} is unknown; expected one of {', '.join(STRATEGIES)}"
        )
    strategy = STRATEGIES[config.strategy]
    given = {name for name in (*AXES, "weights", "labels") if getattr(config, name)}
    if not any(set(one) <= given for one in strategy.needs):
        found = " ".join(f"--{name}" for name in sorted(given)) or "none"
        raise ValueError(f"{config.strategy} needs {as_text(strategy.needs)}; found {found}")
    inner = strategy.make(config)
    if config.power is not None or config.stride != 1:
        if not isinstance(inner, Score):
            raise ValueError(f"--power and --stride are of scores; {config.strategy} is none")
        if config.power is not None and config.stride != 1:
            raise ValueError("expected one of --power and --stride, found both")
        inner = (
            wrappers.power(inner, beta=config.power)
            if config.power is not None
            else wrappers.stride(inner, config.stride)
        )
    if config.class_balanced:
        inner = balanced.balanced(inner, order=config.order)
    selector = scores.ranked(inner) if isinstance(inner, Score) else inner
    if config.partitions == 1 and config.max_labelled is None and config.max_unlabelled is None:
        return selector
    return wrappers.partitioned(
        selector,
        partitions=config.partitions,
        max_labelled=config.max_labelled,
        max_unlabelled=config.max_unlabelled,
    )


def as_text(needs: Sequence[Sequence[str]]) -> str:
    """Alternatives of files, for people."""
    if tuple(needs) == ANY:
        return "any file of the pool"
    return ", or ".join(" and ".join(f"--{name}" for name in one) for one in needs)


def open_pool(config: Config) -> Pool:
    """The pool of the files, none of them read but for indices, labels and the head.

    Raises:
      FileNotFoundError: a file is not there.
      ValueError: a file is not what it should be, or the files do not agree.
    """
    arrays = {
        name: files.open_array(path, axes=axes)
        for name, axes in AXES.items()
        if (path := getattr(config, name))
    }
    sizes = {getattr(config, name): array.shape[0] for name, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{path} has {size}" for path, size in sizes.items())
        raise ValueError(f"the files of a pool must have as many rows: {found}")
    kernel, bias = files.open_head(config.weights) if config.weights else (None, None)
    _check_widths(config, arrays, kernel)
    size = next(iter(sizes.values())) if sizes else None
    if size is None:
        size = files.open_array(config.labels, axes=("n",), integer=True).shape[0]
    classes = {int(a.shape[-1]) for name, a in arrays.items() if name != "features"}
    classes |= set() if kernel is None else {kernel.shape[1]}
    for name in ("probabilities", "passes"):
        if name in arrays:
            files.check_probabilities(arrays[name], getattr(config, name))
    labels = None
    if config.labels:
        labels = files.open_labels(config.labels, size, next(iter(classes), None))
    return Pool(
        **arrays,
        kernel=kernel,
        bias=bias,
        labels=labels,
        labelled=files.open_members(config.labelled, size) if config.labelled else None,
        held_out=files.open_members(config.held_out, size) if config.held_out else None,
    )


def _check_widths(config: Config, arrays: dict[str, Any], kernel: np.ndarray | None) -> None:
    if kernel is not None and "features" in arrays and arrays["features"].shape[1] != len(kernel):
        shape = tuple(arrays["features"].shape)
        turned = " (is it [c, d]?)" if kernel.shape[1] == shape[1] else ""
        raise ValueError(
            f"{config.features} {shape} and the kernel {kernel.shape} of {config.weights} do not "
            f"fit: expected [n, d] and [d, c]{turned}"
        )
    classes = {getattr(config, name): int(a.shape[-1]) for name, a in arrays.items()}
    classes.pop(config.features, None)
    if kernel is not None:
        classes[config.weights] = kernel.shape[1]
    if len(set(classes.values())) > 1:
        found = ", ".join(f"{path} has {count}" for path, count in classes.items())
        raise ValueError(f"the files of a pool must have as many classes: {found}")


def memory_estimate(pool: Pool, config: Config) -> int:
    """About how many bytes a query takes beyond the program: chunks on their way, parts, values."""
    arrays = [getattr(pool, name) for name in AXES if getattr(pool, name) is not None]
    stored = sum(4 * int(np.prod(array.shape, dtype=np.int64)) for array in arrays)
    part = stored // config.partitions if config.partitions > 1 else 0
    return min(8 * CHUNK_BYTES, 2 * stored) + part + 32 * pool.size


def run(config: Config, *, fast: bool = False) -> Selection:
    """Open the files, choose, write the query, and return it.

    Args:
      config: what to do.
      fast: choose among the first rows and write nothing: proves files and options.

    Raises:
      FileExistsError: ``out`` is there and ``overwrite`` is off.
      FileNotFoundError: a file, or the folder of ``out``, is not there.
      ValueError: whatever else is wrong, named.
    """
    selector = build(config)
    if not fast:
        if not config.out:
            raise ValueError("--out is needed: the CSV file to write")
        files.check_writable(config.out, overwrite=config.overwrite)
    pool, budget = open_pool(config), config.budget
    check_budget(pool, budget)
    if fast:
        pool = wrappers.subset(pool, np.arange(min(pool.size, FAST_ROWS)))
        budget = min(budget, int(pool.available.sum()))
    labelled, free = int(pool.is_labelled.sum()), int(pool.available.sum())
    print(
        f"{config.strategy}: {budget} of {free} samples ({pool.size} in all, {labelled} labelled)"
    )
    print(f"memory: about {memory_estimate(pool, config) / 2**20:.0f} MiB beyond the program")
    start = time.perf_counter()
    try:
        selection = selector(jax.random.key(config.seed), pool, budget)
    except NotFiniteError as error:
        path = getattr(config, error.array, None)
        if not path:
            raise
        raise ValueError(files.count_not_finite(getattr(pool, error.array), path)) from error
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**20 if sys.platform == "darwin" else 2**10
    )
    rate = pool.size / max(seconds, 1e-9)
    print(f"{seconds:.1f} s, {rate:.3g} rows/s; peak memory of the program {peak:.0f} MiB")
    if fast:
        print("nothing written: --fast_dev_run")
    else:
        files.write_query(selection, config.out, overwrite=config.overwrite)
        print(f"written to {config.out}")
    return selection


def help_text(values: flags.FlagValues) -> str:
    """The docstring, what each strategy needs, and the flags."""
    table = "\n".join(f"  {name}: {as_text(s.needs)}" for name, s in STRATEGIES.items())
    return f"{__doc__}\nStrategies, and the files each needs:\n{table}\n{values.get_help()}"


def main(argv: Sequence[str]) -> int:
    """Parse and run; the exit status."""
    values = flags.FlagValues()
    define_flags(Config, flag_values=values)
    flags.DEFINE_boolean(
        "fast_dev_run",
        False,
        f"choose among the first {FAST_ROWS} rows and write nothing, to prove the set-up",
        flag_values=values,
    )
    flags.DEFINE_boolean("help", False, "show this", short_name="h", flag_values=values)
    try:
        rest = values(list(argv))[1:]
        if values.help:
            print(help_text(values))
            return 0
        if rest:
            raise ValueError(f"unexpected argument {rest[0]!r}; flags begin with --")
        run(from_flags(Config, flag_values=values), fast=values.fast_dev_run)
    except (flags.Error, OSError, ValueError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
