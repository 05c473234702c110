"""MLflow's files in a store: the database, ready-made, and the locks that let one process at a time
change a run.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from pointsweep.storage.base import FileStore, create_beside, open_lock
from pointsweep.tracking.target import TrackerUnavailableError
from pointsweep.utils.array_cache import cache_folder
from pointsweep.utils.sqlite_files import sqlite_path, sqlite_uri

# for another process to let go: on a busy machine a new database takes long
LOCK_WAIT_S = 120.0
LOCK_PAUSE_S = 0.05


@contextmanager
def one_at_a_time(store: FileStore | None) -> Iterator[None]:
    """Keep others out: two that open a fresh SQLite database at once break its creation, and on a
    server each would make a parent.
    """
    if store is None:
        yield
        return

    store.root.mkdir(parents=True, exist_ok=True)
    with locked(store.path("mlflow.lock")):
        yield


def ready_made(uri: str, make: Callable[[str], object]) -> None:
    """A new SQLite database as a copy of an empty one that this machine keeps: making it takes
    MLflow's migrations seconds.

    `make` creates the database at a URI. Without a usable cache there is no template, and MLflow
    makes the database itself.
    """
    path = sqlite_path(uri)
    if path is None or (path.exists() and path.stat().st_size):
        return

    try:
        data = _template(cache_folder() / "mlflow", make)
    except OSError:
        return

    # Not by mkstemp: others may share the store, and modes follow the umask.
    copied, file = create_beside(path)
    with file:
        file.write(data)

    copied.replace(path)


def _template(folder: Path, make: Callable[[str], object]) -> bytes:
    """Return the bytes of an empty database. A kept one is named by its digest; one that was
    changed is not used.
    """
    version = importlib.metadata.version("mlflow")
    folder.mkdir(parents=True, exist_ok=True)

    for cached in sorted(folder.glob(f"{version}-*.db")):
        if not cached.is_file():
            continue

        data = cached.read_bytes()
        if cached.name == _template_name(version, data):
            return data

        cached.unlink()

    fresh = folder / f"{version}.{os.getpid()}.tmp"
    make(sqlite_uri(fresh))
    data = fresh.read_bytes()
    target = folder / _template_name(version, data)

    if target.is_dir():
        fresh.unlink()
    else:
        fresh.replace(target)

    return data


def _template_name(version: str, data: bytes) -> str:
    return f"{version}-{hashlib.sha256(data).hexdigest()[:16]}.db"


def take_artifacts_along(uri: str, folder: Path) -> None:
    """Make the artifacts of a store that was copied or moved those of its own folder: MLflow keeps
    their absolute place.

    What lies elsewhere by a user's wish stays; known are the places that end as a store's own do,
    in mlartifacts, and that of the experiment Default, which is the folder in which MLflow made the
    database: of a copied one, somebody else's.
    """
    path = sqlite_path(uri)
    if path is None or not path.exists():
        return

    own_uri = folder.as_uri()
    with closing(sqlite3.connect(path, timeout=LOCK_WAIT_S)) as database:
        location_columns = (
            ("experiments", "artifact_location", "experiment_id"),
            ("runs", "artifact_uri", "run_uuid"),
            ("logged_models", "artifact_location", "model_id"),
        )

        tables = set()
        for (name,) in database.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table'"
        ):
            tables.add(name)

        for table, column, key in location_columns:
            if table not in tables:  # MLflow before version 3 knows no logged models
                continue

            rows = database.execute(f"SELECT {key}, {column} FROM {table}").fetchall()
            for number, location in rows:
                before, own, rest = str(location).rpartition("/mlartifacts")
                in_a_store = (
                    own and before.startswith("file:") and rest[:1] in ("", "/")
                )
                if in_a_store and f"{before}{own}" != own_uri:
                    statement = f"UPDATE {table} SET {column} = ? WHERE {key} = ?"
                    database.execute(statement, (f"{own_uri}{rest}", number))

        default = "experiment_id = 0 AND artifact_location LIKE '/%/mlruns/0'"
        database.execute(
            f"UPDATE experiments SET artifact_location = ? WHERE {default}",
            (f"{own_uri}/0",),
        )

        database.commit()


@contextmanager
def locked(path: Path, wait_s: float = LOCK_WAIT_S) -> Iterator[bool]:
    """Hold the lock; tell whether nobody has held it before. Raises TrackerUnavailableError if
    another process does not let go.
    """
    deadline = time.monotonic() + wait_s
    with open_lock(path) as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TrackerUnavailableError(
                        f"{path} is held by another process that does not let go of it"
                    ) from None

                time.sleep(LOCK_PAUSE_S)

        # Asked under the lock: who creates the file is not always the first one to hold it.
        first = os.fstat(file.fileno()).st_size == 0
        if first:
            # a full disk: the next one would take itself for the first too
            try:
                file.write(b"1")
            except OSError:
                first = False

        yield first
