"""Builds tables of records.

A table is a function of a layout and records, whatever their order and wherever they were read.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from pointsweep.data.facts import COPIES_UNKNOWN
from pointsweep.errors import StoreError, unknown
from pointsweep.reporting.footnotes import spread
from pointsweep.reporting.formats.registry import FORMATS, load, render, render_bytes
from pointsweep.reporting.html.evidence import curves, gather
from pointsweep.reporting.html.numbers import costs
from pointsweep.reporting.html.page import page
from pointsweep.reporting.table import Table, TableCell
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
    value,
)
from pointsweep.statistics import adaptive_seeds as adaptive
from pointsweep.statistics.all_pairs import Family, compare
from pointsweep.statistics.paired_objects import (
    correctness,
    effective_clouds,
    groups_of,
    model_tests,
    one_episode,
)
from pointsweep.statistics.seeds import Summary, Verdict, by_mean, mean, summary, verdict, wilson
from pointsweep.statistics.shapley import attribution
from pointsweep.storage.base import Store
from pointsweep.sweep.published import mismatch, paper_epochs
from pointsweep.utils.numbers import percent

__all__ = ["build", "curves", "read", "render", "value", "write_all"]

log = logging.getLogger("pointsweep.tables")

Arms = dict[str, dict[int, float]]  # values by seed, by name
# of a record's data set: equal where the test clouds are
TEST_FACTS = ("name", "digest", "num_test", "test_groups")


@uncollected()
def build(
    layout: Layout,
    records: Mapping[str, Record],
    failures: Mapping[str, str],
    parameters: Mapping[str, Mapping[str, int]] | None = None,
) -> Table:
    """The table as far as it is filled. `parameters` counts arms that have no record yet, by key.

    Raises ValueError if a record lacks the layout's protocol or metric.
    """
    layout, compared = adaptive.settle(layout, records)
    why = adaptive.reasons(layout, compared)
    here = {key: records[key] for cell in layout.cells for _, key in cell.keys if key in records}
    made_by = {key: tree(record) for key, record in here.items()}
    trees = Counter(made_by.values())
    # The code most trials were made by; of equally many, one that does not depend on the order of
    # the records.
    common = min(trees, key=lambda name: (-trees[name], name), default="")
    others = {key: name for key, name in made_by.items() if name != common}
    cells = tuple(
        _cell(layout, cell, here, failures, parameters or {}, others) for cell in layout.cells
    )
    if why:
        cells = tuple(replace(cell, stopped=why.get((cell.row, cell.column), "")) for cell in cells)
    models = []
    names = [" / ".join(row) for row in layout.rows]
    for column in range(len(layout.columns)):
        values, trials = {}, {}
        for cell in cells:
            if cell.column != column:
                continue
            values[cell.row] = dict(cell.values)
            trials[names[cell.row]] = {seed: here[key] for seed, key in cell.keys if key in here}
        order = [names[row] for row in by_mean(values)]
        judged = layout.metric == PER_OBJECT
        models.append(model_tests(order if judged else [], trials, layout.protocol))
    versions = ", ".join(
        f"tree {name} ({trees[name]} trials)"
        for name in sorted(trees, key=lambda name: (-trees[name], name))
    )
    notes = (
        *adaptive.notes(layout, compared),
        *layout.notes,
        *([f"made by {len(trees)} versions of the code: {versions}"] if len(trees) > 1 else []),
        *_mixed_data(here),
        *_without_checksum(here),
        *_shares(layout, cells),
    )
    return Table(
        layout.name, layout.title, layout.metric, layout.protocol, layout.row_headers, layout.rows,
        layout.columns, cells,
        comparisons(layout, cells, here), notes, tuple(models), layout.per_hour,
    )  # fmt: skip


def comparisons(
    layout: Layout, cells: Sequence[TableCell], records: Mapping[str, Record]
) -> tuple[Family, ...]:
    """All pairs of the rows of each column, then all pairs of the columns that were tested on the
    same data.

    None where seeds are adaptive: their number was chosen by the values, which these tests do not
    know.
    """
    if layout.adaptive:
        return ()
    better = higher_is_better(layout.metric)
    arms: list[tuple[str, Arms]] = []
    for column, title in enumerate(layout.columns):
        mine = [cell for cell in cells if cell.column == column and cell.values]
        arms.append(
            (title, {" / ".join(layout.rows[cell.row]): dict(cell.values) for cell in mine})
        )
    collapsed = {
        aside.arm for title, rows in arms for aside in compare(title, rows, 1, better).set_aside
    }
    arms += list(_columns(layout, cells, records, collapsed))
    families = max(sum(len(rows) > 1 for _, rows in arms), 1)
    return tuple(compare(title, rows, families, better) for title, rows in arms)


def _columns(
    layout: Layout,
    cells: Sequence[TableCell],
    records: Mapping[str, Record],
    collapsed: Collection[str],
) -> Iterator[tuple[str, Arms]]:
    """Columns tested on the same clouds, each with its mean over the rows that all of them have, by
    seed.

    A row that is set aside in one of them is not in the mean.
    """
    by_data: dict[str, list[int]] = {}
    for column in range(len(layout.columns)):
        keys = [
            key for cell in cells if cell.column == column for _, key in cell.keys if key in records
        ]
        facts = set()
        for key in keys:
            facts.add(json.dumps([records[key].dataset.get(fact) for fact in TEST_FACTS]))
        if len(facts) == 1:
            by_data.setdefault(facts.pop(), []).append(column)
    place = {(cell.row, cell.column): dict(cell.values) for cell in cells}
    names = [" / ".join(row) for row in layout.rows]
    for columns in by_data.values():
        rows = []
        for row, name in enumerate(names):
            if name not in collapsed and all(place.get((row, column)) for column in columns):
                rows.append(row)
        if len(columns) < 2 or not rows:
            continue
        means: dict[str, dict[int, float]] = {}
        for column in columns:
            seeds = set.intersection(*(set(place[row, column]) for row in rows))
            of_column = means[layout.columns[column]] = {}
            for seed in sorted(seeds):
                of_column[seed] = mean([place[row, column][seed] for row in rows])
        over = names[rows[0]] if len(rows) == 1 else f"mean of {len(rows)} rows"
        yield f"columns, {over}", {title: values for title, values in means.items() if values}


def _without_checksum(records: Mapping[str, Record]) -> list[str]:
    """A note if records are so old that they carry no checksum: that nobody has edited them is not
    known.
    """
    number = sum(record.schema < FIRST_WITH_CHECKSUM for record in records.values())
    if not number:
        return []
    return [
        f"unverified: {number} of {len(records)} records have no checksum (older version);"
        " pointsweep verify STORE checks"
    ]


def _mixed_data(records: Mapping[str, Record]) -> list[str]:
    """A note for each data set whose files were others for some of the trials: one configuration,
    different content.
    """
    # By identity first: records that were read together share their parts.
    apart = {
        (id(record.config.get("dataset")), id(record.dataset)): record
        for record in records.values()
    }
    contents: dict[str, set[str]] = {}
    for record in apart.values():
        name = json.dumps(record.config.get("dataset"), sort_keys=True)
        contents.setdefault(name, set()).add(str(record.dataset.get("digest"))[:16])
    found = sorted(
        (sorted(digests), json.loads(name))
        for name, digests in contents.items()
        if len(digests) > 1
    )
    return [
        f"data changed between trials: {data['name']} has digests {', '.join(digests)}"
        for digests, data in found
    ]


def tree(record: Record) -> str:
    """The digest of the code that made a record."""
    return record.origin.get("tree", "unknown")


def _cell(
    layout: Layout,
    cell: CellLayout,
    records: Mapping[str, Record],
    failures: Mapping[str, str],
    parameters: Mapping[str, Mapping[str, int]],
    others: Mapping[str, str],
) -> TableCell:
    """One cell; `others` names the code of the trials that were not made by the common one."""
    found = {seed: records[key] for seed, key in cell.keys if key in records}
    trials = list(found.values())
    values = [value(record, layout.protocol, layout.metric) for record in trials]
    by_seed = tuple(sorted(zip(found, values, strict=True)))
    stats = summary(values) if values else None
    mean, sd = (stats.mean, stats.sd) if stats else (None, None)
    low, high, interval = _interval(stats, trials, layout)
    counts = [record.parameters for record in trials] or [
        parameters[key] for _, key in cell.keys if key in parameters
    ]
    failed = tuple(
        (seed, failures[key]) for seed, key in cell.keys if key in failures and key not in records
    )
    marks = {mark for record in trials for mark in record.marks}
    marks |= {f"made by other code: tree {others[key]}" for _, key in cell.keys if key in others}
    unjudged = _unjudged(cell, trials, layout.metric)
    judged = None if unjudged else _verdict(cell, values, trials, layout.protocol)
    return TableCell(
        cell.row, cell.column, mean, sd, len(values), len(cell.keys), low, high, by_seed, cell.keys,
        failed, dict(counts[0]) if counts else None, cell.published, cell.excluded,
        tuple(sorted(marks)), optimism(trials, layout.metric), interval, judged, unjudged,
    )  # fmt: skip


def _interval(
    stats: Summary | None, found: Sequence[Record], layout: Layout
) -> tuple[float | None, float | None, str]:
    """The t-interval over seeds; of one seed, Wilson's over the test objects."""
    if stats is None or stats.low is not None:
        return (stats.low, stats.high, "seeds") if stats else (None, None, "")
    if layout.metric != PER_OBJECT or not found[0].dataset.get("num_test") or one_episode(found[0]):
        return None, None, ""
    clouds = independent_clouds(found[0], layout.protocol)
    return *wilson(stats.mean * clouds, clouds), "objects"


