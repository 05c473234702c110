"""How often tables without a difference claim one, and what is found where there are differences,
by simulation.

python -m benchmarks.null_tables [--tables 4000] [--seed 1]

A rate above 5.5 % is counted again in ten times as many tables of other seeds, with its 95 %
interval (Clopper & Pearson 1934, Biometrika 26): among so many cases of 5 % some are counted so.

Every rate is the share of simulated tables in which at least one pair of rows is told apart. Nulls:
all rows have the same mean. `collapse`: a fifth of the runs of one row, or of all rows, ends far
below (20 standard deviations). The other rows have the mean of its usual runs, so the claim would
be one about runs that do not collapse. `paid back`: the usual runs of the one row are so much
better that the means are equal, which no test can know before a run has collapsed: 0.8^n of the
tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import numpy as np

from pointsweep.statistics import all_pairs
from pointsweep.statistics.seeds import LEVEL
from pointsweep.statistics.sequential import null_evidence, sequential_p

DROP = 20.0  # standard deviations that a collapsed run lies below
SHARE = 0.2  # of the runs that collapse
OBJECTS, COPIES = 120, 5
ADAPTIVE = (3, 10)
MOST = 0.055  # of tables without a difference that may show one, in a count
RECOUNT_SEEDS = range(101, 111)  # of the tables that such a count is made again in

Draw = Callable[[np.random.Generator, int, int, int], np.ndarray]


def normal(
    generator: np.random.Generator, tables: int, rows: int, seeds: int
) -> np.ndarray:
    """Return values (tables, rows, seeds)."""
    return generator.normal(size=(tables, rows, seeds))


def shared_seed(
    generator: np.random.Generator, tables: int, rows: int, seeds: int
) -> np.ndarray:
    """A seed moves all rows alike, by twice their own spread."""
    return normal(generator, tables, rows, seeds) + 2 * generator.normal(
        size=(tables, 1, seeds)
    )


def student(
    generator: np.random.Generator, tables: int, rows: int, seeds: int
) -> np.ndarray:
    """Student's t with three degrees of freedom."""
    return generator.standard_t(3, size=(tables, rows, seeds))


def exponential(
    generator: np.random.Generator, tables: int, rows: int, seeds: int
) -> np.ndarray:
    """A long tail of bad runs."""
    return -generator.exponential(size=(tables, rows, seeds))


def ties(
    generator: np.random.Generator, tables: int, rows: int, seeds: int
) -> np.ndarray:
    """Values on a grid as wide as the standard deviation: a small test set."""
    return np.round(normal(generator, tables, rows, seeds))


def spreads(*wide: float) -> Draw:
    """Rows whose standard deviations are `wide`, the remaining ones 1."""

    def draw(
        generator: np.random.Generator, tables: int, rows: int, seeds: int
    ) -> np.ndarray:
        scale = np.ones(rows)
        scale[: len(wide)] = wide[:rows]
        return normal(generator, tables, rows, seeds) * scale[None, :, None]

    return draw


def growing(
    generator: np.random.Generator, tables: int, rows: int, seeds: int
) -> np.ndarray:
    """Standard deviations from 1 to 10 in equal ratios."""
    return (
        normal(generator, tables, rows, seeds)
        * np.geomspace(1, 10, rows)[None, :, None]
    )


def collapse(all_rows: bool = False, paid_back: bool = False) -> Draw:
    """A fifth of the runs of the first row, or of all, collapses."""

    def draw(
        generator: np.random.Generator, tables: int, rows: int, seeds: int
    ) -> np.ndarray:
        fallen = generator.random((tables, rows, seeds)) < SHARE
        fallen[:, 0 if all_rows else 1 :] &= all_rows
        values = normal(generator, tables, rows, seeds) - DROP * fallen

        if paid_back:
            values[:, 0] += SHARE * DROP

        return values

    return draw


def grouped(shared: float) -> Draw:
    """Accuracies on 120 objects of five clouds each, which share a part of what makes a cloud hard;
    the same clouds for all.
    """

    def draw(
        generator: np.random.Generator, tables: int, rows: int, seeds: int
    ) -> np.ndarray:
        accuracies = np.empty((tables, rows, seeds))
        for number in range(tables):
            hard = generator.normal(size=OBJECTS)
            runs = rows * seeds
            common = hard + generator.normal(size=(runs, OBJECTS))  # (runs, G)
            own = generator.normal(size=(runs, OBJECTS, COPIES), scale=1.0)
            latent = (
                np.sqrt(shared) * common[:, :, None] / np.sqrt(2)
                + np.sqrt(1 - shared) * own
            )

            accuracies[number] = (latent < 0.84).mean(axis=(1, 2)).reshape(rows, seeds)

        return accuracies

    return draw


