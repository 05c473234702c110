"""What all commands share: their end, and fewer looks for garbage: a fifth of the time in which large libraries are loaded."""

from __future__ import annotations

import gc
import os
import select
import sys
from collections.abc import Callable

GARBAGE = (50_000, 20)  # new objects between two looks for garbage, and how often the next older ones are looked at
UNREAD = 141  # 128 + SIGPIPE, as a shell says it of other commands


def look_less_for_garbage() -> None:
    """For what loads torch, Ray or MLflow."""
    gc.set_threshold(*GARBAGE)


def exit_code(main: Callable[[], int]) -> int:
    """What `main` returns. That nobody reads its output any more (`| head`) ends it without a word."""
    look_less_for_garbage()
    try:
        code = main()
        sys.stdout.flush()
        # Or the interpreter looks for garbage among all of them before it ends, which takes seconds.
        gc.freeze()
        return code
    except BrokenPipeError:
        if not _unread(sys.stdout.fileno()):
            raise  # it was another pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its own end
        return UNREAD


def _unread(pipe: int) -> bool:
    poll = select.poll()
    poll.register(pipe, 0)  # errors and hang-ups are told whatever is asked for
    return bool(poll.poll(0))
