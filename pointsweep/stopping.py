"""Schedulers of searches, as limits: which validation accuracy a trial needs at an epoch to go on. They see nothing else.

Sources: median stopping (Golovin et al., Google Vizier, 2017), asynchronous successive halving (arXiv 1810.05934),
Hyperband (arXiv 1603.06560), whose brackets differ in the epoch at which they begin to judge.

Algorithm 2 of asynchronous successive halving keeps the best floor(n / reduction) of the n trials seen at a rung, the new one among
them, and has the others wait there. Ours do not wait, they end; so of the first trials, where that is none, the best so far goes on,
as in Optuna's SuccessiveHalvingPruner.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from pointsweep.space import Search


def limits_of(curves: Sequence[Mapping[int, float]], search: Search, bracket: int = 0) -> dict[int, float]:
    """epoch -> the validation accuracy below which a trial is stopped there, judged by the trials of its bracket that reached it."""
    limits = {}
    options = dict(search.schedule)
    if search.scheduler == "hyperband":
        options["min_epochs"] *= options["reduction"] ** bracket
    for epoch in sorted({epoch for curve in curves for epoch in curve}):
        there = sorted((curve[epoch] for curve in curves if epoch in curve), reverse=True)
        if search.scheduler == "median" and epoch >= options["warmup_epochs"] and len(there) >= options["min_trials"]:
            limits[epoch] = statistics.median(there)
        if search.scheduler in ("asha", "hyperband") and is_rung(epoch, options):
            limits[epoch] = there[max(1, (len(there) + 1) // options["reduction"]) - 1]
    return limits


def is_rung(epoch: int, options: Mapping[str, int]) -> bool:
    """Whether ASHA halts here: the least epoch, and each a reduction times the one before."""
    rung = options["min_epochs"]
    while rung < epoch:
        rung *= options["reduction"]
    return rung == epoch


def bracket_of(number: int, search: Search, epochs: int) -> int:
    """The bracket of a suggestion: of Hyperband 0, 1, ... up to one that never stops, each as often as there; else 0."""
    if search.scheduler != "hyperband":
        return 0
    least, reduction = search.schedule["min_epochs"], search.schedule["reduction"]
    last = 0
    while least * reduction ** (last + 1) <= epochs:
        last += 1
    # Algorithm 1 of the paper: n = ceil((s_max + 1) / (s + 1) * eta^s), where s = s_max is our bracket 0.
    sizes = [-(-(last + 1) * reduction**s // (s + 1)) for s in range(last, -1, -1)]
    # Spread evenly over the suggestions, so that a search of any length has its share of each.
    turn = sorted(((i + 0.5) / size, bracket) for bracket, size in enumerate(sizes) for i in range(size))
    return turn[number % len(turn)][1]
