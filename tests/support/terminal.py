"""A command in a real pseudo-terminal, as its user has it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import termios
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass
class Terminal:
    """Runs a command with a terminal of its own as its input, output and error."""

    command: Sequence[str]
    columns: int = 118
    lines: int = 40
    written: bytes = b""  # all that the command has written
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            # The command starts when its terminal has a size.
            while termios.tcgetwinsize(0)[1] == 0:
                time.sleep(0.01)
            os.execvpe(self.command[0], list(self.command), {**os.environ, **self.environment})
        size = struct.pack("HHHH", self.lines, self.columns, 0, 0)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, size)

    @property
    def text(self) -> str:
        """All that was written, without what moves the cursor or sets colours."""
        return CONTROL.sub("", self.written.decode(errors="replace")).replace("\r", "")

    def type(self, keys: bytes) -> None:
        r"""Type on the terminal's keyboard; b"\x03" is Ctrl-C."""
        os.write(self.master, keys)

    def read_until(self, done: Callable[[], bool], timeout_s: float = 600) -> bool:
        """Read what the command writes until `done` or its end; tell whether it is `done`."""
        deadline = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {timeout_s:.0f} s the terminal shows: {self.text[-2000:]}")
            ready, _, _ = select.select([self.master], [], [], 0.05)
            if not ready:
                continue
            try:
                part = os.read(self.master, 2**16)
            except OSError:  # the last process with this terminal has ended
                part = b""
            if not part:
                return done()
            self.written += part
        return True

    def wait(self, timeout_s: float = 600) -> int:
        """Read to the end; return the exit code."""
        self.read_until(lambda: False, timeout_s)
        _, status = os.waitpid(self.pid, 0)
        os.close(self.master)
        return os.waitstatus_to_exitcode(status)
