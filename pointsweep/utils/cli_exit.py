"""Parts shared by the ends of all commands: safe output, exit codes, and fewer garbage collections,
a fifth of the loading time.

No exception reaches the screen as a traceback. What a user can act on is one line; the traceback
goes to a log file whose path is printed.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from pointsweep.errors import StoreUnavailableError
from pointsweep.utils.console import ReaderGoneError, SafeStream, guard_streams
from pointsweep.utils.masking import scrubbed

# new objects between two looks for garbage, and how often the next older ones are looked at
GARBAGE = (50_000, 20)
UNREAD = 141  # 128 + SIGPIPE, as a shell says it of other commands

# Exit codes of every command beside its own.
INVALID = 2  # the input or the machine is not fit
INTERRUPTED = 3  # the same command continues
INTERNAL = 5  # a fault of pointsweep or of a library
BROKEN_OFF = 6  # a disk or service failed on the way; what is done is kept


def look_less_for_garbage() -> None:
    """Look less often for garbage: for what loads torch, Ray or MLflow."""
    gc.set_threshold(*GARBAGE)


def exit_code(main: Callable[[], int], outlives: bool = False) -> int:
    """Return what `main` returns, or the code of the exception that it raised.

    That nobody reads its output (`| head`) ends it silently, but a command that `outlives` its
    reader works on to its end.
    """
    look_less_for_garbage()
    guard_streams(outlives)

    try:
        code = _returned(main)
        sys.stdout.flush()
        # Or the interpreter looks for garbage among all of them before it ends, which takes
        # seconds.
        gc.freeze()
        return _with_output(code)
    except ReaderGoneError:
        return UNREAD
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        return explain(error)


def _returned(main: Callable[[], int]) -> int:
    try:
        return main()
    except SystemExit as end:  # of the parser, after its help or its complaint
        return end.code if isinstance(end.code, int) else 0


def _with_output(code: int) -> int:
    """Return the exit code; where it would be 0, not if the output could not be written."""
    lost = sys.stdout.lost if isinstance(sys.stdout, SafeStream) else None
    if code != 0 or lost is None:
        return code

    return UNREAD if isinstance(lost, BrokenPipeError) else BROKEN_OFF


def explain(error: Exception) -> int:
    """Print what went wrong and where its traceback is; return the exit code."""
    code, text = _described(error)
    # A user's mistake has no use for a traceback, but a disk's or library's words alone may not
    # suffice.
    if code != INVALID or isinstance(error, OSError):
        text += f"\nthe traceback is in {log_traceback(error)}"

    print(text, file=sys.stderr)
    return code


def broken_off(error: OSError) -> int:
    """Print that a disk or service failed after the launch, and where the traceback is; return the
    exit code.
    """
    where = f": {error.filename}" if error.filename and error.strerror else ""
    text = scrubbed(f"{error.strerror}{where}" if where else str(error))
    print(f"{text}\nwhat is done is kept; the same command continues", file=sys.stderr)
    print(f"the traceback is in {log_traceback(error)}", file=sys.stderr)

    return BROKEN_OFF


def _described(error: Exception) -> tuple[int, str]:
    text = scrubbed(str(error))
    if isinstance(error, StoreUnavailableError):
        return BROKEN_OFF, f"{text}\nwhat is done is kept; the same command continues"
    if isinstance(error, MemoryError):
        return (
            BROKEN_OFF,
            (
                "this machine's memory does not suffice; what is done is kept, the same command"
                " continues"
            ),
        )

    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return INVALID, f"{error.strerror or text}{where}"

    name = type(error).__name__
    # The package's own exceptions say in their own words what a user can do.
    if type(error).__module__.startswith("pointsweep."):
        return INVALID, text

    first = " ".join(f"{name}: {text}".split())[:300]
    return (
        INTERNAL,
        (
            f"internal error: {first}\nthis is a fault of pointsweep, not of your input; what is"
            " done is kept"
        ),
    )


def log_traceback(error: BaseException) -> str:
    """Write the traceback of an exception, without secrets, to a log file; return its path."""
    lines = traceback.format_exception(error)
    now = time.strftime("%Y-%m-%d %H:%M:%S %z")
    head = f"{now} {Path(sys.argv[0]).name}, process {os.getpid()}\n"
    text = scrubbed(head + "".join(lines))
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"

    for folder in log_folders():
        try:
            folder.mkdir(exist_ok=True)
            path = folder / name
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError:
            continue

        return str(path)

    return (
        "no file: neither the store nor the folder for temporary files can be written"
    )


def log_folders() -> list[Path]:
    """Return where log files may go: `logs` in the store that the command line or the environment
    names, else temporary files.
    """
    store = os.environ.get("POINTSWEEP_STORE") or "~/pointsweep"
    for word, following in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        if word == "--store":
            store = following
        elif word.startswith("--store="):
            store = word.partition("=")[2]

    folders = [
        Path(tempfile.gettempdir()) / "pointsweep-logs",
        Path(tempfile.gettempdir()),
    ]
    if "://" not in store:
        root = Path(store).expanduser()
        # A mistyped path is not made by the log.
        if (root / "trials").is_dir() or (root / "sweeps").is_dir():
            folders.insert(0, root / "logs")

    return folders
