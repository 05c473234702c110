"""Selection of clouds from a stored split: up to a limit, and those held out for validation. Free
of torch.
"""

from __future__ import annotations

import numpy as np


def in_turn(labels: np.ndarray) -> np.ndarray:
    """Return row numbers: the first of every class in turn, then the second of every class, and so
    on.
    """
    rank = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rank[rows] = np.arange(len(rows))

    return np.lexsort((labels, rank))


def hold_out(
    labels: np.ndarray, fraction: float, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows kept and rows held out: `fraction` of every class (at least one), the same in
    every trial.

    `groups` (n,) says which clouds are of one object: its clouds are all kept or all held out.
    """
    if fraction == 0:
        return np.arange(len(labels)), np.zeros(0, dtype=np.int64)

    generator = np.random.default_rng(0)
    held = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        num_held = max(1, round(fraction * len(rows)))
        if groups is None:
            held.append(generator.permutation(rows)[:num_held])
        else:
            held.append(_whole_groups(rows, groups, num_held, generator))

    held_rows = np.concatenate(held)
    return np.setdiff1d(np.arange(len(labels)), held_rows), held_rows


def _whole_groups(
    rows: np.ndarray, groups: np.ndarray, num_held: int, generator: np.random.Generator
) -> np.ndarray:
    """Rows of whole groups, drawn until there are at least `num_held`."""
    taken: list[np.ndarray] = []
    count = 0

    for group in generator.permutation(np.unique(groups[rows])):
        if count >= num_held:
            break

        members = rows[groups[rows] == group]
        taken.append(members)
        count += len(members)

    return np.concatenate(taken)
