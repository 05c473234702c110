"""Power of a sweep before it runs: the gains that its test objects and seeds would show.

all_pairs.py and power.py have the formulas; here a plan's numbers are put into them.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter

from pointsweep.planning.plan import Plan
from pointsweep.results.metrics import PER_OBJECT, computed
from pointsweep.results.records import Record
from pointsweep.statistics.all_pairs import detectable_gain
from pointsweep.statistics.paired_objects import groups_of
from pointsweep.statistics.power import (
    TARGET,
    assumed_sd,
    pooled_sd,
    power_of_models,
    power_of_seeds,
    smallest_gain,
)
from pointsweep.statistics.seeds import DIGITS, LEVEL, half_width, summary
from pointsweep.statistics.sequential import last_level
from pointsweep.sweep.parser import Cell
from pointsweep.sweep.published_checks import NUM_TEST
from pointsweep.sweep.search_space import Search

SETS = {
    "modelnet40": ("ModelNet40", "test"), "modelnet40_c": ("ModelNet40", "test"),
    "scanobjectnn": ("ScanObjectNN", "PB_T50_RS"), "scanobjectnn_c": ("ScanObjectNN", "PB_T50_RS"),
}  # fmt: skip
ACCURACY = 0.85  # where neither finished trials nor a paper tell one
NOT_SEEN = 0.2  # power below which a gain is said not to be seen


def resolution(plan: Plan, search: Search | None = None) -> list[str]:
    """A sentence for each number of test objects in the sweep, least first; none where the number
    is not known.

    Of a search the plan has points of every arm: arms that are tuned first are compared by the
    seeds of their winners, the trials of a search on its own are not.
    """
    if search is not None and search.then_seeds is None:
        return []

    fresh_seeds = search.then_seeds if search is not None else None
    by_objects: dict[int, list[Cell]] = {}
    for cell in plan.sweep.cells:
        objects = num_test(cell, plan) if cell.trials else None
        if objects:
            by_objects.setdefault(objects, []).append(cell)

    sentences = []
    for objects in sorted(by_objects):
        sentences.append(sentence(plan, objects, by_objects[objects], fresh_seeds))

    return sentences


def num_test(cell: Cell, plan: Plan) -> int | None:
    """The test objects of a cell's trials: what a finished one counted, else what the data that are
    here have.

    Where the data are not here, the published size of the data set. Of several clouds of an object
    one counts: how alike they are is known once a trial has run.
    """
    record = _first_record(plan, cell)
    if record is not None:
        groups = groups_of(record)
        clouds = record.dataset.get("num_test")
        if groups is not None:
            return int(groups.max()) + 1
        if clouds:
            return int(clouds)

        return None

    dataset = cell.trials[0].dataset
    if dataset in plan.data:
        facts = plan.data[dataset]
        return facts.objects.get("test", facts.sizes["test"])

    variant = str(getattr(dataset, "variant", "")).upper()
    known_set = SETS.get(dataset.name, ("", ""))
    if variant:
        known_set = known_set[0], variant

    size = NUM_TEST.get(known_set)
    if not size:
        return None

    return min(size, dataset.test_limit or size)


def _first_record(plan: Plan, cell: Cell) -> Record | None:
    for config in cell.trials:
        if config.key() in plan.records:
            return plan.records[config.key()]

    return None


def sentence(
    plan: Plan, objects: int, cells: list[Cell], fresh_seeds: int | None = None
) -> str:
    """ "with 2,882 test objects and 3 seeds a gain of 1.7 is seen with 90 % power, 0.2 is not
    (...)".
    """
    seeds = fresh_seeds or statistics.mode(len(cell.trials) for cell in cells)
    accuracy, source = typical_accuracy(plan, cells)

    if seeds < 2:
        return f"with {objects:,} test objects and 1 seed {of_models(objects, accuracy)} ({source})"

    adaptive = plan.sweep.adaptive
    columns = Counter(cell.column for cell in cells)
    rows = max(columns.values())

    if len(cells) == 1 and adaptive is None:
        precision = of_one_cell(plan, cells[0], objects, seeds)
        return f"with {objects:,} test objects and {seeds} seeds {precision}"

    measured = pooled_sd(spreads(plan, cells))
    if measured is not None:
        sd, freedom = measured
        basis = f"measured, {freedom} degrees of freedom"
    else:
        sd = assumed_sd(accuracy, objects)
        basis = f"assumed: {source}"

    gain: float | None
    small: float | None

    if adaptive is None:
        within = f"{seeds} seeds"
        gain, small, level = _of_all_pairs(rows, len(columns), seeds, sd)
    else:  # what the last look can claim; the earlier ones add a little
        within = f"at most {seeds} seeds"
        comparisons = max(rows - 1, 1)
        level_of_one = (1 - LEVEL) / comparisons
        last = last_level(level_of_one, adaptive.least, adaptive.most)

        def power(gain: float) -> float:
            return power_of_seeds(gain, seeds, sd, comparisons=(1 - LEVEL) / last)

        gain = smallest_gain(power)
        small = smallest_gain(power, NOT_SEEN)
        level = "sequential paired t-test at 5 %"

        if comparisons > 1:
            level += f" over the {comparisons} comparisons of a column"

    return (
        f"with {objects:,} test objects and {within} a gain of {_points(gain)} is seen with"
        f" {100 * TARGET:.0f} % power, {_points(small)} is not ({100 * NOT_SEEN:.0f} %): {level};"
        f" the seeds' differences have sd {100 * sd:.2f} ({basis})"
    )


def _of_all_pairs(
    rows: int, columns: int, seeds: int, sd: float
) -> tuple[float, float, str]:
    """Return the gain that is seen, the one that is not, and the test, where every pair of rows is
    compared; sd of differences.

    Of one row the columns are compared.
    """
    if rows > 1:
        # the rows of each column, and the columns
        arms, families = rows, columns + (columns > 1)
        level = f"all pairs of {rows} rows at 5 %"
    else:
        arms, families = columns, 1
        level = f"all pairs of {arms} columns at 5 %"

    if families > 1:
        level += f" over the table's {columns} columns and the columns themselves"

    one_value = sd / math.sqrt(2)
    gain = one_value * detectable_gain(arms, seeds, families, TARGET)
    small = one_value * detectable_gain(arms, seeds, families, NOT_SEEN)

    return gain, small, f"Tukey's test of {level}"


def of_one_cell(plan: Plan, cell: Cell, objects: int, seeds: int) -> str:
    """Return how well the mean of the only cell will be known; there is nothing to compare."""
    done = list(_values(plan, cell).values())
    sd = summary(done).sd if len(done) > 1 else None
    basis = f"measured, {len(done)} seeds"

    if sd is None:
        accuracy, source = typical_accuracy(plan, [cell])
        sd = assumed_sd(accuracy, objects)
        basis = f"assumed: {source}"

    width = half_width(sd, seeds)

    return (
        f"the mean of the only cell is known to ±{100 * width:.1f} points (95 % t-interval): the"
        f" seeds have sd {100 * sd:.2f} ({basis})"
    )


def of_models(objects: int, accuracy: float) -> str:
    """Return what one seed shows: as many objects as the variance of the accuracy are taken to be
    decided otherwise by the other model.
    """
    discordant = accuracy * (1 - accuracy)
    gain = smallest_gain(lambda gain: power_of_models(gain, objects, discordant))

    return (
        "no gain of an arm is seen, for one seed has no spread; between two trained models a gain"
        f" of {_points(gain)} is seen with {100 * TARGET:.0f} % power, McNemar's test,"
        f" {100 * discordant:.0f} % of the objects decided otherwise"
    )


def _points(gain: float | None) -> str:
    if gain is None or gain > 1:
        return "more than 100"
    return f"{100 * gain:.1f}"


def typical_accuracy(plan: Plan, cells: list[Cell]) -> tuple[float, str]:
    """The accuracy to reckon with, and where it is from.

    A metric that is computed from predictions need not be a share of the objects (Cohen's kappa may
    be negative): its trials' recorded accuracy is taken.
    """
    protocol, metric = plan.sweep.protocol, plan.sweep.metric
    if computed(metric) is not None:
        metric = PER_OBJECT

    done = []
    printed = []

    for cell in cells:
        for config in cell.trials:
            record = plan.records.get(config.key())
            if record is not None:
                value = record.metrics.get(protocol, {}).get(metric)
                if value is not None:
                    done.append(value)

        if cell.published and cell.published.value:
            printed.append(cell.published.value / 100)

    if done:
        mean = summary(done).mean
        return mean, f"accuracy {100 * mean:.0f} % as in the finished trials"

    if printed:
        mean = summary(printed).mean
        return mean, f"accuracy {100 * mean:.0f} % as published"

    return ACCURACY, f"accuracy {100 * ACCURACY:.0f} %"


def spreads(plan: Plan, cells: list[Cell]) -> list[tuple[float, int]]:
    """(sd, n) over seeds of the differences between neighbouring rows of each column, as far as
    trials are finished.
    """
    spreads_of_pairs: list[tuple[float, int]] = []
    columns: dict[int, list[dict[int, float]]] = {}

    for cell in sorted(cells, key=lambda cell: cell.row):
        columns.setdefault(cell.column, []).append(_values(plan, cell))

    for arms in columns.values():
        for one, other in itertools.pairwise(arms):
            shared = sorted(one.keys() & other.keys())
            if len(shared) > 1:
                gains = [round(one[seed] - other[seed], DIGITS) for seed in shared]
                stats = summary(gains)
                spreads_of_pairs.append((stats.sd or 0.0, stats.n))

    return spreads_of_pairs


def _values(plan: Plan, cell: Cell) -> dict[int, float]:
    """Return the metric of a cell's finished trials, by seed."""
    protocol, metric = plan.sweep.protocol, plan.sweep.metric
    values = {}

    for config in cell.trials:
        record = plan.records.get(config.key())
        if record is not None:
            metrics = record.metrics.get(protocol, {})
            if metric in metrics:
                values[config.seed] = metrics[metric]

    return values
