"""Queries at the scale of ImageNet, each in a process of its own: time and peak memory.

``experiments.benchmarks.selectors --scale`` calls this: 1.28 million features of 2048 in a file,
1000 classes, 10 000 picks. On a CPU the pool is the file's memory map, dropped from the system's
cache before each case; on an accelerator it is read to the device first, and the time is that of
the second query, without compilation.
"""

import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from densejax.active import scores, wrappers
from densejax.active.pool import Pool, Selection, Selector
from densejax.active.strategies import badge, base, core_set
from densejax.io import free_bytes, replacing
from experiments.benchmarks import measure

SEED = 0
# Rows that are generated, read or written at once.
ROWS = 2**14
PARTITIONS = 10
PRODUCT_COLUMNS = 512


class Query(NamedTuple):
    """The sizes of a query at scale."""

    samples: int
    features: int
    classes: int
    labelled: int
    budget: int


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


def apart(name: str, path: Path, query: Query) -> dict[str, Any]:
    """``one`` in a fresh process.

    Raises:
      RuntimeError: it failed; the last lines it wrote are in the message.
    """
    forget(path)
    asked = json.dumps({"name": name, "path": str(path), "query": query._asdict()})
    command = [sys.executable, "-m", "experiments.benchmarks.selector_scale", asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = " | ".join(done.stderr.strip().splitlines()[-3:])
        raise RuntimeError(f"{name}: exit status {done.returncode}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(one(given["name"], Path(given["path"]), Query(**given["query"]))))
