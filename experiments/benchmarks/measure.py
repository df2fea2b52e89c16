"""What every benchmark shares: options, interleaved rounds, the report, the machine, its ceilings.

A benchmark declares its contenders, sizes and goals; what runs, compares, judges and writes them is
here. Nothing here knows a network. Times are never compared across runs: only ratios within one
round count, since a machine is seldom alone with a benchmark.
"""

import dataclasses
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from importlib import metadata, util
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from densejax import cli, io
from densejax.cli import option
from densejax.models import cost
from densejax.population import host_cores
from densejax.training.provenance import provenance

Rounds = dict[str, list[tuple[float, float]]]
Row = dict[str, Any]
Rows = list[Row]
Calls = dict[str, Callable[[], Any]]
Case = TypeVar("Case")

OURS = "densejax"
SHOWN = ("jax", "jaxlib", "flax", "torch", "numpy")  # versions in the heading of a report
# OpenMP threads of PyTorch spin after their work; the next contender starts on idle cores.
SETTLE_SECONDS = 0.1
# A short call is repeated this long, so that one interruption does not decide its lap.
LAP_SECONDS = 0.1


# ---- what a benchmark is asked ----


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags of every benchmark; its own ``Config`` inherits them."""

    out: str = option(str(Path(__file__).parent / "results"), "folder of the report")


@dataclasses.dataclass(frozen=True)
class Timed(Options):
    """The flags of every benchmark whose contenders take turns."""

    rounds: int = option(5, "interleaved rounds that count", fast=1)
    minutes: float = option(60.0, "start nothing that would end later than this")

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"--rounds={self.rounds}: expected at least 1")


def check_names(given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names of ``--only`` that are none of the known.

    Raises:
      ValueError: the first of them.
    """
    for name in given:
        if name not in known:
            raise ValueError(f"--only={name}: expected of {', '.join(known)}")


def main(
    config_class: type, run: Callable[[Any], Any], *, description: str, all_cores: bool = False
) -> None:
    """Run a benchmark from the command line.

    ``--fast_dev_run`` takes the sizes that the fields' ``fast`` says and throws the report away.

    Args:
      config_class: ``Options`` with the benchmark's own.
      run: takes a configuration.
      description: head of ``--help``.
      all_cores: make every core of a CPU a device.
    """

    def once(config: Any, *, fast: bool) -> None:
        if not fast:
            run(config)
            return
        with tempfile.TemporaryDirectory() as folder:
            run(dataclasses.replace(config, out=folder))

    cli.main(config_class, once, description=description, workdir="", trains=all_cores)


# ---- processes ----


