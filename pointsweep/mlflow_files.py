"""MLflow's files in a store: the database, ready-made, and the locks that let one process at a time change a run."""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from pointsweep.data.cache import cache_folder
from pointsweep.store import FileStore


@contextmanager
def one_at_a_time(store: FileStore | None) -> Iterator[None]:
    """Two that open a fresh SQLite database at once break its creation, and on a server each would make a parent run."""
    if store is not None:
        store.root.mkdir(parents=True, exist_ok=True)
    with locked(store.path("mlflow.lock")) if store is not None else nullcontext(False):
        yield


def ready_made(uri: str, make: Callable[[str], object]) -> None:
    """A new SQLite database as a copy of an empty one that this machine keeps: making it takes MLflow's migrations seconds.

    `make` creates the database at a URI.
    """
    name = uri.removeprefix("sqlite:///")
    path = Path(name)
    if name == uri or "?" in name or path.exists():
        return
    template = cache_folder() / "mlflow" / f"{importlib.metadata.version('mlflow')}.db"
    template.parent.mkdir(parents=True, exist_ok=True)
    if not template.exists():
        fresh = template.with_name(f"{template.name}.{os.getpid()}.tmp")
        make(f"sqlite:///{fresh}")
        fresh.replace(template)
    copied = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.copyfile(template, copied)
    copied.replace(path)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Holds the lock; whether this is the first time that anybody does."""
    try:
        path.touch(exist_ok=False)
        first = True
    except FileExistsError:
        first = False
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield first
