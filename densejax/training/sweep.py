"""The one loop: members wait, run in slots, and end; the host logs, checkpoints and refills.

Everything that decides a member's numbers is a function of its seed, its settings and its own step:
which slot it runs in, beside whom, on how many devices and after how many kills changes nothing
under the ``map`` strategy.

Frames of training are arrays that a film needs of each member. What a frame shows is the
experiment's business: a function of an instance's state. It runs as a program of its own, beside
those that train and judge, so that recording changes no bit of theirs. A frame is written once; the
same instance at the same step has the same bits, so that one that a killed run has left stands.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densejax.io import write_npz
from densejax.population import Mapped, Population, Strategy, instance_key, memory_limit
from densejax.training.folders import Member, MemberFolder, Outcome
from densejax.training.logs import Reporter
from densejax.training.task import SCORE_OF_NOTHING, Programs, Task, empty_slot
from densejax.typing import Array, Batch, Measures, Tree


@dataclass(frozen=True)
class Schedule:
    """Lengths of a run and of its intervals, in steps of one instance.

    Attributes:
      steps: of an instance that is not stopped.
      log_every: interval of rows of metrics.
      evaluate_every: interval of evaluations.
      checkpoint_every: interval of checkpoints.
      patience: an instance ends at an evaluation more than so many steps after its best; 0 never.
      later_wins: whether an evaluation as good as the best takes its place.
    """

    steps: int
    log_every: int
    evaluate_every: int
    checkpoint_every: int
    patience: int = 0
    later_wins: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "evaluate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.patience < 0:
            raise ValueError(f"patience must not be negative, found {self.patience}")
        for name in ("evaluate_every", "checkpoint_every"):
            if getattr(self, name) % self.log_every:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be a multiple of log_every={self.log_every}"
                )


@dataclass
class Occupant:
    """A member in a slot, with the host's copy of its counters."""

    member: Member
    folder: MemberFolder
    step: int
    best_score: float = SCORE_OF_NOTHING
    best_step: int = 0
    measures: Measures | None = None

    def judged(self, score: float, *, later_wins: bool) -> None:
        """Follow what the device keeps as the best."""
        if score > self.best_score or (later_wins and score == self.best_score):
            self.best_score, self.best_step = score, self.step


@dataclass(frozen=True)
class Probe:
    """Seconds of wall time on this machine, of one member, while every device works.

    Attributes:
      step: of a training step.
      evaluation: of an evaluation.
    """

    step: float
    evaluation: float


@dataclass(frozen=True)
class Recording:
    """What to keep of every member, and how often.

    Attributes:
      every: interval in steps, a multiple of the schedule's ``log_every``; the start and the end of
        training are kept as well.
      frame: ``(state, data) -> arrays by name``, a pure function of one instance.
      data: tree of NumPy arrays for ``frame``; lives on every device.
    """

    every: int
    frame: Callable[[Tree, Batch], Mapping[str, Array]]
    data: Batch


class _Recorder:
    """Makes the frames of a population and writes them."""

    def __init__(self, recording: Recording, population: Population) -> None:
        self._population = population
        self._shared = population.replicate(recording.data)
        self._program: Mapped = population.map(_frame(recording), shared=(2,), name="frame")

    def keep(self, placed: Tree, due: Mapping[int, Path]) -> None:
        """Write the frames of some slots, each where it belongs."""
        missing = {slot: path for slot, path in due.items() if not path.exists()}
        if not missing:
            return
        population = self._population
        asked = np.array([slot in missing for slot in range(population.slots)])
        frames = population.fetch(self._program(placed, population.place(asked), self._shared))
        for slot, path in missing.items():
            arrays = {name: values[slot] for name, values in frames.items()}
            write_npz(path, arrays, compressed=True, alone=True)


