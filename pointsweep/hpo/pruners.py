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

import itertools
import math
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from pointsweep.sweep.search_space import WARMUP, Search

Curve = Mapping[int, float]  # epoch -> validation accuracy
# epoch -> the validation accuracy below which a trial does not go on
Limits = Mapping[int, float]
LETS_WAIT = ("asha", "hyperband")


def limits_of(
    curves: Sequence[Curve], search: Search, epochs: int, bracket: int = 0
) -> dict[int, float]:
    """Return what a trial of so many epochs needs so as to go on at once, judged by those of its
    bracket that were there before it.
    """
    if search.scheduler == "median":
        return dict(_medians(curves, search.schedule))

    limits: dict[int, float] = {}
    if search.scheduler not in LETS_WAIT:
        return limits

    for rung in rungs(search, epochs, bracket):
        accuracies = [curve[rung] for curve in curves if rung in curve]
        accuracies.sort(reverse=True)
        limits[rung] = math.inf

        if accuracies:
            # The new one is one of those that are there; of equal ones the first is the better.
            num_best = _num_best(len(accuracies) + 1, search)
            limits[rung] = math.nextafter(accuracies[num_best - 1], math.inf)

    return limits


def _medians(
    curves: Sequence[Curve], options: Mapping[str, int]
) -> Iterator[tuple[int, float]]:
    """Yield the epochs after the warm-up that enough trials have come to, with the median there."""
    for epoch in sorted(set().union(*curves)):
        if epoch < options["warmup_epochs"] or epoch <= options.get(WARMUP, 0):
            continue

        accuracies = [curve[epoch] for curve in curves if epoch in curve]
        if len(accuracies) >= options["min_trials"]:
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
        at_rung = [number for number, curve in curves.items() if rung in curve]
        at_rung.sort(key=lambda number: (-curves[number][rung], number))
        num_best = _num_best(len(at_rung), search)

        for number in at_rung[:num_best]:
            last_epoch = max(curves[number])
            if number in waiting and last_epoch == rung:
                yield rung, number


def _num_best(num_trials: int, search: Search) -> int:
    """Return how many of those that came to a rung go on."""
    return max(1, num_trials // search.schedule["reduction"])


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
    """Return the epoch after the last that any of the curves has."""
    return max(itertools.chain.from_iterable(curves), default=0) + 1


def rungs(search: Search, epochs: int, bracket: int = 0) -> list[int]:
    """The epochs at which a bracket judges trials of so many: the least one, and each a reduction
    times the one before.
    """
    reduction = search.schedule["reduction"]
    warmup = search.schedule.get(WARMUP, 0)
    length = search.schedule["min_epochs"] * reduction**bracket
    epochs_of_rungs = []

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
    judged_epochs = epochs - search.schedule.get(WARMUP, 0)
    last_bracket = 0

    while min_epochs * reduction ** (last_bracket + 1) <= judged_epochs:
        last_bracket += 1

    # Spread evenly over the suggestions, so that a search of any length has its share of each.
    order = []
    for bracket in range(last_bracket + 1):
        # Algorithm 1 of the paper: n = ceil((s_max + 1) / (s + 1) * eta^s), where s = s_max is our
        # bracket 0. Twice negated, a floor is a ceiling.
        s = last_bracket - bracket
        size = -(-(last_bracket + 1) * reduction**s // (s + 1))
        order += [((i + 0.5) / size, bracket) for i in range(size)]

    order.sort()
    _, bracket_of_number = order[number % len(order)]
    return bracket_of_number
