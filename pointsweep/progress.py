"""What a launch shows while it runs: on a terminal the half-filled table, in a log one plain line for each thing that happens."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from pointsweep.inline import Event

DRAWING_SHARE = 0.05  # of the time at most goes into the table on the screen
HEARTBEAT_S = 30.0  # between two lines of a log that nothing else fills


class Progress:
    """A listener for a launch. `names` maps a trial's key to "row / column / seed n"; `table` renders what is there so far."""

    def __init__(
        self, names: Mapping[str, str], finished: int, total: int, table: Callable[[], str], stream: TextIO | None = None
    ) -> None:
        self.names, self.total, self.table = names, total, table
        self.ended = finished
        self.waiting = total - finished
        self.fractions: dict[str, float] = {}  # of the epochs of every running trial
        self.failures: list[str] = []
        self.done_here = 0
        self.begun = self.spoken = time.monotonic()
        self.stream = stream or sys.stdout
        self.live: Live | None = None
        self.text = ""
        self.drawn_at = self.drawing_s = 0.0

    def __enter__(self) -> Progress:
        if self.stream.isatty():
            self._draw()
            self.live = Live(get_renderable=self._screen, console=Console(file=self.stream), refresh_per_second=2, transient=True)
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live is not None:
            self.live.stop()

    def __call__(self, event: Event) -> None:
        """Takes one event of the launch."""
        if event.kind == "epoch":
            self.fractions[event.key] = event.epoch / event.epochs
            if self.live is None and time.monotonic() - self.spoken > HEARTBEAT_S:
                self._say(f"running  {self._running()}")
            return
        self.ended, self.waiting, self.done_here = self.ended + 1, self.waiting - 1, self.done_here + 1
        self.fractions.pop(event.key, None)
        name = self.names.get(event.key, event.key)
        if event.kind == "failed":
            self.failures.append(f"{name}: {event.reason}")
        if self.live is None:
            self._say(f"{event.kind}  {name}" + (f": {event.reason}" if event.reason else ""))
        elif self.waiting <= 0 or time.monotonic() - self.drawn_at > self.drawing_s / DRAWING_SHARE:
            self._draw()

    def _draw(self) -> None:
        """The table of thousands of trials takes longer than some of them: then not every one of them redraws it."""
        begun = time.monotonic()
        self.text = self.table()
        self.drawn_at = time.monotonic()
        self.drawing_s = self.drawn_at - begun

    def _say(self, line: str) -> None:
        self.spoken = time.monotonic()
        print(f"[{self.ended}/{self.total}] {line}{self._eta()}", file=self.stream, flush=True)

    def _running(self) -> str:
        return ", ".join(f"{self.names.get(key, key)} {fraction:.0%}" for key, fraction in list(self.fractions.items())[:4])

    def _eta(self) -> str:
        done = self.done_here + sum(self.fractions.values())
        if done < 0.5 or self.waiting <= 0:
            return ""
        left = (time.monotonic() - self.begun) * (self.done_here + self.waiting - done) / done
        return f"  (about {left / 60:.0f} min left)" if left >= 90 else f"  (about {left:.0f} s left)"

    def _screen(self) -> Group:
        status = f"{self.ended}/{self.total} trials ended{self._eta()}   running: {self._running() or 'starting workers'}"
        lines = [Text.from_ansi(self.text), Text(status, style="bold")]
        lines += [Text(f"failed: {failure}", style="red", overflow="ellipsis", no_wrap=True) for failure in self.failures[-3:]]
        return Group(*lines)
