"""Bytes under a name, written whole. Names are relative paths such as trials/<key>/record.json."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pointsweep import faults
from pointsweep.errors import BadStore, StoreFailed

if TYPE_CHECKING:
    from pointsweep.s3_store import S3Store


class Store(Protocol):
    """What the rest of the package asks of a store."""

    @property
    def url(self) -> str:
        """What `open_store` takes to open this store again."""

    def read(self, name: str) -> bytes:
        """The bytes under `name`. Raises FileNotFoundError."""

    def write(self, name: str, data: bytes) -> None:
        """Replaces the bytes under `name`; a reader sees all of the old or all of the new ones."""

    def list(self, prefix: str) -> list[str]:
        """The sorted names directly below a folder, folders with a slash at their end; empty if there is none."""

    def exists(self, name: str) -> bool:
        """Whether there are bytes under `name`."""

    def delete(self, name: str) -> None:
        """Removes the bytes under `name`, if any."""

    def place(self, name: str) -> str:
        """Where a person finds `name`: a path, or an address."""


class FileStore:
    """A folder, on a disk that every node of the sweep sees."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().resolve()

    @property
    def url(self) -> str:
        return str(self.root)

    def path(self, name: str) -> Path:
        """Where `name` lies. Raises ValueError for a name that could lead out of the store."""
        return self.root.joinpath(*parts_of(name))

    def place(self, name: str) -> str:
        return str(self.path(name))

    def read(self, name: str) -> bytes:
        return self.path(name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        write_whole(self.path(name), data)

    def list(self, prefix: str) -> list[str]:
        try:
            with os.scandir(self.path(prefix)) as entries:
                return sorted(entry.name + "/" * entry.is_dir() for entry in entries if not entry.name.endswith(".tmp"))
        except FileNotFoundError:
            return []

    def exists(self, name: str) -> bool:
        return self.path(name).is_file()

    def delete(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)


def parts_of(name: str) -> list[str]:
    """A name's parts. Raises ValueError for one that could lead out of a store."""
    parts = name.split("/") if name else []
    if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
        raise ValueError(f"store: bad name {name!r}; allowed are relative names without '.', '..' or backslashes")
    return parts


def write_whole(path: Path, data: bytes) -> None:
    """Writes beside, flushes to the disk, renames: after a crash there is the old file or the new one."""
    way = faults.due(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                faults.put(file, data, path, way)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    faults.done(way)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what a disk says when it refuses into StoreFailed, which names the file."""
    try:
        yield
    except OSError as error:
        raise StoreFailed(f"the store cannot be written: {error.strerror or error}: {path}") from error


def open_store(url: str | None = None) -> FileStore | S3Store:
    """The store at `url`, else $POINTSWEEP_STORE, else ~/pointsweep: a folder, or s3://bucket/prefix. Raises BadStore."""
    place = url or os.environ.get("POINTSWEEP_STORE") or "~/pointsweep"
    if place.startswith("s3://"):
        from pointsweep.s3_store import S3Store

        return S3Store(place)
    if "://" in place and not place.startswith("file://"):
        raise BadStore(
            f"store: {place.partition('://')[0]}:// is not a store this version knows; allowed: a folder's path, or s3://bucket/prefix"
        )
    return FileStore(Path(place.removeprefix("file://")))


def on_disk(store: Store, because: str) -> FileStore:
    """The store, if it is a folder. Raises BadStore saying why it must be one."""
    if isinstance(store, FileStore):
        return store
    raise BadStore(f"store: {store.url} is no folder, and {because}; name a folder by --store")
