"""Damages that tests do to a file of a store or of a cache: each is a function of its path. `locked` is one that ends."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Damage = Callable[[Path], None]


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def cut_in_half(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def without_its_last_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def random_bytes(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(5000))


def zeros(path: Path) -> None:
    path.write_bytes(bytes(max(path.stat().st_size, 100)))


def zeros_in_the_middle(path: Path) -> None:
    """As a disk leaves a block that was not flushed."""
    data = bytearray(path.read_bytes())
    start, end = len(data) // 3, 2 * len(data) // 3
    data[start:end] = bytes(end - start)
    path.write_bytes(data)


def another_text(path: Path) -> None:
    path.write_text("<html><body>504 Gateway Time-out</body></html>\n")


def other_json(path: Path) -> None:
    path.write_text('{"version": 99, "arms": 3, "cells": null}')


def a_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()
    (path / "inside").write_text("x")


def a_link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere") / "file")


def unreadable(path: Path) -> None:
    """Has no effect on root; tests leave it out there."""
    path.chmod(0)


def read_only(path: Path) -> None:
    """Has no effect on root; tests leave it out there."""
    path.chmod(0o444)


CONTENT: list[Damage] = [
    emptied, cut_in_half, without_its_last_byte, random_bytes, zeros, zeros_in_the_middle, another_text, other_json,
]  # fmt: skip
KIND: list[Damage] = [a_folder, a_link_to_nowhere]
RIGHTS: list[Damage] = [] if os.geteuid() == 0 else [unreadable, read_only]
DAMAGES: list[Damage] = [*CONTENT, *KIND, *RIGHTS]


def of_a_newer_version(path: Path) -> None:
    """Of a SQLite database that Alembic migrates, as those of MLflow and Optuna are."""
    database = sqlite3.connect(path)
    with database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    database.close()


def without_a_table(path: Path) -> None:
    """Of a SQLite database: sound, but not all there."""
    database = sqlite3.connect(path)
    [name] = database.execute("SELECT name FROM sqlite_master WHERE type='table' AND name IN ('runs', 'trials')").fetchone()
    with database:
        database.execute(f"DROP TABLE {name}")
    database.close()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process is within a transaction of a SQLite database."""
    code = f"import sqlite3, sys; d = sqlite3.connect({str(path)!r}); d.execute('BEGIN EXCLUSIVE'); print('locked', flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"locked\n"
        yield
    finally:
        holder.communicate(b"")
