"""Members of a run: published once, by rename, from a block's folder to the sweep's; how many.

A member is a folder ``seeds/<seed>[,setting=value]`` with DONE or FAILED in it, at the top of a run
or below one or two names (``poisoned/seeds/0003``). Files are hard links where the file system has
them: a member that is published costs no second copy.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

_MARKERS = ("DONE", "FAILED")
_OTHERS = {"running", "summary", "tensorboard", "xla_cache", "launch", "checkpoints", "rounds"}
# No part of a member, nor of a sweep: each run's own.
_APART = {"seeds", "running", "summary", "tensorboard", "xla_cache", "launch"}
_OF_A_RUN = {"ENDED.json", "config.json", "provenance.jsonl", "strategies.json"}


def members(run: Path, *, place: Path = Path(), depth: int = 2) -> Iterator[Path]:
    """Paths of all published members, relative to the run's folder, in order."""
    try:
        names = sorted(entry.name for entry in os.scandir(run / place) if entry.is_dir())
    except FileNotFoundError:
        return
    for name in names:
        if name == "seeds":
            for member in sorted(os.listdir(run / place / name)):
                if any((run / place / name / member / marker).exists() for marker in _MARKERS):
                    yield place / name / member
        elif depth and name not in _OTHERS and not name.startswith("."):
            yield from members(run, place=place / name, depth=depth - 1)


def seed_of(member: Path) -> int:
    """The seed of a member by its name; -1 where it has none."""
    digits = re.match(r"\d+", member.name)
    return int(digits.group()) if digits else -1


def pattern_of(member: Path) -> str:
    """What a member is besides its seed: ``poisoned/seeds/,rate=0.1``."""
    return f"{member.parent.as_posix()}/{re.sub(r'^[0-9]+', '', member.name)}"


def publish(run: Path, target: Path, *, spare: Path) -> list[Path]:
    """Make every member of a run one of the target's; returns those that were new, relative.

    What is not whole yet lies in ``spare``, a folder on the target's file system.
    """
    return [member for member in members(run) if _copy_member(run, target, member, spare)]


def take_over(target: Path, run: Path, seeds: Collection[int], *, spare: Path) -> list[Path]:
    """Give a block's run the members of its seeds that the sweep has already."""
    mine = [member for member in members(target) if seed_of(member) in seeds]
    return [member for member in mine if _copy_member(target, run, member, spare)]


def merge(run: Path, target: Path) -> None:
    """Give the target every file of an ended run that is no member and that it has not.

    Some experiments keep a file for each seed in place of a folder. What both have stays as the
    target has it, as if the run had been extended by these seeds.
    """
    for folder, names, files in os.walk(run):
        place = Path(folder).relative_to(run)
        names[:] = sorted(n for n in names if n not in _APART and not n.startswith("."))
        for name in sorted(files):
            if name.startswith(".") or (place == Path() and name in _OF_A_RUN):
                continue
            (target / place).mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                _link(str(run / place / name), str(target / place / name))


def _copy_member(source: Path, target: Path, member: Path, spare: Path) -> bool:
    if (target / member).exists():
        return False
    partial = spare / uuid.uuid4().hex
    try:
        shutil.copytree(
            source / member,
            partial,
            copy_function=_link,
            # The sweep that publishes a member is removing them just then.
            ignore=shutil.ignore_patterns("checkpoints"),
        )
        (target / member).parent.mkdir(parents=True, exist_ok=True)
        partial.rename(target / member)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False  # another process was first
        raise
    return True


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        partial = f"{target}.{uuid.uuid4().hex}"
        shutil.copy2(source, partial)
        os.rename(partial, target)


def marks(run: Path) -> list[str]:
    """Names of everything that a restart goes on from: members, checkpoints, published arrays.

    Two tries that leave the same names have gained nothing on each other.
    """
    found = [path.as_posix() for path in members(run)]
    for pattern in ("**/running/*/checkpoints/*", "*.npz", "rounds/**/*.npz"):
        for path in run.glob(pattern):
            if not path.name.startswith("."):
                found.append(f"{path.relative_to(run).as_posix()} {path.stat().st_mtime_ns}")
    return sorted(found)


def _last_row(metrics: Path) -> dict[str, Any]:
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
    return max(_number(run / member / marker, "step") for marker in _MARKERS)


def _number(path: Path, name: str) -> int:
    try:
        number = json.loads(path.read_text()).get(name, 0)
    except (FileNotFoundError, json.JSONDecodeError, AttributeError):
        return 0
    return number if isinstance(number, int) else 0


def seeds_done(run: Path) -> float:
    """Seeds' worth of training that a run holds: whole seeds, and parts of those in training."""
    published = {seed_of(member) for member in members(run)}
    parts = parts_of(run)
    return len(published - parts.keys()) + sum(parts.values())


def parts_of(run: Path, *, otherwise: int = 0) -> dict[int, float]:
    """Share of its steps that each seed in training has made; 0 where their number is unknown.

    ``otherwise`` are the steps of a training where this run does not tell.
    """
    steps = {
        metrics.parent: int(_last_row(metrics).get("step", 0))
        for metrics in run.glob("**/running/*/metrics.jsonl")
    }
    if not steps:
        return {}
    known = [steps_of(run, published) for published in members(run)]
    total = max([_number(run / "config.json", "steps"), *known]) or otherwise
    shares: dict[int, list[float]] = {}
    for member, step in steps.items():
        share = min(step / total, 1.0) if total else 0.0
        shares.setdefault(seed_of(member), []).append(share)
    return {seed: sum(all_of) / len(all_of) for seed, all_of in shares.items()}
