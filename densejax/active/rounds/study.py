"""Which query learns fastest: cycles of many queries, widths and seeds as one population.

The queries are those of Chen 2020, chapter 3. A *member* is a query (how to ask), a width of the
network and a seed. All members of a width are trained, evaluated and their pools scored by one
program (``one_cycle``), compiled once for all cycles.

The general engine of sweeps keeps a folder, a log and checkpoints of every member, for networks
that train for hours; a cycle here takes seconds. So a member is one small file: its labelled set in
the order of its queries and its accuracies, replaced by rename. What is asked for is compared with
these files, and what is missing is done: more seeds or queries extend a study, and a kill loses no
more than the group of members that was in training.

Everything of a member follows from its name: its initial set and its weights from the seed (and the
cycle), so that all queries of a seed are paired, and nothing from the members beside it.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from densejax.active.pool import Pool, Selection
from densejax.active.rows import first, members
from densejax.active.scores import entropy_of, gap, most_incorrect
from densejax.active.strategies.odin import log_others, move
from densejax.active.strategies.random import random
from densejax.active.wrappers import stride
from densejax.classification.task import ImageTask
from densejax.io import read_npz, write_npz
from densejax.population import Population, instance_key
from densejax.typing import Array, Batch, Key, Params, Tree

Kind = Literal["random", "max_softmax", "odin", "margin", "entropy", "most_incorrect", "expert"]

# What the program computes of the pool: the places of ``_branches``.
NOTHING, DOUBT, MOVED, MARGIN, ENTROPY, ERROR = range(6)


# Operations of a matrix product that take as long as Adam's update of one weight, whose work is
# memory; as the conversion of one pixel; and as a step of a network without weights. Measured on a
# CPU, to foretell the time that is left.
UPDATE_COST, PIXEL_COST, STEP_COST = 100.0, 40.0, 1e7


@dataclass(frozen=True)
class Query:
    """How to ask.

    Attributes:
      kind: ``expert`` is the entropy of a network that was trained on all data; the others are of
        the member's own network. ``max_softmax`` is ``odin`` at temperature 1 without a move.
      temperature: T of ODIN.
      move: epsilon of ODIN, of pictures in [0, 1].
      stride: take every n-th sample of the ranking, n the stride (stride diversity).
      inverse: whether the least uncertain come first.
    """

    kind: Kind
    temperature: float = 1.0
    move: float = 0.0
    stride: int = 1
    inverse: bool = False

    @property
    def name(self) -> str:
        """Such as ``odin-T0.1`` or ``margin-stride4``; no two queries share it."""
        name = f"inverse_{self.kind}" if self.inverse else str(self.kind)
        if self.kind == "odin":
            name += f"-T{self.temperature:g}" + (f"-e{self.move:g}" if self.move else "")
        return name + (f"-stride{self.stride}" if self.stride > 1 else "")

    @property
    def place(self) -> int:
        """Of ``_branches``."""
        if self.kind == "odin":
            return MOVED if self.move else DOUBT
        known = {"max_softmax": DOUBT, "margin": MARGIN, "entropy": ENTROPY}
        return known.get(self.kind, ERROR if self.kind == "most_incorrect" else NOTHING)


def one_cycle(task: ImageTask, member: Batch, shared: Batch) -> dict[str, jax.Array]:
    """Train fresh weights on a member's labelled set, evaluate, and score the pool.

    Args:
      task: what training is; its ``largest`` is the length l of ``rows``.
      member: ``key`` (data of a jax key), ``rows`` [l] int32 of which the first ``count`` count,
        ``place`` of what to compute of the pool, ``temperature``, ``move``. A ``count`` of 0 trains
        nothing: an empty place.
      shared: ``images`` [n, y, x, ch] uint8, ``labels`` [n] int32, ``evaluation_images``,
        ``evaluation_labels``.

    Returns:
      ``accuracy``, ``loss`` of the last batch, ``scores`` [n] float32, large where in doubt.
    """
    count = jnp.asarray(member["count"])
    data = dict(
        shared,
        query_sets=jnp.asarray(member["rows"])[None],
        counts=count[None],
        class_weights=jnp.ones((1, task.classes)),
    )
    state = task.init(jax.random.wrap_key_data(jnp.asarray(member["key"])), {})

    def update(_: jax.Array, carry: tuple[Tree, jax.Array]) -> tuple[Tree, jax.Array]:
        state, measures = task.step(carry[0], data)
        return state, measures["loss"]

    steps = task.epochs * -(-count // task.batch)
    state, loss = jax.lax.fori_loop(0, steps, update, (state, jnp.float32(0)))
    scores = jax.lax.switch(member["place"], _branches(task, shared), state["variables"], member)
    accuracy = task.evaluate(state, data)["accuracy"]
    return {"accuracy": accuracy, "loss": loss, "scores": scores}


def _branches(task: ImageTask, shared: Batch) -> list[Callable[[Params, Batch], jax.Array]]:
    """Scores [n] of the pool from (variables, member), one function for each place."""
    labels = jnp.asarray(shared["labels"])

    def of_pool(value: Callable, *, moved: bool = False) -> Callable[[Params, Batch], jax.Array]:
        def branch(variables: Params, member: Batch) -> jax.Array:
            # All logits first: fused into the loop over chunks, the scores took eight times
            # as long on a CPU (width 16).
            logits = _pool_logits(task, variables, shared["images"], member, moved=moved)
            return value(logits, member["temperature"])

        return branch

    def nothing(variables: Params, member: Batch) -> jax.Array:
        del variables, member
        return jnp.zeros(len(labels), jnp.float32)

    error = most_incorrect(of="logits").function
    return [
        nothing,
        of_pool(lambda logits, temperature: log_others(logits / temperature)),
        of_pool(lambda logits, temperature: log_others(logits / temperature), moved=True),
        of_pool(lambda logits, _: -gap(jax.nn.softmax(logits))),
        of_pool(lambda logits, _: entropy_of(jax.nn.softmax(logits))),
        of_pool(lambda logits, _: error(logits, labels)),
    ]


def _pool_logits(
    task: ImageTask, variables: Params, images: Array, member: Batch, *, moved: bool
) -> jax.Array:
    """[n, c], a chunk of pictures at a time; of pictures that ODIN has moved, if so."""
    images = jnp.asarray(images)
    total, size = len(images), min(task.evaluation_batch, len(images))
    if spare := -total % size:
        images = jnp.pad(images, [(0, spare), *[(0, 0)] * (images.ndim - 1)])

    def some(part: jax.Array) -> jax.Array:
        x = task.prepare(part)
        if moved:
            step, temperature = member["move"], member["temperature"]
            x = move(lambda x: task.network(variables, x)[0], x, temperature=temperature, step=step)
        return task.network(variables, x)[0]

    return jax.lax.map(some, images.reshape(-1, size, *images.shape[1:])).reshape(-1, task.classes)[
        :total
    ]


def choose(key: Key, query: Query, scores: Array, *, labelled: Array, budget: int) -> np.ndarray:
    """What a query asks for next, by the scores of ``one_cycle``: [b] int64 rows.

    Args:
      key: a jax key, which ``random`` alone draws from.
      query: how to ask.
      scores: [n] float32, large where in doubt.
      labelled: [l] integers, rows of the pool; none is asked for again.
      budget: b.

    Raises:
      ValueError: fewer than ``budget`` rows are left.
    """
    values = np.asarray(scores)
    pool = Pool(labels=np.zeros(len(values), np.int32), labelled=members(labelled, len(values)))
    if query.kind == "random":
        return random(key, pool, budget).indices

    def ranked(key: Key, pool: Pool, budget: int) -> Selection:
        chosen = first(values, pool.available, budget, largest_first=not query.inverse)
        return Selection(chosen, values[chosen])

    return stride(ranked, query.stride)(key, pool, budget).indices


@dataclass(frozen=True)
class Setting:
    """Sizes of a study.

    Attributes:
      initial: labelled samples of the first cycle.
      budget: samples that each query asks for.
      cycles: trainings; there is one query fewer.
      base_seed: from which the keys of all seeds are folded.
      slots: members in one run of the program; 0 is all of a width.
    """

    initial: int
    budget: int
    cycles: int
    base_seed: int = 0
    slots: int = 0

    @property
    def labelled(self) -> np.ndarray:
        """[t] int64, labelled samples of each cycle."""
        return self.initial + self.budget * np.arange(self.cycles)


@dataclass
class Member:
    """One query, width and seed, and how far it has come.

    Attributes:
      labelled: [l] int32 rows of the pool, in the order of the queries.
      accuracy: [t] of the test set after each cycle.
      failed: why it ended early; empty where it did not.
    """

    query: Query
    width: int
    seed: int
    labelled: np.ndarray
    accuracy: np.ndarray
    failed: str = ""

    @property
    def name(self) -> str:
        """Of its file."""
        return member_name(self.query, self.width, self.seed)


def member_name(query: Query, width: int, seed: int) -> str:
    """Such as ``w512-margin-s0003``."""
    return f"w{width}-{query.name}-s{seed:04d}"


class Study:
    """All members of a study, in one folder."""

    def __init__(
        self,
        build: Callable[..., ImageTask],
        data: Batch,
        setting: Setting,
        folder: Path,
        *,
        say: Callable[[str], None] = print,
    ) -> None:
        """Set a study up; nothing is compiled before ``run``.

        Args:
          build: ``(width, *, largest, expert) -> ImageTask``.
          data: ``shared`` of ``one_cycle``, NumPy arrays.
          setting: sizes.
          folder: of the files of the members and the experts; made if absent.
          say: takes lines of progress.

        Raises:
          ValueError: the cycles ask for more samples than the pool has, or a size is below 1.
        """
        last = int(setting.labelled[-1]) if setting.cycles > 0 else 0
        if min(setting.initial, setting.budget, setting.cycles) < 1:
            raise ValueError(f"{setting}: initial, budget and cycles must be at least 1")
        if last > len(data["labels"]):
            raise ValueError(f"{last} labels in the end, of a pool of {len(data['labels'])}")
        self.data, self.setting = data, setting
        self._build, self._folder, self._say = build, folder, say
        self._base = jax.random.key(setting.base_seed)
        self._left = self._done = self._spent = 0.0
        self._experts: dict[tuple[int, int], tuple[float, np.ndarray]] = {}
        for name in ("members", "experts"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def run(self, wanted: Sequence[tuple[Query, int, int]]) -> list[Member]:
        """Do what is missing of the members (query, width, seed); return all in this order."""
        found = {}
        for query, width, seed in wanted:
            member = self.load(query, width, seed)
            found[member.name] = member
        widths = sorted({member.width for member in found.values()}, reverse=True)
        self._left = sum(self._work_left(member) for member in found.values())
        everything = len(self.data["labels"])
        self._left += sum(
            self._work_of(width, everything, ENTROPY, expert=True)
            for width, _ in self._missing_experts(found.values())
        )
        for width in widths:
            same = [member for member in found.values() if member.width == width]
            self._run_experts(width, [seed for w, seed in self._missing_experts(same)])
            self._run_width(width, same)
        return list(found.values())

    def load(self, query: Query, width: int, seed: int) -> Member:
        """A member as its file has it, or as it begins.

        Raises:
          ValueError: the file is cut short or of other sizes.
        """
        path = self._path(member_name(query, width, seed))
        if not path.exists():
            key = jax.random.fold_in(instance_key(self._base, seed), 0)
            start = random(key, Pool(labels=self.data["labels"]), self.setting.initial).indices
            return Member(query, width, seed, start.astype(np.int32), np.zeros(0))
        stored = read_npz(path)
        member = Member(
            query, width, seed, stored["labelled"], stored["accuracy"], str(stored["failed"])
        )
        asked = min(len(member.accuracy), self.setting.cycles - 1)
        expected = self.setting.initial + self.setting.budget * asked
        if not member.failed and len(member.labelled) != expected:
            raise ValueError(
                f"{path}: {len(member.labelled)} labelled samples after {len(member.accuracy)} "
                f"cycles; expected {expected}"
            )
        return member

    def expert(self, width: int, seed: int) -> tuple[float, np.ndarray]:
        """Accuracy of the network trained on all data, and its entropy [n] of the pool."""
        if (width, seed) not in self._experts:
            stored = read_npz(self._expert_path(width, seed))
            self._experts[width, seed] = float(stored["accuracy"]), stored["scores"]
        return self._experts[width, seed]

    def _missing_experts(self, found: Iterable[Member]) -> list[tuple[int, int]]:
        pairs = sorted({(member.width, member.seed) for member in found})
        return [pair for pair in pairs if not self._expert_path(*pair).exists()]

    def _run_experts(self, width: int, seeds: Sequence[int]) -> None:
        if not seeds:
            return
        everything = np.arange(len(self.data["labels"]), dtype=np.int32)
        task = self._build(width, largest=len(everything), expert=True)
        program = _Program(task, self.data, min(len(seeds), len(jax.local_devices())))
        work = self._work_of(width, len(everything), ENTROPY, expert=True)
        for group in _groups(seeds, program.slots):
            start = time.perf_counter()
            keys = [jax.random.fold_in(instance_key(self._base, seed), 3) for seed in group]
            places = [_place(key, everything, ENTROPY, count=len(everything)) for key in keys]
            for seed, (accuracy, loss, scores) in zip(group, program(places), strict=True):
                if not np.isfinite(loss) or not np.isfinite(scores).all():
                    raise ValueError(f"the expert of width {width}, seed {seed} diverged")
                arrays = {"accuracy": accuracy, "scores": scores}
                write_npz(self._expert_path(width, seed), arrays)
            clock = self._clock(
                len(group) * work, time.perf_counter() - start - program.compiling()
            )
            self._say(f"width {width}: trained on all data, seeds {list(group)}{clock}")

    def _run_width(self, width: int, same: Sequence[Member]) -> None:
        open_members = sum(self._work_left(member) > 0 for member in same)
        if not open_members:
            return
        largest = int(self.setting.labelled[-1])
        task = self._build(width, largest=largest, expert=False)
        program = _Program(task, self.data, min(self.setting.slots or open_members, open_members))
        for cycle in range(self.setting.cycles):
            waiting = [m for m in same if len(m.accuracy) == cycle and not m.failed]
            # Most work first: taken by the devices in turn, members then keep them equally busy.
            waiting.sort(key=lambda member: -self._work(member, cycle))
            for group in _groups(waiting, program.slots):
                start = time.perf_counter()
                results = program([self._place_of(m, cycle, largest) for m in group])
                for member, result in zip(group, results, strict=True):
                    self._advance(member, cycle, *result)
                work = sum(self._work(member, cycle) for member in group)
                clock = self._clock(work, time.perf_counter() - start - program.compiling())
                self._say(
                    f"width {width}, cycle {cycle + 1} of {self.setting.cycles}, {len(group)} "
                    f"members on {self.setting.labelled[cycle]} labels: mean accuracy "
                    f"{np.mean([m.accuracy[-1] for m in group]):.4f}{clock}"
                )

    def _advance(
        self, member: Member, cycle: int, accuracy: float, loss: float, scores: np.ndarray
    ) -> None:
        member.accuracy = np.append(member.accuracy, accuracy)
        if not np.isfinite(loss) or not np.isfinite(scores).all():
            member.failed = (
                f"loss {loss} in cycle {cycle + 1}, {np.sum(~np.isfinite(scores))} scores"
            )
            self._say(f"{member.name} failed: {member.failed}")
        elif cycle + 1 < self.setting.cycles:
            if member.query.kind == "expert":
                scores = self.expert(member.width, member.seed)[1]
            key = jax.random.fold_in(instance_key(self._base, member.seed), 2)
            chosen = choose(
                jax.random.fold_in(key, cycle),
                member.query,
                scores,
                labelled=member.labelled,
                budget=self.setting.budget,
            )
            member.labelled = np.concatenate([member.labelled, chosen.astype(np.int32)])
        kept = {name: getattr(member, name) for name in ("labelled", "accuracy", "failed")}
        write_npz(self._path(member.name), kept)

    def _place_of(self, member: Member, cycle: int, largest: int) -> Batch:
        rows = np.full(largest, -1, np.int32)
        rows[: len(member.labelled)] = member.labelled
        key = jax.random.fold_in(instance_key(self._base, member.seed), 1)
        last = cycle + 1 == self.setting.cycles
        return _place(
            jax.random.fold_in(key, cycle),
            rows,
            NOTHING if last else member.query.place,
            count=len(member.labelled),
            query=member.query,
        )

    def _path(self, name: str) -> Path:
        return self._folder / "members" / f"{name}.npz"

    def _expert_path(self, width: int, seed: int) -> Path:
        return self._folder / "experts" / f"w{width}-s{seed:04d}.npz"

    # Work, in operations; for the time that is left.

    def _work(self, member: Member, cycle: int) -> float:
        last = cycle + 1 == self.setting.cycles
        labelled = int(self.setting.labelled[cycle])
        return self._work_of(member.width, labelled, NOTHING if last else member.query.place)

    def _work_left(self, member: Member) -> float:
        if member.failed:
            return 0.0
        cycles = range(len(member.accuracy), self.setting.cycles)
        return sum(self._work(member, cycle) for cycle in cycles)

    def _work_of(self, width: int, labelled: int, place: int, *, expert: bool = False) -> float:
        task = self._build(width, largest=labelled, expert=expert)
        pixels = int(np.prod(self.data["images"].shape[1:]))
        weights = width * (pixels + task.classes)
        steps = task.epochs * task.steps_of(labelled)
        seen = 3 if place == MOVED else 1
        pictures = (0 if place == NOTHING else seen * len(self.data["labels"])) + len(
            self.data["evaluation_labels"]
        )
        training = steps * (
            task.batch * (4 * weights + PIXEL_COST * pixels) + UPDATE_COST * weights + STEP_COST
        )
        return training + pictures * (2 * weights + PIXEL_COST * pixels)

    def _clock(self, work: float, seconds: float) -> str:
        """Account for a group; what is left at the rate so far."""
        self._left -= work
        self._done += work
        self._spent += seconds
        left = self._left * self._spent / max(self._done, 1.0)
        return f"; {self._spent / 60:.1f} min so far, {left / 60:.1f} min left"


def _place(
    key: Key, rows: np.ndarray, place: int, *, count: int, query: Query | None = None
) -> Batch:
    """A member as ``one_cycle`` takes it."""
    return {
        "key": np.asarray(jax.random.key_data(key)),
        "rows": rows,
        "count": np.asarray(count, np.int32),
        "place": np.asarray(place, np.int32),
        "temperature": np.asarray(query.temperature if query else 1, np.float32),
        "move": np.asarray(query.move if query else 0, np.float32),
    }


def _groups(entries: Sequence, size: int) -> Iterator[Sequence]:
    for start in range(0, len(entries), size):
        yield entries[start : start + size]


class _Program:
    """``one_cycle`` of up to so many members at once, compiled at the first call."""

    def __init__(self, task: ImageTask, data: Batch, slots: int) -> None:
        devices = min(len(jax.local_devices()), slots)
        self.slots = -(-slots // devices) * devices
        self._population = Population(self.slots)
        self._shared = self._population.replicate(data)
        self._run = self._population.map(partial(one_cycle, task), shared=(1,), name="one_cycle")

    def compiling(self) -> float:
        """Seconds that compilation took, when asked first; then 0."""
        seconds, self._run.compile_seconds = self._run.compile_seconds, 0.0
        return seconds

    def __call__(self, places: Sequence[Batch]) -> Iterator[tuple[float, float, np.ndarray]]:
        """(accuracy, loss, scores) of each; ``places`` are dealt out to the devices in turn."""
        population = self._population
        zero, nothing = np.asarray(0, np.int32), np.asarray(NOTHING, np.int32)
        empty = dict(places[0], count=zero, place=nothing)
        dealt: list[Batch] = [empty] * self.slots
        seats = [
            i % len(population.devices) * population.per_device + i // len(population.devices)
            for i in range(len(places))
        ]
        for seat, place in zip(seats, places, strict=True):
            dealt[seat] = place
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *dealt)
        found = population.fetch(self._run(population.place(stacked), self._shared))
        for seat in seats:
            yield tuple(found[name][seat] for name in ("accuracy", "loss", "scores"))
