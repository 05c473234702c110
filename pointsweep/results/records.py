"""Record of one finished trial, and the layout that says which cell of a table it belongs to.

A table is a function of a layout and records alone, wherever the two were read from: a sweep file
and a store, or MLflow.
"""

from __future__ import annotations

import binascii
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pointsweep.errors import NewerRecordError, RecordError, StoreError, unknown
from pointsweep.results.metrics import DEFAULT, FRACTIONS

SCHEMA = 2  # of record.json; a reader accepts this and every older one
FIRST_WITH_CHECKSUM = 2
# how the reason of a trial begins that is not in a table because its record is not believed
DAMAGED = "damaged record"
CHECKSUM = "checksum"  # its name in the file; it covers every other field there, unknown ones too
# fields that records without a checksum never had
SINCE_CHECKSUM = ("checksum", "files")
QUICKLY_READ_BYTES = 16 * 2**20
PREDICTIONS = "predictions.npz"
WEIGHTS = "weights.safetensors"
HISTORY = "history.jsonl"


def class_type(num_classes: int) -> str:
    """Return the numpy type that numbers of classes are kept in: a byte each as long as it holds
    them all.
    """
    return "uint8" if num_classes <= 256 else "int32"


@dataclass(frozen=True)
class Record:
    """One trial's result with its full origin. Accuracies are fractions, times seconds, sizes
    bytes.

    `metrics` maps a protocol (`last`, `best_test`, and `best_val` where there was a validation
    split) to the metrics of the epoch it selects, e.g. {"last": {"epoch": 40, "test_accuracy":
    0.81, "test_loss": 0.7}}.
    """

    key: str
    config: Mapping[str, Any]  # TrialConfig.to_dict()
    metrics: Mapping[str, Mapping[str, float]]
    parameters: Mapping[str, int]  # trainable, trainable_without_head, total
    # name, digest, num_train, num_val, num_test, num_classes
    dataset: Mapping[str, Any]
    weights_origin: str  # of the frozen network
    # what a table must say beside the number: "random weights", "synthetic data", "official"
    marks: tuple[str, ...] = ()
    # total, train, device (total times its GPUs, or CPUs)
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    clouds_per_s: float = 0.0
    # versions, commit or tree digest, host, device, started, ended
    origin: Mapping[str, str] = field(default_factory=dict)
    attempts: int = 1
    schema: int = SCHEMA
    # Which test objects the trial got right, by protocol: the bits of paired.packed. Older records
    # have none.
    correct: Mapping[str, str] = field(default_factory=dict)
    # Joules by device, cpu and gpu, as far as the machine lets them be read (energy.py).
    energy_j: Mapping[str, float] = field(default_factory=dict)
    # The files beside the record as it was written, by name: their `bytes` and `sha256`. The
    # history may have grown since.
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def device_s(self) -> float:
        """Seconds times the devices that the trial had; records of older versions do not say, and
        count one.
        """
        return self.seconds.get("device", self.seconds.get("total", 0.0))

    def to_json(self) -> str:
        """One line with its checksum; floats keep every bit. A record of an older version stays
        one, without a checksum.
        """
        data = asdict(self)
        if self.schema >= FIRST_WITH_CHECKSUM:
            data = sealed(data)

        return json.dumps(data, sort_keys=True, allow_nan=False)


FIELDS = tuple(each.name for each in fields(Record))
REQUIRED = ("key", "config", "metrics", "parameters", "dataset", "weights_origin")


def sealed(data: Mapping[str, Any]) -> dict[str, Any]:
    """The data with a checksum of all of it."""
    return {**data, CHECKSUM: checksum(data)}


def checksum(data: Mapping[str, Any]) -> str:
    """The sha256 of the data in one canonical form, without a checksum that stands in it."""
    content = {name: value for name, value in data.items() if name != CHECKSUM}
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def from_json(text: str | bytes, key: str | None = None) -> Record:
    """Read a record of this or an older version: fields unknown here are dropped, new ones get
    their default.

    `key` is that of the trial that it is looked for. Raises RecordError if it cannot be believed,
    NewerRecordError.
    """
    data = _parsed(text)
    if not isinstance(data, dict):
        raise RecordError("not a record: no JSON object")

    schema = data.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise RecordError("not a record: no schema number")
    if schema > SCHEMA:
        raise NewerRecordError(
            f"record of schema {schema}, this version reads up to {SCHEMA}: use a later pointsweep"
        )

    if schema >= FIRST_WITH_CHECKSUM:
        _check_sum(data)
    else:
        _check_unsealed(data)

    for problem in _problems(data):
        raise RecordError(f"not a record: {problem}")

    if key is not None and data["key"] != key:
        raise RecordError(f"it is the record of trial {data['key']}")

    values = {name: value for name, value in data.items() if name in FIELDS}
    values["marks"] = tuple(values.get("marks", ()))
    return Record(**values)


