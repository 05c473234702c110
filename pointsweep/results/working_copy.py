"""Working folder of a trial: its folder in a store on a disk, or a folder of this node that a
thread copies to a server.

There the store is the truth and the node's folder a working copy. What is uploaded is complete at
any moment: the history goes before its checkpoint (a resume drops the epochs that no checkpoint
covers), everything else before the record.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, runtime_checkable

from pointsweep.errors import StoreError
from pointsweep.results.record_index import read_record
from pointsweep.results.records import HISTORY, WEIGHTS, Record
from pointsweep.results.records import PREDICTIONS as PREDICTIONS
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.storage.base import Store, write_whole
from pointsweep.storage.lease import LeaseLostError
from pointsweep.storage.remote_lease import RemoteLease, remote_leased
from pointsweep.storage.stores import folder_of, remote_of
from pointsweep.utils.array_cache import cache_folder

log = logging.getLogger("pointsweep.workdir")

CHECKPOINT, RECORD, LEASE = "checkpoint.safetensors", "record.json", "lease.json"
# marks a copy that the store has whole: nothing in it is needed again
UPLOADED = "uploaded"
# files that mean something on this node only
OWN = {"lock", LEASE, "mlflow.lock", "stacks.txt", UPLOADED}
PAUSE_S = 5.0  # between attempts while the store is away; each attempt has its own repetitions
FLUSH_ATTEMPTS = 20  # at a trial's end, before its upload is given up


def work_folder(store: Store, key: str) -> TrialFolder:
    """The folder in which a trial is worked on: that of the store, or of this node for a store on a
    server.
    """
    disk = folder_of(store)
    if disk is not None:
        return TrialFolder(disk.path(f"trials/{key}"))

    digest = hashlib.sha256(store.url.encode()).hexdigest()[:16]
    return TrialFolder(cache_folder() / "trials" / digest / key)


@runtime_checkable
class KeepsTrials(Protocol):
    """A store that keeps what it has read of trials, and hands out their folders itself."""

    def trial_folder(self, key: str, files: Iterable[str]) -> TrialFolder:
        """A trial's folder for readers."""


def read_folder(store: Store, key: str, *files: str) -> TrialFolder:
    """A trial's folder for readers: that of the store, or a copy of the `files` (history and
    record) made just now.
    """
    if isinstance(store, KeepsTrials):
        return store.trial_folder(key, files)

    folder = work_folder(store, key)
    if remote_of(store) is None:
        return folder

    # Beside the working copy, which somebody may hold.
    copy = Copy(store, TrialFolder(folder.path.parent / "read" / key))
    copy.take(*(files or (HISTORY, RECORD)))
    copy.folder.partial = True

    return copy.folder


