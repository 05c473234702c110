"""Statistics over seeds: what a few runs can show, and no more.

Student's t-interval for a mean, and t-interval and t-test for the paired difference of two arms run with the same seeds; Wilson's
interval for one run; Holm's correction; the verdict on a published number. Values are fractions. Sources: Wilson 1927 (JASA 22),
Holm 1979 (Scand. J. Statist. 6), Schuirmann 1987 (J. Pharmacokin. Biopharm. 15) for the two one-sided tests.
"""

from __future__ import annotations

import functools
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
    """Of two arms, first minus second. `low`, `high` and `p` (paired t-test) are None where n carries none of them.

    `adjusted` is `p` after Holm's correction over the comparisons it was made with.
    """

    mean: float
    n: int
    low: float | None
    high: float | None
    p: float | None = None
    adjusted: float | None = None

    @property
    def constant(self) -> bool:
        """Whether every seed gave the same difference: there is no spread to judge by, and n seeds claim no certainty."""
        return self.low is not None and self.low == self.high

    @property
    def resolved(self) -> bool:
        """Whether these seeds tell the arms apart: the interval leaves out zero, has a width, and stands up to the correction."""
        if self.low is None or self.high is None or self.constant:
            return False
        if self.adjusted is not None and self.adjusted >= 1 - LEVEL:
            return False
        return self.low > 0 or self.high < 0


def summary(values: Sequence[float]) -> Summary:
    """Of at least one value. Sums are exact, so the order of the values changes no bit."""
    middle = mean(values)
    if len(values) < 2:
        return Summary(middle, None, len(values), None, None)
    if min(values) == max(values):
        return Summary(middle, 0.0, len(values), middle, middle)
    sd = math.sqrt(math.fsum([(value - middle) ** 2 for value in values]) / (len(values) - 1))
    half = half_width(sd, len(values))
    return Summary(middle, sd, len(values), middle - half, middle + half)


def mean(values: Sequence[float]) -> float:
    """Of at least one value; of equal ones exactly that value, where the rounded mean may lie beside them."""
    return values[0] if min(values) == max(values) else math.fsum(values) / len(values)


def half_width(sd: float, n: int) -> float:
    """Of the two-sided t-interval of a mean of n values."""
    return _quantile(n - 1) * sd / math.sqrt(n)


@functools.cache
def _quantile(freedom: int) -> float:
    """Student's t at 97.5 %."""
    from scipy.special import stdtrit  # a tenth of the time that importing scipy.stats takes

    return float(stdtrit(freedom, 0.5 + LEVEL / 2))


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference:
    """Of two arms, values by seed: paired over the seeds both have. Raises ValueError if they share none."""
    result = _apart(first, second)
    if result is None:
        raise ValueError("the arms share no seed")
    return Difference(result.mean, result.n, result.low, result.high, t_test(result))


def _apart(first: Mapping[int, float], second: Mapping[int, float]) -> Summary | None:
    """Of the differences at the seeds that both have, if any."""
    shared = sorted(first.keys() & second.keys())
    return summary([round(first[seed] - second[seed], DIGITS) for seed in shared]) if shared else None


def t_test(values: Summary) -> float | None:
    """The two-sided p-value of a mean of zero; None where n carries none: one value, or values without spread."""
    from scipy.special import stdtr

    if not values.sd:
        return None
    return float(2 * stdtr(values.n - 1, -abs(values.mean) * math.sqrt(values.n) / values.sd))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The adjusted p-values, in the order given. One that could not be had (None) stays None, and counts as a comparison."""
    total, largest = len(p_values), 0.0
    known = sorted((p, at) for at, p in enumerate(p_values) if p is not None)
    result: list[float | None] = [None] * total
    for rank, (p, at) in enumerate(known):
        largest = max(largest, min(1.0, (total - rank) * p))
        result[at] = largest
    return result


def wilson(correct: float, total: float) -> tuple[float, float]:
    """Wilson's score interval of a share: `correct` of `total` objects. Of one trained model; it knows nothing of other seeds."""
    from scipy.special import ndtri

    z = float(ndtri(0.5 + LEVEL / 2))
    share = correct / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Verdict:
    """On a published number: `reproduced`, `not` or `undecided`, with the margin (a fraction) it was judged by, and why."""

    kind: str
    margin: float
    reason: str


def verdict(values: Sequence[float], published: float, num_test: float) -> Verdict:
    """Judges the seeds' values against a published one (a fraction of `num_test` objects), by two one-sided tests at 5 % each.

    The margin is what the published number itself cannot tell: the half width of its 95 % interval as one run on `num_test`
    objects (Wilson). `reproduced`: the 90 % t-interval of mean - published lies inside the margin (Schuirmann 1987; Lakens 2017,
    Soc. Psychol. Personal. Sci. 8). `not`: it lies outside, so the difference is larger than the margin. Else `undecided`.
    """
    from scipy.special import stdtrit

    low, high = wilson(published * num_test, num_test)
    margin = (high - low) / 2
    found = summary(values)
    if found.sd is None:
        return Verdict("undecided", margin, "one seed has no spread to judge by")
    if not found.sd:
        return Verdict("undecided", margin, "the same with every seed: no spread to judge by")
    half = float(stdtrit(found.n - 1, LEVEL)) * found.sd / math.sqrt(found.n)
    apart = found.mean - published
    if abs(apart) + half < margin:
        return Verdict("reproduced", margin, "inside the margin")
    if abs(apart) - half > margin:
        return Verdict("not", margin, "higher" if apart > 0 else "lower")
    return Verdict("undecided", margin, f"{found.n} seeds do not tell")


def ranking(arms: Mapping[Arm, Mapping[int, float]]) -> list[tuple[Arm, Difference | None]]:
    """The arms from the highest mean down, ties by name, each with its difference to the next one, adjusted for all of them.

    Neighbours are picked by their order, which Holm's correction over them alone covers: in simulation no more than 5 % of sweeps
    without any difference show one (tests/statistics/test_seeds.py). The difference is None for the last arm, and for
    two neighbours that share no seed. Arms without values are left out.
    """
    means = {arm: round(mean(list(values.values())), DIGITS) for arm, values in arms.items() if values}
    order = sorted(means, key=lambda arm: (-means[arm], arm))
    apart = [_apart(arms[arm], arms[following]) for arm, following in itertools.pairwise(order)]
    tested = [t_test(found) if found is not None else None for found in apart]
    steps: list[Difference | None] = [
        Difference(found.mean, found.n, found.low, found.high, p, adjusted) if found is not None else None
        for found, p, adjusted in zip(apart, tested, holm(tested), strict=True)
    ]
    return list(zip(order, [*steps, None] if order else [], strict=True))
