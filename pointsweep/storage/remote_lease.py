"""Lease of a trial in a store on a server: one process at a time works on it, over all nodes.

`lease.json` of the trial is made only if there is none (If-None-Match: *), and renewed, taken over
and given back only if it is still the version that was seen (If-Match): of several that try, one
succeeds. S3 does so for all buckets since November 2024 (User Guide, "conditional writes"), MinIO
too; a server that does not is met by a probe, and then nothing is held.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from pointsweep.errors import StoreError
from pointsweep.storage import lease
from pointsweep.storage.base import NoConditionalWritesError, RemoteStore
from pointsweep.storage.lease import Holder, LeaseHeldError, LeaseLostError
from pointsweep.storage.stores import open_remote

log = logging.getLogger("pointsweep.remote_lease")

WORDS = (
    "this server ignores the conditions of a write, so nothing keeps two launches from one trial:"
    " run one at a time on this store"
)
POLL_S = 1.0  # a look costs a request


class RemoteLease:
    """A lease that this process has, renewed until `release`."""

    def __init__(
        self, store: RemoteStore, name: str, holder: Holder, version: str, since: float
    ) -> None:
        self.store = store
        self.name = name
        self.holder = holder
        self.version = version
        self.renewed = since  # by this process's clock, before the request was sent
        self.lost = False
        self.busy = threading.Lock()
        self.ended = threading.Event()
        threading.Thread(target=self._run, name=f"lease {name}", daemon=True).start()

    def _run(self) -> None:
        while not self.ended.wait(lease.TERM_S / 4):
            # Where a store is away for a moment the next renewal tries again.
            with suppress(StoreError):
                self._renew()

    def _renew(self) -> None:
        with self.busy:
            if not self.lost and not self.ended.is_set():
                self._put(replace(self.holder, expires=time.time() + lease.TERM_S))

    def _put(self, holder: Holder) -> None:
        requested_at = time.monotonic()
        version = self.store.write_if(self.name, holder.encode(), self.version)
        if version is None:
            self.lost = True
        else:
            self.version = version
            self.renewed = requested_at

    def check(self) -> None:
        """Raise LeaseLostError if another process has taken the trial over, StoreError if that
        cannot be found out.
        """
        if time.monotonic() - self.renewed > lease.TERM_S / 2:
            # nobody takes it before a whole term
            self._renew()

        if self.lost:
            raise LeaseLostError(
                f"{self.store.location(self.name)} was taken from {self.holder}"
            )

    def release(self) -> None:
        """End the lease; another one's is left alone. If the store is away it runs out by
        itself.
        """
        with self.busy, suppress(StoreError):
            self.ended.set()
            if not self.lost:
                self._put(replace(self.holder, machine="", expires=0.0))


@contextmanager
def remote_leased(
    store: RemoteStore, name: str, wait_s: float
) -> Iterator[RemoteLease | None]:
    """Hold the lease `name` for this process; None where the server cannot hold any. Raises
    LeaseHeldError, naming the holder.
    """
    if not conditional(store.url):
        log.warning("%s: %s", store.url, WORDS)
        yield None
        return

    acquired = _acquire(store, name, time.monotonic() + wait_s)
    try:
        yield acquired
    finally:
        acquired.release()


@functools.cache
def conditional(url: str) -> bool:
    """Return whether the server of a store heeds the conditions of a write. Raises StoreError if it
    is away.
    """
    store, name = open_remote(url), f"leases/{uuid.uuid4().hex}"
    other_version = f'"{"0" * 32}"'

    try:
        created = store.write_if(name, b"first", None)
        if store.write_if(name, b"second", None) is not None:
            return False

        replaced = store.write_if(name, b"third", other_version)
        return bool(created) and replaced is None
    except NoConditionalWritesError:
        return False
    finally:
        store.delete(name)


def _acquire(store: RemoteStore, name: str, deadline: float) -> RemoteLease:
    last_holder, unchanged_since = None, time.monotonic()
    while True:
        holder, version = _read(store, name)
        if holder != last_holder:
            last_holder, unchanged_since = holder, time.monotonic()

        # Not by the clock on the wall alone: it differs between machines and may jump.
        has_expired = time.monotonic() - unchanged_since > lease.TERM_S
        if holder is None or has_expired or lease.is_dead(holder):
            now = time.monotonic()
            own_holder = Holder(
                uuid.uuid4().hex,
                host=socket.gethostname(),
                machine=lease.machine(),
                pid=os.getpid(),
                expires=time.time() + lease.TERM_S,
            )

            new_version = store.write_if(name, own_holder.encode(), version)

            if new_version is not None:
                return RemoteLease(
                    store, name, own_holder, version=new_version, since=now
                )
        elif time.monotonic() > deadline:
            raise LeaseHeldError(
                f"{store.location(name)} is held by another process: {holder}"
            )
        else:
            time.sleep(min(POLL_S, lease.TERM_S / 10))


def _read(store: RemoteStore, name: str) -> tuple[Holder | None, str | None]:
    """Return who holds a lease, and its version. One that cannot be read is held by nobody known,
    and expires.
    """
    try:
        data, version = store.read_version(name)
    except FileNotFoundError:
        return None, None

    try:
        return Holder(**json.loads(data)), version
    except (ValueError, TypeError):
        return lease.UNKNOWN_HOLDER, version
