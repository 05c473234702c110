"""Construction of tables from records.

A table depends on a layout (rows, columns and the keys of each cell's trials) and on the records of
these trials alone, not on their order or on the store that they were read from.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from pointsweep.data.facts import COPIES_UNKNOWN
from pointsweep.errors import StoreError, unknown
from pointsweep.reporting.footnotes import spread
from pointsweep.reporting.formats.registry import FORMATS, load, render, render_bytes
from pointsweep.reporting.html.evidence import curves, gather
from pointsweep.reporting.html.numbers import costs
from pointsweep.reporting.html.page import page
from pointsweep.reporting.table import Table, TableCell, cells_by_column
from pointsweep.results import metrics
from pointsweep.results.computed_metrics import with_metric
from pointsweep.results.events import read_failure
from pointsweep.results.kept_plugins import import_kept
from pointsweep.results.metrics import DECIDING, METRICS, PER_OBJECT, higher_is_better
from pointsweep.results.record_index import sound_records, uncollected
from pointsweep.results.records import (
    DAMAGED,
    FIRST_WITH_CHECKSUM,
    CellLayout,
    Layout,
    Published,
    Record,
    layout_from_plan,
    records_by_seed,
    value,
)
from pointsweep.statistics import adaptive_seeds as adaptive
from pointsweep.statistics.all_pairs import Family, compare
from pointsweep.statistics.paired_objects import (
    ModelTest,
    correctness,
    effective_clouds,
    groups_of,
    model_tests,
    one_episode,
)
from pointsweep.statistics.seeds import (
    Summary,
    Verdict,
    by_mean,
    mean,
    summary,
    verdict,
    wilson,
)
from pointsweep.statistics.shapley import attribution
from pointsweep.storage.base import Store
from pointsweep.sweep.published import mismatch, paper_epochs
from pointsweep.utils.numbers import percent

__all__ = ["build", "curves", "read", "render", "value", "write_all"]

log = logging.getLogger("pointsweep.tables")

Arms = dict[str, dict[int, float]]  # name of a row or column -> values by seed
# facts of a record's data set that are all equal where the test clouds are the same
TEST_FACTS = ("name", "digest", "num_test", "test_groups")


@uncollected()
def build(
    layout: Layout,
    records: Mapping[str, Record],
    failures: Mapping[str, str],
    parameters: Mapping[str, Mapping[str, int]] | None = None,
) -> Table:
    """Return the table, in which cells without finished trials are empty. `parameters` are the
    parameter counts of trials that have no record yet, by key.

    Raises ValueError if a record lacks the layout's protocol or metric.
    """
    # With adaptive seeds, the records decide how many seeds every cell of the layout has.
    layout, compared = adaptive.settle(layout, records)
    present = _records_of_table(layout, records)
    tree_of = {key: tree(record) for key, record in present.items()}
    num_trials = Counter(tree_of.values())
    # The most frequent version of the code first; equally frequent ones by their digests, so that
    # the order of the records does not matter.
    trees = sorted(num_trials, key=lambda name: (-num_trials[name], name))
    other_trees = {key: name for key, name in tree_of.items() if name != trees[0]}

    stop_reasons = adaptive.reasons(layout, compared)
    cells = []

    for cell_layout in layout.cells:
        cell = _cell(
            layout=layout,
            cell=cell_layout,
            records=present,
            failures=failures,
            parameters=parameters or {},
            other_trees=other_trees,
        )

        stopped = stop_reasons.get((cell.row, cell.column))
        if stopped:
            cell = replace(cell, stopped=stopped)

        cells.append(cell)

    notes = [*adaptive.notes(layout, compared), *layout.notes]
    if len(trees) > 1:
        versions = [f"tree {name} ({num_trials[name]} trials)" for name in trees]
        notes.append(
            f"made by {len(trees)} versions of the code: {', '.join(versions)}"
        )

    notes += _mixed_data(present)
    notes += _without_checksum(present)
    notes += _shares(layout, cells)

    return Table(
        name=layout.name,
        title=layout.title,
        metric=layout.metric,
        protocol=layout.protocol,
        row_headers=layout.row_headers,
        rows=layout.rows,
        columns=layout.columns,
        cells=tuple(cells),
        comparisons=comparisons(layout, cells, present),
        notes=tuple(notes),
        models=_model_tests(layout, cells, present),
        per_hour=layout.per_hour,
    )


def trial_keys(layout: Layout) -> list[str]:
    """Return the keys of the layout's trials in its order, each once."""
    keys: dict[str, None] = {}
    for cell in layout.cells:
        for _, key in cell.keys:
            keys[key] = None

    return list(keys)


