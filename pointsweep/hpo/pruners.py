"""Schedulers of searches: who goes on at which epoch, by validation accuracy. They see nothing
else.

Sources: median stopping (Golovin et al., Google Vizier, 2017), asynchronous successive halving
(arXiv 1810.05934, Algorithm 2), Hyperband (arXiv 1603.06560), whose brackets differ in the epoch at
which they begin to judge.

A trial that the median stops has ended. At a rung of the other two it waits: as more trials come to
the rung, more of them are its best floor(n / reduction), and one that is among these then goes on
from where it was. Where that is none, among the first, the best so far goes on, as in Optuna's
SuccessiveHalvingPruner: so a search of any length brings some to their end.

Nobody is judged inside the warm-up of the training, where a rate is not yet what it is about: rungs
count from its end.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from pointsweep.sweep.search_space import WARMUP, Search

Curve = Mapping[int, float]  # epoch -> validation accuracy
Limits = Mapping[
    int, float
]  # epoch -> the validation accuracy below which a trial does not go on
LETS_WAIT = ("asha", "hyperband")


def limits_of(
    curves: Sequence[Curve], search: Search, epochs: int, bracket: int = 0
) -> dict[int, float]:
    """Return what a trial of so many epochs needs so as to go on at once, judged by those of its
    bracket that were there before it.
    """
    if search.scheduler == "median":
        return dict(_medians(curves, search.schedule))

    limits = {}
    for rung in rungs(search, epochs, bracket) if search.scheduler in LETS_WAIT else ():
        accuracies = sorted(
            (curve[rung] for curve in curves if rung in curve), reverse=True
        )
        # the new one is one of those that are there; of equal ones the first is the better
        best = _best(len(accuracies) + 1, search)
        limits[rung] = (
            math.nextafter(accuracies[best - 1], math.inf) if accuracies else math.inf
        )

    return limits


def _medians(
    curves: Sequence[Curve], options: Mapping[str, int]
) -> Iterator[tuple[int, float]]:
    for epoch in sorted(set().union(*curves)):
        accuracies = [curve[epoch] for curve in curves if epoch in curve]
        if (
            epoch >= options["warmup_epochs"]
            and epoch > options.get(WARMUP, 0)
            and len(accuracies) >= options["min_trials"]
        ):
            yield epoch, statistics.median(accuracies)


def promotable(
    curves: Mapping[int, Curve],
    waiting: Collection[int],
    search: Search,
    bracket: int = 0,
) -> Iterator[tuple[int, int]]:
    """Rung and number of those `waiting` that are among the best of their rung, the best first.

    `curves`: of all trials of the bracket, by number; of equal ones the lower number is the better.
    """
    for rung in rungs(search, _end(curves.values()), bracket):
        ranked = sorted(
            (-curve[rung], number) for number, curve in curves.items() if rung in curve
        )
        for _, number in ranked[: _best(len(ranked), search)]:
            if number in waiting and max(curves[number]) == rung:
                yield rung, number


def _best(number: int, search: Search) -> int:
    """Return how many of those that came to a rung go on."""
    return max(1, number // search.schedule["reduction"])


def rung_that_counts(curves: Sequence[Curve], search: Search, enough: int) -> int:
    """The highest rung that `enough` have come to, by whose accuracies a sampler judges them; the
    lowest if there is none.

    So does BOHB with its budgets (arXiv 1807.01774, section 3.3).
    """
    for rung in sorted(rungs(search, _end(curves)), reverse=True):
        if sum(rung in curve for curve in curves) >= enough:
            return rung

    return search.schedule.get(WARMUP, 0) + search.schedule["min_epochs"]


def _end(curves: Iterable[Curve]) -> int:
    return max((epoch for curve in curves for epoch in curve), default=0) + 1


def rungs(search: Search, epochs: int, bracket: int = 0) -> list[int]:
    """The epochs at which a bracket judges trials of so many: the least one, and each a reduction
    times the one before.
    """
    epochs_of_rungs, reduction = [], search.schedule["reduction"]
    warmup = search.schedule.get(WARMUP, 0)
    length = search.schedule["min_epochs"] * reduction**bracket

    while warmup + length < epochs:
        epochs_of_rungs.append(warmup + length)
        length *= reduction

    return epochs_of_rungs


def bracket_of(number: int, search: Search, epochs: int) -> int:
    """The bracket of a suggestion: of Hyperband 0, 1, ... up to one that never stops, each as often
    as there; else 0.
    """
    if search.scheduler != "hyperband":
        return 0

    min_epochs = search.schedule["min_epochs"]
    reduction = search.schedule["reduction"]
    last_bracket = 0

    while min_epochs * reduction ** (last_bracket + 1) <= epochs - search.schedule.get(
        WARMUP, 0
    ):
        last_bracket += 1

    # Algorithm 1 of the paper: n = ceil((s_max + 1) / (s + 1) * eta^s), where s = s_max is our
    # bracket 0.
    sizes = [
        -(-(last_bracket + 1) * reduction**s // (s + 1))
        for s in range(last_bracket, -1, -1)
    ]

    # Spread evenly over the suggestions, so that a search of any length has its share of each.
    order = sorted(
        ((i + 0.5) / size, bracket)
        for bracket, size in enumerate(sizes)
        for i in range(size)
    )
    return order[number % len(order)][1]
