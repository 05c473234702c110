"""Power of a design: what the tests that a table makes would detect, before any trial has run.

Arms are compared by a paired t-test over seeds; its power is that of the noncentral t distribution
(Cohen 1988, section 2; Julious 2004, Statist. Med. 23, section 3). Two single models are compared
by McNemar's test (Connor 1987, Biometrics 43). Values are fractions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from pointsweep.statistics.seeds import LEVEL

TARGET = 0.9  # of the power, where a gain counts as seen


def power_of_seeds(gain: float, seeds: int, sd: float, comparisons: float = 1) -> float:
    """Return the power of the two-sided paired t-test for a difference of two arms whose values by
    seed differ with sd `sd`.

    The level is 5 % shared by the comparisons of a column: Holm's first step, which the largest
    difference must pass.
    """
    from scipy.special import nctdtr, stdtrit

    freedom = seeds - 1
    critical = float(stdtrit(freedom, 1 - (1 - LEVEL) / (2 * comparisons)))
    shift = gain * math.sqrt(seeds) / sd
    not_above = float(nctdtr(freedom, shift, critical))
    below = float(nctdtr(freedom, shift, -critical))

    # Far out scipy gives nan for the tail that is all or nothing.
    if math.isnan(not_above):
        not_above = 0.0

    if math.isnan(below):
        below = 0.0

    return (1 - not_above) + below


def power_of_models(gain: float, objects: int, discordant: float) -> float:
    """Return the power of McNemar's test for two models that differ on a share `discordant` of the
    objects (Connor's formula).
    """
    from scipy.special import ndtr, ndtri

    z = float(ndtri(0.5 + LEVEL / 2))

    if gain >= discordant:
        return 1.0 if discordant * objects >= z * z else 0.0

    distance = gain * math.sqrt(objects) - z * math.sqrt(discordant)
    return float(ndtr(distance / math.sqrt(discordant - gain * gain)))


def smallest_gain(
    power: Callable[[float], float], target: float = TARGET
) -> float | None:
    """The smallest gain that is seen with this power, to 1e-5; None if none up to 1 is."""
    low, high = 0.0, 1.0
    if power(high) < target:
        return None

    while high - low > 1e-6:
        middle = (low + high) / 2
        if power(middle) >= target:
            high = middle
        else:
            low = middle

    return high


def assumed_sd(accuracy: float, objects: int) -> float:
    """The standard deviation of the two arms' difference by seed, where no finished trials tell it:
    sqrt(p (1 - p) / n).

    Two independent models would have sqrt(2 p (1 - p) / n), the binomial spread of both
    (Bouthillier et al. 2021, arXiv 2103.03098, section 3); arms that share most of the network fail
    on the same objects: a correlation of one half is assumed.
    """
    return math.sqrt(accuracy * (1 - accuracy) / objects)


def pooled_sd(sds: Sequence[tuple[float, int]]) -> tuple[float, int] | None:
    """Return the pooled sd of (sd, n) of several comparisons, and its degrees of freedom; None
    where there is no spread.
    """
    freedom = sum(n - 1 for _, n in sds)
    total = math.fsum((n - 1) * sd * sd for sd, n in sds)

    if freedom and total:
        return (math.sqrt(total / freedom), freedom)

    return None
