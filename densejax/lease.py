"""Who works on which block: several processes, on one host or many, share one folder.

Beside the results lie small files, one folder for all. A *lease* is made by exclusive creation and
holds while its holder runs; its time of change is the holder's heartbeat. A lease whose holder is
dead (a process of this host that is gone, a job that its scheduler no longer has, or another host
whose heartbeat has stopped) is passed over by creating the block's next generation, exclusively
again, so that nothing is ever taken out of another's hands. A *done mark* appears by rename when
the block's result is on disk. Killed at any moment, a block is either done or leased by somebody
dead, and is taken again as a whole. This module imports no jax.
"""

import contextlib
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from densejax.io import write_json, write_text

HEARTBEAT_S = 10.0
# A host that has not been heard of for so long is taken for dead. Network disks show times of
# change up to a minute late.
SILENT_S = 180.0
# Leases of predictions and sweeps that version 0.1 began are called claims.
_KINDS = ("lease", "claim")


class HeldError(RuntimeError):
    """A living process works on the block."""


class LostError(RuntimeError):
    """Another process has taken the block over."""


@dataclass(frozen=True)
class Holder:
    """A process that may hold leases.

    Attributes:
      host: name of its machine, for people.
      pid: number of the process there.
      place: where numbers of processes mean the same: this boot of this host, in this container.
      started: when it began, so that a number used again is not mistaken for it.
      job: the scheduler's number of its job, such as ``812_3``; empty for none.
    """

    host: str = ""
    pid: int = 0
    place: str = ""
    started: str | None = None
    job: str = ""

    def __str__(self) -> str:
        return f"{f'job {self.job}' if self.job else f'process {self.pid}'} on {self.host}"


def this_process(*, host: str = "", job: str = "") -> Holder:
    """Return the holder that the running process is, under its machine's name or another."""
    pid = os.getpid()
    return Holder(host or platform.node(), pid, _place(), process_start(pid), job)