def _records_of_table(
    layout: Layout, records: Mapping[str, Record]
) -> dict[str, Record]:
    """Return the records of the layout's trials, in its order."""
    return {key: records[key] for key in trial_keys(layout) if key in records}


def _row_names(layout: Layout) -> list[str]:
    """Return each row's labels as one name."""
    return [" / ".join(row) for row in layout.rows]


def _model_tests(
    layout: Layout, cells: Sequence[TableCell], records: Mapping[str, Record]
) -> tuple[tuple[ModelTest, ...], ...]:
    """Return for each column the tests between single trained models on the same test objects, the
    rows in the order of their means; none for a metric that is no mean over objects.
    """
    names = _row_names(layout)
    tests = []

    of_columns = cells_by_column(cells)
    for column in range(len(layout.columns)):
        values: dict[int, dict[int, float]] = {}
        trials: dict[str, dict[int, Record]] = {}
        for cell in of_columns.get(column, ()):
            values[cell.row] = dict(cell.values)
            trials[names[cell.row]] = records_by_seed(cell.keys, records)

        ordered = []
        if layout.metric == PER_OBJECT:
            ordered = [names[row] for row in by_mean(values)]

        tests.append(model_tests(ordered, trials, layout.protocol))

    return tuple(tests)


def comparisons(
    layout: Layout, cells: Sequence[TableCell], records: Mapping[str, Record]
) -> tuple[Family, ...]:
    """Return the comparisons of all pairs of rows in each column, then those of all pairs of the
    columns that were tested on the same data.

    Empty with adaptive seeds: their number depends on the values, which these tests do not account
    for.
    """
    if layout.adaptive:
        return ()

    names = _row_names(layout)
    better = higher_is_better(layout.metric)
    arms: list[tuple[str, Arms]] = []
    collapsed: set[str] = set()

    of_columns = cells_by_column(cells)
    for column, title in enumerate(layout.columns):
        rows = {}
        for cell in of_columns.get(column, ()):
            if cell.values:
                rows[names[cell.row]] = dict(cell.values)

        arms.append((title, rows))
        for outlier in compare(title, rows, 1, better).set_aside:
            collapsed.add(outlier.arm)

    arms += _columns(layout, cells, records, collapsed)
    # The error rate holds for all families together. A family of one row has no pair to test.
    num_families = max(sum(len(rows) > 1 for _, rows in arms), 1)
    families = []

    for title, rows in arms:
        families.append(compare(title, rows, num_families, better))

    return tuple(families)


def _columns(
    layout: Layout,
    cells: Sequence[TableCell],
    records: Mapping[str, Record],
    collapsed: Collection[str],
) -> Iterator[tuple[str, Arms]]:
    """Yield, for each group of columns that were tested on the same clouds, a title and the
    columns' means by seed over the rows that all of them have.

    A row in `collapsed` is in no mean: in some column it has a seed far from its others, for which
    it is excluded from the comparisons there.
    """
    values = {(cell.row, cell.column): dict(cell.values) for cell in cells}
    names = _row_names(layout)

    for columns in _columns_by_data(layout, cells, records):
        rows = []
        for row, name in enumerate(names):
            is_complete = all(values.get((row, column)) for column in columns)
            if is_complete and name not in collapsed:
                rows.append(row)

        if len(columns) < 2 or not rows:
            continue

        means: dict[str, dict[int, float]] = {}
        for column in columns:
            mean_by_seed = _mean_by_seed([values[row, column] for row in rows])
            if mean_by_seed:
                means[layout.columns[column]] = mean_by_seed

        over = names[rows[0]] if len(rows) == 1 else f"mean of {len(rows)} rows"
        yield f"columns, {over}", means


