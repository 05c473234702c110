"""Formatting of numbers for people."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal

DIGITS = 12  # of a fraction: sums of floats are wrong behind them


def percent(value: float | None, signed: bool = False) -> str:
    """A fraction as percent with one decimal."""
    if value is None:
        return ""

    shown = decimals(value, 1, shift=2)
    if signed and not shown.startswith("-"):
        return f"+{shown}"

    return shown


def decimals(value: float, digits: int, shift: int = 0) -> str:
    """Return a number times 10^shift with so many decimals, half to even: 0.1235 is 12.4 percent,
    as 247 of 2,000 are 12.35.
    """
    exact = Decimal(repr(round(float(value), DIGITS))).scaleb(shift)
    last_digit = Decimal(1).scaleb(-digits)
    shown = str(exact.quantize(last_digit, ROUND_HALF_EVEN))
    is_zero = not shown.strip("-0.")

    if is_zero:
        return shown.removeprefix("-")

    return shown