def independent_clouds(record: Record, protocol: str) -> float:
    """Return how many independent clouds carry as much as the test clouds: their number, or fewer
    where objects have several.
    """
    groups = groups_of(record)
    if groups is None:
        return float(record.dataset["num_test"])
    correct = correctness(record, protocol)
    return float(groups.max() + 1) if correct is None else effective_clouds(correct, groups)


def _unjudged(cell: CellLayout, found: Sequence[Record], metric: str) -> str:
    """Return why finished trials are no attempt at the published value: other data, split, protocol
    or weights; empty if they are.
    """
    if cell.published is None or cell.published.value is None or not found:
        return ""
    if metric != PER_OBJECT:
        return f"the table shows {metric}"
    foreign = sorted(
        {mark for record in found for mark in record.marks} - {"official program", COPIES_UNKNOWN}
    )
    if foreign:
        return ", ".join(foreign)
    about = sorted(
        {mismatch(cell.published, record.config.get("dataset", {})) for record in found} - {""}
    )
    if about:
        return about[0]
    short = sorted({fewer_epochs(cell.published, record) for record in found} - {""})
    if short:
        return short[0]
    held = sorted({record.dataset.get("num_val") or 0 for record in found})
    if held != [0]:
        return f"{held[-1]:,} training objects were held out for validation"
    sizes = {record.dataset.get("num_test") for record in found}
    if len(sizes) != 1:
        return "the trials have different numbers of test objects"
    return "" if sizes.pop() else "the records do not say how many test objects there were"


