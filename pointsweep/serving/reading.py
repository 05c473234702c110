"""A store that is only read, and remembers what it has read of each trial.

Every file of a trial has a mark: what can be seen of it without reading it. A file is read again
where its mark has changed, and of a history only what was appended is parsed.
"""

from __future__ import annotations

import json
import logging
import marshal
import os
import threading
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pointsweep.errors import NewerRecordError, NotAFileError, RecordError, StoreError
from pointsweep.results.events import Event, parse
from pointsweep.results.record_index import read_record, sound_records
from pointsweep.results.records import HISTORY, Record
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.results.working_copy import (
    LEASE,
    PREDICTIONS,
    RECORD,
    read_folder,
    work_folder,
)
from pointsweep.storage.base import Store
from pointsweep.storage.lease import Holder, is_dead
from pointsweep.storage.stores import folder_of, remote_of

log = logging.getLogger("pointsweep.serving")

FILES = (RECORD, HISTORY, LEASE)
PREDICTIONS_BYTES = 256 * 2**20  # of all trials, kept in memory

# of a file: inode, size and times on a disk, its size on a server
Mark = tuple[int, ...]
Marks = dict[str, Mark]
Truth = tuple[np.ndarray, tuple[str, ...]]


@dataclass
class KeptTrial:
    """Trial as it was last read, and the marks of the files that it was read from."""

    marks: Marks = field(default_factory=dict)
    record: Record | None = None
    damage: str = ""  # what is wrong with its record
    holder: Holder | None = None
    events: list[Event] = field(default_factory=list)
    parsed: int = 0  # bytes of the history that the events stand in
    checksum: int = 0  # of these bytes

    @property
    def running(self) -> bool:
        """Return whether a process works on it now."""
        if self.holder is None or time.time() >= self.holder.expires:
            return False

        return not is_dead(self.holder)

    @property
    def failure(self) -> str:
        """Return why its last attempt failed; empty if it did not."""
        if self.events and self.events[-1]["type"] == "failed":
            return str(self.events[-1].get("reason", ""))

        return ""


class KeptFolder(TrialFolder):
    """A trial's folder for the report, whose history and predictions are read once."""

    def __init__(self, store: ReadOnlyStore, key: str) -> None:
        super().__init__(work_folder(store.inner, key).path)
        self.store = store
        self.key = key
        self.partial = remote_of(store.inner) is not None

    def events(self) -> list[Event]:
        return self.store.events(self.key)

    def predictions(self) -> dict[str, np.ndarray]:
        predictions, _ = self.store.predictions(self.key)
        return predictions

    def truth(self) -> Truth | None:
        _, truth = self.store.predictions(self.key)
        return truth


