"""What a table in the store is called. A file's own table has the file's name; overrides that make it another table make a view.

A view's name says what it is of: `quickstart+train.lr=5e-3`. What only fills cells of the file's own table (`--only`, fewer seeds) or
says where and how long it runs (`resources`, a search's budget) is no view.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

from pointsweep.sweep import overrides

# Overrides under which a table stays the same table. A changed seed list is looked at by what it trains.
NEUTRAL = ("profile", "name", "resources", "search.trials", "search.hours", "search.storage", "per_arm.trials", "per_arm.hours")
LONGEST = 80
PLAIN = re.compile(r"[A-Za-z0-9.,=_~+-]+")


def changes_the_table(text: str) -> bool:
    """Return whether an override may make a table another one; what cannot be read is reported elsewhere."""
    key = _key(text)
    return not any(key == name or key.startswith(f"{name}.") for name in (*NEUTRAL, "seeds"))


def changes_seeds(text: str) -> bool:
    """Return whether an override says which seeds run."""
    key = _key(text)
    return key == "seeds" or key.startswith("seeds.")


def names_the_sweep(texts: Iterable[str]) -> bool:
    """Return whether the command line gives the table a name of its own."""
    return any(_key(text) == "name" for text in texts)


def _key(text: str) -> str:
    try:
        return overrides.parse(text).key
    except ValueError:
        return ""


def view_name(name: str, texts: Sequence[str]) -> str:
    """Return the name of a view: the sweep's, and what was overridden; a digest where that is no part of a file's name."""
    said = "+".join(sorted(text.lstrip("+") for text in texts))
    if not said:
        return name
    plain = "".join(PLAIN.findall(said))[:LONGEST]
    if plain != said or plain != plain.lower():
        plain = f"{plain.lower()}-{hashlib.sha256(said.encode()).hexdigest()[:6]}"
    return f"{name}+{plain}"
