"""What is kept of one finished trial, and the layout that says which cell of a table it belongs to.

A table is a function of a layout and records alone, wherever the two were read from: a sweep file and a store, or MLflow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pointsweep.errors import BadStore, unknown

SCHEMA = 1  # of record.json; a reader accepts this and every older one


@dataclass(frozen=True)
class Record:
    """One trial's result with its full origin. Accuracies are fractions, times seconds, sizes bytes.

    `metrics` maps a protocol (`last`, `best_test`, and `best_val` where there was a validation split) to the metrics of the
    epoch it selects, e.g. {"last": {"epoch": 40, "test_accuracy": 0.81, "test_loss": 0.7}}.
    """

    key: str
    config: Mapping[str, Any]  # TrialConfig.to_dict()
    metrics: Mapping[str, Mapping[str, float]]
    parameters: Mapping[str, int]  # trainable, trainable_without_head, total
    dataset: Mapping[str, Any]  # name, digest, num_train, num_val, num_test, num_classes
    weights_origin: str  # of the frozen network
    marks: tuple[str, ...] = ()  # what a table must say beside the number: "random weights", "synthetic data", "official"
    seconds: Mapping[str, float] = field(default_factory=dict)  # total, train, device (total times its GPUs, or CPUs)
    peak_memory_bytes: int = 0
    clouds_per_s: float = 0.0
    origin: Mapping[str, str] = field(default_factory=dict)  # versions, commit or tree digest, host, device, started, ended
    attempts: int = 1
    schema: int = SCHEMA
    # Which test objects the trial got right, by protocol: the bits of paired.packed. Older records have none.
    correct: Mapping[str, str] = field(default_factory=dict)
    # Joules by device, cpu and gpu, as far as the machine lets them be read (energy.py).
    energy_j: Mapping[str, float] = field(default_factory=dict)

    @property
    def device_s(self) -> float:
        """Seconds times the devices that the trial had; records of older versions do not say, and count one."""
        return self.seconds.get("device", self.seconds.get("total", 0.0))

    def to_json(self) -> str:
        """One line; floats keep every bit."""
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False)


FIELDS = tuple(each.name for each in fields(Record))


def from_json(text: str | bytes) -> Record:
    """Reads a record of this or an older version: fields unknown here are dropped, new ones get their default.

    Raises BadStore if it is no record, or one of a later schema.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise BadStore(f"not a record: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("schema"), int):
        raise BadStore("not a record: no schema number")
    if data["schema"] > SCHEMA:
        raise BadStore(f"record of schema {data['schema']}, this version reads up to {SCHEMA}: use a later pointsweep")
    values = {name: value for name, value in data.items() if name in FIELDS}
    return Record(**(values | {"marks": tuple(values.get("marks", ()))}))


@dataclass(frozen=True)
class Published:
    """A number that a paper prints for a cell. `value` in the paper's unit (percent), `params_m` in millions as printed."""

    value: float | None
    params_m: float | None
    source: str  # e.g. "Any2Point, Table 5"


@dataclass(frozen=True)
class CellLayout:
    """One cell: which trials fill it. `row` and `column` index into the layout; `excluded` says why there are none."""

    row: int
    column: int
    keys: tuple[tuple[int, str], ...]  # (seed, trial key), in the order of the seeds
    published: Published | None = None
    excluded: str | None = None


@dataclass(frozen=True)
class Adaptive:
    """Seeds from `least` to `most` in a cell, by what its comparison with the row `against` still needs (adaptive.py)."""

    least: int
    most: int
    against: int = 0


@dataclass(frozen=True)
class Layout:
    """The shape of a table. A row's label is a tuple, one entry per name in `row_headers` (rows, then further axes)."""

    name: str
    title: str
    row_headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    columns: tuple[str, ...]
    cells: tuple[CellLayout, ...]
    metric: str = "test/accuracy"
    protocol: str = "last"  # last, best_val or best_test
    notes: tuple[str, ...] = ()  # printed under the table: the profile, overrides from the command line
    factors: tuple[Mapping[str, bool] | None, ...] = ()  # of a factorial: which components each row has; none where no row says
    adaptive: Adaptive | None = None  # then a cell's keys are those of the most seeds
    per_hour: float | None = None  # the price of an hour of one device

    def to_json(self) -> str:
        """One line; `layout_from_json` reads it."""
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False)


def layout_from_json(text: str) -> Layout:
    """The inverse of `Layout.to_json`. Raises ValueError if it is none."""
    return layout_from_dict(json.loads(text))


def layout_from_dict(data: Any) -> Layout:
    """Of what stands in that text. Raises ValueError if it is none."""
    if not isinstance(data, dict) or "cells" not in data:
        raise ValueError("not a layout: no cells")
    cells = tuple(_cell(cell) for cell in data["cells"])
    rows = tuple(tuple(row) for row in data["rows"])
    tuples = {name: tuple(data[name]) for name in ("row_headers", "columns", "notes")}
    adaptive = Adaptive(**data["adaptive"]) if data.get("adaptive") else None
    more = {"cells": cells, "rows": rows, "factors": tuple(data.get("factors", ())), "adaptive": adaptive}
    return Layout(**(data | tuples | more))


def _cell(data: Mapping[str, Any]) -> CellLayout:
    published = Published(**data["published"]) if data["published"] else None
    keys = tuple((seed, key) for seed, key in data["keys"])
    return CellLayout(data["row"], data["column"], keys, published, data["excluded"])


def value(record: Record, protocol: str, metric: str) -> float:
    """A record's number. Raises ValueError naming what the record has instead."""
    if protocol not in record.metrics:
        hint = " (best_val needs dataset.val_fraction above 0)" if protocol == "best_val" else ""
        raise ValueError(f"trial {record.key}: {unknown('protocol', protocol, record.metrics, 'It has')}{hint}")
    if metric not in record.metrics[protocol]:
        raise ValueError(f"trial {record.key}: {unknown('metric', metric, record.metrics[protocol], 'It has')}")
    return record.metrics[protocol][metric]
