"""MLflow's files in a store: the database, ready-made, and the locks that let one process at a time change a run."""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from urllib.parse import quote

from pointsweep.data.cache import cache_folder
from pointsweep.sqlite_files import set_aside_name, sqlite_path, sqlite_problem, sqlite_uri
from pointsweep.store import FileStore, create_beside, open_lock
from pointsweep.target import TrackerAway

LOCK_WAIT_S = 120.0  # for another process to let go: on a busy machine a new database takes long
LOCK_PAUSE_S = 0.05


@contextmanager
def one_at_a_time(store: FileStore | None) -> Iterator[None]:
    """Two that open a fresh SQLite database at once break its creation, and on a server each would make a parent run."""
    if store is not None:
        store.root.mkdir(parents=True, exist_ok=True)
    with locked(store.path("mlflow.lock")) if store is not None else nullcontext(False):
        yield


def ready_made(uri: str, make: Callable[[str], object]) -> None:
    """A new SQLite database as a copy of an empty one that this machine keeps: making it takes MLflow's migrations seconds.

    `make` creates the database at a URI. A template that cannot be used is made again; without a cache there is none.
    """
    path = sqlite_path(uri)
    if path is None or path.exists():
        return
    template = cache_folder() / "mlflow" / f"{importlib.metadata.version('mlflow')}.db"
    try:
        template.parent.mkdir(parents=True, exist_ok=True)
        if template.exists() and not _is_empty_template(template):
            template.replace(set_aside_name(template))
        if not template.exists():
            fresh = template.with_name(f"{template.name}.{os.getpid()}.tmp")
            make(sqlite_uri(fresh))
            fresh.replace(template)
        data = template.read_bytes()
    except OSError:
        # The cache only saves time: MLflow makes the database itself.
        return
    # Not by mkstemp: others may share the store, and modes follow the umask.
    copied, file = create_beside(path)
    with file:
        file.write(data)
    copied.replace(path)


def _is_empty_template(path: Path) -> bool:
    """Whether a database is whole, has MLflow's tables and holds no run."""
    if sqlite_problem(path, writes=False):
        return False
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as database:
            [versions] = database.execute("SELECT count(*) FROM alembic_version").fetchone()
            [experiments] = database.execute("SELECT count(*) FROM experiments").fetchone()
            [runs] = database.execute("SELECT count(*) FROM runs").fetchone()
    except sqlite3.Error:
        return False
    return versions == 1 and experiments <= 1 and runs == 0


@contextmanager
def locked(path: Path, wait_s: float = LOCK_WAIT_S) -> Iterator[bool]:
    """Holds the lock; whether this is the first time that anybody does. Raises TrackerAway if another process does not let go."""
    try:
        path.touch(exist_ok=False)
        first = True
    except FileExistsError:
        first = False
    deadline = time.monotonic() + wait_s
    with open_lock(path) as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TrackerAway(f"{path} is held by another process that does not let go of it") from None
                time.sleep(LOCK_PAUSE_S)
        yield first
