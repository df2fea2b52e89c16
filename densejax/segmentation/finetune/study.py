"""The correction loop with a simulated annotator: predict, rank, correct, train on; arm by arm.

An arm is a rule for which blocks are corrected. All arms of a repeat start from the same ensemble,
on the same worlds, and make the same number of steps; the arm ``none`` corrects nothing and only
trains longer, so that what corrections are worth is not taken for what steps are worth. The score
is taken on a held-out world that no arm may correct.
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densejax import metrics
from densejax.data.datasets import LabelledVolume
from densejax.data.extra_windows import Patch, cut_patch, extra_arrays
from densejax.data.windows import Sizes
from densejax.inference.sliding_window import Prediction, predict_volume
from densejax.inference.tiles import Windowing
from densejax.io import write_text
from densejax.plots.curves import round_curves
from densejax.population import Population
from densejax.segmentation.finetune.continued import Continued
from densejax.segmentation.finetune.export import ScoredBlocks, box_at, choose_blocks, score_blocks
from densejax.segmentation.task import WindowTask
from densejax.training.checkpoint import restore_tree
from densejax.training.folders import members_of, rank_members
from densejax.training.logs import Reporter
from densejax.training.sweep import Schedule, Sweep
from densejax.typing import Batch, Params

Corner = tuple[int, int, int]
ARMS = ("disagreement", "entropy", "random", "none")
SCORES = {
    "held_out": "MIoU, held-out world",
    "organelles": "MIoU(org), held-out world",
    "unseen": "MIoU, corrected world, as predicted",
    "repaired": "MIoU, corrected world, with the corrections",
}


@dataclass(frozen=True)
class Row:
    """The ensemble of one arm after one round.

    Attributes:
      repeat: number of the repeat.
      arm: of ``ARMS``.
      round: 0 is before any correction.
      voxels: corrected so far.
      wrong: share of the voxels of this round's blocks that the ensemble had wrong, before.
      held_out: MIoU on the held-out world.
      organelles: MIoU(org) on it.
      unseen: MIoU on the world that is corrected, as predicted.
      repaired: the same with the corrected voxels as the annotator left them.
    """

    repeat: int
    arm: str
    round: int
    voxels: int
    wrong: float
    held_out: float
    organelles: float
    unseen: float
    repaired: float


@dataclass(frozen=True)
class Loop:
    """What all arms of a repeat share.

    Attributes:
      start: the task of the first training.
      plain: the task of a round without corrections: windows of the training world alone.
      mixed: the task of a round: windows of the training world and around corrected voxels.
      data: the sweep's arrays without corrections.
      class_weights: [c], error weight of a corrected voxel of each class.
      unseen: the world that is predicted and corrected.
      held_out: the world that scores.
      organelles: classes of MIoU(org).
      window: (z, y, x) of the network's input.
      output: (z, y, x) of its output.
      members: networks in the ensemble.
      first: schedule of the first training.
      further: schedule of a round.
      block: (z, y, x) of a corrected block, voxels.
      blocks: corrected a round.
      seed: of the repeat.
      workdir: of the repeat.
    """

    start: WindowTask
    plain: WindowTask
    mixed: WindowTask
    data: Batch
    class_weights: np.ndarray
    unseen: LabelledVolume
    held_out: LabelledVolume
    organelles: tuple[int, ...]
    window: Sizes
    output: Sizes
    members: int
    first: Schedule
    further: Schedule
    block: Sizes
    blocks: int
    seed: int
    workdir: Path

    def train(
        self, folder: str, *, start: Sequence[Params] = (), patches: Sequence[Patch] = ()
    ) -> list[Params]:
        """Train an ensemble, or train one on; its members' best parameters, best ranked first.

        Raises:
          RuntimeError: a member failed.
        """
        task, extra = self.plain if start else self.start, {}
        if patches:
            task, extra = self.mixed, extra_arrays(patches, class_weights=self.class_weights)
        outcomes = Sweep(
            task,
            {**self.data, **extra},
            members_of(range(self.members), {}),
            workdir=self.workdir / folder,
            schedule=self.further if start else self.first,
            base_seed=self.seed,
            reporter=_Quiet(score=task.score),
            begin=Continued(tuple(start)).begin,
        ).run()
        failed = [o.folder for o in outcomes if o.status == "FAILED"]
        if failed:
            raise RuntimeError(f"{failed[0]}: {outcomes[0].reason}")
        template = jax.eval_shape(self.plain.init_params, jax.random.key(0))
        order = rank_members([o.best_score for o in outcomes])
        return [restore_tree(outcomes[i].folder / "best", template) for i in order]

    @cached_property
    def _program(self) -> tuple[Population, Any]:
        """All members' probabilities of a window, compiled once for all rounds and arms."""
        population = Population(self.members)

        def one(params: Params, tile: jax.Array) -> jax.Array:
            logits = self.plain.network(params, tile[None, ..., None])[0][0]
            return jax.nn.softmax(jnp.asarray(logits, jnp.float32), axis=-1)

        return population, population.map(one, shared=(1,), name="prediction")

    def predict(self, members: Sequence[Params], volume: LabelledVolume) -> Prediction:
        """The ensemble's labels, entropy and disagreement of a world."""
        population, program = self._program
        placed = population.place(jax.tree.map(lambda *leaves: np.stack(leaves), *members))
        return predict_volume(
            lambda tile: population.fetch(program(placed, population.replicate(tile))),
            volume.images,
            Windowing(self.window, self.output, (0, self.output[1] // 4, self.output[2] // 4)),
        )

    def patch(self, corner: Corner) -> Patch:
        """What the annotator gives back of a block: the truth."""
        grey = self.unseen.images
        return cut_patch(
            grey,
            self.unseen.labels[box_at(corner, self.block)],
            corner,
            input_window=self.window,
            output_window=self.output,
            mean=grey.mean(dtype=np.float64),
            deviation=grey.std(dtype=np.float64),
            name=self.unseen.name,
        )


class _Quiet(Reporter):
    """Says nothing but warnings: a study has many short sweeps."""

    def say(self, line: str) -> None:
        if line.startswith("warning"):
            super().say(line)


def run_repeat(
    loop: Loop, *, repeat: int, arms: Sequence[str], rounds: int, tell: Callable[[Row], None]
) -> list[Row]:
    """All arms of one repeat.

    Args:
      loop: what they share.
      repeat: its number, for the rows.
      arms: of ``ARMS``.
      rounds: of correction and training on.
      tell: is given each row as soon as it is there.

    Returns:
      One row an arm and round, round 0 included.
    """
    first = loop.train("first")
    start = (loop.predict(first, loop.unseen), loop.predict(first, loop.held_out))
    rows = []
    for arm in arms:
        members, (unseen, held_out) = first, start
        corrected = np.zeros(loop.unseen.labels.shape, bool)
        corners: list[Corner] = []
        rows.append(_row(loop, (repeat, arm, 0), corrected, np.nan, unseen, held_out))
        tell(rows[-1])
        for number in range(1, rounds + 1):
            chosen = _choose(loop, arm, unseen, corners, number)
            corners += chosen
            boxes = [box_at(corner, loop.block) for corner in chosen]
            wrong = [np.mean(unseen.labels[box] != loop.unseen.labels[box]) for box in boxes]
            for box in boxes:
                corrected[box] = True
            members = loop.train(
                f"{arm}/round_{number}",
                start=members,
                patches=[loop.patch(corner) for corner in corners],
            )
            unseen = loop.predict(members, loop.unseen)
            held_out = loop.predict(members, loop.held_out)
            share = float(np.mean(wrong)) if wrong else np.nan
            rows.append(_row(loop, (repeat, arm, number), corrected, share, unseen, held_out))
            tell(rows[-1])
    return rows


def _choose(
    loop: Loop, arm: str, unseen: Prediction, corners: Sequence[Corner], number: int
) -> list[Corner]:
    """Corners of the blocks that an arm has corrected in a round."""
    if arm == "none":
        return []
    doubt = unseen.entropy if arm == "entropy" else unseen.disagreement
    scored = score_blocks(
        np.rint(255 * doubt).astype(np.uint8), unseen.labels.astype(np.uint8), shape=loop.block
    )
    if arm == "random":
        order = np.random.default_rng([loop.seed, number]).random(len(scored.scores))
        scored = ScoredBlocks(scored.corners, order, loop.block)
    chosen = choose_blocks(
        scored,
        count=loop.blocks,
        voxel_nm=loop.unseen.voxel_nm,
        taken=[(corner, loop.block) for corner in corners],
    )
    z, y, x = scored.corners[chosen].T.tolist()
    return list(zip(z, y, x, strict=True))


def _row(
    loop: Loop,
    place: tuple[int, str, int],
    corrected: np.ndarray,
    wrong: float,
    unseen: Prediction,
    held_out: Prediction,
) -> Row:
    truth, classes = loop.unseen.labels, len(loop.unseen.class_names)
    repaired = np.where(corrected, truth, unseen.labels)
    tables = [
        np.asarray(metrics.confusion_counts(labels, found.astype(np.int32), classes=classes))
        for labels, found in (
            (loop.held_out.labels, held_out.labels),
            (truth, unseen.labels),
            (truth, repaired),
        )
    ]
    scores = [float(metrics.mean_iou(table)) for table in tables]
    organelles = float(metrics.mean_iou(tables[0], classes=loop.organelles))
    return Row(*place, int(corrected.sum()), wrong, scores[0], organelles, scores[1], scores[2])


def paired_difference(
    rows: Sequence[Row], arm: str, other: str, *, score: str = "held_out"
) -> Mapping[str, float]:
    """Difference of two arms' scores after the last round, over repeats.

    Args:
      rows: of all repeats.
      arm: whose score counts positive.
      other: whose counts negative.
      score: a field of ``Row``.

    Returns:
      ``mean``, ``error`` (standard error of the mean; nan for one repeat), ``wins`` (repeats in
      which the arm is above), ``repeats``, and ``p``, two-sided, by flipping the signs of the
      repeats in every way, or in 10 000 random ways beyond 13 repeats.
    """
    last = max(row.round for row in rows)
    by = {
        name: {r.repeat: getattr(r, score) for r in rows if r.arm == name and r.round == last}
        for name in (arm, other)
    }
    both = sorted(by[arm].keys() & by[other].keys())
    gaps = np.array([by[arm][repeat] - by[other][repeat] for repeat in both])
    n = len(gaps)
    if n <= 13:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        signs = np.random.default_rng(0).choice([-1, 1], (10_000, n))
    # Sums of equal gaps in another order differ in the last bit; those count as equal.
    extreme = np.abs(signs @ gaps) >= abs(gaps.sum()) * (1 - 1e-9)
    error = float(gaps.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    return {
        "mean": float(gaps.mean()),
        "error": error,
        "wins": int((gaps > 0).sum()),
        "repeats": n,
        "p": float(extreme.mean()),
    }


def print_row(row: Row) -> None:
    """One line an ensemble."""
    wrong = f", {100 * row.wrong:.1f} % had been wrong" if np.isfinite(row.wrong) else ""
    print(
        f"repeat {row.repeat}, {row.arm}, round {row.round}: held-out MIoU {row.held_out:.4f} "
        f"(org {row.organelles:.4f}), corrected world {row.unseen:.4f} -> {row.repaired:.4f}, "
        f"{row.voxels:,} voxels corrected{wrong}",
        flush=True,
    )


def report(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write the summary of a study.

    Args:
      rows: of all repeats.
      folder: for the files; what an earlier summary left there is replaced.

    Returns:
      The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "rows.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    findings = folder / "findings.md"
    write_text(findings, _findings(rows))
    print(findings.read_text())
    curves = [_curves(rows, n, folder / f"{n}.png") for n in ("held_out", "repaired")]
    return [table, findings, *curves]


def _arms(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.arm for row in rows))


def _means(rows: Sequence[Row], arm: str, score: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error over repeats of one arm's score after each round, [t] each."""
    rounds = range(max(row.round for row in rows) + 1)
    values = [
        [getattr(r, score) for r in rows if r.arm == arm and r.round == number] for number in rounds
    ]
    errors = [np.std(v, ddof=1) / np.sqrt(len(v)) if len(v) > 1 else np.nan for v in values]
    return np.array([np.mean(v) for v in values]), np.array(errors)


def _findings(rows: Sequence[Row]) -> str:
    arms, last = _arms(rows), max(row.round for row in rows)
    repeats = len({row.repeat for row in rows})
    lines = [f"# The correction loop, {repeats} repeats, {last} rounds", ""]
    for score, title in SCORES.items():
        lines += [f"{title}, mean over repeats (standard error of the mean):", ""]
        found = {arm: zip(*_means(rows, arm, score), strict=True) for arm in arms}
        cells = {arm: [f"{m:.4f} ({e:.4f})" for m, e in pairs] for arm, pairs in found.items()}
        lines += [*_table(cells, range(last + 1)), ""]
    lines += ["Share of the corrected voxels that had been wrong, per cent:", ""]
    shares = {arm: 100 * _means(rows, arm, "wrong")[0][1:] for arm in arms if arm != "none"}
    cells = {arm: [f"{share:.1f}" for share in found] for arm, found in shares.items()}
    lines += _table(cells, range(1, last + 1))
    lines += ["", f"Paired over repeats, after round {last}:", ""]
    for other in ("random", "none"):
        for arm in arms:
            if arm != other and other in arms and arm != "none":
                lines += [_contrast(rows, arm, other, score) for score in ("held_out", "repaired")]
    return "\n".join(lines) + "\n"


def _table(cells: Mapping[str, Sequence[str]], rounds: Sequence[int]) -> list[str]:
    rows = {"arm": [f"round {number}" for number in rounds], **cells}
    lines = [f"| {arm} | " + " | ".join(texts) + " |" for arm, texts in rows.items()]
    return [lines[0], "|---" * (len(rounds) + 1) + "|", *lines[1:]]


def _contrast(rows: Sequence[Row], arm: str, other: str, score: str) -> str:
    found = paired_difference(rows, arm, other, score=score)
    verdict = "told apart" if found["p"] < 0.05 else "not told apart"
    chance = f"p = {found['p']:.3f}" if found["p"] >= 0.001 else "p < 0.001"
    return (
        f"- {arm} - {other}, {SCORES[score]}: {found['mean']:+.4f} (error {found['error']:.4f}), "
        f"above in {found['wins']} of {found['repeats']}, {chance}: {verdict}"
    )


def _curves(rows: Sequence[Row], score: str, path: Path) -> Path:
    """Mean over repeats with its standard error, over the voxels corrected so far."""
    # The arm that corrects nothing is drawn beside the others, at the same rounds.
    steps = np.max([_means(rows, arm, "voxels")[0] for arm in _arms(rows)], axis=0)
    steps = steps if steps.any() else np.arange(len(steps))
    found = {arm: _means(rows, arm, score) for arm in _arms(rows)}
    names = {"none": "no corrections, trained as long"}
    round_curves(
        steps,
        {names.get(arm, arm): means for arm, (means, _) in found.items()},
        path=path,
        intervals={
            names.get(arm, arm): (means - errors, means + errors)
            for arm, (means, errors) in found.items()
            if np.isfinite(errors).all()
        }
        or None,
        label=SCORES[score],
        x_label="corrected voxels",
        band_label="standard error of the mean",
    )
    return path