def _parsed(text: str | bytes) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError as error:
        raise RecordError("not a record: nested too deeply") from error
    except ValueError as error:
        raise RecordError(f"not a record: {error}") from error


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{repeated!r} stands there twice")

    return mapping


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _check_sum(data: Mapping[str, Any]) -> None:
    if CHECKSUM not in data:
        raise RecordError("its checksum is missing")

    try:
        expected = checksum(data)
    except (ValueError, RecursionError) as error:  # a number too large for a float
        raise RecordError(f"not a record: {error}") from error

    if data[CHECKSUM] != expected:
        raise RecordError(
            "its checksum does not match: it was edited or damaged after it was written"
        )


def _check_unsealed(data: Mapping[str, Any]) -> None:
    """Refuse a record that calls itself older than it is: one whose checksum was taken away."""
    for name in SINCE_CHECKSUM:
        if data.get(name):
            raise RecordError(
                f"it says schema {data['schema']} and has {name}, which is written since schema"
                f" {FIRST_WITH_CHECKSUM}: it was edited after it was written"
            )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _is_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _is_files(value: Any) -> bool:
    if not isinstance(value, dict):
        return False

    for about in value.values():
        if not isinstance(about, dict) or not _is_text(about.get("sha256")):
            return False
        if not _is_count(about.get("bytes")):
            return False

    return True


# By field: whether a value may stand there, and what is allowed in words.
SHAPES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "key": (_is_text, "a text"),
    "config": (_is_mapping, "an object"),
    "metrics": (
        lambda value: isinstance(value, dict) and all(map(_is_numbers, value.values())),
        "numbers by protocol and name",
    ),
    "parameters": (
        lambda value: isinstance(value, dict) and all(map(_is_count, value.values())),
        "whole numbers by name",
    ),
    "dataset": (_is_mapping, "an object"),
    "weights_origin": (_is_text, "a text"),
    "marks": (
        lambda value: isinstance(value, list) and all(map(_is_text, value)),
        "a list of texts",
    ),
    "seconds": (_is_numbers, "numbers by name"),
    "peak_memory_bytes": (_is_count, "a whole number"),
    "clouds_per_s": (_is_number, "a number"),
    "origin": (_is_texts, "texts by name"),
    "attempts": (_is_count, "a whole number"),
    "correct": (_is_texts, "texts by protocol"),
    "energy_j": (_is_numbers, "numbers by device"),
    "files": (_is_files, "bytes and sha256 by file"),
}


def _problems(data: Mapping[str, Any]) -> Iterator[str]:
    """Everything in a record that no trial writes."""
    for name in REQUIRED:
        if name not in data:
            yield f"it has no {name}"

    for name, (fits, meaning) in SHAPES.items():
        if name in data and not fits(data[name]):
            yield f"{name} is not {meaning}"

    metrics: Any = data.get("metrics")
    if not isinstance(metrics, dict):
        return

    yield from _fraction_problems(metrics)
    if data["schema"] >= FIRST_WITH_CHECKSUM:
        yield from _accuracy_problems(data)


def _fraction_problems(metrics: Mapping[str, Any]) -> Iterator[str]:
    for protocol, values in metrics.items():
        if not isinstance(values, dict):
            continue

        for name, value in values.items():
            if name.endswith(FRACTIONS) and _is_number(value) and not 0 <= value <= 1:
                yield f"{protocol} {name} is {value}, allowed is 0 to 1"


