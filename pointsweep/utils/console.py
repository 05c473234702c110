"""Text on its way to a terminal or a log: what it may contain, how wide it is, and streams that
never end a command.

Labels, titles and reasons come from files and from other programs. Control characters in them are
shown as escapes, signs that a stream's encoding lacks are replaced, and widths count the cells of a
terminal, not characters.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

from rich.cells import cell_len

# For encodings that lack them. One sign for each footnote symbol, so that they stay distinct.
REPLACEMENTS = {
    "±": "+-", "—": "-", "–": "-", "…": "...", "·": ".", "×": "x", "→": "->", "≤": "<=", "≥": ">=",
    "µ": "u",
    "“": '"', "”": '"', "‘": "'", "’": "'", "\N{NO-BREAK SPACE}": " ", "†": "^", "‡": "#", "§": "$",
    "¶": "&",
}  # fmt: skip
# Unicode's categories Cc, Zl, Zp, Cs, and of Cf what is not seen or turns a line around. Not the
# joiners of emoji and words.
HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)
STDERR = 2  # its file descriptor
NARROWEST = 20  # columns; what claims to be narrower does not say how wide it is
USUAL = 80  # columns of a terminal that does not say


# What a text may contain


def visible(text: str, keep: str = "") -> str:
    r"""Return the text with its control characters, direction marks and surrogates as escapes such
    as \x1b.
    """
    if text.isprintable():
        return text

    return HIDDEN.sub(
        lambda found: found[0] if found[0] in keep else _escape(found[0]), text
    )


def one_line(text: str) -> str:
    """Return a label or a title as one visible line: line breaks and tabs are spaces."""
    if text.isprintable():
        return text

    return visible(text.replace("\r\n", " ").translate({9: " ", 10: " ", 13: " "}))


def _escape(char: str) -> str:
    if ord(char) > 126:
        return char.encode("ascii", "backslashreplace").decode()
    return repr(char)[1:-1]


def encodable(text: str, encoding: str) -> str:
    """Return the text with signs that the encoding lacks replaced, others as escapes."""
    if text.isascii():
        return text

    return text.encode(encoding, "pointsweep").decode(encoding)


def _replace(error: UnicodeError) -> tuple[str, int]:
    """Handle what an encoding lacks (an error handler of codecs)."""
    if not isinstance(error, UnicodeEncodeError):
        raise error

    text = ""
    for char in error.object[error.start : error.end]:
        replacement = REPLACEMENTS.get(char, char)
        text += replacement if replacement.isascii() else _escape(replacement)

    return text, error.end


codecs.register_error("pointsweep", _replace)


# How wide it is


def width(text: str) -> int:
    """Return how many cells of a terminal the text takes."""
    return len(text) if text.isascii() else cell_len(text)


def left(text: str, size: int) -> str:
    """Return the text filled to `size` cells on the right."""
    return text + " " * (size - width(text))


def right(text: str, size: int) -> str:
    """Return the text filled to `size` cells on the left."""
    return " " * (size - width(text)) + text


def shortened(text: str, size: int) -> str:
    """Return the text cut to `size` cells, with three dots where something is cut off."""
    if width(text) <= size:
        return text

    return _take(text, max(size - 3, 0)) + "..."[:size]


def _take(text: str, size: int) -> str:
    """Return the longest beginning of at most `size` cells; a combining mark stays with its
    letter.
    """
    if width(text) <= size:
        return text

    end = min(len(text), size)
    while end and width(text[:end]) > size:
        end -= 1

    while end < len(text) and width(text[: end + 1]) <= size:
        end += 1

    return text[:end]


def wrapped(line: str, size: int, indent: str = "  ") -> list[str]:
    """Return the lines of at most `size` cells that a sentence becomes, further ones indented."""
    if line.isascii():
        return _wrapped_ascii(line, size, indent)

    lines: list[str] = []
    current = ""
    for word in line.split():
        if current and width(current) + 1 + width(word) <= size:
            current += f" {word}"
            continue

        if current:
            lines.append(current)
            current = indent

        while width(current) + width(word) > size:
            head = _take(word, size - width(current)) or word[0]
            lines.append(current + head)
            current, word = indent, word[len(head) :]

        current += word

    return [*lines, current]


def _wrapped_ascii(line: str, size: int, indent: str) -> list[str]:
    """Do what `textwrap.wrap` does, in a quarter of the time where it is plain words; notes may
    have ten thousand.
    """
    words = line.split(" ")
    if len(line.split()) < len(words) or max(map(len, words)) > size - len(indent):
        return textwrap.wrap(
            line, size, subsequent_indent=indent, break_on_hyphens=False
        )

    lines = [words[0]]
    length = len(words[0])  # of the last line
    for word in words[1:]:
        length += 1 + len(word)
        if length > size:
            lines.append(indent + word)
            length = len(indent) + len(word)
        else:
            lines[-1] += f" {word}"

    return lines


def columns_of(stream: TextIO) -> int | None:
    """Return the width of the terminal that a stream is; None of a file or a pipe."""
    if not stream.isatty():
        return None

    setting = os.environ.get("COLUMNS", "")
    try:
        if setting.isdecimal():
            columns = int(setting)
        else:
            columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        columns = 0

    return columns if columns >= NARROWEST else USUAL


def encoding_of(stream: TextIO) -> str:
    """Return the encoding of a stream; utf-8 where it does not say."""
    return getattr(stream, "encoding", None) or "utf-8"


# Streams


class ReaderGoneError(BrokenPipeError):
    """Nobody reads standard output any more, as in `| head`."""


class SafeStream:
    """A text stream that a command cannot end on.

    What its encoding lacks is replaced and control characters are made visible. When it cannot be
    written any more (a full disk, a terminal that is gone), the rest goes nowhere and `lost` says
    why. A reader that went away raises ReaderGoneError, unless the command `outlives` its reader.
    """

    def __init__(
        self, stream: TextIO, outlives: bool = False, escapes: bool = True
    ) -> None:
        self.stream = stream
        self.outlives = outlives
        self.escapes = escapes
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        """Write the text; return its length."""
        shown = visible(text, keep="\n\t") if self.escapes else text
        self._try(lambda: self.stream.write(shown))
        return len(text)

    def writelines(self, lines: Iterator[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Hand over what is buffered."""
        self._try(self.stream.flush)

    def plain(self) -> SafeStream:
        """Return the same stream for who draws on a terminal, and has made its texts visible
        already.
        """
        return SafeStream(self.stream, outlives=True, escapes=False)

    def _try(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:
            self.lost = error
            # Also what is buffered, or the interpreter complains of it at its own end.
            _discard(self.stream)
            if isinstance(error, BrokenPipeError) and not self.outlives:
                raise ReaderGoneError(*error.args) from error

            self._tell(error)

    def _tell(self, error: OSError) -> None:
        if self.stream.fileno() == STDERR:
            return

        reason = error.strerror
        if isinstance(error, BrokenPipeError):
            reason = "nobody reads it any more"

        print(
            f"standard output cannot be written ({reason}); the command goes on without it",
            file=sys.stderr,
            flush=True,
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _discard(stream: TextIO) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def guard_streams(outlives: bool = False) -> None:
    """Make standard output and error safe for the rest of this process."""
    _open_closed()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, SafeStream):
            continue

        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="pointsweep")

        setattr(
            sys, name, cast(TextIO, SafeStream(stream, outlives or name == "stderr"))
        )


def _open_closed() -> None:
    """Open what the caller has closed: else the next file that is opened would be standard
    output.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one

    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123 - for the process' life
