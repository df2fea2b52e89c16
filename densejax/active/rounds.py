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
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from densejax.active import balanced
from densejax.active.experts import train_experts
from densejax.active.oracles import Oracle
from densejax.active.pool import Pool, Selection
from densejax.active.records import (
    Plan,
    Query,
    Samples,
    Trained,
    check_selection,
    read_record,
    round_folder,
    write_record,
)
from densejax.classification.task import ImageTask, Predictor, head_of, image_data
from densejax.population import Strategy as Side
from densejax.training.checkpoint import restore_tree
from densejax.training.folders import Member, Outcome
from densejax.training.logs import Reporter
from densejax.training.sweep import Schedule, Sweep
from densejax.typing import UNLABELLED, Params


class Rounds:
    """A run of active learning in a folder."""

    def __init__(
        self,
        task: ImageTask,
        samples: Samples,
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
          task: what a network is; its ``largest`` is the plan's.
          samples: what there is to learn from.
          oracle: who knows the labels.
          plan: how many rounds of what.
          workdir: the run's folder.
          slots: networks in training at once; 0 is as many as fit.
          side: ``map``, ``vmap`` or ``auto``: see ``Sweep``.
          say: where a line of progress goes.

        Raises:
          ValueError: the plan wants more samples than there are, the task does not fit it, or a
            strategy needs labels that the oracle does not know beforehand.
        """
        self.task, self.samples, self.oracle, self.plan = task, samples, oracle, plan
        self._workdir, self._slots, self._side, self._say = workdir, slots, side, say
        free = len(samples.images) - int(np.asarray(samples.held_out).sum())
        if plan.largest > free:
            raise ValueError(
                f"{plan.rounds} rounds from {plan.initial} samples by {plan.budget} want "
                f"{plan.largest}; the pool has {free} that are not held out"
            )
        if task.largest != plan.largest or task.classes != len(samples.class_names):
            raise ValueError(
                f"the task is of {task.largest} samples and {task.classes} classes; expected "
                f"{plan.largest} and {len(samples.class_names)}"
            )
        strategies = plan.strategies.items()
        cheats = [n for n, s in strategies if s.truth or s.sequential or s.expert]
        starts = plan.start == "balanced" or any(s.balanced_start for s in plan.strategies.values())
        if not hasattr(oracle, "labels") and (cheats or starts):
            what = ", ".join(cheats) or "a balanced start"
            raise ValueError(f"{what} needs labels before they are asked for: a known oracle")
        looks = any(s.network for s in plan.strategies.values())
        self._experts: dict[int, Params] = {}
        rows = len(plan.strategies) * len(plan.seeds)
        size = min(rows, len(jax.local_devices()))
        self._predictor = Predictor(task, size, features=looks)
        self._rows = {
            (name, seed): row
            for row, (name, seed) in enumerate((n, s) for n in plan.strategies for s in plan.seeds)
        }

    def run(self) -> list[Trained]:
        """Train and query until all rounds are there; those that are there are read.

        Raises:
          ValueError: a round in the folder is another run's, or the oracle cannot answer
            (``LabelsNeededError`` where a person is to write labels first).
        """
        done: list[Trained] = []
        for number in range(self.plan.rounds):
            folder = round_folder(self._workdir, number)
            trained = read_record(Trained, folder / "trained.npz")
            if trained is None:
                folder.mkdir(parents=True, exist_ok=True)
                trained = self._train(number, folder, done)
                write_record(trained, folder / "trained.npz")
            self._check(trained, done, folder)
            self._tidy(folder)
            done.append(trained)
            self._tell(number, trained)
        return done

    def _train(self, number: int, folder: Path, done: Sequence[Trained]) -> Trained:
        names, seeds, sets, labels = self._labelled(number, folder, done)
        rows = [self._rows[name, seed] for name, seed in zip(names, seeds, strict=True)]
        # Rows of one seed with the same set are one network: that of the first of them.
        same: dict[tuple[int, bytes], list[int]] = {}
        for place, (seed, one) in enumerate(zip(seeds, sets, strict=True)):
            same.setdefault((int(seed), one.tobytes()), []).append(place)
        leaders = [places[0] for places in same.values()]
        known = np.full(len(self.samples.labels), UNLABELLED, np.int32)
        known[sets.ravel()] = labels.ravel()
        held_out = np.asarray(self.samples.held_out)
        by_row = dict(zip(rows, sets, strict=True))
        data = image_data(
            self.samples.images,
            known,
            [by_row.get(row, ()) for row in range(len(self._rows))],
            evaluation_images=np.asarray(self.samples.images)[held_out],
            evaluation_labels=np.asarray(self.samples.labels)[held_out],
            classes=self.task.classes,
            largest=self.plan.largest,
            weighted=self.plan.weighted,
        )
        members = [Member(int(seeds[at]), {"query_set": rows[at]}) for at in leaders]
        self._say(
            f"round {number + 1} of {self.plan.rounds}: {sets.shape[1]} labelled samples, "
            f"{len(members)} networks for {len(rows)} strategies and seeds"
        )
        reporter = _Quiet(score=self.task.score)
        outcomes = Sweep(
            self.task,
            data,
            members,
            workdir=folder,
            schedule=self._schedule(sets.shape[1]),
            slots=self._slots,
            strategy=self._side,
            base_seed=_number(self._key("training", number)),
            reporter=reporter,
        ).run()
        reporter.close()
        tested = self._test(outcomes)
        of = np.empty(len(rows), np.int64)
        for place, places in enumerate(same.values()):
            of[places] = place
        return Trained(names, seeds, sets, labels, *(column[of] for column in tested))

    def _labelled(
        self, number: int, folder: Path, done: Sequence[Trained]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Names, seeds, labelled sets and their labels, of the rows that take part."""
        if not done:
            names = np.array([name for name, _ in self._rows])
            seeds = np.array([seed for _, seed in self._rows], np.int64)
            sets = np.stack([self._start(n, s) for n, s in self._rows])
            return names, seeds, sets, self._reveal(sets, np.full(sets.shape, -1), folder)
        before = done[-1]
        query = self._query(number - 1, before)
        kept = np.isfinite(before.accuracy)
        answers = self._reveal(query.indices, query.predicted, folder)
        sets = np.concatenate([before.sets[kept], query.indices], axis=1)
        labels = np.concatenate([before.labels[kept], answers], axis=1)
        return query.names, query.seeds, sets, labels

    def _start(self, name: str, seed: int) -> np.ndarray:
        """The initial set of a strategy and seed: [initial] int64."""
        key = self._key("start", seed)
        balance = self.plan.start == "balanced" or self.plan.strategies[name].balanced_start
        pool = Pool(
            labels=getattr(self.oracle, "labels", None) if balance else self.samples.labels,
            held_out=self.samples.held_out,
        )
        choose = balanced.balanced_random if balance else balanced.random
        return choose(key, pool, self.plan.initial).indices

    def _reveal(self, asked: np.ndarray, predicted: np.ndarray, folder: Path) -> np.ndarray:
        """Labels [k, b] of what all rows ask for; each sample is asked for once."""
        unique, first, back = np.unique(asked, return_index=True, return_inverse=True)
        answers = self.oracle.reveal(unique, folder=folder, predicted=predicted.ravel()[first])
        return np.asarray(answers, np.int32)[back].reshape(asked.shape)

    def _schedule(self, samples: int) -> Schedule:
        plan, epoch = self.plan, self.task.steps_of(samples)
        interval = epoch * plan.evaluate_every
        return Schedule(
            steps=epoch * self.task.epochs,
            log_every=interval,
            evaluate_every=interval,
            checkpoint_every=interval * max(1, plan.checkpoint_every // plan.evaluate_every),
            patience=epoch * plan.patience,
            later_wins=True,
        )

    def _test(self, outcomes: Sequence[Outcome]) -> list[np.ndarray]:
        """The columns of ``Trained`` from the accuracy on."""
        labels, classes = np.asarray(self.samples.test_labels), self.task.classes
        found = np.full((len(outcomes), 2 + classes), np.nan)
        sizes = np.bincount(labels, minlength=classes)
        done = [place for place, o in enumerate(outcomes) if o.status == "DONE"]
        for group in _groups(done, self._predictor.size):
            members = [self._best(outcomes[place].folder) for place in group]
            ranks = np.zeros((len(group), len(labels)), np.int64)
            for rows, logits, _ in self._predictor(members, self.samples.test_images):
                true = np.take_along_axis(logits, labels[None, rows, None], axis=-1)
                earlier = np.arange(classes) < labels[rows, None]
                ranks[:, rows] = ((logits > true) | ((logits == true) & earlier)).sum(axis=-1)
            for place, rank in zip(group, ranks, strict=True):
                hits = np.bincount(labels[rank == 0], minlength=classes)
                each = np.where(sizes > 0, hits / np.maximum(sizes, 1), np.nan)
                found[place] = [(rank == 0).mean(), (rank < 5).mean(), *each]
        validation = np.array([o.best_score for o in outcomes], np.float64)
        counters = [np.array([getattr(o, n) for o in outcomes]) for n in ("best_step", "step")]
        return [found[:, 0], found[:, 1], found[:, 2:], validation, *counters]

    def _query(self, number: int, trained: Trained) -> Query:
        """What is labelled after a round; read, or chosen and published."""
        folder = round_folder(self._workdir, number)
        query = read_record(Query, folder / "query.npz")
        if query is not None:
            return query
        kept = np.flatnonzero(np.isfinite(trained.accuracy))
        if not kept.size:
            raise ValueError(f"{folder}: every network failed; nothing can be queried")
        strategies = self.plan.strategies
        found: dict[int, tuple[Selection, np.ndarray]] = {}
        looks = [place for place in kept.tolist() if strategies[trained.names[place]].network]
        for place in sorted(set(kept.tolist()) - set(looks)):
            found[place] = self._choose(number, trained, place, {}, None)
        for group in _groups(looks, self._predictor.size):
            members = [self._looked_at(folder, trained, place) for place in group]
            parts = list(self._predictor(members, self.samples.images))
            for at, place in enumerate(group):
                logits = np.concatenate([part[1][at] for part in parts])
                features = np.concatenate([part[2][at] for part in parts if part[2] is not None])
                kernel, bias = head_of(members[at])
                arrays = {"features": features, "kernel": kernel, "bias": bias}
                found[place] = self._choose(number, trained, place, arrays, logits, members[at])
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

    def _choose(
        self,
        number: int,
        trained: Trained,
        place: int,
        arrays: dict[str, Any],
        logits: np.ndarray | None,
        variables: Params | None = None,
    ) -> tuple[Selection, np.ndarray]:
        name, seed = str(trained.names[place]), int(trained.seeds[place])
        strategy, own = self.plan.strategies[name], trained.sets[place]
        labelled = np.zeros(len(self.samples.labels), bool)
        labelled[own] = True
        labels = np.full(len(labelled), UNLABELLED, np.int32)
        labels[own] = trained.labels[place]
        known = getattr(self.oracle, "labels", None)
        pool = Pool(
            **arrays,
            logits=logits,
            images=self.samples.images if strategy.images else None,
            labels=known if strategy.truth else labels,
            labelled=labelled,
            held_out=self.samples.held_out,
        )
        options: dict[str, Any] = {"variables": variables} if strategy.variables else {}
        if strategy.sequential and known is not None:
            options["reveal"] = lambda row: int(known[row])
        key = jax.random.fold_in(self._key("query", seed, number), zlib.crc32(name.encode()))
        chosen = strategy.select(key, pool, self.plan.budget, **options)
        check_selection(chosen, pool, self.plan.budget, name)
        guess = np.full(self.plan.budget, -1, np.int32)
        if logits is not None:
            guess = np.argmax(logits[chosen.indices], axis=-1).astype(np.int32)
        return chosen, guess

    def _looked_at(self, folder: Path, trained: Trained, place: int) -> Params:
        """Variables of the network that a row's strategy looks at."""
        if not self.plan.strategies[str(trained.names[place])].expert:
            return self._best(self._folder_of(folder, trained, place))
        if not self._experts:
            self._experts = self._train_experts()
        return self._experts[int(trained.seeds[place])]

    def _train_experts(self) -> dict[int, Params]:
        reporter = _Quiet(score=self.task.score)
        found = train_experts(
            self.task,
            self.samples,
            self.oracle.labels,  # type: ignore[attr-defined]  # checked at the start
            self.plan,
            schedule=self._schedule,
            workdir=self._workdir / "experts",
            base_seed=_number(self._key("expert")),
            slots=self._slots,
            side=self._side,
            reporter=reporter,
            say=self._say,
        )
        reporter.close()
        return found

    def _folder_of(self, folder: Path, trained: Trained, place: int) -> Path:
        """The published folder of the network of a row: that of the first with the same set."""
        for other in range(place + 1):
            same = trained.seeds[other] == trained.seeds[place]
            if same and np.array_equal(trained.sets[other], trained.sets[place]):
                break
        row = self._rows[str(trained.names[other]), int(trained.seeds[other])]
        return folder / "seeds" / Member(int(trained.seeds[other]), {"query_set": row}).name

    def _best(self, folder: Path) -> Params:
        template = jax.eval_shape(self.task.init_variables, jax.random.key(0))
        return restore_tree(folder / "best", template)

    def _check(self, trained: Trained, done: Sequence[Trained], folder: Path) -> None:
        """Refuse a round that another run has left in the folder."""
        found = _rows_of(trained)
        expected = list(self._rows)
        if done:
            alive = np.isfinite(done[-1].accuracy).tolist()
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
        if (folder / "query.npz").exists() and not self.plan.keep:
            shutil.rmtree(folder / "seeds", ignore_errors=True)

    def _tell(self, number: int, trained: Trained) -> None:
        for name in dict.fromkeys(trained.names.tolist()):
            scores = trained.accuracy[trained.names == name]
            scores = scores[np.isfinite(scores)]
            mean = f"{scores.mean():.4f}" if scores.size else "failed"
            failed = int((trained.names == name).sum()) - scores.size
            more = f", {failed} failed" if failed else ""
            self._say(
                f"round {number + 1}  {trained.sets.shape[1]} labelled  {name}: test accuracy "
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


def _groups(places: Sequence[int], size: int) -> list[list[int]]:
    return [list(places[start : start + size]) for start in range(0, len(places), size)]


def _number(key: jax.Array) -> int:
    return int(jax.random.bits(key, (), np.uint32)) >> 1


def _rows_of(trained: Trained) -> list[tuple[str, int]]:
    return list(zip(trained.names.tolist(), trained.seeds.tolist(), strict=True))


def _text(rows: Sequence[tuple[str, int]]) -> str:
    names, seeds = dict.fromkeys(n for n, _ in rows), sorted({s for _, s in rows})
    return f"{', '.join(names)} (seeds {', '.join(map(str, seeds))}; {len(rows)} in all)"
