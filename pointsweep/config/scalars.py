"""The words of a sweep file and of the command line as values: YAML 1.2.2, core schema (section
10.3.2).

A file and an override read the same text alike. Numbers that another reader would take for another
number (010 is 8 in YAML 1.1 and 10 in YAML 1.2) stay texts, which are refused wherever a number is
needed.
"""

from __future__ import annotations

import math
import re
from typing import Any

NULL = re.compile(r"null|Null|NULL|~|")
BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
# A leading zero is left out here, though the core schema allows it.
INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
INFINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")

MOST_DIGITS = 400  # of a whole number; more is a slip of the keyboard
LEADING_ZERO = re.compile(r"([-+]?)0+([0-9]+)")
UNDERSCORES = re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?")
BINARY = re.compile(r"0b[01]+")
CLOCK = re.compile(r"[-+]?[0-9]+(?::[0-9]+)+(?:\.[0-9]*)?")
DECIMAL_COMMA = re.compile(r"[-+]?[0-9]+,[0-9]+(?:[eE][-+]?[0-9]+)?")


def kind_of(text: str) -> str:
    """Return what an unquoted text is: null, bool, int, float or str."""
    if NULL.fullmatch(text):
        return "null"
    if BOOL.fullmatch(text):
        return "bool"
    if INT.fullmatch(text):
        return "int"

    fraction = FLOAT.fullmatch(text) and re.search("[.eE]", text)
    if fraction or INFINITE.fullmatch(text):
        return "float"

    return "str"


def value_of(text: str, kind: str | None = None) -> Any:
    """Return the value of an unquoted text, as the given kind or as the one that it has.

    Raises ValueError for a text that is not of that kind, and for a number that a float cannot
    hold.
    """
    text_kind = kind_of(text)
    if kind is None:
        kind = text_kind

    if kind == "str":
        return text
    if kind != text_kind and not (kind == "float" and text_kind == "int"):
        raise ValueError(f"{text!r} is no {kind}{hint(text)}")
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return _whole(text)

    return _decimal(text)


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(
            f"a whole number of {len(text)} digits, at most {MOST_DIGITS} are read"
        )
    if text.startswith("0o"):
        return int(text[2:], 8)
    if text.startswith("0x"):
        return int(text[2:], 16)

    return int(text)


def _decimal(text: str) -> float:
    if INFINITE.fullmatch(text):
        return float(text.replace(".", ""))

    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is beyond the largest number, about 1.8e308")

    mantissa = re.split("[eE]", text)[0]
    if value == 0 and re.search("[1-9]", mantissa):
        raise ValueError(
            f"{text} is so small that it would be read as 0; write 0, or a number above 1e-307"
        )

    return value


def hint(value: object) -> str:
    """Return what to write in place of a value that is no number here, in brackets; empty if
    nothing is known.
    """
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f" (a whole number is written {int(value)})"
    if not isinstance(value, str):
        return ""
    if kind_of(value) in ("int", "float"):
        return f" (in quotes it is a text: write {value})"

    zeros = LEADING_ZERO.fullmatch(value)
    if zeros:
        sign, digits = zeros[1], zeros[2]
        octal = ""
        if re.fullmatch("[1-7][0-7]*", digits) and not sign:
            octal = f", or 0o{digits} for {int(digits, 8)}"

        return f" (with a leading zero it is a text: write {sign}{digits}{octal})"

    if "_" in value and UNDERSCORES.fullmatch(value):
        return f" (with _ it is a text: write {value.replace('_', '')})"
    if BINARY.fullmatch(value):
        return f" (it is a text: write {int(value[2:], 2)})"
    if CLOCK.fullmatch(value):
        return " (it is a text, not a time: write one number, such as 1.5 for an hour and a half)"
    if DECIMAL_COMMA.fullmatch(value):
        return f" (with a comma it is a text: write {value.replace(',', '.')})"

    return ""


def shown(value: object) -> str:
    """Return a refused value as messages show it, with what to write in its place."""
    return f"{value!r}{hint(value)}"


def spelled(value: object) -> str:
    """Return a value as one writes it in a file: true, null, 0.5."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()

    return str(value)


def respelled(text: str) -> str:
    """Return the label that a table gives to the value of a text: 0.001 for 1e-3."""
    try:
        return spelled(value_of(text))
    except ValueError:
        return text


def whole_argument(text: str) -> int:
    """Read an option of a command that is a whole number from 0 on, as a file has it. Raises
    ValueError.
    """
    value = value_of(text)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"must be a whole number from 0 on, got {text}{hint(value)}")

    return value