def _mean_by_seed(rows: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Return, for each seed that all rows have, the mean of their values."""
    first, *others = rows
    common_seeds = set(first).intersection(*others)
    means = {}

    for seed in sorted(common_seeds):
        means[seed] = mean([value_of[seed] for value_of in rows])

    return means


def _columns_by_data(
    layout: Layout, cells: Sequence[TableCell], records: Mapping[str, Record]
) -> list[list[int]]:
    """Return the columns in groups that were tested on the same clouds."""
    facts_of: dict[int, set[str]] = defaultdict(set)
    for cell in cells:
        for record in records_by_seed(cell.keys, records).values():
            facts = [record.dataset.get(fact) for fact in TEST_FACTS]
            facts_of[cell.column].add(json.dumps(facts))

    groups: dict[str, list[int]] = defaultdict(list)
    for column in range(len(layout.columns)):
        # A column with several test sets, or without a record, is comparable with none.
        if len(facts_of[column]) == 1:
            (test_data,) = facts_of[column]
            groups[test_data].append(column)

    return list(groups.values())


def _without_checksum(records: Mapping[str, Record]) -> list[str]:
    """Return a note if any records are from a version that wrote no checksum, so that an edited one
    would not be noticed.
    """
    number = sum(record.schema < FIRST_WITH_CHECKSUM for record in records.values())
    if not number:
        return []

    return [
        f"unverified: {number} of {len(records)} records have no checksum (older version);"
        " pointsweep verify STORE checks"
    ]


def _mixed_data(records: Mapping[str, Record]) -> list[str]:
    """Return a note for each data set whose files changed between trials: its configuration is the
    same, its digest is not.
    """
    # Records that were read together share these objects, so that each is compared a single time.
    distinct = {}
    for record in records.values():
        distinct[id(record.config.get("dataset")), id(record.dataset)] = record

    digests_of: dict[str, set[str]] = defaultdict(set)
    for record in distinct.values():
        config = json.dumps(record.config.get("dataset"), sort_keys=True)
        digest = str(record.dataset.get("digest"))
        digests_of[config].add(digest[:16])

    changed = []
    for config, digests in digests_of.items():
        if len(digests) > 1:
            changed.append((sorted(digests), json.loads(config)["name"]))

    notes = []
    for listed, name in sorted(changed):
        notes.append(
            f"data changed between trials: {name} has digests {', '.join(listed)}"
        )

    return notes


def tree(record: Record) -> str:
    """Return the digest of the source tree that made a record."""
    return record.origin.get("tree", "unknown")


def _cell(
    layout: Layout,
    cell: CellLayout,
    records: Mapping[str, Record],
    failures: Mapping[str, str],
    parameters: Mapping[str, Mapping[str, int]],
    other_trees: Mapping[str, str],
) -> TableCell:
    """Return one cell. `other_trees` has the source tree, by key, of the trials that another
    version of the code made than most of the table's.
    """
    by_seed = records_by_seed(cell.keys, records)
    trials = list(by_seed.values())
    values = [value(record, layout.protocol, layout.metric) for record in trials]
    stats = summary(values) if values else None
    low, high, interval = _interval(stats, trials, layout)

    failed = []
    counts = [record.parameters for record in trials]
    marks = _marks(trials)

    for seed, key in cell.keys:
        if key in failures and key not in records:
            failed.append((seed, failures[key]))

        if key in other_trees:
            marks.add(f"made by other code: tree {other_trees[key]}")

        # A cell without records has the parameter counts of the plan.
        if not trials and key in parameters:
            counts.append(parameters[key])

    unjudged = _unjudged(cell, trials, layout.metric)
    verdict = None if unjudged else _verdict(cell, values, trials, layout.protocol)
    return TableCell(
        row=cell.row,
        column=cell.column,
        mean=stats.mean if stats else None,
        sd=stats.sd if stats else None,
        n=len(values),
        expected=len(cell.keys),
        low=low,
        high=high,
        values=tuple(sorted(zip(by_seed, values, strict=True))),
        keys=cell.keys,
        failures=tuple(failed),
        parameters=dict(counts[0]) if counts else None,
        published=cell.published,
        excluded=cell.excluded,
        marks=tuple(sorted(marks)),
        optimism=optimism(trials, layout.metric),
        interval=interval,
        verdict=verdict,
        unjudged=unjudged,
    )


def _marks(trials: Sequence[Record]) -> set[str]:
    """Return the marks (texts of footnotes about how a trial was made) of all the trials."""
    marks: set[str] = set()
    for record in trials:
        marks.update(record.marks)

    return marks


def _interval(
    stats: Summary | None, trials: Sequence[Record], layout: Layout
) -> tuple[float | None, float | None, str]:
    """Return the interval's ends and what it is over: a t-interval over "seeds"; for one seed
    Wilson's interval over the test "objects"; (None, None, "") where neither applies.
    """
    if stats is None:
        return None, None, ""
    if stats.low is not None:
        return stats.low, stats.high, "seeds"
    # Wilson's interval is one of a share of objects.
    if layout.metric != PER_OBJECT:
        return None, None, ""
    if not trials[0].dataset.get("num_test") or one_episode(trials[0]):
        return None, None, ""

    clouds = independent_clouds(trials[0], layout.protocol)
    low, high = wilson(stats.mean * clouds, clouds)
    return low, high, "objects"


def independent_clouds(record: Record, protocol: str) -> float:
    """Return the effective number of independent test clouds: that of all, or fewer where several
    clouds show the same object.
    """
    groups = groups_of(record)
    if groups is None:
        return float(record.dataset["num_test"])

    # Without predictions, how much clouds of one object agree is unknown: count the objects.
    correct = correctness(record, protocol)
    if correct is None:
        return float(groups.max() + 1)

    return effective_clouds(correct, groups)


def _unjudged(cell: CellLayout, trials: Sequence[Record], metric: str) -> str:
    """Return why finished trials cannot be compared with the published value (other data, split,
    protocol, weights or fewer epochs); empty if they can.
    """
    if cell.published is None or cell.published.value is None or not trials:
        return ""
    if metric != PER_OBJECT:
        return f"the table shows {metric}"

    # These two marks say nothing against a comparison; any other one does.
    disqualifying = _marks(trials) - {"official program", COPIES_UNKNOWN}
    if disqualifying:
        return ", ".join(sorted(disqualifying))

    mismatches = set()
    shortfalls = set()
    for record in trials:
        mismatches.add(mismatch(cell.published, record.config.get("dataset", {})))
        shortfalls.add(fewer_epochs(cell.published, record))

    # An empty text is no reason. One reason suffices: the first in the alphabet.
    for reasons in (mismatches - {""}, shortfalls - {""}):
        if reasons:
            return min(reasons)

    num_val = max(record.dataset.get("num_val") or 0 for record in trials)
    if num_val:
        return f"{num_val:,} training objects were held out for validation"

    sizes = {record.dataset.get("num_test") for record in trials}
    if len(sizes) != 1:
        return "the trials have different numbers of test objects"
    if not sizes.pop():
        return "the records do not say how many test objects there were"

    return ""


def fewer_epochs(published: Published, record: Record) -> str:
    """Return a reason if a trial trained for fewer epochs than the paper's; empty if it did not, or
    has nothing to train.
    """
    epochs = record.config.get("train", {}).get("epochs")
    published_epochs = paper_epochs(published)

    if not epochs or not published_epochs or not record.parameters.get("trainable"):
        return ""
    if epochs >= published_epochs:
        return ""

    return f"trained for {epochs} epochs, the paper's for {published_epochs}"


def _verdict(
    cell: CellLayout, values: Sequence[float], trials: Sequence[Record], protocol: str
) -> Verdict | None:
    """Return the verdict on the published value; None without one, or without trials."""
    if cell.published is None or cell.published.value is None or not trials:
        return None

    clouds = mean([independent_clouds(record, protocol) for record in trials])
    return verdict(values, cell.published.value / 100, clouds)


def _shares(layout: Layout, cells: Sequence[TableCell]) -> list[str]:
    """Return, for a factorial sweep, a note for each column with what every component (factor)
    contributes to the metric.
    """
    notes: list[str] = []
    if not layout.factors:  # of other sweeps
        return notes

    of_columns = cells_by_column(cells)
    for column, title in enumerate(layout.columns):
        arms = []
        for cell in of_columns.get(column, ()):
            factors = layout.factors[cell.row]
            if factors:
                arms.append((factors, dict(cell.values)))

        if any(values for _, values in arms):
            notes.append(
                f"components, {title} (Shapley shares, 95 % t-interval over seeds):"
                f" {_shares_of(arms)}"
            )

    return notes


def _shares_of(arms: Sequence[tuple[Mapping[str, bool], Mapping[int, float]]]) -> str:
    try:
        shares = attribution(arms)
    except ValueError as error:
        return f"not to be had, {error}"

    listed = []
    for name, share in shares.items():
        listed.append(f"{name} {percent(share.mean, signed=True)}{spread(share)}")

    return ", ".join(listed)


# metrics by which a protocol chooses a trial's epoch on the test set
CHOSEN_BY = tuple(f"test/{name}" for name in DECIDING)


def optimism(records: Sequence[Record], metric: str) -> float | None:
    """Return how much higher the metric is at the epoch that is best on the test set than at the
    last epoch, as a mean over records.

    None if a record lacks either, and for any metric by which no epoch is chosen (design.md,
    section 7): of such a one the chosen epoch may well have the lower value.
    """
    if metric not in CHOSEN_BY:
        return None

    if not records:
        return None

    try:
        best = [record.metrics["best_test"][metric] for record in records]
        last = [record.metrics["last"][metric] for record in records]
    except KeyError:
        return None

    return mean(best) - mean(last)


@uncollected()
def read(
    store: Store, name: str, allow_plugins: bool = False
) -> tuple[Layout, dict[str, Record], dict[str, str]]:
    """Return the layout, records and failures (see `read_results`) of a sweep by its name. Raises
    ValueError naming the sweeps that the store has.

    If the table's metric is one of a plug-in that is not installed, the copy of the plug-in in the
    store computes it where `allow_plugins` permits running that; otherwise PluginError is raised.
    """
    layout = read_layout(store, name)
    metric = layout.metric.rpartition("/")[2]

    if metric not in METRICS and not metrics.discover(metric):
        import_kept(store, name, allow_plugins)

    return read_results(store, layout)


def read_results(
    store: Store, layout: Layout
) -> tuple[Layout, dict[str, Record], dict[str, str]]:
    """Return the layout as it is given, the records of its trials, and the reasons by key why
    trials have none: what they failed with, or how their record is damaged. A trial that has not
    ended is in neither.

    The three are the arguments of `build`. Records have the layout's metric, also if that is
    computed from predictions.
    """
    keys = trial_keys(layout)
    records, damaged = sound_records(store, layout.name, keys)
    failures: dict[str, str] = {}

    for key in keys:
        if key in damaged:
            failures[key] = f"{DAMAGED}: {damaged[key]}"
            log.warning("not in the table: %s", damaged[key])
        elif key not in records:
            reason = read_failure(store, key)
            if reason:
                failures[key] = reason

    return layout, with_metric(store, records, layout.metric), failures


def read_layout(store: Store, name: str) -> Layout:
    """Return the layout of a sweep in the store. Raises ValueError naming the sweeps that the store
    has, StoreError naming the file if that is damaged.
    """
    file = f"sweeps/{name}/plan.json"
    try:
        return layout_from_plan(store.read(file))
    except FileNotFoundError:
        known = [entry.rstrip("/") for entry in store.list("sweeps")]
        raise ValueError(unknown("sweep", name, known, f"In {store.url}")) from None
    except StoreError as error:
        raise StoreError(
            f"{store.location(file)}: {error}; the sweep's command (pointsweep run) writes it anew"
        ) from error


def write_all(store: Store, table: Table, records: Mapping[str, Record]) -> None:
    """Write the table in every format, the report and the cells' costs. These have a file of their
    own, as no two runs take the same time and the table of equal records shall be equal.
    """
    folder = f"sweeps/{table.name}"
    for name, data in every_format(table).items():
        store.write(f"{folder}/{name}", data)

    cost_json = json.dumps(costs(table, records), indent=1) + "\n"
    store.write(f"{folder}/cost.json", cost_json.encode())

    evidence = gather(store, table, records)
    report = page(table, records, curves(store, table), evidence)
    store.write(f"{folder}/report.html", report.encode())


def files_of(store: Store, name: str) -> dict[str, bytes]:
    """Return the files of a sweep to upload, by name: its table in every format, the report, the
    sweep file and the layout.
    """
    names = {"report.html", "sweep.yaml"}
    for table_format in map(load, FORMATS):
        if table_format.stored:
            names.add(f"table.{table_format.suffix}")

    files = {}
    for entry in store.list(f"sweeps/{name}"):
        if entry in names:
            files[entry] = store.read(f"sweeps/{name}/{entry}")

    files["layout.json"] = read_layout(store, name).to_json().encode()
    return files


def every_format(table: Table) -> dict[str, bytes]:
    """Return the content of the table's files by name: table.txt, table.md and so on."""
    files = {}
    for name in FORMATS:
        table_format = load(name)
        if table_format.stored:
            files[f"table.{table_format.suffix}"] = render_bytes(table, name)

    return files