def fewer_epochs(published: Published, record: Record) -> str:
    """Return that a trial trained for fewer epochs than the paper's; empty if it did not, or has
    nothing to train.
    """
    epochs = record.config.get("train", {}).get("epochs")
    wanted = paper_epochs(published)
    if not epochs or not record.parameters.get("trainable") or not wanted or epochs >= wanted:
        return ""
    return f"trained for {epochs} epochs, the paper's for {wanted}"


def _verdict(
    cell: CellLayout, values: Sequence[float], found: Sequence[Record], protocol: str
) -> Verdict | None:
    """Return the verdict on the published value; None without one, or without trials."""
    if cell.published is None or cell.published.value is None or not found:
        return None
    clouds = mean([independent_clouds(record, protocol) for record in found])
    return verdict(values, cell.published.value / 100, clouds)


def _shares(layout: Layout, cells: Sequence[TableCell]) -> list[str]:
    """Yield, of a factorial, a note for each column: what every component contributes."""
    named = {row: factors for row, factors in enumerate(layout.factors) if factors}
    notes = []
    for column, title in enumerate(layout.columns):
        arms = [
            (named[cell.row], dict(cell.values))
            for cell in cells
            if cell.column == column and cell.row in named
        ]
        if any(values for _, values in arms):
            notes.append(
                f"components, {title} (Shapley shares, 95 % t-interval over seeds):"
                f" {_shares_of(arms)}"
            )
    return notes


