"""What two arms of a table differ in, and why a cell is as it is.

The commands: pointsweep tables NAME --diff ROW_A ROW_B, and --why ROW COLUMN.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from pointsweep.config import registry
from pointsweep.config.datasets import DatasetConfig
from pointsweep.config.validation import check_trial
from pointsweep.errors import MissingDataError, unknown
from pointsweep.reporting.cell_text import accuracy, count
from pointsweep.reporting.table import Table, TableCell
from pointsweep.results.metrics import PER_OBJECT
from pointsweep.results.record_index import trial_status
from pointsweep.results.records import Record
from pointsweep.results.working_copy import PREDICTIONS, read_folder
from pointsweep.statistics.paired_objects import (
    ModelTest,
    bootstrap,
    correctness,
    groups_of,
    model_tests,
    packed,
    same_objects,
)
from pointsweep.statistics.seeds import Difference, difference
from pointsweep.storage.base import Store
from pointsweep.utils.numbers import percent

Arms = tuple[Mapping[int, Record], Mapping[int, Record]]  # of the first and the second row, by seed
NOTHING = "—"  # a key that one of two arms has not
TRACE_LINES = 6


def diff(table: Table, records: Mapping[str, Record], first: str, second: str) -> str:
    """Configuration, sizes and results of two rows, column by column. Raises ValueError naming the
    rows there are.
    """
    rows = row_number(table, first), row_number(table, second)
    parts = [f"{first} against {second}, {table.metric} in %, protocol {table.protocol}"]
    columns = []
    for column in range(len(table.columns)):
        cells = table.cell(rows[0], column), table.cell(rows[1], column)
        one = {seed: records[key] for seed, key in cells[0].keys if key in records}
        other = {seed: records[key] for seed, key in cells[1].keys if key in records}
        columns.append((cells, (one, other), settings((one, other))))
    known = [lines for _, (one, other), lines in columns if one and other]
    common = [line for line in (known[0] if known else []) if all(line in lines for lines in known)]
    parts += [f"  {line}" for line in common] + ["  the configurations are equal"] * (
        known != [] and not any(known)
    )
    for title, (cells, found, lines) in zip(table.columns, columns, strict=True):
        own = [line for line in lines if line not in common]
        parts += [
            "",
            title,
            *(f"  {line}" for line in (*own, *_column((first, second), cells, found, table))),
        ]
    return "\n".join(parts) + "\n"


def settings(found: Arms) -> list[str]:
    """Every key in which two arms differ, "method.rank: 4 | 8"; nothing where one has no trial to
    tell.
    """
    if not all(found):
        return []
    one, other = (next(iter(arm.values())).config for arm in found)
    return [f"{key}: {here} | {there}" for key, here, there in differing(one, other)]


def row_number(table: Table, name: str) -> int:
    """The row of that name, parts joined by " / ". Raises ValueError."""
    names = [" / ".join(row) for row in table.rows]
    if name not in names:
        raise ValueError(unknown("row", name, names, "Rows"))
    return names.index(name)


def column_number(table: Table, name: str) -> int:
    """The column of that name. Raises ValueError."""
    if name not in table.columns:
        raise ValueError(unknown("column", name, table.columns, "Columns"))
    return table.columns.index(name)


def _column(
    names: tuple[str, str], cells: tuple[TableCell, TableCell], found: Arms, table: Table
) -> Iterator[str]:
    empty = [name for name, arm in zip(names, found, strict=True) if not arm]
    if empty:
        yield f"nothing to compare: {' and '.join(empty)} without a finished trial"
        return
    for kind in ("trainable", "trainable_without_head", "total"):
        sizes = [(cell.parameters or {}).get(kind) for cell in cells]
        apart = "equal" if sizes[0] == sizes[1] else f"{(sizes[0] or 0) - (sizes[1] or 0):+,}"
        yield (
            f"parameters, {kind.replace('_', ' ')}: {count(sizes[0])} | {count(sizes[1])} ({apart})"
        )
    yield f"result: {accuracy(cells[0])} | {accuracy(cells[1])}"
    values = dict(cells[0].values), dict(cells[1].values)
    if not values[0].keys() & values[1].keys():
        yield "no seed in common: no difference to be had"
        return
    yield f"difference over seeds: {over_seeds(difference(*values))}"
    if table.metric == PER_OBJECT:
        yield from over_objects(names, found, table.protocol)


def differing(
    one: Mapping[str, Any], other: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, str, str]]:
    """(key, value here, value there) of everything in which two configurations differ but the seed;
    keys are dotted.
    """
    for key in dict.fromkeys((*one, *other)):
        if not path and key == "seed":
            continue
        values = one.get(key, NOTHING), other.get(key, NOTHING)
        # Of two components the names tell; one's fields are nothing to the other.
        if all(isinstance(value, Mapping) for value in values) and values[0].get("name") == values[
            1
        ].get("name"):
            yield from differing(*values, f"{path}{key}.")
        elif values[0] != values[1]:
            yield f"{path}{key}", _shown(values[0]), _shown(values[1])


def _shown(value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    fields = ", ".join(f"{key}={field}" for key, field in value.items() if key != "name")
    return f"{value.get('name', '')}({fields})"


def over_seeds(apart: Difference) -> str:
    """ "+2.1 (-0.4 to +4.6), 3 seeds, paired t-test p = 0.069", or in words why there is no
    test.
    """
    mean = percent(apart.mean, signed=True)
    if apart.low is None or apart.high is None:
        return f"{mean}; one seed in common carries neither an interval nor a p-value"
    if apart.p is None:
        return f"{mean} with each of {apart.n} seeds; without spread there is no p-value"
    interval = f"{percent(apart.low, signed=True)} to {percent(apart.high, signed=True)}"
    return f"{mean} ({interval}), {apart.n} seeds, paired t-test {p_value(apart.p)}"


def p_value(p: float) -> str:
    """ "p = 0.069", "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def over_objects(names: tuple[str, str], found: Arms, protocol: str) -> Iterator[str]:
    """The arms object by object: the difference over drawings of objects and seeds, and what each
    seed's models gain and lose.
    """
    shared = sorted(found[0].keys() & found[1].keys())
    pairs = [(found[0][seed], found[1][seed]) for seed in shared]
    if any(correctness(record, protocol) is None for pair in pairs for record in pair):
        yield (
            "object by object: these trials are older than the record of it, and their data are not"
            " at hand"
        )
        return
    if not all(same_objects(*pair) for pair in pairs):
        yield "object by object: the arms were tested on other clouds"
        return
    if all(
        same_objects(pairs[0][0], one)
        and one.config.get("dataset") == pairs[0][0].config.get("dataset")
        for one, _ in pairs
    ):
        one_right = {seed: _right(found[0][seed], protocol) for seed in shared}
        other_right = {seed: _right(found[1][seed], protocol) for seed in shared}
        groups = groups_of(pairs[0][0])
        drawn = bootstrap(one_right, other_right, groups=groups)
        over = (
            "objects and seeds"
            if drawn.seeds > 1
            else "objects alone, of one seed: it knows nothing of other seeds"
        )
        interval = f"{percent(drawn.low, signed=True)} to {percent(drawn.high, signed=True)}"
        yield (
            f"bootstrap over {over}: {percent(drawn.mean, signed=True)} ({interval}),"
            f" {drawn.objects:,} objects{of_clouds(groups)}"
        )
    else:
        yield (
            "bootstrap over objects and seeds: not to be had, every seed has test clouds of its own"
        )
    for test in model_tests(names, dict(zip(names, found, strict=True)), protocol):
        yield of_models(test)


