"""What the report lets a reader choose: two arms to compare (settings, objects gained and lost,
clouds), one arm's confusions.

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
from pointsweep.results.records import Record, class_type

PREDICTION_BYTES = 600_000  # of all trials in the page; beyond it, fewer seeds an arm
CLOUD_BYTES = 450_000  # of all clouds in the page; beyond it, those that most arms disagree on
CLOUD_POINTS = 224  # drawn of a cloud
MOST_ARMS = 300  # with their settings
LACKING = (
    "These trials kept no true classes beside their predictions (older ones did not), and this"
    " machine has not opened their data set, so neither gains and losses nor confusions can be"
    " counted."
)


def payload(table: Table, records: Mapping[str, Record], evidence: Evidence) -> dict[str, Any]:
    """Everything report.js needs, as plain values. Arms are the cells with at least one finished
    trial.
    """
    cells = [cell for cell in table.cells if any(key in records for _, key in cell.keys)]
    configs = [
        next(flat(records[key].config) for _, key in cell.keys if key in records) for cell in cells
    ]
    differing = _differing(configs)
    truths = {id(truth): truth for truth in evidence.truths.values()}
    order = {identity: index for index, identity in enumerate(truths)}
    seeds = _seeds_kept(cells, evidence)
    number = _type_of_classes(evidence)
    carried = _arms_kept(table, cells, evidence)
    arms = []
    for cell, config in zip(cells, configs, strict=True):
        runs = [(seed, key) for seed, key in cell.keys if key in evidence.truths][:seeds]
        if (cell.row, cell.column) not in carried:
            runs = []
        chosen = order[id(evidence.truths[runs[0][1]])] if runs else None
        arms.append({
            "name": table.place(cell), "row": cell.row, "column": cell.column, "mean": cell.mean,
            "truth": chosen,
            "seeds": [seed for seed, _ in runs],
            "predictions": [_packed(evidence.predictions[key].astype(number)) for _, key in runs],
            "config": [shown(config[key]) if key in config else None for key in differing],
        })  # fmt: skip
    first, second = _first_pair(table, cells)
    return {
        "metric": table.metric, "arms": arms, "settings": differing, "first": first,
        "second": second,
        "truths": [_truth(truth, evidence, len(truths), number) for truth in truths.values()],
        "whole": len(carried) == len(cells), "class_bytes": np.dtype(number).itemsize,
    }  # fmt: skip


def _differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings in which two arms differ, in their order; the seed is no setting of an arm."""
    keys = list(dict.fromkeys(key for config in configs for key in config if key != "seed"))
    return [key for key in keys if len({repr(config.get(key, KeyError)) for config in configs}) > 1]


def shown(value: object) -> str:
    """A setting's value as YAML writes it."""
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value


