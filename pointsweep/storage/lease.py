"""Lease of a trial: one process at a time works on it, also on file systems where flock does
nothing.

`lease.json` in the trial's folder names its owner and is renewed by a thread. It is made by linking
a whole file into place. Whoever removes it, its owner at the end or another one once it has
expired, claims that first, and then looks whether it still is the lease it was: so a successor's is
never removed. The owner renews through its open file, so a process that wakes up after it lost its
lease writes into the file that was removed, never into its successor's. flock, where it works,
tells at once what the lease tells after a wait: that a process of this machine is alive.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

from pointsweep.storage.base import open_lock, read_file, writing
from pointsweep.utils import fault_injection as faults

TERM_S = 30.0  # a lease that was not renewed for so long has expired
POLL_S = 0.05
SIZE = 512  # bytes of lease.json: a renewal replaces them in one write


class LeaseHeldError(RuntimeError):
    """Another process works on this trial."""


class LeaseLostError(RuntimeError):
    """The lease is lost: this process was thought dead, and another one has taken the trial over:
    it must not write any more.
    """


@dataclass(frozen=True)
class Holder:
    """Holder of a lease, as lease.json names it. `expires` is in seconds since 1970 by the owner's
    clock.
    """

    owner: str
    host: str
    machine: str  # boot and process namespace: where `pid` means something
    pid: int
    expires: float

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def encode(self) -> bytes:
        """SIZE bytes."""
        return json.dumps(asdict(self)).encode().ljust(SIZE - 1) + b"\n"


UNKNOWN_HOLDER = Holder(
    owner="", host="an unknown host", machine="", pid=0, expires=0.0
)


def read_holder(path: Path) -> Holder | None:
    """Return who holds the lease at `path`; None if nobody does. One that cannot be read is held by
    nobody known, and expires.
    """
    try:
        holder = Holder(**json.loads(read_file(path)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, RecursionError):
        # StoreError among them: something that is no file
        return UNKNOWN_HOLDER

    texts = (holder.owner, holder.host, holder.machine)
    numbers = (holder.pid, holder.expires)
    has_texts = all(isinstance(text, str) for text in texts)
    has_numbers = all(type(number) in (int, float) for number in numbers)

    if not has_texts or not has_numbers:
        return UNKNOWN_HOLDER

    return holder


def machine() -> str:
    """The same in all processes among which a process number means the same."""
    parts = []
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())

    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))

    if len(parts) == 2:
        return " ".join(parts)

    return uuid.uuid4().hex


class Lease:
    """A lease that this process has, renewed until `release`."""

    def __init__(self, path: Path, holder: Holder, file: IO[bytes]) -> None:
        self.path = path
        self.holder = holder
        self.file = file
        self.ended = threading.Event()
        name = f"lease {path.parent.name}"
        threading.Thread(target=self._renew, name=name, daemon=True).start()

    def _renew(self) -> None:
        while not self.ended.wait(TERM_S / 6):
            # Where a disk is away for a moment the next renewal tries again.
            with suppress(OSError, ValueError):
                renewed = replace(self.holder, expires=time.time() + TERM_S)
                os.pwrite(self.file.fileno(), renewed.encode(), 0)
                os.fsync(self.file.fileno())

    def check(self) -> None:
        """Raise LeaseLostError if another process has taken the trial over. Called before
        everything that is written.
        """
        holder = read_holder(self.path)
        if holder is None or holder.owner != self.holder.owner:
            state = f"{holder} holds it now" if holder else "its lease is gone"
            raise LeaseLostError(
                f"{self.path.parent} was taken from {self.holder}: {state}"
            )

    def release(self) -> None:
        """End the lease; another one's is left alone."""
        self.ended.set()
        with _claimed(self.path, self.holder.owner) as claimed:
            holder = read_holder(self.path)
            if claimed and holder is not None and holder.owner == self.holder.owner:
                self.path.unlink(missing_ok=True)

        self.file.close()


