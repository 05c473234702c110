"""Statistics over seeds: what a few runs can show, and no more.

Student's t-interval for a mean, and t-interval and t-test for the paired difference of two arms run
with the same seeds; Wilson's interval for one run; Holm's correction; the verdict on a published
number. Values are fractions. Sources: Wilson 1927 (JASA 22), Holm 1979 (Scand. J. Statist. 6),
Schuirmann 1987 (J. Pharmacokin. Biopharm. 15) for the two one-sided tests.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Arm = TypeVar("Arm", int, str)
LEVEL = 0.95
# Of differences: 0.9 - 0.8 and 0.8 - 0.7 are the same difference. No test set is so large that one
# cloud counts less than this.
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
    """Difference of two arms, first minus second. `low`, `high` and `p` (paired t-test) are None
    where n carries none of them.
    """

    mean: float
    n: int
    low: float | None
    high: float | None
    p: float | None = None

    @property
    def constant(self) -> bool:
        """Return whether every seed gave the same difference: there is no spread to judge by, and n
        seeds claim no certainty.
        """
        return self.low is not None and self.low == self.high

    @property
    def resolved(self) -> bool:
        """Return whether these seeds separate the arms, if they are all that is compared: the
        interval leaves out zero and has a width.
        """
        if self.low is None or self.high is None or self.constant:
            return False

        return self.low > 0 or self.high < 0


def summary(values: Sequence[float]) -> Summary:
    """Summarise at least one value. Sums are exact, so the order of the values changes no bit."""
    middle = mean(values)
    if len(values) < 2:
        return Summary(middle, sd=None, n=len(values), low=None, high=None)
    if min(values) == max(values):
        return Summary(middle, sd=0.0, n=len(values), low=middle, high=middle)

    squares = math.fsum([(value - middle) ** 2 for value in values])
    sd = math.sqrt(squares / (len(values) - 1))
    half = half_width(sd, len(values))

    return Summary(middle, sd=sd, n=len(values), low=middle - half, high=middle + half)


def mean(values: Sequence[float]) -> float:
    """Return the mean of at least one value; of equal ones exactly that value, where the rounded
    mean may lie beside them.
    """
    if min(values) == max(values):
        return values[0]

    return math.fsum(values) / len(values)


def half_width(sd: float, n: int) -> float:
    """Return the half width of the two-sided t-interval of a mean of n values."""
    return _quantile(n - 1) * sd / math.sqrt(n)


@functools.cache
def _quantile(freedom: int) -> float:
    """Student's t at 97.5 %."""
    # a tenth of the time that importing scipy.stats takes
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.5 + LEVEL / 2))


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference:
    """Return the difference of two arms, values by seed: paired over the seeds both have. Raises
    ValueError if they share none.
    """
    shared = sorted(first.keys() & second.keys())
    if not shared:
        raise ValueError("the arms share no seed")

    stats = summary([round(first[seed] - second[seed], DIGITS) for seed in shared])
    return Difference(
        stats.mean, n=stats.n, low=stats.low, high=stats.high, p=t_test(stats)
    )


def t_test(values: Summary) -> float | None:
    """The two-sided p-value of a mean of zero; None where n carries none: one value, or values
    without spread.
    """
    from scipy.special import stdtr

    if not values.sd:
        return None

    t = -abs(values.mean) * math.sqrt(values.n) / values.sd
    return float(2 * stdtr(values.n - 1, t))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The adjusted p-values, in the order given. One that could not be had (None) stays None, and
    counts as a comparison.
    """
    total = len(p_values)
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * total
    largest = 0.0

    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, (total - rank) * p))
        adjusted[index] = largest

    return adjusted


def wilson(correct: float, total: float, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a share: `correct` of `total` objects. Of one trained model; it
    knows nothing of other seeds.
    """
    from scipy.special import ndtri

    z = float(ndtri(0.5 + level / 2))
    share = correct / total
    divisor = 1 + z * z / total
    middle = (share + z * z / (2 * total)) / divisor
    variance = share * (1 - share) / total + z * z / (4 * total * total)
    half = z / divisor * math.sqrt(variance)

    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Verdict:
    """Verdict on a published number: `reproduced`, `not` or `undecided`; all numbers are fractions.

    `difference` is ours less the published one, `low` to `high` its 90 % interval, over `basis`:
    "seeds" or "objects". `margin`: differences within it count as none. `reason` says why in words.
    """

    kind: str
    margin: float
    reason: str
    difference: float = 0.0
    low: float = 0.0
    high: float = 0.0
    basis: str = "seeds"


def verdict(values: Sequence[float], published: float, num_test: float) -> Verdict:
    """Judge the seeds' values against a published one (a fraction of `num_test` objects), by two
    one-sided tests at 5 % each.

    The margin is what the published number itself cannot tell: the half width of its 95 % interval
    as one run on `num_test` objects (Wilson). `reproduced`: the 90 % interval of mean - published
    lies inside the margin (Schuirmann 1987; Lakens 2017, Soc. Psychol. Personal. Sci. 8). `not`: it
    lies outside, so the difference is larger than the margin. Else `undecided`. The interval is
    Student's t over seeds. Where there is one result, or the same with every seed (a network that
    nothing is drawn for), it is Wilson's over the test objects.
    """
    from scipy.special import stdtrit

    lowest, highest = wilson(published * num_test, num_test)
    margin = (highest - lowest) / 2
    stats = summary(values)
    difference = stats.mean - published

    if stats.sd:
        half_width = float(stdtrit(stats.n - 1, LEVEL)) * stats.sd / math.sqrt(stats.n)
        low, high = difference - half_width, difference + half_width
        basis = "seeds"
        evidence = f"{stats.n} seeds"
    else:
        own_low, own_high = wilson(stats.mean * num_test, num_test, 2 * LEVEL - 1)
        low, high = own_low - published, own_high - published
        basis = "objects"
        results = "one result" if stats.n == 1 else f"the same with {stats.n} seeds"
        evidence = f"{results}, interval over the test objects"

    if -margin < low and high < margin:
        kind, reason = "reproduced", "inside the margin"
    elif high < -margin or low > margin:
        kind, reason = "not", "higher" if difference > 0 else "lower"
    else:
        kind, reason = "undecided", "the interval reaches over the margin"

    return Verdict(
        kind,
        margin,
        f"{reason} ({evidence})",
        difference=difference,
        low=low,
        high=high,
        basis=basis,
    )


def by_mean(arms: Mapping[Arm, Mapping[int, float]]) -> list[Arm]:
    """Return the arms from the highest mean down, ties by name; those without values are left
    out.
    """
    means = {}
    for arm, values in arms.items():
        if values:
            means[arm] = round(mean(list(values.values())), DIGITS)

    return sorted(means, key=lambda arm: (-means[arm], arm))
