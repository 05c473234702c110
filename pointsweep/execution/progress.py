"""Progress of a command: on a terminal a live table, in a log plain lines, or one JSON object a
line.

Every line of a trial has its value, the best so far, how long it took, and the time left of the
whole sweep or search. In a log, a heartbeat line reports the current activity whenever nothing else
was printed for a while, also before the first epoch.
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

# largest share of the time that goes into drawing the table on a terminal
DRAWING_SHARE = 0.05
HEARTBEAT_S = 30.0  # from the last line of a log to a heartbeat
# the same while no trial trains: the pause doubles up to this with every repeated activity
LONGEST_PAUSE_S = 300.0
PATIENCE_S = 5.0  # from the begin of a new activity to the heartbeat that names it
TICK_S = 1.0  # between two checks whether a heartbeat is due
MOST_RUNNING = 4  # running trials that are named; the others are counted
MOST_FAILED = 3  # failures that are listed on a terminal, the latest ones
ENDS = ("finished", "failed", "stopped")  # kinds of the events that end a trial
FORMATS = ("text", "json")


@dataclass(frozen=True)
class Label:
    """Label of a trial: its cell, and the metric by which it is compared with others."""

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
    # of each metric, over the epochs of this launch
    best: dict[str, float] = field(default_factory=dict)

    @property
    def fraction(self) -> float:
        """The fraction of its epochs that is trained, in [0, 1]."""
        if self.epochs:
            return self.epoch / self.epochs

        return 0.0


@dataclass(frozen=True)
class SearchProgress:
    """Progress of a hyperparameter search over all its batches, each of which is a launch of its
    own.
    """

    ended: int  # trials
    total: int  # trials; 0 where the budget of hours alone ends the search
    hours_share: float = 0.0  # the used fraction of the budget of hours


def duration(seconds: float) -> str:
    """Return a duration in words: 12 s, 1 min 10 s, 2 h 5 min."""
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
        self.begun = self.last_line_at = self.phase_begun = time.monotonic()
        self.activity = "starting"  # of the command while no trial trains
        self.pause_s = HEARTBEAT_S  # until a heartbeat repeats the activity
        self.progress: Progress | None = None
        self.search: SearchProgress | None = None
        # when this command asked for its first batch, and the search's progress at that time: the
        # time left is extrapolated from what has been added since
        self.search_begun = 0.0
        self.search_before = SearchProgress(0, 0)
        self.lock = threading.RLock()
        self.closed = threading.Event()
        # of each metric: the best value so far, and the cell of its trial
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
        """Set the activity of the command while no trial trains; a heartbeat shows it if it takes
        long.
        """
        with self.lock:
            self.activity = activity
            self.phase_begun = time.monotonic()
            self.pause_s = HEARTBEAT_S

            if self.form == "json" and activity and not self.quiet:
                self._line("", {"event": "phase", "phase": activity})

    def result(self, table: Table, text: str, **addresses: str) -> None:
        """Show a table at its end; `addresses` are the report, the store and MLflow."""
        with self.lock:
            self.activity = ""
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
        self.last_line_at = time.monotonic()
        if self.form == "json":
            elapsed_s = self.last_line_at - self.begun
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
        """Show the current activity if nothing was shown for a while."""
        now = time.monotonic()
        is_training = self.progress is not None and bool(self.progress.running)
        # A phase that has begun since the last line is named after a short pause; one that a line
        # has named already is repeated after a long one.
        is_new = (
            not is_training and self.last_line_at < self.phase_begun < now - PATIENCE_S
        )

        pause_s = HEARTBEAT_S if is_training else self.pause_s

        if now - self.last_line_at < pause_s and not is_new:
            return

        # Hours of waiting for a cluster should not fill a log with equal lines.
        if not is_training and not is_new:
            self.pause_s = min(2 * self.pause_s, LONGEST_PAUSE_S)

        activity = self.activity
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
        """Return the time left of the whole sweep or search; None while there is no estimate."""
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
        """Set the progress of a search, so that counts and the time left are those of the whole
        search and not of its current batch.
        """
        with self.lock:
            # More trials may have ended than the configuration now asks for. A total of 0 stays:
            # the budget of hours ends that search.
            if total:
                total = max(total, ended)

            progress = SearchProgress(ended, total, hours_share)
            if self.search is None:
                self.search_begun = time.monotonic()
                self.search_before = progress

            self.search = progress

    # The screen

    def _screen(self) -> Group:
        """Compose the live display. Rich calls this in its own thread, holding its own lock; taking
        `self.lock` here too could deadlock.
        """
        columns, num_lines = USUAL, 24
        if self.live is not None:
            columns, num_lines = self.live.console.size

        encoding = encoding_of(self.stream)

        def fitted(text: str) -> str:
            return shortened(encodable(one_line(text), encoding), columns - 1)

        progress = self.progress
        if progress is None:
            if self.activity:
                line = fitted(f"{self.activity}  ({self.times()})")
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
    """Return whether a stream is a terminal that can redraw lines."""
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
    """A listener for the events of one launch, which counts its trials and shows their lines.

    `labels` are those of its trials, by key. `value` reads the metric of a finished trial by its
    key, None if it has none. `tables` makes the result tables as far as they are filled. `finished`
    and `total` count the trials of the launch that are finished before it begins, and all of them.
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
        self.num_unended = total - finished  # of this launch, running ones included
        self.num_ended_here = 0  # in this launch
        self.running: dict[str, RunningTrial] = {}
        self.failures: list[str] = []
        self.begun: float | None = None  # when the first trial began
        self.drawn_tables: Sequence[Table] = ()  # as of the last drawing
        # when the tables were last drawn, and how long that took
        self.drawn_at = self.drawing_s = 0.0

    def __enter__(self) -> Progress:
        # Counts that are shown are those of the whole search, of which this launch is a batch.
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
        """Include a trial that was finished before this launch in the best so far."""
        self._update_best(self._label(key), value)

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
        """Count a trial that has ended, show its line, and redraw the tables if that is due."""
        now = time.monotonic()
        label = self._label(event.key)
        # None where a trial ends whose start was not reported
        trial = self.running.pop(event.key, None)
        self.begun = self.begun or now
        self.ended += 1
        self.num_unended -= 1
        self.num_ended_here += 1

        if event.kind == "failed":
            self.failures.append(f"{label.cell}: {event.reason}")

        text = ""
        if event.reason:
            text += f": {event.reason}"

        # Only a finished trial has a record to read the value from; a quiet display shows none.
        value = None
        if event.kind == "finished" and not self.display.quiet:
            value = self.value(event.key)

        if value is not None:
            text += f"  {self._compared_with_best(label, value)}"
            self._update_best(label, value)

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

        # A table of thousands of trials takes longer to draw than some of them to train, so a
        # redraw waits until drawing has taken no more than its share; the last one always comes.
        is_last = self.num_unended <= 0
        is_due = now - self.drawn_at > self.drawing_s / DRAWING_SHARE
        if is_last or is_due:
            self._draw()

    def _compared_with_best(self, label: Label, value: float) -> str:
        """Return "test/accuracy 48.7 %, best so far 52.8 % (lora / vit / seed 0)" of a value that
        is not yet included in the best so far.
        """
        before = self.display.best.get(label.metric)
        text = f"{label.metric} {percent(value)} %"

        if before is None:
            return text

        best, cell = before
        if value > best:
            return f"{text}, the best so far"

        return f"{text}, best so far {percent(best)} % ({cell})"

    def _update_best(self, label: Label, value: float) -> None:
        known = self.display.best.get(label.metric)
        if known is None or value > known[0]:
            self.display.best[label.metric] = (value, label.cell)

    def _last_value(self, label: Label, trial: RunningTrial) -> str:
        """Return ", test/accuracy 48.7 %, best 49.0 %" of a trial's last epoch; empty without a
        finite value of the label's metric.
        """
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
        """Show a line of a trial, or its JSON object with `more`; on a terminal, whose live table
        shows the same, only if the display is verbose.
        """
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
        """Return "[3/9] ", the ended trials and all; "[3] " where no total is known."""
        if self.total:
            return f"[{self.ended}/{self.total}] "

        return f"[{self.ended}] "

    def numbers(self) -> dict[str, Any]:
        """Return the counts, best values and time left that every JSON line of a launch has."""
        best = {metric: value for metric, (value, _) in self.display.best.items()}
        return {
            "ended": self.ended,
            "total": self.total,
            "best": best,
            "left_s": self.left_s(),
        }

    def left_s(self) -> float | None:
        """Return the time left of the whole sweep or search; None while there is no estimate.

        It is extrapolated from the trials that have ended so far, with a running trial counted by
        the fraction of its epochs; below half a trial that would be too uncertain.
        """
        # A copy, as another thread may add trials meanwhile.
        started = sum(trial.fraction for trial in list(self.running.values()))
        search = self.display.search
        now = time.monotonic()

        if search is None:
            done = self.num_ended_here + started
            rest = self.num_unended - started
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
        """Make the tables anew and redraw the live display, where there is one."""
        if self.display.live is None:
            return

        started = time.monotonic()
        self.drawn_tables = self.tables()
        self.display.live.refresh()
        self.drawn_at = time.monotonic()
        self.drawing_s = self.drawn_at - started

    def drawn(self, columns: int, encoding: str) -> list[str]:
        """Return the lines of the tables that were made last, without their footnotes."""
        lines: list[str] = []
        for table in self.drawn_tables:
            lines += [*half_filled(table, columns - 1, encoding), ""]

        return lines

    def status(self) -> list[tuple[str, str]]:
        """Return the lines under the table, each with its style."""
        lines = [(f"{self.count()}{self.display.times()}", "bold")]
        for metric, (value, cell) in list(self.display.best.items()):
            lines.append((f"best so far: {metric} {percent(value)} % ({cell})", ""))

        if not self.running and self.num_unended > 0:
            lines.append((self.display.activity, ""))

        for key, trial in list(self.running.items())[:MOST_RUNNING]:
            lines.append((f"running  {self._running(key, trial)}", ""))

        if len(self.running) > MOST_RUNNING:
            lines.append((f"and {len(self.running) - MOST_RUNNING} more", ""))

        for failure in self.failures[-MOST_FAILED:]:
            lines.append((f"failed: {failure}", "red"))

        return lines