NULLS: dict[str, Draw] = {
    "normal": normal,
    "seeds in common": shared_seed,
    "t(3)": student,
    "exponential": exponential,
    "ties": ties,
    "sd 3, others 1": spreads(3),
    "sd 5, others 1": spreads(5),
    "sd 20, others 1": spreads(20),
    "two of sd 5, others 1": spreads(5, 5),
    "sd 1 to 10": growing,
    "20 % collapse, one row": collapse(),
    "20 % collapse, all rows": collapse(all_rows=True),
    "grouped, half shared": grouped(0.5),
    "grouped, 4/5 shared": grouped(0.8),
}
NOT_HELD: dict[str, Draw] = {"20 % collapse, paid back": collapse(paid_back=True)}


def told_apart(values: np.ndarray) -> np.ndarray:
    """values (tables, rows, seeds) -> which pairs the table would tell apart, bool (tables, pairs),
    as `compare` does.
    """
    tables, rows, _ = values.shape
    first, second = np.triu_indices(rows, 1)
    found = np.zeros((tables, len(first)), dtype=bool)
    aside = np.zeros((tables, rows), dtype=bool)

    for number, table in enumerate(values):
        for row, _ in all_pairs.far_seeds(table):
            aside[number, row] = True

    for pattern in np.unique(aside, axis=0):
        mine = np.flatnonzero((aside == pattern).all(axis=1))
        kept = np.flatnonzero(~pattern)
        if len(kept) < 2:
            continue

        one, other = np.triu_indices(len(kept), 1)
        some = values[mine][:, kept]
        half = all_pairs.half_widths(some, one, other, rows)
        differences = some[:, one] - some[:, other]
        apart = np.abs(differences.mean(axis=2)) > half
        # the same with every seed: no spread to judge by
        apart &= np.ptp(differences, axis=2) > 1e-9
        place = {
            pair: number
            for number, pair in enumerate(
                zip(first.tolist(), second.tolist(), strict=True)
            )
        }

        columns = [
            place[int(kept[a]), int(kept[b])] for a, b in zip(one, other, strict=True)
        ]
        found[np.ix_(mine, columns)] = apart

    return found


def holm_paired(values: np.ndarray) -> np.ndarray:
    """The same by paired t-tests with Holm's correction over all pairs, for comparison."""
    from scipy.special import stdtr

    _, rows, seeds = values.shape
    first, second = np.triu_indices(rows, 1)
    differences = values[:, first] - values[:, second]
    spread = differences.std(axis=2, ddof=1)
    t = (
        np.abs(differences.mean(axis=2))
        * np.sqrt(seeds)
        / np.where(spread > 1e-9, spread, np.inf)
    )

    p = 2 * stdtr(seeds - 1, -t)
    order = np.argsort(p, axis=1)
    steps = np.take_along_axis(p, order, axis=1) * (len(first) - np.arange(len(first)))
    rejected = np.maximum.accumulate(steps, axis=1) < 1 - LEVEL
    found = np.zeros(p.shape, dtype=bool)
    np.put_along_axis(found, order, rejected, axis=1)

    return found


def told_apart_adaptive(values: np.ndarray) -> np.ndarray:
    """values (tables, rows, seeds) -> whether a row is told apart from the first one at some look,
    bool (tables, 1).

    Holm's first step with every row still open at every look, which is where a first false claim is
    made.
    """
    from scipy.special import stdtr

    from pointsweep.statistics.adaptive_seeds import ALPHA
    from pointsweep.statistics.sequential import GROWTH

    least, most = ADAPTIVE
    tables, rows, _ = values.shape
    differences = values[:, 1:] - values[:, :1]
    strongest = np.full((tables, rows - 1), np.inf)

    for seeds in range(least, most + 1):
        seen = differences[:, :, :seeds]
        spread = seen.std(axis=2, ddof=1)
        t = (
            np.abs(seen.mean(axis=2))
            * np.sqrt(seeds)
            / np.where(spread > 1e-9, spread, np.inf)
        )

        p = 2 * stdtr(seeds - 1, -t)
        strongest = np.minimum(
            strongest, np.where(spread > 1e-9, p / (seeds / most) ** GROWTH, np.inf)
        )

    p_values = np.array(
        [sequential_p(each, least, most) for each in strongest.min(axis=1)]
    )
    claimed: np.ndarray = (p_values * (rows - 1) < ALPHA)[:, None]
    return claimed


