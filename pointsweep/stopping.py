"""Schedulers of searches, as limits: which validation accuracy a trial needs at an epoch to go on. They see nothing else.

Sources: median stopping (Golovin et al., Google Vizier, 2017), asynchronous successive halving (arXiv 1810.05934).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from pointsweep.space import Search


def limits_of(curves: Sequence[Mapping[int, float]], search: Search) -> dict[int, float]:
    """epoch -> the validation accuracy below which a trial is stopped there, judged by the trials that reached it."""
    limits = {}
    options = search.schedule
    for epoch in sorted({epoch for curve in curves for epoch in curve}):
        there = sorted((curve[epoch] for curve in curves if epoch in curve), reverse=True)
        if search.scheduler == "median" and epoch >= options["warmup_epochs"] and len(there) >= options["min_trials"]:
            limits[epoch] = statistics.median(there)
        if search.scheduler == "asha" and is_rung(epoch, options) and len(there) >= options["reduction"]:
            limits[epoch] = there[math.ceil(len(there) / options["reduction"]) - 1]
    return limits


def is_rung(epoch: int, options: Mapping[str, int]) -> bool:
    """Whether ASHA halts here: the least epoch, and each a reduction times the one before."""
    rung = options["min_epochs"]
    while rung < epoch:
        rung *= options["reduction"]
    return rung == epoch
