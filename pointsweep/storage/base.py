"""Bytes under a name, written whole. Names are relative paths such as trials/<key>/record.json."""

from __future__ import annotations

import errno
import getpass
import json
import logging
import os
import re
import stat
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Protocol

from pointsweep.errors import NotAFileError, StoreError, StoreUnavailableError
from pointsweep.utils import fault_injection as faults

log = logging.getLogger("pointsweep.store")

MARKER = "pointsweep-store.json"  # written when a store is created: what has none is not a store
MARKER_KIND = "pointsweep store"
STORE_FORMAT = 1
TOP_FOLDERS = ("trials", "sweeps", "ray", "launches", "mlartifacts")


class Store(Protocol):
    """Contract of a store: what the rest of the package asks of it."""

    @property
    def url(self) -> str:
        """Return what `open_store` takes to open this store again."""

    def read(self, name: str) -> bytes:
        """The bytes under `name`. Raises FileNotFoundError."""

    def write(self, name: str, data: bytes) -> None:
        """Replace the bytes under `name`; a reader sees all of the old or all of the new ones."""

    def list(self, prefix: str) -> list[str]:
        """The sorted names directly below a folder, folders with a slash at their end; empty if
        there is none.
        """

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the names of the files directly below a folder with their sizes in bytes; empty if
        there is none.
        """

    def exists(self, name: str) -> bool:
        """Return whether there are bytes under `name`."""

    def delete(self, name: str) -> None:
        """Remove the bytes under `name`, if any."""

    def location(self, name: str) -> str:
        """Return where a person finds `name`: a path, or an address."""


class RemoteStore(Store, Protocol):
    """Contract of a store on a server, besides: leases over all nodes, staging and gc ask for it.

    A version is what the server calls one state of an object (S3: its ETag).
    """

    def read_version(self, name: str) -> tuple[bytes, str]:
        """An object's bytes and its version. Raises FileNotFoundError."""

    def read_range(self, name: str, start: int, stop: int, version: str) -> bytes:
        """Bytes [start, stop) of one version of an object. Raises StoreError if it has been
        replaced.
        """

    def stat(self, name: str) -> tuple[int, str, str]:
        """Size in bytes, version, and the sha256 of the bytes, "" if it is not known. Raises
        FileNotFoundError.
        """

    def write_if(self, name: str, data: bytes, version: str | None) -> str | None:
        """Write an object if it still has this version (None: if there is none); of several that
        try at once, one succeeds.

        Returns its new version; None, and nothing is changed, if another one was faster. Raises
        NoConditionalWritesError.
        """

    def uploads(self) -> Sequence[tuple[str, str, datetime]]:
        """Uploads that were begun and never completed, and whose parts take room: name, id,
        begin.
        """

    def abort(self, name: str, upload: str) -> None:
        """Remove the parts of such an upload."""


class NoConditionalWritesError(StoreError):
    """The server does not know conditional writes."""


def walk(store: Store, prefix: str) -> Iterator[str]:
    """Yield every name below a folder of a store."""
    for name in store.list(prefix):
        path = f"{prefix}/{name}".strip("/")
        if name.endswith("/"):
            yield from walk(store, path)
        else:
            yield path


class FileStore:
    """A folder, on a disk that every node of the sweep sees."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().resolve()

    @property
    def url(self) -> str:
        return str(self.root)

    def path(self, name: str) -> Path:
        """Return where `name` lies. Raises ValueError for a name that could lead out of the
        store.
        """
        return self.root.joinpath(*parts_of(name))

    def location(self, name: str) -> str:
        return str(self.path(name))

    def read(self, name: str) -> bytes:
        """The bytes under `name`. Raises FileNotFoundError, and StoreError for what is there and
        cannot be read.
        """
        return read_file(self.path(name))

    def write(self, name: str, data: bytes) -> None:
        path = self.path(name)
        make_room(path)
        write_whole(path, data)

    def list(self, prefix: str) -> list[str]:
        folder = self.path(prefix)
        names = []
        with reading(folder):
            try:
                entries = os.scandir(folder)
            except FileNotFoundError:
                return []

            with entries:
                for entry in entries:
                    if not entry.name.endswith(".tmp"):
                        names.append(entry.name + "/" * entry.is_dir())

        return sorted(names)

    def sizes(self, prefix: str) -> dict[str, int]:
        folder = self.path(prefix)
        file_sizes = {}
        with reading(folder):
            try:
                entries = os.scandir(folder)
            except FileNotFoundError:
                return {}

            with entries:
                for entry in entries:
                    if entry.is_file():
                        file_sizes[entry.name] = entry.stat().st_size

        return file_sizes

    def exists(self, name: str) -> bool:
        return self.path(name).is_file()

    def delete(self, name: str) -> None:
        path = self.path(name)
        with writing(path):
            path.unlink(missing_ok=True)


def parts_of(name: str) -> list[str]:
    """A name's parts. Raises ValueError for one that could lead out of a store."""
    parts = name.split("/") if name else []
    for part in parts:
        if part in ("", ".", "..") or "\\" in part or "\0" in part:
            raise ValueError(
                f"store: bad name {name!r}; allowed are relative names without '.', '..' or"
                " backslashes"
            )

    return parts


