"""The whole command, with a real Ray, as people use it: in a terminal, with its output in a file, in a pipe."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.end_to_end.test_command import SWEEP
from tests.end_to_end.test_search import BASE, SEARCH
from tests.support.terminal import Terminal

RUN = [sys.executable, "-m", "pointsweep.run"]
QUICKSTART = [*RUN, str(Path(__file__).parents[2] / "sweeps" / "quickstart.yaml"), "profile=smoke"]
ONE_ROW = ["--only", "row=lora", "--only", "column=line", "seeds=1", "--tracking-uri", "none"]
WRONG = ("Traceback", "SystemError", "PicklingError", "internal error", "core worker")


def assert_complete(code: int, output: str, store: Path) -> None:
    """The run has ended well: its table is printed and stored, all trials are there, and nothing odd was said."""
    assert code == 0, output
    assert "all cells: random frozen weights, synthetic data" in output
    assert (store / "sweeps/quickstart-smoke/table.txt").is_file()
    assert len(list((store / "trials").glob("*/record.json"))) == 6
    for word in WRONG:
        assert word not in output


def in_terminal(store: Path, columns: int = 118, lines: int = 40) -> None:
    terminal = Terminal([*QUICKSTART, "--store", str(store)], columns, lines)
    code = terminal.wait()
    assert_complete(code, terminal.text, store)
    assert "0/6" in terminal.text and "6/6" in terminal.text  # the live table's line


def into_file(store: Path) -> None:
    output = store.with_suffix(".log")
    with output.open("w") as file:
        run = subprocess.run(
            [*QUICKSTART, "--store", str(store)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            timeout=600,
        )
    assert_complete(run.returncode, output.read_text(), store)
    assert "[6/6] finished" in output.read_text()


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (118, 40), (200, 50)])
def test_in_a_terminal_a_sweep_shows_its_live_table_and_ends_with_its_table(store, columns, lines):
    in_terminal(store, columns, lines)
    if columns == 118:
        again = Terminal(QUICKSTART, columns, lines)
        assert again.wait() == 0
        assert "6 finished, 0 to run" in again.text
        assert "head only" in again.text


@pytest.mark.parametrize("number", range(3))
def test_with_its_output_in_a_file_a_sweep_ends_with_its_table(store, number):
    into_file(store)


@contextmanager
def busy_cores(wanted: bool) -> Iterator[None]:
    """Two processes that do nothing, as fast as they can."""
    line = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(line) for _ in range(2 if wanted else 0)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("one_run", [in_terminal, into_file])
def test_ten_runs_in_a_row_all_end_with_their_table(tmp_path, monkeypatch, one_run, busy):
    """Forty runs in all: in a terminal and into a file, on an idle and on a busy machine."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with busy_cores(busy):
        for number in range(10):
            one_run(tmp_path / f"store{number}")


def tiny(tmp_path: Path, text: str) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(text)
    return str(path)


def test_a_failed_arm_is_seen_in_a_terminal_and_the_others_go_on(store, tmp_path):
    text = SWEEP.replace("seeds: 2", "seeds: 1").replace("plane, ", "plane, train.lr: 1.0e+30, ")
    terminal = Terminal([*RUN, tiny(tmp_path, text), "--only", "row=lora", "--tracking-uri", "none"], 80, 24)
    assert terminal.wait() == 1, terminal.text
    assert "diverged" in terminal.text
    assert len(list((store / "trials").glob("*/record.json"))) == 1
    for word in WRONG:
        assert word not in terminal.text


def has_begun(store: Path) -> bool:
    """Tell whether some trial has trained an epoch."""
    return any('"epoch"' in path.read_text() for path in (store / "trials").glob("*/history.jsonl"))


def stopped(store: Path) -> bool:
    """Tell whether a worker has kept a checkpoint because it was asked to end."""
    return any('"preempted"' in path.read_text() for path in (store / "trials").glob("*/history.jsonl"))


@pytest.mark.parametrize("how", ["ctrl-c", "SIGTERM"])
def test_a_sweep_in_a_terminal_is_interrupted_and_the_same_command_continues(store, tmp_path, how):
    sweep = tiny(tmp_path, SWEEP.replace("epochs: 2", "epochs: 400"))
    terminal = Terminal([*RUN, sweep, *ONE_ROW])
    assert terminal.read_until(lambda: has_begun(store))
    begun = time.monotonic()
    if how == "ctrl-c":
        terminal.type(b"\x03")
    else:
        os.kill(terminal.pid, signal.SIGTERM)
    assert terminal.wait() == 3, terminal.text
    assert time.monotonic() - begun < 30  # 3 s on a quiet machine; the sweep takes longer
    name = "SIGINT" if how == "ctrl-c" else "SIGTERM"
    assert f"interrupted by {name}: all that is done is kept in" in terminal.text
    for word in WRONG:
        assert word not in terminal.text
    if how == "ctrl-c":
        return
    # Of a worker that is slow to save, the checkpoint before is there.
    again = Terminal([*RUN, sweep, *ONE_ROW])
    assert again.wait() == 0, again.text


def test_ctrl_c_while_ray_starts_ends_the_command_in_a_terminal(store, tmp_path):
    terminal = Terminal([*RUN, tiny(tmp_path, SWEEP), *ONE_ROW])
    assert terminal.read_until(lambda: "0 finished, 1 to run" in terminal.text)
    time.sleep(1.0)  # Ray needs some seconds
    terminal.type(b"\x03")
    assert terminal.wait() == 3, terminal.text
    assert "interrupted by SIGINT" in terminal.text
    for word in WRONG:
        assert word not in terminal.text


def test_a_search_runs_in_a_terminal(store, tmp_path):
    terminal = Terminal([*RUN, tiny(tmp_path, BASE + SEARCH.replace("12", "3")), "--tracking-uri", "none"])
    assert terminal.wait() == 0, terminal.text
    for word in WRONG:
        assert word not in terminal.text


def test_a_sweep_whose_reader_goes_away_is_trained_to_its_end(store, tmp_path):
    """As with `| head -n 1`."""
    line = " ".join([*RUN, tiny(tmp_path, SWEEP), *ONE_ROW, "| head -n 1"])
    run = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=600)
    assert run.stdout.count("\n") == 1
    assert len(list((store / "trials").glob("*/record.json"))) == 1
    for word in WRONG:
        assert word not in run.stderr
