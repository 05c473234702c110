"""Text on its way to a terminal: what it may contain, its width in cells, and streams that never end a command."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pointsweep.utils.console import SafeStream, columns_of, encodable, one_line, shortened, visible, width, wrapped

HOSTILE = "a\x1b[31mred\x07\r\x9b2J\u202eevil\u2066\u200bz\ud800\x00"


def test_no_control_character_is_left_in_visible_text():
    shown = visible(HOSTILE)
    assert shown.isprintable()
    assert shown == r"a\x1b[31mred\x07\r\x9b2J\u202eevil\u2066\u200bz\ud800\x00"


def test_letters_marks_and_emoji_stay_as_they_are():
    for text in ("漢字", "e\u0301", "👨\u200d👩\u200d👧", "می\u200cخواهم", "ü ± †"):
        assert visible(text) == text


def test_a_label_is_one_line():
    assert one_line("two\nlines\tand\r\nmore") == "two lines and more"
    assert one_line("a\x0bb") == r"a\x0bb"


@pytest.mark.parametrize(
    ("text", "encoding", "shown"),
    [
        ("81.2 ± 0.4*†‡§¶", "ascii", "81.2 +- 0.4*^#$&"),
        ("81.2 ± 0.4", "latin-1", "81.2 ± 0.4"),
        ("ü 漢 —", "latin-1", r"ü \u6f22 -"),
        ("“x” → €", "cp1252", "“x” -> €"),
        ("漢 ±", "utf-8", "漢 ±"),
    ],
)
def test_what_an_encoding_lacks_is_replaced(text, encoding, shown):
    assert encodable(text, encoding) == shown


@pytest.mark.parametrize(
    ("text", "cells"), [("plain", 5), ("漢字", 4), ("e\u0301", 1), ("👍", 2), ("가", 2), ("ﾊﾝ", 2), ("ａ", 2), ("", 0)]
)
def test_width_counts_the_cells_of_a_terminal(text, cells):
    assert width(text) == cells


def test_a_shortened_text_fits_and_says_that_it_is_cut():
    assert shortened("漢字漢字漢字", 8) == "漢字..."
    assert shortened("short", 8) == "short"
    for size in range(1, 12):
        assert width(shortened("a漢e\u0301" * 5, size)) <= size


def test_wide_letters_are_wrapped_by_cells_and_nothing_is_lost():
    text = "漢字と文字 の " * 12 + "ü" * 50
    for size in (20, 33, 80):
        lines = wrapped(text, size)
        assert max(map(width, lines)) <= size
        assert "".join("".join(lines).split()) == "".join(text.split())


class Encoded(io.TextIOWrapper):
    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors="pointsweep", newline="\n")

    def written(self) -> bytes:
        self.flush()
        return self.buffer.getvalue()


def test_a_stream_says_what_it_can_and_lets_no_escape_pass():
    stream = Encoded("ascii")
    print("± \x1b[2J ü", file=SafeStream(stream))
    assert stream.written() == rb"+- \x1b[2J \xfc" + b"\n"


def test_the_width_of_what_is_no_terminal_is_not_limited(tmp_path):
    with (tmp_path / "file").open("w") as file:
        assert columns_of(file) is None


@pytest.mark.parametrize(("size", "columns"), [((24, 80), 80), ((50, 200), 200), ((0, 0), 80)])
def test_the_width_of_a_terminal_is_its_own(size, columns, monkeypatch):
    import fcntl
    import struct
    import termios

    monkeypatch.delenv("COLUMNS", raising=False)
    controller, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    with os.fdopen(terminal, "w") as stream:
        assert columns_of(stream) == columns
    os.close(controller)


SCRIPT = """
import sys
from pointsweep.utils.cli_exit import exit_code
def main():
    for number in range(3000):
        print("line", number, "±", flush=True)
    print("done", file=sys.stderr)
    return 0
sys.exit(exit_code(main, outlives={outlives}))
"""


def run(outlives: bool, **options: object) -> subprocess.CompletedProcess:
    line = [sys.executable, "-c", SCRIPT.format(outlives=outlives)]
    return subprocess.run(line, stderr=subprocess.PIPE, text=True, check=False, **options)


def unread() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def test_a_reader_that_goes_away_ends_a_command_that_only_prints():
    done = run(False, stdout=unread())
    assert (done.returncode, done.stderr) == (141, "")


def test_a_command_that_works_goes_on_without_its_reader():
    done = run(True, stdout=unread())
    said = "standard output cannot be written (nobody reads it any more); the command goes on without it\n"
    assert (done.returncode, done.stderr) == (141, f"{said}done\n")


def test_a_full_disk_is_told_once_and_the_command_goes_on():
    with Path("/dev/full").open("w") as full:
        done = run(True, stdout=full)
    said = "standard output cannot be written (No space left on device); the command goes on without it\n"
    assert (done.returncode, done.stderr) == (6, f"{said}done\n")


def test_nothing_is_written_into_files_where_standard_output_is_closed(tmp_path):
    script = SCRIPT.format(outlives=True).replace('print("done"', f"open({str(tmp_path / 'x')!r}, 'w').write('x'); print(\"done\"")
    line = ["sh", "-c", f'exec "{sys.executable}" -c "$SCRIPT" >&-']
    done = subprocess.run(line, env={**os.environ, "SCRIPT": script}, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "done\n")
    assert (tmp_path / "x").read_text() == "x"


def test_standard_error_that_is_full_or_closed_ends_nothing():
    line = f'exec "{sys.executable}" -c "$SCRIPT"'
    environment = {**os.environ, "SCRIPT": SCRIPT.format(outlives=True)}
    for where in ("2>/dev/full", "2>&-"):
        done = subprocess.run(["sh", "-c", f"{line} {where}"], env=environment, stdout=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 0
        assert len(done.stdout.splitlines()) == 3000


def test_json_of_a_hostile_label_is_read_back_unchanged():
    from pointsweep.reporting.formats.registry import render
    from tests.reporting.test_formats import table

    made = render(table(title=HOSTILE), "json")
    assert visible(made, keep="\n") == made
    assert json.loads(made)["title"] == HOSTILE
