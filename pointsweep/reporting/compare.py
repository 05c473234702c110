"""Comparison of two arms of a table, and the reasons why a cell is as it is.

The commands: pointsweep tables NAME --diff ROW_A ROW_B, and --why ROW COLUMN.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
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
from pointsweep.results.records import Record, records_by_seed
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

# of the first and the second row, by seed
Arms = tuple[Mapping[int, Record], Mapping[int, Record]]
NOTHING = "—"  # a key that one of two arms has not
TRACE_LINES = 6


def diff(table: Table, records: Mapping[str, Record], first: str, second: str) -> str:
    """Configuration, sizes and results of two rows, column by column. Raises ValueError naming the
    rows there are.
    """
    first_row = row_number(table, first)
    second_row = row_number(table, second)
    cells_of = []
    arms_of = []
    settings_of = []
    comparable = []  # the settings of columns in which both rows have a trial

    for column in range(len(table.columns)):
        cells = table.cell(first_row, column), table.cell(second_row, column)
        arms = (
            records_by_seed(cells[0].keys, records),
            records_by_seed(cells[1].keys, records),
        )

        column_settings = settings(arms)

        cells_of.append(cells)
        arms_of.append(arms)
        settings_of.append(column_settings)

        if all(arms):
            comparable.append(column_settings)

    common = _common_lines(comparable)
    lines = [
        f"{first} against {second}, {table.metric} in %, protocol {table.protocol}"
    ]
    lines += [f"  {line}" for line in common]

    if comparable and not any(comparable):
        lines.append("  the configurations are equal")

    for column, title in enumerate(table.columns):
        own = [line for line in settings_of[column] if line not in common]
        results = _column((first, second), cells_of[column], arms_of[column], table)
        lines += ["", title]
        lines += [f"  {line}" for line in [*own, *results]]

    return "\n".join(lines) + "\n"


def _common_lines(groups: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of the first group that stand in every group."""
    if not groups:
        return []

    first, *others = groups
    common = list(first)
    for group in others:
        common = [line for line in common if line in group]

    return common


def settings(arms: Arms) -> list[str]:
    """Every key in which two arms differ, "method.rank: 4 | 8"; nothing where one has no trial to
    tell.
    """
    if not all(arms):
        return []

    # The trials of an arm differ in their seeds alone, so any of them has its configuration.
    first = next(iter(arms[0].values())).config
    second = next(iter(arms[1].values())).config
    return [f"{key}: {one} | {other}" for key, one, other in differing(first, second)]


def row_number(table: Table, name: str) -> int:
    """The row of that name, parts joined by " / ". Raises ValueError."""
    names = table.row_names()
    if name not in names:
        raise ValueError(unknown("row", name, names, "Rows"))

    return names.index(name)


def column_number(table: Table, name: str) -> int:
    """The column of that name. Raises ValueError."""
    if name not in table.columns:
        raise ValueError(unknown("column", name, table.columns, "Columns"))

    return table.columns.index(name)


def _column(
    names: tuple[str, str], cells: tuple[TableCell, TableCell], arms: Arms, table: Table
) -> Iterator[str]:
    empty = []
    for name, arm in zip(names, arms, strict=True):
        if not arm:
            empty.append(name)

    if empty:
        yield f"nothing to compare: {' and '.join(empty)} without a finished trial"
        return

    counts = cells[0].parameters or {}, cells[1].parameters or {}
    for kind in ("trainable", "trainable_without_head", "total"):
        first, second = counts[0].get(kind), counts[1].get(kind)
        excess = "equal"
        if first != second:
            excess = f"{(first or 0) - (second or 0):+,}"

        title = kind.replace("_", " ")
        yield f"parameters, {title}: {count(first)} | {count(second)} ({excess})"

    yield f"result: {accuracy(cells[0])} | {accuracy(cells[1])}"
    values = dict(cells[0].values), dict(cells[1].values)
    if not values[0].keys() & values[1].keys():
        yield "no seed in common: no difference to be had"
        return

    yield f"difference over seeds: {over_seeds(difference(*values))}"
    if table.metric == PER_OBJECT:
        yield from over_objects(names, arms, table.protocol)