class Sweep:
    """A sweep of one task over members, in one folder."""

    def __init__(
        self,
        task: Task,
        data: Batch,
        members: Sequence[Member],
        *,
        workdir: Path,
        schedule: Schedule,
        slots: int = 0,
        strategy: Strategy = "map",
        base_seed: int = 0,
        reporter: Reporter | None = None,
        begin: Callable[[Member, Tree], Tree] | None = None,
        recording: Recording | None = None,
    ) -> None:
        """Set a sweep up; nothing is compiled or allocated before ``run``.

        Args:
          task: what an instance is.
          data: tree of NumPy arrays that all instances share; lives on every device.
          members: seeds and settings; those that are published already are left as they are.
          workdir: the run's folder.
          schedule: steps and intervals.
          slots: instances in training at once; 0 is as many as there are members and memory for.
          strategy: ``map``, ``vmap`` or ``auto``.
          base_seed: from which every member's key is folded, by its seed.
          reporter: what to tell and where.
          begin: ``(member, slot) -> slot``, on the host: what to make of the slot of a member that
            has made no step, such as parameters of an earlier run; None leaves it as it is.
          recording: frames to keep of every member while it trains; they change nothing else.

        Raises:
          ValueError: ``recording.every`` is no multiple of ``schedule.log_every``.
        """
        if recording and (recording.every < 1 or recording.every % schedule.log_every):
            raise ValueError(
                f"frames every {recording.every} steps: expected a multiple of "
                f"log_every={schedule.log_every}"
            )
        self.task, self.data, self.workdir, self.schedule = task, data, workdir, schedule
        self.reporter = reporter or Reporter(score=task.score)
        self._recording = recording
        self._strategy, self._base, self._begin = strategy, jax.random.key(base_seed), begin
        self._outcomes: dict[str, Outcome] = {}
        self._members, self._waiting = list(members), []
        for member in members:
            outcome = MemberFolder(workdir, member).outcome()
            if outcome is None:
                self._waiting.append(member)
            else:
                self._outcomes[member.name] = outcome
        self._slots = min(slots or len(self._waiting), len(self._waiting))
        self._prepared = False
        self._placed: Tree = None

    def run(self) -> list[Outcome]:
        """Train every member that has not ended; return all outcomes in the members' order."""
        if self._waiting:
            self._prepare()
            self._begin_report()
            while self._refill():
                self._advance()
        return [self._outcomes[member.name] for member in self._members]

    def probe(self, *, steps: int = 4) -> Probe:
        """Time the compiled programs on fresh members, and forget these.

        Args:
          steps: that are timed, after as many that warm up.

        Raises:
          ValueError: every member has ended before.
        """
        if not self._waiting:
            raise ValueError("every member has ended: there is nothing to time")
        self._prepare()
        members = dict(zip(range(self._slots), self._waiting, strict=False))
        self._fill(members)
        place, each = self.population.place, self.population.per_device
        count = place(np.full(self._slots, steps, np.int32))
        due = place(np.ones(self._slots, bool))
        laps = []
        for _ in range(2):
            start = time.perf_counter()
            self._placed, means = self.programs.advance(self._placed, count, self._shared)
            jax.block_until_ready(means)
            stepped = time.perf_counter()
            self._placed, measures = self.programs.judge(self._placed, due, self._shared)
            jax.block_until_ready(measures)
            laps.append((stepped - start, time.perf_counter() - stepped))
        stepping, judging = laps[-1]
        return Probe(step=stepping / steps / each, evaluation=judging / each)

    def settle(self, task: Task, schedule: Schedule) -> None:
        """Take a task that begins its members otherwise and a schedule, before ``run``.

        The programs that train and judge stay those that ``probe`` has compiled.

        Args:
          task: whose states have the same arrays, and whose step is the same function of them.
          schedule: steps and intervals.
        """
        self.task, self.schedule = task, schedule
        if self._prepared:
            self.programs.renew_fill(task, self.population)

    def _prepare(self) -> None:
        if self._prepared:
            return
        self._prepared = True
        shape = jax.eval_shape(
            lambda key: empty_slot(key, self.task, self._settings(self._waiting[0])),
            jax.ShapeDtypeStruct((2,), np.uint32),
        )
        self._shape = shape
        self.population, self.programs = self._fit(shape)
        self._shared = self.population.replicate(self.data)
        self._recorder = _Recorder(self._recording, self.population) if self._recording else None
        rows = jax.tree.map(lambda leaf: np.zeros((self._slots, *leaf.shape), leaf.dtype), shape)
        self._placed = self.population.place(rows)
        self._occupants: list[Occupant | None] = [None] * self._slots

    def _begin_report(self) -> None:
        done = sum(MemberFolder(self.workdir, m).checkpoints.exists() for m in self._waiting)
        self.reporter.start(
            members=len(self._members),
            finished=len(self._outcomes),
            resumed=done,
            steps=self.schedule.steps,
        )

    def _fit(self, shape: Tree) -> tuple[Population, Programs]:
        """Compile before allocating; take fewer slots where the program would not fit."""
        limit = 0.9 * memory_limit(jax.local_devices()[: self._slots])
        while True:
            cache = self.workdir / "strategies.json"
            population = Population(self._slots, strategy=self._strategy, cache=cache)
            later_wins = self.schedule.later_wins
            programs = Programs(self.task, population, later_wins=later_wins)
            if self._strategy == "auto":
                return population, programs  # the probe needs real arrays
            steps = population.placed_shapes(jax.ShapeDtypeStruct((), np.int32))
            shared = population.replicated_shapes(self.data)
            programs.advance.compile(population.placed_shapes(shape), steps, shared)
            peak = programs.advance.peak_bytes()
            self.reporter.memory(peak, limit, programs.advance.compile_seconds, self._slots)
            if peak <= limit:
                return population, programs
            if population.per_device == 1:
                raise MemoryError(
                    f"one instance a device needs {peak / 1e9:.2f} GB, and {limit / 1e9:.2f} GB "
                    "are available: choose a smaller window, a narrower network or fewer devices"
                )
            # State and activations grow at most in proportion to the slots, so this many fit.
            fitting = max(1, int(population.per_device * limit / peak))
            self._slots = len(population.devices) * min(fitting, population.per_device - 1)

    def _settings(self, member: Member) -> dict[str, np.float32]:
        return {name: np.float32(value) for name, value in member.settings.items()}

    def _refill(self) -> bool:
        """Give every free slot to the next waiting member; whether anybody runs."""
        fresh: dict[int, Member] = {}
        restored: dict[int, Tree] = {}
        for slot, occupied in enumerate(self._occupants):
            if occupied is not None or not self._waiting:
                continue
            member = self._waiting.pop(0)
            occupant = Occupant(member, MemberFolder(self.workdir, member), step=0)
            row = occupant.folder.restore(self._shape, report=self.reporter.warn)
            if row is None and self._begin is not None:
                row = self._begin(member, self._empty_slot(member))
            if row is None:
                fresh[slot] = member
            else:
                restored[slot] = row
                occupant.step, occupant.best_score = int(row["step"]), float(row["best_score"])
                occupant.best_step = int(row["best_step"])
            self._occupants[slot] = occupant
        if restored:
            self._install(restored)
        if fresh:
            self._fill(fresh)
        return any(occupant is not None for occupant in self._occupants)

    def _empty_slot(self, member: Member) -> Tree:
        key = jax.random.key_data(instance_key(self._base, member.seed))
        make = jax.jit(lambda key, settings: empty_slot(key, self.task, settings))
        return jax.device_get(make(key, self._settings(member)))

    def _install(self, rows: dict[int, Tree]) -> None:
        stacked = jax.tree.map(np.array, self.population.fetch(self._placed))
        for slot, row in rows.items():
            jax.tree.map(lambda all_of, one, s=slot: all_of.__setitem__(s, one), stacked, row)
        self._placed = self.population.place(stacked)

    def _fill(self, fresh: dict[int, Member]) -> None:
        anyone = next(iter(fresh.values()))
        members = [fresh.get(slot, anyone) for slot in range(self._slots)]
        keys = np.stack(
            [jax.random.key_data(instance_key(self._base, member.seed)) for member in members]
        )
        settings = [self._settings(member) for member in members]
        enters = np.array([slot in fresh for slot in range(self._slots)])
        place = self.population.place
        stacked = {name: np.stack([s[name] for s in settings]) for name in settings[0]}
        self._placed = self.programs.fill(self._placed, place(keys), place(stacked), place(enters))

    def _advance(self) -> None:
        """One interval of every running instance, then what is due after it."""
        schedule, place, fetch = self.schedule, self.population.place, self.population.fetch
        self._record((), np.ones(self._slots, bool))
        start = time.perf_counter()
        steps = np.array(
            [
                0 if o is None else min(schedule.log_every, schedule.steps - o.step)
                for o in self._occupants
            ],
            np.int32,
        )
        self._placed, means = self.programs.advance(self._placed, place(steps), self._shared)
        means = fetch(means)
        due = np.zeros(self._slots, bool)
        for slot, occupant in enumerate(self._occupants):
            if occupant is not None:
                occupant.step += int(steps[slot])
                due[slot] = self._at(occupant, schedule.evaluate_every) and means["finite"][slot]
        trained = time.perf_counter() - start
        measures: Tree = {}
        if due.any():
            self._placed, measures = self.programs.judge(self._placed, place(due), self._shared)
            measures = fetch(measures)
        endings = self._log(means, measures, due)
        self._record(endings, means["finite"])
        self.reporter.interval(self._occupants, int(steps.sum()), trained, bool(due.any()))
        self._keep(endings)

    def _record(self, endings: Collection[int], finite: np.ndarray) -> None:
        """Keep the frames that are due: at the interval, and of members that end."""
        if self._recording is None or self._recorder is None:
            return
        at = {
            slot: occupant.folder.frame(occupant.step)
            for slot, occupant in enumerate(self._occupants)
            if occupant is not None
            and finite[slot]
            and (occupant.step % self._recording.every == 0 or slot in endings)
        }
        self._recorder.keep(self._placed, at)

    def _at(self, occupant: Occupant, every: int) -> bool:
        return occupant.step % every == 0 or occupant.step >= self.schedule.steps

    def _log(self, means: Tree, measures: Tree, due: np.ndarray) -> dict[int, tuple[str, str]]:
        """Write each running member's row; return the slots that end, with status and reason."""
        endings: dict[int, tuple[str, str]] = {}
        for slot, occupant in enumerate(self._occupants):
            if occupant is None:
                continue
            row: dict[str, Any] = {"step": occupant.step}
            row |= {n: float(v[slot]) for n, v in means.items() if n != "finite"}
            if due[slot]:
                row |= {name: value[slot].tolist() for name, value in measures.items()}
                occupant.judged(row[self.task.score], later_wins=self.schedule.later_wins)
                occupant.measures = row
            if not means["finite"][slot]:
                endings[slot] = ("FAILED", "loss or parameters are not finite")
                row["loss"] = None
            elif occupant.step >= self.schedule.steps:
                endings[slot] = ("DONE", "all steps made")
            elif due[slot] and self.task.stop(occupant.step, row):
                endings[slot] = ("DONE", "stopped early")
            elif due[slot] and 0 < self.schedule.patience < occupant.step - occupant.best_step:
                endings[slot] = ("DONE", f"no better since step {occupant.best_step}")
            occupant.folder.log(row)
            self.reporter.row(occupant, row, evaluated=bool(due[slot]))
        return endings

    def _keep(self, endings: dict[int, tuple[str, str]]) -> None:
        """Checkpoint members at their interval and publish those that end."""
        saves = [
            slot
            for slot, occupant in enumerate(self._occupants)
            if occupant is not None
            and slot not in endings
            and occupant.step % self.schedule.checkpoint_every == 0
        ]
        if not saves and not endings:
            return
        stacked = self.population.fetch(self._placed)
        for slot in [*saves, *endings]:
            row = jax.tree.map(lambda leaf, s=slot: leaf[s], stacked)
            occupant = self._occupants[slot]
            assert occupant is not None
            if slot in saves:
                occupant.folder.save(occupant.step, row)
            else:
                self._publish(slot, occupant, row, *endings[slot])

    def _publish(self, slot: int, occupant: Occupant, row: Tree, status: str, reason: str) -> None:
        outcome = Outcome(
            occupant.member,
            status,
            step=occupant.step,
            best_score=float(row["best_score"]),
            best_step=int(row["best_step"]),
            reason=reason,
            folder=occupant.folder.path,
        )
        self.reporter.end(outcome)
        occupant.folder.publish(outcome, row["best"], self.task.parameters(row["state"]))
        outcome = replace(outcome, folder=occupant.folder.published)
        self._outcomes[occupant.member.name] = outcome
        self._occupants[slot] = None


def _frame(recording: Recording) -> Callable[..., Tree]:
    def frame(slot: Tree, due: jax.Array, data: Batch) -> Tree:
        def make() -> Tree:
            return dict(recording.frame(slot["state"], data))

        def leave() -> Tree:
            shapes = jax.eval_shape(make)
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        return jax.lax.cond(due, make, leave)

    return frame
