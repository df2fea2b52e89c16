"""How fast, and in how much memory, is a query at the scale of ImageNet?

BASE, MASE, margin (1.28 million x 2048, 1000 classes, 50 000 labelled, 10 000 picks), partitioned
k-centre and BADGE, from a file of 10.5 GB that is made in a folder given:

    python -m experiments.benchmarks.selector_scale --scratch=/large/disk

Each query is in a process of its own. On a CPU the pool is the file's memory map, dropped from the
system's cache before each; on an accelerator it is read to the device first, and the time is that
of the second query, without compilation. Writes ``selectors_scale``.
"""

import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from densejax.active import scores, wrappers
from densejax.active.pool import Pool, Selection, Selector
from densejax.active.strategies import badge, base, core_set
from densejax.cli import option
from densejax.io import free_bytes, replacing
from experiments.benchmarks import measure
from experiments.benchmarks.measure import Row

SEED = 0
# Rows that are generated, read or written at once.
ROWS = 2**14
PARTITIONS = 10
PRODUCT_COLUMNS = 512
PRODUCT_GOAL, GIB_GOAL = 2.0, 8.0
COLUMNS = (
    *("case", "n", "d", "c", "labelled", "b", "seconds", "rows/s", "peak GiB"),
    *("GFLOP", "gigabytes", "floor seconds", "product seconds", "goal met"),
)


class Query(NamedTuple):
    """The sizes of a query at scale."""

    samples: int
    features: int
    classes: int
    labelled: int
    budget: int


