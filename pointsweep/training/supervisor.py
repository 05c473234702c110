"""How a trial is run to its end: under a lease, watched, and tried again as the class of its
failure allows (failures.py).
"""

from __future__ import annotations

import atexit
import faulthandler
import os
import signal
import statistics
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from pointsweep.config.schema import TrialConfig
from pointsweep.errors import (
    ConfigError,
    RecordError,
    StoreError,
    StoreUnavailableError,
)
from pointsweep.results.failures import POLICIES, Failure, HungError, classify
from pointsweep.results.identity import config_problem
from pointsweep.results.trial_dir import TrialFolder
from pointsweep.results.working_copy import Copy, work_folder
from pointsweep.storage.base import Store, create_beside, write_whole
from pointsweep.storage.lease import LeaseHeldError, LeaseLostError
from pointsweep.utils.masking import scrubbed

HANG_FACTOR = 10  # times the median epoch without progress is a hang
HANG_FLOOR_S = 60.0  # but never less: short epochs may wait for a disk
FIRST_EPOCH_S = 3600.0  # while no epoch is known: loading, a memory bank, a first epoch
HANG_EXIT = 70


_working: set[TrialFolder] = set()  # of the trials that this process trains just now


def preempted() -> None:
    """Keep what is trained, as this process is being ended from outside: a checkpoint, and a word
    in the history.
    """
    for folder in list(_working):
        _working.discard(folder)
        # What cannot be kept is trained again.
        with suppress(OSError, LeaseLostError):
            folder.rescue()
            folder.append(
                {"type": "stopped", "class": "preempted", "time": time.time()}
            )


# A worker of Ray is told to end by SIGTERM, which ends its main thread while another one trains.
atexit.register(preempted)


class TrialStoppedError(Exception):
    """The search that suggested a trial has seen enough of it after this epoch."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a trial: `finished`; `failed`, with class and reason; `held` by another process;
    `stopped` by a search.

    `waiting`: it was not started, as the sweep's budget was used up.
    """

    key: str
    status: str
    reason: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Guard:
    """Guard that runs one trial. `bug_mark` is written at the first bug of the trial's arm in a
    launch; none of the arm starts after it.

    `relieve` makes the next attempt take less memory, and says False if it cannot.
    """

    folder: TrialFolder
    bug_mark: Path
    relieve: Callable[[], bool]
    notify: Callable[[], None]
    # of a store elsewhere; brought level with it before the trial and after
    copy: Copy | None = None
    config: TrialConfig | None = None  # what a record without a checksum must be of

    def run(self, body: Callable[[Callable[[], None]], None], wait_s: float) -> Outcome:
        """Call `body`, with what it has to call at every sign of progress, until the trial has
        ended.
        """
        key = self.folder.path.name
        try:
            with (
                self.folder.lock(wait_s),
                self.copy.hold(wait_s) if self.copy else nullcontext(),
            ):
                if self._is_finished():
                    return Outcome(key, "finished")

                if self.copy:
                    self.copy.fetch()

                try:
                    outcome = self._attempts(key, body)
                except TrialStoppedError as end:
                    self.folder.append(
                        {"type": "pruned", "epoch": end.args[0], "time": time.time()}
                    )
                    outcome = Outcome(key, "stopped")
                finally:
                    if self.copy:
                        self.copy.close()
        except (LeaseHeldError, LeaseLostError) as error:
            return Outcome(key, "held", str(error))
        except (OSError, StoreError) as error:
            # The folder itself cannot be written: its history cannot say so.
            return Outcome(key, "failed", one_line(error), "store")

        self.notify()
        return outcome

    def _is_finished(self) -> bool:
        """Return whether the trial has a record; one that cannot be believed is set aside here,
        under the lease.
        """
        elsewhere = self.copy if self.copy is not None and self.copy.remote else None
        try:
            record = (
                elsewhere.record() if elsewhere is not None else self.folder.record()
            )
            if record is not None and self.config is not None:
                problem = config_problem(record, self.config)
                if problem:
                    raise RecordError(problem)
        except RecordError as error:
            if elsewhere is not None:
                elsewhere.set_record_aside()
            else:
                self.folder.set_record_aside(str(error))

            return False

        return record is not None

    def _attempts(
        self, key: str, body: Callable[[Callable[[], None]], None]
    ) -> Outcome:
        ended = self.folder.final_failure()
        if ended is not None:
            return Outcome(key, "failed", ended.reason, ended.kind)

        failure = self.folder.lost_attempt()
        if failure is None and self.bug_mark.is_file():
            failure = Failure("bug", f"not started: {self.bug_mark.read_text()}")

        while True:
            if failure is not None and not self._should_retry(failure):
                return Outcome(key, "failed", failure.reason, failure.kind)

            failure = self._attempt(body)
            if failure is None:
                return Outcome(key, "finished")

            self.notify()

    def _attempt(self, body: Callable[[Callable[[], None]], None]) -> Failure | None:
        _working.add(self.folder)
        try:
            with Watchdog(self.folder) as watchdog:
                body(watchdog.beat)
        except (LeaseLostError, TrialStoppedError):
            raise
        except Exception as error:
            # whatever a trial raises is its own end, told in full, and not that of its pack
            return failure_of(error)
        except BaseException:
            preempted()
            raise
        finally:
            _working.discard(self.folder)

        return None

    def _should_retry(self, failure: Failure) -> bool:
        """Enter a failure into the history; return whether the trial is to be tried again."""
        if failure.kind == "bug" and not self.bug_mark.is_file():
            write_whole(
                self.bug_mark,
                f"its arm failed with a bug in trial {self.folder.path.name}".encode(),
            )

        return record_failure(
            self.folder, failure, failure.kind != "out_of_memory" or self.relieve()
        )


