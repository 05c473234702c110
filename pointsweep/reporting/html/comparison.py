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
from html import escape
from typing import Any

import numpy as np

from pointsweep.reporting.html.evidence import Evidence, Truth
from pointsweep.reporting.html.sections import flat, row_name, section
from pointsweep.reporting.table import Table, TableCell
from pointsweep.results.records import Record, class_type

PREDICTION_BYTES = 600_000  # of all trials in the page; beyond it, fewer seeds an arm
CLOUD_BYTES = 450_000  # of all clouds in the page; beyond it, those that most arms disagree on
CLOUD_POINTS = 224  # drawn of a cloud
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
    arms = []
    for cell, config in zip(cells, configs, strict=True):
        runs = [(seed, key) for seed, key in cell.keys if key in evidence.truths][:seeds]
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
        "class_bytes": np.dtype(number).itemsize,
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


def as_script(data: Mapping[str, Any]) -> str:
    """The data as an element that no text inside can end."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return f"<script type='application/json' id='data'>{text}</script>"


def comparison(table: Table, data: Mapping[str, Any]) -> str:
    """The places that report.js fills: two arms with what differs, gains and losses by class, and
    the objects.
    """
    if len(data["arms"]) < 2:
        return ""
    options = [escape(arm["name"]) for arm in data["arms"]]
    selects = "".join(
        f"<label>{word} <select id='{name}'>{_options(options, chosen)}</select></label>"
        for word, name, chosen in (
            ("Arm", "first", data["first"]),
            ("against", "second", data["second"]),
        )
    )
    flips = (
        f"<div id='flips'></div>{lacking(data)}"
        if data["truths"]
        else f"<p class='small'>{LACKING}</p>"
    )
    lead = (
        "What two arms were told differently, and the test objects that the first gets right where"
        " the second does not."
    )
    swap = "<button type='button' id='swap' aria-label='swap the arms'>⇄</button>"
    card = f"<div class='card'><h3>Settings</h3><div id='settings'></div>{flips}</div>"
    return section(
        "compare",
        "Two arms compared",
        lead,
        f"<div class='choose'>{selects}{swap}</div>{card}{NOSCRIPT}",
    )


def lacking(data: Mapping[str, Any]) -> str:
    """Return which arms have no predictions with true classes, if others have."""
    names = [arm["name"] for arm in data["arms"] if arm["truth"] is None]
    return (
        "<p class='small'>Without predictions, or without the true classes of theirs:"
        f" {escape('; '.join(names))}.</p>"
        if names
        else ""
    )


def confusions(data: Mapping[str, Any]) -> str:
    """The place for one arm's confusion matrix."""
    if not data["truths"]:
        return ""
    options = [escape(arm["name"]) for arm in data["arms"]]
    select = f"<label>Arm <select id='confused'>{_options(options, data['first'])}</select></label>"
    lead = (
        "Rows are the true classes, columns what was predicted, over all seeds of the arm; colours"
        " show shares of a row."
    )
    body = f"<div class='choose'>{select}</div><div class='card' id='confusion'></div>{NOSCRIPT}"
    return section("confusions", "Confusions", lead, body)


NOSCRIPT = (
    "<noscript><p class='small'>This part is drawn by the page's own script, which is switched"
    " off.</p></noscript>"
)


def _options(names: Sequence[str], chosen: int) -> str:
    return "".join(
        f"<option value='{i}'{' selected' * (i == chosen)}>{name}</option>"
        for i, name in enumerate(names)
    )


# Configs


def configs(table: Table, records: Mapping[str, Record]) -> str:
    """The resolved settings: those of all arms once, then of every arm what is its own, with the
    command that runs its cell.
    """
    found = [
        (cell, done[0])
        for cell in table.cells
        if (done := [records[key] for _, key in cell.keys if key in records])
    ]
    if not found:
        return ""
    flats = [flat(record.config) for _, record in found]
    differing = set(_differing(flats))
    common = {
        key: value for key, value in flats[0].items() if key not in differing and key != "seed"
    }
    parts = [
        (
            f"<details><summary>All arms ({len(common)}"
            f" settings)</summary>{_settings(common)}</details>"
            if len(found) > 1
            else ""
        )
    ]
    for (cell, _), config in zip(found, flats, strict=True):
        own = (
            {key: value for key, value in config.items() if key in differing}
            if len(found) > 1
            else common
        )
        command = f"<pre>{escape(commands(table, cell).strip())}</pre>"
        parts.append(
            f"<details><summary>{escape(table.place(cell))}</summary>{_settings(own)}{command}</details>"
        )
    lead = (
        "As resolved, defaults included: first the settings that all arms share, then what each has"
        " of its own and its command."
    )
    return section(
        "configs", "Settings and commands", lead, f"<div class='card stack'>{''.join(parts)}</div>"
    )


def _settings(settings: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<dt>{escape(key)}</dt><dd>{escape(shown(value))}</dd>" for key, value in settings.items()
    )
    return f"<dl class='settings'>{rows}</dl>"


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
