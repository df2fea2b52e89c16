"""A sweep's folder: one folder a member, worked on in ``running/``, published in ``seeds/``.

A member's folder appears in ``seeds/`` by one rename, when everything in it is written: whatever is
there is whole. Whatever is in ``running/`` is continued from its newest checkpoint.
"""

import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from densejax.training import checkpoint
from densejax.typing import Params, Tree

FRAMES = "frames"


@dataclass(frozen=True)
class Member:
    """One instance of a sweep: its seed and the settings in which it differs from the others."""

    seed: int
    settings: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Folder name, such as ``0007`` or ``0007,learning_rate=0.001``."""
        parts = [f"{name}={value:g}" for name, value in sorted(self.settings.items())]
        return ",".join([f"{self.seed:04d}", *parts])


@dataclass(frozen=True)
class Outcome:
    """How a member ended."""

    member: Member
    status: str  # DONE or FAILED
    step: int
    best_score: float
    best_step: int
    reason: str
    folder: Path


def members_of(seeds: Sequence[int], grid: Mapping[str, Sequence[float]]) -> list[Member]:
    """Every seed at every point of a grid of settings, seeds innermost.

    Members with the same seed share their initial parameters and data order, so that settings are
    compared in pairs.

    Raises:
      ValueError: a seed or a setting's value occurs twice.
    """
    names = sorted(grid)
    found = [
        Member(seed, dict(zip(names, values, strict=True)))
        for values in itertools.product(*(grid[name] for name in names))
        for seed in seeds
    ]
    if len({member.name for member in found}) != len(found):
        raise ValueError(f"seeds {list(seeds)} and grid {dict(grid)} name a member twice")
    return found


def rank_members(scores: Sequence[float]) -> np.ndarray:
    """Positions of members from the best score to the worst, [k] int; ties to the lowest index.

    Members without a finite score come last.
    """
    values = np.asarray(scores, np.float64)
    return np.argsort(np.where(np.isfinite(values), -values, np.inf), kind="stable")


def ranked(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Members that are done, from the best score to the worst; ties in the order given."""
    done = [outcome for outcome in outcomes if outcome.status == "DONE"]
    return [done[index] for index in rank_members([outcome.best_score for outcome in done])]


def best_parameters(folders: Sequence[Path], init_params: Callable[[Any], Params]) -> Params:
    """Best parameters of some published members, stacked, [k, ...].

    Args:
      folders: of the members.
      init_params: fresh parameters from a key, for the structure.

    Raises:
      FileNotFoundError: a member has none.
      ValueError: a checkpoint is damaged or holds another network's parameters.
    """
    template = jax.eval_shape(init_params, jax.random.key(0))
    best = [checkpoint.restore_tree(folder / "best", template) for folder in folders]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *best)


class MemberFolder:
    """Files of one member while it runs."""

    def __init__(self, workdir: Path, member: Member) -> None:
        self.member = member
        self.path = workdir / "running" / member.name
        self.published = workdir / "seeds" / member.name
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"

    def outcome(self) -> Outcome | None:
        """The published outcome, or None for a member that has not ended."""
        for status in ("DONE", "FAILED"):
            marker = self.published / status
            if marker.exists():
                fields = json.loads(marker.read_text())
                if fields["best_score"] is None:
                    fields["best_score"] = -math.inf
                # A kill between the rename and this deletion leaves the checkpoints behind.
                shutil.rmtree(self.published / "checkpoints", ignore_errors=True)
                return Outcome(self.member, status, folder=self.published, **fields)
        return None

    def restore(self, template: Tree, *, report: Any = print) -> Tree | None:
        """The newest checkpoint's slot; metrics written after it are cut off."""
        self.path.mkdir(parents=True, exist_ok=True)
        whole = {"slot": template, "metrics_bytes": _int64()}
        found = checkpoint.restore_newest(self.checkpoints, whole, report=report)
        size = int(found["metrics_bytes"][0]) if found else 0
        if self.metrics.exists() and self.metrics.stat().st_size > size:
            with self.metrics.open("r+b") as file:
                file.truncate(size)
        return found["slot"] if found else None

    def frame(self, step: int) -> Path:
        """Where the frame of a step is kept (``sweep.Recording``)."""
        return self.path / FRAMES / f"{step:010d}.npz"

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one row to ``metrics.jsonl``."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(dict(row)) + "\n")

    def save(self, step: int, slot: Tree) -> None:
        """Checkpoint a slot together with the length of the metrics that belong to it."""
        size = 0
        if self.metrics.exists():
            with self.metrics.open("rb") as file:
                os.fsync(file.fileno())
            size = self.metrics.stat().st_size
        checkpoint.save_step(
            self.checkpoints, step, {"slot": slot, "metrics_bytes": _int64() + size}
        )

    def publish(self, outcome: Outcome, best: Params, last: Params) -> None:
        """Write the parameters and the marker, then rename the folder to its place in seeds."""
        for name, params in (("best", best), ("last", last)):
            shutil.rmtree(self.path / name, ignore_errors=True)
            checkpoint.save_tree(self.path / name, params)
        fields = {name: getattr(outcome, name) for name in ("step", "best_score", "best_step")}
        if math.isinf(outcome.best_score):
            fields["best_score"] = None  # never evaluated; JSON has no infinity
        (self.path / outcome.status).write_text(json.dumps(fields | {"reason": outcome.reason}))
        self.published.parent.mkdir(parents=True, exist_ok=True)
        self.path.rename(self.published)
        shutil.rmtree(self.published / "checkpoints", ignore_errors=True)


def _int64() -> np.ndarray:
    return np.zeros(1, np.int64)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a ``metrics.jsonl``; a last line that a kill cut short is left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def read_curves(outcomes: Sequence[Outcome], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a measure of every member: steps [t] and values [k, t], nan where it was not taken."""
    tables = [
        {row["step"]: row[name] for row in read_metrics(o.folder / "metrics.jsonl") if name in row}
        for o in outcomes
    ]
    steps = sorted(set().union(*tables))
    values = [[table.get(step, np.nan) for step in steps] for table in tables]
    return np.array(steps), np.array(values, float)


def frames_of(folder: str | Path) -> list[tuple[int, Path]]:
    """Steps and files of a member's frames, in the order of training.

    Args:
      folder: of the member, such as ``RUN/seeds/0007``.

    Returns:
      Nothing where no frame was recorded. ``numpy.load`` opens a file.
    """
    return sorted((int(path.stem), path) for path in (Path(folder) / FRAMES).glob("*.npz"))
