"""What a long computation on a landscape tells: a bar on a terminal, plain lines elsewhere."""

import sys
import time

from tqdm import tqdm

# Between two lines where there is no terminal.
LINE_SECONDS = 30.0


class Progress:
    """Rate and time left of so many points, radii or steps."""

    def __init__(self, total: int, unit: str, *, shown: bool = True) -> None:
        """Start counting.

        Args:
          total: what there is to do.
          unit: of it, in the singular.
          shown: whether anything is told.
        """
        self._total, self._unit, self._shown = total, unit, shown
        self._made = 0
        self._start = self._last = time.monotonic()
        self._bar: tqdm | None = None

    def say(self, line: str) -> None:
        """One line that does not break the bar."""
        if not self._shown:
            return
        if self._bar is not None:
            tqdm.write(line, file=sys.stdout)
        else:
            print(line, flush=True)

    def update(self, made: int) -> None:
        """So many more are done."""
        self._made += made
        if not self._shown:
            return
        if self._bar is None and sys.stdout.isatty():
            self._bar = tqdm(
                total=self._total, unit=self._unit, file=sys.stdout, initial=self._made
            )
        elif self._bar is not None:
            self._bar.update(made)
        elif time.monotonic() - self._last > LINE_SECONDS and self._made < self._total:
            self._last = time.monotonic()
            rate = self._made / (self._last - self._start)
            left = self.clock((self._total - self._made) / rate)
            share = 100 * self._made / self._total
            self.say(f"{share:.0f} %  {rate:.4g} {self._unit}s/s  ETA {left}")

    def close(self) -> None:
        """The end, for whatever reason."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif self._made:
            seconds = max(time.monotonic() - self._start, 1e-9)
            self.say(
                f"{self._made} of {self._total} {self._unit}s in {seconds:.3g} s, "
                f"{self._made / seconds:.4g} a second"
            )

    @staticmethod
    def clock(seconds: float) -> str:
        """Seconds for people: ``0.4 s``, ``1m05s``, ``2h03m``."""
        if seconds < 60:
            return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
        minutes, rest = divmod(int(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
