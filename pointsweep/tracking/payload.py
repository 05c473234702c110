"""A trial as a run of MLflow: what its history and record become there, as plain names and values; and the record again of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from pointsweep.results.events import Event
from pointsweep.results.metrics import RECORDED_FRACTIONS
from pointsweep.results.records import Record
from pointsweep.tracking.target import Target, TrialTags

LAYOUT_DIGEST = "pointsweep.layout"  # the tag of a sweep's run that says what its layout's pieces are together
CHUNK = 4000  # characters of a record in one tag; servers cut off or refuse longer ones


def flat(config: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values of a nested config; parts that are not there are left out."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{path}{name}.")
        elif value is not None:
            yield f"{path}{name}", str(value)


def marks(target: Target, key: str, start: Event | None, tags: TrialTags) -> dict[str, str]:
    """The tags that a trial's run is created with; `start` is the event that its first attempt began with."""
    origin = start["origin"] if start is not None else {}
    return {
        "mlflow.parentRunId": target.parent_run_id, "pointsweep.kind": "trial", "pointsweep.key": key,
        "pointsweep.sweep": target.sweep, "row": tags.row, "column": tags.column, "seed": str(tags.seed),
        "cell": f"{tags.row} / {tags.column}", "mlflow.source.git.commit": origin.get("code", "").rstrip("+"),
        **{f"origin.{name}": value for name, value in origin.items()},
    }  # fmt: skip


def epoch_values(event: Event) -> dict[str, float]:
    """The metrics of an epoch."""
    return {**event["metrics"], **{name: event[name] for name in ("lr", "seconds", "peak_memory_bytes")}}


def summary(record: Record) -> tuple[dict[str, float], dict[str, str]]:
    """A record as metrics and tags: what a table compares, and the whole of it in pieces."""
    text = record.to_json()
    chunks = {f"pointsweep.record.{i}": text[at : at + CHUNK] for i, at in enumerate(range(0, len(text), CHUNK))}
    values = {
        metric_name(measure, protocol): chosen[f"test/{measure}"]
        for protocol, chosen in record.metrics.items()
        for measure in RECORDED_FRACTIONS
        if f"test/{measure}" in chosen
    }
    values |= {f"parameters/{name}": float(count) for name, count in record.parameters.items()}
    values |= {"clouds_per_s": record.clouds_per_s, "attempts": float(record.attempts)}
    tags = {**chunks, "weights": record.weights_origin, "marks": ", ".join(record.marks), "pointsweep.done": "1"}
    return values, tags


def metric_name(measure: str, protocol: str) -> str:
    """Return what a measure of the test set at a protocol's epoch is called in MLflow, whose names cannot have an `@`.

    Earlier versions wrote `best_val/accuracy`, which reads as if it were an accuracy on the validation clouds.
    """
    return f"test/{measure}_at_{protocol}"


def layout_tags(text: str) -> dict[str, str]:
    """A sweep's layout, as JSON, in pieces. The digest comes last: without it the pieces are not believed."""
    tags = {}
    for number, start in enumerate(range(0, len(text), CHUNK)):
        tags[f"{LAYOUT_DIGEST}.{number}"] = text[start : start + CHUNK]
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {**tags, LAYOUT_DIGEST: f"{len(tags)} {digest}"}


def layout_text(tags: Mapping[str, str]) -> str:
    """The layout in the tags of a sweep's run; empty if there is none, or not the whole of it."""
    count, _, digest = tags.get(LAYOUT_DIGEST, "").partition(" ")
    if not count.isdecimal():
        return ""
    text = "".join(tags.get(f"{LAYOUT_DIGEST}.{number}", "") for number in range(int(count)))
    return text if hashlib.sha256(text.encode()).hexdigest() == digest else ""


def joined(tags: Mapping[str, str]) -> str:
    """The record in the tags of a run; empty if there is none."""
    names = sorted((name for name in tags if name.startswith("pointsweep.record.")), key=lambda name: int(name.rpartition(".")[2]))
    return "".join(tags[name] for name in names)
