"""Rounds of active learning: train, query, reveal, repeat; all strategies and seeds side by side.

Every round has a folder, ``rounds/00/`` and on. All its networks are one sweep in it (``seeds/``);
``trained.npz`` is published when they have ended and ``query.npz`` when the next samples are
chosen, each by a rename. Whatever is there is whole; a run that was killed anywhere continues.

What a strategy does with a seed depends on neither the other strategies nor the other seeds: a
round's networks draw from (seed, round), so that strategies are compared in pairs, and a query from
(seed, round, name of the strategy). Networks of one seed with the same labelled set in the same
order are the same network, and trained once: in the first round, all of a seed.
"""

import shutil
import time
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic

import jax
import numpy as np

from densejax.active.pool import Pool, Selection
from densejax.active.rounds.oracles import Oracle
from densejax.active.rounds.records import (
    Labelled,
    Plan,
    Query,
    Record,
    check_selection,
    read_record,
    round_folder,
    write_record,
)
from densejax.active.rounds.subject import Look, Row, Subject
from densejax.active.strategies.random import balanced_random, random
from densejax.io import read_json, write_json, write_npz
from densejax.population import Strategy as Side
from densejax.training.checkpoint import restore_tree
from densejax.training.folders import Member, Outcome
from densejax.training.logs import Reporter
from densejax.training.sweep import Sweep
from densejax.typing import UNLABELLED, Params, Tree


