"""Statistics over seeds: what a few runs can show, and no more.

Student's t-interval for a mean, and for the paired difference of two arms that were run with the same seeds. Values are fractions.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.95


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
    """Of two arms, first minus second. `resolved`: the interval leaves out zero. `low`, `high` are None where n carries none."""

    mean: float
    n: int
    low: float | None
    high: float | None

    @property
    def resolved(self) -> bool:
        """Whether these seeds tell the arms apart. An interval without width (every seed the same, to the cloud) does not."""
        return self.low is not None and self.high is not None and self.low < self.high and (self.low > 0 or self.high < 0)


def summary(values: Sequence[float]) -> Summary:
    """Of at least one value. Sums are exact, so the order of the values changes no bit."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Summary(mean, None, len(values), None, None)
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
    result = summary([first[seed] - second[seed] for seed in shared])
    return Difference(result.mean, result.n, result.low, result.high)


def ranking(arms: Mapping[str, Mapping[int, float]]) -> list[tuple[str, Difference | None]]:
    """The arms from the highest mean down, each with its difference to the next one (None for the last, or without shared seeds)."""
    means = {name: statistics.fmean(values.values()) for name, values in arms.items() if values}
    order = sorted(means, key=lambda name: (-means[name], name))
    pairs = zip(order, order[1:], strict=False)
    steps: list[Difference | None] = [difference(arms[a], arms[b]) if arms[a].keys() & arms[b].keys() else None for a, b in pairs]
    return list(zip(order, [*steps, None], strict=True)) if order else []
