"""What a command shows while it works."""

from __future__ import annotations

import io
import json
import re
import time

import pytest
from rich.console import Console

from pointsweep.execution.launchers import Event, phase
from pointsweep.execution.progress import Display, Label, Progress, duration
from pointsweep.utils.console import width
from tests.reporting.test_formats import table

LABELS = {
    key: Label(f"lora / line / seed {seed}", "test/accuracy", "tiny", "lora", "line", seed)
    for seed, key in enumerate(["k0", "k1", "k2"])
}
VALUES = {"k0": 0.487, "k1": 0.528, "k2": 0.5}


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def begin(stream: io.StringIO, finished: int = 0, total: int = 3, **how: object) -> tuple[Display, Progress]:
    display = Display(stream, **how)
    return display, Progress(display, LABELS, finished, total, VALUES.get, lambda: [table()])


def drive(stream: io.StringIO, **how: object) -> str:
    display, progress = begin(stream, 1, 4, **how)
    with display, progress:
        progress(Event("started", "k0"))
        progress(Event("epoch", "k0", 1, 2, {"test/accuracy": 0.5}))
        progress(Event("finished", "k0"))
        progress(Event("finished", "k1"))
        progress(Event("failed", "k2", reason="DivergedError: loss is nan"))
        if display.live is not None:
            display.live.refresh()
    return stream.getvalue()


def test_a_log_gets_one_plain_line_for_each_end_with_value_best_and_times():
    lines = drive(io.StringIO()).splitlines()
    assert len(lines) == 3
    time_of = r"\(0 s; 0 s so far(, about 0 s left)?\)"
    assert re.fullmatch(rf"\[2/4\] finished  lora / line / seed 0  test/accuracy 48\.7 %  {time_of}", lines[0])
    assert lines[1].startswith("[3/4] finished  lora / line / seed 1  test/accuracy 52.8 %, the best so far  (")
    assert lines[2].startswith("[4/4] failed  lora / line / seed 2: DivergedError: loss is nan  (")
    assert "\x1b" not in "".join(lines)


def test_the_best_so_far_is_named_with_its_trial_and_outlasts_a_launch():
    stream = io.StringIO()
    display, progress = begin(stream)
    with progress:
        progress.seen("k1", 0.528)
    with Progress(display, LABELS, 1, 3, VALUES.get) as following:
        following(Event("finished", "k2"))
    assert "test/accuracy 50.0 %, best so far 52.8 % (lora / line / seed 1)" in stream.getvalue()


def test_a_log_hears_of_running_trials_when_nothing_else_happens():
    stream = io.StringIO()
    display, progress = begin(stream, 0, 2)
    with progress:
        progress(Event("started", "k0"))
        progress(Event("started", "k1"))
        progress(Event("epoch", "k0", 1, 4, {"test/accuracy": 0.5}))
        progress(Event("epoch", "k0", 2, 4, {"test/accuracy": 0.25}))
        display.heartbeat()
        assert stream.getvalue() == ""
        display.last_line_at -= 60
        display.heartbeat()
        display.heartbeat()
    line = stream.getvalue()
    assert line.startswith(
        "[0/2] running  lora / line / seed 0: epoch 2 of 4, test/accuracy 25.0 %, best 50.0 %; "
        "lora / line / seed 1: no epoch finished yet, 0 s  (0 s so far, about 0 s left)"
    )
    assert len(line.splitlines()) == 1


def test_a_log_says_what_a_command_is_busy_with_before_any_trial():
    stream = io.StringIO()
    display, progress = begin(stream, 0, 2)
    display.phase("planning tiny")
    display.heartbeat()
    assert stream.getvalue() == ""
    display.last_line_at -= 7
    display.phase_begun -= 6
    display.heartbeat()
    display.heartbeat()
    with progress:
        progress(phase("starting Ray"))
        display.last_line_at -= 7
        display.phase_begun -= 6
        display.heartbeat()
    assert stream.getvalue().splitlines() == ["planning tiny  (0 s so far)", "[0/2] starting Ray  (0 s so far)"]


def test_what_goes_on_for_long_is_said_again_ever_more_rarely():
    stream = io.StringIO()
    display, progress = begin(stream, 0, 2)
    with progress:
        progress(phase("waiting for 2 x {GPU: 1}"))
        pauses = []
        for _ in range(6):
            while not (said := len(stream.getvalue().splitlines())) > len(pauses):
                display.last_line_at -= 1
                display.phase_begun = display.last_line_at  # said when it began
                display.heartbeat()
            pauses.append(said)
            assert display.pause_s <= 300
        assert display.pause_s == 300
        progress(phase("starting workers"))
        assert display.pause_s == 30