def differing(
    one: Mapping[str, Any], other: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, str, str]]:
    """(key, value of one, value of the other) of everything in which two configurations differ but
    the seed; keys are dotted.
    """
    for key in dict.fromkeys((*one, *other)):
        if not path and key == "seed":
            continue

        first, second = one.get(key, NOTHING), other.get(key, NOTHING)
        if _same_component(first, second):
            yield from differing(first, second, f"{path}{key}.")
        elif first != second:
            yield f"{path}{key}", _shown(first), _shown(second)


def _same_component(one: Any, other: Any) -> bool:
    """Return whether both are sections of one name: fields of two components are not comparable."""
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return False

    return bool(one.get("name") == other.get("name"))


def _shown(value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value)

    fields = [f"{key}={field}" for key, field in value.items() if key != "name"]
    return f"{value.get('name', '')}({', '.join(fields)})"


def over_seeds(paired: Difference) -> str:
    """ "+2.1 (-0.4 to +4.6), 3 seeds, paired t-test p = 0.069", or in words why there is no
    test.
    """
    mean = percent(paired.mean, signed=True)
    if paired.low is None or paired.high is None:
        return f"{mean}; one seed in common carries neither an interval nor a p-value"
    if paired.p is None:
        return (
            f"{mean} with each of {paired.n} seeds; without spread there is no p-value"
        )

    low, high = percent(paired.low, signed=True), percent(paired.high, signed=True)
    p = p_value(paired.p)
    return f"{mean} ({low} to {high}), {paired.n} seeds, paired t-test {p}"


