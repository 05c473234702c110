"""All numbers of printed tables, computed again from what each model got right.

The oracle is statsmodels; where it has no form, the formula of the paper stands here. Nothing of pointsweep.statistics is called to
make what is expected. A table is compared as a whole, word by word, so that every number must agree to its last printed digit.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pandas
import pytest
from scipy.stats import studentized_range
from statsmodels.formula.api import ols
from statsmodels.sandbox.stats.multicomp import tukeyhsd
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower, normal_power_het
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from pointsweep.planning.design_power import resolution
from pointsweep.planning.plan import make_plan
from pointsweep.reporting.build import build
from pointsweep.reporting.compare import diff
from pointsweep.reporting.formats.registry import render
from pointsweep.reporting.table import Table
from pointsweep.results.records import Adaptive, CellLayout, Layout, Published, Record
from pointsweep.statistics.paired_objects import packed, packed_groups
from pointsweep.storage.base import FileStore
from pointsweep.sweep.sweep import load

OBJECTS = 397  # a prime, so that no mean of some seeds lies in the middle between two printed numbers
PARAMETERS = 306_560
GROUPS = np.sort(np.random.default_rng(8).integers(0, 90, OBJECTS))  # the object that each cloud is of
GROUPS = np.unique(GROUPS, return_inverse=True)[1]
FLIPS_BEST = 2  # objects that the best epoch on the test set has right and the last one has not

Arms = dict[str, dict[int, float]]  # accuracy by row and seed


@dataclass
class Sweep:
    """Made-up models of one table: which objects each got right, by (row, column, seed)."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    seeds: tuple[int, ...]
    right: dict[tuple[str, str, int], np.ndarray]
    published: dict[tuple[str, str], float] = field(default_factory=dict)  # in percent, as papers print it
    factors: tuple[Mapping[str, bool] | None, ...] = ()
    groups: np.ndarray | None = None
    adaptive: Adaptive | None = None

    def table(self) -> Table:
        return build(self.layout(), self.records(), {})

    def layout(self) -> Layout:
        cells = []
        for (i, row), (j, column) in itertools.product(enumerate(self.rows), enumerate(self.columns)):
            keys = tuple((seed, f"{row}/{column}/{seed}") for seed in self.seeds)
            paper = self.published.get((row, column))
            number = None if paper is None else Published(paper, None, "Paper, Table 1")
            cells.append(CellLayout(i, j, keys, number))
        rows = tuple((row,) for row in self.rows)
        return Layout("t", "Title", ("method",), rows, self.columns, tuple(cells), factors=self.factors, adaptive=self.adaptive)

    def records(self) -> dict[str, Record]:
        return {f"{row}/{column}/{seed}": self._record(row, column, seed) for row, column, seed in self.right}

    def _record(self, row: str, column: str, seed: int) -> Record:
        bits = self.right[row, column, seed]
        dataset = {"name": "made_up", "digest": "d" * 64, "num_train": 60, "num_val": 0, "num_test": OBJECTS, "num_classes": 10}
        if self.groups is not None:
            dataset["test_groups"] = packed_groups(self.groups)
        best = (int(bits.sum()) + FLIPS_BEST) / OBJECTS
        return Record(
            key=f"{row}/{column}/{seed}",
            config={"seed": seed, "dataset": {"name": "made_up"}},
            metrics={"last": {"epoch": 3, "test/accuracy": float(bits.mean())}, "best_test": {"epoch": 2, "test/accuracy": best}},
            parameters={"trainable": PARAMETERS + 1000, "trainable_without_head": PARAMETERS, "total": 30_000_000},
            dataset=dataset,
            weights_origin="file",
            origin={"tree": "1" * 16},
            correct={"last": packed(bits)},
        )

    def arms(self, column: str) -> Arms:
        """Accuracies of the rows that have any."""
        found: Arms = {}
        for row, its_column, seed in self.right:
            if its_column == column:
                found.setdefault(row, {})[seed] = float(self.right[row, its_column, seed].mean())
        return found


