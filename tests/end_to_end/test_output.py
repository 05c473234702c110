"""The real command where output is hostile: encodings, terminals, full disks, readers that go away; and output for programs."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pointsweep.utils.console import width
from tests.support.terminal import CONTROL, Terminal

SWEEP = r"""
name: hostile
title: "± a \e[31mred\e[0m title\0"
base:
  dataset: {name: synthetic, num_points: 64, presample: 64, train_limit: 20, test_limit: 10}
  tokenizer: {name: point_pn_light, num_tokens: 8, neighbours: 8}
  backbone: {name: tiny, modality: 1d}
  method: head_only
  train: {epochs: 2, batch_size: 10, warmup_epochs: 0, lr: 2.0e-3}
rows:
  - {label: "漢字と文字", train.weight_decay: 0.1}
  - {label: "=1+1", train.weight_decay: 0.2}
seeds: 2
"""
HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    path = tmp_path / "hostile.yaml"
    path.write_text(SWEEP)
    return path


def line(sweep: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "pointsweep.run", str(sweep), "--inline", "--tracking-uri", "none", *more]


def run(sweep: Path, *more: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command; a value "" takes a variable out of its environment."""
    own = {name: value for name, value in {**os.environ, **environment}.items() if value or name not in environment}
    return subprocess.run(line(sweep, *more), capture_output=True, timeout=300, check=False, env=own)


@pytest.mark.parametrize(
    ("environment", "encoding", "spread", "label"),
    [
        ({"PYTHONIOENCODING": "ascii"}, "ascii", "+-", r"\u6f22\u5b57"),
        ({"PYTHONIOENCODING": "latin-1"}, "latin-1", "±", r"\u6f22\u5b57"),
        ({"LANG": "C", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, "ascii", "+-", r"\u6f22\u5b57"),
        ({"TERM": "dumb", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}, "utf-8", "±", "漢字と文字"),
    ],
    ids=["ascii", "latin-1", "C", "dumb"],
)
def test_a_sweep_is_trained_and_its_table_printed_whatever_the_encoding(environment, encoding, spread, label, store, sweep):
    done = run(sweep, **environment)
    assert done.returncode == 0, done.stderr.decode()
    shown = done.stdout.decode(encoding)
    assert not HIDDEN.search(shown)
    assert r"a \x1b[31mred\x1b[0m title\x00" in shown
    assert spread in shown and label in shown
    assert len(list((store / "trials").glob("*/record.json"))) == 4
    lines = shown.splitlines()
    rule = next(number for number, text in enumerate(lines) if text.startswith("-----"))
    assert len({width(text) for text in lines[rule + 1 : rule + 3]}) == 1, "the columns do not align"


def test_a_full_disk_on_standard_output_costs_no_trial(store, sweep):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(line(sweep), stdout=full, stderr=subprocess.PIPE, text=True, timeout=300, check=False)
    said = "standard output cannot be written (No space left on device); the command goes on without it\n"
    assert (done.returncode, done.stderr) == (6, said)
    assert len(list((store / "trials").glob("*/record.json"))) == 4
    assert (store / "sweeps" / "hostile" / "table.txt").exists()


def test_a_sweep_outlives_its_reader_and_a_closed_standard_output(store, sweep):
    command = " ".join(f"'{word}'" for word in line(sweep))
    piped = subprocess.run(
        ["bash", "-c", f"{command} | head -1; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True, timeout=300
    )
    assert piped.returncode == 141
    assert piped.stdout == "hostile: 0 finished, 4 to run\n"
    assert piped.stderr == "standard output cannot be written (nobody reads it any more); the command goes on without it\n"
    assert len(list((store / "trials").glob("*/record.json"))) == 4
    closed = subprocess.run(["bash", "-c", f"{command} >&-"], capture_output=True, text=True, timeout=300)
    assert (closed.returncode, closed.stdout, closed.stderr) == (0, "", "")


def test_json_is_all_that_a_program_reads_and_quiet_is_the_table_alone(store, sweep):
    done = run(sweep, "--log-format", "json")
    assert done.returncode == 0, done.stderr.decode()
    events = [json.loads(text) for text in done.stdout.decode("ascii").splitlines()]
    kinds = [event["event"] for event in events]
    assert [kinds.count(kind) for kind in ("started", "epoch", "finished", "table", "end")] == [4, 8, 4, 1, 1]
    finished = [event for event in events if event["event"] == "finished"]
    for event in finished:
        record = json.loads((store / "trials" / event["key"] / "record.json").read_text())
        assert event["value"] == record["metrics"]["last"]["test/accuracy"]
        assert event["seed"] == record["config"]["seed"]
    assert [(event["ended"], event["total"]) for event in finished] == [(n, 4) for n in range(1, 5)]
    means = {cell["row"]: cell["mean"] for cell in next(e for e in events if e["event"] == "table")["table"]["cells"]}
    for row, label in enumerate(["漢字と文字", "=1+1"]):
        mine = [event["value"] for event in finished if event["row"] == label]
        assert means[row] == pytest.approx(sum(mine) / 2)
    assert events[-1] == {**events[-1], "event": "end", "exit_code": 0}

    quiet = run(sweep, "--quiet")
    assert (quiet.returncode, quiet.stderr) == (0, b"")
    assert quiet.stdout.decode().startswith("± a ")

    tables = [sys.executable, "-m", "pointsweep.tables", "hostile", "--format"]
    for form in ("text", "md", "tex", "csv", "json", "html"):
        shown = subprocess.run([*tables, form], capture_output=True, text=True, timeout=300, check=True).stdout
        assert not HIDDEN.search(shown), form
    fields = list(csv.DictReader(io.StringIO(subprocess.run([*tables, "csv"], capture_output=True, text=True).stdout)))
    assert [row["row"] for row in fields] == ["漢字と文字", "'=1+1"]


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (200, 50)])
def test_a_terminal_shows_progress_and_keeps_the_table(columns, rows, store, sweep):
    words = {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", "COLUMNS": "", "LINES": "", "NO_COLOR": ""}
    terminal = Terminal(line(sweep), columns, rows, environment=words)
    code = terminal.wait()
    shown = terminal.written.decode()
    assert code == 0, shown
    assert "Traceback" not in shown
    assert "\x1b[31m" not in shown
    assert "[0/4] " in shown and "best so far: test/accuracy" in shown
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l"), "the cursor is left hidden"
    assert shown.count("protocol:") == 1 and "store    " in shown, "the whole table comes once, at the end"
    lines = CONTROL.sub("", shown).replace("\r", "\n").splitlines()
    assert max(width(text) for text in lines if str(store) not in text) <= columns
