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
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np

from densejax.active.pool import (
    AXES,
    NotFiniteError,
    Selection,
    Selector,
    check_budget,
    check_writable,
    memory_estimate,
    open_pool,
    write_query,
)
from densejax.active.rows import count_not_finite
from densejax.active.strategies import STRATEGIES, Options, as_text, from_arrays
from densejax.cli import main, option

FAST_ROWS = 1000


@dataclass(frozen=True)
class Config:
    """The files, the strategy, and how it is to choose."""

    strategy: str = option("", "how to choose; see the list", essential=True)
    budget: int = option(0, "how many to choose", unit="samples", essential=True)
    out: str = option("", "CSV file to write: index,score in query order", essential=True)
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
    stride: int = option(1, "of a score: take every n-th sample of the ranking")
    partitions: int = option(1, "choose in so many random parts of the pool")
    max_labelled: int | None = option(None, "labelled samples drawn for the parts")
    max_unlabelled: int | None = option(None, "unlabelled samples drawn for the parts")


def build(config: Config) -> Selector:
    """The selector that a configuration names, in its wrappers."""
    return from_arrays(
        config.strategy,
        [name for name in (*AXES, "weights", "labels") if getattr(config, name)],
        Options(order=config.order, boundary=config.boundary, radius=config.radius),
        power=config.power,
        stride=config.stride,
        class_balanced=config.class_balanced,
        partitions=config.partitions,
        subsample={n: getattr(config, n) for n in ("max_labelled", "max_unlabelled")},
    )


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
        check_writable(config.out, overwrite=config.overwrite)
    pool, budget = open_pool(vars(config)), config.budget
    check_budget(pool, budget)
    if fast:
        from densejax.active.wrappers import subset

        pool = subset(pool, np.arange(min(pool.size, FAST_ROWS)))
        budget = min(budget, int(pool.available.sum()))
    labelled, free = int(pool.is_labelled.sum()), int(pool.available.sum())
    print(
        f"{config.strategy}: {budget} of {free} samples ({pool.size} in all, {labelled} labelled)"
    )
    beyond = memory_estimate(pool, partitions=config.partitions) / 2**20
    print(f"memory: about {beyond:.0f} MiB beyond the program")
    start = time.perf_counter()
    try:
        selection = selector(jax.random.key(config.seed), pool, budget)
    except NotFiniteError as error:
        path = getattr(config, error.array, None)
        if not path:
            raise
        if error.overflow:
            raise ValueError(str(error).replace(f"pool {error.array}", path)) from error
        raise ValueError(count_not_finite(getattr(pool, error.array), path)) from error
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**20 if sys.platform == "darwin" else 2**10
    )
    rate = pool.size / max(seconds, 1e-9)
    print(f"{seconds:.1f} s, {rate:.3g} rows/s; peak memory of the program {peak:.0f} MiB")
    if fast:
        print("nothing written: --fast_dev_run")
    else:
        write_query(selection, config.out, overwrite=config.overwrite)
        print(f"written to {config.out}")
    return selection


def describe() -> str:
    """The docstring, and what each strategy needs."""
    table = "\n".join(f"  {name}: {as_text(s.needs)}" for name, s in STRATEGIES.items())
    return f"{__doc__}\nStrategies, and the files each needs:\n{table}\n"


if __name__ == "__main__":
    main(Config, run, description=describe(), workdir="", trains=False)
