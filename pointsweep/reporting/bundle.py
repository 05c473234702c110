"""One file with all that stands behind a table: the table in every format, layout, resolved
configs, records, epochs, predictions.

A zip of plain members in one canonical form: names sorted, nothing compressed, fixed times. So
whoever reads it can write it again and compare the bytes, and a change anywhere is seen, also in
those bytes of a zip that no checksum of its own covers. Nothing in it is a pickle, and nothing of
it is ever unpacked to a disk. `verify.py` computes the table anew from the predictions inside.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pointsweep.reporting.build import trial_keys
from pointsweep.reporting.html.evidence import gather
from pointsweep.reporting.table import Table
from pointsweep.results.agreement import (
    IOU_DIGITS,
    UNREADABLE,
    epochs_problem,
    packed,
    read_arrays,
)
from pointsweep.results.computed_metrics import without_computed
from pointsweep.results.confusion import CONFUSION_METRICS, confusion_scores
from pointsweep.results.events import Event, read_events
from pointsweep.results.kept_plugins import as_members, kept_plugins, other_code
from pointsweep.results.metrics import PER_OBJECT, accuracy, computed, computed_names
from pointsweep.results.records import DAMAGED, Layout, Record
from pointsweep.storage.base import Store
from pointsweep.utils.provenance import code_version, tree_digest

FORMAT = 1
SUMS, MANIFEST = "SHA256SUMS", "MANIFEST.json"
NAME = re.compile(
    r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*(/[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*)*"
)
DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip can say
MOST_BYTES = 2**31 - 1  # beyond it a zip changes its form
SECRET = re.compile(rb"://[^/\s:@\"']+:[^/\s@\"']+@")  # user and password of an address

README = """\
Everything behind one table of pointsweep.

table.*                     the table: text, Markdown, LaTeX, CSV, JSON, HTML
layout.json                 its rows, columns and cells, and which trials (by key) fill each
sweep.yaml                  the file it was run from
trials/KEY/record.json      one trial: its resolved configuration, metrics by protocol, parameters,
                            code and machine
trials/KEY/epochs.json      its metrics by epoch
trials/KEY/predictions.npz  the predicted class of every test object by protocol, and the true ones
                            (no pickle in it)
