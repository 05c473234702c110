"""The command gc: list what of a store nobody needs any more, and delete it when asked to.

That is: checkpoints of trials that have a record, files that a killed process left half written,
what a killed launch left of its own state, and parts of uploads that were never completed. Records,
histories, predictions and weights are never touched.

Only a store that carries its marker (store.MARKER) is looked at, only at the places where a store
keeps such things, and only at what has the names that pointsweep itself gives. Links are neither
followed nor deleted. Exit codes: 0 listed or deleted; 2 no store.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pointsweep.cli.command import Program, Version
from pointsweep.errors import RecordError, StoreError, StoreUnavailableError
from pointsweep.results.records import from_json
from pointsweep.storage.base import FileStore, RemoteStore, Store, require_marker
from pointsweep.storage.lease import LeaseHeldError, leased, read_holder
from pointsweep.storage.stores import folder_of, open_store, remote_of
from pointsweep.utils.cli_exit import INVALID

LAUNCH_AGE = 30  # times as old as other waste: a launch may live for weeks
CHECKPOINTS = ("checkpoint.safetensors", "checkpoint.damaged", "checkpoint.stale")
RECORD = "record.json"
TRIAL_NAME = re.compile(r"[0-9a-f]{16}")
LAUNCH_NAME = re.compile(r"[0-9a-f]{12}")
LAUNCH_FOLDERS = ("ray", "launches")
# ".record.json.1f2e3d4c.tmp", ".lease.<32 hex digits>.claim.tmp": the names that storage/base.py
# and storage/lease.py give.
TEMPORARY_NAME = re.compile(
    r"\.[A-Za-z0-9][A-Za-z0-9_.-]*\.(?:[a-z0-9_]{8}|[0-9a-f]{32}|[0-9a-f]{32}\.claim)\.tmp"
)


@dataclass(frozen=True)
class Waste:
    """One thing to remove. `remove` says why it was left, or returns an empty string once it is
    gone.
    """

    kind: str
    name: str
    remove: Callable[[], str]


def waste(store: Store, age_s: float) -> Iterator[Waste]:
    """Yield what can be removed. Files that a living process may still be writing must be older
    than `age_s`.
    """
    folder, remote = folder_of(store), remote_of(store)
    if folder is not None:
        yield from _folder_waste(folder, age_s)

    if remote is not None:
        yield from _remote_waste(remote, age_s)


def _folder_waste(store: FileStore, age_s: float) -> Iterator[Waste]:
    root = store.root
    trials = _folders(root / "trials", TRIAL_NAME)
    for folder in trials:
        if not _is_finished(folder):
            continue
        for name in CHECKPOINTS:
            path = folder / name
            if _is_file(path):
                yield _trial_file(
                    "checkpoint of a finished trial", root, path, needs_record=True
                )

    for folder in trials:
        for path in _temporary_files(folder, age_s):
            yield _trial_file("half written file", root, path)

    others = [root, *_folders(root / "sweeps")]
    others += _folders(root / "launches", LAUNCH_NAME)
    for folder in others:
        for path in _temporary_files(folder, age_s):
            yield Waste("half written file", _name(root, path), partial(_unlink, path))

    if any(_is_worked_on(folder) for folder in trials):
        return  # a launch is under way, and which of the folders are its own is not known here

    for top in LAUNCH_FOLDERS:
        for folder in _folders(root / top, LAUNCH_NAME):
            if _newest(folder) < time.time() - LAUNCH_AGE * age_s:
                kind = "state of a launch that was killed"
                yield Waste(kind, _name(root, folder), partial(_remove_tree, folder))


def _remote_waste(store: RemoteStore, age_s: float) -> Iterator[Waste]:
    for entry in store.list("trials"):
        key = entry.rstrip("/")
        if not entry.endswith("/") or not TRIAL_NAME.fullmatch(key):
            continue

        files = store.list(f"trials/{key}")
        if RECORD not in files:
            continue
        if not _is_record(store.read(f"trials/{key}/{RECORD}"), key):
            continue

        for file in CHECKPOINTS:
            if file in files:
                name = f"trials/{key}/{file}"
                kind = "checkpoint of a finished trial"
                yield Waste(kind, name, partial(_delete, store, name))

    for name, upload, begun in store.uploads():
        if time.time() - begun.timestamp() > age_s:
            kind = "upload never completed"
            yield Waste(kind, name, partial(_abort, store, name, upload))


def _delete(store: RemoteStore, name: str) -> str:
    store.delete(name)
    return ""


def _abort(store: RemoteStore, name: str, upload: str) -> str:
    store.abort(name, upload)
    return ""


# What there is: links are never followed


def _name(root: Path, path: Path) -> str:
    return str(path.relative_to(root))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder that is no link; none if there is no such folder or it may not
    be read.
    """
    if folder.is_symlink() or not folder.is_dir():
        return []

    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []


