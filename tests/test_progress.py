"""What a launch shows while it runs."""

from __future__ import annotations

import io

from pointsweep.inline import Event
from pointsweep.progress import Progress

NAMES = {"k0": "lora / line / seed 0", "k1": "lora / line / seed 1"}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drive(stream: io.StringIO) -> str:
    with Progress(NAMES, 1, 3, lambda: "THE TABLE", stream) as progress:
        progress(Event("epoch", "k0", 1, 2, {"test/accuracy": 0.5}))
        progress(Event("finished", "k0"))
        progress(Event("failed", "k1", reason="Diverged: loss is nan"))
        if progress.live is not None:
            progress.live.refresh()
    return stream.getvalue()


def test_a_log_gets_one_plain_line_for_each_end():
    lines = drive(io.StringIO()).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("[2/3] finished  lora / line / seed 0")
    assert lines[1].startswith("[3/3] failed  lora / line / seed 1: Diverged: loss is nan")
    assert "\x1b" not in "".join(lines)


def test_a_log_hears_of_running_trials_when_nothing_else_happens():
    stream = io.StringIO()
    with Progress(NAMES, 0, 2, lambda: "", stream) as progress:
        progress.spoken -= 60
        progress(Event("epoch", "k0", 1, 4))
    assert "running  lora / line / seed 0 25%" in stream.getvalue()


def test_a_terminal_gets_the_half_filled_table_counts_and_the_last_failures():
    shown = drive(Terminal())
    for part in ("THE TABLE", "3/3 trials ended", "failed: lora / line / seed 1: Diverged: loss is nan"):
        assert part in shown
