"""The file's `seeds:`: a number, a list, or a rule by which a comparison gets as many as it needs
(adaptive_seeds.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pointsweep.config import scalars
from pointsweep.config.validation import MOST_WHOLE
from pointsweep.errors import unknown
from pointsweep.results.records import Adaptive
from pointsweep.statistics import adaptive_seeds as adaptive
from pointsweep.sweep.axes import Entry
from pointsweep.sweep.yaml_document import Document

Complain = Callable[
    [tuple[Any, ...], str], None
]  # where in the file, and what is wrong
MOST_SEEDS = 10_000  # a slip of the keyboard must not fill the memory


def read_seeds(data: Mapping[str, Any], complain: Complain) -> list[int]:
    """The seeds of a sweep's cells; of a rule the most that it may ask for."""
    seeds = data.get("seeds", [0] if {"search", "per_arm"} & set(data) else [0, 1, 2])
    if (
        isinstance(seeds, int)
        and not isinstance(seeds, bool)
        and 0 < seeds <= MOST_SEEDS
    ):
        return list(range(seeds))

    if isinstance(seeds, Mapping):
        wrong = list(adaptive.parse(seeds, MOST_SEEDS))
        for path, message in wrong:
            complain(("seeds", *path), message)

        return [] if wrong else list(range(seeds["max"]))

    wrong_seeds = _wrong_seeds(seeds)
    if wrong_seeds:
        complain(
            ("seeds",),
            f"must be a number of seeds (at most {MOST_SEEDS}), a list of different seeds from 0"
            f" on, or {{min: 3, max: 10, until: decided}}, got {wrong_seeds}",
        )
        return []

    return list(seeds)


def _wrong_seeds(seeds: Any) -> str:
    """Return what is wrong with a list of seeds, in words; empty if nothing is."""
    if not isinstance(seeds, list):
        return scalars.shown(seeds)
    if not seeds:
        return "an empty list"

    for seed in seeds:
        is_whole = isinstance(seed, int) and not isinstance(seed, bool)
        if not is_whole or not 0 <= seed <= MOST_WHOLE:
            return f"{scalars.shown(seed)} in the list"
        if seeds.count(seed) > 1:
            return f"{seed} twice"

    return ""


def read_adaptive(
    document: Document,
    data: Mapping[str, Any],
    rows: Sequence[Sequence[Entry]],
    complain: Complain,
) -> Adaptive | None:
    """Return the rule of adaptive seeds, with the number of the row that all others are compared
    with; None of fixed ones.
    """
    seeds = data.get("seeds")
    if not isinstance(seeds, Mapping):
        return None

    if {"search", "per_arm"} & set(data):
        complain(("seeds",), "a search takes a number of seeds or a list")

    labels = []
    for row in rows:
        labels.append(" / ".join(entry.label for entry in row))

    if "against" in seeds:
        against = document.text_of(("seeds", "against"), seeds["against"])
    else:
        against = labels[0]

    if against not in labels:
        complain(("seeds", "against"), unknown("row", against, labels, "Rows"))
        return None

    return Adaptive(seeds["min"], seeds["max"], labels.index(against))
