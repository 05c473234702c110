"""Faults of a SQLite database, reported at once: MLflow and Optuna would try again for minutes,
then raise.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from urllib.parse import quote, unquote

MAGIC = b"SQLite format 3\0"
HEADER_BYTES = 100
CHECKED_BYTES = 200 * 2**20  # larger databases are not read through
LOCK_WAIT_S = 2.0  # for another process to end its transaction


def sqlite_path(uri: str) -> Path | None:
    """Return the file of a SQLite URI, None for any other one and for a database in memory."""
    scheme, separator, rest = uri.partition("://")
    if not separator or not scheme.lower().startswith("sqlite"):
        return None

    name = rest.removeprefix("/")
    if name.startswith("file:"):
        # SQLite's own URI form, in which characters of the path are escaped.
        name = unquote(name.removeprefix("file:").partition("?")[0])

    if name in ("", ":memory:"):
        return None

    return Path(name)


def sqlite_uri(path: Path) -> str:
    """Return the address of an SQLite database for SQLAlchemy, MLflow and Optuna.

    Nothing is escaped in it, but a question mark begins options. SQLite's own form,
    file:...?uri=true, would do for SQLAlchemy, but MLflow takes it for a folder `file:`. So a store
    whose path has a question mark is refused, and one with %41, which SQLAlchemy 2.1 reads as A and
    earlier ones as it stands (store.path_problem).
    """
    return f"sqlite:///{path}"


def sqlite_problem(path: Path, writes: bool = True) -> str:
    """Return what is wrong with the database at `path`, "" if nothing is. One that is not there yet
    is no problem.
    """
    if path.is_dir():
        return "is a folder, not a database"
    if path.is_symlink() and not path.exists():
        return "is a link to a file that is not there"
    if not path.exists():
        return ""
    if not path.is_file():
        return "is not a file"

    try:
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        return f"cannot be read: {error.strerror}"

    if size == 0:
        return ""  # to SQLite a new database
    if header[: len(MAGIC)] != MAGIC or len(header) < HEADER_BYTES:
        return "is damaged: it is not a SQLite database"
    if size < _bytes_by_header(header):
        return "is damaged: its end is missing"
    if writes and not os.access(path, os.W_OK):
        return "is read-only"

    return _problem_by_opening(path, writes, size <= CHECKED_BYTES)


def set_aside_name(path: Path) -> Path:
    """Return the first free name beside `path` for a damaged file: study.db.damaged-1 and so on."""
    number = 1
    while (candidate := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1

    return candidate


def _bytes_by_header(header: bytes) -> int:
    """Return the size that the header states, 0 if it states none
    (https://www.sqlite.org/fileformat.html, 1.3).
    """
    page_bytes = int.from_bytes(header[16:18], "big")
    if page_bytes == 1:
        page_bytes = 65536

    changes = header[24:28]
    pages = int.from_bytes(header[28:32], "big")
    valid_for = header[92:96]

    # Older writers leave the number of pages as it was; then the two counters differ.
    return pages * page_bytes if changes == valid_for else 0


def _problem_by_opening(path: Path, writes: bool, full_check: bool) -> str:
    mode = "rw" if writes else "ro"
    uri = f"file:{quote(str(path.absolute()))}?mode={mode}"
    connection = None

    try:
        connection = sqlite3.connect(
            uri, uri=True, timeout=LOCK_WAIT_S, isolation_level=None
        )
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if full_check:
            [answer] = connection.execute("PRAGMA quick_check(1)").fetchone()
            if answer != "ok":
                return f"is damaged: {' '.join(answer.split())[:100]}"

        if writes:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "busy" in str(error):
            return "is locked by another process"
        if "readonly" in str(error):
            return "is read-only, or its folder is"

        return f"cannot be opened: {error}"
    except sqlite3.DatabaseError as error:
        return f"is damaged: {error}"
    finally:
        if connection is not None:
            connection.close()

    return ""
