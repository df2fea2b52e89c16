"""A sweep's ``launch`` folder: what runs, in which blocks, and what became of each.

launch/sweep.json           module and flags; never changed
launch/submissions.jsonl    a line for each submission: jobs, their blocks, resources
launch/blocks/0025/         the block that begins with seed 25
    block.json              its seeds; never changed
    attempts.jsonl          a line for each start and each end
    log.txt                 what the experiment said
    work.free, ... or run/  its run: see work
launch/leases/0025.000000.lease  who works on the block, while somebody does
launch/slurm/               files of submitit and logs of the jobs
"""

import contextlib
import json
import os
import shlex
import shutil
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from densejax import io
from launch import work
from launch.experiment import Experiment


@dataclass(frozen=True)
class Block:
    """Seeds that are trained together, in a folder."""

    folder: Path
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        """Its first seed, such as ``0025``."""
        return self.folder.name

    def ending(self) -> dict[str, Any] | None:
        """What it ended with: ``failed`` members and ``time``; None while it has not."""
        path = self.folder / work.ENDED / "ENDED.json"
        return json.loads(path.read_text()) if path.exists() else None

    def note(self, event: str, **fields: Any) -> None:
        """Add a line to the block's attempts."""
        append(self.folder / "attempts.jsonl", {"event": event, "time": time.time()} | fields)

    def attempts(self) -> list[dict[str, Any]]:
        """All lines of the block's attempts, oldest first."""
        return read_lines(self.folder / "attempts.jsonl")


@dataclass(frozen=True)
class Sweep:
    """A sweep that was launched in a folder."""

    workdir: Path
    experiment: Experiment

    @property
    def folder(self) -> Path:
        """Of everything that launch keeps."""
        return self.workdir / "launch"

    @property
    def spare(self) -> Path:
        """For what is not whole yet."""
        return self.folder / "incoming"

    def blocks(self) -> list[Block]:
        """All blocks, by their first seeds."""
        found = []
        for folder in sorted((self.folder / "blocks").glob("[0-9]*")):
            # Another process may withdraw one whose seeds turned out to be taken.
            with contextlib.suppress(FileNotFoundError):
                fields = json.loads((folder / "block.json").read_text())
                found.append(Block(folder, tuple(fields["seeds"])))
        return sorted(found, key=lambda block: block.seeds[0])

    def add(self, seeds: Sequence[int], size: int) -> list[Block]:
        """Divide seeds into blocks and begin those that are not there; returns all, in order.

        Raises:
          ValueError: a seed is in another block already, of other seeds.
        """
        wanted = in_blocks(seeds, size)
        self._refuse_overlap(wanted)
        new = [folder for part in wanted if (folder := self._begin_block(part)) is not None]
        try:
            # Somebody else may have added other blocks in the meantime.
            self._refuse_overlap(wanted)
        except ValueError:
            for folder in new:
                remove(folder)
            raise
        return [Block(self._folder_of(part), part) for part in wanted]

    def submissions(self) -> list[dict[str, Any]]:
        """All submissions, oldest first."""
        return read_lines(self.folder / "submissions.jsonl")

    def _folder_of(self, seeds: tuple[int, ...]) -> Path:
        return self.folder / "blocks" / f"{seeds[0]:04d}"

    def _begin_block(self, seeds: tuple[int, ...]) -> Path | None:
        place = self._folder_of(seeds)
        partial = self.spare / uuid.uuid4().hex
        work.make_free(partial)
        (partial / "block.json").write_text(json.dumps({"seeds": seeds}) + "\n")
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.rename(place)
        except OSError:
            shutil.rmtree(partial)
            return None  # it is there already
        return place

    def _refuse_overlap(self, wanted: Sequence[tuple[int, ...]]) -> None:
        taken = {seed: block for block in self.blocks() for seed in block.seeds}
        for part in wanted:
            others = {taken[seed] for seed in part if seed in taken and taken[seed].seeds != part}
            if others:
                other = min(others, key=lambda block: block.seeds)
                both = write_seeds(set(part) & set(other.seeds))
                raise ValueError(
                    f"seeds {both} are in a block of {self.workdir} already, that of seeds "
                    f"{write_seeds(other.seeds)}: name seeds outside of it, give the same --block, "
                    "or finish what is there by python -m launch.retry "
                    f"{shlex.quote(str(self.workdir))}"
                )


def begin(workdir: Path, experiment: Experiment) -> Sweep:
    """Begin a sweep, or go on with the one in the folder; a ValueError where that is another."""
    sweep = Sweep(workdir.absolute(), experiment)
    path = sweep.folder / "sweep.json"
    sweep.spare.mkdir(parents=True, exist_ok=True)
    partial = sweep.spare / uuid.uuid4().hex
    partial.write_text(json.dumps(asdict(experiment), indent=1) + "\n")
    with contextlib.suppress(FileExistsError):
        os.link(partial, path)
    partial.unlink()
    before = open_sweep(workdir).experiment
    if before.module != experiment.module or sorted(before.flags) != sorted(experiment.flags):
        raise ValueError(
            f"{path} is of another sweep: it has {_written(before)}, asked for is "
            f"{_written(experiment)}. Name another --workdir."
        )
    return sweep


def open_sweep(workdir: Path) -> Sweep:
    """The sweep of a folder; a ValueError where nothing was launched, as far as can be seen."""
    workdir = workdir.absolute()
    path = workdir / "launch" / "sweep.json"
    try:
        fields = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(
            f"{path} is not there: nothing was launched in {workdir}, or this machine "
            f"({os.uname().nodename}) does not see the folder that the others share"
        ) from None
    return Sweep(workdir, Experiment(**(fields | {"flags": tuple(fields["flags"])})))


def in_blocks(seeds: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """Blocks of ``size`` seeds in their order, each sorted; the last may be smaller."""
    if size < 1:
        raise ValueError(f"block must be at least 1 seed, found {size}")
    return [tuple(sorted(seeds[start : start + size])) for start in range(0, len(seeds), size)]


def write_seeds(seeds: Iterable[int]) -> str:
    """The shortest text that ``parse_seeds`` reads as these seeds, in ascending order."""
    ranges: list[list[int]] = []
    for seed in sorted(seeds):
        if ranges and ranges[-1][1] == seed:
            ranges[-1][1] += 1
        else:
            ranges.append([seed, seed + 1])
    return ",".join(f"{a}" if b == a + 1 else f"{a}:{b}" for a, b in ranges)


def append(path: Path, fields: dict[str, Any]) -> None:
    """Add a line to a file of lines of JSON, in one write."""
    # A line of its own also after one that a kill has cut short.
    cut = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size
    line = (("\n" if cut else "") + json.dumps(fields) + "\n").encode()
    with path.open("ab", buffering=0) as file:
        file.write(line)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Lines of JSON; a line that a kill cut short is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def write_whole(path: Path, content: Any) -> None:
    """Write text, or anything else as JSON, to a file that is there whole or not at all."""
    io.write_text(path, content if isinstance(content, str) else json.dumps(content) + "\n")


def remove(folder: Path) -> None:
    """Delete a folder in one step for all who look, then for good."""
    if folder.is_dir():
        doomed = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _written(experiment: Experiment) -> str:
    return " ".join([experiment.module, *sorted(experiment.flags)])