def _folders(parent: Path, name: re.Pattern[str] | None = None) -> list[Path]:
    folders = []
    for entry in _entries(parent):
        fits = name is None or name.fullmatch(entry.name)
        if fits and entry.is_dir(follow_symlinks=False):
            folders.append(Path(entry.path))

    return folders


def _temporary_files(folder: Path, age_s: float) -> list[Path]:
    files = []
    for entry in _entries(folder):
        if not TEMPORARY_NAME.fullmatch(entry.name):
            continue
        if not entry.is_file(follow_symlinks=False):
            continue

        modified_at = entry.stat(follow_symlinks=False).st_mtime
        if time.time() - modified_at > age_s:
            files.append(Path(entry.path))

    return files


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _is_finished(folder: Path) -> bool:
    """Tell whether the trial has a record that is whole: a damaged one is trained again, perhaps
    from its checkpoint.
    """
    path = folder / RECORD
    if not _is_file(path):
        return False

    try:
        return _is_record(path.read_bytes(), folder.name)
    except OSError:
        return False


def _is_record(data: bytes, key: str) -> bool:
    try:
        from_json(data, key)
    except RecordError:
        return False

    return True


def _is_worked_on(folder: Path) -> bool:
    """Tell whether a process may be at work on the trial just now."""
    holder = read_holder(folder / "lease.json")
    return holder is not None and time.time() < holder.expires


def _newest(folder: Path) -> float:
    """Return the time of the last change of anything in a folder."""
    newest = folder.lstat().st_mtime
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            try:
                newest = max(newest, (Path(parent) / name).lstat().st_mtime)
            except FileNotFoundError:
                continue

    return newest


# How it is removed


def _trial_file(kind: str, root: Path, path: Path, needs_record: bool = False) -> Waste:
    def remove() -> str:
        # Under the trial's lease: nobody writes there meanwhile.
        try:
            with leased(path.parent, 0.0):
                if needs_record and not _is_finished(path.parent):
                    return "its trial has no record any more"
                return _unlink(path)
        except LeaseHeldError as error:
            return str(error)
        except StoreUnavailableError as error:
            return str(error)

    return Waste(kind, _name(root, path), remove)


def _unlink(path: Path) -> str:
    if not _is_file(path):
        return "it is no file any more"

    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        return error.strerror or str(error)

    return ""


def _remove_tree(path: Path) -> str:
    if path.is_symlink():
        return "it is a link by now"

    try:
        shutil.rmtree(path)
    except OSError as error:
        return f"{error.strerror or error}: {error.filename}"

    return ""


@dataclass(frozen=True)
class GcOptions:
    """The options of gc, as the command line gives them."""

    store: str | None = None
    delete: bool = False
    age_hours: float = 24.0


def gc(
    store: Annotated[
        str | None,
        typer.Argument(
            metavar="STORE",
            help="folder or s3://bucket/prefix (default: $POINTSWEEP_STORE, else ~/pointsweep)",
        ),
    ] = None,
    delete: Annotated[
        bool,
        typer.Option("--delete", help="delete it; without this nothing is changed"),
    ] = False,
    age_hours: Annotated[
        float,
        typer.Option(
            "--age-hours",
            metavar="HOURS",
            help="half written files and uploads must be older (default: 24)",
        ),
    ] = 24.0,
    version: Version = False,
) -> int:
    """List what of a store nobody needs any more: checkpoints of finished trials, half written
    files.

    exit codes: 0 listed or deleted, 2 there is no store
    """
    return collect(GcOptions(store, delete, age_hours))


main = Program("gc", gc, examples=("", "/shared/store --delete"))


def collect(options: GcOptions) -> int:
    """List the waste of a store, or delete it; return the exit code."""
    if not options.age_hours >= 0:
        print(f"--age-hours: {options.age_hours}; allowed: 0 or more", file=sys.stderr)
        return INVALID

    try:
        store = open_store(options.store)
        require_marker(store)
        removable = list(waste(store, 3600 * options.age_hours))

        if not options.delete:
            for item in removable:
                print(f"would delete: {item.name}  ({item.kind})")

            print(f"{len(removable)} to delete; nothing was changed, --delete does it")
            return 0

        left = _remove_all(removable)
    except StoreError as error:
        print(error, file=sys.stderr)
        return INVALID

    result = f"{len(removable) - left} deleted"
    if left:
        result += f", {left} left"

    print(result)
    return 0


def _remove_all(removable: Sequence[Waste]) -> int:
    """Remove what was listed; return how much of it had to be left."""
    left = 0
    for item in removable:
        why = item.remove()
        if why:
            left += 1
            print(f"left: {item.name}  ({item.kind}): {why}")
        else:
            print(f"deleted: {item.name}  ({item.kind})")

    return left
