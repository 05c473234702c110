"""All pairs of a table's rows, or of its columns: which of them the seeds separate.

A family is one column's rows, or the table's columns. Two tests must agree before a pair is told
apart.

1. Tukey's test of all pairs (Tukey 1953; Kramer 1956, Biometrics 12) with the pooled error of the
   family. The seed is a block: what a seed does to all arms alike is taken out (two-way analysis of
   variance without interaction). The pooled error has several times the degrees of freedom of a
   pair's own, which is what three seeds lack.
2. The same test with the pair's own error (Games & Howell 1976, J. Educ. Stat. 1; Grubbs 1948, JASA
   43, for the error of one arm beside a block), at the weaker level of `guard_level`. It holds
   where arms spread differently and the pooled error is too small for some. Its own level may be
   weaker because both must agree: benchmarks/null_tables.py counts what they do together.

Where a seed lies far from the other seeds of its arm (a run that collapsed), neither holds: the arm
is set aside, which is said, and no claim is made about it. An interval is the wider one of the two
tests. It holds for all pairs of the table at once, and leaves out zero exactly where the pair is
told apart. Several families of a table share the 5 % evenly.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pointsweep.statistics.seeds import DIGITS, LEVEL
from pointsweep.statistics.studentized_range import range_quantile, range_tail

ALPHA = 1 - LEVEL
# times the usual distance from an arm's median: a run that collapsed, or an arm of another kind
FAR = 20.0
MOST_ARMS = 30  # of a family whose pairs are all tested; of more, the best against each
# a pair's own degrees of freedom are rounded down, so that few quantiles are needed
FREEDOM_STEPS = 8
POWER = 0.9
DRAWN_TABLES = 2000


@dataclass(frozen=True)
class Pair:
    """Two arms of a family, the better one by its mean first: first minus second over the seeds
    that both have.

    `low`, `high` and `p` hold for all pairs of the table at once; None where there is no test, with
    the `reason`.
    """

    first: str
    second: str
    n: int
    mean: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    reason: str = ""

    @property
    def resolved(self) -> bool:
        """Return whether the seeds separate the two."""
        return (
            self.low is not None
            and self.high is not None
            and (self.low > 0 or self.high < 0)
        )


@dataclass(frozen=True)
class ExcludedArm:
    """An arm about which the tests claim nothing: the value of `seed` lies far from `usual`, the
    median of the arm.
    """

    arm: str
    seed: int
    value: float
    usual: float


@dataclass(frozen=True)
class Family:
    """Family of arms compared with each other, from the best mean on, and their pairs in that
    order.

    `sd` is the pooled error of one value with `freedom` degrees of freedom; None where there is
    none. `detectable`: the difference that would be found with a chance of 90 %.
    """

    title: str
    arms: tuple[str, ...]
    pairs: tuple[Pair, ...] = ()
    set_aside: tuple[ExcludedArm, ...] = ()
    sd: float | None = None
    freedom: int = 0
    detectable: float | None = None


def guard_level(num_arms: int) -> float | None:
    """Return the level of the second test; None for two arms, where both tests are the paired
    t-test.

    4 % of three arms, 6.5 % of four, 9 % of more: as weak as simulated tables with unequal spreads
    allow.
    """
    if num_arms < 3:
        return None

    return min(0.025 * num_arms - 0.035, 0.09)


def compare(
    title: str,
    arms: Mapping[str, Mapping[int, float]],
    families: int = 1,
    higher_is_better: bool = True,
) -> Family:
    """Compare arms, values by seed, in a table of so many families. Arms without values are left
    out.
    """
    means = {}
    distinct_seeds: set[int] = set()

    for name, by_seed in arms.items():
        if by_seed:
            means[name] = round(math.fsum(by_seed.values()) / len(by_seed), DIGITS)
            distinct_seeds.update(by_seed)

    sign = -1 if higher_is_better else 1
    # of equal ones, the first row first
    order = sorted(means, key=lambda name: sign * means[name])
    if len(order) < 2:
        return Family(title, tuple(order))

    seeds = sorted(distinct_seeds)
    values = np.full((len(order), len(seeds)), math.nan)  # (arms, seeds)
    for row, name in enumerate(order):
        values[row] = [arms[name].get(seed, math.nan) for seed in seeds]

    far = dict(far_seeds(values))
    errors = Errors(np.delete(values, list(far), axis=0), len(order))
    set_aside = []

    for row, column in far.items():
        value = float(values[row, column])
        usual = float(np.nanmedian(values[row]))
        set_aside.append(ExcludedArm(order[row], seeds[column], value, usual))

    tested = [row for row in range(len(order)) if row not in far]
    sd = detectable = None
    # A smaller spread is what rounding leaves of arms that differ by the same with every seed.
    if errors.freedom and math.sqrt(errors.variance) > 10**-DIGITS:
        sd = math.sqrt(errors.variance)

    if sd is not None and len(tested) > 1:
        count = int(np.median(np.isfinite(values[tested]).sum(axis=1)))
        if count > 1:
            detectable = sd * detectable_gain(len(order), count, families)

    pairs = _pairs(order, values, tested, errors, families)
    return Family(
        title,
        tuple(order),
        pairs=tuple(pairs),
        set_aside=tuple(set_aside),
        sd=sd,
        freedom=errors.freedom,
        detectable=detectable,
    )


def _pairs(
    order: Sequence[str],
    values: np.ndarray,
    tested: Sequence[int],
    errors: Errors,
    families: int,
) -> Iterator[Pair]:
    """Yield all pairs of the arms; of many arms, the pairs with the first."""
    # `errors` knows only the rows that are tested, by their position among these.
    position = {row: number for number, row in enumerate(tested)}
    num_firsts = len(order) if len(order) <= MOST_ARMS else 1

    for first in range(num_firsts):
        for second in range(first + 1, len(order)):
            names = order[first], order[second]
            shared = np.isfinite(values[first]) & np.isfinite(values[second])
            differences = np.round(
                values[first, shared] - values[second, shared], DIGITS
            )

            if first in position and second in position:
                rows = position[first], position[second]
                yield _pair(names, differences, errors, rows, families)
            else:
                mean = float(differences.mean()) if len(differences) else None
                yield Pair(*names, len(differences), mean, reason="set aside")


def far_seeds(values: np.ndarray) -> list[tuple[int, int]]:
    """values (arms, seeds), NaN where there is none -> the arms with a seed far from their median,
    each with its farthest seed.

    The measure is the median, over all arms, of the distances from the arm's own median; in each
    arm the value nearest to its median is not counted.
    """
    distances_of: dict[int, list[float]] = {}  # by arm, zero where there is no value
    counted: list[float] = []

    for arm, row in enumerate(values.tolist()):
        known = [value for value in row if not math.isnan(value)]
        if len(known) < 2:
            continue

        median = statistics.median(known)
        distances = []
        for value in row:
            distances.append(0.0 if math.isnan(value) else abs(value - median))

        distances_of[arm] = distances
        counted += sorted(abs(value - median) for value in known)[1:]

    usual = statistics.median(counted) if counted else 0.0
    if usual <= 10**-DIGITS:
        return []

    far = []
    for arm, distances in distances_of.items():
        farthest = max(distances)
        if farthest > FAR * usual:
            far.append((arm, distances.index(farthest)))

    return far


class Errors:
    """The error of a family, pooled and of each arm: what is left of values (arms, seeds) without
    arm and seed effects.
    """

    def __init__(self, values: np.ndarray, num_arms: int) -> None:
        self.num_arms = num_arms  # of the family, also those that were set aside
        self.values = values
        self.residuals, self.freedom = residuals(values)
        self.counts = np.isfinite(self.residuals).sum(axis=1)
        self.in_pool = int((self.counts > 1).sum())
        self.variance = 0.0

        if self.freedom > 0:
            self.variance = float(np.nansum(self.residuals**2)) / self.freedom

        # of each arm, without the part of the block that it does not share
        self.own = np.zeros(len(values))

        if self.in_pool > 3:
            squares = np.nansum(self.residuals**2, axis=1)
            spread = squares / np.maximum(self.counts - 1, 1)
            self.own = (spread - self.variance / self.in_pool) / (1 - 2 / self.in_pool)

    def of_pair(
        self, first: int, second: int, differences: np.ndarray
    ) -> tuple[float, float]:
        """Return the variance of the difference of two arms at one seed by their own errors, and
        its degrees of freedom.
        """
        count = len(differences)
        paired = float(differences.var(ddof=1))
        least, most = count - 1.0, (count - 1) * _freedom_gain(self.in_pool)

        if self.in_pool <= 3:
            return paired, least

        freedom = _own_freedom(self.own[first], self.own[second], least, most)
        own = float(self.own[first] + self.own[second])
        return max(own, paired / 4), float(freedom)


def _freedom_gain(num_arms: int) -> float:
    """Return how many times the degrees of freedom of a paired difference two arms' own errors have
    at most, of so many arms.
    """
    if num_arms > 3:
        return (2 * num_arms - 5) / (num_arms - 2)

    return 1.0


def _own_freedom(
    first: np.ndarray, second: np.ndarray, least: float, most: float
) -> np.ndarray:
    """Return the degrees of freedom of a difference by its arms' own variances (Welch 1947),
    rounded down to a step.
    """
    first, second = np.maximum(first, 0.0), np.maximum(second, 0.0)
    total = first * first + second * second
    divisor = np.where(total > 0, total, 1.0)
    freedom = np.where(total > 0, (first + second) ** 2 / divisor, 1.0) * least

    step = (most - least) / FREEDOM_STEPS
    above_least = np.clip(freedom, least, most) - least
    rounded: np.ndarray = least + step * np.floor(above_least / step + 1e-9)

    return rounded


def residuals(values: np.ndarray) -> tuple[np.ndarray, int]:
    """values (arms, seeds), NaN where there is none -> the residuals without arm and seed effects,
    and their degrees of freedom.

    Least squares of value = arm + seed, with the arms eliminated. Arms of one value say nothing of
    the error.
    """
    is_finite = np.isfinite(values)
    known = is_finite & (is_finite.sum(axis=1, keepdims=True) > 1)
    weight = known.astype(np.float64)  # (A, S)
    counts = weight.sum(axis=1)  # (A,)

    if not counts.any():
        return np.full(values.shape, np.nan), 0

    at_least_one = np.maximum(counts, 1)
    share = weight / at_least_one[:, None]
    filled = np.where(known, values, 0.0)
    arm_means = filled.sum(axis=1) / at_least_one
    centred = np.where(known, filled - arm_means[:, None], 0.0)
    matrix = np.diag(weight.sum(axis=0)) - weight.T @ share  # (S, S)
    effects, _, rank, _ = np.linalg.lstsq(matrix, centred.sum(axis=0), rcond=1e-10)
    residual = centred - weight * effects + weight * (share @ effects)[:, None]
    num_values, num_arms = int(counts.sum()), int((counts > 0).sum())

    return np.where(known, residual, np.nan), num_values - num_arms - int(rank)


def _pair(
    names: tuple[str, str],
    differences: np.ndarray,
    errors: Errors,
    rows: tuple[int, int],
    families: int,
) -> Pair:
    count = len(differences)
    if count == 0:
        return Pair(*names, 0, None, reason="no seed in common")

    mean = float(differences.mean())
    if count == 1:
        return Pair(*names, 1, mean, reason="one seed in common")

    if differences.min() == differences.max():
        same = float(differences[0])
        return Pair(*names, count, same, reason="the same difference with every seed")

    if errors.freedom < 1 or errors.variance <= 0:
        return Pair(*names, count, mean, reason="no spread to judge by")

    level = ALPHA / families
    pooled = math.sqrt(errors.variance / count)  # the standard error of one mean
    half_width = pooled * range_quantile(level, errors.num_arms, errors.freedom)
    p = families * range_tail(abs(mean) / pooled, errors.num_arms, errors.freedom)
    guard = guard_level(errors.num_arms)

    if guard is not None:
        variance, freedom = errors.of_pair(*rows, differences)
        own = math.sqrt(variance / 2 / count)
        critical = range_quantile(guard / families, errors.num_arms, freedom)
        half_width = max(half_width, own * critical)
        own_p = range_tail(abs(mean) / own, errors.num_arms, freedom)
        p = max(p, families * own_p * ALPHA / guard)

    return Pair(
        *names,
        n=count,
        mean=mean,
        low=mean - half_width,
        high=mean + half_width,
        p=min(1.0, p),
    )


def half_widths(
    values: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    num_arms: int,
    families: int = 1,
) -> np.ndarray:
    """Return the intervals' half widths (T, P) of pairs of arms (P,) each, in many complete tables
    (T, A, S) at once.

    The same numbers as `compare` gives of each table without arms that were set aside.
    """
    _, arms, seeds = values.shape
    arm_means = values.mean(axis=2, keepdims=True)
    seed_means = values.mean(axis=1, keepdims=True)
    residual = values - seed_means - arm_means
    residual = residual + values.mean(axis=(1, 2), keepdims=True)
    freedom = (arms - 1) * (seeds - 1)
    variance = (residual**2).sum(axis=(1, 2))[:, None] / freedom  # (T, 1)
    level = ALPHA / families
    half_width = np.sqrt(variance / seeds) * range_quantile(level, num_arms, freedom)

    guard = guard_level(num_arms)
    pair_variance = (values[:, first] - values[:, second]).var(axis=2, ddof=1)  # (T, P)

    if guard is None:
        return np.broadcast_to(half_width, pair_variance.shape)

    least, most = seeds - 1.0, (seeds - 1) * _freedom_gain(arms)
    freedoms = np.full(pair_variance.shape, least)
    if arms > 3:
        spread = (residual**2).sum(axis=2) / (seeds - 1)  # (T, A)
        per_arm = (spread - variance / arms) / (1 - 2 / arms)
        first_variance = per_arm[:, first]  # (T, P)
        second_variance = per_arm[:, second]
        pair_variance = np.maximum(first_variance + second_variance, pair_variance / 4)
        freedoms = _own_freedom(first_variance, second_variance, least, most)

    critical = np.zeros(pair_variance.shape)
    for value in np.unique(freedoms):
        quantile = range_quantile(guard / families, num_arms, float(value))
        critical[freedoms == value] = quantile

    return np.maximum(half_width, np.sqrt(pair_variance / 2 / seeds) * critical)


@functools.lru_cache(maxsize=256)
def detectable_gain(
    num_arms: int, num_seeds: int, families: int = 1, power: float = POWER
) -> float:
    """Return the difference of two arms, in standard deviations of one value, that is found with a
    chance `power`.

    Of tables drawn with a fixed seed: each says which gain of its first arm over its second both
    tests would find.
    """
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(DRAWN_TABLES, min(num_arms, MOST_ARMS), num_seeds))
    chance = (noise[:, 0] - noise[:, 1]).mean(axis=1)
    first = np.array([0])
    second = np.array([1])
    half = half_widths(noise, first, second, num_arms=num_arms, families=families)[:, 0]

    return float(np.quantile(half - chance, power))