def _seeds_kept(cells: Sequence[TableCell], evidence: Evidence) -> int:
    most = max((len(cell.keys) for cell in cells), default=1)
    size = sum(len(values) for values in evidence.predictions.values()) or 1
    return most if size <= PREDICTION_BYTES else max(1, most * PREDICTION_BYTES // size)


def _arms_kept(
    table: Table, cells: Sequence[TableCell], evidence: Evidence
) -> set[tuple[int, int]]:
    """Return the cells whose predictions the page carries, one seed each at least: those of the
    best means where the page has no room for all.
    """
    size = max((len(values) for values in evidence.predictions.values()), default=1)
    most = max(2, PREDICTION_BYTES // size)
    return {(cell.row, cell.column) for cell in ordered(table, cells)[:most]}


def _first_pair(table: Table, cells: Sequence[TableCell]) -> tuple[int, int]:
    """The best arm, and the one after it in its column (else any other): what the page shows before
    anybody chooses.
    """
    ranked = sorted(range(len(cells)), key=lambda i: -(cells[i].mean or 0.0))
    if len(ranked) < 2:
        return (0, 0)
    best = ranked[0]
    return best, next((i for i in ranked[1:] if cells[i].column == cells[best].column), ranked[1])


def _type_of_classes(evidence: Evidence) -> str:
    """The type in which the page holds the numbers of classes: those of all trials alike."""
    values = [*evidence.predictions.values(), *(truth.labels for truth in evidence.truths.values())]
    largest = max((int(numbers.max()) for numbers in values if len(numbers)), default=0)
    return np.dtype(class_type(largest + 1)).newbyteorder("<").str


def _truth(truth: Truth, evidence: Evidence, among: int, number: str) -> dict[str, Any]:
    trials = [key for key, one in evidence.truths.items() if one is truth]
    # (trials, n)
    right = np.stack([evidence.predictions[key] == truth.labels for key in sorted(trials)])
    most = max(int(truth.labels.max()), *(int(evidence.predictions[key].max()) for key in trials))
    names = [
        *truth.class_names,
        *(f"class {number}" for number in range(len(truth.class_names), most + 1)),
    ]
    return {
        "digest": truth.digest, "labels": _packed(truth.labels.astype(number)), "classes": names,
        "clouds": _clouds(truth, right.mean(axis=0),
        CLOUD_BYTES // among) if truth.clouds is not None else None,
    }  # fmt: skip


def _clouds(truth: Truth, right: np.ndarray, budget: int) -> dict[str, Any]:
    """Return as many test clouds as the budget (bytes of base64) holds, those first on which the
    trials disagree most, as int8.
    """
    assert truth.clouds is not None
    points = min(CLOUD_POINTS, truth.clouds.shape[1])
    most = budget // (4 * points)
    objects = np.sort(np.argsort(right * (right - 1), kind="stable")[:most])
    chosen = np.random.default_rng(0).permutation(truth.clouds.shape[1])[:points]
    clouds = np.array(truth.clouds[objects][:, chosen], dtype=np.float32)  # (objects, points, 3)
    clouds -= (clouds.max(axis=1, keepdims=True) + clouds.min(axis=1, keepdims=True)) / 2
    clouds /= np.maximum(np.linalg.norm(clouds, axis=2).max(axis=1), 1e-9)[:, None, None]
    return {
        "objects": objects.tolist(),
        "points": points,
        "bytes": _packed(np.rint(127 * clouds).astype(np.int8)),
    }


def _packed(values: np.ndarray) -> str:
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
    found = [
        (cell, done[0])
        for cell in table.cells
        if (done := [records[key] for _, key in cell.keys if key in records])
    ]
    if not found:
        return None
    flats = [flat(record.config) for _, record in found]
    differing = set(_differing(flats))
    common = {
        key: shown(value)
        for key, value in flats[0].items()
        if key not in differing and key != "seed"
    }
    arms = []
    for (cell, _), config in zip(found, flats, strict=True):
        own = {key: shown(value) for key, value in config.items() if key in differing}
        settings = own if len(found) > 1 else common
        arms.append((table.place(cell), settings, commands(table, cell).strip()))
    lead = (
        "As resolved, defaults included: first the settings that all arms share, then what each has"
        " of its own and its command."
    )
    if len(arms) > MOST_ARMS:
        lead += f" Of {len(arms):,} arms the first {MOST_ARMS}; every cell of the table has its"
        lead += " command."
    values = {"common": common if len(found) > 1 else None, "arms": arms[:MOST_ARMS]}
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
    again = f"{replay(table, cell)}\n" if cell.values else ""
    return again + (rerun(table, cell) if cell.n < cell.expected or not cell.values else "")


def rerun(table: Table, cell: TableCell) -> str:
    """The command that runs one cell; FILE stands for the sweep's file, which the table does not
    know.
    """
    row = shlex.quote("row=" + glob.escape(row_name(table, cell)))
    column = shlex.quote("column=" + glob.escape(table.columns[cell.column]))
    return f"pointsweep run FILE --only {row} --only {column}"