class ReadOnlyStore:
    """A store that refuses to be written. `trials` holds what was read of each trial, by key."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.disk = folder_of(inner)
        self.trials: dict[str, KeptTrial] = {}
        self._histories: dict[str, bytes] = {}  # of finished trials, packed
        self._predictions: dict[str, tuple[dict[str, np.ndarray], Truth | None]] = {}
        self._truths: dict[bytes, Truth] = {}  # trials of one data set share theirs
        self._predictions_bytes = 0
        self._lock = threading.RLock()

    @property
    def url(self) -> str:
        return self.inner.url

    def read(self, name: str) -> bytes:
        return self.inner.read(name)

    def sizes(self, prefix: str) -> dict[str, int]:
        return self.inner.sizes(prefix)

    def exists(self, name: str) -> bool:
        return self.inner.exists(name)

    def location(self, name: str) -> str:
        return self.inner.location(name)

    def write(self, name: str, data: bytes) -> None:
        raise StoreError(
            f"{self.location(name)}: not written, as this store is only read"
        )

    def delete(self, name: str) -> None:
        raise StoreError(
            f"{self.location(name)}: not deleted, as this store is only read"
        )

    # What changed

    def mark(self, name: str) -> Mark | None:
        """Return the mark of one file; None if it is not there."""
        if self.disk is not None:
            return _mark_on_disk(str(self.disk.path(name)))

        remote = remote_of(self.inner)
        assert remote is not None
        try:
            size, version, _ = remote.stat(name)
        except FileNotFoundError:
            return None

        return (size, zlib.crc32(version.encode()))

    def marks(self, key: str) -> Marks:
        """Return the marks of those files of a trial that tell where it stands."""
        if self.disk is None:
            sizes = self.inner.sizes(f"trials/{key}")
            return {name: (sizes[name],) for name in FILES if name in sizes}

        folder = self.disk.path(f"trials/{key}")
        marks_by_name = {}
        for name in FILES:
            mark = _mark_on_disk(f"{folder}/{name}")
            if mark is not None:
                marks_by_name[name] = mark

        return marks_by_name

    def look_at_all(self, sweep: str, keys: Sequence[str]) -> None:
        """Look for the first time at the trials of a sweep; of a large one by its index of
        records.
        """
        if self.disk is None:
            return

        with self._lock:
            fresh = [key for key in keys if key not in self.trials]
            marks = {key: self.marks(key) for key in fresh}
            records, damaged = sound_records(self.disk, sweep, fresh, keep_index=False)

            for key, record in records.items():
                # the history of a finished trial is read when the report asks for it
                self.trials[key] = KeptTrial(marks[key], record)

            for key, problem in damaged.items():
                self.trials[key] = KeptTrial(marks[key], damage=problem)

    def look(self, key: str) -> bool:
        """Read again what changed of a trial; return whether anything that is shown did."""
        with self._lock:
            trial = self.trials.setdefault(key, KeptTrial())
            marks = self.marks(key)
            old_marks = trial.marks
            was_running = trial.running

            if LEASE not in marks:
                trial.holder = None
            elif self.disk is None or marks[LEASE] != old_marks.get(LEASE):
                trial.holder = self._holder(key)  # renewed, it has the same size

            changed = trial.running != was_running
            if marks.get(RECORD) != old_marks.get(RECORD):
                trial.record, trial.damage = self._record(key)
                self._forget(key)
                changed = True

            if marks.get(HISTORY) != old_marks.get(HISTORY) and trial.record is None:
                self._read_history(key, trial)
                changed = True

            trial.marks = marks
            if trial.record is not None:
                trial.events = []
                trial.parsed = 0
                trial.checksum = 0

            return changed

    def _record(self, key: str) -> tuple[Record | None, str]:
        try:
            return read_record(self.inner, key), ""
        except FileNotFoundError:
            return None, ""
        except (RecordError, NewerRecordError) as error:
            return None, str(error)

    def _holder(self, key: str) -> Holder | None:
        try:
            holder = Holder(**json.loads(self.read(f"trials/{key}/{LEASE}")))
        except (FileNotFoundError, ValueError, TypeError, RecursionError):
            return None

        if isinstance(holder.expires, int | float):
            return holder

        return None

    def _read_history(self, key: str, trial: KeptTrial) -> None:
        try:
            data = self.read(f"trials/{key}/{HISTORY}")
        except (FileNotFoundError, NotAFileError):
            data = b""

        start = trial.parsed
        events = trial.events
        if zlib.crc32(data[:start]) != trial.checksum:  # not only appended to
            start = 0
            events = []

        new_events, num_bytes = parse(data[start:])
        trial.events = [*events, *new_events]
        trial.parsed = start + num_bytes
        trial.checksum = zlib.crc32(data[: trial.parsed])

    # What the report asks for

    def trial_folder(self, key: str, files: Iterable[str]) -> TrialFolder:
        """Return a trial's folder for the report (results.working_copy.KeepsTrials)."""
        return KeptFolder(self, key)

    def events(self, key: str) -> list[Event]:
        """Return the events of a trial; those of a finished one are read once."""
        trial = self.trials.get(key)
        if trial is None:
            return []
        if trial.record is None:
            return list(trial.events)

        packed = self._histories.get(key)
        if packed is not None:
            stored_events: list[Event] = marshal.loads(zlib.decompress(packed))
            return stored_events

        try:
            events, _ = parse(self.read(f"trials/{key}/{HISTORY}"))
        except (FileNotFoundError, NotAFileError):
            events = []

        # A fifth of what the objects would take, and unpacked ten times as fast as read.
        self._histories[key] = zlib.compress(marshal.dumps(events), 1)
        return events

    def predictions(self, key: str) -> tuple[dict[str, np.ndarray], Truth | None]:
        """Return a trial's predictions and true classes. Raises what numpy raises for a file that
        is missing or damaged.
        """
        if key in self._predictions:
            return self._predictions[key]

        folder = read_folder(self.inner, key, PREDICTIONS)
        stored = folder.predictions()
        truth = folder.truth()

        if truth is not None:
            labels, class_names = truth
            content = labels.tobytes() + repr(class_names).encode()
            truth = self._truths.setdefault(content, truth)

        size = sum(array.nbytes for array in stored.values())
        if self._predictions_bytes + size <= PREDICTIONS_BYTES:
            self._predictions_bytes += size
            self._predictions[key] = (stored, truth)

        return stored, truth

    def _forget(self, key: str) -> None:
        self._histories.pop(key, None)
        if key in self._predictions:
            predictions, _ = self._predictions.pop(key)
            size = sum(array.nbytes for array in predictions.values())
            self._predictions_bytes -= size

    # Last, as the name hides the type in annotations that follow.

    def list(self, prefix: str) -> list[str]:
        return self.inner.list(prefix)


def _mark_on_disk(path: str) -> Mark | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - half the time of pathlib's
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return (0,)  # a link to itself, say: the reading that follows says so

    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def records_of(
    trials: Mapping[str, KeptTrial], keys: Iterable[str]
) -> dict[str, Record]:
    """Return the records of finished trials."""
    records = {}
    for key in keys:
        trial = trials.get(key)
        if trial is not None and trial.record is not None:
            records[key] = trial.record

    return records