@dataclass(frozen=True)
class Config(measure.Options):
    """How large the pool is, and which queries are measured."""

    scratch: str = option("", "folder of the pool's file, which is kept there")
    minutes: float = option(40.0, "start no case after so many")
    only: tuple[str, ...] = option((), "cases; all where empty", fast=("margin", "badge_parts"))
    samples: int = option(1_280_000, "of the pool", fast=2000)
    features: int = option(2048, "of the pool", fast=64)
    classes: int = option(1000, "of the pool", fast=20)
    budget: int = option(10_000, "picks", fast=100)
    child: str = option("", "case that this process is to measure")

    def __post_init__(self) -> None:
        measure.check_names(self.only, CASES)
        if not self.scratch:
            raise ValueError("--scratch is needed: a folder for the pool's file")

    def query(self) -> Query:
        """The setting of the thesis: 50 000 labelled, or of a smaller pool a tenth."""
        labelled = min(50_000, self.samples // 10)
        return Query(self.samples, self.features, self.classes, labelled, self.budget)


# ---- the pool ----


def head(query: Query) -> tuple[np.ndarray, np.ndarray]:
    """Means of the classes [c, d] and the head's kernel [d, c], float32."""
    one, other = jax.random.split(jax.random.key(SEED))
    shape = query.classes, query.features
    means = jax.random.normal(one, shape)
    kernel = (means + jax.random.normal(other, shape)).T * (1.5 / query.features**0.5)
    return np.asarray(means), np.asarray(kernel)


@partial(jax.jit, static_argnums=2)
def _rows(key: jax.Array, means: jax.Array, count: int) -> jax.Array:
    which, noise = jax.random.split(key)
    d = means.shape[1]
    classes = jax.random.randint(which, (count,), 0, means.shape[0])
    x = 4 / d**0.5 * means[classes] + jax.random.normal(noise, (count, d))
    axes = (1 + jnp.arange(d)) ** -0.5
    return x * (axes / jnp.sqrt(jnp.mean(axes**2)))


def feature_file(scratch: Path, query: Query) -> Path:
    """The file of features [n, d] float32, generated if it is not there whole.

    Raises:
      OSError: the disk has too little room; what is needed is said.
    """
    path = scratch / f"features_{query.samples}_{query.features}_{query.classes}.npy"
    size = 4 * query.samples * query.features
    if path.exists() and path.stat().st_size > size:
        return path
    scratch.mkdir(parents=True, exist_ok=True)
    free = free_bytes(scratch)
    if free < 1.05 * size:
        raise OSError(f"{scratch}: {free / 1e9:.1f} GB free, {1.05 * size / 1e9:.1f} GB needed")
    means, key = jnp.asarray(head(query)[0]), jax.random.key(SEED + 1)
    header = {"descr": "<f4", "fortran_order": False, "shape": (query.samples, query.features)}
    with replacing(path, durable=True, alone=True) as partial_path, partial_path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for number, start in enumerate(range(0, query.samples, ROWS)):
            rows = np.asarray(_rows(jax.random.fold_in(key, number), means, ROWS))
            file.write(rows[: query.samples - start].tobytes())
    return path


def forget(path: Path) -> None:
    """Drop a file from the system's cache, where the system can."""
    if hasattr(os, "posix_fadvise"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_gigabytes(path: Path) -> float:
    """GB/s of a plain sequential read of a file that is not cached."""
    forget(path)
    buffer = bytearray(64 * 2**20)
    start = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return path.stat().st_size / 1e9 / (time.perf_counter() - start)


# ---- the queries ----


def _spread(query: Query) -> dict[str, int]:
    """Shapes of one partition at the published subsampling: rows, labelled, picks."""
    most = wrappers.PUBLISHED_SUBSAMPLE
    labelled = min(query.labelled, most["max_labelled"])
    free = min(query.samples - query.labelled, sum(most.values()) - labelled)
    parts = PARTITIONS
    return {
        "rows": -(-(labelled + free) // parts),
        "labelled": -(-labelled // parts),
        "picks": -(-query.budget // parts),
    }


def _selectors() -> dict[str, Callable[..., Selection]]:
    most = wrappers.PUBLISHED_SUBSAMPLE

    def parts(selector: Selector) -> Selector:
        return wrappers.partitioned(selector, partitions=PARTITIONS, **most)

    return {
        "margin": scores.ranked(scores.margin()),
        "mase": base.mase,
        "base": partial(base.base, order="block"),
        "k_centre_parts": parts(core_set.core_set),
        "badge_parts": parts(partial(badge.badge, pooled=True, relative_to_labelled=True)),
        "k_centre": core_set.core_set,
    }


# Unpartitioned k-centre takes hours on a CPU: only where it is asked for.
CASES = tuple(_selectors())
ON_CPU = CASES[:-1]


def floor(name: str, query: Query) -> dict[str, float]:
    """GFLOP of the products that a case needs, and gigabytes of the features it reads once."""
    n, d, c = query.samples, query.features, query.classes
    part = _spread(query)
    products = {
        "head": [(n, d, c)],
        "k_centre": [(n, d, query.labelled + query.budget)],
        "k_centre_parts": [(part["rows"], d, part["labelled"] + part["picks"])] * PARTITIONS,
        "badge_parts": [
            (part["rows"], d, c),
            (part["rows"], min(c, 16) + 512 // min(c, 16), part["labelled"] + part["picks"]),
        ]
        * PARTITIONS,
    }[name if name in ("k_centre", "k_centre_parts", "badge_parts") else "head"]
    read = PARTITIONS * part["rows"] if name.endswith("_parts") else n
    return {
        "gflop": 2e-9 * sum(math.prod(shape) for shape in products),
        "gigabytes": 4e-9 * read * d,
    }


def one(name: str, path: Path, query: Query) -> dict[str, Any]:
    """A query in this process.

    Returns:
      ``seconds`` (on a CPU of the first query, compilation included; else of the second, and
      ``first_seconds``), ``peak_gib`` of resident memory, and on an accelerator
      ``product_seconds`` (the product that cannot be avoided).

    Raises:
      ValueError: picks are repeated or were labelled.
    """
    kernel = head(query)[1]
    features: Any = np.load(path, mmap_mode="r")
    on_cpu = jax.default_backend() == "cpu"
    if not on_cpu:
        features = jax.block_until_ready(jnp.asarray(features))
    labelled = np.zeros(query.samples, bool)
    rng = np.random.default_rng(SEED)
    labelled[rng.choice(query.samples, query.labelled, replace=False)] = True
    pool = Pool(features=features, kernel=kernel, labelled=labelled)
    select = _selectors()[name]

    def timed() -> tuple[np.ndarray, float]:
        start = time.perf_counter()
        picks = select(jax.random.key(SEED), pool, query.budget).indices
        return picks, time.perf_counter() - start

    picks, seconds = timed()
    result: dict[str, Any] = {"seconds": seconds}
    if not on_cpu:
        result = {"first_seconds": seconds, "seconds": timed()[1]}
        result["product_seconds"] = _product_seconds(features, name, query)
    if len(np.unique(picks)) != query.budget or labelled[picks].any():
        raise ValueError(f"{name}: {len(np.unique(picks))} distinct picks of {query.budget}")
    return result | {"peak_gib": peak_gib(), "backend": jax.default_backend()}


@jax.jit
def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _product_seconds(features: jax.Array, name: str, query: Query) -> float | None:
    """Of the product with as many columns as the case needs, from one block of them."""
    columns = {"k_centre": query.labelled + query.budget}.get(name, query.classes)
    if name.endswith("_parts"):
        return None  # its products are of other shapes: see the floor
    width = min(columns, PRODUCT_COLUMNS)
    block = jax.random.normal(jax.random.key(SEED), (features.shape[1], width))
    return measure.best_seconds(lambda: _product(features, block), repeats=3) * columns / width


def peak_gib() -> float:
    """Largest resident memory of this process alone, GiB."""
    status = Path("/proc/self/status")
    if status.exists():
        # The usage of a fresh process starts at that of its parent when it was started.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 2**30


def row_of(
    name: str, path: Path, config: Config, ceilings: Mapping[str, float], *, on_cpu: bool
) -> Row:
    """Measure one case."""
    query = config.query()
    if on_cpu:
        forget(path)
        sizes = ("samples", "features", "classes", "budget")
        words = [f"--{size}={getattr(config, size)}" for size in sizes]
        scratch = f"--scratch={config.scratch}"
        found = measure.apart("selector_scale", f"--child={name}", scratch, *words)
    else:
        found = one(name, path, query)  # an accelerator's memory belongs to one process
    bound = floor(name, query)
    seconds, peak, product = found["seconds"], found["peak_gib"], found.get("product_seconds")
    least = bound["gflop"] / ceilings["float32 GFLOP/s"]
    if on_cpu:
        least = max(least, bound["gigabytes"] / ceilings["read GB/s"])
        met = peak < GIB_GOAL
    else:
        met = seconds <= PRODUCT_GOAL * (product or least)
    return {
        **{"case": name, "n": query.samples, "d": query.features, "c": query.classes},
        **{"labelled": query.labelled, "b": query.budget, "seconds": seconds},
        **{"rows/s": query.samples / seconds, "peak GiB": peak, "GFLOP": bound["gflop"]},
        **{"gigabytes": bound["gigabytes"], "floor seconds": least},
        **{"product seconds": product or "", "goal met": "yes" if met else "no", "found": found},
    }


def run(config: Config) -> None:
    """Measure each case in a fresh process, or the one that this process is for."""
    on_cpu, query = jax.default_backend() == "cpu", config.query()
    path = feature_file(Path(config.scratch), query)
    if config.child:
        print(json.dumps(one(config.child, path, query)))
        return
    read = read_gigabytes(path)
    with jax.default_matmul_precision("highest"):
        product = measure.matmul_gflops(size=4096)
    report = measure.Report(
        measure.here("selectors_scale"),
        "Query strategies at scale",
        COLUMNS,
        config,
        ceilings={"float32 GFLOP/s": product, "read GB/s": read},
    )
    goal = f"peak under {GIB_GOAL:g} GiB"
    if not on_cpu:
        goal = f"within {PRODUCT_GOAL:g}x of the product that cannot be avoided"
    report.notes = [f"Goal: {goal}.\n"]
    for name in report.each(config.only or (ON_CPU if on_cpu else CASES)):
        report.rows.append(row_of(name, path, config, report.ceilings, on_cpu=on_cpu))


if __name__ == "__main__":
    measure.main(Config, run, description=__doc__)
