"""How commands end."""

from __future__ import annotations

import errno
import importlib
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pointsweep import __version__
from pointsweep.cli.app import COMMANDS as COMMAND_MODULES
from pointsweep.errors import ConfigError, Problem, StoreError, StoreUnavailableError
from pointsweep.tracking.target import TrackerUnavailableError
from pointsweep.utils.cli_exit import BROKEN_OFF, INTERNAL, INTERRUPTED, INVALID, UNREAD, exit_code


def test_a_command_whose_reader_went_away_ends_without_a_word():
    line = [sys.executable, "-m", "pointsweep.published"]
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run(line, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (run.returncode, run.stderr) == (UNREAD, "")


def ends(error: BaseException) -> int:
    def main() -> int:
        raise error

    return exit_code(main)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ConfigError("a.yaml", [Problem("train.lr", "is no number", 3)]), INVALID, "train.lr (line 3): is no number"),
        (StoreError("store: x is a file"), INVALID, "store: x is a file"),
        (TrackerUnavailableError("MLflow at http://h: no answer"), INVALID, "no answer"),
        (PermissionError(errno.EACCES, "Permission denied", "/some/record.json"), INVALID, "Permission denied: /some/record.json"),
        (BrokenPipeError("a server's"), INVALID, "a server's"),
        (StoreUnavailableError("the store cannot be written: No space left on device: /s/record.json"), BROKEN_OFF, "No space left"),
        (MemoryError(), BROKEN_OFF, "memory does not suffice"),
        (KeyError("rows"), INTERNAL, "internal error: KeyError: 'rows'"),
        (RuntimeError("a library's\nlong story"), INTERNAL, "internal error: RuntimeError: a library's long story"),
        (KeyboardInterrupt(), INTERRUPTED, "interrupted"),
    ],
)
def test_every_exception_ends_a_command_in_words_and_with_its_code(error, code, words, capsys, store):
    assert ends(error) == code
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) <= 3


def test_the_traceback_of_a_fault_is_in_the_stores_log_folder_without_secrets(capsys, store, monkeypatch):
    (store / "trials").mkdir(parents=True)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "planted-bearer")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:planted-password@h/x?key=planted-query")
    ends(RuntimeError("refused: planted-bearer, /x?key=planted-query, user:planted-password"))
    said = capsys.readouterr().err
    [log] = (store / "logs").iterdir()
    assert str(log) in said
    text = log.read_text()
    assert "Traceback (most recent call last)" in text and "RuntimeError: refused" in text
    assert "planted" not in text + said


def test_a_log_goes_to_the_temporary_folder_where_there_is_no_store(capsys, store, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    ends(RuntimeError("early"))
    assert not store.exists()
    [log] = (tmp_path / "temporary" / "pointsweep-logs").iterdir()
    assert str(log) in capsys.readouterr().err


COMMANDS = ["run", "tables", "sync", "gc", "replay", "verify", "published", "doctor", "chaos", "data"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_version_and_a_help_that_fits_a_screen(name):
    line = [sys.executable, "-m", f"pointsweep.{name}"]
    environment = {**os.environ, "COLUMNS": "80"}
    told = subprocess.run([*line, "--version"], capture_output=True, text=True, check=True, env=environment)
    assert told.stdout == f"pointsweep {__version__}\n"
    shown = subprocess.run([*line, "--help"], capture_output=True, text=True, check=True, env=environment).stdout
    assert "--version" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert len(shown.splitlines()) <= 28


def main_of(name: str) -> Callable[[list[str]], int]:
    found: Callable[[list[str]], int] = importlib.import_module(COMMAND_MODULES[name][0]).main
    return found


STRANGE = ["missing", "empty", "random", "folder", "link", "text"]


@pytest.fixture
def strange(tmp_path) -> Path:
    """A folder of things that no command can use."""
    (tmp_path / "empty.yaml").write_bytes(b"")
    (tmp_path / "random.yaml").write_bytes(random.Random(1).randbytes(3000))
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "link.yaml").symlink_to(tmp_path / "link.yaml")
    (tmp_path / "text.yaml").write_text("- just\n- a list\n")
    return tmp_path


@pytest.mark.parametrize("what", STRANGE)
@pytest.mark.parametrize(
    "words",
    [
        "run FILE --inline", "run FILE --plan", "tables FILE", "tables x --store FILE", "tables x --source mlflow --tracking-uri sqlite:///FILE",
        "replay FILE row column", "verify FILE", "published --csv FILE", "published --table FILE", "data FILE", "sync FILE",
        "sync FOLDER --tracking-uri sqlite:///FILE", "gc FILE", "chaos FILE --runs 0",
    ],
)  # fmt: skip
def test_no_command_shows_a_traceback_whatever_it_is_given(strange, store, capsys, words, what):
    name, *arguments = words.replace("FILE", str(strange / f"{what}.yaml")).replace("FOLDER", str(strange)).split()
    code = exit_code(lambda: main_of(name)(arguments))
    said = capsys.readouterr()
    # What `verify` is given is no sound bundle, which is its own finding.
    expected = {1, INVALID} if name == "verify" else {INVALID}
    assert code in expected, said
    assert "Traceback" not in said.out + said.err
    assert "internal error" not in said.err
    assert 1 <= len(said.err.strip().splitlines()) <= 3 or name in ("data", "verify")