def made(
    shares: Mapping[str, float],
    seeds: int,
    columns: Sequence[str] = ("vit",),
    spread: float = 0.012,
    gap: float = 0.0,
    draw: int = 0,
    missing: Sequence[tuple[str, str, int]] = (),
    **changes: object,
) -> Sweep:
    """Draw models of these shares. The same objects are hard for all; a seed moves all rows alike; the columns lie `gap` apart."""
    generator = np.random.default_rng(draw)
    groups = changes.get("groups")
    hard = generator.normal(size=OBJECTS)
    if groups is not None:
        hard = np.sqrt(0.7) * generator.normal(size=OBJECTS)[groups] + np.sqrt(0.3) * hard
    moved = generator.normal(0, spread, seeds)
    right = {}
    for (number, column), (row, share), seed in itertools.product(enumerate(columns), shares.items(), range(seeds)):
        own = share - gap * number + moved[seed] + generator.normal(0, spread)
        noise = 0.4 * generator.normal(size=OBJECTS)
        latent = np.argsort(np.argsort(hard + noise))
        if (row, column, seed) not in missing:
            right[row, column, seed] = latent < own * OBJECTS
    return Sweep(tuple(shares), tuple(columns), tuple(range(seeds)), right, **changes)


# What is printed, by the oracle


def percent(value: float, signed: bool = False) -> str:
    shown = f"{100 * value:.1f}"
    shown = "0.0" if shown == "-0.0" else shown
    return f"+{shown}" if signed and not shown.startswith("-") else shown


def p_text(p: float) -> str:
    if p < 0.001:
        return "p below .001"
    digits = 4 if 0.0495 <= p < 0.0505 else 3  # one more where three would not show on which side of 5 % it is
    return f"p {p:.{digits}f}".replace("0.", ".")


def mean_of(values: Mapping[int, float]) -> float:
    return float(DescrStatsW(list(values.values())).mean)


def expected_text(sweep: Sweep) -> str:
    """The whole table in words with one space between them."""
    seeds = len(sweep.seeds)
    over = f"mean ± sd over {seeds} seeds" if seeds > 1 else "one seed, so no sd"
    heads = ["accuracy", "params"] + ["paper"] * bool(sweep.published)
    lines = ["Title", f"test/accuracy in %, protocol: last epoch, {over}; params: trainable, without the head"]
    lines += [" ".join(sweep.columns), " ".join(["method", *heads * len(sweep.columns)])]
    for row in sweep.rows:
        shown = [row]
        for column in sweep.columns:
            shown += [cell(sweep.arms(column)[row], seeds), "306.6k"]
            if (row, column) in sweep.published:
                shown.append(str(sweep.published[row, column]))
        lines.append(" ".join(shown))
    lines += notes(sweep)
    return " ".join(" ".join(lines).split())


def cell(values: Mapping[int, float], expected: int) -> str:
    if len(values) == 1 == expected:
        return percent(mean_of(values))
    sample = DescrStatsW(list(values.values()))
    count = f" (n={len(values)}/{expected})" if len(values) < expected else ""
    return f"{percent(sample.mean)} ± {percent(math.sqrt(sample.var_ddof(1)))}{count}"


def notes(sweep: Sweep) -> Iterator[str]:
    families = [(column, sweep.arms(column)) for column in sweep.columns]
    if len(sweep.columns) > 1:
        over: Arms = {}
        for column, rows in families:
            of_seed = {seed: [values[seed] for values in rows.values()] for seed in sweep.seeds}
            over[column] = {seed: float(np.mean(values)) for seed, values in of_seed.items()}
        families.append((f"columns, mean of {len(sweep.rows)} rows", over))
    if len(sweep.seeds) > 1:
        number = sum(math.comb(len(rows), 2) for _, rows in families)
        yield (
            "compared by Tukey's test of all pairs, paired by seed; the intervals and p of all comparisons of the table"
            f" ({number}) hold at once, 5 % in all; what is not separable may differ all the same"
        )
    for title, rows in families:
        yield f"{title}: one seed shows no order." if len(sweep.seeds) == 1 else family(title, rows, len(families))
    if len(sweep.seeds) == 1:
        yield intervals_of_one_seed(sweep)
    for column in sweep.columns:
        yield object_by_object(sweep, column)
    gain = FLIPS_BEST / OBJECTS
    yield f"choosing the epoch on the test set would add {percent(gain, True)} over the last epoch, in the mean of the cells"
    for row, column in itertools.product(sweep.rows, sweep.columns):
        absent = [str(seed) for seed in sweep.seeds if seed not in sweep.arms(column)[row]]
        if absent:
            yield f"not finished: {row} / {column}, seed {', '.join(absent)}"
    yield from verdicts(sweep)
    if sweep.factors:
        yield from shapley(sweep)


