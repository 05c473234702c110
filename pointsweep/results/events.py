"""A trial's history as lines: one checksummed event each. And what they say of a trial, in any
store.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from pointsweep.errors import NotAFileError
from pointsweep.storage.base import Store

Event = dict[str, Any]


def epochs_of(events: Sequence[Event]) -> list[Event]:
    """The epoch events among a history's, each epoch once, by their numbers."""
    # Two processes that both took themselves for the owner leave an epoch twice, with the same
    # numbers, and the second may begin anywhere: the first of the two stays.
    by_epoch: dict[int, Event] = {}
    for event in events:
        if event["type"] == "epoch":
            by_epoch.setdefault(event["epoch"], event)

    return [by_epoch[number] for number in sorted(by_epoch)]


def device_s(epochs: Sequence[Event]) -> float:
    """Seconds of epochs times the devices that each had; epochs of older versions had one."""
    seconds = []
    for event in epochs:
        name = "device_s" if "device_s" in event else "seconds"
        seconds.append(event[name])

    return math.fsum(seconds)


def to_line(event: Mapping[str, Any]) -> bytes:
    """An event as it stands in a history: with its checksum."""
    body = json.dumps(event, sort_keys=True, separators=(",", ":"))
    return f'{{"crc":"{_crc(body)}","event":{body}}}\n'.encode()


def _crc(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"


def parse(data: bytes) -> tuple[list[Event], int]:
    """The events up to the first line that is torn or does not match its checksum, and the number
    of sound bytes.
    """
    events: list[Event] = []
    good = 0

    for line in data.splitlines(keepends=True):
        try:
            entry = json.loads(line)
            event = entry["event"]
            body = json.dumps(event, sort_keys=True, separators=(",", ":"))
            is_whole = line.endswith(b"\n") and entry["crc"] == _crc(body)
            is_event = isinstance(event, dict) and isinstance(event.get("type"), str)
        except (ValueError, KeyError, TypeError, RecursionError):
            break

        if not is_whole or not is_event:
            break

        events.append(event)
        good += len(line)

    return events, good


def unfinished_status(store: Store, key: str) -> str:
    """Return what a trial without a record is: resumable, failed or new."""
    if read_failure(store, key) is not None:
        return "failed"
    if store.exists(f"trials/{key}/checkpoint.safetensors"):
        return "resumable"

    return "new"


def read_failure(store: Store, key: str) -> str | None:
    """Return why a trial's last attempt failed; None if it did not."""
    events = read_events(store, key)
    if events and events[-1]["type"] == "failed":
        return str(events[-1]["reason"])

    return None


def read_failure_kind(store: Store, key: str) -> str:
    """The class of a trial's last failure; "" if it did not fail."""
    events = read_events(store, key)
    if events and events[-1]["type"] == "failed":
        return str(events[-1].get("class", "bug"))

    return ""


def read_events(store: Store, key: str) -> list[Event]:
    """All events of a trial in any store; none if it was not begun."""
    try:
        data = store.read(f"trials/{key}/history.jsonl")
    except (FileNotFoundError, NotAFileError):
        return []

    events, _ = parse(data)
    return events
