"""Compare a record with the history and the predictions beside it.

A record with a checksum is compared with them by `verify` alone. A record of version 0.1 has no
checksum: its history, whose lines have checksums of their own, and its predictions are all that
speaks for it, so it is believed only where both agree with it.
"""

from __future__ import annotations

import base64
import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pointsweep.errors import StoreError
from pointsweep.results.events import Event, epochs_of, parse
from pointsweep.results.metrics import deciding
from pointsweep.results.records import FIRST_WITH_CHECKSUM, HISTORY, PREDICTIONS, Record

ARRAY_BYTES = 2**26  # of one trial's predictions, unpacked
IOU_DIGITS = 1e-6  # a shape's IoU is kept as float32
# What zipfile and numpy raise for bytes that are not theirs.
UNREADABLE = (
    zipfile.BadZipFile,
    RuntimeError,
    ValueError,
    EOFError,
    OSError,
    struct.error,
    zlib.error,
    LookupError,
    MemoryError,
)


def packed(correct: np.ndarray) -> str:
    """Return whether each object was right, bool (n,), as base64 of its bits: 480 characters for
    2,882 objects.
    """
    return base64.b64encode(np.packbits(correct.astype(bool)).tobytes()).decode()


def read_arrays(data: bytes) -> dict[str, np.ndarray]:
    """Return the arrays of a predictions.npz.

    Raises ValueError for anything but arrays of numbers and words, and for too large ones.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            size_bytes = sum(info.file_size for info in file.infolist())

        if size_bytes > ARRAY_BYTES:
            raise ValueError(f"its arrays are larger than {ARRAY_BYTES:,} bytes")

        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except UNREADABLE as error:
        message = " ".join(str(error).split())[:200]
        raise ValueError(f"no arrays: {type(error).__name__}: {message}") from error


def epochs_problem(record: Record, epochs: Sequence[Event]) -> str:
    """Return which protocol's epoch is not the one that the record names; empty if all are.

    The rule by which each protocol selects its epoch stands in docs/design.md, section 7.
    """
    if not epochs:
        return "no epochs"

    measure = deciding(epochs[0]["metrics"])
    for protocol, recorded in record.metrics.items():
        if protocol == "last":
            epoch = epochs[-1]
        else:
            watched = f"{protocol.removeprefix('best_')}/{measure}"
            # of equal ones the earliest
            epoch = max(
                epochs, key=lambda event: (event["metrics"][watched], -event["epoch"])
            )

        values = {**epoch["metrics"], "epoch": epoch["epoch"]}
        for name in sorted(values.keys() | recorded.keys()):
            if values.get(name) != recorded.get(name):
                by_history = values.get(name, "missing")
                by_record = recorded.get(name, "missing")
                return (
                    f"{protocol} is epoch {epoch['epoch']} by its history, {name} {by_history}; the"
                    f" record says {by_record}"
                )

    return ""


def unsealed_problem(record: Record, read: Callable[[str], bytes]) -> str:
    """Return why a record without a checksum is not believed; empty if it is, or has one.

    `read` gives the bytes of a file beside the record and raises FileNotFoundError.
    """
    if record.schema >= FIRST_WITH_CHECKSUM:
        return ""

    try:
        problem = _history_problem(record, read(HISTORY))
        if not problem:
            problem = _predictions_problem(record, read(PREDICTIONS))
    except FileNotFoundError:
        problem = f"{HISTORY} or {PREDICTIONS} is missing beside it"
    except (StoreError, KeyError, TypeError, ValueError) as error:
        problem = (
            f"what is beside it cannot be compared: {type(error).__name__}: {error}"
        )

    return f"it has no checksum (older version), and {problem}" if problem else ""


def _history_problem(record: Record, data: bytes) -> str:
    events, _ = parse(data)
    problem = epochs_problem(record, epochs_of(events))
    if problem:
        return problem

    trained_on: Mapping[str, object] = {}
    for event in events:
        if event["type"] == "start":
            trained_on = event.get("dataset", {})

    for name in sorted(trained_on.keys() & record.dataset.keys()):
        if trained_on[name] != record.dataset[name]:
            return (
                f"dataset.{name} is {trained_on[name]} by its history, the record says"
                f" {record.dataset[name]}"
            )

    return ""


def _predictions_problem(record: Record, data: bytes) -> str:
    arrays = read_arrays(data)
    for protocol, recorded in record.metrics.items():
        if protocol not in arrays:
            return f"its predictions have no protocol {protocol}"

        predicted = arrays[protocol]
        if predicted.shape != (record.dataset["num_test"],):
            return (
                f"{protocol} has predictions {predicted.shape} of {record.dataset['num_test']} test"
                " objects"
            )

        labels = arrays.get("labels")
        problem = _values_problem(
            record, protocol, recorded, predicted=predicted, labels=labels
        )
        if problem:
            return problem

    return ""


def _values_problem(
    record: Record,
    protocol: str,
    recorded: Mapping[str, float],
    predicted: np.ndarray,
    labels: np.ndarray | None,
) -> str:
    """Return what predictions (n_test,) contradict; early versions kept no labels (n_test,) beside
    them.
    """
    if "test/instance_miou" in recorded:
        mean = float(np.mean(predicted, dtype=np.float64))
        if abs(mean - recorded["test/instance_miou"]) >= IOU_DIGITS:
            return f"{protocol} test/instance_miou is {mean} by its predictions"

        return ""

    if labels is None or "test/accuracy" not in recorded:
        return ""

    right = predicted == labels
    accuracy = int(right.sum()) / len(right)
    if accuracy != recorded["test/accuracy"]:
        return (
            f"{protocol} test/accuracy is {accuracy} by its predictions, the record says"
            f" {recorded['test/accuracy']}"
        )
    if protocol in record.correct and record.correct[protocol] != packed(right):
        return f"{protocol}: which objects it got right is not what its predictions say"

    return ""