def test_the_clock_speaks_by_itself(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("pointsweep.execution.progress.TICK_S", 0.01)
    display, _ = begin(stream)
    with display:
        display.phase("starting Ray")
        display.last_line_at -= 60
        deadline = time.monotonic() + 60
        while "starting Ray" not in stream.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "starting Ray" in stream.getvalue()


def test_the_time_left_is_that_of_the_whole_and_follows_the_epochs():
    _, progress = begin(io.StringIO(), 2, 6)
    with progress:
        assert progress.left_s() is None
        progress(Event("started", "k0"))
        progress.begun -= 30
        progress(Event("finished", "k0"))
        progress(Event("started", "k1"))
        progress(Event("epoch", "k1", 1, 2, {}))
        # 30 s for one trial and a half: two and a half are left.
        assert progress.left_s() == pytest.approx(30 / 1.5 * 2.5, abs=1)


def test_the_time_left_of_a_search_is_not_that_of_its_batch():
    stream = io.StringIO()
    display, progress = begin(stream, 0, 2)
    display.expect(4, 20)
    display.search_begun -= 100
    display.expect(8, 20)
    with progress:
        progress(Event("finished", "k0"))
        assert progress.left_s() == pytest.approx(100 / 5 * 11, abs=2)
    assert stream.getvalue().startswith("[9/20] finished")


def test_hours_bound_the_time_left_of_a_search():
    display, progress = begin(io.StringIO(), 0, 2)
    display.expect(0, 1000, 0.2)
    display.search_begun -= 100
    display.expect(10, 1000, 0.6)
    with progress:
        assert progress.left_s() == pytest.approx(100 * 0.4 / 0.4, abs=2)
    display.expect(10, 0, 0.6)
    with progress:
        assert progress.count() == "[10] "


def test_quiet_shows_results_alone():
    stream = io.StringIO()
    assert drive(stream, quiet=True) == ""
    display = Display(stream, quiet=True)
    display.say("information")
    display.result(table(), "THE TABLE")
    assert stream.getvalue() == "THE TABLE\n"


def test_verbose_has_every_start_and_epoch():
    kinds = [line.split("] ")[1].split()[0] for line in drive(io.StringIO(), verbose=True).splitlines()]
    assert kinds == ["started", "epoch", "finished", "finished", "failed"]


def test_json_is_one_object_a_line_and_nothing_else(capsys):
    stream = io.StringIO()
    display, progress = begin(stream, form="json")
    with display, progress:
        print("a library prints this")
        display.say("two\nlines \x1b[2J ±")
        progress(phase("starting Ray"))
        progress(Event("started", "k0"))
        progress(Event("epoch", "k0", 1, 2, {"test/accuracy": 0.5, "train/loss": float("nan")}))
        progress(Event("finished", "k0"))
        progress(Event("failed", "k1", reason="boom"))
        display.result(table(), "THE TABLE", report="r.html", store="s")
    display.end(1)
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["event"] for event in events] == [
        "message", "phase", "started", "epoch", "finished", "failed", "table", "end",
    ]  # fmt: skip
    assert all({"time", "elapsed_s"} <= event.keys() for event in events)
    epoch, finished, failed, made, end = events[3:]
    assert epoch["metrics"] == {"test/accuracy": 0.5, "train/loss": None}
    assert (epoch["key"], epoch["epoch"], epoch["epochs"]) == ("k0", 1, 2)
    assert (epoch["sweep"], epoch["row"], epoch["column"], epoch["seed"]) == ("tiny", "lora", "line", 0)
    assert (finished["value"], finished["best"], finished["ended"], finished["total"]) == (0.487, {"test/accuracy": 0.487}, 1, 3)
    assert (failed["reason"], failed["value"]) == ("boom", None)
    assert made["table"]["cells"][0]["mean"] == 0.812
    assert (made["report"], made["store"], end["exit_code"]) == ("r.html", "s", 1)
    assert capsys.readouterr() == ("", "a library prints this\n")


def test_a_terminal_gets_the_half_filled_table_counts_and_the_last_failures(monkeypatch):
    monkeypatch.setenv("COLUMNS", "118")
    monkeypatch.setenv("LINES", "30")
    shown = drive(Terminal())
    for part in (
        "81.2 ± 0.4",
        "[4/4] ",
        "failed: lora / line / seed 2: DivergedError: loss is nan",
        "best so far: test/accuracy 52.8 %",
    ):
        assert part in shown


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (118, 40), (200, 50), (40, 8)])
def test_a_screen_fits_its_terminal_and_keeps_the_status_in_sight(columns, lines, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", str(lines))
    rows = tuple((f"漢字 label \x1b[2J {number} " * 3,) for number in range(60))
    big = table(rows=rows, cells=tuple(c for row in range(60) for c in two(row)))
    display = Display(Terminal())
    labels = {f"k{number}": Label(f"row {number} " * 9, "test/accuracy") for number in range(9)}
    with display, Progress(display, labels, 0, 120, VALUES.get, lambda: [big]) as progress:
        for key in labels:
            progress(Event("started", key))
        progress(Event("failed", "k8", reason="x" * 300))
        paper = io.StringIO()
        Console(file=paper, width=columns, height=lines).print(display._screen())
        shown = paper.getvalue().splitlines()
    assert len(shown) < lines
    assert max(map(width, shown)) < columns
    assert any(line.startswith("[1/120] ") for line in shown)
    assert any("more lines" in line for line in shown) or lines == 8
    assert "\x1b" not in "".join(shown)


def two(row: int):
    from tests.reporting.test_formats import cell

    return cell(row, 0), cell(row, 1)


def test_a_dumb_terminal_gets_a_log(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    shown = drive(Terminal())
    assert len(shown.splitlines()) == 3
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.2, "0 s"), (99.4, "99 s"), (100, "1 min 40 s"), (120, "2 min"), (599, "9 min 59 s"), (600, "10 min"),
        (3569, "59 min"), (3599, "1 h"), (7500, "2 h 5 min"), (90_000, "25 h"),
    ],
)  # fmt: skip
def test_times_are_said_as_one_says_them(seconds, shown):
    assert duration(seconds) == shown
