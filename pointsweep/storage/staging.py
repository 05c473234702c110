"""Data and weights from a server on the disk of a node: fetched once, in ranges, and checked.

An interrupted transfer goes on where it was.
`POINTSWEEP_DATA` and `weights:` may name an address such as s3://bucket/prefix; what is needed
of it is staged, and everything else sees a folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pointsweep.errors import StoreError
from pointsweep.storage.base import RemoteStore, open_lock, walk, write_whole
from pointsweep.storage.stores import is_address, open_remote
from pointsweep.utils.array_cache import cache_folder

RANGE_BYTES = 16 * 2**20
FILES = "files"


def staged(address: str, folder: str = "") -> Path:
    """`address` on this node: a path as it is, an address as the folder or file it was staged to.
    Raises StoreError, FileNotFoundError.

    `folder` below it is what is needed; the path returned leads to `address` all the same.
    """
    if not is_address(address):
        return Path(address).expanduser()

    store = open_remote(address)
    root = _staging_folder(store)
    for name in list(walk(store, folder)):
        stage(store, name, root)

    return root / FILES


def staged_file(address: str) -> Path:
    """One file, staged if it lies on a server."""
    if not is_address(address):
        return Path(address).expanduser()

    parent, _, name = address.rpartition("/")
    store = open_remote(parent)
    return stage(store, name, _staging_folder(store))


def _staging_folder(store: RemoteStore) -> Path:
    digest = hashlib.sha256(store.url.encode()).hexdigest()[:16]
    return cache_folder() / "staged" / digest


def stage(store: RemoteStore, name: str, root: Path) -> Path:
    """Fetch one object to root/files/name unless it is there, and return its path. A transfer that
    was cut off is resumed, and what has arrived is checked by its digest.

    Workers of a node that ask at the same time wait for the first. Raises what `_transfer` and
    `_check` raise.
    """
    target = root / FILES / name
    # Not beside the target: whoever lists the files of a data set must not see these.
    state = root / "state" / name
    part_file = state.with_name(state.name + ".part")
    # which version `part_file` is of
    begun_file = state.with_name(state.name + ".begun")
    # which version `target` is of
    staged_file = state.with_name(state.name + ".staged")

    size, version, digest = store.stat(name)
    identity = json.dumps({"size": size, "version": version, "sha256": digest})

    if _is_here(target, staged_file, identity):
        return target

    with _alone(state.with_name(state.name + ".lock")):
        if _is_here(target, staged_file, identity):  # another worker was faster
            return target

        if not begun_file.is_file() or begun_file.read_text() != identity:
            # of another version, or of an unknown one
            part_file.unlink(missing_ok=True)
            write_whole(begun_file, identity.encode())

        _transfer(store, name, part_file, size=size, version=version)
        _check(store, name, part_file, digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        part_file.replace(target)
        write_whole(staged_file, identity.encode())
        begun_file.unlink()

        return target


def _transfer(
    store: RemoteStore, name: str, part_file: Path, size: int, version: str
) -> None:
    """Add what is missing to the file, and flush each range to the disk. Raises StoreError."""
    with part_file.open("ab") as file:
        done = min(file.tell(), size)
        file.truncate(done)
        while done < size:
            stop = min(done + RANGE_BYTES, size)
            data = store.read_range(name, done, stop, version)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            done += len(data)


def _check(store: RemoteStore, name: str, part_file: Path, digest: str) -> None:
    """An object that another program put there has no digest of ours: its length and version must
    do.
    """
    if not digest:
        return

    with part_file.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()

    if actual != digest:
        part_file.unlink()
        raise StoreError(
            f"{store.location(name)}: what arrived has sha256 {actual[:16]}, expected"
            f" {digest[:16]}; run it again"
        )


def _is_here(target: Path, marker: Path, identity: str) -> bool:
    return target.is_file() and marker.is_file() and marker.read_text() == identity


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_lock(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