def _accuracy_problems(data: Mapping[str, Any]) -> Iterator[str]:
    """Accuracies that are not the share of objects which the record itself says were right.

    A checksum can be made anew by whoever edits a number; `verify` compares with the predictions.
    """
    dataset: Any = data.get("dataset")
    total = dataset.get("num_test") if _is_mapping(dataset) else None
    correct: Any = data.get("correct")

    if not _is_count(total) or not total or not _is_texts(correct):
        return

    for protocol, text in correct.items():
        values = data["metrics"].get(protocol)
        recorded = values.get("test/accuracy") if isinstance(values, dict) else None
        if not _is_number(recorded):
            continue

        try:
            bits = binascii.a2b_base64(text)
        except binascii.Error:
            bits = b""

        if len(bits) != (total + 7) // 8:
            yield f"correct.{protocol} is not the bits of {total} objects"
            continue

        right = int.from_bytes(bits, "big").bit_count()
        if recorded != right / total:
            yield (
                f"{protocol} test/accuracy is {recorded}, and {right} of {total} objects were"
                f" right, which is {right / total}"
            )


def files_problem(record: Record, size_of: Callable[[str], int | None]) -> str:
    """Return what the files beside a record have in contradiction to it, judged by their sizes;
    empty if nothing.

    `size_of` says a file's bytes, or None if it is not there. Weights may be missing: they are
    large, and no table needs them.
    """
    for name, about in record.files.items():
        size, recorded = size_of(name), about["bytes"]
        if size is None:
            if name != WEIGHTS:
                return f"{name} is missing beside it"
        elif size < recorded or (size > recorded and name != HISTORY):
            return f"{name} beside it has {size:,} bytes, by the record {recorded:,}"

    return ""


def digests_problem(
    record: Record,
    read: Callable[[str], bytes],
    limit_bytes: float = QUICKLY_READ_BYTES,
) -> str:
    """Return which file beside a record has other bytes than when it was written; empty if none.
    Missing ones are `files_problem`'s.

    Files above the limit are not read: of large weights the size must do, but for `verify`.
    """
    for name, about in record.files.items():
        if about["bytes"] > limit_bytes:
            continue

        try:
            data = read(name)
        except FileNotFoundError:
            continue
        except StoreError as error:
            return str(error)

        if name == HISTORY:
            data = data[: about["bytes"]]  # it may have grown since

        if hashlib.sha256(data).hexdigest() != about["sha256"]:
            return f"{name} beside it is not the one that it was written with"

    return ""


@dataclass(frozen=True)
class Published:
    """A number that a paper prints for a cell. `value` in the paper's unit (percent), `params_m` in
    millions as printed.
    """

    value: float | None
    params_m: float | None
    source: str  # e.g. "Any2Point, Table 5"
    # what it is about, in the words of published.csv; empty where only the sweep file gives the
    # number
    dataset: str = ""
    split: str = ""


@dataclass(frozen=True)
class CellLayout:
    """One cell: which trials fill it. `row` and `column` index into the layout; `excluded` says why
    there are none.
    """

    row: int
    column: int
    keys: tuple[tuple[int, str], ...]  # (seed, trial key), in the order of the seeds
    published: Published | None = None
    excluded: str | None = None


def records_by_seed(
    keys: Iterable[tuple[int, str]], records: Mapping[str, Record]
) -> dict[int, Record]:
    """Return those of a cell's records, given by (seed, key), that there are."""
    return {seed: records[key] for seed, key in keys if key in records}


@dataclass(frozen=True)
class Adaptive:
    """Adaptive seeds: from `least` to `most` in a cell, by what its comparison with the row
    `against` still needs (adaptive_seeds.py).
    """

    least: int
    most: int
    against: int = 0


@dataclass(frozen=True)
class Layout:
    """The shape of a table. A row's label is a tuple, one entry per name in `row_headers` (rows,
    then further axes).
    """

    name: str
    title: str
    row_headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    columns: tuple[str, ...]
    cells: tuple[CellLayout, ...]
    metric: str = DEFAULT
    protocol: str = "last"  # last, best_val or best_test
    # printed under the table: the profile, overrides from the command line
    notes: tuple[str, ...] = ()
    # of a factorial: which components each row has; none where no row says
    factors: tuple[Mapping[str, bool] | None, ...] = ()
    adaptive: Adaptive | None = None  # then a cell's keys are those of the most seeds
    per_hour: float | None = None  # the price of an hour of one device

    def to_json(self) -> str:
        """One line; `layout_from_json` reads it."""
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False)


def layout_from_json(text: str) -> Layout:
    """The inverse of `Layout.to_json`. Raises ValueError if it is none."""
    return layout_from_dict(json.loads(text))


def plan_json(layout: Layout, **origin: Any) -> bytes:
    """The content of a sweep's plan.json; `origin` says what it was run from."""
    plan = {"layout": json.loads(layout.to_json()), **origin}
    return json.dumps(sealed(plan)).encode()


