"""A trial's folder: append-only history, checkpoint, predictions, record. Whatever is cut off, it
opens again.

An epoch counts once a checkpoint of it, or of a later one, is on the disk: only then does it enter
the history, and only from there does anybody else hear of it. So nothing that was told is ever
taken back by a resume.
"""

from __future__ import annotations

import copy
import hashlib
import io
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pointsweep.errors import NotAFileError, RecordError
from pointsweep.results import checkpoint
from pointsweep.results.agreement import unsealed_problem
from pointsweep.results.events import Event, epochs_of, parse, to_line
from pointsweep.results.failures import Failure
from pointsweep.results.records import (
    FIRST_WITH_CHECKSUM,
    HISTORY,
    PREDICTIONS,
    WEIGHTS,
    Record,
    class_type,
    digests_problem,
    files_problem,
    from_json,
)
from pointsweep.storage.base import (
    free_name,
    make_room,
    open_append,
    read_file,
    write_whole,
    writing,
)
from pointsweep.storage.lease import Lease, leased
from pointsweep.storage.lease import LeaseHeldError as LeaseHeldError
from pointsweep.utils import fault_injection as faults

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("pointsweep.history")

Snapshot = Callable[[], tuple[dict[str, "Tensor"], dict[str, Any]]]

CHECKPOINT_SHARE = 0.03  # of the time at most goes into checkpoints
HOLD_SHARE = 0.01  # and into copies in memory between them
RESCUE_S = 1.0  # to wait for a checkpoint that is just being written
TRUTH = ("labels", "class_names")  # in predictions.npz beside the protocols
LOCK_S = 60.0  # to wait for a worker that is being ended to let go of the folder


def _is_something_else(path: Path) -> bool:
    """Return whether something is there that is no file and no link to one: a folder, a pipe, a
    link to nothing.
    """
    return os.path.lexists(path) and not path.is_file()