class Rounds(Generic[Record]):
    """A run of active learning in a folder, whatever its subject: pictures, or segmentation."""

    def __init__(
        self,
        subject: Subject[Record],
        oracle: Oracle,
        plan: Plan,
        *,
        workdir: Path,
        slots: int = 0,
        side: Side = "map",
        say: Callable[[str], None] = print,
    ) -> None:
        """Check everything that can be checked before any training.

        Args:
          subject: what there is to learn from, and what a network is.
          oracle: who knows the labels.
          plan: how many rounds of what.
          workdir: the run's folder.
          slots: networks in training at once; 0 is as many as fit.
          side: ``map``, ``vmap`` or ``auto``: see ``Sweep``.
          say: where a line of progress goes.

        Raises:
          ValueError: the plan wants more samples than there are, or a strategy needs labels that
            the oracle does not know beforehand.
        """
        self.subject, self.oracle, self.plan = subject, oracle, plan
        self._workdir, self._slots, self._side, self._say = workdir, slots, side, say
        free = subject.size - int(subject.held_out.sum())
        if plan.largest > free:
            raise ValueError(
                f"{plan.rounds} rounds from {plan.initial} samples by {plan.budget} want "
                f"{plan.largest}; the pool has {free} that are not held out"
            )
        strategies = plan.strategies.items()
        cheats = [n for n, s in strategies if s.truth or s.sequential or s.expert]
        starts = plan.start == "balanced" or any(s.balanced_start for s in plan.strategies.values())
        if not hasattr(oracle, "labels") and (cheats or starts):
            what = ", ".join(cheats) or "a balanced start"
            raise ValueError(f"{what} needs labels before they are asked for: a known oracle")
        self._experts: dict[int, Params] = {}
        self._rows = {
            (name, seed): row
            for row, (name, seed) in enumerate((n, s) for n in plan.strategies for s in plan.seeds)
        }

    def run(self) -> list[Record]:
        """Train and query until all rounds are there; those that are there are read.

        Raises:
          ValueError: a round in the folder is another run's, or the oracle cannot answer
            (``LabelsNeededError`` where a person is to write labels first).
        """
        done: list[Record] = []
        for number in range(self.plan.rounds):
            folder = round_folder(self._workdir, number)
            trained = read_record(self.subject.record, folder / "trained.npz")
            if trained is None:
                folder.mkdir(parents=True, exist_ok=True)
                trained = self._train(number, folder, done)
                write_record(trained, folder / "trained.npz")
            self._check(trained, done, folder)
            self._tidy(folder)
            if self.plan.warm_start and number and not self.plan.keep:
                before = round_folder(self._workdir, number - 1)
                shutil.rmtree(before / "seeds", ignore_errors=True)
            done.append(trained)
            self._tell(number, trained)
        return done

    def _train(self, number: int, folder: Path, done: Sequence[Record]) -> Record:
        names, seeds, sets, labels = self._labelled(number, folder, done)
        rows = [self._rows[name, seed] for name, seed in zip(names, seeds, strict=True)]
        # Rows of one seed with the same set are one network: that of the first of them.
        same: dict[tuple[int, bytes], list[int]] = {}
        for place, (seed, one) in enumerate(zip(seeds, sets, strict=True)):
            same.setdefault((int(seed), one.tobytes()), []).append(place)
        leaders = [places[0] for places in same.values()]
        known = np.full(self.subject.size, UNLABELLED, np.int32)
        known[sets.ravel()] = labels.ravel()
        by_row = dict(zip(rows, sets, strict=True))
        query_sets = [by_row.get(row, ()) for row in range(len(self._rows))]
        members = [Member(int(seeds[at]), {"query_set": rows[at]}) for at in leaders]
        self._say(
            f"round {number + 1} of {self.plan.rounds}: {sets.shape[1]} labelled samples, "
            f"{len(members)} networks for {len(rows)} strategies and seeds"
        )
        begin = self._begin(number, done, dict(zip(rows, range(len(rows)), strict=True)))
        start = time.monotonic()
        outcomes = self._sweep(
            known,
            query_sets,
            members,
            largest=self.plan.largest,
            workdir=folder,
            samples=sets.shape[1],
            number=number,
            base_seed=_number(self._key("training", number)),
            begin=begin,
        )
        tested = self.subject.test(outcomes)
        write_json(folder / "seconds.json", {"train": time.monotonic() - start})
        of = np.empty(len(rows), np.int64)
        for place, places in enumerate(same.values()):
            of[places] = place
        return self.subject.record(names, seeds, sets, labels, *(column[of] for column in tested))

    def _begin(
        self, number: int, done: Sequence[Record], place_of: dict[int, int]
    ) -> Callable[[Member, Tree], Tree] | None:
        """What a member starts from: fresh weights, or those of its row's network before."""
        if not (self.plan.warm_start and number):
            return None
        before = done[-1]
        kept = np.flatnonzero(before.alive)
        folder = round_folder(self._workdir, number - 1)

        def begin(member: Member, slot: Tree) -> Tree:
            place = int(kept[place_of[int(member.settings["query_set"])]])
            return self.subject.begin(slot, self._best(self._folder_of(folder, before, place)))

        return begin

    def _sweep(
        self,
        known: np.ndarray,
        sets: Sequence[Any],
        members: Sequence[Member],
        *,
        largest: int,
        workdir: Path,
        samples: int,
        number: int,
        base_seed: int,
        begin: Callable[[Member, Tree], Tree] | None = None,
    ) -> list[Outcome]:
        """Train networks on so many samples each; those that are there are read."""
        task = self.subject.task(largest, samples, number)
        reporter = _Quiet(score=task.score)
        outcomes = Sweep(
            task,
            self.subject.data(known, sets, largest),
            members,
            workdir=workdir,
            schedule=self.subject.schedule(samples, number, self.plan),
            slots=self._slots,
            strategy=self._side,
            base_seed=base_seed,
            reporter=reporter,
            begin=begin,
        ).run()
        reporter.close()
        return outcomes

    def _labelled(
        self, number: int, folder: Path, done: Sequence[Record]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Names, seeds, labelled sets and their labels, of the rows that take part."""
        if not done:
            names = np.array([name for name, _ in self._rows])
            seeds = np.array([seed for _, seed in self._rows], np.int64)
            sets = np.stack([self._start(n, s) for n, s in self._rows])
            return names, seeds, sets, self._reveal(sets, np.full(sets.shape, -1), folder)
        before = done[-1]
        query = self._query(number - 1, before)
        kept = before.alive
        answers = self._reveal(query.indices, query.predicted, folder)
        sets = np.concatenate([before.sets[kept], query.indices], axis=1)
        labels = np.concatenate([before.labels[kept], answers], axis=1)
        return query.names, query.seeds, sets, labels

    def _start(self, name: str, seed: int) -> np.ndarray:
        """The initial set of a strategy and seed: [initial] int64."""
        key = self._key("start", seed)
        balance = self.plan.start == "balanced" or self.plan.strategies[name].balanced_start
        labels = np.zeros(self.subject.size, np.int32)  # of no class, where none need be known
        pool = Pool(
            labels=getattr(self.oracle, "labels", None) if balance else labels,
            held_out=self.subject.held_out,
        )
        choose = balanced_random if balance else random
        return choose(key, pool, self.plan.initial).indices

    def _reveal(self, asked: np.ndarray, predicted: np.ndarray, folder: Path) -> np.ndarray:
        """Labels [k, b] of what all rows ask for; each sample is asked for once."""
        unique, first, back = np.unique(asked, return_index=True, return_inverse=True)
        answers = self.oracle.reveal(unique, folder=folder, predicted=predicted.ravel()[first])
        return np.asarray(answers, np.int32)[back].reshape(asked.shape)

    def _query(self, number: int, trained: Record) -> Query:
        """What is labelled after a round; read, or chosen and published."""
        folder = round_folder(self._workdir, number)
        query = read_record(Query, folder / "query.npz")
        if query is not None:
            return query
        kept = np.flatnonzero(trained.alive)
        if not kept.size:
            raise ValueError(f"{folder}: every network failed; nothing can be queried")
        strategies = self.plan.strategies
        found: dict[int, tuple[Selection, np.ndarray]] = {}
        looks: list[Row] = []
        for place in kept.tolist():
            name, seed = str(trained.names[place]), int(trained.seeds[place])
            if not strategies[name].network:
                found[place] = self._choose(number, trained, place, Look(place))
                continue
            network = str(seed)
            if not strategies[name].expert:
                network = str(self._folder_of(folder, trained, place))
            looks.append(Row(place, name, seed, strategies[name], network))
        columns: dict[int, dict[str, np.ndarray]] = {}
        seconds = {"look": 0.0, "choose": 0.0}
        start = time.monotonic()
        key = self._key("look", number)
        for look in self.subject.look(looks, partial(self._looked_at, folder, trained), key):
            looked = time.monotonic()
            found[look.place] = self._choose(number, trained, look.place, look)
            if look.columns:
                columns[look.place] = dict(look.columns)
            chosen = time.monotonic()
            seconds["look"] += looked - start
            seconds["choose"] += chosen - looked
            start = chosen
        if columns:
            self._keep_columns(folder, trained, columns)
        before = read_json(folder / "seconds.json") if (folder / "seconds.json").exists() else {}
        write_json(folder / "seconds.json", before | seconds)
        rows = [found[place] for place in kept.tolist()]
        query = Query(
            trained.names[kept],
            trained.seeds[kept],
            np.stack([selection.indices for selection, _ in rows]),
            np.stack([selection.scores for selection, _ in rows]),
            np.stack([predicted for _, predicted in rows]),
        )
        write_record(query, folder / "query.npz")
        self._tidy(folder)
        return query

    def _keep_columns(
        self, folder: Path, trained: Record, columns: dict[int, dict[str, np.ndarray]]
    ) -> None:
        """Write ``look.npz``: the scores [k', s, n] that all looks have in common."""
        places = sorted(columns)
        names = [n for n in columns[places[0]] if all(n in columns[p] for p in places)]
        write_npz(
            folder / "look.npz",
            {
                "names": trained.names[places],
                "seeds": trained.seeds[places],
                "scores": np.array(names),
                "values": np.stack([[columns[p][n] for n in names] for p in places]),
            },
            compressed=True,
        )

    def _choose(
        self, number: int, trained: Record, place: int, look: Look
    ) -> tuple[Selection, np.ndarray]:
        name, seed = str(trained.names[place]), int(trained.seeds[place])
        strategy, own = self.plan.strategies[name], trained.sets[place]
        labelled = np.zeros(self.subject.size, bool)
        labelled[own] = True
        labels = np.full(len(labelled), UNLABELLED, np.int32)
        labels[own] = trained.labels[place]
        known = getattr(self.oracle, "labels", None)
        pool = Pool(
            **look.arrays,
            columns=look.columns or None,
            images=self.subject.images if strategy.images else None,
            labels=known if strategy.truth else labels,
            labelled=labelled,
            held_out=self.subject.held_out,
        )
        options: dict[str, Any] = {"variables": look.variables} if strategy.variables else {}
        if strategy.sequential and known is not None:
            options["reveal"] = lambda row: int(known[row])
        key = jax.random.fold_in(self._key("query", seed, number), zlib.crc32(name.encode()))
        chosen = strategy.select(key, pool, self.plan.budget, **options)
        check_selection(chosen, pool, self.plan.budget, name)
        if look.predicted is None:
            return chosen, np.full(self.plan.budget, -1, np.int32)
        return chosen, np.asarray(look.predicted)[chosen.indices].astype(np.int32)

    def _looked_at(self, folder: Path, trained: Record, place: int) -> Params:
        """Variables of the network that a row's strategy looks at."""
        if not self.plan.strategies[str(trained.names[place])].expert:
            return self._best(self._folder_of(folder, trained, place))
        if not self._experts:
            self._experts = self._train_experts()
        return self._experts[int(trained.seeds[place])]

    def _train_experts(self) -> dict[int, Params]:
        """One network a seed that learns from all labels, all in one program (Chen 2020, 3.2.2).

        They learn from every sample that has a label and is not held out, as long as the networks
        of the rounds. Those that are there are read.
        """
        known = np.asarray(getattr(self.oracle, "labels", None), np.int32)  # checked at the start
        rows = np.flatnonzero(~self.subject.held_out & (known >= 0))
        self._say(f"experts: {len(self.plan.seeds)} networks on all {len(rows)} labels")
        outcomes = self._sweep(
            known,
            [rows],
            [Member(int(seed)) for seed in self.plan.seeds],
            largest=len(rows),
            workdir=self._workdir / "experts",
            samples=len(rows),
            number=0,
            base_seed=_number(self._key("expert")),
        )
        found = {}
        for outcome in outcomes:
            if outcome.status != "DONE":
                raise ValueError(f"{outcome.folder}: the expert failed; {outcome.reason}")
            shutil.rmtree(outcome.folder / "last", ignore_errors=True)
            found[outcome.member.seed] = self._best(outcome.folder)
        return found

    def _folder_of(self, folder: Path, trained: Record, place: int) -> Path:
        """The published folder of the network of a row: that of the first with the same set."""
        for other in range(place + 1):
            same = trained.seeds[other] == trained.seeds[place]
            if same and np.array_equal(trained.sets[other], trained.sets[place]):
                break
        row = self._rows[str(trained.names[other]), int(trained.seeds[other])]
        return folder / "seeds" / Member(int(trained.seeds[other]), {"query_set": row}).name

    def _best(self, folder: Path) -> Params:
        template = jax.eval_shape(self.subject.init_variables, jax.random.key(0))
        return restore_tree(folder / "best", template)

    def _check(self, trained: Record, done: Sequence[Record], folder: Path) -> None:
        """Refuse a round that another run has left in the folder."""
        found = _rows_of(trained)
        expected = list(self._rows)
        if done:
            alive = done[-1].alive.tolist()
            expected = [row for row, there in zip(_rows_of(done[-1]), alive, strict=True) if there]
        size = self.plan.initial + self.plan.budget * len(done)
        if found != expected or trained.sets.shape[1] != size:
            raise ValueError(
                f"{folder}: found a round of {_text(found)} with {trained.sets.shape[1]} labelled "
                f"samples; expected {_text(expected)} with {size}: it was begun with another "
                "configuration"
            )

    def _tidy(self, folder: Path) -> None:
        """Remove what nothing needs any more: last parameters, and best ones if not kept."""
        for last in folder.glob("seeds/*/last"):
            shutil.rmtree(last, ignore_errors=True)
        needed = self.plan.keep or self.plan.warm_start
        if (folder / "query.npz").exists() and not needed:
            shutil.rmtree(folder / "seeds", ignore_errors=True)

    def _tell(self, number: int, trained: Record) -> None:
        score, where = self.subject.score, trained.names
        for name in dict.fromkeys(where.tolist()):
            scores = trained.scores[where == name]
            scores = scores[np.isfinite(scores)]
            mean = f"{scores.mean():.4f}" if scores.size else "failed"
            failed = int((where == name).sum()) - scores.size
            more = f", {failed} failed" if failed else ""
            self._say(
                f"round {number + 1}  {trained.sets.shape[1]} labelled  {name}: test {score} "
                f"{mean} (mean of {scores.size} seeds{more})"
            )

    def _key(self, use: str, *numbers: int) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(self.plan.base_seed), zlib.crc32(use.encode()))
        for number in numbers:
            key = jax.random.fold_in(key, number)
        return key


class _Quiet(Reporter):
    """A bar, or a line every half minute: rounds have too many networks for a line each."""

    def interval(
        self, occupants: Sequence[Any], steps: int, seconds: float, evaluated: bool
    ) -> None:
        """An interval is done."""
        super().interval(occupants, steps, seconds, False)


def _number(key: jax.Array) -> int:
    return int(jax.random.bits(key, (), np.uint32)) >> 1


def _rows_of(trained: Labelled) -> list[tuple[str, int]]:
    return list(zip(trained.names.tolist(), trained.seeds.tolist(), strict=True))


def _text(rows: Sequence[tuple[str, int]]) -> str:
    names, seeds = dict.fromkeys(n for n, _ in rows), sorted({s for _, s in rows})
    return f"{', '.join(names)} (seeds {', '.join(map(str, seeds))}; {len(rows)} in all)"