def write_whole(path: Path, data: bytes) -> None:
    """Write beside, flush to the disk, rename: after a crash there is the old file or the new
    one.
    """
    fault = faults.due(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, file = create_beside(path)
        try:
            with file:
                faults.put(file, data, path, fault)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    faults.done(fault)


def free_name(path: Path) -> Path:
    """Return where something damaged is kept: record.json.damaged-1, or the first number that is
    free.
    """
    number = 1
    while os.path.lexists(path.with_name(f"{path.name}.damaged-{number}")):
        number += 1

    return path.with_name(f"{path.name}.damaged-{number}")


def make_room(path: Path) -> None:
    """Rename a folder that is in the place of a file of the store, and say so: a file cannot
    replace it.
    """
    if path.is_symlink() or not path.is_dir():
        return

    aside = free_name(path)
    with writing(path):
        path.rename(aside)

    log.warning(
        "%s: a folder was in the place of this file; it is %s now", path, aside.name
    )


def create_beside(path: Path) -> tuple[Path, IO[bytes]]:
    """A new temporary file in the folder of `path`, open for writing. Its mode follows the umask,
    unlike mkstemp's.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW

    return temporary, os.fdopen(os.open(temporary, flags, 0o666), "wb")


def open_lock(path: Path) -> IO[bytes]:
    """A lock file, created where there is none. A link is refused, and what the file holds is not
    cut off.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)


