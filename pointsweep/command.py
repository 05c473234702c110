"""What all commands share: their end."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable

UNREAD = 141  # 128 + SIGPIPE, as a shell says it of other commands


def exit_code(main: Callable[[], int]) -> int:
    """What `main` returns. That nobody reads its output any more (`| head`) ends it without a word."""
    try:
        code = main()
        sys.stdout.flush()
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
