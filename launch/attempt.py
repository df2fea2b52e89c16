"""One try of one block: take it, run its experiment, publish what is done, hand it back.

The experiment is a process of its own that knows nothing of all this; it runs in the block's work
folder and continues what an earlier try left there.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from densejax.lease import Holder, LostError
from launch import child, members, sweeps, work

_TICK_SECONDS = 0.5
_PUBLISH_SECONDS = 5.0
_RENEW_SECONDS = 15.0
_HOPELESS_TRIES = 2


class BlockFailedError(RuntimeError):
    """The experiment ended without an end of its block."""


class Attempt:
    """A try of a block by this process."""

    def __init__(
        self,
        sweep: sweeps.Sweep,
        block: sweeps.Block,
        owner: Holder,
        *,
        environment: Mapping[str, str] | None = None,
        cores: str = child.ALL,
        limit: float = 0.0,
        say: Callable[[str], None] = print,
    ) -> None:
        """Nothing is taken or started before ``run``.

        ``environment`` is what the experiment has beside this process's own, ``cores`` the numbers
        of those that it may use, ``limit`` the seconds of this try, 0 for no limit.
        """
        self.sweep, self.block, self.owner = sweep, block, owner
        self._leases = work.leases_of(sweep.folder, holder=owner)
        self._environment = child.environment_of(os.environ, more=environment, cores=cores)
        self._cores, self._limit, self._say = cores, limit, say
        self._child: subprocess.Popen | None = None
        self._work: Path | None = None
        self._stopped = ""
        self._gained_from: list[str] = []

    def run(self) -> dict[str, Any]:
        """Run the block to its end; returns what it ended with.

        Raises:
          HeldError: another process works on it; nothing was done.
          BlockFailedError: the experiment gave up, or ``stop`` was called.
          LostError: another process has taken the block over.
        """
        self._work = work.begin(self.block.folder, self._leases)
        if self._work is None:
            self._say(f"block {self.block.name} has ended before")
            return self.block.ending() or {}
        try:
            self._begin()
            code = self._supervise()
            reason = _failure(code, self._log, self._log_start)
            if not reason:
                return self._end()
            reason = self._stopped or reason
            self._publish()
            self._hand_back(reason, code)
        except LostError:
            self._kill()
            self._leases.release(self.block.name)
            raise
        except BaseException as error:
            if self._work is not None:
                self._kill()
                self._hand_back(f"{type(error).__name__}: {error}", None)
            raise
        raise BlockFailedError(f"block {self.block.name}: {reason}")

    def stop(self, why: str) -> None:
        """End the experiment now; ``run`` then hands the block back. Safe in a signal handler."""
        self._stopped = self._stopped or why
        if self._child is not None:
            _end(self._child)

    def stop_and_wait(self, why: str) -> bool:
        """As ``stop``, but hand the block back before returning; for a handler that won't return.

        Returns whether another try makes sense.
        """
        self.stop(why)
        self._kill()
        if self._work is not None:
            self._publish()
            self._hand_back(why, None)
        return not hopeless(self.block)

    def _begin(self) -> None:
        assert self._work is not None
        sweep, block = self.sweep, self.block
        self._log = block.folder / "log.txt"
        if sweep.experiment.extends:
            members.take_over(sweep.workdir, self._work, block.seeds, spare=sweep.spare)
            _share_config(sweep.workdir, self._work)
        self._gained_from = members.marks(self._work)
        block.note(
            "start",
            owner=str(self.owner),
            job=self.owner.job or "-",
            host=self.owner.host,
            limit=self._limit,
            seeds=members.seeds_done(self._work),
        )
        command = sweep.experiment.command(sweeps.write_seeds(block.seeds), self._work)
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            log.write(f"--- {time.strftime('%F %T')} {self.owner}\n".encode())
            log.flush()
            self._child = subprocess.Popen(
                [sys.executable, child.__file__, str(os.getpid()), self._cores, *command],
                cwd=sweep.experiment.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Of its own, so that a signal to the scheduler's step reaches this process alone.
                start_new_session=True,
            )
        self._say(
            f"block {block.name}: seeds {sweeps.write_seeds(block.seeds)} in {self._work}, "
            f"{self._environment['JAX_NUM_CPU_DEVICES']} cores, log {self._log}"
        )

    def _supervise(self) -> int:
        assert self._child is not None and self._work is not None
        published = renewed = time.monotonic()
        while (code := self._child.poll()) is None:
            time.sleep(_TICK_SECONDS)
            now = time.monotonic()
            if self._stopped:
                _end(self._child)
            if now - renewed > _RENEW_SECONDS:
                self._leases.renew(self.block.name)
                renewed = now
            if now - published > _PUBLISH_SECONDS:
                self._publish()
                published = now
        self._leases.renew(self.block.name)
        return code

    def _publish(self) -> None:
        assert self._work is not None
        if self.sweep.experiment.extends:
            members.publish(self._work, self.sweep.workdir, spare=self.sweep.spare)
            _share_config(self._work, self.sweep.workdir)

    def _end(self) -> dict[str, Any]:
        assert self._work is not None
        self._publish()
        if self.sweep.experiment.extends:
            members.merge(self._work, self.sweep.workdir)
        found = list(members.members(self._work))
        failed = [path.as_posix() for path in found if (self._work / path / "FAILED").exists()]
        ending = {
            "seeds": list(self.block.seeds),
            "members": [path.as_posix() for path in found],
            "failed": failed,
            "time": time.time(),
        }
        sweeps.write_whole(self._work / "ENDED.json", ending)
        self.block.note("end", outcome="ended", failed=len(failed))
        work.end(self._work, self._leases, name=work.ENDED)
        self._work = None
        if self.sweep.experiment.extends:
            _tidy(self.block.folder / work.ENDED, self.sweep.workdir)
        self._say(f"block {self.block.name} has ended; {len(failed)} members failed")
        return ending

    def _hand_back(self, reason: str, code: int | None) -> None:
        assert self._work is not None
        gained = members.marks(self._work) != self._gained_from
        outcome = "stopped" if self._stopped else "failed"
        self.block.note("end", outcome=outcome, code=code, reason=reason, gained=gained)
        with contextlib.suppress(FileNotFoundError):  # another process has taken it over
            work.end(self._work, self._leases)
        self._work = None

    def _kill(self) -> None:
        """End the experiment, unreaped: a ``poll`` that was interrupted here will do that."""
        if self._child is None or self._child.returncode is not None:
            return
        _end(self._child)
        with contextlib.suppress(ChildProcessError):  # it was reaped by the interrupted poll
            os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT)


def hopeless(block: sweeps.Block) -> bool:
    """Whether the last tries of a block ended at their time limit with nothing gained."""
    tries: list[dict[str, Any]] = []
    limit = 0.0
    for line in block.attempts():
        if line["event"] == "start":
            limit = line.get("limit", 0.0)
        else:
            tries.append(line | {"limit": limit})
    last = tries[-_HOPELESS_TRIES:]
    return (
        len(last) == _HOPELESS_TRIES
        and len({line["limit"] for line in last}) == 1
        and all(line.get("reason") == "time limit" and not line["gained"] for line in last)
    )


def _failure(code: int, log: Path, start: int) -> str:
    """Why an experiment did not end its block; empty where it did.

    Exit code 1 says that a member failed and is recorded; so does Python for an uncaught error,
    which leaves its traceback.
    """
    if code == 0:
        return ""
    with log.open("rb") as file:
        file.seek(start)
        said = file.read()[-65536:].decode(errors="replace")
    if code == 1 and "Traceback (most recent call last)" not in said:
        return ""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = lines[-1][:300] if lines else ""
    if code < 0:
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{hint}; last line: {last}"
    return f"exit code {code}: {last}"


def _end(child: subprocess.Popen) -> None:
    """End an experiment outright: what it has not checkpointed by now it makes again."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def _share_config(source: Path, target: Path) -> None:
    """Give one run the configuration of the other, so that settings that differ are refused."""
    if (source / "config.json").exists() and not (target / "config.json").exists():
        sweeps.write_whole(target / "config.json", (source / "config.json").read_text())


def _tidy(run: Path, workdir: Path) -> None:
    """Leave of a block's run what the sweep has not: its summary and where it comes from."""
    events = run / "tensorboard"
    for folder in sorted(events.iterdir()) if events.is_dir() else []:
        target = workdir / "tensorboard" / folder.name
        target.parent.mkdir(exist_ok=True)
        if not target.exists():
            folder.rename(target)
    published = {run / member.parent for member in members.members(run)}
    for path in [run / "xla_cache", events, *published]:
        sweeps.remove(path)