def intervals_of_one_seed(sweep: Sweep) -> str:
    shown = []
    for row, column in itertools.product(sweep.rows, sweep.columns):
        low, high = wilson(mean_of(sweep.arms(column)[row]), clouds_of(sweep, row, column))
        shown.append(f"{row} / {column} {percent(low)} to {percent(high)}")
    return f"one seed, 95 % interval over the test objects (Wilson), which knows nothing of other seeds: {', '.join(shown)}"


# All pairs


def family(title: str, arms: Arms, families: int) -> str:
    """One paragraph: who is best, what is below it and by how much, what is not separable, what could be found."""
    order = sorted(arms, key=lambda name: -mean_of(arms[name]))
    found = compared(arms, order, families)
    top = order[0]
    mine = {second: pair for (first, second), pair in found.items() if first == top}
    below = [second for second, pair in mine.items() if pair[0] > 0]
    rest = [second for second in mine if second not in below]
    words = [f"{title}: {top} {'has the best mean' if rest else 'is best'}."]
    if below:
        words.append(f"Below it: {', '.join(f'{name} {shown(*mine[name])}' for name in below)}.")
    if rest:
        words.append(f"Not separable from it: {', '.join(rest)}.")
    others = [(first, second) for first, second in found if first != top and found[first, second][0] > 0]
    if others:
        named = [f"{second} below {first} {shown(*found[first, second])}" for first, second in others[:6]]
        more = f" and {len(others) - 6} more pairs (table.json)" if len(others) > 6 else ""
        words.append(f"Also: {', '.join(named)}{more}.")
    counts = [len(values) for values in arms.values()]
    sd = math.sqrt(two_way(arms).mse_resid)
    gain = sd * float(np.quantile(least_gains(len(order), int(np.median(counts)), families), 0.9))
    words.append(f"Detectable: {'more than 100' if gain > 1 else percent(gain)} points (90 % power).")
    return " ".join(words)


def shown(low: float, high: float, mean: float, p: float) -> str:
    return f"{points(-mean)} ({points(-high)} to {points(-low)}, {p_text(p)})"


def points(difference: float) -> str:
    """With as many decimals, up to three, as do not show zero."""
    digits = next((digits for digits in (1, 2) if round(100 * difference, digits)), 3)
    return f"{100 * difference:+.{digits}f}"


def two_way(arms: Arms):
    """statsmodels' least squares of value = arm + seed."""
    lines = [(name, seed, value) for name, values in arms.items() for seed, value in values.items()]
    return ols("value ~ C(arm) + C(seed)", pandas.DataFrame(lines, columns=["arm", "seed", "value"])).fit()


def compared(arms: Arms, order: Sequence[str], families: int) -> dict[tuple[str, str], tuple[float, float, float, float]]:
    """(low, high, mean, p) of each pair, the better one first: the wider interval and the larger p of two tests."""
    fit = two_way(arms)
    tukey = tukey_of_complete(arms, order, fit, families)
    found = {}
    for first, second in itertools.combinations(order, 2):
        seeds = sorted(arms[first].keys() & arms[second].keys())
        apart = DescrStatsW([arms[first][seed] - arms[second][seed] for seed in seeds])
        if tukey is not None:
            half, p = tukey[first, second]
        else:  # of arms that lack seeds statsmodels has no form with a block
            error = math.sqrt(fit.mse_resid / len(seeds))
            half = error * quantile(0.05 / families, len(order), fit.df_resid)
            p = studentized_range.sf(abs(apart.mean) / error, len(order), fit.df_resid)
        if len(order) > 2:
            level = {3: 0.04, 4: 0.065}.get(len(order), 0.09)
            variance, freedom = own_error(arms, order, fit, first, second, apart)
            error = math.sqrt(variance / 2 / len(seeds))
            half = max(half, error * quantile(level / families, len(order), freedom))
            own_p = studentized_range.sf(abs(apart.mean) / error, len(order), freedom)
            p = max(p, own_p * 0.05 / level)
        mean = float(apart.mean)
        found[first, second] = mean - half, mean + half, mean, min(1.0, families * float(p))
    return found


