"""Fault injection: points at which a process can be made to die; all that is written to a store
passes here. Off unless POINTSWEEP_CHAOS is set by chaos.py.

The processes of a sweep share a ledger with one line per write, so "the 17th write" means the same
one in all of them together, and a death happens once. Who dies loses what was not flushed to the
disk, as when the power fails.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import IO

# {"ledger": path, "deaths": {number of the write, or "folder/file" for every write of it: way}}
VARIABLE = "POINTSWEEP_CHAOS"
WAYS = (
    "before",
    "torn",
    "after",
)  # besides: "full", which raises what a full disk raises
_unflushed: set[Path] = set()
# `aside`, where a thread has one: what is done under it does not hold up others
waits = threading.local()


def due(path: Path) -> str:
    """Enter a write into the ledger; return how this process has to die of it, "" if it lives
    on.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return ""

    orders = json.loads(text)
    with Path(orders["ledger"]).open("a+") as ledger:
        fcntl.flock(ledger, fcntl.LOCK_EX)
        ledger.seek(0)
        number = len(ledger.readlines()) + 1
        name = f"{path.parent.name}/{path.name}"
        way = str(orders["deaths"].get(str(number)) or orders["deaths"].get(name, ""))
        ledger.write(f"{name} {way}\n")

    if way == "before":
        die()

    return way


def put(file: IO[bytes], data: bytes, path: Path, way: str) -> None:
    """Write to the disk what will stand at `path`. A torn write is half of it, and death."""
    _unflushed.add(path)
    if way in ("torn", "full"):
        file.write(data[: len(data) // 2])
        file.flush()
        if way == "torn":
            die()

        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    file.write(data)
    file.flush()
    flush(file, path)


def flush(file: IO[bytes], path: Path | None = None) -> None:
    """Flush to the disk. A thread that others wait for lets them go on meanwhile (`waits.aside`,
    coroutines.py).
    """
    with getattr(waits, "aside", nullcontext)():
        os.fsync(file.fileno())
        if path is not None:
            _unflushed.discard(path)


def done(way: str) -> None:
    """The write has ended."""
    if way == "after":
        die()


def die() -> None:
    """Die as of kill -9 and a power failure."""
    for path in list(_unflushed):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)

    os.kill(os.getpid(), signal.SIGKILL)