@contextmanager
def leased(folder: Path, wait_s: float) -> Iterator[Lease]:
    """Hold `folder` for this process. Raises LeaseHeldError, naming the holder, if it is not let go
    within `wait_s`.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = open_lock(folder / "lock")

    deadline = time.monotonic() + wait_s
    with lock:
        while not _flock(lock):
            _pause(folder / "lease.json", deadline)

        lease = _acquire(folder / "lease.json", deadline)
        try:
            yield lease
        finally:
            lease.release()


def _flock(file: IO[bytes]) -> bool:
    """False while another process has the lock. Where there are no locks the lease alone
    decides.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True

    return True


def _pause(path: Path, deadline: float) -> None:
    if time.monotonic() > deadline:
        holder = read_holder(path)
        raise LeaseHeldError(
            f"{path.parent} is worked on by another process: {holder or 'it does not say which'}"
        )

    time.sleep(POLL_S)


def _acquire(path: Path, deadline: float) -> Lease:
    last_holder, unchanged_since = None, time.monotonic()
    while True:
        lease = _create(path)
        if lease is not None:
            return lease

        holder = read_holder(path)
        if holder is None:
            continue

        if holder != last_holder:
            last_holder, unchanged_since = holder, time.monotonic()

        # Not by the clock on the wall alone: it differs between machines and may jump.
        waited = time.monotonic() - unchanged_since
        if waited > 2 * TERM_S:  # whoever claimed it has died over it
            _claim(path, holder.owner).unlink(missing_ok=True)

        if (is_dead(holder) or waited > TERM_S) and _take_away(path, holder):
            continue

        _pause(path, deadline)


def _create(path: Path) -> Lease | None:
    """A new lease, or None if there is one."""
    owner = uuid.uuid4().hex
    holder = Holder(
        owner,
        host=socket.gethostname(),
        machine=machine(),
        pid=os.getpid(),
        expires=time.time() + TERM_S,
    )

    temporary = path.with_name(f".lease.{owner}.tmp")
    file = temporary.open("wb", buffering=0)

    try:
        file.write(holder.encode())
        faults.flush(file)
        path.hardlink_to(temporary)
    except FileExistsError:
        file.close()
        return None
    except OSError as error:
        file.close()
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise

        return _create_unlinked(path, holder)
    finally:
        temporary.unlink(missing_ok=True)

    return Lease(path, holder, file)


def _create_unlinked(path: Path, holder: Holder) -> Lease | None:
    """Claim without hard links: for a moment a reader may find the lease empty, and takes it for
    one that is held.
    """
    try:
        file = path.open("xb", buffering=0)
    except FileExistsError:
        return None

    file.write(holder.encode())
    return Lease(path, holder, file)


def is_dead(holder: Holder) -> bool:
    """Return whether the owner is known to be gone: a process of this machine that is no more, or a
    term over long ago.
    """
    if not holder.owner:
        return False
    if holder.machine == machine():
        return not Path(f"/proc/{holder.pid}").exists()

    return time.time() > holder.expires + 10 * TERM_S


def _take_away(path: Path, judged: Holder) -> bool:
    """Remove the lease that was judged; False if another process is at it, or if it is another
    lease by now.
    """
    with _claimed(path, judged.owner) as claimed:
        if not claimed or read_holder(path) != judged:
            return False

        path.unlink(missing_ok=True)
        return True


def _claim(path: Path, owner: str) -> Path:
    return path.with_name(f".lease.{owner}.claim.tmp")


@contextmanager
def _claimed(path: Path, owner: str) -> Iterator[bool]:
    """The right to remove the owner's lease, which one process has at a time; False if this one
    does not get it.
    """
    claim = _claim(path, owner)
    try:
        claim.open("xb").close()
    except OSError:  # or a disk that is full: the lease stands until it has expired
        yield False
        return

    try:
        yield True
    finally:
        claim.unlink(missing_ok=True)