def tukey_of_complete(arms: Arms, order: Sequence[str], fit, families: int) -> dict[tuple[str, str], tuple[float, float]] | None:
    """Half width and p of each pair by statsmodels' Tukey test with the error of the two-way fit; None where a seed is missing."""
    counts = np.array([len(arms[name]) for name in order])
    if counts.min() != counts.max():
        return None
    means = np.array([mean_of(arms[name]) for name in order])
    shares = np.full(len(order), fit.df_resid / len(order))  # it takes the degrees of freedom by arm and adds them up
    result = tukeyhsd(means, counts, fit.mse_resid, df=shares, alpha=0.05 / families)
    intervals, p_values = result[4], result[8]
    pairs = itertools.combinations(order, 2)
    return {
        pair: (float(high - low) / 2, float(p)) for pair, (low, high), p in zip(pairs, intervals, np.ravel(p_values), strict=True)
    }


def own_error(arms: Arms, order: Sequence[str], fit, first: str, second: str, apart: DescrStatsW) -> tuple[float, float]:
    """A pair's own variance and degrees of freedom: Games & Howell (1976), J. Educ. Stat. 1, equations 3 and 4, with
    Grubbs' (1948, JASA 43) variance of one arm beside the block in place of the sample variance.

    Of three arms Grubbs' estimate is that of a pair itself, so it is the paired difference's variance. docs/statistics.md:
    the variance is at least a quarter of the pair's own, the degrees of freedom are rounded down to an eighth of their range.
    """
    count, total = len(order), int(apart.nobs)
    paired = float(apart.var_ddof(1))
    if count == 3:
        return paired, total - 1
    own = {}
    for name in (first, second):
        mine = (fit.model.data.frame["arm"] == name).to_numpy()
        spread = float((fit.resid.to_numpy()[mine] ** 2).sum()) / (mine.sum() - 1)
        own[name] = (spread - fit.mse_resid / count) / (1 - 2 / count)
    a, b = max(own[first], 0.0), max(own[second], 0.0)
    least, most = total - 1, (total - 1) * (2 * count - 5) / (count - 2)
    welch = (a + b) ** 2 / (a * a + b * b) * least if a + b > 0 else least
    step = (most - least) / 8
    eighths = math.floor((min(max(welch, least), most) - least) / step + 1e-9)
    return max(own[first] + own[second], paired / 4), least + step * eighths


@cache
def quantile(level: float, count: int, freedom: float) -> float:
    return float(studentized_range.ppf(1 - level, count, freedom))


@cache
def least_gains(count: int, seeds: int, families: int) -> np.ndarray:
    """The gain of the first arm over the second, in sd of one value, from which each of 2,000 drawn tables would find it.

    These are the product's own 2,000 tables of standard normal values (seed 0, docs/statistics.md says so), each judged by the
    formulas above.
    """
    noise = np.random.default_rng(0).normal(size=(2000, count, seeds))
    freedom = (count - 1) * (seeds - 1)
    left = noise - noise.mean(axis=1, keepdims=True) - noise.mean(axis=2, keepdims=True) + noise.mean(axis=(1, 2), keepdims=True)
    pooled = (left**2).sum(axis=(1, 2)) / freedom
    half = np.sqrt(pooled / seeds) * quantile(0.05 / families, count, freedom)
    differences = noise[:, 0] - noise[:, 1]
    if count > 2:
        level = {3: 0.04, 4: 0.065}.get(count, 0.09)
        variance, freedoms = differences.var(axis=1, ddof=1), np.full(2000, seeds - 1.0)
        if count > 3:
            own = ((left**2).sum(axis=2) / (seeds - 1) - pooled[:, None] / count) / (1 - 2 / count)
            variance = np.maximum(own[:, 0] + own[:, 1], variance / 4)
            a, b = np.maximum(own[:, 0], 0), np.maximum(own[:, 1], 0)
            least, most = seeds - 1, (seeds - 1) * (2 * count - 5) / (count - 2)
            both_zero = a + b == 0
            welch = np.where(both_zero, 1.0, (a + b) ** 2 / np.where(both_zero, 1.0, a * a + b * b)) * least
            step = (most - least) / 8
            freedoms = least + step * np.floor((np.clip(welch, least, most) - least) / step + 1e-9)
        factors = np.zeros(2000)
        for value in np.unique(freedoms):
            factors[freedoms == value] = quantile(level / families, count, float(value))
        half = np.maximum(half, np.sqrt(variance / 2 / seeds) * factors)
    gains: np.ndarray = half - differences.mean(axis=1)
    return gains


# Objects


def wilson(share: float, clouds: float, level: float = 0.95) -> tuple[float, float]:
    low, high = proportion_confint(share * clouds, clouds, alpha=1 - level, method="wilson")
    return float(low), float(high)