class Leases:
    """Leases and done marks of blocks in a folder; as a context it beats, and releases at its end.

    Without the context, whoever acquires a lease renews it by hand.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str] = (),
        *,
        holder: Holder | None = None,
        gone: Callable[[Holder], bool | None] = lambda holder: None,
        heartbeat_s: float = HEARTBEAT_S,
        silent_s: float = SILENT_S,
    ) -> None:
        """Nothing is taken, and nothing written, yet.

        Args:
          folder: made when a lease is taken.
          names: of all blocks, in the order in which they lie; the same for every process.
          holder: who takes leases here; None is the running process.
          gone: asked first whether a holder is gone, such as a scheduler; None is unknown.
          heartbeat_s: seconds between signs of life.
          silent_s: seconds without such a sign after which a holder counts as dead, where neither
            ``gone`` nor this host's list of processes tells.
        """
        self.folder, self.names = Path(folder), list(names)
        self.holder = holder or this_process()
        self._gone, self._heartbeat, self._silent = gone, heartbeat_s, silent_s
        self._held: dict[str, Path] = {}
        self._done: set[str] = set()
        self._last = -1
        self._lock = threading.RLock()  # a signal's handler may release what it interrupts
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Leases":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        for name in list(self._held):
            self.release(name)

    def take(self) -> str | None:
        """Take a block that nobody has: the one after the last, else amid the longest free run.

        Returns:
          Its name, or None if every block is done or held by a running process.
        """
        passed: set[str] = set()
        while True:
            done, newest = self._list()
            free = [
                place
                for place, name in enumerate(self.names)
                if name not in done and name not in passed and not self._living(newest.get(name))
            ]
            if not free:
                return None
            place = self._choose(free, started=bool(newest or done))
            name = self.names[place]
            if self._create(name, newest.get(name)):
                self._last = place
                return name
            passed.add(name)

    def acquire(self, name: str) -> None:
        """Take one block, whether it is marked as done or not.

        Raises:
          HeldError: a living process has it.
        """
        while True:
            path = self._list()[1].get(name)
            if (holder := self._living(path)) is not None:
                raise HeldError(f"block {name} is worked on by {holder}")
            if self._create(name, path, again=True):
                return

    def renew(self, name: str) -> None:
        """Say that the holder of a block lives.

        Raises:
          LostError: the block is another's now.
        """
        path = self._held.get(name)
        try:
            if path is None or self._list()[1].get(name) != path or not self._is_mine(path):
                raise FileNotFoundError
            os.utime(path)
        except FileNotFoundError:
            raise LostError(f"block {name} was taken over by another process") from None

    def living(self) -> dict[str, Holder]:
        """Return the living holders of all blocks that have one, by the blocks' names."""
        holders = {name: self._living(path) for name, path in self._list()[1].items()}
        return {name: holder for name, holder in holders.items() if holder is not None}

    def finish(self, name: str, record: Any) -> None:
        """Mark a block done, after its voxels are on disk, with what is to be known of it."""
        write_json(self.folder / f"{name}.done", record, indent=None, durable=True)
        self._done.add(name)
        self.release(name)

    def release(self, name: str) -> None:
        """Give a lease back."""
        with self._lock:
            path = self._held.pop(name, None)
        if path is not None and self._is_mine(path):
            path.unlink(missing_ok=True)

    def done(self) -> set[str]:
        """Return the names of the blocks that are done, by whomever."""
        return self._list()[0] & set(self.names)

    def records(self) -> dict[str, Any]:
        """Return what is known of every block that is done."""
        return {
            name: json.loads((self.folder / f"{name}.done").read_text())
            for name in sorted(self.done())
        }

    def _list(self) -> tuple[set[str], dict[str, Path]]:
        """Blocks that are done, and the newest lease on each."""
        newest: dict[str, tuple[int, Path]] = {}
        done = set(self._done)
        for entry in os.listdir(self.folder) if self.folder.exists() else []:
            name, _, rest = entry.partition(".")
            number, _, kind = rest.partition(".")
            if name and rest == "done":
                done.add(name)
            elif name and kind in _KINDS and int(number) >= newest.get(name, (0,))[0]:
                newest[name] = (int(number), self.folder / entry)
        self._done = done
        return done, {name: path for name, (_, path) in newest.items()}

    def _choose(self, free: Sequence[int], *, started: bool) -> int:
        if self._last + 1 in free:
            return self._last + 1
        run = max(_runs(free), key=len)
        # Another process most likely works towards this run from below; it begins in the middle.
        return run[len(run) // 2] if started and len(run) > 2 else run[0]

    def _create(self, name: str, dead: Path | None, *, again: bool = False) -> bool:
        """Create the lease after a dead one, or the first; whether nobody else was faster."""
        generation = int(dead.name.split(".")[1]) + 1 if dead else 0
        path = self.folder / f"{name}.{generation:06d}.lease"
        self.folder.mkdir(parents=True, exist_ok=True)
        record = asdict(self.holder) | {"time": time.strftime("%Y-%m-%dT%H:%M:%S")}
        if not _create(path, json.dumps(record)):
            return False
        done, newest = self._list()
        # Another was faster since the folder was read.
        if (name in done and not again) or newest.get(name) != path:
            path.unlink(missing_ok=True)
            return False
        with self._lock:
            self._held[name] = path
        if dead is not None:
            dead.unlink(missing_ok=True)
        return True

    def _living(self, lease: Path | None) -> Holder | None:
        """The holder of a lease, if there is one at work."""
        if lease is None:
            return None
        try:
            holder, changed = _read(lease), lease.stat().st_mtime
        except FileNotFoundError:
            return None
        gone = self._gone(holder)
        if gone is None and holder.place == self.holder.place:
            gone = process_start(holder.pid) != holder.started
        if gone is None:
            # By the disk's own clock: those of two hosts may differ.
            clock = self.folder / ".clock"
            clock.touch()
            gone = clock.stat().st_mtime - changed >= self._silent
        return None if gone else holder

    def _is_mine(self, lease: Path) -> bool:
        # Generations start anew where a block was released: its name alone does not tell.
        try:
            return _read(lease) == self.holder
        except FileNotFoundError:
            return False

    def _beat(self) -> None:
        while not self._stop.wait(self._heartbeat):
            with self._lock:
                held = list(self._held.values())
            for path in held:
                with contextlib.suppress(OSError):  # the disk is away: at worst it is done twice
                    if self._is_mine(path):
                        os.utime(path)


def _read(lease: Path) -> Holder:
    try:
        fields = json.loads(lease.read_text())
    except ValueError:  # on a disk without links: created, and not yet written
        fields = {}
    return Holder(**{n: v for n, v in fields.items() if n in Holder.__dataclass_fields__})


def _create(path: Path, text: str) -> bool:
    """Make a file that is not there, with its text; whether it was not there."""
    try:
        write_text(path, text, overwrite=False)
    except FileExistsError:
        return False
    return True


def _runs(places: Iterable[int]) -> list[list[int]]:
    """Runs of consecutive numbers."""
    runs: list[list[int]] = []
    for place in places:
        if runs and place == runs[-1][-1] + 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


def _place() -> str:
    """Where process numbers mean the same: this boot of this host, in this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def process_start(pid: int) -> str | None:
    """Return when a process of this host began, as the system writes it; None if it is dead."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            # The name, in brackets, may hold spaces; the start is the 20th field after it.
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[19]  # Z and X: dead, and not yet cleared away
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "running"