def recovered(store: Store, records: Mapping[str, Record]) -> dict[str, Record]:
    """The records, those older than `correct` completed from their predictions where the data set
    is at hand, by digest.

    What does not give the recorded accuracy to the last bit is left as it is.
    """
    return {
        key: record if record.correct else _completed(store, record)
        for key, record in records.items()
    }


def _completed(store: Store, record: Record) -> Record:
    config, _ = check_trial(dict(record.config))
    labels = _labels(config.dataset, str(record.dataset["digest"])) if config is not None else None
    if labels is None:
        return record
    folder = read_folder(store, record.key, PREDICTIONS)
    if not (folder.path / PREDICTIONS).is_file():
        return record
    right = {
        name: values == labels
        for name, values in folder.predictions().items()
        if values.shape == labels.shape
    }
    correct = {
        name: packed(bits)
        for name, bits in right.items()
        if _accuracy(bits) == record.metrics[name][PER_OBJECT]
    }
    return replace(record, correct=correct)


def _accuracy(right: np.ndarray) -> float:
    return int(right.sum()) / len(right)


@functools.lru_cache(maxsize=32)
def _labels(config: DatasetConfig, digest: str) -> np.ndarray | None:
    """The test classes (n,) of the data set with this digest; None where it is not at hand. Loads
    torch, as every data set does.
    """
    try:
        dataset: Any = registry.load("datasets", config.name)(config)
    except MissingDataError:
        return None
    return np.asarray(dataset.test.labels) if dataset.digest == digest else None


