"""Progress of a command: on a terminal a live table, in a log plain lines, or one JSON object a
line.

Every line of a trial has its value, the best so far, how long it took, and the time left of the
whole sweep or search. A heartbeat by the clock says what goes on when nothing else does, before the
first epoch too.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from pointsweep.reporting.formats.registry import render
from pointsweep.reporting.formats.text import half_filled
from pointsweep.reporting.table import Table
from pointsweep.utils.console import (
    USUAL,
    SafeStream,
    encodable,
    encoding_of,
    one_line,
    shortened,
    visible,
)
from pointsweep.utils.numbers import percent

if TYPE_CHECKING:
    # with torch, which a plan may not need
    from pointsweep.execution.launchers import Event

DRAWING_SHARE = 0.05  # of the time at most goes into the table on the screen
HEARTBEAT_S = 30.0  # between two lines of a log that nothing else fills
# between two lines that say the same of a launch in which nothing trains
LONGEST_PAUSE_S = 300.0
PATIENCE_S = 5.0  # until a log says what a command is busy with
TICK_S = 1.0
MOST_RUNNING = 4  # trials that are named; the others are counted
MOST_FAILED = 3
ENDS = ("finished", "failed", "stopped")
FORMATS = ("text", "json")


@dataclass(frozen=True)
class Label:
    """Label of a trial: its cell, and which number of it counts."""

    cell: str  # "row / column / seed n"
    metric: str = ""
    sweep: str = ""
    row: str = ""
    column: str = ""
    seed: int = 0


@dataclass
class RunningTrial:
    """A trial that has begun: when, and its last epoch."""

    begun: float
    epoch: int = 0
    epochs: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    # of each metric, over the epochs seen here
    best: dict[str, float] = field(default_factory=dict)

    @property
    def fraction(self) -> float:
        """The part of its epochs that is trained."""
        if self.epochs:
            return self.epoch / self.epochs

        return 0.0


@dataclass(frozen=True)
class SearchProgress:
    """Progress of a search, whose batches are launches of their own: trials ended and in all; the
    used part of its hours.
    """

    ended: int
    total: int  # 0 where hours alone end it
    hours_share: float = 0.0


def duration(seconds: float) -> str:
    """Return a time as one says it: 12 s, 1 min 10 s, 2 h 5 min."""
    rounded = round(seconds)
    if rounded < 100:
        return f"{rounded} s"

    minutes, rest = divmod(rounded, 60)
    if minutes < 10:
        if rest:
            return f"{minutes} min {rest} s"
        return f"{minutes} min"

    minutes = round(rounded / 60)
    hours, rest = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min"

    return f"{hours} h {rest} min" if rest else f"{hours} h"


class Display:
    """Display of what a command does, on standard output."""

    def __init__(
        self,
        stream: TextIO | None = None,
        quiet: bool = False,
        verbose: bool = False,
        form: str = "text",
        clock: bool = True,
    ) -> None:
        self.stream = stream or sys.stdout
        self.quiet = quiet
        self.verbose = verbose
        self.form = form
        self.clock = clock  # whether a log has heartbeats
        self.begun = self.spoken = self.phase_begun = time.monotonic()
        self.doing = "starting"  # what goes on while no trial trains
        self.pause_s = HEARTBEAT_S  # until that is said again: longer each time
        self.progress: Progress | None = None
        self.search: SearchProgress | None = None
        # when the search's first batch was made, and how far it was then
        self.search_begun = 0.0
        self.search_before = SearchProgress(0, 0)
        self.lock = threading.RLock()
        self.closed = threading.Event()
        # of each metric, with the trial's cell
        self.best: dict[str, tuple[float, str]] = {}
        self.live: Live | None = None
        self.stdout_before: TextIO | None = None

    def __enter__(self) -> Display:
        if self.form == "json":
            # Whatever else is printed, standard output stays JSON alone.
            self.stdout_before = sys.stdout
            sys.stdout = sys.stderr

        if self.quiet:
            return self

        if self.form == "text" and _draws(self.stream):
            self._go_live()
        elif self.clock:
            threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

        return self

    def _go_live(self) -> None:
        file: Any = self.stream
        if isinstance(self.stream, SafeStream):
            file = self.stream.plain()

        # A path in a message of another library stays in one piece; what is drawn here is cut
        # already.
        console = Console(file=file, highlight=False, soft_wrap=True)
        self.live = Live(
            get_renderable=self._screen,
            console=console,
            refresh_per_second=2,
            transient=True,
            redirect_stderr=sys.stderr.isatty(),
        )

        self.live.start()
        console.show_cursor(True)  # a process that is killed would leave it hidden

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.closed.set()
        if self.live is not None:
            self.live.stop()
            self.live = None

        if self.stdout_before is not None:
            sys.stdout = self.stdout_before

    # What is shown

    def say(self, text: str) -> None:
        """Show a line of information, if there is one."""
        if text and not self.quiet:
            with self.lock:
                self._line(text, {"event": "message", "text": text})

    def phase(self, activity: str) -> None:
        """Take note of what goes on while no trial trains; it is shown if it takes long."""
        with self.lock:
            self.doing = activity
            self.phase_begun = time.monotonic()
            self.pause_s = HEARTBEAT_S

            if self.form == "json" and activity and not self.quiet:
                self._line("", {"event": "phase", "phase": activity})

    def result(self, table: Table, text: str, **addresses: str) -> None:
        """Show a table at its end; `addresses` are the report, the store and MLflow."""
        with self.lock:
            self.doing = ""
            data = {"event": "table", "sweep": table.name, **addresses}
            data["table"] = json.loads(render(table, "json"))
            self._line(text, data)

    def answer(self, text: str) -> None:
        """Show what was asked for: a plan, a configuration."""
        with self.lock:
            self._line(text, {"event": "message", "text": text})

    def end(self, code: int) -> None:
        """Show that the command has ended, where a program listens."""
        if self.form == "json":
            self._line("", {"event": "end", "exit_code": code})

    def _line(self, text: str, data: Mapping[str, Any]) -> None:
        self.spoken = time.monotonic()
        if self.form == "json":
            elapsed_s = self.spoken - self.begun
            stamped = {**data, "time": time.time(), "elapsed_s": elapsed_s}
            line = json.dumps(_finite(stamped), allow_nan=False)
            print(line, file=self.stream, flush=True)
        elif self.live is not None:
            shown = encodable(visible(text, keep="\n"), encoding_of(self.stream))
            self.live.console.print(Text(shown))
        else:
            print(visible(text, keep="\n"), file=self.stream, flush=True)

    # The clock

    def _beat(self) -> None:
        while not self.closed.wait(TICK_S):
            with self.lock:
                if self.closed.is_set():
                    return
                self.heartbeat()

    def heartbeat(self) -> None:
        """Say what goes on, if nothing was said for a while."""
        now = time.monotonic()
        is_training = self.progress is not None and bool(self.progress.running)
        # A new phase is named soon, and then as seldom as all else.
        is_new = not is_training and self.spoken < self.phase_begun < now - PATIENCE_S

        pause_s = HEARTBEAT_S if is_training else self.pause_s

        if now - self.spoken < pause_s and not is_new:
            return

        if not is_training and not is_new:
            self.pause_s = min(2 * self.pause_s, LONGEST_PAUSE_S)

        activity = self.doing
        count = ""
        numbers: Mapping[str, Any] = {}

        if self.progress is not None:
            count = self.progress.count()
            numbers = self.progress.numbers()
            if is_training:
                activity = self.progress.running_line()

        if activity:
            data = {"event": "heartbeat", "doing": activity, **numbers}
            self._line(f"{count}{activity}  ({self.times()})", data)

    def left_s(self) -> float | None:
        """Return how much time is left of the whole, if that can be told."""
        if self.progress is not None:
            return self.progress.left_s()

        return None

    def times(self) -> str:
        """Return "1 min 10 s so far, about 2 min left"."""
        left = self.left_s()
        so_far = f"{duration(time.monotonic() - self.begun)} so far"

        if left is None:
            return so_far

        return f"{so_far}, about {duration(left)} left"

    # A search

    def expect(self, ended: int, total: int, hours_share: float = 0.0) -> None:
        """Take note of how far a search is: what is left of it is more than its next launch."""
        with self.lock:
            # It may have ended more than were asked for; without a total the hours end it.
            if total:
                total = max(total, ended)

            progress = SearchProgress(ended, total, hours_share)
            if self.search is None:
                self.search_begun = time.monotonic()
                self.search_before = progress

            self.search = progress

    # The screen

    def _screen(self) -> Group:
        """Compose what stands on the terminal; in the thread of rich, without the lock, which its
        own lock might wait for.
        """
        columns, num_lines = USUAL, 24
        if self.live is not None:
            columns, num_lines = self.live.console.size

        encoding = encoding_of(self.stream)

        def fitted(text: str) -> str:
            return shortened(encodable(one_line(text), encoding), columns - 1)

        progress = self.progress
        if progress is None:
            if self.doing:
                line = fitted(f"{self.doing}  ({self.times()})")
                return Group(Text(line, style="bold"))

            return Group()

        status = progress.status()[: max(num_lines - 2, 1)]
        tables = progress.drawn(columns, encoding)
        room = max(num_lines - 2 - len(status), 0)

        if len(tables) > room:
            num_cut = len(tables) - room + 1
            tables = tables[: max(room - 1, 0)]
            if room:
                tables.append(
                    f"... {num_cut} more lines; the whole table comes at the end"
                )

        texts = [Text(line, no_wrap=True, overflow="crop") for line in tables]
        texts += [Text(fitted(text), style=style) for text, style in status]
        return Group(*texts)


def _draws(stream: TextIO) -> bool:
    """Tell whether a stream is a terminal on which one can draw."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _finite(value: Any) -> Any:
    """Return plain data without the numbers that JSON does not have: they are null."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None

    return value


class Progress:
    """A listener for one launch.

    `labels` are of its trials, by key; `value` reads a finished trial's number; `tables` are what
    is there so far.
    """

    def __init__(
        self,
        display: Display,
        labels: Mapping[str, Label],
        finished: int,
        total: int,
        value: Callable[[str], float | None] = lambda key: None,
        tables: Callable[[], Sequence[Table]] = list,
    ) -> None:
        self.display = display
        self.labels = labels
        self.value = value
        self.tables = tables
        self.ended = finished
        self.total = total
        self.waiting = total - finished
        self.done_here = 0
        self.running: dict[str, RunningTrial] = {}
        self.failures: list[str] = []
        self.begun: float | None = None  # when the first trial began
        self.made: Sequence[Table] = ()
        self.drawn_at = self.drawing_s = 0.0

    def __enter__(self) -> Progress:
        search = self.display.search
        if search is not None:
            self.ended = search.ended
            self.total = search.total

        with self.display.lock:
            self.display.progress = self
            self._draw()

        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self.display.lock:
            self.display.progress = None

    def seen(self, key: str, value: float) -> None:
        """Take note of a trial that has finished before."""
        self._rank(self._label(key), value)

    def __call__(self, event: Event) -> None:
        """Take one event of the launch."""
        with self.display.lock:
            if event.kind == "phase":
                self.display.phase(event.reason)
            elif event.kind == "notice":
                self.display.say(event.reason)
            elif event.kind == "started":
                self._start(event)
            elif event.kind == "epoch":
                self._epoch(event)
            elif event.kind in ENDS:
                self._end(event)

    def _label(self, key: str) -> Label:
        return self.labels.get(key, Label(key))

    def _start(self, event: Event) -> None:
        now = time.monotonic()
        self.begun = self.begun or now
        self.running.setdefault(event.key, RunningTrial(now))

        if self.display.verbose or self.display.form == "json":
            self._say("started", event.key, "")

    def _epoch(self, event: Event) -> None:
        now = time.monotonic()
        self.begun = self.begun or now
        trial = self.running.setdefault(event.key, RunningTrial(now))
        trial.epoch = event.epoch
        trial.epochs = event.epochs
        trial.metrics = dict(event.metrics or {})

        for name, value in trial.metrics.items():
            trial.best[name] = max(value, trial.best.get(name, value))

        if self.display.verbose or self.display.form == "json":
            epoch = f"epoch {event.epoch} of {event.epochs}"
            accuracy = self._last_value(self._label(event.key), trial)
            self._say("epoch", event.key, f": {epoch}{accuracy}")

    def _end(self, event: Event) -> None:
        now = time.monotonic()
        label = self._label(event.key)
        trial = self.running.pop(event.key, None)
        self.begun = self.begun or now
        self.ended += 1
        self.waiting -= 1
        self.done_here += 1

        if event.kind == "failed":
            self.failures.append(f"{label.cell}: {event.reason}")

        text = ""
        if event.reason:
            text += f": {event.reason}"

        value = None
        if event.kind == "finished" and not self.display.quiet:
            value = self.value(event.key)

        if value is not None:
            text += f"  {self._ranked(label, value)}"

        took_s = None
        metrics = None
        if trial is not None:
            took_s = now - trial.begun
            metrics = trial.metrics

        data = {
            "value": value,
            "trial_s": took_s,
            "reason": event.reason or None,
            "metrics": metrics,
        }

        self._say(event.kind, event.key, text, took_s, data)
        if self.waiting <= 0 or now - self.drawn_at > self.drawing_s / DRAWING_SHARE:
            self._draw()

    def _ranked(self, label: Label, value: float) -> str:
        """Return "test/accuracy 48.7 %, best so far 52.8 % (lora / vit / seed 0)"; enters the
        value.
        """
        before = self.display.best.get(label.metric)
        self._rank(label, value)
        text = f"{label.metric} {percent(value)} %"

        if before is None:
            return text

        best, cell = before
        if value > best:
            return f"{text}, the best so far"

        return f"{text}, best so far {percent(best)} % ({cell})"

    def _rank(self, label: Label, value: float) -> None:
        known = self.display.best.get(label.metric)
        if known is None or value > known[0]:
            self.display.best[label.metric] = (value, label.cell)

    def _last_value(self, label: Label, trial: RunningTrial) -> str:
        """Return ", test/accuracy 48.7 %, best 49.0 %" of the last epoch."""
        value = trial.metrics.get(label.metric)
        if value is None or not math.isfinite(value):
            return ""

        text = f", {label.metric} {percent(value)} %"
        best = trial.best[label.metric]
        if best > value:
            text += f", best {percent(best)} %"

        return text

    def _say(
        self,
        kind: str,
        key: str,
        text: str,
        took_s: float | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        display = self.display
        if display.quiet or (display.live is not None and not display.verbose):
            return

        label = self._label(key)
        data: dict[str, Any] = {
            "event": kind,
            "key": key,
            "cell": label.cell,
            "sweep": label.sweep,
            "row": label.row,
            "column": label.column,
            "seed": label.seed,
            "metric": label.metric,
        }

        trial = self.running.get(key)

        if trial is not None:
            data["epoch"] = trial.epoch
            data["epochs"] = trial.epochs
            data["metrics"] = trial.metrics

        data |= more or {}
        data |= self.numbers()

        took = f"{duration(took_s)}; " if took_s is not None else ""
        line = f"{self.count()}{kind}  {label.cell}{text}  ({took}{display.times()})"
        display._line(line, data)

    def count(self) -> str:
        """Return "[3/9] "."""
        if self.total:
            return f"[{self.ended}/{self.total}] "

        return f"[{self.ended}] "

    def numbers(self) -> dict[str, Any]:
        """Return what every event of a launch has."""
        best = {metric: value for metric, (value, _) in self.display.best.items()}
        return {
            "ended": self.ended,
            "total": self.total,
            "best": best,
            "left_s": self.left_s(),
        }

    def left_s(self) -> float | None:
        """Return the time left of the whole sweep or search; None where nothing tells it yet."""
        # A list, as another thread may add trials meanwhile.
        started = sum(trial.fraction for trial in list(self.running.values()))
        search = self.display.search
        now = time.monotonic()

        if search is None:
            done = self.done_here + started
            rest = self.waiting - started
            if self.begun is None or done < 0.5 or rest <= 0:
                return None

            return (now - self.begun) * rest / done

        before = self.display.search_before
        took_s = now - self.display.search_begun
        done = self.ended - before.ended + started
        rest = self.total - self.ended - started
        hours_used = search.hours_share - before.hours_share
        hours_left = max(1 - search.hours_share, 0)

        # The search ends by its trials or by its hours, whichever comes first.
        estimates = []

        if done >= 0.5 and rest > 0:
            estimates.append(took_s * rest / done)

        if hours_used > 0:
            estimates.append(took_s * hours_left / hours_used)

        return min(estimates, default=None)

    def running_line(self) -> str:
        """Return what trains now, in one line."""
        named = []
        for key, trial in list(self.running.items())[:MOST_RUNNING]:
            named.append(self._running(key, trial))

        line = f"running  {'; '.join(named)}"
        num_unnamed = len(self.running) - len(named)
        if num_unnamed > 0:
            line += f"; and {num_unnamed} more"

        return line

    def _running(self, key: str, trial: RunningTrial) -> str:
        label = self._label(key)
        if not trial.epoch:
            elapsed = duration(time.monotonic() - trial.begun)
            return f"{label.cell}: no epoch finished yet, {elapsed}"

        accuracy = self._last_value(label, trial)
        return f"{label.cell}: epoch {trial.epoch} of {trial.epochs}{accuracy}"

    # On a terminal

    def _draw(self) -> None:
        """The table of thousands of trials takes longer than some of them: then not every one of
        them redraws it.
        """
        if self.display.live is None:
            return

        started = time.monotonic()
        self.made = self.tables()
        self.display.live.refresh()
        self.drawn_at = time.monotonic()
        self.drawing_s = self.drawn_at - started

    def drawn(self, columns: int, encoding: str) -> list[str]:
        """Return the lines of the tables as they stand, without the sentences under them."""
        lines: list[str] = []
        for table in self.made:
            lines += [*half_filled(table, columns - 1, encoding), ""]

        return lines

    def status(self) -> list[tuple[str, str]]:
        """Return the lines under the table, each with its style."""
        lines = [(f"{self.count()}{self.display.times()}", "bold")]
        for metric, (value, cell) in list(self.display.best.items()):
            lines.append((f"best so far: {metric} {percent(value)} % ({cell})", ""))

        if not self.running and self.waiting > 0:
            lines.append((self.display.doing, ""))

        for key, trial in list(self.running.items())[:MOST_RUNNING]:
            lines.append((f"running  {self._running(key, trial)}", ""))

        if len(self.running) > MOST_RUNNING:
            lines.append((f"and {len(self.running) - MOST_RUNNING} more", ""))

        for failure in self.failures[-MOST_FAILED:]:
            lines.append((f"failed: {failure}", "red"))

        return lines