def open_append(path: Path) -> IO[bytes]:
    """A file that lines are added to, created where there is none. A link is refused."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.fdopen(os.open(path, flags, 0o666), "ab")


def read_file(path: Path) -> bytes:
    """The bytes of a file. Raises FileNotFoundError, NotAFileError for a folder, a pipe or a link
    to itself, StoreError.
    """
    # Without waiting: whoever opens a pipe to read it waits for a writer.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    with reading(path), os.fdopen(os.open(path, flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise NotAFileError(
                f"the store cannot be read: no file, but something else is there: {path}"
            )

        return file.read()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what a disk says when it does not give a file into StoreError, which names it;
    FileNotFoundError stays.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except IsADirectoryError as error:
        raise NotAFileError(
            f"the store cannot be read: a folder is in the place of a file: {path}"
        ) from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotAFileError(
                f"the store cannot be read: a link to itself is in the place of a file: {path}"
            ) from error

        raise StoreError(
            f"the store cannot be read: {error.strerror or error}: {path}"
        ) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what a disk says when it refuses into StoreUnavailableError, which names the file."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailableError(
            f"the store cannot be written: {error.strerror or error}: {path}"
        ) from error


def path_problem(text: str) -> str:
    """Return why a path can be no store; empty if it can. One that does not exist yet can."""
    try:
        path = Path(text).expanduser()
        # stat, below, follows the chain of links and raises for a loop or a link to nothing
        exists = os.path.lexists(path)
        absolute = str(path.absolute())

        if "?" in absolute:
            return (
                "has a question mark in its path, behind which the addresses of databases (MLflow,"
                " Optuna) hold options"
            )
        if re.search("%[0-9A-Fa-f]{2}", absolute):
            return (
                "has % and two digits in its path, which addresses of databases (MLflow, Optuna)"
                " read as another character"
            )
        if not absolute.isprintable():
            return "has a character in its path that cannot be printed"

        status = path.stat() if exists else None
    except (RuntimeError, ValueError) as error:  # no such user, a null character
        return f"is no path ({error})"
    except FileNotFoundError:
        return "is a link to something that does not exist"
    except OSError as error:
        return f"cannot be looked at ({error.strerror})"

    if status is None:
        return _ancestor_problem(path) or _name_problem(path)
    if not stat.S_ISDIR(status.st_mode):
        return "is a file, and a store is a folder"
    if path.resolve() == Path("/"):
        return "is the root of the file system"
    if not os.access(path, os.R_OK | os.X_OK):
        return f"may not be read by {_user()} (mode {stat.S_IMODE(status.st_mode):o})"

    return ""


def _name_problem(path: Path) -> str:
    try:
        path.lstat()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"cannot be looked at ({error.strerror})"

    return ""


def _ancestor_problem(path: Path) -> str:
    for parent in path.absolute().parents:
        if os.path.lexists(parent):
            return "" if parent.is_dir() else f"lies below {parent}, which is no folder"
    return ""


def _user() -> str:
    try:
        return f"user {getpass.getuser()}"
    except (KeyError, OSError):  # a number without an entry in the list of users
        return f"user {os.getuid()}"


def establish(store: Store) -> None:
    """Create the store, or take over one of an older version: from here on it has its marker.

    Called before anything is launched. Raises StoreError if it cannot be written, or was made by a
    later version.
    """
    missing = not has_marker(store)
    if isinstance(store, FileStore) and missing:
        _refuse_foreign(store)

    try:
        if isinstance(store, FileStore):
            with writing(store.root):
                store.root.mkdir(parents=True, exist_ok=True)
            _refuse_read_only(store)

        if missing:
            content = {"kind": MARKER_KIND, "format": STORE_FORMAT}
            store.write(MARKER, (json.dumps(content) + "\n").encode())
    except StoreUnavailableError as error:
        raise StoreError(str(error)) from error


def has_marker(store: Store) -> bool:
    """Return whether the store has a marker that can be read. Raises StoreError for that of a later
    version.
    """
    try:
        data = store.read(MARKER)
    except (FileNotFoundError, NotAFileError):
        return False

    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return False

    if not isinstance(content, dict) or content.get("kind") != MARKER_KIND:
        return False

    version = content.get("format")
    if not isinstance(version, int) or isinstance(version, bool):
        return False
    if version > STORE_FORMAT:
        raise StoreError(
            f"store: {store.url} has format {version}, this version reads up to {STORE_FORMAT}: use"
            " a later pointsweep"
        )

    return True


def require_marker(store: Store) -> None:
    """Raise StoreError unless the store has its marker."""
    if not has_marker(store):
        raise StoreError(
            f"store: {store.url} is no store of pointsweep: it has no readable {MARKER}. "
            "A store of an older version gets one from the next `pointsweep run` in it"
        )


def _refuse_foreign(store: FileStore) -> None:
    """Raise StoreError for a folder that is no store and have folders of the names that a store
    uses.
    """
    occupied = [name for name in TOP_FOLDERS if os.path.lexists(store.root / name)]
    if occupied and not _has_store_shape(store):
        raise StoreError(
            f"store: {store.url} is no store of pointsweep and holds {', '.join(occupied)} already;"
            " name an empty folder, or one that does not exist, by --store or $POINTSWEEP_STORE"
        )


def _has_store_shape(store: FileStore) -> bool:
    """Return whether the folder looks like a store that was made before stores had a marker."""
    expected_files = {
        "trials": {
            "record.json",
            "history.jsonl",
            "checkpoint.safetensors",
            "lock",
            "lease.json",
        },
        "sweeps": {"plan.json", "sweep.yaml", "study.db", "lock"},
    }
    for top, files in expected_files.items():
        for entry in store.list(top):
            if entry.endswith("/"):
                names = store.list(f"{top}/{entry.rstrip('/')}")
                if files.intersection(names):
                    return True

    return False


def _refuse_read_only(store: FileStore) -> None:
    for folder in (store.root, store.root / "trials", store.root / "sweeps"):
        if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
            mode = stat.S_IMODE(folder.stat().st_mode)
            raise StoreError(
                f"store: {folder} may not be written by {_user()} (mode {mode:o}); whoever owns it"
                " shares it with a common group, umask 002 and chmod -R g+w, or name another store"
                " by --store"
            )
