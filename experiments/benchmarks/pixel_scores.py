"""How fast are all scores of a pool of pictures, beside loops over the pictures in PyTorch?

2000 maps of 128 x 128 pixels and 2 classes with 10 stochastic passes each; mean, count and
quantile's count of six measures (three of the network, three of the passes), one interleaved run:

    python -m experiments.benchmarks.pixel_scores

No network runs: the logits of all passes are one array in memory, the same for all contenders,
classes before pixels as PyTorch has them. densejax: ``pixel_scores.look`` with a network that
returns them, all 18 columns by one pass. *ViewAL*: what the selectors of nihalsid/ViewAL compute,
picture by picture (after their description, not their text; BALD, which they lack, in their
manner), all 18. *chunks*: the 18 in PyTorch, as many pictures at once as densejax takes. *baal*:
its heuristics with ``reduction="mean"``, 5 of the 18; left out where it is not installed. *read
once*: the array summed by jax in the same chunks; no contender can take less.

Peers are spared what is not the scores: loading, superpixels, a second softmax of the same logits;
each has the number of PyTorch's threads that is fastest for it.
Values are compared before anything is timed. *Peak*: the most memory that a first call in a fresh
process adds to the imports and the array (Linux). Writes ``pixel_scores``.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib import util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch

from densejax.active.pixel_scores import PixelNetwork, PixelScores, look, pixel_score
from densejax.cli import option
from densejax.typing import Array, Key, Params
from experiments.benchmarks import measure
from experiments.benchmarks.measure import OURS, Goal
from experiments.benchmarks.selector_scale import peak_gib
from experiments.benchmarks.torch_pixel_scores import (
    CLASSES,
    LEVELS,
    NAMES,
    Columns,
    by_chunk,
    by_picture,
    in_baal,
)

VIEWAL, CHUNKS, BAAL, READ = "ViewAL", "chunks", "baal", "read once"
TOLERANCE = 1e-4
# Pixels that rounding may put on the other side of a threshold.
TIES = 2
RATIOS = ("over densejax", "CPU over densejax")
GOAL = Goal(
    *("at least 10x the loops", "over densejax"),
    least=10.0,
    of=lambda row: row["contender"] in (VIEWAL, BAAL),
)
COLUMNS = ("contender", "columns", "threads", "ms (cpu)", *RATIOS, "largest difference", "peak GiB")


@dataclass(frozen=True)
class Config(measure.Timed):
    """How large the pool is."""

    rounds: int = option(3, "interleaved rounds that count", fast=1)
    maps: int = option(2000, "pictures", fast=20)
    side: int = option(128, "pixels along each axis", fast=32)
    passes: int = option(10, "stochastic passes", fast=3)
    chunk: int = option(64, "pictures at once", fast=8)
    child: str = option("", "contender whose peak memory this process is to measure")


def stored(config: Config) -> np.ndarray:
    """[n, 1 + passes, c, y, x] float32 logits, of the network and of its passes."""
    rng = np.random.default_rng(0)
    x = np.empty((config.maps, 1 + config.passes, CLASSES, config.side, config.side), np.float32)
    for picture in x:
        rng.standard_normal(out=picture, dtype=np.float32)
        picture[1:] += picture[0]
    return x


def ours(config: Config, x: np.ndarray, key: Key) -> Callable[[], Columns]:
    """densejax: a network of "pictures" that are stored passes; all columns by one pass."""

    def logits(x: Array, number: jax.Array | int) -> tuple[jax.Array, dict[str, jax.Array]]:
        one = jax.lax.dynamic_index_in_dim(x, number, axis=1, keepdims=True)
        return jnp.moveaxis(one, 2, -1), {"bottleneck": jnp.zeros((len(x), 1, 1, 1, 1))}

    def passed(keys: Params, x: Array, key: Key) -> tuple[jax.Array, dict[str, jax.Array]]:
        # A pass is told its key alone; the variables know which pass has which.
        mine = (keys == jax.random.key_data(key)).all(axis=-1)
        return logits(x, 1 + jnp.argmax(mine.any(axis=0)))

    def keys_of(start: jax.Array) -> jax.Array:
        fold = partial(jax.random.fold_in, jax.random.fold_in(key, start))
        return jax.random.key_data(jax.vmap(fold)(jnp.arange(config.passes)))

    keys = jax.vmap(keys_of)(jnp.arange(0, len(x), min(config.chunk, len(x))))
    net = PixelNetwork(lambda key: keys, lambda _, x: logits(x, 0), passed)
    scores = tuple(pixel_score(name) for name in NAMES)
    plan = PixelScores(net, CLASSES, scores, passes=config.passes, chunk=config.chunk)
    frozen = {f"{measure}:quantile": level for measure, (_, level) in LEVELS.items()}
    return lambda: look(key, plan, keys, x, thresholds=frozen).columns


def contenders(config: Config, x: np.ndarray) -> dict[str, Callable[[], Columns]]:
    """A call a contender that scores; baal where it is installed."""
    calls = {OURS: ours(config, x, jax.random.key(0))}
    calls[VIEWAL] = partial(by_picture, x)
    calls[CHUNKS] = partial(by_chunk, x, size=config.chunk)
    return calls | (
        {BAAL: partial(in_baal, x, size=config.chunk)} if util.find_spec("baal") else {}
    )


def fastest(call: Callable[[], Columns], options: Iterable[int]) -> int:
    """Threads of PyTorch with which a call takes the least wall time."""
    seconds = {}
    for threads in options:
        torch.set_num_threads(threads)
        seconds[threads] = measure.best_seconds(call, repeats=2)
    return min(seconds, key=lambda threads: seconds[threads])


def _with_threads(threads: int, call: Callable[[], Columns]) -> Columns:
    torch.set_num_threads(threads)
    return call()


def agreement(name: str, found: Columns, reference: Columns, *, pixels: int) -> float:
    """Largest difference of a peer's columns, of the largest value of each.

    Raises:
      ValueError: a mean differs by more than ``TOLERANCE``, or a count by ``TIES`` pixels more.
    """
    gaps = []
    for column, values in found.items():
        ties = 0 if column.endswith(":mean") else TIES / pixels / reference[column].max()
        of = (f"{name}: {column}", values, reference[column])
        gaps.append(measure.agreed(*of, tolerance=TOLERANCE + ties))
    return max(gaps)


def peak(name: str, config: Config) -> float:
    """GiB that a first call adds to the imports and the array, in this process."""
    call = contenders(config, stored(config))[name]
    Path("/proc/self/clear_refs").write_text("5")  # the mark goes back to what is resident
    before = peak_gib()
    call()
    return peak_gib() - before


def run(config: Config) -> None:
    """Compare and measure; of a child, only its memory."""
    if config.child:
        print(json.dumps(peak(config.child, config)))
        return
    words = [f"--{name}={getattr(config, name)}" for name in ("maps", "side", "passes", "chunk")]
    ceilings, x, total = measure.ceilings(), stored(config), jax.jit(jnp.sum)
    calls, few = contenders(config, x), contenders(config, x[: config.chunk])
    threads, options = {}, sorted({1, torch.get_num_threads()})
    for name in [name for name in calls if name != OURS]:
        threads[name] = fastest(few[name], options)
        calls[name] = partial(_with_threads, threads[name], calls[name])
    found = {name: call() for name, call in calls.items()}
    pixels = config.side**2
    gaps = {n: agreement(n, found[n], found[OURS], pixels=pixels) for n in calls if n != OURS}
    report = measure.Report(
        *(measure.here("pixel_scores"), "Scores of pixels", COLUMNS, config),
        ceilings=ceilings,
        goals=[GOAL],
        at=lambda row: row["contender"],
    )
    # A copy reads and writes; of the array, nothing is written.
    least = 1e3 * x.nbytes / 1e9 / ceilings["copy GB/s"]
    size = f"{config.maps} maps of {config.side} x {config.side} pixels, {config.passes} passes"
    report.notes.append(f"{size}: {x.nbytes / 1e9:.3g} GB; floor of reading it {least:.0f} ms.\n")
    report.left_out += [] if BAAL in calls else [f"{BAAL}: not installed"]
    parts = range(0, len(x), config.chunk)
    read = {READ: lambda: [total(x[start : start + config.chunk]) for start in parts]}
    seconds = measure.interleaved({**calls, **read}, rounds=config.rounds)
    swapped = {name: [lap[::-1] for lap in laps] for name, laps in seconds.items()}
    # Said at once: the processes that measure memory may fail, and an hour's seconds with them.
    for name, lapses in seconds.items():
        print(f"{name}: {measure.medians(lapses)} ms (cpu), {measure.ratio(seconds, name, OURS)}")
    for name in report.each(seconds):
        row = {"contender": name, "columns": len(found.get(name, ())), "seconds": seconds[name]}
        row["threads"] = threads.get(name, "")
        for column, laps in zip(RATIOS, (seconds, swapped), strict=True):
            row[column] = measure.ratio(laps, name, OURS)
        if name in found:
            row["largest difference"] = gaps.get(name, "")
            row["peak GiB"] = measure.apart("pixel_scores", f"--child={name}", *words)
        report.rows.append(row | {"ms (cpu)": measure.medians(seconds[name])})


if __name__ == "__main__":
    measure.main(Config, run, description=__doc__)