def clouds_of(sweep: Sweep, row: str, column: str, seed: int = 0) -> float:
    """Kish (1965): how many independent clouds have the variance that the share has over the objects."""
    bits = sweep.right[row, column, seed]
    if sweep.groups is None:
        return len(bits)
    objects = int(sweep.groups.max()) + 1
    share = bits.mean()
    sums = [float((bits[sweep.groups == number] - share).sum()) for number in range(objects)]
    variance = sum(value**2 for value in sums) * objects / (objects - 1) / len(bits) ** 2
    return min(max(share * (1 - share) / variance, objects), len(bits))


def object_by_object(sweep: Sweep, column: str) -> str:
    arms = sweep.arms(column)
    order = sorted(arms, key=lambda name: -mean_of(arms[name]))
    tests: dict[tuple[str, str], list[float | None]] = {}
    for first, second in itertools.pairwise(order):
        for seed in sorted(arms[first].keys() & arms[second].keys()):
            one, other = sweep.right[first, column, seed], sweep.right[second, column, seed]
            p = mid_p(one, other) if sweep.groups is None else sign_flip_p(one, other, sweep.groups)
            tests.setdefault((first, second), []).append(p)
    flat = [1.0 if p is None else p for mine in tests.values() for p in mine]
    differ = iter(multipletests(flat, alpha=0.05, method="holm")[0].tolist())
    words = []
    for (first, second), mine in tests.items():
        number, untold = sum(next(differ) for _ in mine), sum(p is None for p in mine)
        few = f" (too few objects differ for a test in {untold})" if untold else ""
        words.append(f"{first} against {second} {number} of {len(mine)} seed{'s' * (len(mine) > 1)}{few}")
    name = "exact McNemar" if sweep.groups is None else "exact signs of objects' net gains"
    return f"{column}, models that differ object by object ({name}, mid-p, Holm): {', '.join(words)}"


def mid_p(one: np.ndarray, other: np.ndarray) -> float | None:
    """statsmodels' exact McNemar test less half the chance of what was seen, at both ends (Fagerland 2013); None below 5 objects."""
    gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
    if gained + lost < 5:
        return None
    chance = math.comb(gained + lost, gained) / 2 ** (gained + lost)
    exact = mcnemar([[0, gained], [lost, 0]], exact=True).pvalue
    return float(exact - (chance if gained != lost else chance / 2))


def sign_flip_p(one: np.ndarray, other: np.ndarray, groups: np.ndarray) -> float | None:
    """All signs of the objects' net gains are equally likely (Fisher 1935): the sums beyond the one seen, and half of those at it."""
    gains = np.bincount(groups, weights=one.astype(int) - other.astype(int)).astype(int)
    gains = gains[gains != 0]
    if len(gains) < 5:
        return None
    ways = Counter({0: 1})
    for gain in gains.tolist():
        more: Counter[int] = Counter()
        for total, number in ways.items():
            more[total + gain] += number
            more[total - gain] += number
        ways = more
    seen = abs(int(gains.sum()))
    beyond = sum(number for total, number in ways.items() if abs(total) > seen)
    equal = sum(number for total, number in ways.items() if abs(total) == seen)
    return (beyond + equal / 2) / 2 ** len(gains)


# Against a paper; components


def verdicts(sweep: Sweep) -> Iterator[str]:
    if not sweep.published:
        return
    yield "paper: Paper, Table 1"
    yield (
        "against the paper's numbers: reproduced, the 90 % interval of the difference lies inside the margin; not reproduced, outside"
        " it; the margin is the 95 % interval of the paper's number as one run on the test objects; papers choose the epoch on the"
        " test set, this table does not"
    )
    lines: dict[str, list[str]] = {"reproduced": [], "not reproduced": [], "undecided": []}
    for row, column in itertools.product(sweep.rows, sweep.columns):
        if (row, column) not in sweep.published:
            continue
        printed = sweep.published[row, column]
        values = np.array(list(sweep.arms(column)[row].values()))
        clouds = float(np.mean([clouds_of(sweep, row, column, seed) for seed in sweep.arms(column)[row]]))
        ends = wilson(printed / 100, clouds)
        margin = (ends[1] - ends[0]) / 2
        if np.ptp(values):
            kind, low, high = over_seeds(values - printed / 100, margin)
            over = "90 %"
        else:
            low, high = (end - printed / 100 for end in wilson(values[0], clouds, 0.9))
            inside, outside = -margin < low and high < margin, high < -margin or low > margin
            kind = "reproduced" if inside else "not reproduced" if outside else "undecided"
            over = "90 % over test objects, the same with every seed:"
        mean = values.mean()
        lines[kind].append(
            f"{row} / {column}: {percent(mean)} vs {printed}: {points(mean - printed / 100)}"
            f" ({over} {points(low)} to {points(high)}), margin {percent(margin)}: {kind}"
        )
    for kind in lines.values():
        yield from kind


