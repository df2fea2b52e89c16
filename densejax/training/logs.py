"""What a sweep tells while it runs: a bar or plain lines, and each member's curves to trackers."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from densejax.training.folders import Member, Outcome


class Tracker(Protocol):
    """Where the members' curves go besides their files: TensorBoard, or a service (``trackers``).

    A member is a run of its own. It begins with its first row; one that was resumed goes on with
    the rows after its checkpoint, some of which may have been told before.
    """

    def row(self, member: Member, step: int, values: Mapping[str, float]) -> None:
        """Take a member's scalars at a step."""

    def end(self, outcome: Outcome) -> None:
        """End the run of a member that is done or failed."""

    def close(self) -> None:
        """Let go of what is open; members that have not ended go on in another process."""


class Reporter:
    """Progress for people: a bar with rate and ETA on a terminal, plain lines in a log file."""

    def __init__(
        self,
        *,
        score: str = "score",
        events: Path | None = None,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        """Report on ``score``; TensorBoard events go below ``events`` where it is given.

        A tracker that raises is warned of and left out from then on; the members train on.
        """
        self._score = score
        self._trackers: list[Tracker] = [*([_TensorBoard(events)] if events else []), *trackers]
        self._bar: tqdm | None = None
        self._total = self._made = 0
        self._seconds = 0.0
        self._last_line = 0.0
        self._started = False

    def say(self, line: str) -> None:
        """One line that does not break the bar."""
        if self._bar is not None:
            tqdm.write(line, file=sys.stdout)
        else:
            print(line, flush=True)

    def warn(self, line: str) -> None:
        """A line that reports trouble which the run survives."""
        self.say(f"warning: {line}")

    def memory(self, peak: int, limit: float, seconds: float, slots: int) -> None:
        """The compiled step's memory, before anything is allocated."""
        self.say(
            f"compiled the training step in {seconds:.1f} s; {slots} instances at once need about "
            f"{peak / 1e9:.2f} GB a device, {limit / 1e9:.2f} GB are available"
        )

    def start(self, *, members: int, finished: int, resumed: int, steps: int) -> None:
        """The sweep begins."""
        self.say(
            f"{members} instances of {steps} steps: {finished} ended before, {resumed} resumed "
            f"from a checkpoint, {members - finished - resumed} new"
        )
        self._steps, self._total = steps, (members - finished) * steps
        if sys.stdout.isatty():
            self._bar = tqdm(total=self._total, unit="step", smoothing=0.05, file=sys.stdout)

    def interval(
        self, occupants: Sequence[Any], steps: int, seconds: float, evaluated: bool
    ) -> None:
        """An interval is done: move the bar, and after an evaluation print the running members."""
        if not self._started:
            # Members resumed from a checkpoint bring their steps with them, at no time of this run.
            self._started = True
            resumed = sum(o.step for o in occupants if o is not None) - steps
            self._total -= resumed
            if self._bar is not None:
                self._bar.total = self._total
        self._made += steps
        self._seconds += seconds
        rate = self._made / max(self._seconds, 1e-9)
        left = _clock((self._total - self._made) / max(rate, 1e-9))
        if self._bar is not None:
            self._bar.update(steps)
        if evaluated:
            for occupant in occupants:
                if occupant is not None and occupant.measures is not None:
                    self.say(self._line(occupant) + f"  {rate:.2f} steps/s  ETA {left}")
        elif self._bar is None and time.monotonic() - self._last_line > 30:
            share = 100 * self._made / max(self._total, 1)
            self.say(f"{share:.0f} %  {rate:.2f} steps/s  ETA {left}")
        else:
            return
        self._last_line = time.monotonic()

    def _line(self, occupant: Any) -> str:
        row = occupant.measures
        return (
            f"seed {occupant.member.name}  step {row['step']}/{self._steps}  "
            f"loss {row['loss']:.4f}  {self._score} {row[self._score]:.4f}  "
            f"(best {occupant.best_score:.4f})"
        )

    def row(self, occupant: Any, row: Mapping[str, Any], *, evaluated: bool) -> None:
        """Scalars of a row for the trackers."""
        del evaluated
        values = {key: v for key, v in row.items() if key != "step" and isinstance(v, float)}
        self._tell(lambda tracker: tracker.row(occupant.member, row["step"], values))

    def end(self, outcome: Any) -> None:
        """A member has ended."""
        self._tell(lambda tracker: tracker.end(outcome))
        self._total -= max(self._steps - outcome.step, 0)
        best = f"best {self._score} {outcome.best_score:.4f} at step {outcome.best_step}"
        self.say(
            f"seed {outcome.member.name}  {outcome.status} at step {outcome.step} "
            f"({outcome.reason})  {best}"
        )

    def close(self) -> None:
        """The sweep is over."""
        self._tell(lambda tracker: tracker.close())
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        for tracker in tuple(self._trackers):
            try:
                what(tracker)
            except Exception as error:  # whatever a service's library raises
                self._trackers.remove(tracker)
                name = type(tracker).__name__.strip("_")
                self.warn(f"{name} is told no more of this run: {type(error).__name__}: {error}")


class _TensorBoard:
    def __init__(self, events: Path) -> None:
        self._events = events
        self._writers: dict[str, Any] = {}

    def row(self, member: Member, step: int, values: Mapping[str, float]) -> None:
        if member.name not in self._writers:
            # It imports torch where there is one, which takes seconds.
            from tensorboardX import SummaryWriter

            self._writers[member.name] = SummaryWriter(
                str(self._events / member.name), purge_step=step, flush_secs=30
            )
        for key, value in values.items():
            self._writers[member.name].add_scalar(key, value, step)

    def end(self, outcome: Outcome) -> None:
        writer = self._writers.pop(outcome.member.name, None)
        if writer is not None:
            writer.close()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