class Copy:
    """A trial's folder on this node and in its store. With a store on a disk they are one, and
    nothing here does anything.
    """

    def __init__(self, store: Store, folder: TrialFolder) -> None:
        self.store = store
        self.folder = folder
        self.remote = remote_of(store)
        # name -> (mtime, size) as it was uploaded
        self.sent: dict[str, tuple[int, int]] = {}
        self.changed = threading.Condition()
        self.dirty = self.ended = False
        self.busy = threading.Lock()
        self.thread: threading.Thread | None = None
        self.behind_since: float | None = None
        self.lease: RemoteLease | None = None

    @contextmanager
    def hold(self, wait_s: float) -> Iterator[None]:
        """Hold the trial over all nodes: in a store on a server by its lease there, on a disk by
        the folder's own. Raises LeaseHeldError.
        """
        if self.remote is None:
            yield
            return

        with remote_leased(self.remote, self.name(LEASE), wait_s) as self.lease:
            try:
                yield
            finally:
                self.lease = None

        with suppress(StoreError):
            if self.finished():  # whoever takes it now finds the record
                self.store.delete(self.name(LEASE))

    def name(self, file: str) -> str:
        """A file's name in the store."""
        return f"trials/{self.folder.path.name}/{file}"

    def finished(self) -> bool:
        """Return whether the store has the trial's record."""
        return self.store.exists(self.name(RECORD))

    def record(self) -> Record | None:
        """The trial's record in the store, else None. Raises RecordError if it cannot be
        believed.
        """
        try:
            return read_record(self.store, self.folder.path.name)
        except FileNotFoundError:
            return None

    def set_record_aside(self) -> None:
        """Move a record that cannot be believed, with what belongs to it, to other names of the
        trial's folder in the store.
        """
        names = set(self.store.list(f"trials/{self.folder.path.name}"))
        number = 1

        while f"{RECORD}.damaged-{number}" in names:
            number += 1

        for file in (RECORD, HISTORY, PREDICTIONS, WEIGHTS):
            data = self._read(file)
            if data is not None:
                self.store.write(self.name(f"{file}.damaged-{number}"), data)

        for file in (RECORD, PREDICTIONS, WEIGHTS):
            self.store.delete(self.name(file))

        log.warning(
            "%s: set aside as %s.damaged-%d; the trial is trained again",
            self.name(RECORD),
            RECORD,
            number,
        )

    def fetch(self) -> None:
        """Take history and checkpoint from the store, unless what lies here is their continuation
        (a process was killed).
        """
        if self.remote is None:
            return

        marker = self.folder.path / UPLOADED
        own_history = self.folder.path / HISTORY
        if not marker.exists() and own_history.is_file():
            history = self._read(HISTORY)
            if history and own_history.read_bytes().startswith(history):
                return

        self.take(HISTORY, CHECKPOINT)
        marker.unlink(missing_ok=True)

    def take(self, *files: str) -> None:
        """Replace whatever lies here by some of the store's files."""
        for path in self._files():
            path.unlink()

        for file in files:
            data = self._read(file)
            if data is not None:
                write_whole(self.folder.path / file, data)

    def _read(self, file: str) -> bytes | None:
        try:
            return self.store.read(self.name(file))
        except FileNotFoundError:
            return None

    def poke(self) -> None:
        """Something new stands in the folder. It is uploaded in the background; what comes faster
        than that goes together.

        Raises LeaseLostError once it is known that another process has taken the trial over.
        """
        if self.remote is None:
            return

        if self.lease is not None and self.lease.lost:
            self.lease.check()

        if self.thread is None:
            self.thread = threading.Thread(
                target=self._run, name="store-upload", daemon=True
            )
            self.thread.start()

        with self.changed:
            self.dirty = True
            self.behind_since = self.behind_since or time.monotonic()
            self.changed.notify()

    def lag_s(self) -> float:
        """Since when something waits to be uploaded; 0 if nothing does."""
        since = self.behind_since
        if since is not None:
            return time.monotonic() - since

        return 0.0

    def flush(self) -> None:
        """Return when the store has all that stands in the folder. Raises StoreError if it stays
        away.
        """
        for attempt in range(1, FLUSH_ATTEMPTS + 1):
            try:
                self.upload()
                return
            except StoreError:
                if attempt == FLUSH_ATTEMPTS:
                    raise
                threading.Event().wait(PAUSE_S)

    def close(self) -> None:
        """End the thread and send the rest. Raises StoreError."""
        if self.remote is None:
            return

        with self.changed:
            self.ended = True
            self.changed.notify()

        if self.thread is not None:
            self.thread.join()

        self.flush()

    def _run(self) -> None:
        warned = False
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.dirty or self.ended)
                if self.ended:
                    return

                self.dirty = False

            try:
                self.upload()
                warned = False
                with self.changed:
                    self.behind_since = time.monotonic() if self.dirty else None
            except LeaseLostError:  # the trial is told at its next epoch
                return
            except (StoreError, OSError) as error:
                # the store's trouble is not the trial's until its end
                if not warned:
                    log.warning(
                        "%s; training goes on, the upload is tried again", error
                    )
                    warned = True

                with self.changed:
                    self.dirty = True
                    self.changed.wait_for(lambda: self.ended, timeout=PAUSE_S)

    def upload(self) -> None:
        """Send what is new, in the order that keeps the store complete; one caller at a time.
        Raises StoreError, LeaseLostError.
        """
        if self.remote is None:
            return

        with self.busy:
            # What is there once the record is seen belongs to it; what comes later waits for the
            # next time.
            record = (self.folder.path / RECORD).is_file()
            # A checkpoint is read before the history: of an epoch it holds, the line is then there
            # or in the checkpoint itself.
            checkpoint = self._new(CHECKPOINT)
            for path in self._files():
                if path.name not in (HISTORY, CHECKPOINT, RECORD):
                    self._send(path.name, self._new(path.name))

            self._send(HISTORY, self._new(HISTORY))
            self._send(CHECKPOINT, checkpoint)
            if record:
                self._send(RECORD, self._new(RECORD))
                self.store.delete(self.name(CHECKPOINT))
                (self.folder.path / UPLOADED).touch()

    def _new(self, file: str) -> tuple[tuple[int, int], bytes] | None:
        """A file's mark and content, if they are not in the store yet."""
        try:
            with (self.folder.path / file).open("rb") as opened:
                # Before the content: what is appended while it is read is found new again the next
                # time.
                stat = os.fstat(opened.fileno())
                mark = (stat.st_mtime_ns, stat.st_size)
                if self.sent.get(file) == mark:
                    return None

                return (mark, opened.read())
        except FileNotFoundError:
            return None

    def _send(self, file: str, new: tuple[tuple[int, int], bytes] | None) -> None:
        if new is not None:
            mark, data = new
            if self.lease is not None:
                self.lease.check()

            self.store.write(self.name(file), data)
            self.sent[file] = mark

    def _files(self) -> list[Path]:
        if not self.folder.path.is_dir():
            return []

        files = []
        for path in self.folder.path.iterdir():
            if path.is_file() and path.name not in OWN and path.suffix != ".tmp":
                files.append(path)

        return sorted(files)