def apart(module: str, *words: str) -> Any:
    """What a benchmark prints last in a fresh process, read as JSON.

    Raises:
      RuntimeError: it failed; the last lines it wrote are in the message.
    """
    command = [sys.executable, "-m", f"experiments.benchmarks.{module}", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = " | ".join(done.stderr.strip().splitlines()[-3:])
        raise RuntimeError(f"{module} {' '.join(words)}: exit status {done.returncode}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def timed(
    command: Sequence[str], *, core: int | None = None, log: Path | None = None
) -> tuple[float, float]:
    """CPU (user and system) and wall seconds of a command with all that it starts.

    Args:
      command: its words.
      core: the only one it may use; Linux only.
      log: to which its output is appended; None: it is shown.

    Raises:
      RuntimeError: it failed.
    """
    start = time.perf_counter()
    pinned = []
    if core is not None:
        code = "import os, sys; own, *rest = sys.argv[1:]; os.sched_setaffinity(0, {int(own)}); "
        code += "os.execv(rest[0], rest)"
        pinned = [sys.executable, "-c", code, str(core)]
    with log.open("a") if log else nullcontext() as file:
        error = subprocess.STDOUT if log else None
        process = subprocess.Popen([*pinned, *command], stdout=file, stderr=error)
        _, status, used = os.wait4(process.pid, 0)
    if status:
        where = f"; see {log}" if log else ""
        ended = f"ended with code {os.waitstatus_to_exitcode(status)}{where}"
        raise RuntimeError(f"{' '.join(command)} {ended}")
    return used.ru_utime + used.ru_stime, time.perf_counter() - start


# ---- rounds, agreement, goals ----


def agreed(name: str, found: Any, reference: Any, *, tolerance: float) -> float:
    """Largest difference of two arrays, of the reference's largest value.

    Raises:
      ValueError: it is above the tolerance; ``name`` says whose.
    """
    expected = np.asarray(reference, np.float64)
    gap = np.abs(np.asarray(found, np.float64) - expected).max() / np.abs(expected).max()
    if not gap <= tolerance:
        raise ValueError(
            f"{name} differs by {gap:.2g} of the largest value; expected at most {tolerance:g}"
        )
    return float(gap)


def compared(calls: Calls, *, rounds: int, reference: str = OURS) -> Row:
    """Let the contenders take turns.

    Returns:
      ``NAME ms (cpu)`` of each (``medians``), ``NAME / REFERENCE`` of the others (``ratio``), and
      every lap in ``seconds``.
    """
    seconds = interleaved(calls, rounds=rounds)
    row: Row = {"seconds": seconds}
    for name, laps in seconds.items():
        row[f"{name} ms (cpu)"] = medians(laps)
        if name != reference and reference in seconds:
            row[f"{name} / {reference}"] = ratio(seconds, name, reference)
    return row


@dataclasses.dataclass(frozen=True)
class Goal:
    """What the median of a column is to be.

    Attributes:
      text: the goal in words.
      column: of ``ratio``; a row without it is not judged.
      least: the smallest that meets it.
      most: the largest that does.
      of: the rows that it speaks of.
    """

    text: str
    column: str
    least: float = -math.inf
    most: float = math.inf
    of: Callable[[Row], bool] = lambda row: True


def judged(rows: Rows, goals: Sequence[Goal], *, at: Callable[[Row], str]) -> Rows:
    """One line for every row and goal that speaks of it: goal, at, found, met ('yes' or 'no')."""
    return [
        {
            **{"goal": goal.text, "at": at(row), "found": row[goal.column]},
            "met": "yes" if goal.least <= row[goal.column]["median"] <= goal.most else "no",
        }
        for row in rows
        for goal in goals
        if goal.column in row and goal.of(row)
    ]


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


def floor_ms(bound: Mapping[str, float], ceilings: Mapping[str, float]) -> float:
    """Milliseconds of a ``floor`` at the best measured product and the measured copy."""
    product = max(rate for name, rate in ceilings.items() if name.endswith("GFLOP/s"))
    return 1e3 * max(bound["gflop"] / product, bound["gigabytes"] / ceilings["copy GB/s"])


def ceilings() -> dict[str, float]:
    """GFLOP/s of a product in full float32 (TF32 is no measure of it), GB/s of a copy."""
    with jax.default_matmul_precision("highest"):
        product = matmul_gflops()
    return {"float32 GFLOP/s": product, "copy GB/s": copy_gigabytes()}


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
        "cores": host_cores(),
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


class Report:
    """``NAME.json`` and ``NAME.md``, written whole and anew after every case.

    Args:
      name: of the files.
      title: first line of the text.
      columns: of the table; what rows hold beside them is in the JSON alone.
      options: ``out``, and ``minutes`` where they are limited.
      ceilings: of the machine, by name and unit.
      goals: for rows.
      at: what a line of the goals calls its row; its ``case`` by default.
      totals: rows that the table has beneath the others.

    Attributes:
      rows: to be appended to.
      left_out: what was not measured, and why.
      notes: lines in front of the table.
      more: what else is in the JSON.
    """

    def __init__(
        self,
        name: str,
        title: str,
        columns: Sequence[str],
        options: Options,
        *,
        ceilings: Mapping[str, float] | None = None,
        goals: Sequence[Goal] = (),
        at: Callable[[Row], str] = lambda row: row["case"],
        totals: Callable[[Rows], Rows] = lambda rows: [],
    ) -> None:
        self.machine, self.ceilings = machine(), dict(ceilings or {})
        self._file, self._title, self.columns = Path(options.out) / name, title, columns
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._goals, self._at, self._totals = goals, at, totals
        self._end = time.monotonic() + 60 * getattr(options, "minutes", math.inf)
        self.rows: Rows = []
        self.left_out: list[str] = []
        self.notes: list[str] = []
        self.more: dict[str, Any] = {}

    def each(
        self,
        cases: Iterable[Case],
        *,
        called: Callable[[Case], str] = str,
        needs: Callable[[Case], float] = lambda case: 0.0,
    ) -> Iterator[Case]:
        """Yield the cases that time allows; write the report after each, show the table at the end.

        Args:
          cases: in the order in which they are measured.
          called: the name of one.
          needs: seconds that one will take.
        """
        for case in cases:
            start, needed = time.monotonic(), needs(case)
            if start + needed > self._end:
                text = f"about {needed / 60:.0f} minutes, more than were left"
                self.left_out.append(
                    f"{called(case)}: {text if needed else 'no minutes were left'}"
                )
                continue
            yield case
            print(f"{called(case)}: {time.monotonic() - start:.0f} s", flush=True)
            self.write()
        self.write()
        print("\n".join([self._table(), *self.left_out]), flush=True)

    def write(self) -> None:
        """Write both files."""
        goals = judged(self.rows, self._goals, at=self._at)
        parts = [heading(self._title, self.machine, self.ceilings), *self.notes, self._table()]
        if goals:
            parts += ["\n## Goals\n", markdown(goals, ("goal", "at", "found", "met"))]
        if self.left_out:
            parts += ["\n## Not measured\n", *(f"- {line}" for line in self.left_out)]
        found: dict[str, Any] = {"machine": self.machine, "ceilings": self.ceilings}
        found |= {"rows": self.rows, "goals": goals, "not_measured": self.left_out} | self.more
        encoded = json.dumps(found, indent=1, default=_plain)
        for suffix, content in (("json", encoded), ("md", "\n".join(parts))):
            io.write_text(self._file.with_name(f"{self._file.name}.{suffix}"), content + "\n")

    def _table(self) -> str:
        return markdown([*self.rows, *self._totals(self.rows)], self.columns)


def here(name: str) -> str:
    """The name of a report on this kind of device: ``name`` on a CPU, else ``name_gpu``."""
    return name if jax.default_backend() == "cpu" else f"{name}_gpu"


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


def heading(title: str, where: Mapping[str, Any], ceilings: Mapping[str, float]) -> str:
    """The first lines of a report: machine, versions, commit, ceilings."""
    versions = ", ".join(f"{k} {v}" for k, v in where["versions"].items() if k in SHOWN)
    commit = (where["git"] or {}).get("commit") or "unknown"
    changed = " (modified)" if (where["git"] or {}).get("modified") else ""
    lines = [
        f"# {title}\n\n{where['time']}, commit {commit[:12]}{changed}; {where['processor']}, "
        f"{where['cores']} cores, load {where['load_at_start']:.1f} at the start; "
        f"{where['devices'][0]} x {where['jax_devices']}; Python {where['python']}; {versions}.\n"
    ]
    if ceilings:
        measured = ", ".join(f"{name} {value:.4g}" for name, value in ceilings.items())
        lines.append(f"Measured ceilings: {measured}.\n")
    return "\n".join(lines)