def over_seeds(apart: np.ndarray, margin: float) -> tuple[str, float, float]:
    """Two one-sided t-tests at 5 % each by statsmodels: equivalent, farther off than the margin, or neither."""
    sample = DescrStatsW(apart)
    low, high = sample.tconfint_mean(alpha=0.1)
    if sample.ttost_mean(-margin, margin)[0] < 0.05:
        kind = "reproduced"
    elif sample.ttest_mean(margin, "larger")[1] < 0.05 or sample.ttest_mean(-margin, "smaller")[1] < 0.05:
        kind = "not reproduced"
    else:
        kind = "undecided"
    return kind, float(low), float(high)


def shapley(sweep: Sweep) -> Iterator[str]:
    """A component's gain, averaged over all orders in which components can be added (Shapley 1953)."""
    components = list(sweep.factors[0] or {})
    subsets = {frozenset(n for n, on in (f or {}).items() if on): row for f, row in zip(sweep.factors, sweep.rows, strict=True)}
    orders = list(itertools.permutations(components))
    for column in sweep.columns:
        arms = sweep.arms(column)
        words = []
        for component in components:
            shares = []
            for seed in sweep.seeds:
                gains = []
                for order in orders:
                    before = frozenset(order[: order.index(component)])
                    gains.append(arms[subsets[before | {component}]][seed] - arms[subsets[before]][seed])
                shares.append(sum(gains) / len(gains))
            sample = DescrStatsW(shares)
            low, high = sample.tconfint_mean()
            words.append(f"{component} {percent(sample.mean, True)} ({percent(low, True)} to {percent(high, True)})")
        yield f"components, {column} (Shapley shares, 95 % t-interval over seeds): {', '.join(words)}"


# Tables


FIVE = {"full": 0.80, "adapter": 0.79, "prompt": 0.70, "lora": 0.60, "head": 0.45}
FACTORS = tuple({"views": views, "ensemble": ensemble} for views, ensemble in itertools.product((False, True), repeat=2))
SWEEPS = {
    "five rows, two columns": made(FIVE, 3, ("vit", "minilm"), gap=0.06, spread=0.006),
    "five rows": made(FIVE, 3, draw=1),
    "six rows": made(dict(zip("abcdef", (0.9, 0.8, 0.7, 0.6, 0.5, 0.3), strict=True)), 3, draw=17, spread=0.004),
    "four rows": made({"a": 0.82, "b": 0.8, "c": 0.5, "d": 0.3}, 3, draw=2),
    "three rows": made({"a": 0.9, "b": 0.6, "c": 0.58}, 3, draw=3, spread=0.006),
    "two rows": made({"a": 0.8, "b": 0.7}, 4, draw=4),
    "two rows, two columns": made({"a": 0.8, "b": 0.7}, 3, ("vit", "minilm"), gap=0.2, draw=5, spread=0.01),
    "nothing is told apart": made({"a": 0.72, "b": 0.71, "c": 0.7, "d": 0.7, "e": 0.7}, 3, draw=6, spread=0.03),
    "a seed is missing": made(FIVE, 4, draw=7, missing=[("lora", "vit", 1), ("full", "vit", 3)]),
    "one seed": made({"a": 0.82, "b": 0.75, "c": 0.735}, 1, ("vit", "minilm"), draw=8),
    "one seed, several clouds of an object": made({"a": 0.85, "b": 0.73, "c": 0.72}, 1, draw=9, groups=GROUPS),
    "several clouds of an object": made({"a": 0.85, "b": 0.7, "c": 0.69}, 3, draw=10, groups=GROUPS),
    "a factorial": made({"none": 0.5, "ensemble": 0.6, "views": 0.65, "both": 0.8}, 3, draw=11, factors=FACTORS),
    "published": made(
        {"a": 0.80, "b": 0.79, "c": 0.6, "d": 0.7},
        3,
        draw=12,
        spread=0.008,
        published={("a", "vit"): 80.2, ("b", "vit"): 77.0, ("c", "vit"): 75.0, ("d", "vit"): 66.0},
    ),
    "published, several clouds of an object": made(
        {"a": 0.80, "b": 0.6, "c": 0.5},
        5,
        draw=13,
        groups=GROUPS,
        published={("a", "vit"): 80.2, ("b", "vit"): 75.0, ("c", "vit"): 50.0},
    ),
}


