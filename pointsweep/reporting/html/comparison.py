"""Parts of the report in which a reader chooses: two arms to compare (settings, objects gained and
lost, clouds), one arm's confusions.

The page carries the data as JSON; report.js draws them. Python only packs: what is gained or
confused is counted from these bytes.
"""

from __future__ import annotations

import base64
import glob
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pointsweep.reporting.best_cells import ordered
from pointsweep.reporting.html.evidence import Evidence, Truth
from pointsweep.reporting.html.sections import Section, flat, row_name
from pointsweep.reporting.table import Table, TableCell
from pointsweep.results.records import Record, class_type, records_by_seed

PREDICTION_BYTES = 600_000  # of all trials in the page; beyond it, fewer seeds an arm
# of all clouds in the page; beyond it, those that most arms disagree on
CLOUD_BYTES = 450_000
CLOUD_POINTS = 224  # drawn of a cloud
MOST_ARMS = 300  # with their settings
LACKING = (
    "These trials kept no true classes beside their predictions (older ones did not), and this"
    " machine has not opened their data set, so neither gains and losses nor confusions can be"
    " counted."
)


def payload(
    table: Table, records: Mapping[str, Record], evidence: Evidence
) -> dict[str, Any]:
    """Everything report.js needs, as plain values. Arms are the cells with at least one finished
    trial.
    """
    cells, configs = _finished_arms(table, records)
    settings = _differing(configs)
    # Trials of one data set share one truth: each stands in the page once.
    truths: list[Truth] = []
    index_of: dict[int, int] = {}

    for truth in evidence.truths.values():
        if id(truth) not in index_of:
            index_of[id(truth)] = len(truths)
            truths.append(truth)

    most_seeds = _most_seeds(cells, evidence)
    class_dtype = _class_dtype(evidence)
    carried = _carried_cells(table, cells, evidence)
    arms = []

    for cell, config in zip(cells, configs, strict=True):
        runs = []
        if (cell.row, cell.column) in carried:
            runs = [(seed, key) for seed, key in cell.keys if key in evidence.truths]

        predictions = []
        truth_index = None
        for _, key in runs[:most_seeds]:
            values = evidence.predictions[key].astype(class_dtype)
            predictions.append(_base64(values))
            if truth_index is None:
                truth_index = index_of[id(evidence.truths[key])]

        arms.append(
            {
                "name": table.cell_name(cell),
                "row": cell.row,
                "column": cell.column,
                "mean": cell.mean,
                "truth": truth_index,
                "seeds": [seed for seed, _ in runs[:most_seeds]],
                "predictions": predictions,
                "config": [_value_in(config, key) for key in settings],
            }
        )

    packed_truths = []
    for truth in truths:
        packed_truths.append(_truth(truth, evidence, len(truths), class_dtype))

    first, second = _first_pair(table, cells)
    return {
        "metric": table.metric,
        "arms": arms,
        "settings": settings,
        "first": first,
        "second": second,
        "truths": packed_truths,
        "whole": len(carried) == len(cells),
        "class_bytes": np.dtype(class_dtype).itemsize,
    }


def _finished_arms(
    table: Table, records: Mapping[str, Record]
) -> tuple[list[TableCell], list[dict[str, Any]]]:
    """Return the cells with a finished trial, and the flat configuration of the first of each."""
    cells, configs = [], []
    for cell in table.cells:
        finished = records_by_seed(cell.keys, records)
        if finished:
            cells.append(cell)
            configs.append(flat(next(iter(finished.values())).config))

    return cells, configs


def _value_in(config: Mapping[str, Any], key: str) -> str | None:
    if key not in config:
        return None

    return shown(config[key])


