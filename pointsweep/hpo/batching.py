"""The batches of a study: which suggestions train next, and at which epochs their trials halt.

Judged by earlier batches alone: it does not matter who of a batch is first, and a search that was
killed within one makes the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from pointsweep.hpo.pruners import (
    LETS_WAIT,
    Curve,
    Limits,
    bracket_of,
    limits_of,
    promotable,
)
from pointsweep.hpo.study import Study
from pointsweep.hpo.suggestion import Suggestion


class Batches:
    """The batches of one study."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.search = study.search
        self.epochs: dict[int, int] = {}  # of a suggestion's trials, by its number

    def ask(self, spent: bool = False) -> list[Suggestion]:
        """The suggestions of the next batch, or of the open one: those that go on, then new ones.
        None once the search is over.

        `spent`: its hours are. Then one goes on to its end, if none has come to it.
        """
        batch = self.study.next_batch()
        items = self.study.suggestions()
        num_begun = sum(not item.known and item.batch < batch for item in items)
        num_new = max(0, self.search.trials - num_begun)
        promoted = self._promoted(items, batch)

        if spent:
            num_new = 0
            any_complete = any(item.before(batch)[0] == "complete" for item in items)
            promoted = [] if any_complete else promoted[:1]

        return self.study.ask(self.search.batch, num_new, promoted)

    def _promoted(self, items: Sequence[Suggestion], batch: int) -> list[int]:
        """Return the numbers of those that go on, those of the highest rungs first."""
        if self.search.scheduler not in LETS_WAIT:
            return []

        curves_of: dict[int, dict[int, Curve]] = defaultdict(dict)  # by bracket
        waiting = set()
        for item in items:
            state, curve = item.before(batch)
            if state != "failed":
                curves_of[self._bracket(item)][item.number] = curve

            if state == "waiting":
                waiting.add(item.number)

        candidates: list[tuple[int, int]] = []  # rung and number
        for bracket, curves in curves_of.items():
            candidates += promotable(curves, waiting, self.search, bracket)

        candidates.sort(key=lambda candidate: -candidate[0])
        return [number for _, number in candidates]

    def limits(self, item: Suggestion) -> Limits:
        """Return where the trials of a suggestion of the open batch halt; where it halted before it
        does not again.
        """
        if self.search.scheduler is None:
            return {}

        batch = item.batches[-1]
        bracket = self._bracket(item)
        rivals = []

        for other in self.study.suggestions():
            if other.number == item.number or self._bracket(other) != bracket:
                continue

            state, curve = other.before(batch)
            if state != "failed":
                rivals.append(curve)

        limits = limits_of(rivals, self.search, self._epochs(item), bracket=bracket)
        _, own_curve = item.before(batch)
        passed = max(own_curve, default=0)

        return {epoch: limit for epoch, limit in limits.items() if epoch > passed}

    def _bracket(self, item: Suggestion) -> int:
        return bracket_of(item.number, self.search, self._epochs(item))

    def _epochs(self, item: Suggestion) -> int:
        if item.number not in self.epochs:
            config = self.study.arm.config(item.drawn)
            self.epochs[item.number] = config.train.epochs if config is not None else 0

        return self.epochs[item.number]