def text_of(table: Table) -> str:
    """The table in words with one space between them, without the rule under its head."""
    return " ".join(word for word in render(table, "text").split() if word.strip("-") or word == "-")


@pytest.mark.parametrize("name", list(SWEEPS))
def test_a_printed_table_is_what_statsmodels_computes(name):
    sweep = SWEEPS[name]
    assert text_of(sweep.table()) == expected_text(sweep)


def test_the_tables_show_what_they_are_made_for():
    """That all kinds of sentences are among those that are compared."""
    texts = {name: text_of(sweep.table()) for name, sweep in SWEEPS.items()}
    everything = " ".join(texts.values())
    for word in (" is best.", " has the best mean.", "Below it:", "Not separable from it:", "Also:", "more pairs (table.json)"):
        assert word in everything, word
    for kind in ("reproduced", "not reproduced", "undecided"):
        assert re.search(rf"margin [\d.]+: {kind}", everything), kind
    assert "Below it:" not in texts["nothing is told apart"]
    assert "n=3/4" in texts["a seed is missing"]
    assert len(re.findall(r"\d+\.\d|p \.\d+", everything)) > 300


def test_a_network_that_gives_the_same_with_every_seed_is_judged_over_the_objects():
    sweep = made({"a": 0.7}, 3, draw=14, published={("a", "vit"): 70.4})
    bits = sweep.right["a", "vit", 0]
    sweep.right = dict.fromkeys(sweep.right, bits)
    [line] = [line for line in verdicts(sweep) if line.startswith("a / vit")]
    assert line in text_of(sweep.table())


def test_the_comparison_of_two_rows_is_what_statsmodels_computes():
    sweep = made({"a": 0.8, "b": 0.74}, 4, draw=15)
    lines = [line.strip() for line in diff(sweep.table(), sweep.records(), "a", "b").splitlines()]
    arms = sweep.arms("vit")
    sample = DescrStatsW([arms["a"][seed] - arms["b"][seed] for seed in sweep.seeds])
    low, high = sample.tconfint_mean()
    p = sample.ttest_mean()[1]
    interval = f"{percent(sample.mean, True)} ({percent(low, True)} to {percent(high, True)})"
    assert f"difference over seeds: {interval}, 4 seeds, paired t-test p = {p:.3f}" in lines
    pairs = [(sweep.right["a", "vit", seed], sweep.right["b", "vit", seed]) for seed in sweep.seeds]
    p_values = [mid_p(one, other) for one, other in pairs]
    adjusted = multipletests(p_values, method="holm")[1]
    for seed, ((one, other), p, by_holm) in enumerate(zip(pairs, p_values, adjusted, strict=True)):
        texts = ["p < 0.001" if value < 0.001 else f"p = {value:.3f}" for value in (p, by_holm)]
        counts = f"{(one & ~other).sum()} objects gained, {(other & ~one).sum()} lost"
        assert f"seed {seed}: {counts}; exact McNemar, mid-p: {texts[0]}, by Holm over the seeds {texts[1]}" in lines


# Adaptive seeds, and what a plan says


def test_adaptive_seeds_print_the_p_of_their_looks_together():
    """Against looks drawn anew, so the p-values agree as far as 200,000 drawings each tell them."""
    least, most = 3, 10
    sweep = made({"a": 0.7, "b": 0.72, "c": 0.74, "d": 0.705}, most, draw=16, spread=0.015, adaptive=Adaptive(least, most))
    values = np.random.default_rng(99).normal(size=(200_000, most))
    evidence = np.full(len(values), np.inf)
    for n in range(least, most + 1):
        p = DescrStatsW(values[:, :n].T).ttest_mean()[1]
        evidence = np.minimum(evidence, p / (n / most) ** 2)
    [note] = [note for note in sweep.table().notes if note.startswith("vit, against a: ")]
    compared = re.findall(r"[<>~] (\w) ([+-][\d.]+) \(p ([\d.]+), (\d+) seeds, ([^)]+)\)", note)
    assert [row for row, *_ in compared] == ["b", "c", "d"]
    arms = sweep.arms("vit")
    p_values = []
    for row, mean, _, count, _ in compared:
        apart = [arms[row][seed] - arms["a"][seed] for seed in range(int(count))]
        assert percent(np.mean(apart), True) == mean
        looks = [DescrStatsW(apart[:n]).ttest_mean()[1] / (n / most) ** 2 for n in range(least, len(apart) + 1)]
        p_values.append(float(np.mean(evidence <= min(looks))))
    adjusted = multipletests(p_values, method="holm")[1]
    for (_, _, printed, _, why), p in zip(compared, adjusted, strict=True):
        assert float(printed) == pytest.approx(p, abs=0.0005 + 3 * 3 * math.sqrt(p * (1 - p) / 200_000))
        assert (why == "told apart") == (p < 0.045)