def layout_from_plan(data: bytes) -> Layout:
    """The layout in a plan.json; older ones have no checksum. Raises StoreError if it cannot be
    believed.
    """
    try:
        plan = json.loads(data)
        if not isinstance(plan, dict) or "layout" not in plan:
            raise StoreError("no layout in it")
        if CHECKSUM in plan and checksum(plan) != plan[CHECKSUM]:
            raise StoreError(
                "its checksum does not match: it was edited or damaged after it was written"
            )

        return layout_from_dict(plan["layout"])
    except RecursionError as error:
        raise StoreError("nested too deeply") from error
    except ValueError as error:
        raise StoreError(str(error)) from error


def layout_from_dict(data: Any) -> Layout:
    """The layout in such data; fields of later versions are skipped. Raises ValueError if it is
    none.
    """
    if not isinstance(data, dict) or "cells" not in data:
        raise ValueError("not a layout: no cells")

    try:
        layout = _layout(data)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"not a layout: {type(error).__name__}: {error}") from error

    for problem in _layout_problems(layout):
        raise ValueError(f"not a layout: {problem}")

    return layout


def _known(data: Mapping[str, Any], kind: type) -> dict[str, Any]:
    names = {item.name for item in fields(kind)}
    return {name: value for name, value in data.items() if name in names}


def _layout(data: Mapping[str, Any]) -> Layout:
    values = _known(data, Layout)
    values["cells"] = tuple(_cell(cell) for cell in data["cells"])
    values["rows"] = tuple(tuple(row) for row in data["rows"])
    values["factors"] = tuple(data.get("factors", ()))
    values["adaptive"] = None

    if data.get("adaptive"):
        values["adaptive"] = Adaptive(**_known(data["adaptive"], Adaptive))

    for name in ("row_headers", "columns", "notes"):
        values[name] = tuple(data[name])

    return Layout(**values)


def _layout_problems(layout: Layout) -> Iterator[str]:
    texts = (
        layout.name,
        layout.title,
        layout.metric,
        layout.protocol,
        *layout.row_headers,
        *layout.columns,
        *layout.notes,
        *itertools.chain.from_iterable(layout.rows),
    )
    if not all(map(_is_text, texts)):
        yield "a name or a label is not a text"

    if any(len(row) != len(layout.row_headers) for row in layout.rows):
        yield "a row has another number of labels than the table has columns for them"

    if layout.per_hour is not None and not _is_number(layout.per_hour):
        yield "per_hour is no number"

    if not all(value is None or _is_mapping(value) for value in layout.factors):
        yield "factors are no objects"

    for cell in layout.cells:
        yield from _cell_problems(cell, len(layout.rows), len(layout.columns))


def _cell_problems(cell: CellLayout, num_rows: int, num_columns: int) -> Iterator[str]:
    if not _is_count(cell.row) or not _is_count(cell.column):
        yield "a cell's row or column is no whole number"
    elif cell.row >= num_rows or cell.column >= num_columns:
        yield (
            f"a cell in row {cell.row}, column {cell.column}, of {num_rows} rows and"
            f" {num_columns} columns"
        )

    if not all(_is_integer(seed) and _is_text(key) for seed, key in cell.keys):
        yield "a cell's trials are not seeds and keys"

    if cell.published is not None:
        numbers = (cell.published.value, cell.published.params_m)
        if not all(value is None or _is_number(value) for value in numbers):
            yield "a published value is no number"


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _cell(data: Mapping[str, Any]) -> CellLayout:
    published = None
    if data["published"]:
        published = Published(**_known(data["published"], Published))

    return CellLayout(
        row=data["row"],
        column=data["column"],
        keys=tuple((seed, key) for seed, key in data["keys"]),
        published=published,
        excluded=data["excluded"],
    )


def value(record: Record, protocol: str, metric: str) -> float:
    """A record's number. Raises ValueError naming what the record has instead."""
    if protocol not in record.metrics:
        problem = unknown("protocol", protocol, record.metrics, "It has")
        if protocol == "best_val":
            problem += " (best_val needs dataset.val_fraction above 0)"

        raise ValueError(f"trial {record.key}: {problem}")

    values = record.metrics[protocol]
    if metric not in values:
        problem = unknown("metric", metric, values, "It has")
        raise ValueError(f"trial {record.key}: {problem}")

    return values[metric]