def _shares_of(arms: Sequence[tuple[Mapping[str, bool], Mapping[int, float]]]) -> str:
    try:
        found = attribution(arms)
    except ValueError as error:
        return f"not to be had, {error}"
    return ", ".join(
        f"{name} {percent(share.mean, True)}{spread(share)}" for name, share in found.items()
    )


CHOSEN_BY = tuple(f"test/{name}" for name in DECIDING)


def optimism(records: Sequence[Record], metric: str) -> float | None:
    """Return how much choosing the epoch on the test set adds over the last epoch, in the mean.

    None if the records do not tell, and for any metric but those by which epochs are chosen
    (design.md, section 7): of another one the chosen epoch may well be the worse.
    """
    if metric not in CHOSEN_BY:
        return None
    try:
        best = [record.metrics["best_test"][metric] for record in records]
        last = [record.metrics["last"][metric] for record in records]
    except KeyError:
        return None
    return mean(best) - mean(last) if records else None


@uncollected()
def read(
    store: Store, name: str, allow_plugins: bool = False
) -> tuple[Layout, dict[str, Record], dict[str, str]]:
    """Layout, records and failures of a sweep from the store. Raises ValueError naming the sweeps
    there are.

    A metric of a plug-in is computed by the code that the store has kept, if the user allows it;
    else PluginError is raised.
    """
    layout = read_layout(store, name)
    metric = layout.metric.rpartition("/")[2]
    if metric not in METRICS and not metrics.discover(metric):
        import_kept(store, name, allow_plugins)
    return filled(store, layout)


def filled(store: Store, layout: Layout) -> tuple[Layout, dict[str, Record], dict[str, str]]:
    """A layout, and the records and failures that the store has of its trials."""
    keys = list(dict.fromkeys(key for cell in layout.cells for _, key in cell.keys))
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
    """The layout of a sweep in the store. Raises ValueError naming the sweeps there are, or the
    file that is damaged.
    """
    file = f"sweeps/{name}/plan.json"
    try:
        return layout_from_plan(store.read(file))
    except FileNotFoundError:
        known = [entry.rstrip("/") for entry in store.list("sweeps")]
        raise ValueError(unknown("sweep", name, known, f"In {store.url}")) from None
    except StoreError as error:
        raise StoreError(
            f"{store.place(file)}: {error}; the sweep's command (pointsweep run) writes it anew"
        ) from error


def write_all(store: Store, table: Table, records: Mapping[str, Record]) -> None:
    """Write the table in every format, and the report; what its cells cost beside it, as no two
    runs take the same time.
    """
    for name, data in every_format(table).items():
        store.write(f"sweeps/{table.name}/{name}", data)
    store.write(
        f"sweeps/{table.name}/cost.json",
        (json.dumps(costs(table, records), indent=1) + "\n").encode(),
    )
    report = page(table, records, curves(store, table), gather(store, table, records))
    store.write(f"sweeps/{table.name}/report.html", report.encode())


def files_of(store: Store, name: str) -> dict[str, bytes]:
    """Return the files of a sweep that others want to see: its table in every format, report, file
    and layout.
    """
    wanted = {f"table.{form.suffix}" for form in map(load, FORMATS) if form.stored}
    wanted |= {"report.html", "sweep.yaml"}
    files = {}
    for entry in store.list(f"sweeps/{name}"):
        if entry in wanted:
            files[entry] = store.read(f"sweeps/{name}/{entry}")
    files["layout.json"] = read_layout(store, name).to_json().encode()
    return files


def every_format(table: Table) -> dict[str, bytes]:
    """Return the table's files by name: table.txt, table.md and so on."""
    files = {}
    for name in FORMATS:
        form = load(name)
        if form.stored:
            files[f"table.{form.suffix}"] = render_bytes(table, name)
    return files
