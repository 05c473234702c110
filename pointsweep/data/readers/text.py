"""Text files of data sets: encodings, names, and rows of numbers, read where they mean one thing
and else refused.

A byte order mark of UTF-8, Windows' line ends, blanks at the ends of lines and empty lines change
nothing. What is refused is named by file and line.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

import numpy as np

from pointsweep.errors import MissingDataError

OTHER_ENCODINGS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
SHOWN = 60  # characters of a line in a message


def read_text(path: Path) -> str:
    """Return a file's text. Raises ValueError if it is not UTF-8, OSError if it cannot be read."""
    return decode(path.read_bytes(), str(path))


def decode(raw: bytes, source: str) -> str:
    """Return UTF-8 as text with plain line ends. Raises ValueError naming `source` and the line."""
    if raw.startswith(OTHER_ENCODINGS) or b"\0" in raw:
        raise ValueError(f"{source}: is UTF-16 or no text at all; save it as UTF-8")

    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{source}, line {line}: byte 0x{raw[error.start]:02x} is not UTF-8 (Latin-1, or"
            " another encoding of Windows?); save the file as UTF-8"
        ) from error

    return text.replace("\r\n", "\n").replace("\r", "\n")


def lines_of(text: str) -> list[str]:
    """Return the lines that are not empty, without blanks at their ends."""
    return [line.strip() for line in text.split("\n") if line.strip()]


def last_part(name: str) -> str:
    """Return the last part of a path in the style of Unix or of Windows."""
    return PureWindowsPath(name).name


def files_of_list(list_file: Path, names: Sequence[str], dataset: str) -> list[Path]:
    """Return the files beside a list that it names, by the last part of each name: lists hold paths
    of their maker's machine. Raises MissingDataError for one that is not there.
    """
    files = [list_file.parent / last_part(name) for name in names]
    for file in files:
        if not file.is_file():
            raise MissingDataError(
                f"data set {dataset}: {list_file} names {file}, which is not there"
            )

    return files


def number_rows(text: str, source: str, columns: Sequence[int]) -> np.ndarray:
    """Return rows of numbers (rows, columns) as float64; `columns` lists the numbers of columns
    that are allowed.

    Numbers are separated by commas, blanks or semicolons. Decimal commas are read where blanks or
    semicolons separate; a first line that says x, y, z, behind a # or // too, is left out. Raises
    ValueError naming file and line.
    """
    fast = _read_fast(text, columns)
    if fast is None:
        return _read_by_line(text, source, columns)

    return fast


def _read_fast(text: str, columns: Sequence[int]) -> np.ndarray | None:
    """Return the rows of a plain file; None where a closer look is needed."""
    first = text.lstrip().partition("\n")[0]
    has_commas = "," in first

    if not first or ";" in text or "_" in text or (has_commas and "." not in text):
        return None

    try:
        rows = np.loadtxt(
            io.StringIO(text),
            delimiter="," if has_commas else None,
            comments=None,
            ndmin=2,
        )
    except ValueError:
        return None

    return rows if rows.shape[1] in columns else None


def _read_by_line(text: str, source: str, columns: Sequence[int]) -> np.ndarray:
    expected = _shown_counts(columns)
    rows: list[list[float]] = []
    first_line = 0

    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if not line:
            continue

        is_first = not rows and not first_line
        if is_first and _is_header(_fields(line.lstrip("#/ ")), columns):
            first_line = number
            continue

        where = f"{source}, line {number}"
        try:
            values = [_number(field) for field in _fields(line)]
        except ValueError:
            raise ValueError(
                f"{where}: not a row of numbers: {line[:SHOWN]!r}; {expected} columns are expected"
            ) from None

        if not rows:
            first_line = number

        if rows and len(values) != len(rows[0]):
            raise ValueError(
                f"{where}: {len(values)} columns, but {len(rows[0])} in line {first_line}:"
                f" {line[:SHOWN]!r}"
            )

        if len(values) not in columns:
            hint = "; decimal commas? Write decimal points" if "," in line else ""
            raise ValueError(
                f"{where}: {len(values)} columns, {expected} are expected: {line[:SHOWN]!r}{hint}"
            )

        rows.append(values)

    if not rows:
        raise ValueError(
            f"{source}: holds no row of numbers; rows of {expected} numbers are expected"
        )

    has_commas_alone = "," in text and ";" not in text and "." not in text
    if has_commas_alone and not _has_inner_blanks(text):
        raise ValueError(
            f"{source}, line {first_line}: whole numbers alone, separated by commas. Decimal commas"
            " cannot be told from separators: write decimal points"
        )

    return np.array(rows, dtype=np.float64)


def _shown_counts(columns: Sequence[int]) -> str:
    if len(columns) > 3:
        return f"{columns[0]} to {columns[-1]}"

    return " or ".join(map(str, columns))


def _has_inner_blanks(text: str) -> bool:
    return any(" " in line or "\t" in line for line in lines_of(text))


def _fields(line: str) -> list[str]:
    """Return the fields of a line, decimal commas as points where blanks or semicolons separate."""
    if ";" in line:
        return [_with_point(field) for field in line.split(";")]

    fields = line.split()
    if "," not in line or (len(fields) > 1 and all(map(_is_decimal, fields))):
        return [_with_point(field) for field in fields]

    return line.split(",")


def _is_decimal(field: str) -> bool:
    """Return whether a comma in a field, if any, can be that of a decimal number."""
    return field.count(",") <= 1 and field.strip(",") == field


def _with_point(field: str) -> str:
    if field.count(",") == 1 and "." not in field:
        return field.replace(",", ".")
    return field


def _number(field: str) -> float:
    if "_" in field:  # Python would take 1_000
        raise ValueError(field)
    return float(field)


def _is_header(fields: Sequence[str], columns: Sequence[int]) -> bool:
    names = [field.strip().strip('"').lower() for field in fields]
    return names[:3] == ["x", "y", "z"] and len(names) in columns
