"""A paired comparison that is looked at again after every further seed, without more false claims
than one look would make.

A look at n seeds gives the p-value of the paired t-test, divided by (n / most)^2: early looks must
show more. The smallest such quotient up to now is compared with its distribution without a
difference, over all looks from the first to the last: its tail is the sequential p-value, valid at
whatever look one stops (Jennison & Turnbull 2000, "Group sequential methods with applications to
clinical trials", chapters 2, 4, 11; a share of the level that grows as a power: Kim & DeMets 1987,
Biometrika 74; p-values: Liu & Anderson 2008, JASA 103). Holm's correction over several arms needs
no more than that (Ye et al. 2013, Statist. Med. 32). The distribution is free of mean and sd; it is
drawn with a fixed seed, so that a level of 5 % is 4.9 to 5.1 %.

A comparison may also be given up: stopping early without a claim costs power, but no error, and so
needs no correction.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from pointsweep.statistics.seeds import Summary, t_test

PATHS = 200_000
GROWTH = 2.0  # of the share of the level that a look may use, in the number of seeds
# chance of a claim by the last seed below which no further seed is spent
UNLIKELY = 0.1
DRAWING = 0  # seed of the paths


def evidence(differences: Summary, most: int) -> float:
    """Return the evidence of an interim analysis of paired differences: smaller is stronger, 1 and
    more is none.
    Without spread there is none.
    """
    p = t_test(differences)
    if p is None:
        return math.inf

    return p / (differences.n / most) ** GROWTH


def sequential_p(strongest: float, least: int, most: int) -> float:
    """The p-value of the strongest evidence up to now, for looks at `least` to `most` seeds."""
    drawn = null_evidence(least, most)
    num_as_strong = np.searchsorted(drawn, strongest, "right")
    return float((1 + num_as_strong) / (len(drawn) + 1))


def last_level(level: float, least: int, most: int) -> float:
    """The p-value of the paired t-test that is a claim at this level in the last look."""
    drawn = null_evidence(least, most)
    rank = math.floor(level * (len(drawn) + 1))
    return float(drawn[max(rank - 1, 0)])


@functools.cache
def null_evidence(least: int, most: int) -> np.ndarray:
    """The strongest evidence of each of PATHS comparisons without a difference, ascending,
    (PATHS,).
    """
    from scipy.special import stdtr

    generator = np.random.default_rng(DRAWING)
    total = np.zeros(PATHS)
    squares = np.zeros(PATHS)
    strongest = np.full(PATHS, np.inf)

    for n in range(1, most + 1):
        values = generator.standard_normal(PATHS)
        total += values
        squares += values * values

        if n >= least:
            sd = np.sqrt((squares - total * total / n) / (n - 1))
            p = 2 * stdtr(n - 1, -np.abs(total) / (math.sqrt(n) * sd))
            np.minimum(strongest, p / (n / most) ** GROWTH, out=strongest)

    strongest.sort()
    return strongest


def chance(differences: Summary, most: int, level: float) -> float:
    """Return the chance that the look at `most` seeds will have a p-value of `level`: the
    predictive probability under a flat prior.

    Spiegelhalter, Freedman & Blackburn 1986 (Controlled Clinical Trials 7), with the present sd
    (Dmitrienko & Wang 2006, Statist. Med. 25). Without spread it is not known: 1, or 0 where all
    differences are zero.
    """
    from scipy.special import stdtr, stdtrit

    n = differences.n
    mean = abs(differences.mean)
    sd = differences.sd
    rest = most - differences.n

    if not sd:
        return float(mean > 0)

    # of the sum of all
    needed = -float(stdtrit(most - 1, level / 2)) * sd * math.sqrt(most)
    # of the mean of those to come about the mean of those there are
    scale = sd * math.sqrt(1 / rest + 1 / n)
    above = stdtr(n - 1, -((needed - n * mean) / rest - mean) / scale)
    below = stdtr(n - 1, (-(needed + n * mean) / rest - mean) / scale)

    return float(above + below)
