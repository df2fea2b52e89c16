"""How far a block's run is, by its files: what a try gained, and each seed's step."""

import json
from pathlib import Path
from typing import Any

from launch import members


def marks(run: Path) -> list[str]:
    """Names of everything that a restart goes on from: members, checkpoints, published arrays.

    Two tries that leave the same names have gained nothing on each other.
    """
    found = [path.as_posix() for path in members.members(run)]
    for pattern in ("**/running/*/checkpoints/*", "*.npz", "rounds/**/*.npz"):
        for path in run.glob(pattern):
            if not path.name.startswith("."):
                found.append(f"{path.relative_to(run).as_posix()} {path.stat().st_mtime_ns}")
    return sorted(found)


def running(run: Path) -> dict[str, int]:
    """Newest step of each member in training, by its path in the run."""
    steps = {}
    for metrics in run.glob("**/running/*/metrics.jsonl"):
        row = last_row(metrics)
        steps[metrics.parent.relative_to(run).as_posix()] = int(row.get("step", 0))
    return steps


def last_row(metrics: Path) -> dict[str, Any]:
    """The last whole line of a file of JSON lines; empty where there is none."""
    try:
        with metrics.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(file.tell() - 65536, 0))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return {}
    for line in reversed(lines):
        try:
            return json.loads(line)
        except json.JSONDecodeError:
            continue
    return {}


def steps_of(run: Path, member: Path) -> int:
    """Steps that a published member made; 0 where it does not say."""
    for marker in members.MARKERS:
        path = run / member / marker
        if path.exists():
            try:
                return int(json.loads(path.read_text()).get("step", 0))
            except (json.JSONDecodeError, AttributeError):
                return 0
    return 0


def configured_steps(run: Path) -> int:
    """Steps of a training as the run's configuration says; 0 where it does not."""
    try:
        steps = json.loads((run / "config.json").read_text()).get("steps", 0)
    except (FileNotFoundError, json.JSONDecodeError, AttributeError):
        return 0
    return steps if isinstance(steps, int) else 0


def seeds_done(run: Path) -> float:
    """Seeds' worth of training that a run holds: whole seeds, and parts of those in training."""
    published = {members.seed_of(member) for member in members.members(run)}
    parts = parts_of(run)
    return len(published - parts.keys()) + sum(parts.values())


def parts_of(run: Path, *, otherwise: int = 0) -> dict[int, float]:
    """Share of its steps that each seed in training has made; 0 where their number is unknown.

    Args:
      run: folder of a run.
      otherwise: steps of a training where this run does not tell.
    """
    steps = running(run)
    if not steps:
        return {}
    known = [steps_of(run, member) for member in members.members(run)]
    total = max([configured_steps(run), *known]) or otherwise
    shares: dict[int, list[float]] = {}
    for path, step in steps.items():
        share = min(step / total, 1.0) if total else 0.0
        shares.setdefault(members.seed_of(Path(path)), []).append(share)
    return {seed: sum(all_of) / len(all_of) for seed, all_of in shares.items()}