def p_value(p: float) -> str:
    """ "p = 0.069", "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def over_objects(names: tuple[str, str], arms: Arms, protocol: str) -> Iterator[str]:
    """The arms object by object: the difference over drawings of objects and seeds, and what each
    seed's models gain and lose.
    """
    seeds = sorted(arms[0].keys() & arms[1].keys())
    firsts = [arms[0][seed] for seed in seeds]
    seconds = [arms[1][seed] for seed in seeds]

    if any(correctness(record, protocol) is None for record in [*firsts, *seconds]):
        yield (
            "object by object: these trials are older than the record of it, and their data are not"
            " at hand"
        )
        return

    if not all(map(same_objects, firsts, seconds)):
        yield "object by object: the arms were tested on other clouds"
        return

    if _share_test_clouds(firsts):
        yield _bootstrap_sentence(arms, seeds, protocol)
    else:
        yield (
            "bootstrap over objects and seeds: not to be had, every seed has test clouds of its own"
        )

    for test in model_tests(names, dict(zip(names, arms, strict=True)), protocol):
        yield of_models(test)


def _share_test_clouds(records: Sequence[Record]) -> bool:
    """Return whether the trials of all seeds were tested on the same clouds."""
    first = records[0]
    for record in records:
        same_config = record.config.get("dataset") == first.config.get("dataset")
        if not same_config or not same_objects(first, record):
            return False

    return True


def _bootstrap_sentence(arms: Arms, seeds: Sequence[int], protocol: str) -> str:
    first_correct = {seed: _correct(arms[0][seed], protocol) for seed in seeds}
    second_correct = {seed: _correct(arms[1][seed], protocol) for seed in seeds}
    groups = groups_of(arms[0][seeds[0]])
    drawn = bootstrap(first_correct, second_correct, groups=groups)

    over = "objects and seeds"

    if drawn.seeds == 1:
        over = "objects alone, of one seed: it knows nothing of other seeds"

    mean = percent(drawn.mean, signed=True)
    low, high = percent(drawn.low, signed=True), percent(drawn.high, signed=True)
    return (
        f"bootstrap over {over}: {mean} ({low} to {high}),"
        f" {drawn.objects:,} objects{of_clouds(groups)}"
    )


def recovered(store: Store, records: Mapping[str, Record]) -> dict[str, Record]:
    """The records, those older than `correct` completed from their predictions where the data set
    is at hand, by digest.

    What does not give the recorded accuracy to the last bit is left as it is.
    """
    completed = {}
    for key, record in records.items():
        completed[key] = record if record.correct else _completed(store, record)

    return completed


def _completed(store: Store, record: Record) -> Record:
    config, _ = check_trial(dict(record.config))
    if config is None:
        return record

    labels = _labels(config.dataset, str(record.dataset["digest"]))
    if labels is None:
        return record

    folder = read_folder(store, record.key, PREDICTIONS)
    if not (folder.path / PREDICTIONS).is_file():
        return record

    correct = {}
    for protocol, predicted in folder.predictions().items():
        if predicted.shape != labels.shape:
            continue

        is_correct = predicted == labels
        if _accuracy(is_correct) == record.metrics[protocol][PER_OBJECT]:
            correct[protocol] = packed(is_correct)

    return replace(record, correct=correct)


def _accuracy(correct: np.ndarray) -> float:
    return int(correct.sum()) / len(correct)


@functools.lru_cache(maxsize=32)
def _labels(config: DatasetConfig, digest: str) -> np.ndarray | None:
    """The test classes (n,) of the data set with this digest; None where it is not at hand. Loads
    torch, as every data set does.
    """
    try:
        dataset: Any = registry.load("datasets", config.name)(config)
    except MissingDataError:
        return None

    if dataset.digest == digest:
        return np.asarray(dataset.test.labels)

    return None


def _correct(record: Record, protocol: str) -> np.ndarray:
    correct = correctness(record, protocol)
    assert correct is not None
    return correct


def of_models(test: ModelTest) -> str:
    """ "seed 0: 41 objects gained, 12 lost; exact McNemar, mid-p: p < 0.001, by Holm p = 0.002"."""
    unit = "clouds" if test.objects else "objects"
    head = f"seed {test.seed}: {test.gained} {unit} gained, {test.lost} lost"

    if test.p is None or test.adjusted is None:
        return f"{head}; so few carry no p-value"

    name = "exact McNemar"
    if test.objects:
        name = f"exact test of the signs of {test.objects:,} objects"

    adjusted = p_value(test.adjusted)
    return (
        f"{head}; {name}, mid-p: {p_value(test.p)}, by Holm over the seeds {adjusted}"
    )


def of_clouds(groups: np.ndarray | None) -> str:
    """ " of 2,882 clouds", where objects have several."""
    if groups is None:
        return ""

    return f" of {len(groups):,} clouds"


def why(table: Table, store: Store, row: str, column: str) -> str:
    """Return what is known of a cell: why it is empty, failed or incomplete, seed by seed. Raises
    ValueError for names that are none.
    """
    cell = table.cell(row_number(table, row), column_number(table, column))
    head = f"{table.cell_name(cell)}: {accuracy(cell)}, {cell.status}"

    if cell.excluded is not None:
        return f"{head}\nnot run: {cell.excluded}\n"
    if not cell.keys:
        return f"{head}\nno trials: the sweep was cut down (--only) or has none here\n"

    values = dict(cell.values)
    lines = [head]
    for seed, key in cell.keys:
        lines += _seed(store, seed, key, values.get(seed))

    lines += [f"marked: {mark}" for mark in cell.marks]
    return "\n".join(lines) + "\n"


def _seed(store: Store, seed: int, key: str, value: float | None) -> Iterator[str]:
    """Yield what became of one trial."""
    name = f"seed {seed} ({key})"
    if value is not None:
        yield f"{name}: finished, {percent(value)}"
        return

    folder = read_folder(store, key)
    events = folder.events()
    status = trial_status(store, key)

    if status == "damaged":
        yield (
            f"{name}: its record cannot be believed; the sweep's command, run again, sets it aside"
            " and trains the trial again"
        )
    elif status == "failed":
        yield (
            f"{name}: failed in attempt {folder.attempts()} after {len(folder.epochs())} epochs:"
            f" {events[-1]['reason']}"
        )

        trace = str(events[-1].get("trace", "")).rstrip().splitlines()
        for line in trace[-TRACE_LINES:]:
            yield f"    {line}"

        yield (
            f"    whole: {folder.path / 'history.jsonl'}; the sweep's command, run again, tries it"
            " anew"
        )
    elif status == "resumable":
        yield (
            f"{name}: not finished, {len(folder.epochs())} epochs kept; it runs now or was cut off;"
            " the sweep's command goes on from there"
        )
    elif events:
        yield (
            f"{name}: begun {folder.attempts()} times, cut off before an epoch was kept; the"
            " sweep's command begins anew"
        )
    else:
        yield f"{name}: never begun; the sweep's command runs it"
