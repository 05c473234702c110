"""Registered stores, each by the scheme of its address, and how one is opened.

A store is a folder that every node sees (`FileStore`), or lies on a server (`RemoteStore`: S3). No
other package asks which one it has by its class: `folder_of` and `remote_of` say it. A further
store is a file with a class that implements `RemoteStore`, and a line in `SCHEMES`; the contract
tests run over every scheme. An installed package offers one by an entry point of the group
`pointsweep.stores`, called as its scheme.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import cast

from pointsweep.errors import StoreError
from pointsweep.storage.base import FileStore, RemoteStore, Store, path_problem
from pointsweep.utils import entry_points

# The scheme of an address, and the class that is called with the address.
SCHEMES = {"s3": "pointsweep.storage.s3:S3Store"}


def register(scheme: str, target: str) -> None:
    """Add a kind of store: `target` is "module:Class", called with an address. Raises ValueError
    for a scheme that is taken.
    """
    if scheme == "file" or SCHEMES.get(scheme, target) != target:
        raise ValueError(f"store: the scheme {scheme}:// is taken")

    SCHEMES[scheme] = target


def is_address(text: str | None) -> bool:
    """Return whether a text is the address of something on a server, s3://bucket/prefix for
    example, and no path.
    """
    scheme, separator, _ = str(text or "").partition("://")
    return bool(separator) and (scheme in SCHEMES or _discover(scheme))


def _discover(scheme: str) -> bool:
    """Register the kind of store that an installed package offers for a scheme; tell whether there
    is one.
    """
    for point in entry_points.offered("stores", scheme):
        register(scheme, point.value)
        return True

    return False


def open_store(url: str | None = None) -> Store:
    """The store at `url`, else $POINTSWEEP_STORE, else ~/pointsweep: a folder, or an address such
    as s3://bucket/prefix.

    Nothing is created. Raises StoreError for a path that can be no store, and for an address of an
    unknown kind.
    """
    address = url or os.environ.get("POINTSWEEP_STORE") or "~/pointsweep"
    if is_address(address):
        return open_remote(address)

    if "://" in address and not address.startswith("file://"):
        scheme, _, _ = address.partition("://")
        addresses = " or ".join(f"{known}://bucket/prefix" for known in SCHEMES)
        raise StoreError(
            f"store: {scheme}:// is not a store this version knows; allowed: a folder's path, or"
            f" {addresses}"
        )

    path = address.removeprefix("file://")
    problem = path_problem(path)
    if problem:
        raise StoreError(
            f"store: {path} {problem}; name a folder by --store or $POINTSWEEP_STORE"
        )

    return FileStore(Path(path))


def open_remote(address: str) -> RemoteStore:
    """The store on a server at an address, for which `is_address` is true. Raises StoreError."""
    scheme, _, _ = address.partition("://")
    module_name, _, class_name = SCHEMES[scheme].partition(":")
    store_class = getattr(importlib.import_module(module_name), class_name)
    store: RemoteStore = store_class(address)

    return store


def folder_of(store: Store) -> FileStore | None:
    """The store as a folder that every node sees; None for one on a server."""
    return store if isinstance(store, FileStore) else None


def remote_of(store: Store) -> RemoteStore | None:
    """The store as one on a server; None for a folder."""
    if isinstance(store, FileStore):
        return None

    return cast("RemoteStore", store)


def on_disk(store: Store, because: str) -> FileStore:
    """The store, if it is a folder. Raises StoreError saying why it must be one."""
    folder = folder_of(store)
    if folder is None:
        raise StoreError(
            f"store: {store.url} is no folder, and {because}; name a folder by --store"
        )

    return folder
