"""Statistics over seeds: what a few runs can show, and no more.

Student's t-interval for a mean, and for the paired difference of two arms run with the same seeds. Values are fractions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Arm = TypeVar("Arm", int, str)
LEVEL = 0.95
# Of differences: 0.9 - 0.8 and 0.8 - 0.7 are the same difference. No test set is so large that one cloud counts less than this.
DIGITS = 12


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation (n - 1; None for one value) and t-interval of some values."""

    mean: float
    sd: float | None
    n: int
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """Of two arms, first minus second. `low`, `high` are None where n carries no interval."""

    mean: float
    n: int
    low: float | None
    high: float | None

    @property
    def constant(self) -> bool:
        """Whether every seed gave the same difference: there is no spread to judge by, and n seeds claim no certainty."""
        return self.low is not None and self.low == self.high

    @property
    def resolved(self) -> bool:
        """Whether these seeds tell the arms apart: the interval leaves out zero, and has a width."""
        if self.low is None or self.high is None or self.constant:
            return False
        return self.low > 0 or self.high < 0


def summary(values: Sequence[float]) -> Summary:
    """Of at least one value. Sums are exact, so the order of the values changes no bit."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Summary(mean, None, len(values), None, None)
    if min(values) == max(values):  # the rounded mean may lie beside them, and would give a spread of 1e-17
        return Summary(values[0], 0.0, len(values), values[0], values[0])
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    half = half_width(sd, len(values))
    return Summary(mean, sd, len(values), mean - half, mean + half)


def half_width(sd: float, n: int) -> float:
    """Of the two-sided t-interval of a mean of n values."""
    from scipy.stats import t

    return float(t.ppf(0.5 + LEVEL / 2, n - 1)) * sd / math.sqrt(n)


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference:
    """Of two arms, values by seed: paired over the seeds both have. Raises ValueError if they share none."""
    shared = sorted(first.keys() & second.keys())
    if not shared:
        raise ValueError("the arms share no seed")
    result = summary([round(first[seed] - second[seed], DIGITS) for seed in shared])
    return Difference(result.mean, result.n, result.low, result.high)


def ranking(arms: Mapping[Arm, Mapping[int, float]]) -> list[tuple[Arm, Difference | None]]:
    """The arms from the highest mean down, ties by name, each with its difference to the next one.

    That is None for the last arm, and for two neighbours that share no seed. Arms without values are left out.
    """
    means = {arm: round(summary(list(values.values())).mean, DIGITS) for arm, values in arms.items() if values}
    order = sorted(means, key=lambda arm: (-means[arm], arm))
    steps: list[tuple[Arm, Difference | None]] = []
    for arm, following in itertools.pairwise(order):
        shared = arms[arm].keys() & arms[following].keys()
        steps.append((arm, difference(arms[arm], arms[following]) if shared else None))
    if order:
        steps.append((order[-1], None))
    return steps