failures.json               why trials failed, by key
plugins/*.py                the code of methods, data sets and metrics of its user's own, if any
MANIFEST.json               the code that made this file (digest of its tree)
SHA256SUMS                  a checksum of every other file in here

pointsweep verify FILE    checks all of it and computes every number anew from the predictions
sha256sum -c SHA256SUMS             after unpacking: the checksums alone, without pointsweep
"""


class BundleError(ValueError):
    """Not a bundle, or not one as it was written; the message says where."""


# The form


def pack(members: Mapping[str, bytes]) -> bytes:
    """The members as one file, the same bytes for the same members. Raises BundleError for a name
    or a size that it cannot hold.
    """
    if sum(map(len, members.values())) > MOST_BYTES:
        raise BundleError(f"more than {MOST_BYTES:,} bytes; bundle a part of the sweep")

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name in sorted(members):
            if not NAME.fullmatch(name):
                raise BundleError(
                    f"bad name {name!r}; allowed are relative names of letters, digits, '_', '-'"
                    " and '.'"
                )

            info = zipfile.ZipInfo(name, DATE)
            # The same on every system: made by Unix, an ordinary file that its owner may write.
            info.create_system = 3
            info.external_attr = 0o100644 << 16
            file.writestr(info, members[name])

    return buffer.getvalue()


def unpack(data: bytes) -> dict[str, bytes]:
    """The members by name, their checksums compared. Raises BundleError for everything that
    `sealed` did not write.
    """
    try:
        members = _stored_members(data)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise BundleError(
            f"not a sound zip: {type(error).__name__}: {reason}"
        ) from error

    if pack(members) != data:
        raise BundleError(
            "not the bytes that its members are written as: changed in a header, cut off, or"
            " extended"
        )

    if members.get(SUMS) != sums(members):
        listed = set(members.get(SUMS, b"").splitlines())
        wrong = []
        for line in sums(members).splitlines():
            if line not in listed:
                wrong.append(line.split()[1].decode())

        names = ", ".join(wrong[:5]) or "the members there are"
        raise BundleError(f"{SUMS}: does not match {names}")

    return members


def _stored_members(data: bytes) -> dict[str, bytes]:
    """Return the members of a zip that compresses nothing. Raises what zipfile raises, and
    BundleError for another zip.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        infos = file.infolist()
        # Before anything is read: what is stored cannot be larger than the file that it is stored
        # in.
        size = sum(info.file_size for info in infos)
        is_stored = all(info.compress_type == zipfile.ZIP_STORED for info in infos)

        if not is_stored or size > len(data):
            raise BundleError("its members are not stored as they are")

        return {info.filename: file.read(info) for info in infos}


def sealed(members: Mapping[str, bytes]) -> bytes:
    """The members with their checksums, as one file."""
    return pack({**members, SUMS: sums(members)})


def sums(members: Mapping[str, bytes]) -> bytes:
    """A line for each member, as sha256sum writes it."""
    lines = []
    for name in sorted(members):
        if name != SUMS:
            digest = hashlib.sha256(members[name]).hexdigest()
            lines.append(f"{digest}  {name}\n")

    return "".join(lines).encode()


# What goes in


def bundle(
    store: Store,
    layout: Layout,
    table: Table,
    trials: tuple[Mapping[str, Record], Mapping[str, str]],
    files: Mapping[str, bytes],
) -> bytes:
    """The bundle of a table, given its records and failures and the table in every format as
    `files`.

    Raises BundleError naming every trial whose numbers its predictions do not give, and what looks
    like a password.
    """
    records, failures = trials
    members = {
        **files,
        "README.txt": README.encode(),
        "layout.json": layout.to_json().encode(),
    }

    with contextlib.suppress(FileNotFoundError):
        # a table that was not run from a file: its layout says all that matters
        members["sweep.yaml"] = store.read(f"sweeps/{layout.name}/sweep.yaml")

    keys = sorted(records.keys() & trial_keys(layout))
    sources = kept_plugins(store, layout.name)
    members |= as_members(sources)
    members["failures.json"] = _json(dict(failures))
    members[MANIFEST] = _json(
        {
            "format": FORMAT,
            "sweep": layout.name,
            "trials": keys,
            "tree": tree_digest(),
            "code": code_version(),
        }
    )

    problems = []

    for key, reason in sorted(failures.items()):
        if reason.startswith(DAMAGED):
            problems.append(f"trial {key}: {reason}")

    truths = gather(store, table, records).truths
    for key in keys:
        changed = other_code(records[key], sources)
        if changed:
            problems.append(
                f"trial {key}: {changed}; run FILE --rerun-stale trains it again"
            )
            continue

        labels = truths[key].labels if key in truths else None
        try:
            members |= _trial_members(store, records[key], labels, layout.metric)
        except BundleError as error:
            problems.append(f"trial {key}: {error}")

    for name, data in members.items():
        if SECRET.search(data):
            problems.append(f"{name}: holds an address with a password")

    if problems:
        lines = [f"{layout.name}: no bundle can be made", *problems[:20]]
        raise BundleError("\n  ".join(lines))

    return sealed(members)


def _trial_members(
    store: Store, record: Record, labels: np.ndarray | None, metric: str
) -> dict[str, bytes]:
    """Return a trial's files. Raises BundleError if its predictions are missing, or do not give its
    numbers.
    """
    folder = f"trials/{record.key}"
    try:
        data = store.read(f"{folder}/predictions.npz")
    except FileNotFoundError:
        raise BundleError("predictions.npz is missing") from None

    predictions = _with_labels(data, labels)
    recomputed(record, arrays_of(predictions), metric)
    members = {f"{folder}/predictions.npz": predictions}

    for name, content in _trial(store, record):
        members[f"{folder}/{name}"] = content

    return members


def _trial(store: Store, record: Record) -> Iterator[tuple[str, bytes]]:
    """A trial's record and epochs, without the machine's name, and without the paths and processes
    that its history holds.
    """
    origin = dict(record.origin)
    origin.pop("host", None)
    anonymous = without_computed(replace(record, origin=origin))
    yield "record.json", f"{anonymous.to_json()}\n".encode()

    # A trial that was cut off repeats epochs: the last attempt's count.
    metrics = {}

    for event in read_events(store, record.key):
        if event["type"] == "epoch":
            metrics[event["epoch"]] = event["metrics"]

    epochs = [{"epoch": epoch, "metrics": metrics[epoch]} for epoch in sorted(metrics)]
    yield "epochs.json", _json(epochs)


def _with_labels(data: bytes, labels: np.ndarray | None) -> bytes:
    """Trials of older versions did not keep the true classes; they are put in where this machine
    has the data set.
    """
    arrays = arrays_of(data)
    if "labels" in arrays or labels is None:
        return data

    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays, labels=labels)
    return buffer.getvalue()


def _json(value: Any) -> bytes:
    text = json.dumps(
        value, sort_keys=True, indent=0, ensure_ascii=False, allow_nan=False
    )
    return f"{text}\n".encode()


# What its predictions say


def arrays_of(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a predictions.npz. Raises BundleError for anything but arrays of numbers and
    words, and for too large ones.
    """
    try:
        return read_arrays(data)
    except ValueError as error:
        raise BundleError(str(error)) from error


def recomputed(record: Record, arrays: Mapping[str, np.ndarray], metric: str) -> Record:
    """Return the record with what its predictions give in place of what it says.

    Raises BundleError where the two are not equal. A metric that is not recorded is added.
    """
    values, correct = {}, {}
    of_objects = metric == PER_OBJECT or computed(metric) is not None

    for protocol, recorded in record.metrics.items():
        if protocol not in arrays:
            raise BundleError(f"no predictions of protocol {protocol}")

        predicted = arrays[protocol]
        if predicted.shape != _shape(record, recorded):
            raise BundleError(
                f"{protocol}: predictions {predicted.shape} of {record.dataset['num_test']} test"
                " objects"
            )

        computed_values = _from_predictions(recorded, arrays, predicted, metric)
        if predicted.ndim == 1 and of_objects:
            correct[protocol] = packed(predicted == _labels(arrays, predicted))

        for name, number in recorded.items():
            if computed_values[name] != number:
                raise BundleError(
                    f"{protocol}: {name} is {computed_values[name]!r} by its predictions, the"
                    f" record says {number!r}"
                )

        values[protocol] = computed_values

    if record.correct and correct and record.correct != correct:
        raise BundleError("which objects it got right is not what its record says")

    return replace(record, metrics=values, correct=correct if record.correct else {})


def _shape(record: Record, recorded: Mapping[str, float]) -> tuple[int, ...]:
    """Return the shape that a protocol's predictions must have."""
    num_test: int = record.dataset["num_test"]
    if "test/miou" in recorded:  # a confusion matrix for each object
        num_classes: int = record.dataset["num_classes"]
        return (num_test, num_classes, num_classes)

    return (num_test,)


def _from_predictions(
    recorded: Mapping[str, float],
    arrays: Mapping[str, np.ndarray],
    predicted: np.ndarray,
    metric: str,
) -> dict[str, float]:
    """Return a protocol's recorded metrics, with those that its predictions give in their place.
    Raises BundleError where they do not give `metric`.
    """
    added = computed(metric)
    if predicted.ndim == 3 and metric in CONFUSION_METRICS:
        try:
            scores = confusion_scores(predicted.sum(axis=0))
        except ValueError as error:
            raise BundleError(str(error)) from error

        values = dict(recorded)
        for name, score in scores.items():
            values[f"test/{name}"] = score

        return values

    if metric == PER_OBJECT or added is not None:
        labels = _labels(arrays, predicted)
        values = {**recorded, PER_OBJECT: accuracy(predicted, labels)}
        if added is not None and added.from_predictions is not None:
            values[metric] = added.from_predictions(predicted, labels)

        return values

    if metric == "test/instance_miou":
        # Kept to seven digits: what the record says is confirmed to those, and goes on.
        mean = float(np.mean(predicted, dtype=np.float64))
        confirmed = abs(mean - recorded[metric]) < IOU_DIGITS
        return {**recorded, metric: recorded[metric] if confirmed else mean}

    computable = [
        "test/accuracy",
        "test/instance_miou",
        "test/miou",
        "test/mean_class_accuracy",
    ]

    computable += [f"test/{name}" for name in computed_names()]
    raise BundleError(
        f"{metric} cannot be computed from predictions; that can {', '.join(computable)}"
    )


def _labels(arrays: Mapping[str, np.ndarray], predicted: np.ndarray) -> np.ndarray:
    labels = arrays.get("labels")
    if labels is None:
        raise BundleError(
            "no true classes beside its predictions, and this machine has not opened its data set"
        )
    if labels.shape != predicted.shape:
        raise BundleError(
            f"{labels.shape} true classes of {predicted.shape} predictions"
        )

    return labels


def chosen(record: Record, epochs: Sequence[Event]) -> None:
    """Raise BundleError unless every protocol's epoch is the one it names (design.md, section
    7).
    """
    problem = epochs_problem(record, epochs)
    if problem:
        raise BundleError(problem)
