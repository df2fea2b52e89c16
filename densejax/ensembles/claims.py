"""Who works on which block: several processes, on one host or many, share one folder.

Beside the results lie small files, one folder for all. A *claim* is made by exclusive creation and
holds where its owner runs; its time of change is the owner's heartbeat. A claim whose owner is dead
(a process of this host that is gone, or another host whose heartbeat has stopped) is passed over by
claiming the block's next generation, exclusively again, so that nothing is ever taken out of
another's hands. A *done mark* appears by rename when the block's voxels are on disk. Killed at any
moment, a block is either done or claimed by somebody dead, and is computed again as a whole.
"""

import json
import os
import platform
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from densejax.io import write_json, write_text

HEARTBEAT_S = 10.0
# A host that has not been heard of for so long is taken for dead. Network disks show times of
# change up to a minute late.
SILENT_S = 180.0


class Claims:
    """Blocks to do, claimed and done in a folder; a context that releases what it holds."""

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        *,
        heartbeat_s: float = HEARTBEAT_S,
        silent_s: float = SILENT_S,
    ) -> None:
        """Open the folder; nothing is claimed yet.

        Args:
          folder: made if absent.
          names: of all blocks, in the order in which they lie; the same for every process.
          heartbeat_s: seconds between signs of life.
          silent_s: seconds after which another host without one counts as dead.
        """
        self.folder, self.names = Path(folder), list(names)
        self._heartbeat, self._silent = heartbeat_s, silent_s
        self._held: dict[str, Path] = {}
        self._done: set[str] = set()
        self._last = -1
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._clock = self.folder / ".clock"
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Claims":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        for name in list(self._held):
            self.release(name)

    def take(self) -> str | None:
        """Claim a block that nobody has: the one after the last, else amid the longest free run.

        Returns:
          Its name, or None if every block is done or held by a running process.
        """
        passed: set[str] = set()
        while True:
            done, claimed = self._list()
            free = [
                place
                for place, name in enumerate(self.names)
                if name not in done and name not in passed and not self._lives(claimed.get(name))
            ]
            if not free:
                return None
            place = self._choose(free, started=bool(claimed or done))
            name = self.names[place]
            if self._claim(name, claimed.get(name)):
                self._last = place
                return name
            passed.add(name)

    def finish(self, name: str, record: Any) -> None:
        """Mark a block done, after its voxels are on disk, with what is to be known of it."""
        write_json(self.folder / f"{name}.done", record, indent=None, durable=True)
        self._done.add(name)
        self.release(name)

    def release(self, name: str) -> None:
        """Give a claim back."""
        with self._lock:
            path = self._held.pop(name, None)
        if path is not None:
            path.unlink(missing_ok=True)

    def done(self) -> set[str]:
        """Names of the blocks that are done, by whomever."""
        return self._list()[0] & set(self.names)

    def records(self) -> dict[str, Any]:
        """What is known of every block that is done."""
        return {
            name: json.loads((self.folder / f"{name}.done").read_text())
            for name in sorted(self.done())
        }

    def _list(self) -> tuple[set[str], dict[str, Path]]:
        """Blocks that are done, and the newest claim on each."""
        newest: dict[str, tuple[int, Path]] = {}
        done = set(self._done)
        with os.scandir(self.folder) as entries:
            for entry in entries:
                name, _, rest = entry.name.partition(".")
                if not name:
                    continue
                if rest == "done":
                    done.add(name)
                elif rest.endswith(".claim"):
                    generation = int(rest.removesuffix(".claim"))
                    if name not in newest or generation > newest[name][0]:
                        newest[name] = (generation, self.folder / entry.name)
        self._done = done
        return done, {name: path for name, (_, path) in newest.items()}

    def _choose(self, free: Sequence[int], *, started: bool) -> int:
        if self._last + 1 in free:
            return self._last + 1
        run = max(_runs(free), key=len)
        # Another process most likely works towards this run from below; it begins in the middle.
        return run[len(run) // 2] if started and len(run) > 2 else run[0]

    def _claim(self, name: str, dead: Path | None) -> bool:
        generation = int(dead.name.split(".")[1]) + 1 if dead else 0
        path = self.folder / f"{name}.{generation:06d}.claim"
        if not _create(path, json.dumps(_owner())):
            return False
        done, claimed = self._list()
        if (
            name in done or claimed.get(name) != path
        ):  # another was faster since the folder was read
            path.unlink(missing_ok=True)
            return False
        with self._lock:
            self._held[name] = path
        if dead is not None:
            dead.unlink(missing_ok=True)
        return True

    def _lives(self, claim: Path | None) -> bool:
        """Whether the owner of a claim is at work."""
        if claim is None:
            return False
        try:
            text, changed = claim.read_text(), claim.stat().st_mtime
        except FileNotFoundError:
            return False
        here = _owner()
        try:
            owner = json.loads(text)
        except ValueError:  # on a disk without links: created, and not yet written
            owner = {}
        if owner.get("place") == here["place"]:
            return _started(owner["pid"]) == owner["started"]
        # By the disk's own clock: those of two hosts may differ.
        self._clock.touch()
        return self._clock.stat().st_mtime - changed < self._silent

    def _beat(self) -> None:
        while not self._stop.wait(self._heartbeat):
            with self._lock:
                held = list(self._held.values())
            for path in held:
                try:
                    os.utime(path)
                except OSError:  # taken over, or the disk is away: the block is only done twice
                    continue


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


def _owner() -> dict[str, Any]:
    return {
        "place": _place(),
        "host": platform.node(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }


def _place() -> str:
    """Where process numbers mean the same: this boot of this host, in this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def _started(pid: int) -> str | None:
    """When a process of this host began, so that a number used again is not mistaken for it."""
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
