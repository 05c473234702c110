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

from pointsweep.reporting.html.evidence import gather
from pointsweep.reporting.table import Table
from pointsweep.results.agreement import IOU_DIGITS, UNREADABLE, epochs_problem, packed, read_arrays
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
NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*(/[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*)*")
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
    buffer = io.BytesIO()
    if sum(map(len, members.values())) > MOST_BYTES:
        raise BundleError(f"more than {MOST_BYTES:,} bytes; bundle a part of the sweep")
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name in sorted(members):
            if not NAME.fullmatch(name):
                raise BundleError(
                    f"bad name {name!r}; allowed are relative names of letters, digits, '_', '-'"
                    " and '.'"
                )
            info = zipfile.ZipInfo(name, DATE)
            info.create_system, info.external_attr = 3, 0o100644 << 16  # the same on every system
            file.writestr(info, members[name])
    return buffer.getvalue()


def unpack(data: bytes) -> dict[str, bytes]:
    """The members by name, their checksums compared. Raises BundleError for everything that
    `sealed` did not write.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            infos = file.infolist()
            # Before anything is read: what is stored cannot be larger than the file that it is
            # stored in.
            if any(info.compress_type != zipfile.ZIP_STORED for info in infos) or sum(
                info.file_size for info in infos
            ) > len(data):
                raise BundleError("its members are not stored as they are")
            members = {info.filename: file.read(info) for info in infos}
    except UNREADABLE as error:
        raise BundleError(
            f"not a sound zip: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error
    if pack(members) != data:
        raise BundleError(
            "not the bytes that its members are written as: changed in a header, cut off, or"
            " extended"
        )
    if members.get(SUMS) != sums(members):
        listed = set(members.get(SUMS, b"").splitlines())
        wrong = [
            line.split()[1].decode() for line in sums(members).splitlines() if line not in listed
        ]
        raise BundleError(
            f"{SUMS}: does not match {', '.join(wrong[:5]) or 'the members there are'}"
        )
    return members


def sealed(members: Mapping[str, bytes]) -> bytes:
    """The members with their checksums, as one file."""
    return pack({**members, SUMS: sums(members)})


def sums(members: Mapping[str, bytes]) -> bytes:
    """A line for each member, as sha256sum writes it."""
    lines = [
        f"{hashlib.sha256(members[name]).hexdigest()}  {name}\n"
        for name in sorted(members)
        if name != SUMS
    ]
    return "".join(lines).encode()


# What goes in


def bundle(
    store: Store,
    layout: Layout,
    table: Table,
    found: tuple[Mapping[str, Record], Mapping[str, str]],
    files: Mapping[str, bytes],
) -> bytes:
    """The bundle of a table, given its records and failures and the table in every format as
    `files`.

    Raises BundleError naming every trial whose numbers its predictions do not give, and what looks
    like a password.
    """
    records, failures = found
    members = {**files, "README.txt": README.encode(), "layout.json": layout.to_json().encode()}
    with contextlib.suppress(FileNotFoundError):
        # a table that was not run from a file: its layout says all that matters
        members["sweep.yaml"] = store.read(f"sweeps/{layout.name}/sweep.yaml")
    keys = sorted({key for cell in layout.cells for _, key in cell.keys} & records.keys())
    sources = kept_plugins(store, layout.name)
    members |= as_members(sources)
    members["failures.json"] = _json({key: failures[key] for key in sorted(failures)})
    about = {
        "format": FORMAT,
        "sweep": layout.name,
        "trials": keys,
        "tree": tree_digest(),
        "code": code_version(),
    }
    members[MANIFEST] = _json(about)
    truths = gather(store, table, records).truths
    problems = [
        f"trial {key}: {reason}"
        for key, reason in sorted(failures.items())
        if reason.startswith(DAMAGED)
    ]
    for key in keys:
        changed = other_code(records[key], sources)
        if changed:
            problems.append(f"trial {key}: {changed}; run FILE --rerun-stale trains it again")
            continue
        try:
            predictions = _with_labels(
                store.read(f"trials/{key}/predictions.npz"),
                truths[key].labels if key in truths else None,
            )
            recomputed(records[key], arrays_of(predictions), layout.metric)
        except FileNotFoundError:
            problems.append(f"trial {key}: predictions.npz is missing")
            continue
        except BundleError as error:
            problems.append(f"trial {key}: {error}")
            continue
        members |= {f"trials/{key}/{name}": data for name, data in _trial(store, records[key])}
        members[f"trials/{key}/predictions.npz"] = predictions
    problems += [
        f"{name}: holds an address with a password"
        for name, data in members.items()
        if SECRET.search(data)
    ]
    if problems:
        raise BundleError("\n  ".join([f"{layout.name}: no bundle can be made", *problems[:20]]))
    return sealed(members)


def _trial(store: Store, record: Record) -> Iterator[tuple[str, bytes]]:
    """A trial's record and epochs, without the machine's name, and without the paths and processes
    that its history holds.
    """
    origin = {name: value for name, value in record.origin.items() if name != "host"}
    yield (
        "record.json",
        (without_computed(replace(record, origin=origin)).to_json() + "\n").encode(),
    )
    epochs = {
        event["epoch"]: event["metrics"]
        for event in read_events(store, record.key)
        if event["type"] == "epoch"
    }
    yield (
        "epochs.json",
        _json([{"epoch": epoch, "metrics": epochs[epoch]} for epoch in sorted(epochs)]),
    )


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
    return (
        json.dumps(value, sort_keys=True, indent=0, ensure_ascii=False, allow_nan=False) + "\n"
    ).encode()


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
    added = computed(metric)
    for protocol, said in record.metrics.items():
        if protocol not in arrays:
            raise BundleError(f"no predictions of protocol {protocol}")
        predicted = arrays[protocol]
        if predicted.shape != _shape(record, said):
            raise BundleError(
                f"{protocol}: predictions {predicted.shape} of {record.dataset['num_test']} test"
                " objects"
            )
        values[protocol] = _from_predictions(said, arrays, predicted, metric)
        if predicted.ndim == 1 and (metric == PER_OBJECT or added is not None):
            correct[protocol] = packed(predicted == _labels(arrays, predicted))
        for name, recorded in said.items():
            if values[protocol][name] != recorded:
                raise BundleError(
                    f"{protocol}: {name} is {values[protocol][name]!r} by its predictions, the"
                    f" record says {recorded!r}"
                )
    if record.correct and correct and record.correct != correct:
        raise BundleError("which objects it got right is not what its record says")
    return replace(record, metrics=values, correct=correct if record.correct else {})


def _shape(record: Record, recorded: Mapping[str, float]) -> tuple[int, ...]:
    """Return the shape that a protocol's predictions must have."""
    num_test: int = record.dataset["num_test"]
    if "test/miou" in recorded:
        return (num_test, record.dataset["num_classes"], record.dataset["num_classes"])
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
        return {**recorded, **{f"test/{name}": score for name, score in scores.items()}}
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
    known = ["test/accuracy", "test/instance_miou", "test/miou", "test/mean_class_accuracy"]
    can = ", ".join([*known, *(f"test/{name}" for name in computed_names())])
    raise BundleError(f"{metric} cannot be computed from predictions; that can {can}")


def _labels(arrays: Mapping[str, np.ndarray], predicted: np.ndarray) -> np.ndarray:
    labels = arrays.get("labels")
    if labels is None:
        raise BundleError(
            "no true classes beside its predictions, and this machine has not opened its data set"
        )
    if labels.shape != predicted.shape:
        raise BundleError(f"{labels.shape} true classes of {predicted.shape} predictions")
    return labels


def chosen(record: Record, epochs: Sequence[Event]) -> None:
    """Raise BundleError unless every protocol's epoch is the one it names (design.md, section
    7).
    """
    problem = epochs_problem(record, epochs)
    if problem:
        raise BundleError(problem)