def _differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings in which two arms differ, in their order; the seed is no setting of an arm."""
    # A dict in place of a set keeps the order.
    keys: dict[str, None] = {}
    for config in configs:
        keys.update(dict.fromkeys(config))

    keys.pop("seed", None)

    differing = []
    for key in keys:
        # KeyError stands for a missing key: no setting has it as its value.
        values = {repr(config.get(key, KeyError)) for config in configs}
        if len(values) > 1:
            differing.append(key)

    return differing


def shown(value: object) -> str:
    """A setting's value as YAML writes it."""
    if isinstance(value, str):
        return value

    return json.dumps(value, ensure_ascii=False)


def _most_seeds(cells: Sequence[TableCell], evidence: Evidence) -> int:
    """Return of how many seeds of an arm the page has room for the predictions."""
    most_seeds = max((len(cell.keys) for cell in cells), default=1)
    size = sum(map(len, evidence.predictions.values()))

    if size <= PREDICTION_BYTES:
        return most_seeds

    return max(1, most_seeds * PREDICTION_BYTES // size)


def _carried_cells(
    table: Table, cells: Sequence[TableCell], evidence: Evidence
) -> set[tuple[int, int]]:
    """Return the cells whose predictions the page carries, one seed each at least: those of the
    best means where the page has no room for all.
    """
    size = max(map(len, evidence.predictions.values()), default=1)
    most = max(2, PREDICTION_BYTES // size)

    return {(cell.row, cell.column) for cell in ordered(table, cells)[:most]}


def _first_pair(table: Table, cells: Sequence[TableCell]) -> tuple[int, int]:
    """The best arm, and the one after it in its column (else any other): what the page shows before
    anybody chooses.
    """
    ranked = sorted(range(len(cells)), key=lambda i: -(cells[i].mean or 0.0))
    if len(ranked) < 2:
        return (0, 0)

    best, *others = ranked
    for other in others:
        if cells[other].column == cells[best].column:
            return best, other

    return best, others[0]


def _class_dtype(evidence: Evidence) -> str:
    """The type in which the page holds the numbers of classes: those of all trials alike."""
    classes = list(evidence.predictions.values())
    classes += [truth.labels for truth in evidence.truths.values()]
    largest = 0

    for numbers in classes:
        if len(numbers):
            largest = max(largest, int(numbers.max()))

    return np.dtype(class_type(largest + 1)).newbyteorder("<").str


def _truth(
    truth: Truth, evidence: Evidence, num_truths: int, class_dtype: str
) -> dict[str, Any]:
    predictions = []
    for key in sorted(evidence.truths):
        if evidence.truths[key] is truth:
            predictions.append(evidence.predictions[key])

    largest = max(int(values.max()) for values in [truth.labels, *predictions])
    names = list(truth.class_names)
    for number in range(len(names), largest + 1):
        names.append(f"class {number}")

    clouds = None
    if truth.clouds is not None:
        correct = np.stack(predictions) == truth.labels  # (trials, n)
        clouds = _clouds(truth, correct.mean(axis=0), CLOUD_BYTES // num_truths)

    return {
        "digest": truth.digest,
        "labels": _base64(truth.labels.astype(class_dtype)),
        "classes": names,
        "clouds": clouds,
    }


def _clouds(truth: Truth, correct: np.ndarray, budget: int) -> dict[str, Any]:
    """Return as many test clouds as the budget (bytes of base64) holds, those first on which the
    trials disagree most, as int8. `correct` (n,) is the share of trials that are right.
    """
    assert truth.clouds is not None
    num_points = min(CLOUD_POINTS, truth.clouds.shape[1])
    # A point has three bytes, which base64 writes in four letters.
    num_objects = budget // (4 * num_points)
    disagreement = correct * (correct - 1)  # lowest where half of the trials are right
    objects = np.sort(np.argsort(disagreement, kind="stable")[:num_objects])
    points = np.random.default_rng(0).permutation(truth.clouds.shape[1])[:num_points]
    # (objects, points, 3)
    clouds = np.array(truth.clouds[objects][:, points], dtype=np.float32)

    highest = clouds.max(axis=1, keepdims=True)
    lowest = clouds.min(axis=1, keepdims=True)
    clouds -= (highest + lowest) / 2
    radius = np.linalg.norm(clouds, axis=2).max(axis=1)
    clouds /= np.maximum(radius, 1e-9)[:, None, None]

    return {
        "objects": objects.tolist(),
        "points": num_points,
        "bytes": _base64(np.rint(127 * clouds).astype(np.int8)),
    }


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def comparison(data: Mapping[str, Any]) -> Section | None:
    """Return the section that report.js fills: two arms with what differs, gains and losses by
    class, and the objects; None of one arm.
    """
    if len(data["arms"]) < 2:
        return None

    lead = (
        "What two arms were given differently, and the test objects that the first gets right where"
        " the second does not."
    )

    values = {"data": data, "lacking": lacking(data), "none": LACKING}
    return Section("compare", "Two arms compared", lead, "comparison.html", values)


def lacking(data: Mapping[str, Any]) -> str:
    """Return which arms have no predictions with true classes, if others have."""
    names = [arm["name"] for arm in data["arms"] if arm["truth"] is None]
    if not names:
        return ""

    if not data["whole"]:
        number = len(data["arms"]) - len(names)
        return f"The page carries the predictions of the {number} arms with the best means."

    return f"Without predictions, or without the true classes of theirs: {'; '.join(names)}."


def confusions(data: Mapping[str, Any]) -> Section | None:
    """Return the section of one arm's confusion matrix, which report.js draws."""
    if not data["truths"]:
        return None

    lead = (
        "Rows are the true classes, columns what was predicted, over all seeds of the arm; colours"
        " show shares of a row."
    )
    return Section("confusions", "Confusions", lead, "confusions.html", {"data": data})


def configs(table: Table, records: Mapping[str, Record]) -> Section | None:
    """Return the section of the resolved settings: those of all arms once, then of every arm what
    is its own, with the command that runs its cell.
    """
    cells, flat_configs = _finished_arms(table, records)
    if not cells:
        return None

    differing = set(_differing(flat_configs))
    common = {}
    for key, value in flat_configs[0].items():
        if key not in differing and key != "seed":
            common[key] = shown(value)

    arms = []
    for cell, config in zip(cells, flat_configs, strict=True):
        settings = common
        if len(cells) > 1:
            settings = {}
            for key, value in config.items():
                if key in differing:
                    settings[key] = shown(value)

        arms.append((table.cell_name(cell), settings, commands(table, cell).strip()))

    lead = (
        "As resolved, defaults included: first the settings that all arms share, then what each has"
        " of its own and its command."
    )
    if len(arms) > MOST_ARMS:
        lead += f" Of {len(arms):,} arms the first {MOST_ARMS}; every cell of the table has its"
        lead += " command."

    values = {"common": common if len(cells) > 1 else None, "arms": arms[:MOST_ARMS]}
    return Section("configs", "Settings and commands", lead, "configs.html", values)


def replay(table: Table, cell: TableCell) -> str:
    """The command that trains a cell's finished trials again, beside the store, and says whether
    the numbers come out the same.
    """
    names = (table.name, row_name(table, cell), table.columns[cell.column])
    return f"pointsweep replay {' '.join(map(shlex.quote, names))}"


def commands(table: Table, cell: TableCell) -> str:
    """Return what can be done with a cell: train its finished trials again and compare, run those
    that are not finished.
    """
    lines = ""
    if cell.values:
        lines = f"{replay(table, cell)}\n"

    if cell.n < cell.expected or not cell.values:
        lines += rerun(table, cell)

    return lines


def rerun(table: Table, cell: TableCell) -> str:
    """The command that runs one cell; FILE stands for the sweep's file, which the table does not
    know.
    """
    row = shlex.quote("row=" + glob.escape(row_name(table, cell)))
    column = shlex.quote("column=" + glob.escape(table.columns[cell.column]))

    return f"pointsweep run FILE --only {row} --only {column}"
