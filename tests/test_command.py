"""How commands end."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pointsweep.command import UNREAD, exit_code


def test_a_command_whose_reader_went_away_ends_without_a_word():
    line = [sys.executable, "-m", "pointsweep.published"]
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run(line, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (run.returncode, run.stderr) == (UNREAD, "")


def test_another_broken_pipe_is_told():
    def main() -> int:
        raise BrokenPipeError("a server's")

    with pytest.raises(BrokenPipeError, match="a server's"):
        exit_code(main)
