"""Which clouds of a stored split are taken: a limit's, and those that are held out for validation. Free of torch."""

from __future__ import annotations

import numpy as np


def in_turn(labels: np.ndarray) -> np.ndarray:
    """Return row numbers: the first of every class in turn, then the second of every class, and so on."""
    rank = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rank[rows] = np.arange(len(rows))
    return np.lexsort((labels, rank))


def hold_out(labels: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Return rows kept and rows held out: `fraction` of every class (at least one), the same in every trial."""
    if fraction == 0:
        return np.arange(len(labels)), np.zeros(0, dtype=np.int64)
    generator = np.random.default_rng(0)
    held = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        held.append(generator.permutation(rows)[: max(1, round(fraction * len(rows)))])
    held_rows = np.concatenate(held)
    return np.setdiff1d(np.arange(len(labels)), held_rows), held_rows