TINY = """
name: tiny
base:
  dataset: {name: synthetic, num_points: 64, presample: 64, train_limit: 20, test_limit: 150}
  tokenizer: {name: point_pn_light, num_tokens: 8, neighbours: 4}
  backbone: {name: tiny, modality: 1d}
  train: {epochs: 1, batch_size: 10, warmup_epochs: 0}
  method: head_only
rows: {train.lr: [0.001, 0.002, 0.003, 0.004]}
seeds: 3
"""


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planned")
    (folder / "tiny.yaml").write_text(TINY)

    def sentence(seeds: str) -> str:
        plan = make_plan(load(folder / "tiny.yaml", [f"seeds={seeds}"]), FileStore(folder / "store"))
        return resolution(plan)[0]

    return sentence


SHARE, CLOUDS = 0.85, 150  # the accuracy that a plan assumes where nothing is known


def smallest(power, target: float) -> str:
    """The first gain, in tenths of a point from below, that the power reaches."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= target else (middle, high)
    return percent(high)


def test_a_plan_of_fixed_seeds_says_what_the_formulas_say(planned):
    sd = math.sqrt(SHARE * (1 - SHARE) / CLOUDS)
    gains = [percent(sd / math.sqrt(2) * float(np.quantile(least_gains(4, 3, 1), power))) for power in (0.9, 0.2)]
    assert planned("3") == (
        f"with 150 test objects and 3 seeds a gain of {gains[0]} is seen with 90 % power, {gains[1]} is not (20 %): Tukey's test of"
        f" all pairs of 4 rows at 5 %; the seeds' differences have sd {100 * sd:.2f} (assumed: accuracy 85 %)"
    )


def test_a_plan_of_one_seed_has_the_power_of_statsmodels(planned):
    differing = SHARE * (1 - SHARE)

    def power(gain: float) -> float:  # Connor 1987: both variances of McNemar's test
        if gain**2 >= differing:
            return 1.0
        spread = math.sqrt(differing), math.sqrt(differing - gain**2)
        return float(normal_power_het(gain, CLOUDS, 0.025, std_null=spread[0], std_alternative=spread[1], alternative="larger"))

    assert f"between two trained models a gain of {smallest(power, 0.9)} is seen with 90 % power, McNemar's test, 13 %" in planned(
        "1"
    )


def test_a_plan_of_adaptive_seeds_has_the_power_of_statsmodels(planned):
    """The last look's level is that of drawn looks, so the gains agree to a tenth of a point."""
    values = np.random.default_rng(98).normal(size=(200_000, 6))
    evidence = np.full(len(values), np.inf)
    for n in range(3, 7):
        evidence = np.minimum(evidence, DescrStatsW(values[:, :n].T).ttest_mean()[1] / (n / 6) ** 2)
    level = float(np.quantile(evidence, 0.05 / 3))
    sd = math.sqrt(SHARE * (1 - SHARE) / CLOUDS)

    def power(gain: float) -> float:
        found = float(TTestPower().power(gain / sd, 6, level))
        return 1.0 if math.isnan(found) else found  # far out, where all tables would find it

    said = planned("{min: 3, max: 6, until: decided}")
    printed = re.fullmatch(
        r"with 150 test objects and at most 6 seeds a gain of ([\d.]+) is seen with 90 % power, ([\d.]+) is not.*", said
    )
    assert printed is not None
    for number, target in zip(printed.groups(), (0.9, 0.2), strict=True):
        assert float(number) == pytest.approx(float(smallest(power, target)), abs=0.1001)
