"""A third kind of store, as somebody outside the package would write it: objects in one SQLite file, opened by shelf://PATH.

It has what a bucket has (whole objects, versions, conditional writes) and nothing of a folder.
"""

from __future__ import annotations

import hashlib
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from pointsweep.errors import StoreError
from pointsweep.storage.base import parts_of

SCHEMA = "CREATE TABLE IF NOT EXISTS objects (name TEXT PRIMARY KEY, data BLOB NOT NULL, version TEXT NOT NULL)"


class ShelfStore:
    def __init__(self, url: str) -> None:
        self.url = url
        self.file = Path(url.removeprefix("shelf://"))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.file, timeout=30, isolation_level=None)
        try:
            connection.execute(SCHEMA)
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        finally:
            connection.close()

    def _row(self, name: str) -> tuple[bytes, str]:
        with self._open() as connection:
            row = connection.execute("SELECT data, version FROM objects WHERE name = ?", ["/".join(parts_of(name))]).fetchone()
        if row is None:
            raise FileNotFoundError(self.location(name))
        return row

    def _names(self, prefix: str) -> list[tuple[str, int]]:
        start = "/".join(parts_of(prefix))
        with self._open() as connection:
            rows = connection.execute("SELECT name, length(data) FROM objects ORDER BY name").fetchall()
        start += "/" * bool(start)
        return [(name.removeprefix(start), size) for name, size in rows if name.startswith(start)]

    def location(self, name: str) -> str:
        return f"{self.url}/{name}"

    def read(self, name: str) -> bytes:
        return self._row(name)[0]

    def write(self, name: str, data: bytes) -> None:
        with self._open() as connection:
            self._put(connection, name, data)

    @staticmethod
    def _put(connection: sqlite3.Connection, name: str, data: bytes) -> str:
        version = uuid.uuid4().hex
        connection.execute("REPLACE INTO objects VALUES (?, ?, ?)", ["/".join(parts_of(name)), data, version])
        return version

    def list(self, prefix: str) -> list[str]:
        return sorted({name.partition("/")[0] + "/" * ("/" in name) for name, _ in self._names(prefix)})

    def sizes(self, prefix: str) -> dict[str, int]:
        return {name: size for name, size in self._names(prefix) if "/" not in name}

    def exists(self, name: str) -> bool:
        try:
            self._row(name)
        except FileNotFoundError:
            return False
        return True

    def delete(self, name: str) -> None:
        with self._open() as connection:
            connection.execute("DELETE FROM objects WHERE name = ?", ["/".join(parts_of(name))])

    def read_version(self, name: str) -> tuple[bytes, str]:
        return self._row(name)

    def read_range(self, name: str, start: int, stop: int, version: str) -> bytes:
        data, found = self._row(name)
        if found != version:
            raise StoreError(f"{self.location(name)} was replaced")
        return data[start:stop]

    def stat(self, name: str) -> tuple[int, str, str]:
        data, version = self._row(name)
        return len(data), version, hashlib.sha256(data).hexdigest()

    def write_if(self, name: str, data: bytes, version: str | None) -> str | None:
        with self._open() as connection:
            row = connection.execute("SELECT version FROM objects WHERE name = ?", ["/".join(parts_of(name))]).fetchone()
            if (row[0] if row else None) != version:
                return None
            return self._put(connection, name, data)

    def uploads(self) -> Sequence[tuple[str, str, datetime]]:
        return []

    def abort(self, name: str, upload: str) -> None:
        raise FileNotFoundError(f"{self.location(name)} has no upload {upload}")
