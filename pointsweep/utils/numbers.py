"""How numbers are written for people."""

from __future__ import annotations


def percent(value: float | None, signed: bool = False) -> str:
    """A fraction as percent with one decimal."""
    if value is None:
        return ""
    rounded = round(100 * value, 1) + 0.0  # no "-0.0"
    return f"{rounded:+.1f}" if signed else f"{rounded:.1f}"