def _right(record: Record, protocol: str) -> np.ndarray:
    found = correctness(record, protocol)
    assert found is not None
    return found


def of_models(test: ModelTest) -> str:
    """ "seed 0: 41 objects gained, 12 lost; exact McNemar, mid-p: p < 0.001, by Holm p = 0.002"."""
    unit = "clouds" if test.objects else "objects"
    head = f"seed {test.seed}: {test.gained} {unit} gained, {test.lost} lost"
    if test.p is None or test.adjusted is None:
        return f"{head}; so few carry no p-value"
    name = (
        f"exact test of the signs of {test.objects:,} objects" if test.objects else "exact McNemar"
    )
    return (
        f"{head}; {name}, mid-p: {p_value(test.p)}, by Holm over the seeds {p_value(test.adjusted)}"
    )


def of_clouds(groups: np.ndarray | None) -> str:
    """ " of 2,882 clouds", where objects have several."""
    return "" if groups is None else f" of {len(groups):,} clouds"


def why(table: Table, store: Store, row: str, column: str) -> str:
    """Return what is known of a cell: why it is empty, failed or incomplete, seed by seed. Raises
    ValueError for names that are none.
    """
    cell = table.cell(row_number(table, row), column_number(table, column))
    head = f"{table.place(cell)}: {accuracy(cell)}, {cell.status}"
    if cell.excluded is not None:
        return f"{head}\nnot run: {cell.excluded}\n"
    if not cell.keys:
        return f"{head}\nno trials: the sweep was cut down (--only) or has none here\n"
    lines = [
        line
        for seed, key in cell.keys
        for line in _seed(store, seed, key, dict(cell.values).get(seed))
    ]
    notes = [f"marked: {mark}" for mark in cell.marks]
    return "\n".join([head, *lines, *notes]) + "\n"


def _seed(store: Store, seed: int, key: str, value: float | None) -> Iterator[str]:
    """Yield what became of one trial."""
    folder = read_folder(store, key)
    name, status = f"seed {seed} ({key})", trial_status(store, key)
    if value is not None:
        yield f"{name}: finished, {percent(value)}"
    elif status == "damaged":
        yield (
            f"{name}: its record cannot be believed; the sweep's command, run again, sets it aside"
            " and trains the trial again"
        )
    elif status == "failed":
        events = folder.events()
        yield (
            f"{name}: failed in attempt {folder.attempts()} after {len(folder.epochs())} epochs:"
            f" {events[-1]['reason']}"
        )
        yield from (
            f"    {line}"
            for line in str(events[-1].get("trace", "")).rstrip().splitlines()[-TRACE_LINES:]
        )
        yield (
            f"    whole: {folder.path / 'history.jsonl'}; the sweep's command, run again, tries it"
            " anew"
        )
    elif status == "resumable":
        done = len(folder.epochs())
        yield (
            f"{name}: not finished, {done} epochs kept; it runs now or was cut off; the sweep's"
            " command goes on from there"
        )
    elif folder.events():
        yield (
            f"{name}: begun {folder.attempts()} times, cut off before an epoch was kept; the"
            " sweep's command begins anew"
        )
    else:
        yield f"{name}: never begun; the sweep's command runs it"
