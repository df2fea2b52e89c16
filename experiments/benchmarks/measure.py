"""What every benchmark shares: interleaved rounds, the machine, its ceilings, the floor, the files.

Nothing here knows a network. Times are never compared across runs: only ratios within one round
count, since a machine is seldom alone with a benchmark.
"""

import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densejax import io
from densejax.models import cost
from densejax.training.provenance import provenance

Rounds = dict[str, list[tuple[float, float]]]
Rows = list[dict[str, Any]]

# OpenMP threads of PyTorch spin after their work; the next contender starts on idle cores.
SETTLE_SECONDS = 0.1
# A short call is repeated this long, so that one interruption does not decide its lap.
LAP_SECONDS = 0.1


def interleaved(contenders: Mapping[str, Callable[[], Any]], *, rounds: int) -> Rounds:
    """Run every contender once a round, in turn (A B A B), after one warm-up round.

    A call shorter than ``LAP_SECONDS`` is repeated for so long, and its mean is the lap.

    Args:
      contenders: name to a call; what it returns is waited for.
      rounds: rounds that count.

    Returns:
      Seconds (wall, process CPU) of every contender, a pair a round.
    """
    seconds: Rounds = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, call in contenders.items():
            time.sleep(SETTLE_SECONDS)
            lap = _lap(call)
            if turn:
                seconds[name].append(lap)
    return seconds


def _lap(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of one call, wall and CPU: of one, or the mean of as many as ``LAP_SECONDS`` take."""
    calls, wall, cpu = 0, time.perf_counter(), time.process_time()
    while not calls or time.perf_counter() - wall < LAP_SECONDS:
        jax.block_until_ready(call())
        calls += 1
    return (time.perf_counter() - wall) / calls, (time.process_time() - cpu) / calls


def pinned(core: int) -> list[str]:
    """What stands in front of a command so that it runs on one core; Linux only."""
    code = "import os, sys; own, *rest = sys.argv[1:]; os.sched_setaffinity(0, {int(own)}); "
    code += "os.execv(rest[0], rest)"
    return [sys.executable, "-c", code, str(core)]


def medians(laps: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Median milliseconds, wall and process CPU."""
    wall, cpu = zip(*laps, strict=True)
    return {
        "wall_ms": round(1e3 * statistics.median(wall), 3),
        "cpu_ms": round(1e3 * statistics.median(cpu), 3),
    }


def ratio(seconds: Rounds, slow: str, fast: str) -> dict[str, float]:
    """Wall time of ``slow`` over that of ``fast``, round by round: median, min and max."""
    pairs = [a[0] / b[0] for a, b in zip(seconds[slow], seconds[fast], strict=True)]
    return {
        "median": round(statistics.median(pairs), 3),
        "min": round(min(pairs), 3),
        "max": round(max(pairs), 3),
    }


def best_seconds(call: Callable[[], Any], *, repeats: int = 8) -> float:
    """Least wall time of a call after one that does not count: for ceilings only."""
    laps = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(call())
        laps.append(time.perf_counter() - start)
    return min(laps[1:])


def matmul_gflops(*, size: int = 2048, dtype: Any = jnp.float32) -> float:
    """GFLOP/s of one square matrix product on the first device: the practical ceiling."""
    a = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    return 2e-9 * size**3 / best_seconds(lambda: product(a, a))


def copy_gigabytes(*, megabytes: int = 256) -> float:
    """GB/s of a pass over memory on the first device, bytes read plus bytes written."""
    a = jnp.ones((megabytes * 2**18,), jnp.float32)
    # In place: memory that is touched for the first time costs more than the copy.
    add = jax.jit(lambda x: x + 1, donate_argnums=0)

    def once() -> jax.Array:
        nonlocal a
        a = add(a)
        return a

    return 2 * a.nbytes / 1e9 / best_seconds(once)


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr, inner jaxprs included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def floor(function: Callable[..., Any], *arguments: Any) -> dict[str, float]:
    """What a program cannot do without, from shapes alone.

    Returns:
      ``gflop``: operations of its convolutions and matrix products, two a multiply-add.
      ``gigabytes``: their operands read once and results written once (fused element-wise work is
      free, caches hold nothing).
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    moved = 0
    for equation in equations(jaxpr):
        name = equation.primitive.name
        if ("conv" in name and "convert" not in name) or name == "dot_general":
            values = [v.aval for v in (*equation.invars, *equation.outvars)]
            moved += sum(math.prod(a.shape) * a.dtype.itemsize for a in values)
    return {"gflop": 2e-9 * cost.multiply_adds(jaxpr), "gigabytes": moved / 1e9}


def _without_folder(word: str) -> str:
    """A word of a command line, a flag's absolute path replaced."""
    name, equals, value = word.partition("=")
    return f"{name}=DIR" if equals and Path(value).is_absolute() else word


def machine() -> dict[str, Any]:
    """Where this ran: provenance, processor model, cores that may be used, devices."""
    where = provenance()
    # The report is kept in the repository, where the folders of one machine mean nothing.
    del where["folder"], where["host"]
    where["command"] = ["python", *(_without_folder(word) for word in where["command"][1:])]
    if util.find_spec("torch"):
        where["versions"]["torch"] = metadata.version("torch")
    return where | {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_at_start": os.getloadavg()[0],
        "jax_devices": len(jax.local_devices()),
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def markdown(rows: Rows, columns: Sequence[str]) -> str:
    """A table of the rows; missing entries stay empty."""
    return "\n".join(
        io.markdown(columns, [[_cell(row.get(column, "")) for column in columns] for row in rows])
    )


def _cell(value: Any) -> str:
    if isinstance(value, Mapping) and "median" in value:
        return f"**{value['median']:.2f}** ({value['min']:.2f} to {value['max']:.2f})"
    if isinstance(value, Mapping) and "wall_ms" in value:
        return f"{value['wall_ms']:.1f} ({value['cpu_ms']:.1f})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write(out: Path, name: str, *, result: Mapping[str, Any], text: str) -> None:
    """Write ``out/name.json`` and ``out/name.md``, replaced by rename so never half written."""
    encoded = json.dumps(result, indent=1, default=_plain)
    for suffix, content in (("json", encoded), ("md", text)):
        io.write_text(out / f"{name}.{suffix}", content + "\n")


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


def heading(title: str, where: Mapping[str, Any], ceilings: Mapping[str, float]) -> str:
    """The first lines of a report: machine, versions, commit, ceilings."""
    versions = ", ".join(f"{k} {v}" for k, v in where["versions"].items() if k in SHOWN)
    commit = (where["git"] or {}).get("commit") or "unknown"
    changed = " (modified)" if (where["git"] or {}).get("modified") else ""
    measured = ", ".join(f"{name} {value:.4g}" for name, value in ceilings.items())
    return (
        f"# {title}\n\n"
        f"{where['time']}, commit {commit[:12]}{changed}; {where['processor']}, "
        f"{where['cores']} cores, load {where['load_at_start']:.1f} at the start; "
        f"{where['devices'][0]} x {where['jax_devices']}; Python {where['python']}; {versions}.\n\n"
        f"Measured ceilings: {measured}.\n"
    )


SHOWN = ("jax", "jaxlib", "flax", "torch", "numpy")