def rate(draw: Draw, rows: int, seeds: int, tables: int, seed: int) -> float:
    """Return the share of simulated tables that tell at least one pair apart."""
    values = draw(np.random.default_rng(seed), tables, rows, seeds)
    return float(told_apart(values).any(axis=1).mean())


def adaptive_rate(draw: Draw, rows: int, tables: int, seed: int) -> float:
    """Return the same for 3 to 10 seeds, as many as it needs."""
    values = draw(np.random.default_rng(seed), tables, rows, ADAPTIVE[1])
    return float(told_apart_adaptive(values).any(axis=1).mean())


def interval(claims: int, tables: int) -> tuple[float, float]:
    """Return the exact 95 % interval of a share (Clopper & Pearson 1934)."""
    from scipy.stats import binomtest

    found = binomtest(claims, tables).proportion_ci(LEVEL, method="exact")
    return float(found.low), float(found.high)


def count(draw: Draw, rows: int, seeds: int | None, tables: int, seed: int) -> int:
    """Return how many simulated tables tell a pair apart; `seeds` None: 3 to 10, as many as it
    needs.
    """
    if seeds is None:
        return round(adaptive_rate(draw, rows, tables, seed) * tables)

    return round(rate(draw, rows, seeds, tables, seed) * tables)


def with_interval(claims: int, tables: int) -> str:
    """ "221 of 4,000, 5.53 % (95 % 4.84 to 6.28)"."""
    low, high = interval(claims, tables)
    return (
        f"{claims:,} of {tables:,}, {100 * claims / tables:.2f} % (95 % {100 * low:.2f} to"
        f" {100 * high:.2f})"
    )


def power(
    rows: int, seeds: int, step: float, tables: int, seed: int
) -> dict[str, tuple[float, float]]:
    """Return, by procedure, the chance of telling best from worst and the number of pairs told
    apart; steps in sd.
    """
    values = (
        normal(np.random.default_rng(seed), tables, rows, seeds)
        - step * np.arange(rows)[None, :, None]
    )

    first, second = np.triu_indices(rows, 1)
    ends = (first == 0) & (second == rows - 1)
    found = {}

    for name, test in (
        ("all pairs", told_apart),
        ("paired t-tests, Holm", holm_paired),
    ):
        claims = test(values)
        found[name] = float(claims[:, ends].mean()), float(claims.sum(axis=1).mean())

    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the rates."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--tables", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(arguments)
    null_evidence(*ADAPTIVE)
    print(
        f"tables without a difference that show one, in % of {args.tables:,}, seed {args.seed}\n"
    )
    cases: list[tuple[int, int | None]] = []
    cases += [(rows, seeds) for seeds in (3, 5) for rows in (2, 3, 4, 5, 10)]
    cases.append((5, None))
    titles = [f"{rows} rows, {seeds or '3-10'} seeds" for rows, seeds in cases]
    print("| | " + " | ".join(titles) + " |")
    print("| --- |" + " ---: |" * len(cases))
    high_counts = []

    for name, draw in (NULLS | NOT_HELD).items():
        claims = [
            count(draw, rows, seeds, args.tables, args.seed) for rows, seeds in cases
        ]
        shown = " | ".join(f"{100 * number / args.tables:.1f}" for number in claims)
        print(f"| {name} | {shown} |", flush=True)

        if name in NULLS:
            for case, title, number in zip(cases, titles, claims, strict=True):
                if number > MOST * args.tables:
                    high_counts.append((f"{name}, {title}", draw, case, number))

    print(
        f"\ncounted above {100 * MOST:.1f} %, then again in tables of ten other seeds:\n"
    )
    for title, draw, (rows, seeds), number in high_counts:
        again = sum(
            count(draw, rows, seeds, args.tables, seed) for seed in RECOUNT_SEEDS
        )
        first = with_interval(number, args.tables)
        second = with_interval(again, args.tables * len(RECOUNT_SEEDS))
        print(f"{title}: {first}; again {second}", flush=True)

    if not high_counts:
        print("none")

    print(
        "\nfive rows, four steps of 1.5 sd: best told from worst, and pairs told apart of 10\n"
    )
    print(
        "| seeds | all pairs | pairs | paired t-tests, Holm | pairs |\n| ---: | ---: | ---: | ---:"
        " | ---: |"
    )
    for num_seeds in (3, 5, 10):
        by_procedure = power(5, num_seeds, 1.5, args.tables, args.seed)
        (ours, pairs), (theirs, their_pairs) = by_procedure.values()
        print(
            f"| {num_seeds} | {100 * ours:.1f} % | {pairs:.1f} | {100 * theirs:.1f} % |"
            f" {their_pairs:.1f} |"
        )


if __name__ == "__main__":
    main()