def record_failure(
    folder: TrialFolder, failure: Failure, possible: bool = True
) -> bool:
    """Appends a failure to the history; whether its class allows another attempt."""
    num_failures = folder.count_failures(failure.kind)
    retried = possible and num_failures < POLICIES[failure.kind].retries
    folder.append(
        {
            "type": "failed", "class": failure.kind, "reason": failure.reason,
            "trace": failure.trace, "time": time.time(),
            "launch": folder.launch, "retried": retried,
        }
    )  # fmt: skip

    return retried


def record_loss(
    store: Store, key: str, failure: Failure, launch: str, wait_s: float
) -> Failure:
    """Enter into a trial's history, in a store on a server too, that it is given up with its
    worker; or return what it had ended in.

    Somebody else may work on it by now, or the store be away: then nothing is entered.
    """
    copy = Copy(store, work_folder(store, key))
    folder = copy.folder
    folder.launch = launch

    with (
        suppress(LeaseHeldError, LeaseLostError, OSError, StoreError),
        folder.lock(wait_s),
        copy.hold(wait_s),
    ):
        copy.fetch()
        failure = folder.final_failure() or failure
        folder.repair()
        record_failure(folder, failure, possible=False)
        copy.upload()

    return failure


def one_line(error: BaseException) -> str:
    """Return what a table and a log say of an error."""
    if isinstance(error, ConfigError):
        # Without its head, which says that nothing was launched.
        text = "; ".join(str(problem) for problem in error.problems)
    elif isinstance(error, StoreUnavailableError):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error}"

    return " ".join(scrubbed(text).split())[:300]


def failure_of(error: Exception) -> Failure:
    """Return what is kept of an exception that ended a trial: its class, one line and the
    traceback, without secrets.
    """
    return Failure(
        classify(error),
        one_line(error),
        scrubbed("".join(traceback.format_exception(error))),
    )


class Watchdog:
    """A thread that ends a trial which makes no progress: the stacks of all threads go to the
    trial's folder, then it is killed.

    In the main thread a signal raises HungError; where that is not possible, as in a worker of Ray,
    or does not help, the process is ended, and who started it tries again.
    """

    def __init__(self, folder: TrialFolder) -> None:
        self.folder = folder
        self.epochs: list[float] = []
        for event in folder.epochs():
            if "seconds" in event:
                self.epochs.append(float(event["seconds"]))

        # as this thread has seen it: while the whole machine sleeps nothing is expected of the
        # trial
        self.quiet_s = 0.0
        self.progress_at = time.monotonic()
        self.ended = threading.Event()
        self.main = threading.current_thread() is threading.main_thread()
        self.handler: Any = None

    def __enter__(self) -> Watchdog:
        if self.main:
            self.handler = signal.signal(signal.SIGUSR1, self._raise)

        threading.Thread(target=self._run, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.ended.set()
        if self.main:
            signal.signal(signal.SIGUSR1, self.handler)

    def beat(self) -> None:
        """Progress: an epoch has ended."""
        now = time.monotonic()
        self.epochs.append(now - self.progress_at)
        self.progress_at = now
        self.quiet_s = 0.0

    def limit_s(self) -> float:
        """Return how long without progress is a hang."""
        floor = float(os.environ.get("POINTSWEEP_HANG_S", HANG_FLOOR_S))
        if not self.epochs:
            return max(floor, FIRST_EPOCH_S)

        return max(floor, HANG_FACTOR * statistics.median(self.epochs))

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if not self.ended.is_set():
            raise HungError(self._hang_message())

    def _hang_message(self) -> str:
        return (
            f"no progress for {self.quiet_s:.0f} s; the stacks are in"
            f" {self.folder.path / 'stacks.txt'}"
        )

    def _run(self) -> None:
        poll_s = min(1.0, self.limit_s() / 10)
        previous = time.monotonic()
        while not self.ended.wait(poll_s):
            now = time.monotonic()
            self.quiet_s += min(now - previous, 2 * poll_s)
            previous = now

            if self.quiet_s > self.limit_s():
                self._end()
                return

    def _end(self) -> None:
        stacks = self.folder.path / "stacks.txt"
        temporary, file = create_beside(stacks)
        with file:
            faulthandler.dump_traceback(file)

        temporary.replace(stacks)
        if self.main:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            if self.ended.wait(10.0):
                return

        with suppress(OSError, LeaseLostError):
            record_failure(
                self.folder, Failure("hang", f"HungError: {self._hang_message()}")
            )

        os._exit(HANG_EXIT)
