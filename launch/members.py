"""Members of a sweep between a block's folder and the sweep's: published once, by rename.

A member is a folder ``seeds/<seed>[,setting=value]`` with DONE or FAILED in it, at the top of a run
or below one or two names (``poisoned/seeds/0003``). Files are hard links where the file system has
them: a member that is published costs no second copy.
"""

import errno
import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path

MARKERS = ("DONE", "FAILED")
_OTHERS = {"running", "summary", "tensorboard", "xla_cache", "launch", "checkpoints", "rounds"}
# No part of a member, nor of a sweep: each run's own.
_APART = {"seeds", "running", "summary", "tensorboard", "xla_cache", "launch"}
_OF_A_RUN = {"ENDED.json", "config.json", "provenance.jsonl", "strategies.json"}
_DEPTH = 2


def members(run: Path, *, depth: int = _DEPTH) -> Iterator[Path]:
    """Paths of all published members, relative to the run's folder, in order."""
    yield from _below(run, Path(), depth)


def _below(run: Path, place: Path, depth: int) -> Iterator[Path]:
    try:
        names = sorted(entry.name for entry in os.scandir(run / place) if entry.is_dir())
    except FileNotFoundError:
        return
    for name in names:
        if name == "seeds":
            for member in sorted(os.listdir(run / place / name)):
                if any((run / place / name / member / marker).exists() for marker in MARKERS):
                    yield place / name / member
        elif depth and name not in _OTHERS and not name.startswith("."):
            yield from _below(run, place / name, depth - 1)


def seed_of(member: Path) -> int:
    """The seed of a member by its name; -1 where it has none."""
    digits = re.match(r"\d+", member.name)
    return int(digits.group()) if digits else -1


def pattern_of(member: Path) -> str:
    """What a member is besides its seed: ``poisoned/seeds/,rate=0.1``."""
    return f"{member.parent.as_posix()}/{re.sub(r'^[0-9]+', '', member.name)}"


def publish(run: Path, target: Path, *, spare: Path) -> list[Path]:
    """Make every member of a run one of the target's, unless the target has it already.

    Args:
      run: folder of a block's run.
      target: folder of the sweep.
      spare: folder on the target's file system for what is not whole yet.

    Returns:
      The members that were new, relative.
    """
    return [member for member in members(run) if _copy_member(run, target, member, spare)]


def take_over(target: Path, run: Path, seeds: Collection[int], *, spare: Path) -> list[Path]:
    """Give a block's run the members of its seeds that the sweep has already."""
    mine = [member for member in members(target) if seed_of(member) in seeds]
    return [member for member in mine if _copy_member(target, run, member, spare)]


def merge(run: Path, target: Path) -> list[Path]:
    """Give the target every file of an ended run that is no member and that it has not.

    Some experiments keep a file for each seed in place of a folder. What both have stays as the
    target has it, as if the run had been extended by these seeds.

    Returns:
      The files that were new, relative.
    """
    new = []
    for folder, names, files in os.walk(run):
        place = Path(folder).relative_to(run)
        names[:] = sorted(n for n in names if n not in _APART and not n.startswith("."))
        for name in sorted(files):
            if name.startswith(".") or (place == Path() and name in _OF_A_RUN):
                continue
            (target / place).mkdir(parents=True, exist_ok=True)
            try:
                _link(str(run / place / name), str(target / place / name))
                new.append(place / name)
            except FileExistsError:
                pass
    return new


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
