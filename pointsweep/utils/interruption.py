"""SIGINT, SIGTERM and SIGHUP (a terminal that is closed) set a flag; whoever works or waits looks
at it and ends.

A handler that raised would do so anywhere, inside a library's C code too, which turns the exception
into another one or loses it. So the handler only keeps which signal came. `check` raises
`InterruptionError` where it is safe: at the end of a batch, in a step of Ray Tune, between two
attempts to reach a cluster.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from pointsweep.utils.cli_exit import INTERRUPTED
from pointsweep.utils.console import encoding_of, visible

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_S = 2.3  # a command has this long to end by itself; Ray and others kill 3 s after SIGTERM
SHOW_CURSOR = b"\x1b[?25h"

_received: signal.Signals | None = None


class InterruptionError(BaseException):
    """SIGINT or SIGTERM arrived. Not an Exception, so that nothing takes it for a trial's
    failure.
    """


def received() -> signal.Signals | None:
    """Return the signal that asked this process to end; None if none came."""
    return _received


def check() -> None:
    """Raise InterruptionError if a signal asked this process to end."""
    if _received is not None:
        raise InterruptionError


def run(work: Callable[[], int], last_words: str, rescue: Callable[[], None]) -> int:
    """Run `work` and return its exit code; after one of the signals call `rescue`, print a line and
    return 3.

    A library may not let go in time. Then the process does all that from a second thread, and ends.
    """
    global _received
    _received = None
    spoken = threading.Event()

    def say() -> None:
        if _received is None or spoken.is_set():
            return

        spoken.set()
        # Not print: the main thread may hold the stream's lock.
        if os.isatty(1):
            with suppress(OSError):
                os.write(1, SHOW_CURSOR)

        text = f"\ninterrupted by {_received.name}: {visible(last_words)}\n"
        with suppress(OSError):  # the terminal may be gone
            os.write(2, text.encode(encoding_of(sys.stderr), "pointsweep"))

    def end_process() -> None:
        try:
            rescue()
            say()
        finally:
            os._exit(INTERRUPTED)

    def handle(number: int, frame: FrameType | None) -> None:
        global _received
        if _received is not None:
            return

        _received = signal.Signals(number)
        timer = threading.Timer(GRACE_S, end_process)
        timer.daemon = True
        timer.start()

    before = {}
    for number in SIGNALS:
        # Under nohup a command goes on when its terminal is closed.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, handle)

    try:
        return work()
    except InterruptionError:
        rescue()
        with suppress(OSError):  # the terminal may be gone
            sys.stdout.flush()

        say()
        return INTERRUPTED
    finally:
        for number, handler in before.items():
            # Python sets its own handlers back to the default when it ends, and a second signal
            # would then change the exit code; one that is ignored stays so.
            if _received is not None:
                handler = signal.SIG_IGN

            signal.signal(number, handler)


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Put the handlers of these signals back after a library's call that replaces them.

    Setting a handler again also replaces the one that a library has set in C, below Python's.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    except SystemExit:
        # Ray's own handler of SIGTERM, while it starts.
        handler = before[signal.SIGTERM]
        if not callable(handler):
            raise

        handler(signal.SIGTERM, None)
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