class TrialFolder:
    """trials/<key> of a store on a disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # which run of the command works on it; failures are counted by launch
        self.launch = ""
        self.lease: Lease | None = None
        # a copy of some of a trial's files: that others are not here says nothing
        self.partial = False
        self._pending: list[Event] = []  # epochs trained since the last checkpoint
        self._saving = threading.Lock()  # a rescue comes from another thread
        self._saved_at = self._save_s = 0.0
        # a copy in memory, and of how many pending epochs
        self._held: tuple[dict[str, Tensor], dict[str, Any], int] | None = None
        self._held_at = self._hold_s = 0.0

    # History

    def events(self) -> list[Event]:
        """All events, in order. What follows a damaged line is not trusted."""
        events, _ = parse(self._read())
        return events

    def epochs(self) -> list[Event]:
        """The epoch events, each epoch once, in order."""
        return epochs_of(self.events())

    def append(self, event: Mapping[str, Any]) -> None:
        """Add one event; on the disk when this returns."""
        path = self.path / "history.jsonl"
        self._check()
        fault = faults.due(path)

        with writing(path):
            self.path.mkdir(parents=True, exist_ok=True)
            with open_append(path) as file:
                faults.put(file, to_line(event), path, fault)

        faults.done(fault)

    def _check(self) -> None:
        """Raise LeaseLostError if another process has taken the folder over from this one."""
        if self.lease is not None:
            self.lease.check()

    def _write(self, name: str, data: bytes) -> None:
        self._check()
        make_room(self.path / name)
        write_whole(self.path / name, data)

    def start(self, **facts: Mapping[str, Any]) -> None:
        """Repairs the history and notes a new attempt with its facts: config, dataset, origin."""
        self.repair()
        self._saved_at = time.monotonic()
        self.append(
            {
                "type": "start",
                "attempt": self.attempts() + 1,
                "time": time.time(),
                "launch": self.launch,
                **facts,
            }
        )

    def attempts(self) -> int:
        """Return how often a process has begun to work on this trial."""
        return sum(event["type"] == "start" for event in self.events())

    def failure(self) -> str | None:
        """Return why the last attempt failed; None if it did not."""
        events = self.events()
        if events and events[-1]["type"] == "failed":
            return str(events[-1]["reason"])

        return None

    def failure_kind(self) -> str:
        """The class of the last attempt's failure; "" if it did not fail."""
        events = self.events()
        if events and events[-1]["type"] == "failed":
            return str(events[-1].get("class", "bug"))

        return ""

    def count_failures(self, kind: str) -> int:
        """Return how often this launch has seen a class of failure here."""
        count = 0
        for event in self.events():
            is_of_launch = event.get("launch") == self.launch
            if (
                event["type"] == "failed"
                and event.get("class") == kind
                and is_of_launch
            ):
                count += 1

        return count

    def final_failure(self) -> Failure | None:
        """The failure after which this launch has given up; None if it has not."""
        events = self.events()
        if not events or not self._is_of_launch(events[-1]):
            return None

        last = events[-1]
        if last["type"] == "failed" and not last["retried"]:
            return Failure(last["class"], last["reason"])

        return None

    def _is_of_launch(self, event: Event) -> bool:
        return bool(self.launch) and event.get("launch") == self.launch

    def lost_attempt(self) -> Failure | None:
        """An attempt of this launch that has no end: its process was killed, or its machine is
        gone. Repairs the history.
        """
        self.repair()
        last: Event | None = None

        for event in self.events():
            if event["type"] in ("start", "failed", "stopped"):
                last = event

        if last is None or last["type"] != "start" or not self._is_of_launch(last):
            return None

        return Failure(
            "lost_node",
            "its process ended without a word: killed, or its machine is gone",
        )

    def parts(self) -> int:
        """Return in how many parts a batch is computed; more than one after the memory did not
        suffice.
        """
        counts = []
        for event in self.events():
            if event["type"] == "parts":
                counts.append(int(event["parts"]))

        return max(counts, default=1)

    def stopped(self) -> int | None:
        """Return after which epoch a search stopped the last attempt; None if it did not."""
        events = self.events()
        if events and events[-1]["type"] == "pruned":
            return int(events[-1]["epoch"])

        return None

    def _read(self) -> bytes:
        path = self.path / HISTORY
        try:
            return read_file(path)
        except (FileNotFoundError, NotAFileError):
            return b""

    def repair(self) -> None:
        """Drop a torn last line; keep a copy of what stands behind a damaged one."""
        if _is_something_else(self.path / HISTORY):
            self._rename_aside(HISTORY)

        data = self._read()
        _, good = parse(data)
        if good == len(data):
            if (self.path / HISTORY).is_symlink():
                # from here on it is the folder's own: links are not written through
                self._write(HISTORY, data)
            return

        if b"\n" in data[good:].rstrip(b"\n"):
            self._write("history.damaged", data)

        self._write("history.jsonl", data[:good])

    # Checkpoints

    def commit_epoch(
        self, event: Mapping[str, Any], snapshot: Snapshot, last: bool
    ) -> None:
        """End an epoch: a checkpoint when one is due (always at the first and the last), then the
        history.
        """
        with self._saving:
            self._pending.append(dict(event))
            now = time.monotonic()
            since_saved = now - self._saved_at
            since_copied = now - max(self._held_at, self._saved_at)
            is_due = since_saved >= self._save_s / CHECKPOINT_SHARE

            if last or event["epoch"] == 1 or is_due:
                self._save(*snapshot(), len(self._pending))
            elif since_copied >= self._hold_s / HOLD_SHARE:
                self._hold(*snapshot())

    def _hold(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Keep a copy for `rescue`: the next step changes the tensors in place."""
        started = time.monotonic()
        copies = {name: tensor.clone() for name, tensor in tensors.items()}
        self._held = (copies, copy.deepcopy(dict(state)), len(self._pending))
        self._held_at = time.monotonic()
        self._hold_s = self._held_at - started

    def rescue(self) -> None:
        """A checkpoint of the last epoch that is held, as the process is being ended from outside;
        from any thread.
        """
        if not self._saving.acquire(timeout=RESCUE_S):
            return

        try:
            if self._held is not None:
                self._save(*self._held)
        finally:
            self._saving.release()

    def _save(
        self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], count: int
    ) -> None:
        """Write a checkpoint that has the first `count` pending epochs behind it, then their
        lines.
        """
        started = time.monotonic()
        pending = self._pending[:count]
        data = checkpoint.encode(tensors, {**state, "pending": pending})
        self._write("checkpoint.safetensors", data)

        for event in pending:
            self.append(event)

        self._pending = self._pending[count:]
        self._held = None
        self._saved_at = time.monotonic()
        self._save_s = self._saved_at - started

    def resume(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The last checkpoint, and the history brought in line with it; None, and no epochs, if
        there is no sound one.
        """
        loaded = self._load()
        num_epochs, pending = 0, []

        if loaded:
            _, state = loaded
            num_epochs, pending = state["epoch"], state["pending"]

        events: list[Event] = []
        epochs: set[int] = set()
        for event in self.events():
            if event["type"] != "epoch":
                events.append(event)
            elif event["epoch"] <= num_epochs:
                events.append(event)
                epochs.add(event["epoch"])

        # The process may have ended between the checkpoint and the lines that belong to it.
        missing = [event for event in pending if event["epoch"] not in epochs]
        for event in missing:
            events.append(event)
            if event["type"] == "epoch":
                epochs.add(event["epoch"])

        if len(epochs) < num_epochs:
            # The history lost epochs that the checkpoint has behind it: the trial is trained anew
            # rather than shown with gaps.
            self._set_aside("history.jsonl")
            return self.resume()

        self._write("history.jsonl", b"".join(map(to_line, events)))
        return loaded

    def _load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        path = self.path / "checkpoint.safetensors"
        if _is_something_else(path):
            self._rename_aside(path.name)

        if not path.is_file():
            return None

        decoded = checkpoint.decode(path)
        if decoded is None:
            self._set_aside("checkpoint.safetensors")

        return decoded

    def _set_aside(self, damaged: str) -> None:
        """Take the checkpoint out of use because a file is damaged, and say so."""
        self._check()
        (self.path / "checkpoint.safetensors").replace(self.path / "checkpoint.damaged")
        log.warning(
            "%s: %s is damaged; the trial starts from scratch", self.path, damaged
        )
        self.append(
            {
                "type": "damaged",
                "file": damaged,
                "word": "the trial starts from scratch",
                "time": time.time(),
            }
        )

    def _rename_aside(self, name: str) -> str:
        """Rename what is damaged, so that it is neither used nor lost; return its new name."""
        self._check()
        path = self.path / name
        aside = free_name(path)

        with writing(path):
            path.rename(aside)

        return aside.name

    def set_record_aside(self, reason: str) -> None:
        """Take a record that cannot be believed out of use, with what belongs to it; the trial is
        then one without a record.

        The history stays, a copy of it goes with the record.
        """
        log.warning(
            "%s: %s; it is set aside, nothing is deleted, and the trial is trained again",
            self.path.name,
            reason,
        )

        history = self._read()
        renamed = [self._rename_aside("record.json")]

        for name in (PREDICTIONS, WEIGHTS):
            if os.path.lexists(self.path / name):
                renamed.append(self._rename_aside(name))

        if history:
            aside = free_name(self.path / HISTORY)
            self._write(aside.name, history)
            renamed.append(aside.name)

        self.repair()
        self.append(
            {
                "type": "damaged",
                "file": "record.json",
                "word": reason,
                "kept": renamed,
                "time": time.time(),
            }
        )

    def discard_checkpoint(self, reason: str) -> None:
        """Take the checkpoint out of use, as the trial would go on with other data or weights than
        it began with.
        """
        path = self.path / "checkpoint.safetensors"
        if not path.is_file():
            return

        self._check()
        path.replace(self.path / "checkpoint.stale")
        log.warning("%s: %s; the trial starts from scratch", self.path, reason)
        self.append(
            {
                "type": "stale",
                "word": f"{reason}; the trial starts from scratch",
                "time": time.time(),
            }
        )

    # The end

    def save_predictions(
        self,
        predictions: Mapping[str, np.ndarray],
        labels: np.ndarray | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        """The predicted classes of every test cloud by protocol, (n_test,), and the true ones with
        their names; see `class_type`.

        Of part segmentation each shape's IoU, float32, of semantic segmentation each block's
        confusion matrix, int32 (n_test, classes, classes), and no labels. Sorted by name: after a
        resume they come in another order.
        """
        truth: dict[str, np.ndarray] = {}
        if labels is not None:
            truth["labels"] = labels.astype(_label_type(labels, class_names))
            truth["class_names"] = np.array(class_names, dtype=np.str_)

        buffer = io.BytesIO()
        arrays = {**dict(sorted(predictions.items())), **truth}
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        self._write(PREDICTIONS, buffer.getvalue())

    def predictions(self) -> dict[str, np.ndarray]:
        """The predicted classes by protocol, as `save_predictions` wrote them."""
        data = read_file(self.path / PREDICTIONS)
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {name: file[name] for name in file.files if name not in TRUTH}

    def truth(self) -> tuple[np.ndarray, tuple[str, ...]] | None:
        """The true classes of the test clouds and the classes' names; None for a trial that did not
        keep them.
        """
        data = read_file(self.path / PREDICTIONS)
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            if set(TRUTH) <= set(file.files):
                return (file["labels"], tuple(map(str, file["class_names"])))
            return None

    def save_weights(self, weights: Mapping[str, Tensor]) -> None:
        """The trained weights."""
        from safetensors.torch import save

        self._write(WEIGHTS, save(dict(weights)))

    def finish(self, record: Record) -> None:
        """Write the record, which names the files beside it: from here on the trial is finished.
        The checkpoint has served.
        """
        if record.schema >= FIRST_WITH_CHECKSUM:
            record = replace(record, files=self._described())

        self._write("record.json", record.to_json().encode())
        (self.path / "checkpoint.safetensors").unlink(missing_ok=True)

    def record(self) -> Record | None:
        """The record of a finished trial, else None. Raises RecordError if it is there and cannot
        be believed.
        """
        path = self.path / "record.json"
        try:
            data = read_file(path)
        except FileNotFoundError:
            if path.is_symlink():
                raise RecordError("record.json is a link to nothing") from None
            return None
        except NotAFileError as error:
            raise RecordError("record.json is no file") from error

        record = from_json(data)
        if self.partial:
            return record

        def read(name: str) -> bytes:
            return read_file(self.path / name)

        problem = files_problem(record, self._size)
        problem = problem or digests_problem(record, read)
        problem = problem or unsealed_problem(record, read)

        if problem:
            raise RecordError(f"record.json is not believed: {problem}")

        return record

    def _size(self, name: str) -> int | None:
        path = self.path / name
        if path.is_file():
            return path.stat().st_size

        return None

    def _described(self) -> dict[str, dict[str, Any]]:
        """The files that a record speaks for, with their sizes and digests."""
        files = {}
        for name in (HISTORY, PREDICTIONS, WEIGHTS):
            path = self.path / name
            if path.is_file():
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                files[name] = {"bytes": path.stat().st_size, "sha256": digest}

        return files

    @contextmanager
    def lock(self, wait_s: float = LOCK_S) -> Iterator[None]:
        """Hold the folder for this process; a killed process lets go of it by itself. Raises
        LeaseHeldError, naming who has it.
        """
        with leased(self.path, wait_s) as self.lease:
            try:
                yield
            finally:
                self.lease = None


def _label_type(labels: np.ndarray, class_names: Sequence[str]) -> str:
    """The type that holds the labels, and the number of every class that has a name."""
    largest = int(labels.max()) if len(labels) else 0
    return class_type(max(len(class_names), largest + 1))
